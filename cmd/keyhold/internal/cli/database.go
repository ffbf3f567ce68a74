package cli

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/sqlitestore"
)

// database is what the commands need of a store, whatever its kind.
type database interface {
	store.Store

	// migrations lists the migrations by number.
	migrations(ctx context.Context) ([]migration, error)
	// scopeType reads from the tables which type they have for scopes, so that nobody has to say it again. It is
	// empty where there are none.
	scopeType(ctx context.Context) (migrate.ScopeType, error)
	// refersTo says whether scopes have a foreign key to a column of the application's.
	refersTo(ctx context.Context, table, column string) (bool, error)
	// addReference is the SQL that gives scopes such a foreign key, or empty if nothing can.
	addReference(table, column string) string
	// withScopeType is the same database, for tables that have scopes of that type. It takes the place of the
	// database that it is called on, also where it fails.
	withScopeType(t migrate.ScopeType) (database, error)
}

// migration is one migration file and whether the database has it.
type migration struct {
	Number  uint
	Name    string
	Applied bool
}

// openDatabase opens the database, and makes its file first if create is set and it is not there. The options are
// checked.
func (a *app) openDatabase(ctx context.Context, o migrate.Options, create bool) (database, error) {
	where, err := a.address()
	if err != nil {
		return nil, err
	}
	if where.isPostgres() {
		return a.openPostgres(ctx, where.dsn, o)
	}
	return a.openSQLite(where.path, o, create)
}

// sqliteDatabase is tables in an SQLite file.
type sqliteDatabase struct {
	*sqlitestore.Store

	path   string
	config sqlitestore.Config
}

func (a *app) openSQLite(path string, o migrate.Options, create bool) (database, error) {
	config := sqlitestore.Config{Prefix: o.Prefix, ScopeType: o.ScopeType, ScopeTable: o.ScopeTable, ScopeColumn: o.ScopeColumn}
	if o.Schema != "" {
		return nil, usageError("SQLite has no schemas", "leave out --schema")
	}
	open := config.Open
	if create {
		if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
			return nil, failed("no_database", "there is no folder "+filepath.Dir(path)+" to make the database in", "")
		}
		open = config.Create
	}
	s, err := open(path)
	if errors.Is(err, fs.ErrNotExist) {
		hint := "keyhold init makes one"
		if pins, err := a.allPins(); err != nil {
			return nil, err
		} else if len(pins) > 0 {
			hint = "look at its path; keyhold init makes one only where no pin is given, by --pin or KEYHOLD_PIN"
		} else if len(a.oldRoots) > 0 || os.Getenv("KEYHOLD_OLD_ROOT") != "" {
			hint = lookAtDatabase
		}
		return nil, failed("no_database", "there is no database "+path, hint)
	}
	if err != nil {
		return nil, err
	}
	return &sqliteDatabase{s, path, config}, nil
}

func (d *sqliteDatabase) migrations(ctx context.Context) ([]migration, error) {
	list, err := d.MigrationStatus(ctx)
	all := make([]migration, 0, len(list))
	for _, m := range list {
		all = append(all, migration(m))
	}
	return all, err
}

func (d *sqliteDatabase) scopeType(ctx context.Context) (migrate.ScopeType, error) {
	var declared string
	err := d.DB().QueryRowContext(ctx,
		"select lower(type) from pragma_table_info(?) where name = 'scope_id'", d.config.Prefix+"_root_key").Scan(&declared)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", nil
	case err != nil:
		return "", errors.Join(d.CheckSchema(ctx), err) // the store says best what is wrong with the file
	}
	switch declared {
	case "char(36)":
		return migrate.UUID, nil
	case "bigint":
		return migrate.BigInt, nil
	}
	return migrate.Text, nil
}

func (d *sqliteDatabase) refersTo(ctx context.Context, table, column string) (refers bool, err error) {
	err = d.DB().QueryRowContext(ctx, `select exists (select 1 from pragma_foreign_key_list(?)
		where "from" = 'scope_id' and lower("table") = lower(?) and lower("to") = lower(?))`,
		d.config.Prefix+"_root_key", table, column).Scan(&refers)
	return refers, err
}

func (*sqliteDatabase) addReference(string, string) string { return "" }

func (d *sqliteDatabase) withScopeType(t migrate.ScopeType) (database, error) {
	if err := d.Close(); err != nil {
		return nil, err
	}
	d.config.ScopeType = t
	s, err := d.config.Open(d.path)
	if err != nil {
		return nil, err
	}
	return &sqliteDatabase{s, d.path, d.config}, nil
}
