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
	// Those of partitions belong to the partitioned table's. Of a foreign key without the id the columns, and how a row
	// t finds the version v that it refers to; the key's own, to its head, is no use of that.
	foreignKeysQuery = define(`
select n.nspname::text, c.relname::text,
    coalesce(min(mine.attname::text) filter (where theirs.attname = 'private_id'),
        '(' || string_agg(mine.attname::text, ', ' order by u.i) || ')'),
    case when bool_or(theirs.attname = 'private_id') then ''
        else string_agg(format('t.%I = v.%I', mine.attname, theirs.attname), ' and ' order by u.i) end
from pg_constraint f
cross join unnest(f.conkey, f.confkey) with ordinality as u (mine, theirs, i)
join pg_attribute theirs on theirs.attrelid = f.confrelid and theirs.attnum = u.theirs
join pg_attribute mine on mine.attrelid = f.conrelid and mine.attnum = u.mine
join pg_class c on c.oid = f.conrelid
join pg_namespace n on n.oid = c.relnamespace
where f.contype = 'f' and f.conparentid = 0 and f.confrelid = to_regclass($1::text)
group by f.oid, f.conrelid, n.nspname, c.relname
having bool_or(theirs.attname = 'private_id') or f.conrelid is distinct from to_regclass($2::text)`)

	registeredQuery = define(`
select r.table_schema, r.table_name, r.column_name, a.attnum is not null, coalesce(case when not (` + holdsIDs + `)
    then format_type(a.atttypid, a.atttypmod) end, '')
from {schema}{prefix}_reference r
left join pg_namespace n on n.nspname = r.table_schema
left join pg_class c on c.relnamespace = n.oid and c.relname = r.table_name
left join pg_attribute a on a.attrelid = c.oid and a.attname = r.column_name and a.attnum > 0
left join pg_type y on y.oid = a.atttypid`)

	insertReference = define(`
with found as (
    select n.nspname::text as table_schema, c.relname::text as table_name, a.attname::text as column_name,
        case when c.relkind not in ('r', 'p') then 'it is not one of a table'
            when c.relpersistence = 't' then 'the table is a temporary one, which others do not have'
            when c.oid in (select to_regclass(name) from unnest($3::text[]) as own (name)) then 'the table is one of keyhold''s own'
            when not (` + holdsIDs + `) then 'it is of type ' || format_type(a.atttypid, a.atttypmod) || ', in which no id is found; one of text is'
            else '' end as problem
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid
    join pg_namespace n on n.oid = c.relnamespace
    join pg_type y on y.oid = a.atttypid
    where a.attrelid = to_regclass($1::text) and a.attname = $2::text and a.attnum > 0
), added as (
    insert into {schema}{prefix}_reference (table_schema, table_name, column_name)
    select table_schema, table_name, column_name from found where problem = ''
    on conflict do nothing
)
select problem from found`)

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

// holdsIDs is whether a column of type y can have an id as it is. A domain has the category of what it is over; two
// types of strings have no room for every id.
const holdsIDs = `y.typcategory = 'S' and coalesce(nullif(y.typbasetype, 0), y.oid) not in ('name'::regtype, '"char"'::regtype)`

// column is one that has ids of versions, and what was found in it.
type column struct {
	store.Reference
	on string // of a foreign key to other columns than the id: which version v a row t refers to
	id key.ID // one that a row has, of those that were looked for
}

// References implements [store.Queries]. It takes three round trips.
func (q queries) References(ctx context.Context, id key.ID) ([]store.Reference, error) {
	var list []store.Reference
	err := q.view.write(ctx, func(w *writer) error {
		kind, _ := id.Kind()
		var ids []key.ID
		if id != "" {
			ids = append(ids, id)
		}
		columns, err := w.references(ctx, kind, ids...)
		list = nil
		for _, c := range columns {
			list = append(list, c.Reference)
		}
		return err
	})
	if err != nil {
		return nil, q.tables.explain(ctx, "find what refers to key versions", err)
	}
	return list, nil
}

