package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
)

// lockedStore is a database that answers, and in which no sign can be written while somebody has locked it.
type lockedStore struct {
	store.Store
	lock   atomic.Int32
	signed atomic.Pointer[time.Time] // when the last sign that was written began
}

// What becomes of a sign.
const (
	written int32 = iota
	refused
	silent // the caller waits until it gives up
	slow   // it takes half a second
)

var locks = map[string]int32{"refused": refused, "silent": silent}

func (s *lockedStore) Sign(ctx context.Context, in store.Instance) (store.Epochs, error) {
	now := time.Now()
	switch s.lock.Load() {
	case refused:
		return store.Epochs{}, fmt.Errorf("database is locked: %w", store.ErrUnavailable)
	case silent:
		<-ctx.Done()
		return store.Epochs{}, store.ContextError(ctx)
	case slow:
		pass(500 * time.Millisecond)
	}
	epochs, err := s.Store.Sign(ctx, in)
	s.signed.Store(&now)
	return epochs, err
}

// inLocked is inTwo with a reader whose database can be locked. No other instance has signed.
func inLocked(t *testing.T, cfg Config, f func(t *testing.T, w *two, s *lockedStore)) {
	t.Helper()
	inTwoWith(t, cfg, func(t *testing.T, w *two) {
		check(t, w.Manager.Close())
		s := &lockedStore{Store: w.calls}
		w.Manager = w.open(t, s)
		f(t, w, s)
	})
}

func isEpochs(call string) bool { return call == "Epochs" }

// instance is what the others see of m, if they see it.
func (w *two) instance(t *testing.T, m *Manager) (InstanceInfo, bool) {
	t.Helper()
	infos, err := w.other.Instances(t.Context())
	check(t, err)
	i := slices.IndexFunc(infos, func(in InstanceInfo) bool { return in.ID == string(m.self.ID) })
	if i < 0 {
		return InstanceInfo{}, false
	}
	return infos[i], true
}

// Where nothing changes, an instance asks before what it knows is 5 s old, and writes only once a minute; more often if
// it may not seal for long without.
func TestAnInstanceSignsSeldom(t *testing.T) {
	for sealFor, every := range map[time.Duration]time.Duration{
		DefaultSealFor: time.Minute, 3 * time.Minute: time.Minute, 90 * time.Second: 30 * time.Second, 9 * time.Second: 4 * time.Second,
	} {
		inTwoWith(t, Config{SealFor: sealFor}, func(t *testing.T, w *two) {
			stop := running(t, w.Manager)
			pass(time.Minute)
			var asked, signed []time.Time
			w.calls.Hook(func(call string) { // by the one goroutine that asks
				switch call {
				case "Sign":
					signed = append(signed, time.Now())
					asked = append(asked, time.Now())
				case "Epochs":
					asked = append(asked, time.Now())
				}
			})
			for range 600 {
				sealing(t, w.Manager, inner, "x")
				pass(time.Second)
			}
			stop()
			w.calls.Hook(nil)
			for what, c := range map[string]struct {
				at          []time.Time
				least, most time.Duration
			}{
				"asked":  {asked, 4 * time.Second, 5 * time.Second},
				"signed": {signed, every, every + 5*time.Second},
			} {
				if n := len(c.at); n < int(10*time.Minute/c.most) || n > int(10*time.Minute/c.least)+1 {
					t.Fatalf("with %v, %s %d times in ten minutes", sealFor, what, n)
				}
				for i, at := range c.at[1:] {
					if gap := at.Sub(c.at[i]); gap < c.least || gap > c.most {
						t.Errorf("with %v, %s after %v, want %v to %v", sealFor, what, gap, c.least, c.most)
					}
				}
			}
		})
	}
}

