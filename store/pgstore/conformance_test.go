package pgstore

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "github.com/lib/pq"              // the driver "postgres"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

func TestConformance(t *testing.T) {
	for name, c := range map[string]Config{
		"defaults":                       {},
		"other prefix, scopes are UUIDs": {Prefix: "other_1", ScopeType: migrate.UUID},
		"longest prefix, other schema, scopes are integers": {
			Prefix: "a_prefix_of_24_characters"[:migrate.MaxPrefixLen], Schema: `The "keys"`, ScopeType: migrate.BigInt,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, harness(c, byOpen))
		})
	}
}

// TestConformanceOnOtherPools uses the application's own pool: pgx's with its defaults, and those of database/sql.
func TestConformanceOnOtherPools(t *testing.T) {
	for name, how := range map[string]connect{
		"pgxpool, pgx's own mode": byNew, "database/sql, pgx": bySQL("pgx"), "database/sql, lib/pq": bySQL("postgres"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, harness(Config{}, how))
		})
	}
}

// connect makes a store on a database, and closes it when the test is over.
type connect func(t testing.TB, c Config, dsn string) *Store

func byOpen(t testing.TB, c Config, dsn string) *Store {
	t.Helper()
	s, err := c.Open(context.WithoutCancel(t.Context()), dsn)
	must(t, err)
	return remember(t, s, dsn)
}

func byNew(t testing.TB, c Config, dsn string) *Store {
	t.Helper()
	pool, err := pgxpool.New(context.WithoutCancel(t.Context()), dsn)
	must(t, err)
	t.Cleanup(pool.Close)
	s, err := c.New(pool)
	must(t, err)
	return remember(t, s, dsn)
}

func bySQL(driver string) connect {
	return func(t testing.TB, c Config, dsn string) *Store {
		t.Helper()
		db, err := sql.Open(driver, dsn)
		must(t, err)
		t.Cleanup(func() { must(t, db.Close()) })
		s, err := c.FromSQL(db)
		must(t, err)
		return remember(t, s, dsn)
	}
}

func remember(t testing.TB, s *Store, dsn string) *Store {
	t.Helper()
	dsns.Store(s, dsn)
	t.Cleanup(func() {
		dsns.Delete(s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func harness(c Config, how connect) storetest.Harness {
	return storetest.Harness{
		Open:   func(t testing.TB) store.Store { return how(t, c, keyholdtest.Postgres(t)) },
		Reopen: func(t testing.TB, s store.Store) store.Store { return how(t, c, dsnOf(t, s.(*Store))) },
		Begin: func(t testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			return begin(t, s.(*Store))
		},
		DeleteScope: func(t testing.TB, s store.Store, scope key.Scope) {
			mustExec(t, s.(*Store), "delete from {schema}{prefix}_root_key where scope_id = $1::text::{scope_type}", string(scope))
		},
		RenameScope: func(t testing.TB, s store.Store, old, renamed key.Scope) {
			mustExec(t, s.(*Store), "update {schema}{prefix}_root_key set scope_id = $1::text::{scope_type} "+
				"where scope_id = $2::text::{scope_type}", string(renamed), string(old))
		},
		RequireScopes: func(t testing.TB, s store.Store, scopes ...key.Scope) {
			mustExec(t, s.(*Store), "create table tenant (id {scope_type} primary key)")
			mustExec(t, s.(*Store), "alter table {schema}{prefix}_root_key add foreign key (scope_id) "+
				"references tenant (id) on delete cascade on update cascade")
			for _, scope := range scopes {
				mustExec(t, s.(*Store), "insert into tenant (id) values ($1::text::{scope_type})", string(scope))
			}
		},
		Refer: func(t testing.TB, s store.Store, id key.ID) {
			mustExec(t, s.(*Store), "create table secret (key_id text references {schema}{prefix}_data_key_version (private_id))")
			mustExec(t, s.(*Store), "insert into secret (key_id) values ($1)", string(id))
		},
		ScopeName: map[migrate.ScopeType]func(int) key.Scope{
			migrate.UUID:   func(n int) key.Scope { return key.Scope(fmt.Sprintf("0192f3a4-5b6c-7d8e-9fa0-%012x", n)) },
			migrate.BigInt: func(n int) key.Scope { return key.Scope(fmt.Sprint(n)) },
		}[c.ScopeType],
	}
}

// begin begins a transaction of the application's, of the kind that the store's pool has.
func begin(t testing.TB, s *Store) (tx store.Tx, commit, rollback func() error) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if s.Pool() == nil {
		sqlTx, err := s.source.(sqlSource).db.BeginTx(ctx, nil)
		must(t, err)
		t.Cleanup(func() { _ = sqlTx.Rollback() })
		return s.InSQLTx(sqlTx), sqlTx.Commit, sqlTx.Rollback
	}
	pgxTx, err := s.Pool().Begin(ctx)
	must(t, err)
	t.Cleanup(func() { _ = pgxTx.Rollback(ctx) })
	return s.InTx(pgxTx), func() error { return pgxTx.Commit(ctx) }, func() error { return pgxTx.Rollback(ctx) }
}

// dsns are the addresses that the tests' stores were made with.
var dsns sync.Map

func dsnOf(t testing.TB, s *Store) string {
	t.Helper()
	dsn, ok := dsns.Load(s)
	if !ok {
		t.Fatal("a store that was not made here")
	}
	return dsn.(string)
}

// mustExec runs SQL of the application's own, in which {schema}, {prefix} and {scope_type} are the store's.
func mustExec(t testing.TB, s *Store, text string, args ...any) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	c, release, err := s.source.acquire(ctx)
	must(t, err)
	defer release(false)
	if err := c.run(ctx, statement{text: rendered(s, text), args: args}); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func rendered(s *Store, text string) string {
	schema := ""
	if s.tables.options.Schema != "" {
		schema = pgx.Identifier{s.tables.options.Schema}.Sanitize() + "."
	}
	return strings.NewReplacer("{schema}", schema, "{prefix}", s.tables.options.Prefix, "{scope_type}", string(s.tables.options.ScopeType)).Replace(text)
}
