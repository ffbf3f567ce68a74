package keyhold_test

import (
	"path/filepath"
	"testing"

	"keyhold.example/keyhold/key"
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
	// refer inserts a row of the application's that has the version's id by a foreign key; once.
	refer func(testing.TB, store.Store, key.ID)
}

var stores = map[string]kind{
	"memstore": {
		open: func(testing.TB) store.Store { return memstore.New() },
		begin: func(_ testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			mem := s.(*memstore.Store) //nolint:forcetypeassert // of this kind
			tx := mem.Begin()
			return mem.InTx(tx), tx.Commit, tx.Rollback
		},
		refer: func(t testing.TB, s store.Store, id key.ID) {
			t.Helper()
			must(t, s.(*memstore.Store).Refer(t.Context(), id)) //nolint:forcetypeassert // of this kind
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
		refer: func(t testing.TB, s store.Store, id key.ID) {
			t.Helper()
			db := s.(*sqlitestore.Store).DB() //nolint:forcetypeassert // of this kind
			_, err := db.ExecContext(t.Context(), "create table secret (key_id text references kms_data_key_version (private_id) on delete cascade)")
			must(t, err)
			_, err = db.ExecContext(t.Context(), "insert into secret (key_id) values (?)", string(id))
			must(t, err)
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
		refer: func(t testing.TB, s store.Store, id key.ID) {
			t.Helper()
			pool := s.(*pgstore.Store).Pool() //nolint:forcetypeassert // of this kind
			_, err := pool.Exec(t.Context(), "create table secret (key_id text references kms_data_key_version (private_id) on delete cascade)")
			must(t, err)
			_, err = pool.Exec(t.Context(), "insert into secret (key_id) values ($1)", string(id))
			must(t, err)
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
