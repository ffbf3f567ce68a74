package keyhold

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/key"
)

// While seals wait for a sign that cannot be written, which they do again and again, the epochs are read all the same:
// a version that somebody disables does not open for longer than ever.
func TestWhileSealsWaitForASignChangesAreSeen(t *testing.T) {
	another := Ref{Scope: inner.Scope, Purpose: "another"}
	for name, lock := range locks {
		for how, runs := range map[string]bool{"": false, ", in Run": true} {
			t.Run(name+how, func(t *testing.T) {
				inLocked(t, Config{Durability: Acknowledged}, func(t *testing.T, w *two, s *lockedStore) {
					ct := sealing(t, w.Manager, inner, "x")
					if runs {
						defer running(t, w.Manager)()
					}
					pass(20 * time.Second)
					s.lock.Store(lock)
					ctx, cancel := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					for range 2 {
						wg.Go(func() {
							for pause(ctx, 200*time.Millisecond, nil) {
								if _, err := w.Seal(ctx, another, nil, AAD{}); ctx.Err() == nil {
									wants(t, err, ErrUnavailable)
								}
							}
						})
						pass(10 * time.Second) // so that there is always one that waits
					}
					reads(t, w.Manager, ct, "x")
					_, err := w.other.Rotate(t.Context(), inner)
					check(t, err)
					step(t, w.other, inner, 1, key.Disabled)
					began := time.Now()
					for err = nil; !errors.Is(err, ErrDisabled) && time.Since(began) < 10*time.Minute; pass(100 * time.Millisecond) {
						_, err = w.Open(t.Context(), inner, ct, AAD{})
					}
					if took := time.Since(began); took > epochLife+askLimit+200*time.Millisecond {
						t.Errorf("it opened, or nobody knew, for %v: %v", took, err)
					}
					cancel()
					wg.Wait()
				})
			})
		}
	}
}

// A process that was given up, and registers again by itself, asks before it seals: until then nobody waited for it.
func TestWhoRegistersAgainAsksBeforeItSeals(t *testing.T) {
	inLocked(t, Config{SealFor: 6 * time.Second, Grace: -1}, func(t *testing.T, w *two, s *lockedStore) {
		first := headID(t, w.Manager)
		s.lock.Store(refused)
		stop := running(t, w.Manager)
		pass(5 * time.Minute)
		if in, ok := w.instance(t, w.Manager); !ok || !in.Gone {
			t.Fatalf("the others count on it: %+v, %v", in, ok)
		}
		destroyed := make(chan struct{})
		once := sync.OnceFunc(func() {
			rotated(t, w, inner)
			check(t, w.other.Disable(t.Context(), first))
			check(t, w.other.Destroy(t.Context(), first))
			close(destroyed)
		})
		w.calls.Hook(func(call string) {
			if call == "Sign" {
				once()
			}
		})
		s.lock.Store(written)
		<-destroyed
		synctest.Wait() // it has registered
		if id := headID(t, w.Manager); id == first {
			t.Error("sealed with a destroyed version")
		}
		stop()
	})
}
