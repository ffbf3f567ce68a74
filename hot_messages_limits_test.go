package keyhold

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold/envelope"
)

// A key with a limit seals exactly so many messages, over all processes and in all ways; what is refused for another
// reason takes none.
func TestHotMessagesStayWithinTheLimit(t *testing.T) {
	ref := Ref{Scope: inner.Scope, Purpose: "another"}
	large := make([]byte, envelope.MaxPlaintext+1)
	for _, limit := range []uint64{1, 2, 65, 20_000} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			policies := map[Purpose]Policy{ref.Purpose: {RotateEvery: -1, MaxMessages: limit}}
			inTwoWith(t, Config{Policies: policies}, func(t *testing.T, w *two) {
				var sealed atomic.Uint64
				seal := func(m *Manager, i int) error {
					_, _, err := sealWays[i%len(sealWays)].seal(t.Context(), m, ref, []byte("text"), row())
					if err == nil {
						sealed.Add(1)
					}
					return err
				}
				refused := func(m *Manager) {
					for _, way := range sealWays {
						if _, _, err := way.seal(t.Context(), m, ref, large, row()); !errors.Is(err, ErrTooLarge) {
							t.Errorf("%s: %v, want ErrTooLarge", way.name, err)
						}
						_, _, err := way.seal(t.Context(), m, ref, nil, Context("\x0bkh1/context"))
						if !isInvalid(err) {
							t.Errorf("%s: %v, want an InvalidError", way.name, err)
						}
					}
				}
				hot := 0
				for i := range int(limit / 2) {
					m := []*Manager{w.Manager, w.other}[i/100%2]
					var err error
					if i%10 == 0 {
						inUseOnly(m, func() { err = seal(m, i) })
						if err == nil {
							hot++
							continue
						}
						wants(t, err, ErrClosed)
					}
					check(t, seal(m, i))
					if i%100 == 1 {
						refused(m)
					}
				}
				if least := int(limit / 100); limit > 1000 && hot < least {
					t.Errorf("%d of a tenth of the calls did not go the long way, want at least %d", hot, least)
				}
				var wg sync.WaitGroup
				for g := range 6 {
					wg.Go(func() {
						m := []*Manager{w.Manager, w.other}[g%2]
						for i := g; sealed.Load() <= limit; i++ {
							if err := seal(m, i); err != nil {
								wants(t, err, ErrUsedUp)
								return
							}
						}
					})
				}
				wg.Wait()
				if n := sealed.Load(); n != limit {
					t.Errorf("%d messages were sealed, want %d", n, limit)
				}
				refused(w.Manager)
				for _, m := range []*Manager{w.Manager, w.other} {
					for _, way := range sealWays {
						_, _, err := way.seal(t.Context(), m, ref, nil, row())
						wants(t, err, ErrUsedUp)
					}
				}
			})
		})
	}
}

// A nonce prefix is kept while a key is in use, and not for longer than the format allows, whoever looks at a clock.
func TestHotMessagesKeepNoPrefixForLong(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		w.lettered(t)
		born := map[string]time.Time{}
		began := time.Now()
		for i := 0; time.Since(began) < 4*time.Minute; i++ {
			way := sealWays[i%len(sealWays)]
			_, ct, err := way.seal(t.Context(), w.Manager, inner, nil, row())
			check(t, err)
			nonce := 18
			if way.name == "SealDetached" {
				nonce = 2
			}
			prefix := string(ct[nonce : nonce+12])
			if first, ok := born[prefix]; !ok {
				born[prefix] = time.Now()
			} else if age := time.Since(first); age > time.Minute {
				t.Fatalf("a prefix is %v old", age)
			}
			pass(70 * time.Millisecond)
		}
		if len(born) < 4 || len(born) > 6 {
			t.Errorf("%d prefixes in 4 minutes", len(born))
		}
	})
}
