package sqltest

import (
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// Destroyable gives a store with tables an installation and a data key whose first version is disabled, so that an
// update may destroy it, and returns that key.
func Destroyable(t testing.TB, s store.Store, m *storetest.Maker) store.Key {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Initialize(ctx, m.Installation()))
	keys := m.Scope("a", "one")
	_, err := s.Create(ctx, m.Inst(), keys)
	must(err)
	read := func() *store.Key {
		t.Helper()
		f, err := s.Key(ctx, key.Ref{Scope: "a", Purpose: "one"})
		must(err)
		return &f.Data[0]
	}
	must(s.Update(ctx, m.Add(read(), &keys[0])))
	must(s.Update(ctx, m.Activate(read(), 2)))
	must(s.Update(ctx, m.Step(read(), 1, key.Disabled)))
	return *read()
}
