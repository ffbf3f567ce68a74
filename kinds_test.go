package keyhold_test

import (
	"path/filepath"
	"testing"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// kind is a kind of store: how to open an empty database, and how to begin a transaction of the application's on it.
type kind struct {
	open  func(testing.TB) store.Store
	begin func(testing.TB, store.Store) (tx store.Tx, commit, rollback func() error)
}

var stores = map[string]kind{
	"memstore": {
		open: func(testing.TB) store.Store { return memstore.New() },
		begin: func(_ testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			mem := s.(*memstore.Store) //nolint:forcetypeassert // of this kind
			tx := mem.Begin()
			return mem.InTx(tx), tx.Commit, tx.Rollback
		},
	},
	"sqlite": {
		open: func(t testing.TB) store.Store {
			t.Helper()
			s, err := sqlitestore.Create(filepath.Join(t.TempDir(), "keys.db"))
			must(t, err)
			t.Cleanup(func() { must(t, s.Close()) })
			return s
		},
		begin: func(t testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			t.Helper()
			db := s.(*sqlitestore.Store) //nolint:forcetypeassert // of this kind
			tx, err := db.DB().BeginTx(t.Context(), nil)
			must(t, err)
			return db.InTx(tx), tx.Commit, tx.Rollback
		},
	},
	"postgres": {
		open: func(t testing.TB) store.Store { return openPostgres(t, keyholdtest.Postgres(t)) },
		begin: func(t testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			t.Helper()
			db := s.(*pgstore.Store) //nolint:forcetypeassert // of this kind
			tx, err := db.Pool().Begin(t.Context())
			must(t, err)
			return db.InTx(tx), func() error { return tx.Commit(t.Context()) }, func() error { return tx.Rollback(t.Context()) }
		},
	},
}

func openPostgres(t testing.TB, dsn string) *pgstore.Store {
	t.Helper()
	s, err := pgstore.Open(t.Context(), dsn)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}
