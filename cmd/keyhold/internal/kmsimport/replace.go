package kmsimport

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// ErrChanged says that the tables have changed since they were read.
var ErrChanged = errors.New("the old tables have changed since they were read: stop what uses them, and try again")

// CannotReplaceError says what about the tables keeps keyhold's from taking their place.
type CannotReplaceError struct{ Reason string }

func (e *CannotReplaceError) Error() string { return e.Reason }

// CanReplace is the error that [Tables.Replace] would begin with, as far as that shows without locking a table: nil if
// nothing seems to be in the way. It changes nothing.
func (t Tables) CanReplace(ctx context.Context) error {
	tx, err := t.DB.BeginTx(ctx, &sql.TxOptions{ReadOnly: t.Postgres})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // nothing was changed
	if err := t.check(ctx, tx); err != nil {
		return err
	}
	if _, err = t.catalogue(ctx, tx, false); err != nil || t.Postgres {
		return err
	}
	return t.checkReferences(ctx, tx)
}

// Replace puts keyhold's tables, with the rows of a stage, in the place of theirs. The application's foreign keys to
// and from them stay, and are checked; their triggers go, and their functions and types unless something else uses
// them. It is one transaction: after any error but that of the commit itself, everything is as it was. read is what
// [Tables.Read] returned and the stage was made of; wait is how long to wait for others at most, 0 for ever.
//
// Connections of SQLite have to have foreign keys off. Errors: [ErrChanged]; a [*CannotReplaceError]; those of Read;
// store.ErrUnknownOutcome; the database's own.
func (t Tables) Replace(ctx context.Context, read []Scope, stage *Stage, wait time.Duration) (err error) {
	conn, err := t.DB.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it was committed, or given up
	begin := "begin immediate"
	if t.Postgres {
		begin = fmt.Sprintf("begin; set local lock_timeout = %d", wait.Milliseconds())
	}
	defer func() {
		if err == nil {
			return
		}
		if _, undone := conn.ExecContext(context.WithoutCancel(ctx), "rollback"); undone != nil {
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // so that nobody gets it again
		}
	}()
	if _, err := conn.ExecContext(ctx, begin); err != nil {
		return err
	}
	if err := t.replace(ctx, conn, read, stage); err != nil {
		return err
	}
	_, err = conn.ExecContext(context.WithoutCancel(ctx), "commit")
	if _, said := errors.AsType[*pgconn.PgError](err); err != nil && t.Postgres && !said {
		return fmt.Errorf("%w: %w", store.ErrUnknownOutcome, err)
	}
	return err
}