// unused is a [*store.InUseError] about one of the ids if a row has any. It takes two round trips, and two more for the
// error if there are several ids.
func (w *writer) unused(ctx context.Context, kind key.Kind, ids []key.ID) error {
	list, err := w.references(ctx, kind, ids...)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(c column) bool { return c.Rows == 0 })
	switch {
	case len(list) == 0:
		return nil
	case len(ids) > 1:
		if err := w.unused(ctx, kind, []key.ID{list[0].id}); err != nil {
			return err
		}
		return w.unused(ctx, kind, ids) // that row is gone since
	}
	use := &store.InUseError{ID: ids[0]}
	for _, c := range list {
		use.References = append(use.References, c.Reference)
	}
	return use
}

// references lists columns and counts their rows with one of the ids, or, if there are none, with any. It takes two
// round trips.
func (w *writer) references(ctx context.Context, kind key.Kind, ids ...key.ID) ([]column, error) {
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
		st := statement{text: w.tables.countIn(&list[i], kind, len(ids) == 0)}
		if len(ids) > 0 {
			st.args = []any{texts}
		}
		st.row = func(scan func(...any) error) error { return scan(&list[i].Rows, &list[i].id) }
		counts = append(counts, st)
	}
	if err := w.run(ctx, append(counts, w.tables.statement(setRowSecurity, setting))...); err != nil {
		return nil, fmt.Errorf("count the rows that have ids of key versions: %w", err)
	}
	slices.SortFunc(list, func(a, b column) int { return strings.Compare(a.Column.String(), b.Column.String()) })
	return list, nil
}

func (w *writer) columns(ctx context.Context, kind key.Kind) (list []column, setting string, err error) {
	foreign := w.tables.statement(foreignKeysQuery, w.tables.versionsOf(kind), strings.TrimSuffix(w.tables.versionsOf(kind), "_version"))
	foreign.row = func(scan func(...any) error) error {
		c := column{Reference: store.Reference{ForeignKey: true}}
		if err := scan(&c.Schema, &c.Table, &c.Column.Column, &c.on); err != nil {
			return err
		}
		list = append(list, c)
		return nil
	}
	registered := w.tables.statement(registeredQuery)
	registered.row = func(scan func(...any) error) error {
		var c column
		var unfit string
		there := false
		if err := scan(&c.Schema, &c.Table, &c.Column.Column, &there, &unfit); err != nil {
			return err
		}
		switch {
		case !there:
			return fmt.Errorf("column %v, which was registered, is gone: what it says of key versions is unknown; unregister it", c.Column)
		case unfit != "":
			return fmt.Errorf("column %v, which was registered, is of type %s by now, in which no id is found; unregister it", c.Column, unfit)
		case !slices.ContainsFunc(list, func(known column) bool { return known.Column == c.Column }):
			list = append(list, c)
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

// versionsOf is the name of a table of versions, as table has it.
func (t *tables) versionsOf(kind key.Kind) string {
	if kind == key.KEK {
		return t.table("root_key_version")
	}
	return t.table("data_key_version")
}

// countIn counts rows with an id, or with any, and takes one of the ids that they have.
func (t *tables) countIn(c *column, kind key.Kind, anyID bool) string {
	from, id := migrate.Quote(c.Schema)+"."+migrate.Quote(c.Table)+" t", "t."+migrate.Quote(c.Column.Column)
	switch {
	case c.on != "":
		from, id = from+" join "+t.versionsOf(kind)+" v on "+c.on, "v.private_id"
	case !c.ForeignKey:
		id += "::text" // as it may be of any type of strings
	}
	text := "select count(*), coalesce(min(" + id + "::text), '') from " + from + " where " + id
	if anyID {
		return text + " is not null"
	}
	return text + " = any ($1::text[])"
}

// Register implements [store.Store].
func (s *Store) Register(ctx context.Context, c store.Column) error {
	table := migrate.Quote(c.Table)
	if c.Schema != "" {
		table = migrate.Quote(c.Schema) + "." + table
	}
	err := s.write(ctx, func(w *writer) error {
		problem := ""
		insert := found(w.tables.statement(insertReference, storable(table), storable(c.Column), w.tables.ownTables()))
		insert.row = func(scan func(...any) error) error { return scan(&problem) }
		if err := w.run(ctx, insert); err != nil || problem == "" {
			return err
		}
		return key.Invalid("column", c.String(), problem)
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
