package dekmanager

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/migrate"
)

// ErrLegacy: the database has keys of go-pg-dek-manager that the scope does not have. Made anew, their names would
// begin again at version 1, with other bytes. The error names the table, and what to do: "keyhold import dek" brings
// them.
var ErrLegacy = errors.New("keys of go-pg-dek-manager that were not imported")

const legacyPrefix = "dek_store"

// legacyTable is a table that looks like one with the keys of go-pg-dek-manager.
type legacyTable struct{ schema, name string }

func (t legacyTable) String() string { return t.schema + "." + t.name }

func (t legacyTable) quoted() string { return migrate.Quote(t.schema) + "." + migrate.Quote(t.name) }

// legacyPlaces are where its configuration, if it had the options given here, or its defaults have its keys. schema is
// where the tables are, or are to be.
func legacyPlaces(config *DEKManagerConfig, schema string) (places []legacyTable) {
	schemas := []string{schema}
	if config.SchemaName == "" && schema != "public" {
		schemas = append(schemas, "public")
	}
	for _, schema := range schemas {
		for _, prefix := range []string{legacyPrefix, cmp.Or(config.TablePrefix, legacyPrefix)} {
			if t := (legacyTable{schema, prefix + "_dek"}); !slices.Contains(places, t) {
				places = append(places, t)
			}
		}
	}
	return places
}

// noLegacy is [ErrLegacy] if there are keys of go-pg-dek-manager anywhere in the database, as far as it may be read. It
// is for the time when the scope is not there.
func noLegacy(ctx context.Context, config *DEKManagerConfig, scope keyhold.Scope, schema string) error {
	if isSQLite(config) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, keyhold.DefaultTimeout)
	defer cancel()
	tables, err := findLegacy(ctx, config.DB, legacyAnywhere)
	if err != nil {
		return err
	}
	places := legacyPlaces(config, schema)
	for _, t := range tables {
		has := false
		if err := config.DB.QueryRowContext(ctx, "select exists (select 1 from "+t.quoted()+")").Scan(&has); err != nil {
			return cannotLook(t.String(), err)
		}
		switch {
		case !has:
		case slices.Contains(places, t):
			return fmt.Errorf(`table %v has %w: run "keyhold import dek" first, or drop or rename that table`, t, ErrLegacy)
		default:
			return fmt.Errorf(`table %v has %w: run "keyhold import dek" first; or, if they are another program's, make the scope `+
				`by "keyhold scope create %s --raw-purpose NAME", with a name that this one has a key of`, t, ErrLegacy, scope)
		}
	}
	return nil
}

// allImported is [ErrLegacy] if the tables where its configuration, or its defaults, have them hold a key or a version
// of go-pg-dek-manager that the scope does not have: because the import goes on, or was given up, or because the old
// library is still in use. It asks once, and once more for each such table. What became of a key here, a rotation or
// its removal, is no matter.
func (d *DEKManager) allImported(ctx context.Context, config *DEKManagerConfig) error {
	if isSQLite(config) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, keyhold.DefaultTimeout)
	defer cancel()
	places := legacyPlaces(config, d.schema)
	first, last := places[0], places[len(places)-1] // each of two schemas with each of two names, or fewer
	tables, err := findLegacy(ctx, config.DB, legacyThere,
		first.schema, last.schema, first.name, last.name)
	if err != nil {
		return err
	}
	for _, t := range tables {
		name, version := "", int64(0)
		err := config.DB.QueryRowContext(ctx, d.missing(t), string(d.scope)).Scan(&name, &version)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return cannotLook(t.String(), err)
		default:
			return fmt.Errorf(`table %v has %w, such as %q with version %d: run "keyhold import dek" to its end, `+
				`or drop or rename that table`, t, ErrLegacy, name, version)
		}
	}
	return nil
}

// missing asks for one of the old keys whose newest version is neither among those of the scope's key of that name, nor
// among those of the keys of that name that were removed. It joins nothing, as a join may be planned as if there were
// few keys, as long as nobody has analyzed the tables that an import has filled.
func (d *DEKManager) missing(old legacyTable) string {
	table := func(name string) string { return legacyTable{d.schema, d.prefix + name}.quoted() }
	inScope := " where root_key_id = (select private_id from " + table("_root_key") + " where scope_id = $1)"
	return `
select name, max(old)
from (
    select key_name collate "C" as name, version::bigint as old, null::bigint as here from ` + old.quoted() + `
    union all
    select purpose, null, head_version from ` + table("_data_key") + inScope + `
    union all
    select purpose, null, last_version from ` + table("_data_key_name") + inScope + `
) v
group by name
having max(old) > coalesce(max(here), max(old) - 1)
limit 1`
}

// These list the tables that look like those of go-pg-dek-manager and may be read: all, or those that have one of two
// names in one of two schemas.
const (
	legacyAnywhere = legacyTables + "and right(c.relname, 4) = '_dek' order by 1, 2"
	legacyThere    = legacyTables + "and n.nspname in ($1::text, $2::text) and c.relname in ($3::text, $4::text) order by 1, 2"
	legacyTables   = `
select n.nspname::text, c.relname::text
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence <> 't'
    and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
    and 4 = (
        select count(*)
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type y on y.oid = a.atttypid
        where a.attrelid = c.oid and not a.attisdropped
            and (a.attname = 'version' and y.typname in ('int2', 'int4', 'int8')
                or a.attname in ('key_name', 'encrypted_dek') and y.typname in ('text', 'varchar')
                or a.attname = 'mek_id'))
    `
)

func findLegacy(ctx context.Context, db *sql.DB, query string, args ...any) (tables []legacyTable, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, cannotLook("the list of tables", err)
	}
	defer func() {
		if closeErr := rows.Close(); closeErr != nil && err == nil {
			err = cannotLook("the list of tables", closeErr)
		}
	}()
	for rows.Next() {
		var t legacyTable
		if err := rows.Scan(&t.schema, &t.name); err != nil {
			return nil, cannotLook("the list of tables", err)
		}
		tables = append(tables, t)
	}
	if err := rows.Err(); err != nil {
		return nil, cannotLook("the list of tables", err)
	}
	return tables, nil
}

func cannotLook(where string, err error) error {
	return fmt.Errorf("look for keys of go-pg-dek-manager in %s: %w: %w", where, keyhold.ErrUnavailable, err)
}
