package sqlitestore

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var (
	// A foreign key that names no column means the primary key, which the id is.
	foreignKeysQuery = define(`
select m.name, f."from", lower(coalesce(f."to", 'private_id')), f.seq
from sqlite_master m, pragma_foreign_key_list(m.name) f
where m.type = 'table' and lower(f."table") = ?1
order by m.name, f.id, f.seq`)

	// Those that are generated are in table_xinfo alone, which also has those of a virtual table that it hides.
	registeredQuery = define(`
select r.table_name, r.column_name,
    exists (select 1 from pragma_table_xinfo(r.table_name) where lower(name) = lower(r.column_name) and hidden <> 1)
from {prefix}_reference r`)

	columnQuery = define(`
select m.name, c.name, m.type, m.name in (` + ownTables + `)
from sqlite_master m, pragma_table_xinfo(m.name) c
where m.type in ('table', 'view') and lower(m.name) = lower(?1) and lower(c.name) = lower(?2) and c.hidden <> 1`)

	insertReference = define(`
insert into {prefix}_reference (table_name, column_name)
select ?1, ?2 where not exists (select 1 from {prefix}_reference where table_name = ?1 and column_name = ?2)`)

	deleteReference = define(`
delete from {prefix}_reference where lower(table_name) = lower(?1) and lower(column_name) = lower(?2)`)
)

const ownTables = `
    '{prefix}_schema_version', '{prefix}_installation_key', '{prefix}_root_slot', '{prefix}_installation',
    '{prefix}_escrow', '{prefix}_tombstone', '{prefix}_epoch', '{prefix}_purpose', '{prefix}_reference',
    '{prefix}_instance', '{prefix}_lease', '{prefix}_usage',
    '{prefix}_root_key', '{prefix}_root_key_version', '{prefix}_data_key', '{prefix}_data_key_version',
    '{prefix}_data_key_name'`

// column is one that has ids of versions, and what was found in it.
type column struct {
	store.Reference
	on string // of a foreign key to other columns than the id: which version v a row t refers to
	id key.ID // one that a row has, of those that were looked for
}

