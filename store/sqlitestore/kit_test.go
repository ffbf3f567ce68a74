package sqlitestore

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"github.com/golang-migrate/migrate/v4/database"
	migratesqlite "github.com/golang-migrate/migrate/v4/database/sqlite"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
)

func TestMain(m *testing.M) {
	kit.Child()
	os.Exit(m.Run())
}

func TestProcesses(t *testing.T) { kit.TestProcesses(t) }

func TestMigrations(t *testing.T) { kit.TestMigrations(t) }

var kit = sqltest.Database{
	Fresh:   func(t testing.TB) string { return filepath.Join(t.TempDir(), "keys.db") },
	Connect: func(_ context.Context, path string) (store.Store, error) { return Create(path) },
	Open: func(t testing.TB, o migrate.Options, path string) store.Store {
		return open(t, Config{Prefix: o.Prefix, ScopeType: o.ScopeType, ScopeTable: o.ScopeTable, ScopeColumn: o.ScopeColumn}, path)
	},
	Exec: func(t testing.TB, s store.Store, text string) { mustExec(t, s.(*Store), text) },
	Dump: func(t testing.TB, s store.Store) []string { return dump(t, s.(*Store)) },
	Status: func(ctx context.Context, s store.Store) (list []sqltest.Migration, err error) {
		all, err := s.(*Store).MigrationStatus(ctx)
		for _, m := range all {
			list = append(list, sqltest.Migration(m))
		}
		return list, err
	},
	Migrations: Migrations,
	Driver: func(t testing.TB, path string) (string, database.Driver) {
		db, err := sql.Open("sqlite", path)
		must(t, err)
		d, err := migratesqlite.WithInstance(db, &migratesqlite.Config{}) // closes db with itself
		must(t, err)
		return "sqlite", d
	},
}
