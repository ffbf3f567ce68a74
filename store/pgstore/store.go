// Package pgstore keeps wrapped keys in tables of a PostgreSQL database, alone or among an application's own.
//
// It works with PostgreSQL 14 and newer, in databases whose encoding is UTF8, through pgx or any database/sql
// driver, and with any number of processes. Nothing that it does depends on a session: no advisory locks and no
// settings (but for the time of one transaction, in [Store.Migrate], [Store.Sign] and Take), no temporary tables, and
// LISTEN only in [Store.Listen], without which all works. So it works through pgbouncer in transaction mode, if the
// connections do: those of [Open] do.
//
// Every write of its own is one transaction at read committed, whatever the database's default. It is tried again,
// with the same rows, a few times within about a second, after a serialization failure or a deadlock, and where the
// server was lost, restarted or turned read-only by a failover before the commit was sent. Reads are tried again
// likewise. A commit that was sent is waited for up to 5 s, also after the end of the call's context.
package pgstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
)

// Config says which tables a store works with. The zero value is the defaults. All processes that share the tables
// have to agree on it.
type Config struct {
	// Prefix begins the name of every table, as migrate.Options.Prefix says. Empty is "kms". Two installations with
	// different prefixes can live in one schema.
	Prefix string

	// Schema is the schema of the tables, as it is, without quotes. Empty is where the connection's search_path
	// finds them, and where it makes new ones. Where it is not there, Migrate makes it.
	Schema string

	// ScopeType is the type of the column with the scope's id; empty is text. With migrate.UUID and migrate.BigInt a
	// scope has to be the canonical text of one: lower-case hexadecimal digits with hyphens, or decimal digits
	// without leading zeros. Any other is a [*key.InvalidError], and never finds another scope's row.
	ScopeType migrate.ScopeType

	// ScopeTable and ScopeColumn, both or neither, are the application's table of scopes, which has to be there, and
	// the column of their ids: Migrate gives root keys a foreign key to it that cascades on delete and update. The
	// same can be done at any later time with ALTER TABLE.
	ScopeTable, ScopeColumn string
}

//go:embed migrations/*.sql
var embedded embed.FS

// Migrations renders the migration files for o, to be run by golang-migrate, or by psql, among an application's own.
// An application that does so need not call [Store.Migrate]. Without a schema in o the tables are made where the
// connection's search_path makes them, and their triggers look for them where that search_path found them. The error
// is a [*migrate.OptionError].
func Migrations(o migrate.Options) (fs.FS, error) {
	files, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	return migrate.FS(migrate.Source{Files: files, Scope: scopeColumns, Schemas: true}, o)
}

func (c Config) options() migrate.Options {
	return migrate.Options{
		Prefix: c.Prefix, Schema: c.Schema, ScopeType: c.ScopeType, ScopeTable: c.ScopeTable, ScopeColumn: c.ScopeColumn,
	}
}

// Store is the tables in one database. It is safe for concurrent use, and implements [store.Store].
type Store struct {
	queries
	tables *tables
	source source
	pool   *pgxpool.Pool // nil if it was made by FromSQL
	owned  bool          // Close closes pool
	wait   time.Duration // on average, before a call is tried for the second time
	closed atomic.Bool
}

var _ store.Store = (*Store)(nil)

// New returns a store over the application's own pool, with the defaults; see [Config.New].
func New(pool *pgxpool.Pool) (*Store, error) { return Config{}.New(pool) }

// New returns a store over the application's own pool; it does not talk to the database yet. Statements run in the
// pool's DefaultQueryExecMode; pgx's own default does not go through every pgbouncer. The pool may have a single
// connection. The error is a [*migrate.OptionError].
func (c Config) New(pool *pgxpool.Pool) (*Store, error) {
	s, err := c.store(pgxSource{pool})
	if err != nil {
		return nil, err
	}
	s.pool = pool
	return s, nil
}

// FromSQL returns a store over the application's own pool, with the defaults; see [Config.FromSQL].
func FromSQL(db *sql.DB) (*Store, error) { return Config{}.FromSQL(db) }