// When another instance has changed a key, an instance sees it with its next question, and says so with the one after
// that, so that whoever waits for it need not wait for its minute to be over. It says it once.
func TestAnInstanceSignsWhenItHasSeenAChange(t *testing.T) {
	for name, c := range map[string]struct {
		runs   bool
		within time.Duration
	}{
		"in Run":       {true, 2*pollEvery + awaitEvery},
		"by its calls": {false, 2*(epochLife+time.Second) + awaitEvery},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				begin := running
				if !c.runs {
					begin = calling
				}
				stop := begin(t, w.Manager)
				for i := range 20 {
					// Each time at another moment between its questions.
					pass(30*time.Second + time.Duration(i)*337*time.Millisecond)
					before := w.calls.Calls()
					_, err := w.other.Rotate(t.Context(), inner)
					check(t, err)
					began := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					check(t, w.other.AwaitInstances(ctx))
					cancel()
					if took := time.Since(began); took > c.within {
						t.Errorf("it took %v, want at most %v", took, c.within)
					}
					if fam, _, _, err := w.hot(seals).sealingHead(t.Context(), inner); err != nil || int(fam.Data[0].Head) != i+2 {
						t.Errorf("awaited, and seals with version %d, %v; want %d", fam.Data[0].Head, err, i+2)
					}
					pass(15 * time.Second)
					signs := 0
					for _, call := range w.since(before) {
						if call == "Sign" {
							signs++
						}
					}
					if signs < 1 || signs > 2 { // its minute may end just then
						t.Errorf("%d signs for one change", signs)
					}
				}
				stop()
			})
		})
	}
}

