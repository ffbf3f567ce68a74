package keyhold

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// until asserts a time of a health, as how long it is from now; a negative one is none at all.
func until(t *testing.T, what string, at time.Time, want time.Duration) {
	t.Helper()
	if got := time.Until(at); at.IsZero() != (want < 0) || want >= 0 && got != want {
		t.Errorf("%s is %v (%v from now), want %v from now", what, at, got, want)
	}
}

// What is not known is taken for right, so that a process that nobody has called yet gets calls.
func TestHealthOfANewManager(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		m := w.open(t, w.calls)
		h := m.Health()
		check(t, h.Err())
		if !h.Answered.IsZero() || !h.SealUntil.IsZero() || !h.OpenUntil.IsZero() || !h.Swept.IsZero() || h.Database != nil || h.Sweep != nil {
			t.Errorf("before anything was asked: %+v", h)
		}
		pass(48 * time.Hour)
		check(t, m.Health().Err())

		w.away(true)
		_, err := m.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrUnavailable)
		h = m.Health()
		wants(t, h.Err(), ErrUnavailable)
		wants(t, h.Database, ErrUnavailable)
		w.away(false)
		sealing(t, m, inner, "x")
		h = m.Health()
		check(t, errors.Join(h.Err(), h.Database))
		until(t, "seals until", h.SealUntil, DefaultSealFor)
		until(t, "opens until", h.OpenUntil, DefaultOpenFor)
	})
}

// While the database is away, a process is ready for as long as its calls do what they did; and it says how long.
func TestHealthWhileTheDatabaseIsAway(t *testing.T) {
	inTwoWith(t, Config{SealFor: 10 * time.Minute, OpenFor: time.Hour}, func(t *testing.T, w *two) {
		began := time.Now()
		db := &switched{Store: w.store}
		sealer, opener := w.open(t, db), w.open(t, db)
		ct := sealing(t, sealer, inner, "x")
		reads(t, opener, ct, "x")
		stop := running(t, sealer, opener)
		synctest.Wait()
		db.away.Store(true)
		pass(5 * time.Minute)
		h := sealer.Health()
		check(t, h.Err())
		wants(t, h.Database, ErrUnavailable)
		wants(t, h.Sweep, ErrUnavailable)
		until(t, "seals until", h.SealUntil, 5*time.Minute)
		until(t, "opens until", h.OpenUntil, 55*time.Minute)
		if !h.Answered.Equal(began) {
			t.Errorf("the last answer was at %v, want %v", h.Answered, began)
		}
		sealing(t, sealer, inner, "x")

		pass(5*time.Minute + time.Second)
		_, err := sealer.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrStale)
		wants(t, sealer.Health().Err(), ErrStale)
		wants(t, sealer.Health().Err(), ErrUnavailable)
		h = opener.Health()
		check(t, h.Err()) // it has not sealed, and opens
		until(t, "seals until", h.SealUntil, -1)
		reads(t, opener, ct, "x")
		pass(50 * time.Minute)
		wants(t, opener.Health().Err(), ErrStale)

		db.away.Store(false)
		pass(75 * time.Minute) // the next time that versions are rewrapped and cleaned up
		for _, m := range []*Manager{sealer, opener} {
			h := m.Health()
			check(t, errors.Join(h.Err(), h.Database, h.Sweep))
			if time.Since(h.Answered) > 5*time.Second || time.Since(h.Swept) > 80*time.Second {
				t.Errorf("answered %v, swept %v ago", time.Since(h.Answered), time.Since(h.Swept))
			}
		}
		stop()
	})
}

// switched is a database that all questions of Run's go to in vain while it is away, however many ask at once.
type switched struct {
	*memstore.Store
	away atomic.Bool
}

func (s *switched) isAway() error {
	if s.away.Load() {
		return store.ErrUnavailable
	}
	return nil
}

func (s *switched) Epochs(ctx context.Context) (store.Epochs, error) {
	if err := s.isAway(); err != nil {
		return store.Epochs{}, err
	}
	return s.Store.Epochs(ctx)
}

func (s *switched) Sign(ctx context.Context, in store.Instance) (store.Epochs, error) {
	if err := s.isAway(); err != nil {
		return store.Epochs{}, err
	}
	return s.Store.Sign(ctx, in)
}

func (s *switched) Due(ctx context.Context, buckets store.BucketSet, after store.Due, limit int) ([]store.Due, error) {
	if err := s.isAway(); err != nil {
		return nil, err
	}
	return s.Store.Due(ctx, buckets, after, limit)
}

// Nobody asks for a process that is idle, and then nothing is wrong with it; nor is there if callers end their
// questions.
func TestHealthOfAnIdleProcess(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		pass(48 * time.Hour)
		check(t, w.Health().Err())
		ctx, cancel := context.WithCancel(t.Context())
		w.calls.Hook(func(string) { cancel() })
		_, err := w.Seal(ctx, inner, nil, AAD{})
		wants(t, err, context.Canceled)
		h := w.Health()
		check(t, errors.Join(h.Err(), h.Database))
	})
}