// FromSQL is [Config.New] for a pool of database/sql, whatever its driver. Through pgbouncer, pgx's driver needs
// default_query_exec_mode=exec in its address, and lib/pq binary_parameters=yes: see docs/operations.md. Statements go
// one by one, so that a write takes a round trip for each; a driver whose errors have no SQLState method has all of
// them taken for a lost connection.
func (c Config) FromSQL(db *sql.DB) (*Store, error) { return c.store(sqlSource{db}) }

func (c Config) store(from source) (*Store, error) {
	o, err := c.options().Checked()
	if err != nil {
		return nil, err
	}
	s := &Store{tables: newTables(o), source: from, wait: firstWait}
	s.queries = queries{tables: s.tables, view: s}
	return s, nil
}

// Pool is the pool that [Open] made or [New] was given, for the application's own tables and transactions; nil for a
// store made by [FromSQL]. It belongs to whoever opened it: [Store.Close] closes what [Open] opened.
func (s *Store) Pool() *pgxpool.Pool { return s.pool }

// InTx is the tables inside the application's transaction, which has to be one of the same database. Each write is
// inside a savepoint: after an error nothing of it is left, and the transaction can go on, unless the connection is
// lost. A read that fails, which takes a database that is away or without the tables, aborts the transaction.
// Nothing is tried again here: a serialization failure or a deadlock is [store.ErrUnavailable], in which errors.As
// finds the driver's error for the application that runs its transaction again. A foreign key of the application's
// that is deferred is not seen here, but by the application's commit.
func (s *Store) InTx(tx pgx.Tx) store.Tx { return s.inside(pgxSession{tx}) }

// InSQLTx is [Store.InTx] for a transaction of database/sql. It may be used on any store.
func (s *Store) InSQLTx(tx *sql.Tx) store.Tx { return s.inside(sqlSession{tx}) }

func (s *Store) inside(in session) store.Tx {
	return store.Tx{Queries: queries{tables: s.tables, view: &inTx{tables: s.tables, session: in}}}
}

// Close closes the pool if [Open] made it, and waits for what the application still does with it.
func (s *Store) Close() error {
	if !s.closed.Swap(true) && s.owned {
		s.pool.Close()
	}
	return nil
}

var errClosed = errors.New("the store is closed")

// query is the index of a statement's template.
type query int

// templates are the statements of this package, with {schema}, {prefix}, and {scope_type} for the scope's type.
var templates []string

func define(template string) query {
	templates = append(templates, template)
	return query(len(templates) - 1)
}

// tables is the statements for one installation.
type tables struct {
	options migrate.Options
	text    []string
}

func newTables(o migrate.Options) *tables {
	t := &tables{options: o}
	schema := ""
	if o.Schema != "" {
		schema = migrate.Quote(o.Schema) + "."
	}
	replacer := strings.NewReplacer("{schema}", schema, "{prefix}", o.Prefix, "{scope_type}", string(o.ScopeType))
	for _, template := range templates {
		t.text = append(t.text, replacer.Replace(template))
	}
	return t
}

func (t *tables) statement(q query, args ...any) statement {
	return statement{text: t.text[q], args: args}
}

// table is the name of a table as to_regclass takes it.
func (t *tables) table(name string) string {
	name = t.options.Prefix + "_" + name
	if t.options.Schema != "" {
		name = migrate.Quote(t.options.Schema) + "." + name
	}
	return name
}

// read runs one statement on a connection of its own, and tries again what is worth it.
func (s *Store) read(ctx context.Context, st statement) error {
	return s.retry(ctx, func() error {
		_, err := s.once(ctx, st)
		return err
	})
}

// once says besides whether the statement was sent, or may have been.
func (s *Store) once(ctx context.Context, st statement) (sent bool, err error) {
	c, release, err := s.acquire(ctx)
	if err != nil {
		return false, err
	}
	broken := true // unless something says otherwise, such as no panic
	defer func() { release(broken) }()
	if err := ctx.Err(); err != nil {
		broken = false
		return false, err
	}
	err = c.run(ctx, st)
	broken = isLost(err)
	return true, err
}

func (s *Store) acquire(ctx context.Context) (session, func(broken bool), error) {
	if s.closed.Load() {
		return nil, nil, errClosed
	}
	return s.source.acquire(ctx)
}
