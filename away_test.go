package keyhold

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// away is a database that answers or not.
func (w *two) away(down bool) {
	w.calls.Hook(nil)
	w.calls.Away(down)
}

// What is known is used for as long as it may be, and no longer; then calls say so, until the database is back.
func TestTheDatabaseIsAway(t *testing.T) {
	for _, limit := range []time.Duration{-1, 5 * time.Second, time.Minute, 0} {
		inTwoWith(t, Config{SealFor: limit, OpenFor: 2 * limit}, func(t *testing.T, w *two) {
			seals, opens := max(limit, 5*time.Second), max(2*limit, 5*time.Second)
			if limit == 0 {
				seals, opens = DefaultSealFor, DefaultOpenFor
			}
			ct := sealing(t, w.Manager, inner, "x")
			began := time.Now()
			w.away(true)
			pass(seals - 1)
			sealing(t, w.Manager, inner, "x")
			pass(1)
			for range 3 {
				_, err := w.Seal(t.Context(), inner, nil, AAD{})
				wants(t, err, ErrUnavailable)
				wants(t, err, ErrStale)
			}
			if seals < opens {
				reads(t, w.Manager, ct, "x")
				pass(opens - time.Since(began) - 1)
				reads(t, w.Manager, ct, "x")
				pass(1)
			}
			_, err := w.Open(t.Context(), inner, ct, AAD{})
			wants(t, err, ErrUnavailable)
			wants(t, err, ErrStale)
			_, _, err = w.OpenAny(t.Context(), ct, AAD{})
			wants(t, err, ErrStale)
			w.away(false)
			pass(restFor)
			sealing(t, w.Manager, inner, "x")
			reads(t, w.Manager, ct, "x")
		})
	}
}

// While the database is away, nobody waits for it who need not, and it is asked once a second.
func TestWhileTheDatabaseIsAwayNobodyWaits(t *testing.T) {
	inSlow(t, func(t *testing.T, w *two, s *slowStore) {
		pass(5 * time.Second)
		s.takes.Store(int64(time.Hour))
		began := time.Now()
		sealing(t, w.Manager, inner, "x")
		if took := time.Since(began); took != askLimit {
			t.Errorf("the first call took %v, want %v", took, askLimit)
		}
		began, before := time.Now(), s.asked.Load()
		for range 100 {
			sealing(t, w.Manager, inner, "x")
		}
		if took := time.Since(began); took != 0 || s.asked.Load() != before {
			t.Errorf("the next took %v and %d questions, want none", took, s.asked.Load()-before)
		}
		pass(restFor)
		sealing(t, w.Manager, inner, "x")
		if got := s.asked.Load() - before; got != 1 {
			t.Errorf("%d questions, want one", got)
		}
	})
}

// A call whose time is short gets its answer while there is time.
func TestAShortCallDoesNotWaitToItsEnd(t *testing.T) {
	inSlow(t, func(t *testing.T, w *two, s *slowStore) {
		pass(5 * time.Second)
		s.takes.Store(int64(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := w.Seal(ctx, inner, nil, AAD{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := ctx.Err(); err != nil {
			t.Error(err)
		}
	})
}

// A version that is not known while the database is away may be there: nobody can say that it does not open.
func TestAnUnknownVersionWhileTheDatabaseIsAway(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)
		ct := sealing(t, w.other, inner, "x")
		w.away(true)
		pass(6 * time.Second)
		_, err = w.Open(t.Context(), inner, ct, AAD{})
		wants(t, err, ErrUnavailable)
		if errors.Is(err, ErrOpen) {
			t.Error(err)
		}
		w.away(false)
		pass(restFor)
		reads(t, w.Manager, ct, "x")
	})
}

// What this process changed just before the database went is not used as it was.
func TestAnOwnChangeBeforeTheDatabaseIsAway(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		another := Ref{Scope: inner.Scope, Purpose: "another"}
		other := Ref{Scope: "other", Purpose: "another"}
		check(t, w.CreateScope(t.Context(), other.Scope))
		for _, r := range []Ref{another, other} {
			sealing(t, w.Manager, r, "x")
		}
		_, err := w.Rotate(t.Context(), inner)
		check(t, err)
		w.away(true)
		_, err = w.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrUnavailable)
		sealing(t, w.Manager, other, "x") // another scope's key is what it was
		w.away(false)
	})
}

// A machine that was suspended has missed what happened meanwhile, though its monotonic clock stood still.
func TestAfterASuspensionTheDatabaseIsAsked(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		var asleep atomic.Int64 // questions are asked in goroutines of their own
		synctest.Wait()
		told := w.epochs.clock
		w.epochs.clock = func() instant {
			now := told()
			now.wall = now.wall.Add(time.Duration(asleep.Load()))
			return now
		}
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)
		w.sealsWith(t, 1)
		asleep.Store(int64(maxDrift))
		w.sealsWith(t, 1)
		asleep.Store(int64(epochLife)) // from now on it counts
		pass(recheck)                  // for so long a key in use asks the other clock alone
		w.sealsWith(t, 2)
		w.away(true)
		asleep.Add(int64(DefaultSealFor))
		pass(recheck)
		_, err = w.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrStale)
		asleep.Store(int64(-10 * 365 * 24 * time.Hour)) // a clock that is set back says nothing
		sealing(t, w.Manager, inner, "x")
		w.away(false)
	})
}