// An answer that calls do not go on after is said at once, however new what is known is. A Config.Timeout that is over
// counts as no answer.
func TestHealthSaysWhatCallsWouldSay(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		wrong := errors.New("permission denied")
		m := w.open(t, answering{w.store, func(context.Context) error { return wrong }})
		_, err := m.Open(t.Context(), inner, sealing(t, w.other, inner, "x"), AAD{})
		wants(t, err, wrong)
		wants(t, m.Health().Err(), wrong)

		w.config.Timeout = time.Second
		m = w.open(t, answering{w.store, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
		_, err = m.Open(t.Context(), inner, sealing(t, w.other, inner, "x"), AAD{})
		wants(t, err, ErrUnavailable)
		pass(1)
		wants(t, m.Health().Err(), ErrUnavailable)
	})
}

// answering is a database that answers the question for the epochs as it likes.
type answering struct {
	*memstore.Store
	epochs func(context.Context) error
}

func (s answering) Epochs(ctx context.Context) (store.Epochs, error) {
	return store.Epochs{}, s.epochs(ctx)
}

// With Config.Strict nothing is done without the database, so that a question without an answer is the end.
func TestHealthOfAStrictManager(t *testing.T) {
	inTwoWith(t, Config{Strict: true}, func(t *testing.T, w *two) {
		db := &switched{Store: w.store}
		m := w.open(t, db)
		stop := running(t, m)
		pass(time.Minute)
		h := m.Health()
		check(t, h.Err())
		if h.Answered.IsZero() || !h.SealUntil.IsZero() || !h.OpenUntil.IsZero() {
			t.Errorf("%+v", h)
		}
		db.away.Store(true)
		pass(10 * time.Second)
		wants(t, m.Health().Err(), ErrUnavailable)
		pass(25 * time.Hour)
		if err := m.Health().Err(); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrStale) {
			t.Errorf("got %v, and calls return ErrUnavailable alone", err)
		}
		db.away.Store(false)
		pass(10 * time.Second)
		check(t, m.Health().Err())
		stop()
	})
}

// Keys that are not rotated are counted, sweep for sweep, and are no reason to send calls elsewhere.
func TestHealthCountsWhatFails(t *testing.T) {
	policies := map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}
	inTwoWith(t, Config{Policies: policies}, func(t *testing.T, w *two) {
		stop := running(t, w.other)
		var mac []byte
		w.store.Edit(func(d *memstore.Data) { mac, d.Key(inner).MAC = d.Key(inner).MAC, make([]byte, 32) })
		pass(time.Hour + 30*time.Minute)
		h := w.other.Health()
		check(t, h.Err())
		if h.Failing != 1 || h.Sweep != nil || time.Since(h.Swept) > 80*time.Second {
			t.Errorf("%+v", h)
		}
		w.store.Edit(func(d *memstore.Data) { d.Key(inner).MAC = mac })
		pass(70 * time.Minute)
		if n := w.other.Health().Failing; n != 0 {
			t.Errorf("%d keys fail still", n)
		}
		stop()
	})
}

// What goes wrong when versions are rewrapped and cleaned up each hour is among the errors of the sweeps, until it is
// right again.
func TestHealthKnowsOfMaintenance(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		w.calls.Hook(func(call string) {
			if call == "Tidy" {
				w.calls.Fail(0, faultstore.Before)
			}
		})
		_, err := w.Sweep(t.Context())
		wants(t, err, ErrUnavailable)
		wants(t, w.Health().Sweep, ErrUnavailable)
		check(t, w.Health().Err())
		w.away(false)
		_, err = w.Sweep(t.Context())
		check(t, errors.Join(err, w.Health().Sweep))
	})
}

// Health waits for nobody: not for a question that is under way, nor for Close while that waits for calls.
func TestHealthDoesNotWait(t *testing.T) {
	calls := faultstore.New(memstore.New())
	m := innerManager(t, calls)
	sealing(t, m, inner, "x")
	m.epochs.changed()
	asked, answer := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() {
		close(asked)
		<-answer
	})
	calls.Hook(func(call string) {
		if call == "Epochs" {
			once()
		}
	})
	sealed := make(chan error)
	go func() {
		_, err := m.Seal(t.Context(), inner, nil, AAD{})
		sealed <- err
	}()
	<-asked
	looked := make(chan error)
	go func() { looked <- m.Health().Err() }()
	select {
	case err := <-looked:
		check(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a question")
	}

	closed := make(chan error)
	go func() { closed <- m.Close() }()
	go func() {
		for m.Health().Err() == nil {
			runtime.Gosched()
		}
		looked <- m.Health().Err()
	}()
	select {
	case err := <-looked:
		wants(t, err, ErrClosed)
	case <-time.After(10 * time.Second):
		t.Error("it waits for Close")
	}
	close(answer)
	check(t, errors.Join(<-sealed, <-closed))
	wants(t, m.Health().Err(), ErrClosed)
}

func TestMetricsOfAges(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		m, s := w.watched(t)
		const age = "keyhold.key.age"
		s.isAbsent(t, age)
		another := Ref{Scope: inner.Scope, Purpose: "another"}
		pass(time.Hour)
		rotated(t, w, another)
		pass(time.Hour)
		sealing(t, m, inner, "x")
		sealing(t, m, another, "x")
		pass(time.Hour)
		for purpose, want := range map[string]time.Duration{string(inner.Purpose): 3 * time.Hour, "another": 2 * time.Hour, "": 3 * time.Hour} {
			s.is(t, want.Seconds(), age, "purpose="+purpose)
		}
	})
}
