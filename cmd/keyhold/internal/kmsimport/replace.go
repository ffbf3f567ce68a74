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

	"keyhold.example/keyhold/key"
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
	their, err := t.catalogue(ctx, q)
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
		return &CannotReplaceError{strings.ReplaceAll(said.Detail, "\n", "; ") + ": drop it, and make it again afterwards"}
	}
	return err
}

// catalogue is what has to be known of their tables before they are gone.
type catalogue struct {
	schema        string          // of the tables; empty on SQLite
	options       migrate.Options // for keyhold's
	before, after []string        // statements before and after keyhold's tables are made
}

func (t Tables) catalogue(ctx context.Context, q querier) (catalogue, error) {
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
		return t.postgresCatalogue(ctx, q)
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

// copyTo copies all rows: versions and tombstones by their numbers, as the tables demand.
func (s *Stage) copyTo(ctx context.Context, q querier, prefix, schema string) error {
	for _, name := range []string{"root_slot", "installation", "root_key", "data_key"} {
		if err := s.copyTable(ctx, q, prefix, schema, name, ""); err != nil {
			return err
		}
	}
	for _, of := range []struct {
		kind     key.Kind
		versions string
	}{{key.KEK, "root_key_version"}, {key.DEK, "data_key_version"}} {
		last := 0
		err := s.db.QueryRowContext(ctx, fmt.Sprintf("select coalesce(max(version), 0) from %s_%s", prefix, of.versions)).Scan(&last)
		if err != nil {
			return err
		}
		for n := 1; n <= last; n++ {
			dead := fmt.Sprintf(" where kind = '%s' and version = %d", of.kind, n)
			if err := s.copyTable(ctx, q, prefix, schema, "tombstone", dead); err != nil {
				return err
			}
			if err := s.copyTable(ctx, q, prefix, schema, of.versions, fmt.Sprintf(" where version = %d", n)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Stage) copyTable(ctx context.Context, q querier, prefix, schema, name, where string) error {
	return each(ctx, s.db, "select * from "+prefix+"_"+name+where, func(r *sql.Rows) error {
		columns, err := r.Columns()
		if err != nil {
			return err
		}
		values, into := make([]any, len(columns)), make([]any, len(columns))
		var names, places []string
		for i, column := range columns {
			into[i] = &values[i]
			names, places = append(names, migrate.Quote(column)), append(places, fmt.Sprint("$", i+1))
		}
		if err := r.Scan(into...); err != nil {
			return err
		}
		_, err = q.ExecContext(ctx, fmt.Sprintf("insert into %s (%s) values (%s)",
			qualified(schema, prefix+"_"+name), strings.Join(names, ", "), strings.Join(places, ", ")), values...)
		return err
	})
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
