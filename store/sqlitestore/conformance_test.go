package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

func TestConformance(t *testing.T) {
	for name, c := range map[string]Config{
		"defaults":                            {},
		"other prefix, scopes are UUIDs":      {Prefix: "other_1", ScopeType: migrate.UUID},
		"longest prefix, scopes are integers": {Prefix: "a_prefix_of_24_characters"[:migrate.MaxPrefixLen], ScopeType: migrate.BigInt},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, harness(c))
		})
	}
}

// TestConformanceOnAnotherDriver uses the application's own pool, whose driver does not show SQLite's result codes.
func TestConformanceOnAnotherDriver(t *testing.T) {
	h := harness(Config{})
	onPool := func(t testing.TB, path string) store.Store {
		t.Helper()
		db := sql.OpenDB(newConnector(t, path, &faults{plain: true}))
		s, err := New(db)
		must(t, err)
		t.Cleanup(func() {
			if err := errors.Join(s.Close(), db.Close()); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	h.Open = func(t testing.TB) store.Store {
		path := filepath.Join(t.TempDir(), "keys.db")
		open(t, Config{}, path)
		return onPool(t, path)
	}
	h.Reopen = func(t testing.TB, s store.Store) store.Store { return onPool(t, fileOf(t, s.(*Store))) }
	storetest.Run(t, h)
}

func harness(c Config) storetest.Harness {
	return storetest.Harness{
		Open: func(t testing.TB) store.Store { return open(t, c, filepath.Join(t.TempDir(), "keys.db")) },
		Reopen: func(t testing.TB, s store.Store) store.Store {
			return open(t, c, fileOf(t, s.(*Store)))
		},
		Begin: func(t testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			tx := begin(t, s.(*Store))
			return s.(*Store).InTx(tx), tx.Commit, tx.Rollback
		},
		DeleteScope: func(t testing.TB, s store.Store, scope key.Scope) {
			mustExec(t, s.(*Store), "delete from {prefix}_root_key where scope_id = ?", string(scope))
		},
		RenameScope: func(t testing.TB, s store.Store, old, renamed key.Scope) {
			mustExec(t, s.(*Store), "update {prefix}_root_key set scope_id = ? where scope_id = ?", string(renamed), string(old))
		},
		RequireScopes: func(t testing.TB, s store.Store, scopes ...key.Scope) {
			addScopeReference(t, s.(*Store))
			for _, scope := range scopes {
				mustExec(t, s.(*Store), "insert into tenant (id) values (?)", string(scope))
			}
		},
		Refer: func(t testing.TB, s store.Store, id key.ID) {
			mustExec(t, s.(*Store), "create table secret (key_id text references {prefix}_data_key_version (private_id))")
			mustExec(t, s.(*Store), "insert into secret (key_id) values (?)", string(id))
		},
		ScopeName: map[migrate.ScopeType]func(int) key.Scope{
			migrate.UUID:   func(n int) key.Scope { return key.Scope(fmt.Sprintf("0192f3a4-5b6c-7d8e-9fa0-%012x", n)) },
			migrate.BigInt: func(n int) key.Scope { return key.Scope(fmt.Sprint(n)) },
		}[c.ScopeType],
	}
}

func open(t testing.TB, c Config, path string) *Store {
	t.Helper()
	s, err := c.Create(path)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func migrated(t testing.TB, c Config, path string) *Store {
	t.Helper()
	s := open(t, c, path)
	if err := s.Migrate(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("Migrate: %v", err)
	}
	return s
}

func fileOf(t testing.TB, s *Store) string {
	t.Helper()
	var path string
	if err := s.DB().QueryRow("select file from pragma_database_list where name = 'main'").Scan(&path); err != nil {
		t.Fatal(err)
	}
	return path
}

func begin(t testing.TB, s *Store) *sql.Tx {
	t.Helper()
	tx, err := s.DB().BeginTx(context.WithoutCancel(t.Context()), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// mustExec runs SQL of the application's own, in which {prefix} is the store's.
func mustExec(t testing.TB, s *Store, text string, args ...any) {
	t.Helper()
	if _, err := s.DB().Exec(withPrefix(s, text), args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func withPrefix(s *Store, text string) string {
	return strings.ReplaceAll(text, "{prefix}", s.tables.options.Prefix)
}

// addScopeReference gives tables that are there the foreign key that Config.ScopeTable gives new ones.
func addScopeReference(t testing.TB, s *Store) {
	t.Helper()
	mustExec(t, s, "create table tenant (id "+scopeColumns[s.tables.options.ScopeType].Type+" primary key)")
	conn, err := s.DB().Conn(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, text := range []string{
		"pragma writable_schema = on",
		`update sqlite_master set sql = substr(sql, 1, length(sql) - 1)
			|| ', foreign key (scope_id) references tenant (id) on delete cascade on update cascade)'
		where name = '{prefix}_root_key'`,
		"pragma schema_version = 1000",
		"pragma writable_schema = reset",
	} {
		if _, err := conn.ExecContext(context.WithoutCancel(t.Context()), withPrefix(s, text)); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
}