func (t Tables) replace(ctx context.Context, q querier, read []Scope, stage *Stage) error {
	if err := t.check(ctx, q); err != nil {
		return err
	}
	their, err := t.catalogue(ctx, q, true)
	if err != nil {
		return err
	}
	now, err := t.read(ctx, q)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(now, read) {
		return ErrChanged
	}
	for _, statement := range their.before {
		if _, err := q.ExecContext(ctx, statement); err != nil {
			return asDependency(err)
		}
	}
	if err := t.migrate(ctx, q, their); err != nil {
		return err
	}
	if err := stage.copyTo(ctx, q, t.Prefix, their.schema); err != nil {
		return err
	}
	for _, statement := range their.after {
		if _, err := q.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	if t.Postgres {
		return nil
	}
	return t.checkReferences(ctx, q)
}

// asDependency says which object of the application's, such as a view, keeps a table from being dropped.
func asDependency(err error) error {
	const dependentObjects = "2BP01"
	if said, ok := errors.AsType[*pgconn.PgError](err); ok && said.Code == dependentObjects {
		return inTheWay(strings.ReplaceAll(said.Detail, "\n", "; "))
	}
	return err
}

func inTheWay(what string) error {
	return &CannotReplaceError{what + ": drop it, and make it again afterwards"}
}

// catalogue is what has to be known of their tables before they are gone.
type catalogue struct {
	schema        string          // of the tables; empty on SQLite
	options       migrate.Options // for keyhold's
	before, after []string        // statements before and after keyhold's tables are made
}

// catalogue reads what is known of the tables; on PostgreSQL they can be locked before. Errors are about what is in the
// way of keyhold's.
func (t Tables) catalogue(ctx context.Context, q querier, lock bool) (catalogue, error) {
	own := false
	exists := "select exists (select 1 from sqlite_master where name = $1)"
	if t.Postgres {
		exists = "select to_regclass(quote_ident($1::text)) is not null"
	}
	if err := q.QueryRowContext(ctx, exists, t.Prefix+"_schema_migrations").Scan(&own); err != nil {
		return catalogue{}, err
	}
	if own {
		return catalogue{}, &CannotReplaceError{fmt.Sprintf("there is a table %s_schema_migrations, and keyhold makes one of that name: rename it", t.Prefix)}
	}
	if t.Postgres {
		return t.postgresCatalogue(ctx, q, lock)
	}
	return t.sqliteCatalogue(ctx, q)
}

func (t Tables) sqliteCatalogue(ctx context.Context, q querier) (catalogue, error) {
	c := catalogue{options: migrate.Options{Prefix: t.Prefix}}
	err := each(ctx, q, `select f."table", coalesce(f."to", (select name from pragma_table_info(f."table") where pk = 1)), f."from", f.on_delete
		from pragma_foreign_key_list('`+strings.ReplaceAll(t.Prefix, "'", "''")+`_root_key') f`, func(r *sql.Rows) error {
		var table, to, from, onDelete string
		if err := r.Scan(&table, &to, &from, &onDelete); err != nil {
			return err
		}
		// With what keyhold makes, deleting a scope would delete its keys where it did not before.
		if from != "scope_id" || onDelete != "CASCADE" || c.options.ScopeTable != "" {
			return &CannotReplaceError{fmt.Sprintf("the foreign key from %s_root_key.%s to %s.%s is not one that keyhold's table can have, "+
				"which is of scope_id, on delete cascade", t.Prefix, from, table, to)}
		}
		c.options.ScopeTable, c.options.ScopeColumn = table, to
		return nil
	})
	for _, name := range slices.Backward(tableNames) {
		c.before = append(c.before, "drop table "+t.table(name))
	}
	return c, err
}

func (t Tables) migrate(ctx context.Context, q querier, their catalogue) error {
	render, number := sqlitestore.Migrations, "integer"
	if t.Postgres {
		render, number = pgstore.Migrations, "bigint"
	}
	rendered, err := render(their.options)
	if err != nil {
		return err
	}
	files, err := migrate.List(rendered)
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := fs.ReadFile(rendered, f.File)
		if err != nil {
			return err
		}
		if _, err := q.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("migration %s: %w", f.File, err)
		}
	}
	// What golang-migrate would have written.
	table := t.Prefix + "_schema_migrations" // a prefix that was rendered needs no quotes
	if their.schema != "" {
		table = migrate.Quote(their.schema) + "." + table
	}
	for _, statement := range []string{
		fmt.Sprintf("create table %s (version %s not null primary key, dirty boolean not null)", table, number),
		fmt.Sprintf("insert into %s (version, dirty) values (%d, false)", table, files[len(files)-1].Number),
	} {
		if _, err := q.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

func qualified(schema, table string) string {
	if schema == "" {
		return migrate.Quote(table)
	}
	return migrate.Quote(schema) + "." + migrate.Quote(table)
}

// checkReferences looks at all foreign keys to and from the new tables, which were off.
func (t Tables) checkReferences(ctx context.Context, q querier) error {
	return each(ctx, q, "pragma foreign_key_check", func(r *sql.Rows) error {
		var table, parent string
		var row, number any
		if err := r.Scan(&table, &row, &parent, &number); err != nil {
			return err
		}
		// What is wrong between other tables was so before.
		if strings.HasPrefix(table, t.Prefix+"_") || strings.HasPrefix(parent, t.Prefix+"_") {
			return &CannotReplaceError{fmt.Sprintf("row %v of %s refers to a row of %s that is not there", row, table, parent)}
		}
		return nil
	})
}
