package main

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"

	gomigrate "github.com/golang-migrate/migrate/v4"
	migratedb "github.com/golang-migrate/migrate/v4/database"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	migratesqlite "github.com/golang-migrate/migrate/v4/database/sqlite"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// database is the application's tables and keyhold's, in one SQLite file or one PostgreSQL schema. SQL that is not
// in a migration is the same for both.
type database struct {
	*sql.DB

	keys  store.Store
	inTx  func(*sql.Tx) store.Tx // keyhold's tables inside a transaction of the DB
	close func() error
}

// openDatabase opens sqlite:PATH, which it makes if need be, or postgres://..., and brings its tables up to date.
func openDatabase(ctx context.Context, address string) (*database, error) {
	if path, found := strings.CutPrefix(address, "sqlite:"); found && path != "" {
		return openSQLite(path)
	}
	if strings.HasPrefix(address, "postgres://") || strings.HasPrefix(address, "postgresql://") {
		return openPostgres(ctx, address)
	}
	// Without the address, which may have a password in it.
	return nil, errors.New("open database: its address has to be sqlite:PATH or postgres://USER@HOST/DATABASE")
}

func openSQLite(path string) (*database, error) {
	keys, err := sqlitestore.Create(path)
	if err != nil {
		return nil, err
	}
	driver, err := migratesqlite.WithInstance(keys.DB(), &migratesqlite.Config{})
	if err == nil {
		err = migrateUp(driver, "sqlite", sqlitestore.Migrations) // its driver has nothing to close but the database
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("migrate %s: %w", path, err), keys.Close())
	}
	return &database{DB: keys.DB(), keys: keys, inTx: keys.InTx, close: keys.Close}, nil
}

func openPostgres(ctx context.Context, dsn string) (*database, error) {
	keys, err := pgstore.Open(ctx, dsn)
	if err != nil {
		return nil, err
	}
	// It holds a lock of its session, so it needs a direct connection: no pgbouncer in transaction mode.
	driver, err := migratepgx.WithInstance(stdlib.OpenDBFromPool(keys.Pool()), &migratepgx.Config{})
	if err == nil {
		err = errors.Join(migrateUp(driver, "postgres", pgstore.Migrations), driver.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("migrate: %w", err), keys.Close())
	}
	// keyhold and the application share one pool of connections, whose settings are those of pgstore.Open.
	db := stdlib.OpenDBFromPool(keys.Pool())
	return &database{DB: db, keys: keys, inTx: keys.InSQLTx, close: func() error { return errors.Join(db.Close(), keys.Close()) }}, nil
}

//go:embed migrations
var migrations embed.FS

// firstOfKeyhold is the number of keyhold's first migration among ours: after the table of tenants, which it refers
// to, and before what refers to keys. Numbers are never changed once they were run.
//
// A migration that a later keyhold brings collides with our next, which golang-migrate refuses. It then gets the next
// free number: that file alone, rendered once more with another First.
const firstOfKeyhold = 2

func migrateUp(driver migratedb.Driver, folder string, ofKeyhold func(migrate.Options) (fs.FS, error)) error {
	own, err := fs.Sub(migrations, "migrations/"+folder)
	if err != nil {
		return err
	}
	theirs, err := ofKeyhold(migrate.Options{First: firstOfKeyhold, Name: "keyhold_", ScopeTable: "scope", ScopeColumn: "id"})
	if err != nil {
		return err
	}
	files, err := iofs.New(folded{own, theirs}, ".")
	if err != nil {
		return err
	}
	m, err := gomigrate.NewWithInstance("iofs", files, folder, driver)
	if err != nil {
		return err
	}
	if err := m.Up(); !errors.Is(err, gomigrate.ErrNoChange) {
		return err
	}
	return nil
}

// folded is the files of several file systems in one folder.
type folded []fs.FS

func (f folded) Open(name string) (fs.File, error) {
	for _, fsys := range f {
		if file, err := fsys.Open(name); !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// ReadDir lists the files in no order; golang-migrate has its own.
func (f folded) ReadDir(name string) (all []fs.DirEntry, err error) {
	for _, fsys := range f {
		entries, err := fs.ReadDir(fsys, name)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

// transaction runs f in a transaction, which it commits if f returns nil. Where f returns an error nothing is left of
// it, of keys neither.
func (d *database) transaction(ctx context.Context, f func(tx *sql.Tx, keys store.Tx) error) error {
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after the commit
	if err := f(tx, d.inTx(tx)); err != nil {
		return err
	}
	return tx.Commit()
}

var (
	errDuplicate = errors.New("a row of this name is there already")
	errReference = errors.New("a row that is referred to cannot go, and one that is missing cannot be referred to")
)

// refused is err, with errDuplicate or errReference if a unique or a foreign key is why the database refused.
func refused(err error) error {
	var pg *pgconn.PgError
	var lite *sqlite.Error
	switch {
	case errors.As(err, &pg):
		switch pg.Code {
		case "23505":
			return fmt.Errorf("%w: %w", errDuplicate, err)
		case "23503", "23001": // the second is PostgreSQL 18's for "on delete restrict"
			return fmt.Errorf("%w: %w", errReference, err)
		}
	case errors.As(err, &lite):
		switch lite.Code() {
		case sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE:
			return fmt.Errorf("%w: %w", errDuplicate, err)
		case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
			return fmt.Errorf("%w: %w", errReference, err)
		}
	}
	return err
}

// away says whether err is that the database did not answer, or not in time: trying again may help.
func away(err error) bool {
	if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var pg *pgconn.PgError
	var lite *sqlite.Error
	var network net.Error
	switch {
	case errors.As(err, &pg):
		// Serialization failure, deadlock, too many connections, and a server that is ended or begins.
		return slices.Contains([]string{"40001", "40P01", "53300", "57P01", "57P02", "57P03"}, pg.Code)
	case errors.As(err, &lite):
		return lite.Code()&0xff == sqlite3.SQLITE_BUSY || lite.Code()&0xff == sqlite3.SQLITE_INTERRUPT
	}
	return errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF)
}
