// Package sqlitestore keeps wrapped keys in tables of an SQLite database, alone or among an application's own.
//
// It works with SQLite 3.35 and newer, and with any number of processes on one file of one machine. Every write of
// its own is one BEGIN IMMEDIATE transaction, so that it waits for others at its beginning, as long as the
// connection's busy_timeout says, and never in the middle.
package sqlitestore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"strings"
	"sync"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
)

// Config says which tables a store works with. The zero value is the defaults. All processes that share the tables
// have to agree on it.
type Config struct {
	// Prefix begins the name of every table, as migrate.Options.Prefix says. Empty is "kms". Two installations with
	// different prefixes can live in one database.
	Prefix string

	// ScopeType is the type of the column with the scope's id; empty is text. With migrate.UUID and migrate.BigInt a
	// scope has to be the canonical text of one: lower-case hexadecimal digits with hyphens, or decimal digits
	// without leading zeros. Any other is a [*key.InvalidError], and never finds another scope's row.
	ScopeType migrate.ScopeType

	// ScopeTable and ScopeColumn, both or neither, are the application's table of scopes and the column of their
	// ids: Migrate gives root keys a foreign key to it that cascades on delete and update. SQLite cannot add one
	// later.
	//
	// An "insert or replace" into that table deletes the scope's row, and by the cascade all its keys, before it
	// inserts the row anew: use "on conflict do update". A scope whose id is changed keeps its keys, but they are
	// refused under the new id until the rename is confirmed.
	ScopeTable, ScopeColumn string
}

//go:embed migrations/*.sql
var embedded embed.FS

// Migrations renders the migration files for o, to be run by golang-migrate among an application's own. An
// application that does so need not call [Store.Migrate]. The error is a [*migrate.OptionError].
func Migrations(o migrate.Options) (fs.FS, error) {
	files, err := fs.Sub(embedded, "migrations")
	if err != nil {
		return nil, err
	}
	return migrate.FS(migrate.Source{Files: files, Scope: scopeColumns}, o)
}

func (c Config) options() migrate.Options {
	return migrate.Options{Prefix: c.Prefix, ScopeType: c.ScopeType, ScopeTable: c.ScopeTable, ScopeColumn: c.ScopeColumn}
}

// Store is the tables in one database. It is safe for concurrent use, and implements [store.Store].
type Store struct {
	queries
	tables *tables
	db     *sql.DB
	owned  bool // Close closes db

	mu    sync.Mutex
	stmts map[query]*sql.Stmt // of db, for reads
}

var _ store.Store = (*Store)(nil)

// New returns a store over the application's own pool, with the defaults; see [Config.New].
func New(db *sql.DB) (*Store, error) { return Config{}.New(db) }

// New returns a store over the application's own pool, whatever its driver; it does not talk to the database yet.
// The connections have to have foreign keys on (the error at the first write says so if not), and should have a
// busy_timeout, synchronous=FULL and secure_delete, as [Open] does. The pool may have a single connection. The error
// is a [*migrate.OptionError].
func (c Config) New(db *sql.DB) (*Store, error) {
	o, err := c.options().Checked()
	if err != nil {
		return nil, err
	}
	s := &Store{tables: newTables(o), db: db, stmts: map[query]*sql.Stmt{}}
	s.queries = queries{tables: s.tables, view: s}
	return s, nil
}

// DB is the pool that the store works with, for the application's own tables and transactions. It belongs to whoever
// opened it: [Store.Close] closes what [Open] and [Create] opened.
func (s *Store) DB() *sql.DB { return s.db }

// InTx is the tables inside the application's transaction, which has to be one of the same database. It uses that
// transaction's connection alone. Each write is inside a savepoint: after an error nothing of it is left, and the
// transaction can go on. But after [store.ErrUnavailable] and [store.ErrUnknownOutcome] it has to be rolled back:
// SQLite may have done so by itself, and then what follows would be committed statement by statement.
//
// A context that ends is noticed between statements and interrupts none, so that a call may outlast it by a
// statement and the connection's busy_timeout. (An application's own write that a context interrupts makes SQLite
// roll back the whole transaction.) The transaction should have begun with BEGIN IMMEDIATE (in the DSN:
// _txlock=immediate), because one that reads first and then writes while others do is refused with
// [store.ErrUnavailable]. A foreign key of the application's that is deferred is not seen here, but by the
// application's commit.
func (s *Store) InTx(tx *sql.Tx) store.Tx {
	return store.Tx{Queries: queries{tables: s.tables, view: &inTx{tables: s.tables, tx: tx}}}
}

// Close releases the statements, and closes the database if [Open] or [Create] opened it.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, stmt := range s.stmts {
		errs = append(errs, stmt.Close())
	}
	s.stmts = nil
	if s.owned {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(errs...)
}

// query is the index of a statement's template.
type query int

// templates are the statements of this package, with {prefix} for the prefix.
var templates []string

func define(template string) query {
	templates = append(templates, template)
	return query(len(templates) - 1)
}

// tables is the statements for one prefix.
type tables struct {
	options migrate.Options
	text    []string
}

func newTables(o migrate.Options) *tables {
	t := &tables{options: o}
	for _, template := range templates {
		t.text = append(t.text, strings.ReplaceAll(template, "{prefix}", o.Prefix))
	}
	return t
}

// query runs a read through a statement that stays prepared.
func (s *Store) query(ctx context.Context, q query, args ...any) (*sql.Rows, error) {
	stmt, err := s.prepared(ctx, q)
	if err != nil {
		return nil, err
	}
	return stmt.QueryContext(ctx, args...)
}

func (s *Store) prepared(ctx context.Context, q query) (*sql.Stmt, error) {
	s.mu.Lock()
	stmt := s.stmts[q]
	s.mu.Unlock()
	if stmt != nil {
		return stmt, nil
	}
	db, err := s.pool()
	if err != nil {
		return nil, err
	}
	// Not under the lock: it may wait for a connection.
	if stmt, err = db.PrepareContext(ctx, s.tables.text[q]); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch other := s.stmts[q]; {
	case s.stmts == nil:
		return nil, errors.Join(errClosed, stmt.Close())
	case other != nil:
		return other, stmt.Close()
	}
	s.stmts[q] = stmt
	return stmt, nil
}

var errClosed = errors.New("the store is closed")

// pool is the database, which may be open for the application when the store is closed.
func (s *Store) pool() (*sql.DB, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stmts == nil {
		return nil, errClosed
	}
	return s.db, nil
}
