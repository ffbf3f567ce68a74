package pgstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/golang-migrate/migrate/v4/database"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
)

// Statements about the schema find no tables of ours before the first migration, so they ask the catalogue first.
var (
	hasTable = define(`select to_regclass($1::text) is not null`)

	// Whether there is the table of the version, with which of our columns, and how many there are of all our tables,
	// of which none can be there before it.
	schemaTablesQuery = define(`
select to_regclass($1::text) is not null, current_schema() is null,
    exists (select 1 from pg_attribute where attrelid = to_regclass($1::text) and attname = 'version'),
    exists (select 1 from pg_attribute where attrelid = to_regclass($1::text) and attname = 'only_row'),
    (select count(*) from unnest($2::text[]) name
        join pg_class on pg_class.oid = to_regclass(name) and relkind in ('r', 'p'))`)

	schemaVersionQuery = define(`
select pg_typeof(version)::text, version::text from {schema}{prefix}_schema_version order by version desc limit 1`)

	scopeTypeQuery = define(`
select format_type(atttypid, null) from pg_attribute where attrelid = to_regclass($1::text) and attname = 'scope_id'`)

	// Where the tables are made, and whether that is there; whether the text of scopes fits the database.
	placeQuery = define(`
select s.name, to_regnamespace(quote_ident(s.name)) is not null, current_setting('server_encoding')
from (select coalesce(nullif($1::text, ''), current_schema(), '')::text as name) s`)

	// For the transaction, and with it gone. Two migrations at once would meet in the system's tables instead, and
	// one of them would fail.
	migrationLock = define(`select pg_advisory_xact_lock($1::bigint)`)

	bookkeepingQuery = define(`select version from {schema}{prefix}_schema_migrations limit 1`)

	// As golang-migrate's own driver keeps it, in one text without parameters.
	setBookkeeping = define(`
create table if not exists {schema}{prefix}_schema_migrations (version bigint not null primary key, dirty boolean not null);
delete from {schema}{prefix}_schema_migrations;
insert into {schema}{prefix}_schema_migrations (version, dirty) values (<version>, <dirty>)`)
)

// reader runs one statement.
type reader func(ctx context.Context, st statement) error

// scan reads one row, and says whether there was one.
func (r reader) scan(ctx context.Context, st statement, into ...any) (bool, error) {
	found := false
	st.row = func(scan func(...any) error) error {
		found = true
		return scan(into...)
	}
	err := r(ctx, st)
	return found, err
}

// CheckSchema implements [store.Store]. Besides, it is an error if the scopes of the tables are not of the
// configured type.
func (s *Store) CheckSchema(ctx context.Context) error {
	return s.tables.explain(ctx, "check the tables", s.checkSchema(ctx))
}

func (s *Store) checkSchema(ctx context.Context) error {
	version, err := s.tables.schemaVersion(ctx, s.read)
	if err != nil {
		return err
	}
	if version != store.SchemaVersion {
		return s.tables.schemaError(version)
	}
	return s.tables.checkScopeType(ctx, s.read)
}

func (t *tables) schemaError(have int) error {
	return &store.SchemaError{Prefix: t.options.Prefix, Have: have, Want: store.SchemaVersion}
}

// schemaVersion is 0 if there are no tables. Tables of another system are a [*store.SchemaError].
func (t *tables) schemaVersion(ctx context.Context, r reader) (int, error) {
	foreign := func(version string) error {
		return &store.SchemaError{Prefix: t.options.Prefix, Want: store.SchemaVersion, Foreign: version}
	}
	var there, nowhere, says, own bool
	var all int64
	if _, err := r.scan(ctx, t.statement(schemaTablesQuery, t.table("schema_version"), t.ownTables()), &there, &nowhere, &says, &own, &all); err != nil {
		return 0, err
	}
	switch {
	case there && !says, !there && all > 0:
		return 0, foreign(store.NoVersion)
	case !there && nowhere && t.options.Schema == "":
		return 0, errNowhere
	case !there:
		return 0, nil
	}
	var kind, version string
	found, err := r.scan(ctx, t.statement(schemaVersionQuery), &kind, &version)
	switch {
	case err != nil:
		return 0, err
	case !found && own:
		return 0, nil // an application's own tool is between two of our files
	case !found:
		return 0, foreign(store.NoVersion)
	}
	if n, err := strconv.Atoi(version); err == nil && kind == "integer" {
		return n, nil
	}
	return 0, foreign(version)
}

// checkScopeType keeps a scope "042" from finding the row of 42: PostgreSQL would take the text for the number.
func (t *tables) checkScopeType(ctx context.Context, r reader) error {
	var have string
	if _, err := r.scan(ctx, t.statement(scopeTypeQuery, t.table("root_key")), &have); err != nil {
		return err
	}
	if want := t.options.ScopeType; have != string(want) {
		return fmt.Errorf("the scopes of the tables %s_* are of type %s, and the program is configured for %s", t.options.Prefix, have, want)
	}
	return nil
}

// Migrate implements [store.Store]. All files are applied in one transaction, so that it may go through pgbouncer.
// Who else migrates the same tables with it meanwhile waits for the end of that transaction. It makes the schema
// that is configured, if that is not there. Only of the role that it runs as does it need the right to make tables.
func (s *Store) Migrate(ctx context.Context) error {
	err := s.write(ctx, func(w *writer) error {
		read := reader(func(ctx context.Context, st statement) error { return w.run(ctx, st) })
		t, err := w.tables.lockForMigration(ctx, read)
		if err != nil {
			return err
		}
		version, err := t.schemaVersion(ctx, read)
		switch {
		case err != nil:
			return err
		case version == store.SchemaVersion:
			return t.checkScopeType(ctx, read)
		case version > store.SchemaVersion:
			return t.schemaError(version)
		}
		files, err := Migrations(t.options)
		if err != nil {
			return err
		}
		return t.scopeTableError(migrate.Up(files, &migrator{ctx: ctx, tables: t, read: read}))
	})
	return s.tables.explain(ctx, fmt.Sprintf("migrate the tables %s_*", s.tables.options.Prefix), err)
}

