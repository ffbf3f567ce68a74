package keyhold_test

import (
	"context"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/store"
)

// before is a store before whose calls something happens, once.
type before struct {
	store.Store
	create, putName func()
}

func once(f *func()) {
	if do := *f; do != nil {
		*f = nil
		do()
	}
}

func (s *before) Create(ctx context.Context, inst [16]byte, keys []store.Key) (int, error) {
	once(&s.create)
	return s.Store.Create(ctx, inst, keys)
}

func (s *before) PutName(ctx context.Context, inst [16]byte, from uint64, n store.Name) error {
	once(&s.putName)
	return s.Store.PutName(ctx, inst, from, n)
}

// Whoever registers a name with a generator, and is told that it is so, gets keys of that, whoever makes one meanwhile.
func TestANameAndItsKeyHaveOneGenerator(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		s := &before{Store: w.store}
		m := newManager(t, s, w.root)
		refs := []keyhold.Ref{{Scope: tenant, Purpose: "a"}, {Scope: tenant, Purpose: "b"}, {Scope: tenant, Purpose: "c"}}

		s.create = func() { fails(t, w.RegisterRaw(t.Context(), refs[0], "aes128-random"), keyhold.ErrExists) }
		made, err := m.MakeRaw(t.Context(), refs[0], keyhold.RawKey{})
		must(t, err)
		if !made {
			t.Error("it was not made")
		}

		s.putName = func() { must(t, w.RegisterRaw(t.Context(), refs[1], "aes128-random")) }
		material, _, err := m.RawOrMake(t.Context(), refs[1], keyhold.RawKey{})
		must(t, err)
		if len(material) != 16 {
			t.Errorf("a key of %d bytes, registered for 16", len(material))
		}

		s.putName = func() {
			_, err := w.MakeRaw(t.Context(), refs[2], keyhold.RawKey{})
			must(t, err)
		}
		fails(t, m.RegisterRaw(t.Context(), refs[2], "aes128-random"), keyhold.ErrExists)
	})
}
