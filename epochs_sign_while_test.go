package keyhold

import (
	"context"
	"errors"
	"sync"
	"testing"
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