// References implements [store.Queries].
func (q queries) References(ctx context.Context, id key.ID) ([]store.Reference, error) {
	var list []store.Reference
	err := q.view.look(ctx, func(w *writer) error {
		kind, _ := id.Kind()
		var ids []key.ID
		if id != "" {
			ids = append(ids, id)
		}
		columns, err := w.references(ctx, kind, ids...)
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

// unused is a [*store.InUseError] about one of the ids if a row has any. Inside a write transaction nobody adds any.
func (w *writer) unused(ctx context.Context, kind key.Kind, ids ...key.ID) error {
	list, err := w.references(ctx, kind, ids...)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(c column) bool { return c.Rows == 0 })
	switch {
	case len(list) == 0:
		return nil
	case len(ids) > 1:
		return w.unused(ctx, kind, list[0].id)
	}
	use := &store.InUseError{ID: ids[0]}
	for _, c := range list {
		use.References = append(use.References, c.Reference)
	}
	return use
}

// references lists columns and counts their rows with one of the ids, or, if there are none, with any.
func (w *writer) references(ctx context.Context, kind key.Kind, ids ...key.ID) ([]column, error) {
	list, err := w.foreignKeys(ctx, kind)
	if err != nil {
		return nil, err
	}
	if kind != key.KEK {
		registered, err := w.registered(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range registered {
			if !slices.ContainsFunc(list, func(known column) bool { return known.Column == r.Column }) {
				list = append(list, r)
			}
		}
	}
	for i := range list {
		if err := w.count(ctx, &list[i], kind, ids); err != nil {
			return nil, fmt.Errorf("count in %v: %w", list[i].Column, err)
		}
	}
	slices.SortFunc(list, func(a, b column) int { return strings.Compare(a.Column.String(), b.Column.String()) })
	return list, nil
}

func (w *writer) versionsOf(kind key.Kind) string {
	if kind == key.KEK {
		return w.tables.options.Prefix + "_root_key_version"
	}
	return w.tables.options.Prefix + "_data_key_version"
}

func (w *writer) foreignKeys(ctx context.Context, kind key.Kind) (list []column, err error) {
	type pair struct{ mine, theirs string }
	var pairs []pair
	end := func(table string) {
		c := column{Reference: store.Reference{Column: store.Column{Table: table}, ForeignKey: true}}
		var names, on []string
		for _, p := range pairs {
			if p.theirs == "private_id" {
				c.Column.Column = p.mine
			}
			names = append(names, p.mine)
			on = append(on, "t."+quote(p.mine)+" = v."+quote(p.theirs))
		}
		pairs = nil
		if c.Column.Column == "" {
			if strings.EqualFold(table+"_version", w.versionsOf(kind)) {
				return // the key's own, to its head
			}
			c.Column.Column, c.on = "("+strings.Join(names, ", ")+")", strings.Join(on, " and ")
		}
		list = append(list, c)
	}
	table := ""
	err = w.each(ctx, foreignKeysQuery, func(r *sql.Rows) error {
		var next string
		var p pair
		seq := 0
		if err := r.Scan(&next, &p.mine, &p.theirs, &seq); err != nil {
			return err
		}
		if seq == 0 && len(pairs) > 0 {
			end(table)
		}
		table, pairs = next, append(pairs, p)
		return nil
	}, w.versionsOf(kind))
	if len(pairs) > 0 {
		end(table)
	}
	return list, err
}

func (w *writer) registered(ctx context.Context) (list []column, err error) {
	err = w.each(ctx, registeredQuery, func(r *sql.Rows) error {
		var c column
		there := false
		if err := r.Scan(&c.Table, &c.Column.Column, &there); err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("column %v, which was registered, is gone: what it says of key versions is unknown; unregister it", c.Column)
		}
		list = append(list, c)
		return nil
	})
	return list, err
}

func (w *writer) count(ctx context.Context, c *column, kind key.Kind, ids []key.ID) error {
	ctx, err := steady(ctx)
	if err != nil {
		return err
	}
	from, id := "main."+quote(c.Table)+" t", "t."+quote(c.Column.Column)
	if c.on != "" {
		from, id = from+" join main."+quote(w.versionsOf(kind))+" v on "+c.on, "v.private_id"
	}
	text := "select count(*), coalesce(min(cast(" + id + " as text)), '') from " + from + " where " + id
	if len(ids) == 0 {
		return w.conn.QueryRowContext(ctx, text+" is not null").Scan(&c.Rows, &c.id)
	}
	for part := range slices.Chunk(ids, maxVariables/2) {
		var args []any
		for _, id := range part {
			args = append(args, string(id))
			if !c.ForeignKey {
				args = append(args, []byte(id)) // SQLite keeps what it is given, and no text equals a blob
			}
		}
		var n int64
		in := " in (?" + strings.Repeat(", ?", len(args)-1) + ")"
		if err := w.conn.QueryRowContext(ctx, text+in, args...).Scan(&n, &c.id); err != nil {
			return err
		}
		if c.Rows += n; n > 0 {
			return nil // what is looked for by many ids is whether there are any rows
		}
	}
	return nil
}

// maxVariables is how many every SQLite takes in one statement.
const maxVariables = 900

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// Register implements [store.Store].
func (s *Store) Register(ctx context.Context, c store.Column) error {
	err := s.write(ctx, func(w *writer) error {
		found, err := w.find(ctx, c)
		if err != nil {
			return err
		}
		_, err = w.exec(ctx, insertReference, found.Table, found.Column)
		return err
	})
	return s.tables.explain(ctx, fmt.Sprintf("register column %v", c), err)
}

// find returns a column as the database spells it.
func (w *writer) find(ctx context.Context, c store.Column) (store.Column, error) {
	if c.Schema != "" && c.Schema != "main" {
		return c, store.ErrNotFound
	}
	given, kind, own := c.String(), "", false
	err := w.each(ctx, columnQuery, func(r *sql.Rows) error { return r.Scan(&c.Table, &c.Column, &kind, &own) }, c.Table, c.Column)
	switch {
	case err == nil && kind == "":
		err = store.ErrNotFound
	case kind == "view":
		err = key.Invalid("column", given, "it is not one of a table")
	case own:
		err = key.Invalid("column", given, "the table is one of keyhold's own")
	}
	return c, err
}

// Unregister implements [store.Store].
func (s *Store) Unregister(ctx context.Context, c store.Column) error {
	err := s.write(ctx, func(w *writer) error {
		n, err := w.exec(ctx, deleteReference, c.Table, c.Column)
		if err == nil && n == 0 {
			err = store.ErrNotFound
		}
		return err
	})
	return s.tables.explain(ctx, fmt.Sprintf("unregister column %v", c), err)
}
