package memstore_test

import (
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, harness)
}

var harness = storetest.Harness{
	Open:   func(testing.TB) store.Store { return memstore.New() },
	Reopen: func(_ testing.TB, s store.Store) store.Store { return s.(*memstore.Store).Reopen() },
	Begin: func(t testing.TB, s store.Store) (tx store.Tx, commit, rollback func() error) {
		mem := s.(*memstore.Store)
		memTx := mem.Begin()
		t.Cleanup(func() { _ = memTx.Rollback() })
		return mem.InTx(memTx), memTx.Commit, memTx.Rollback
	},
	DeleteScope: func(t testing.TB, s store.Store, scope key.Scope) {
		must(t, s.(*memstore.Store).DeleteScope(t.Context(), scope))
	},
	RenameScope: func(t testing.TB, s store.Store, old, renamed key.Scope) {
		must(t, s.(*memstore.Store).RenameScope(t.Context(), old, renamed))
	},
	RequireScopes: func(t testing.TB, s store.Store, scopes ...key.Scope) {
		must(t, s.(*memstore.Store).RequireScopes(t.Context(), scopes...))
	},
	Refer: func(t testing.TB, s store.Store, id key.ID) {
		must(t, s.(*memstore.Store).Refer(t.Context(), id))
	},
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