var errNowhere = errors.New("the connection's search_path names no schema that is there and that this user may use: " +
	"configure one, or grant usage on it")

// scopeTableError says what is wrong with the application's table of scopes, where it is that which refuses the foreign
// key.
func (t *tables) scopeTableError(err error) error {
	reason := map[string]string{
		"42P01": "it is not there: it has to be made first, and is found by the connection's search_path, not by a schema before its name",
		"42703": "it has no such column",
		"42804": "its column has another type than the scopes of these tables, " + string(t.options.ScopeType),
		"42830": "its column is not unique, as one that is referred to has to be",
	}[stateOf(err)]
	if reason == "" || t.options.ScopeTable == "" {
		return err
	}
	return fmt.Errorf("the table of scopes %s (%s) cannot be referred to: %s (%w)", t.options.ScopeTable, t.options.ScopeColumn, reason, err)
}

// lockForMigration returns the tables with the schema that they are made in, so that their triggers name it.
func (t *tables) lockForMigration(ctx context.Context, read reader) (*tables, error) {
	var schema, encoding string
	var there bool
	if _, err := read.scan(ctx, t.statement(placeQuery, t.options.Schema), &schema, &there, &encoding); err != nil {
		return nil, err
	}
	if encoding != "UTF8" {
		return nil, fmt.Errorf("the database has the encoding %s, and the tables need UTF8", encoding)
	}
	if schema == "" {
		return nil, errNowhere
	}
	name := fnv.New64a()
	_, _ = fmt.Fprintf(name, "keyhold %q %s", schema, t.options.Prefix)
	if err := read(ctx, t.statement(migrationLock, int64(name.Sum64()))); err != nil {
		return nil, err
	}
	if !there {
		if err := read(ctx, statement{text: "create schema if not exists " + migrate.Quote(schema)}); err != nil {
			return nil, err
		}
	}
	// Tables that are there already may be in another schema of the search_path.
	found := false
	if _, err := read.scan(ctx, t.statement(hasTable, t.table("schema_version")), &found); err != nil || found {
		return t, err
	}
	o := t.options
	o.Schema = schema
	return newTables(o), nil
}

// Migration is one migration file and whether this database has it.
type Migration struct {
	Number  uint
	Name    string
	Applied bool
}

// MigrationStatus lists the migration files by number. Where an application ran them among its own, they count as
// applied if the schema's version says so. Tables of another system, or of a newer program, are a
// [*store.SchemaError].
func (s *Store) MigrationStatus(ctx context.Context) ([]Migration, error) {
	list, err := s.migrationStatus(ctx)
	return list, s.tables.explain(ctx, "read which migrations there are", err)
}

func (s *Store) migrationStatus(ctx context.Context) ([]Migration, error) {
	fsys, err := Migrations(s.tables.options)
	if err != nil {
		return nil, err
	}
	files, err := migrate.List(fsys)
	if err != nil {
		return nil, err
	}
	version, err := s.tables.schemaVersion(ctx, s.read)
	if err != nil {
		return nil, err
	}
	if version > store.SchemaVersion {
		return nil, s.tables.schemaError(version)
	}
	last, err := s.tables.lastMigration(ctx, s.read)
	if err != nil {
		return nil, err
	}
	var list []Migration
	for _, f := range files {
		applied := version == store.SchemaVersion || int(f.Number) <= last
		list = append(list, Migration{Number: f.Number, Name: f.Name, Applied: applied})
	}
	return slices.Clip(list), nil
}

// lastMigration is golang-migrate's bookkeeping, and [database.NilVersion] if there is none.
func (t *tables) lastMigration(ctx context.Context, r reader) (int, error) {
	there := false
	_, err := r.scan(ctx, t.statement(hasTable, t.table("schema_migrations")), &there)
	if err != nil || !there {
		return database.NilVersion, err
	}
	version := database.NilVersion
	_, err = r.scan(ctx, t.statement(bookkeepingQuery), &version)
	return version, err
}

// migrator is golang-migrate's view of the transaction that [Store.Migrate] is in. That transaction is the lock, and
// whoever began it ends it; so what golang-migrate calls dirty is never committed.
type migrator struct {
	ctx    context.Context //nolint:containedctx // golang-migrate's interface has none, and this lives for one call
	tables *tables
	read   reader
}

var _ database.Driver = (*migrator)(nil)

func (*migrator) Open(string) (database.Driver, error) {
	return nil, errors.New("a migrator belongs to its transaction")
}
func (*migrator) Close() error  { return nil }
func (*migrator) Lock() error   { return nil }
func (*migrator) Unlock() error { return nil }
func (*migrator) Drop() error   { return errors.New("keys are not dropped") }

// Run executes a whole file.
func (m *migrator) Run(file io.Reader) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	return m.read(m.ctx, statement{text: string(text)})
}

func (m *migrator) SetVersion(version int, dirty bool) error {
	words := strings.NewReplacer("<version>", strconv.Itoa(version), "<dirty>", strconv.FormatBool(dirty))
	return m.read(m.ctx, statement{text: words.Replace(m.tables.text[setBookkeeping])})
}

func (m *migrator) Version() (int, bool, error) {
	version, err := m.tables.lastMigration(m.ctx, m.read)
	return version, false, err
}