// calling seals with m every second until the test says stop.
func calling(t *testing.T, managers ...*Manager) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, m := range managers {
		wg.Go(func() {
			for pause(ctx, time.Second, nil) {
				if _, err := m.Seal(ctx, inner, nil, AAD{}); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// A sign that cannot be written while the database answers holds calls up for half a question at most, and only the
// first time. Sealing goes on for as long as the others count on it, and no longer; opening goes on,
// and waits for one question at most. When signs can be written again, so does sealing.
func TestSealingWhileNoSignCanBeWritten(t *testing.T) {
	const sealFor = 2 * time.Minute
	for name, lock := range locks {
		for how, runs := range map[string]bool{"": false, ", in Run": true} {
			t.Run(name+how, func(t *testing.T) {
				inLocked(t, Config{SealFor: sealFor}, func(t *testing.T, w *two, s *lockedStore) {
					s.lock.Store(slow) // the time counts from when a sign began
					ct := sealing(t, w.Manager, inner, "x")
					if runs {
						defer running(t, w.Manager)()
					}
					pass(20 * time.Second)
					sealing(t, w.Manager, inner, "x")
					s.lock.Store(lock)
					end := s.signed.Load().Add(sealFor)
					held := 0
					for time.Until(end) > 2*time.Second {
						began := time.Now()
						var wg sync.WaitGroup
						for range 3 {
							wg.Go(func() { sealing(t, w.Manager, inner, "x") })
						}
						wg.Wait()
						if took := time.Since(began); took > askLimit/2 {
							t.Errorf("a call took %v", took)
						} else if took > 0 {
							held++
						}
						pass(100 * time.Millisecond)
					}
					if want := map[int32]int{silent: 1}[lock]; held != want {
						t.Errorf("calls were held up %d times, want %d", held, want)
					}
					if w.epochs.clock().since(w.epochs.known.Load().asked) > epochLife+askLimit {
						t.Error("the epochs were not read meanwhile")
					}

					pass(time.Until(end) - 1)
					sealing(t, w.Manager, inner, "x")
					pass(1)
					_, err := w.Seal(t.Context(), inner, nil, AAD{})
					wants(t, err, ErrStale)
					wants(t, err, ErrUnavailable)
					for range 3 {
						pass(20 * time.Second)
						_, err := w.Seal(t.Context(), inner, nil, AAD{})
						wants(t, err, ErrStale)
						wants(t, err, ErrUnavailable)
						began := time.Now()
						reads(t, w.Manager, ct, "x")
						if took := time.Since(began); took > askLimit {
							t.Errorf("opening took %v", took)
						}
					}

					s.lock.Store(written)
					began := time.Now()
					for err := ErrStale; err != nil; pass(100 * time.Millisecond) {
						if _, err = w.Seal(t.Context(), inner, nil, AAD{}); time.Since(began) > 5*time.Second {
							t.Fatalf("it does not seal again: %v", err)
						}
					}
					if in, ok := w.instance(t, w.Manager); !ok || in.Gone || time.Since(in.Signed) > askLimit {
						t.Errorf("the others see %+v, %v", in, ok)
					}
				})
			})
		}
	}
}

// Who has never signed does not seal, for nobody would wait for it; it opens.
func TestWhoCannotRegisterDoesNotSeal(t *testing.T) {
	for name, lock := range locks {
		t.Run(name, func(t *testing.T) {
			inLocked(t, Config{}, func(t *testing.T, w *two, s *lockedStore) {
				ct := sealing(t, w.other, inner, "x")
				s.lock.Store(lock)
				for range 2 {
					began := time.Now()
					_, err := w.Seal(t.Context(), inner, nil, AAD{})
					wants(t, err, ErrUnavailable)
					if took := time.Since(began); took > DefaultTimeout {
						t.Errorf("it took %v", took)
					}
					reads(t, w.Manager, ct, "x")
				}
				if in, ok := w.instance(t, w.Manager); ok {
					t.Errorf("the others see %+v", in)
				}
				s.lock.Store(written)
				sealing(t, w.Manager, inner, "x")
				if _, ok := w.instance(t, w.Manager); !ok {
					t.Error("it seals, and the others do not see it")
				}
			})
		})
	}
}

// With Acknowledged, a key that was read seals only when a sign that began later was written, however often one tries;
// without, it seals. A key that sealed before goes on.
func TestAcknowledgedDoesNotSealWithoutASign(t *testing.T) {
	another := Ref{Scope: inner.Scope, Purpose: "another"}
	for name, lock := range locks {
		for _, durability := range []Durability{SameDatabase, Acknowledged} {
			t.Run(fmt.Sprint(name, " ", durability), func(t *testing.T) {
				inLocked(t, Config{Durability: durability}, func(t *testing.T, w *two, s *lockedStore) {
					ct := sealing(t, w.other, another, "y")
					before := w.calls.Calls()
					sealing(t, w.Manager, inner, "x")
					want := []string{"Sign", "Key"}
					if durability == Acknowledged {
						want = append(want, "Sign")
					}
					if got := slices.DeleteFunc(w.since(before), isEpochs); !slices.Equal(got, want) {
						t.Errorf("%v, want %v", got, want)
					}
					s.lock.Store(lock)
					for range 3 {
						_, err := w.Seal(t.Context(), another, nil, AAD{})
						if durability == Acknowledged {
							wants(t, err, ErrUnavailable)
						} else {
							check(t, err)
						}
						sealing(t, w.Manager, inner, "x")
						pt, err := w.Open(t.Context(), another, ct, AAD{})
						if err != nil || string(pt) != "y" {
							t.Errorf("open: %q, %v", pt, err)
						}
					}
					s.lock.Store(written)
					sealing(t, w.Manager, another, "x")
					before = w.calls.Calls()
					sealing(t, w.Manager, another, "x")
					if got := w.since(before); len(got) != 0 {
						t.Errorf("what has sealed takes %v", got)
					}
				})
			})
		}
	}
}

// A sign that began before a key was read says nothing of it, also if it ends later.
func TestAcknowledgedWaitsForASignThatBeginsAfterTheRead(t *testing.T) {
	inLocked(t, Config{Durability: Acknowledged}, func(t *testing.T, w *two, s *lockedStore) {
		for range 2 { // of which the second says what the first has seen
			sealing(t, w.Manager, inner, "x")
			pass(epochLife)
		}
		last := *s.signed.Load()
		pass(time.Until(last.Add(signEvery - time.Second)))
		sealing(t, w.Manager, inner, "x")
		pass(2 * time.Second)
		before := w.calls.Calls()
		s.lock.Store(slow)
		var wg sync.WaitGroup
		wg.Go(func() { check(t, w.epochs.refresh(t.Context())) })
		synctest.Wait()
		began := time.Now()
		sealing(t, w.Manager, Ref{Scope: inner.Scope, Purpose: "another"}, "x")
		wg.Wait()
		if got := w.since(before); !slices.Equal(got, []string{"Key", "Sign", "Sign"}) || time.Since(began) != time.Second {
			t.Errorf("%v in %v, want a sign that had begun, and another", got, time.Since(began))
		}
	})
}

// A process that opens, and rotates what is due now and then, uses nothing that others have to wait for. One that has
// Run at work says all the time by which root it opened the installation.
func TestWhoOnlyOpensNeverSigns(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Minute}}}, func(t *testing.T, w *two) {
		calls := faultstore.New(w.store)
		m := w.open(t, calls)
		for i := range 120 {
			ct := sealing(t, w.Manager, inner, fmt.Sprint(i))
			reads(t, m, ct, fmt.Sprint(i))
			_, _, err := m.OpenAny(t.Context(), ct, AAD{})
			check(t, err)
			_, err = m.Sweep(t.Context())
			check(t, err)
			pass(5 * time.Second)
		}
		if _, ok := w.instance(t, m); ok {
			t.Error("it is among the instances")
		}
		check(t, m.Close())
		if log := calls.Log(); slices.Contains(log, "Sign") || slices.Contains(log, "Leave") || !slices.Contains(log, "Epochs") {
			t.Error("it asked for no epochs, or it signed, or left")
		}
		if n := len(w.states(t, inner)); n < 8 {
			t.Errorf("%d versions, though it swept for ten minutes", n)
		}

		runs := w.open(t, w.store)
		stop := running(t, runs)
		pass(5 * time.Second)
		if in, ok := w.instance(t, runs); !ok || in.Slot != runs.slots.Load().own {
			t.Errorf("instance %+v, %v; want the slot %s", in, ok, runs.slots.Load().own)
		}
		stop()
	})
}

