//go:build postgres

package keyhold_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
)

// With the build tag postgres, everything that runs on each kind of store runs on PostgreSQL, too.
func init() { //nolint:gochecknoinits // the tag adds to what is there without it
	stores["postgres"] = kind{
		open: func(t testing.TB) store.Store { return openPostgres(t, keyholdtest.Postgres(t)) },
		begin: func(t testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			t.Helper()
			db := s.(*pgstore.Store) //nolint:forcetypeassert // of this kind
			tx, err := db.Pool().Begin(t.Context())
			must(t, err)
			return db.InTx(tx), func() error { return tx.Commit(t.Context()) }, func() error { return tx.Rollback(t.Context()) }
		},
	}
	fleetKinds["postgres"] = fleetKind{
		prepare: func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.WriteFile(filepath.Join(dir, "dsn"), []byte(keyholdtest.Postgres(t)), 0o600))
		},
		open: func(ctx context.Context, dir string) (store.Store, error) {
			dsn, err := os.ReadFile(filepath.Join(dir, "dsn"))
			if err != nil {
				return nil, err
			}
			return pgstore.Open(ctx, string(dsn))
		},
	}
}

func openPostgres(t testing.TB, dsn string) *pgstore.Store {
	t.Helper()
	s, err := pgstore.Open(t.Context(), dsn)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}
