package pgstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	_ "github.com/lib/pq"              // the driver "postgres"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// way is how an application gets at its tables, and which these are.
type way struct {
	config  Config
	connect connect
	through func(t testing.TB, dsn string) string // the address that a database is reached at; nil: its own
	roles   *roles                                // what the store does is divided among these; nil: the owner does it
}

// TestConformance holds the store to the contract in each way of getting at the database, with each type of scopes,
// and with tables under other names and in another schema. One of all these at a time would take twice as long and
// find no more: what the types and names change is the statements' text, and what the way changes is who sends it.
func TestConformance(t *testing.T) {
	longest := "a_prefix_of_24_characters"[:migrate.MaxPrefixLen]
	for name, make := range map[string]func(t *testing.T) way{
		"Open, defaults": func(*testing.T) way { return way{connect: byOpen} },
		"sql.DB of pgx, longest prefix, other schema, scopes are integers": func(*testing.T) way {
			return way{connect: bySQL("pgx"), config: Config{Prefix: longest, Schema: `100%d "keys"`, ScopeType: migrate.BigInt}}
		},
		"sql.DB of pq, defaults": func(*testing.T) way { return way{connect: bySQL("postgres")} },
		"through pgbouncer, other prefix, scopes are UUIDs": func(t *testing.T) way {
			return way{connect: byOpen, config: Config{Prefix: "other_1", ScopeType: migrate.UUID}, through: bouncer(t)}
		},
		// Its rights are enough for the whole contract of a store, but for the tables, the installation and destroying,
		// which are others' to do.
		"pgxpool in pgx's own mode, the application's role": func(t *testing.T) way { return way{connect: byNew, roles: newRoles(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, make(t).harness(t))
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

// store is one on the database with the given address.
func (w way) store(t testing.TB, dsn string) store.Store {
	t.Helper()
	switch {
	case w.roles != nil:
		return w.roles.open(t, w.connect, dsn)
	case w.through != nil:
		return w.connect(t, w.config, w.through(t, dsn))
	}
	return w.connect(t, w.config, dsn)
}

func (w way) harness(t *testing.T) storetest.Harness {
	t.Helper()
	bare := newTemplate(t, func(dsn string) {
		if w.roles != nil {
			w.roles.admit(t, dsn)
		}
	})
	full := newTemplate(t, func(dsn string) {
		ctx, migrate, direct := t.Context(), (*Store).Migrate, dsn // not through a pooler, which would stay connected
		if w.roles != nil {
			w.roles.admit(t, dsn)
			migrate, direct = func(s *Store, ctx context.Context) error { return w.roles.migrate(ctx, s) }, w.roles.as(t, "migration", dsn)
		}
		s, err := w.config.Open(ctx, direct)
		must(t, err)
		must(t, errors.Join(migrate(s, ctx), s.Close()))
	})
	return storetest.Harness{
		Open:         func(t testing.TB) store.Store { return w.store(t, bare.fresh(t)) },
		OpenMigrated: func(t testing.TB) store.Store { return w.store(t, full.fresh(t)) },
		Reopen: func(t testing.TB, s store.Store) store.Store {
			if d, ok := s.(*divided); ok {
				return w.store(t, d.dsn)
			}
			return w.connect(t, w.config, dsnOf(t, s.(*Store)))
		},
		Begin: func(t testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			if d, ok := s.(*divided); ok {
				s = d.Store
			}
			return begin(t, s.(*Store))
		},
		NoDestroyInTx: w.roles != nil,
		DeleteScope: func(t testing.TB, s store.Store, scope key.Scope) {
			mustExec(t, operatorOf(s), "delete from {schema}{prefix}_root_key where scope_id = $1::text::{scope_type}", string(scope))
		},
		RenameScope: func(t testing.TB, s store.Store, old, renamed key.Scope) {
			mustExec(t, operatorOf(s), "update {schema}{prefix}_root_key set scope_id = $1::text::{scope_type} "+
				"where scope_id = $2::text::{scope_type}", string(renamed), string(old))
		},
		RequireScopes: func(t testing.TB, s store.Store, scopes ...key.Scope) {
			owner := ownerOf(s)
			mustExec(t, owner, "create table tenant (id {scope_type} primary key)")
			mustExec(t, owner, "alter table {schema}{prefix}_root_key add foreign key (scope_id) "+
				"references tenant (id) on delete cascade on update cascade")
			for _, scope := range scopes {
				mustExec(t, owner, "insert into tenant (id) values ($1::text::{scope_type})", string(scope))
			}
		},
		Refer: func(t testing.TB, s store.Store, id key.ID) {
			owner := ownerOf(s)
			mustExec(t, owner, "create table secret (key_id text references {schema}{prefix}_data_key_version (private_id))")
			mustExec(t, owner, "insert into secret (key_id) values ($1)", string(id))
			mustExec(t, owner, "grant select on secret to public")
		},
		ScopeName: map[migrate.ScopeType]func(int) key.Scope{
			migrate.UUID:   func(n int) key.Scope { return key.Scope(fmt.Sprintf("0192f3a4-5b6c-7d8e-9fa0-%012x", n)) },
			migrate.BigInt: func(n int) key.Scope { return key.Scope(fmt.Sprint(n)) },
		}[w.config.ScopeType],
	}
}

// operatorOf is the store of who deletes and renames scopes by hand.
func operatorOf(s store.Store) *Store {
	if d, ok := s.(*divided); ok {
		return d.operator
	}
	return s.(*Store)
}

// ownerOf is the store of who owns the tables.
func ownerOf(s store.Store) *Store {
	if d, ok := s.(*divided); ok {
		return d.migration
	}
	return s.(*Store)
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