// Who is closed has left at once, and is not waited for. If it could not say so, it says that, within the time of one
// question, and the others wait as for any that is silent.
func TestAClosedInstanceHasLeft(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(w *two)
		want  error
	}{
		"":                {func(*two) {}, nil},
		"it cannot leave": {func(w *two) { w.calls.Fail(0, faultstore.Before) }, ErrUnavailable},
		"nobody answers":  {func(w *two) { w.Manager.store = mute{w.calls} }, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				_, err := w.other.Rotate(t.Context(), inner)
				check(t, err)
				c.fault(w)
				began := time.Now()
				if err := w.Manager.Close(); !errors.Is(err, c.want) {
					t.Errorf("close: %v, want %v", err, c.want)
				}
				if took := time.Since(began); took > askLimit {
					t.Errorf("it took %v", took)
				}
				if _, there := w.instance(t, w.Manager); there != (c.want != nil) {
					t.Errorf("the others see it: %v", there)
				}
				began = time.Now()
				check(t, w.other.AwaitInstances(t.Context()))
				if took := time.Since(began); (took < DefaultSealFor) != (c.want == nil) || took > DefaultSealFor+lifeMargin+2*time.Second {
					t.Errorf("the others waited for %v", took)
				}
			})
		})
	}
}

// mute never answers to Leave.
type mute struct{ store.Store }

func (mute) Leave(ctx context.Context, _ key.ID) error {
	<-ctx.Done()
	return store.ContextError(ctx)
}

// An instance that was silent for so long that it was removed registers before it seals again, and then seals with what
// is there. If it cannot register, it does not seal.
func TestAnInstanceThatComesBackRegistersFirst(t *testing.T) {
	inLocked(t, Config{}, func(t *testing.T, w *two, s *lockedStore) {
		sealing(t, w.Manager, inner, "x")
		pass(DefaultSealFor + lifeMargin)
		if in, ok := w.instance(t, w.Manager); !ok || in.Gone {
			t.Errorf("until its time is over: %+v, %v", in, ok)
		}
		pass(time.Second)
		if in, ok := w.instance(t, w.Manager); !ok || !in.Gone {
			t.Errorf("when its time is over: %+v, %v", in, ok)
		}
		pass(24*time.Hour + time.Second)
		stop := running(t, w.other)
		pass(2 * time.Hour)
		stop()
		if in, ok := w.instance(t, w.Manager); ok {
			t.Fatalf("it was not removed: %+v", in)
		}
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)

		s.lock.Store(refused)
		_, err = w.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrUnavailable)
		wants(t, err, ErrStale)
		if in, ok := w.instance(t, w.Manager); ok {
			t.Errorf("it is there without a sign: %+v", in)
		}

		s.lock.Store(written)
		pass(restFor)
		before := w.calls.Calls()
		w.sealsWith(t, 2)
		if got := slices.DeleteFunc(w.since(before), isEpochs); !slices.Equal(got, []string{"Sign", "Key"}) {
			t.Errorf("%v, want a sign, and then the key", got)
		}
		if in, ok := w.instance(t, w.Manager); !ok || in.Gone || !in.Since.Equal(in.Signed) || time.Since(in.Since) > time.Second {
			t.Errorf("the others see %+v, %v", in, ok)
		}
	})
}
