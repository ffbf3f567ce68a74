//go:build !race

package keyhold

// Under the race detector pools lose some of what they keep.

import (
	"fmt"
	"slices"
	"testing"

	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// With keys in use a message costs its result alone, and nothing where there is room for that; with the context that it
// is given made in the call, of up to four parts.
func TestHotMessagesAllocateTheResultAlone(t *testing.T) {
	contexts := map[int]func() AAD{
		0: func() AAD { return AAD{} },
		1: func() AAD { return Context("clients") },
		3: func() AAD { return Context("clients", "secret", "42") },
		4: func() AAD { return Context("tenants", "clients", "secret", "42") },
	}
	for _, runs := range []bool{false, true} {
		s := faultstore.New(memstore.New())
		m := innerManager(t, s)
		if runs {
			stop := running(t, m)
			defer stop()
		} else {
			defer func() { check(t, m.Close()) }()
		}
		ctx, text, buf := t.Context(), make([]byte, 1000), make([]byte, 0, 2000)
		for parts, aad := range contexts {
			ct, err := m.Seal(ctx, inner, text, aad())
			check(t, err)
			id, detached, err := m.SealDetached(ctx, inner, text, aad())
			check(t, err)
			for name, c := range map[string]struct {
				most float64
				call func() error
			}{
				"Seal":         {1, func() error { _, err := m.Seal(ctx, inner, text, aad()); return err }},
				"SealDetached": {1, func() error { _, _, err := m.SealDetached(ctx, inner, text, aad()); return err }},
				"AppendSeal":   {0, func() error { _, err := m.AppendSeal(ctx, buf, inner, text, aad()); return err }},
				"Open":         {1, func() error { _, err := m.Open(ctx, inner, ct, aad()); return err }},
				"OpenDetached": {1, func() error {
					_, err := m.OpenDetached(ctx, inner, id, detached, aad())
					return err
				}},
				"OpenAny":    {1, func() error { _, _, err := m.OpenAny(ctx, ct, aad()); return err }},
				"AppendOpen": {0, func() error { _, err := m.AppendOpen(ctx, buf, inner, ct, aad()); return err }},
			} {
				t.Run(fmt.Sprintf("%s with %d parts, run %v", name, parts, runs), func(t *testing.T) {
					check(t, c.call())
					before := s.Calls()
					// 3000 calls take less than half a second, and of a process that runs what Run does besides is few.
					allocs := testing.AllocsPerRun(3000, func() {
						if err := c.call(); err != nil {
							t.Error(err)
						}
					})
					if allocs > c.most {
						t.Errorf("%v allocations, want at most %v", allocs, c.most)
					}
					asked := s.Log()[before:]
					if slices.Contains(asked, "Key") || slices.Contains(asked, "KeyOfVersion") {
						t.Errorf("it asked %v", asked)
					}
				})
			}
		}
	}
}
