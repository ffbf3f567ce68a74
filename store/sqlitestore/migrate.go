package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/golang-migrate/migrate/v4/database"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
)

// Statements about the schema find no tables of ours before the first migration, so they ask the catalogue first.
var (
	hasTable = define(`select exists (select 1 from sqlite_master where type = 'table' and name = ?)`)

	// In one statement, as another process may be making the tables. The second column counts the others of our names,
	// of which none can be there before the first.
	schemaTablesQuery = define(`
select coalesce(sum(name = '{prefix}_schema_version'), 0), count(*) from sqlite_master
where type = 'table' and name in (` + ownTables + `)`)

	ownSchemaVersion = define(`
select count(*) = 2 from pragma_table_info('{prefix}_schema_version') where name in ('only_row', 'version')`)

	schemaVersionQuery = define(`
select typeof(version), cast(version as text) from {prefix}_schema_version order by version desc limit 1`)

	scopeTypeQuery = define(`select type from pragma_table_info('{prefix}_root_key') where name = 'scope_id'`)

	createBookkeeping = define(`
create table if not exists {prefix}_schema_migrations (version integer not null primary key, dirty boolean not null)`)

	bookkeepingQuery = define(`select version, dirty from {prefix}_schema_migrations limit 1`)
	clearBookkeeping = define(`delete from {prefix}_schema_migrations`)
	setBookkeeping   = define(`insert into {prefix}_schema_migrations (version, dirty) values (?, ?)`)
)

// CheckSchema implements [store.Store]. Besides, it is an error if the scopes of the tables are not of the configured
// type.
func (s *Store) CheckSchema(ctx context.Context) error {
	return s.tables.explain(ctx, "check the tables", s.checkSchema(ctx))
}

func (s *Store) checkSchema(ctx context.Context) error {
	db, err := s.pool()
	if err != nil {
		return err
	}
	version, err := s.tables.schemaVersion(ctx, db)
	if err != nil {
		return err
	}
	if version != store.SchemaVersion {
		return s.tables.schemaError(version)
	}
	return s.tables.checkScopeType(ctx, db)
}

func (t *tables) schemaError(have int) error {
	return &store.SchemaError{Prefix: t.options.Prefix, Have: have, Want: store.SchemaVersion}
}

// schemaVersion is 0 if there are no tables. Tables of another system are a [*store.SchemaError].
func (t *tables) schemaVersion(ctx context.Context, c queryer) (int, error) {
	foreign := func(version string) error {
		return &store.SchemaError{Prefix: t.options.Prefix, Want: store.SchemaVersion, Foreign: version}
	}
	said, all := 0, 0
	err := c.QueryRowContext(ctx, t.text[schemaTablesQuery]).Scan(&said, &all)
	switch {
	case err != nil:
		return 0, err
	case said == 0 && all > 0:
		return 0, foreign(store.NoVersion)
	case said == 0:
		return 0, nil
	}
	var kind, version string
	err = c.QueryRowContext(ctx, t.text[schemaVersionQuery]).Scan(&kind, &version)
	if errors.Is(err, sql.ErrNoRows) || err != nil && strings.Contains(err.Error(), "no such column") {
		// Ours is empty while an application's own tool is between two of our files.
		own := false
		if err := c.QueryRowContext(ctx, t.text[ownSchemaVersion]).Scan(&own); err != nil {
			return 0, err
		}
		if !own {
			return 0, foreign(store.NoVersion)
		}
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n := 0
	if kind == "integer" {
		if _, err := fmt.Sscan(version, &n); err == nil {
			return n, nil
		}
	}
	return 0, foreign(version)
}

// checkScopeType keeps a scope "042" from finding the row of 42: SQLite would convert the text to the column's type.
func (t *tables) checkScopeType(ctx context.Context, c queryer) error {
	var have string
	if err := c.QueryRowContext(ctx, t.text[scopeTypeQuery]).Scan(&have); err != nil {
		return err
	}
	if want := scopeColumns[t.options.ScopeType].Type; !strings.EqualFold(have, want) {
		return fmt.Errorf("the scopes of the tables %s_* are of type %s, and the program is configured for %s (%s)",
			t.options.Prefix, have, t.options.ScopeType, want)
	}
	return nil
}

type queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Migrate implements [store.Store]. All files are applied in one transaction.
func (s *Store) Migrate(ctx context.Context) error {
	err := s.write(ctx, func(w *writer) error {
		version, err := s.tables.schemaVersion(ctx, w.conn)
		switch {
		case err != nil:
			return err
		case version == store.SchemaVersion:
			return s.tables.checkScopeType(ctx, w.conn)
		case version > store.SchemaVersion:
			return s.tables.schemaError(version)
		}
		files, err := Migrations(s.tables.options)
		if err != nil {
			return err
		}
		return migrate.Up(files, &migrator{ctx: ctx, tables: s.tables, conn: w.conn})
	})
	return s.tables.explain(ctx, fmt.Sprintf("migrate the tables %s_*", s.tables.options.Prefix), err)
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
	db, err := s.pool()
	if err != nil {
		return nil, err
	}
	version, err := s.tables.schemaVersion(ctx, db)
	if err != nil {
		return nil, err
	}
	if version > store.SchemaVersion {
		return nil, s.tables.schemaError(version)
	}
	last, err := s.tables.lastMigration(ctx, db)
	if err != nil {
		return nil, err
	}
	var list []Migration
	for _, f := range files {
		applied := version == store.SchemaVersion || int(f.Number) <= last
		list = append(list, Migration{Number: f.Number, Name: f.Name, Applied: applied})
	}
	return list, nil
}

// lastMigration is golang-migrate's bookkeeping, and [database.NilVersion] if there is none.
func (t *tables) lastMigration(ctx context.Context, c queryer) (int, error) {
	there := false
	err := c.QueryRowContext(ctx, t.text[hasTable], t.options.Prefix+"_schema_migrations").Scan(&there)
	if err != nil || !there {
		return database.NilVersion, err
	}
	version, dirty := 0, false
	err = c.QueryRowContext(ctx, t.text[bookkeepingQuery]).Scan(&version, &dirty)
	if errors.Is(err, sql.ErrNoRows) {
		return database.NilVersion, nil
	}
	return version, err
}

// migrator is golang-migrate's view of the transaction that [Store.Migrate] is in. That transaction is the lock, and
// whoever began it ends it; so what golang-migrate calls dirty is never committed.
type migrator struct {
	ctx    context.Context //nolint:containedctx // golang-migrate's interface has none, and this lives for one call
	tables *tables
	conn   connection
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
	return m.exec(string(text))
}

func (m *migrator) SetVersion(version int, dirty bool) error {
	for _, q := range []query{createBookkeeping, clearBookkeeping} {
		if err := m.exec(m.tables.text[q]); err != nil {
			return err
		}
	}
	return m.exec(m.tables.text[setBookkeeping], version, dirty)
}

func (m *migrator) exec(text string, args ...any) error {
	ctx, err := steady(m.ctx)
	if err != nil {
		return err
	}
	_, err = m.conn.ExecContext(ctx, text, args...)
	return err
}

func (m *migrator) Version() (int, bool, error) {
	version, err := m.tables.lastMigration(m.ctx, m.conn)
	return version, false, err
}
