package pgstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
)

var (
	// Those of partitions belong to the partitioned table's.
	foreignKeysQuery = define(`
select n.nspname::text, c.relname::text, mine.attname::text
from pg_constraint f
cross join unnest(f.conkey, f.confkey) as u (mine, theirs)
join pg_attribute theirs on theirs.attrelid = f.confrelid and theirs.attnum = u.theirs and theirs.attname = 'private_id'
join pg_attribute mine on mine.attrelid = f.conrelid and mine.attnum = u.mine
join pg_class c on c.oid = f.conrelid
join pg_namespace n on n.oid = c.relnamespace
where f.contype = 'f' and f.conparentid = 0 and f.confrelid = to_regclass($1::text)`)

	registeredQuery = define(`
select r.table_schema, r.table_name, r.column_name, exists (
    select 1
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid
    join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = r.table_schema and c.relname = r.table_name and a.attname = r.column_name and a.attnum > 0)
from {schema}{prefix}_reference r`)

	insertReference = define(`
with found as (
    select n.nspname::text as table_schema, c.relname::text as table_name, a.attname::text as column_name
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid and c.relkind in ('r', 'p')
    join pg_namespace n on n.oid = c.relnamespace
    where a.attrelid = to_regclass($1::text) and a.attname = $2::text and a.attnum > 0
), added as (
    insert into {schema}{prefix}_reference (table_schema, table_name, column_name)
    select table_schema, table_name, column_name from found
    on conflict do nothing
)
select 1 from found`)

	// A table that is gone is found by its name alone.
	deleteReference = define(`
delete from {schema}{prefix}_reference
where table_schema = coalesce(nullif($1::text, ''),
        (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass(quote_ident($2::text))),
        current_schema())
    and table_name = $2::text and column_name = $3::text
returning 1`)

	// What row security would hide counts, too: with it off, a query that it would change is an error.
	rowSecurity    = define(`select current_setting('row_security')`)
	setRowSecurity = define(`select set_config('row_security', $1::text, true)`)
)

// References implements [store.Queries]. It takes three round trips.
func (q queries) References(ctx context.Context, id key.ID) ([]store.Reference, error) {
	var list []store.Reference
	err := q.view.write(ctx, func(w *writer) (err error) {
		kind, _ := id.Kind()
		if id == "" {
			list, err = w.references(ctx, kind)
		} else {
			list, err = w.references(ctx, kind, id)
		}
		return err
	})
	if err != nil {
		return nil, q.tables.explain(ctx, "find what refers to key versions", err)
	}
	return list, nil
}

// references lists columns and counts their rows with one of the ids, or, if there are none, with any. It takes two
// round trips.
func (w *writer) references(ctx context.Context, kind key.Kind, ids ...key.ID) ([]store.Reference, error) {
	list, setting, err := w.columns(ctx, kind)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, id := range ids {
		texts = append(texts, storable(string(id)))
	}
	counts := []statement{w.tables.statement(setRowSecurity, "off")}
	for i := range list {
		st := statement{text: countIn(&list[i], len(ids) == 0)}
		if len(ids) > 0 {
			st.args = []any{texts}
		}
		st.row = func(scan func(...any) error) error { return scan(&list[i].Rows) }
		counts = append(counts, st)
	}
	if err := w.run(ctx, append(counts, w.tables.statement(setRowSecurity, setting))...); err != nil {
		return nil, fmt.Errorf("count the rows that have ids of key versions: %w", err)
	}
	slices.SortFunc(list, func(a, b store.Reference) int { return strings.Compare(a.String(), b.String()) })
	return list, nil
}

func (w *writer) columns(ctx context.Context, kind key.Kind) (list []store.Reference, setting string, err error) {
	table := "data_key_version"
	if kind == key.KEK {
		table = "root_key_version"
	}
	foreign := w.tables.statement(foreignKeysQuery, w.tables.table(table))
	foreign.row = func(scan func(...any) error) error {
		ref := store.Reference{ForeignKey: true}
		if err := scan(&ref.Schema, &ref.Table, &ref.Column.Column); err != nil {
			return err
		}
		list = append(list, ref)
		return nil
	}
	registered := w.tables.statement(registeredQuery)
	registered.row = func(scan func(...any) error) error {
		var ref store.Reference
		there := false
		if err := scan(&ref.Schema, &ref.Table, &ref.Column.Column, &there); err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("column %v, which was registered, is gone: what it says of key versions is unknown; unregister it", ref.Column)
		}
		if !slices.ContainsFunc(list, func(known store.Reference) bool { return known.Column == ref.Column }) {
			list = append(list, ref)
		}
		return nil
	}
	security := w.tables.statement(rowSecurity)
	security.row = func(scan func(...any) error) error { return scan(&setting) }
	batch := []statement{foreign}
	if kind != key.KEK {
		batch = append(batch, registered)
	}
	err = w.run(ctx, append(batch, security)...)
	return list, setting, err
}

// countIn counts rows with an id, or with any. A column that was registered may be of any type.
func countIn(ref *store.Reference, anyID bool) string {
	column := migrate.Quote(ref.Column.Column)
	text := "select count(*) from " + migrate.Quote(ref.Schema) + "." + migrate.Quote(ref.Table) + " where " + column
	switch {
	case anyID:
		return text + " is not null"
	case ref.ForeignKey:
		return text + " = any ($1::text[])"
	}
	return text + "::text = any ($1::text[])"
}

// Register implements [store.Store].
func (s *Store) Register(ctx context.Context, c store.Column) error {
	table := migrate.Quote(c.Table)
	if c.Schema != "" {
		table = migrate.Quote(c.Schema) + "." + table
	}
	err := s.write(ctx, func(w *writer) error {
		return w.last(ctx, found(w.tables.statement(insertReference, storable(table), storable(c.Column))))
	})
	return s.tables.explain(ctx, fmt.Sprintf("register column %v", c), err)
}

// Unregister implements [store.Store].
func (s *Store) Unregister(ctx context.Context, c store.Column) error {
	err := s.write(ctx, func(w *writer) error {
		return w.last(ctx, found(w.tables.statement(deleteReference, storable(c.Schema), storable(c.Table), storable(c.Column))))
	})
	return s.tables.explain(ctx, fmt.Sprintf("unregister column %v", c), err)
}

// found makes it [store.ErrNotFound] if there are no rows.
func found(st statement) statement {
	st.done = func(rows int) error {
		if rows == 0 {
			return store.ErrNotFound
		}
		return nil
	}
	return st
}
