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
select m.name, f."from"
from sqlite_master m, pragma_foreign_key_list(m.name) f
where m.type = 'table' and lower(f."table") = ?1 and coalesce(lower(f."to"), 'private_id') = 'private_id'`)

	registeredQuery = define(`
select r.table_name, r.column_name,
    exists (select 1 from pragma_table_info(r.table_name) where lower(name) = lower(r.column_name))
from {prefix}_reference r`)

	columnQuery = define(`
select m.name, c.name
from sqlite_master m, pragma_table_info(m.name) c
where m.type = 'table' and lower(m.name) = lower(?1) and lower(c.name) = lower(?2)`)

	insertReference = define(`
insert into {prefix}_reference (table_name, column_name)
select ?1, ?2 where not exists (select 1 from {prefix}_reference where table_name = ?1 and column_name = ?2)`)

	deleteReference = define(`
delete from {prefix}_reference where lower(table_name) = lower(?1) and lower(column_name) = lower(?2)`)
)

// References implements [store.Queries].
func (q queries) References(ctx context.Context, id key.ID) ([]store.Reference, error) {
	var list []store.Reference
	err := q.view.look(ctx, func(w *writer) (err error) {
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

// references lists columns and counts their rows with one of the ids, or, if there are none, with any. Inside a write
// transaction nobody adds any.
func (w *writer) references(ctx context.Context, kind key.Kind, ids ...key.ID) ([]store.Reference, error) {
	table := w.tables.options.Prefix + "_data_key_version"
	if kind == key.KEK {
		table = w.tables.options.Prefix + "_root_key_version"
	}
	list, err := w.columns(ctx, foreignKeysQuery, true, table)
	if err != nil {
		return nil, err
	}
	if kind != key.KEK {
		registered, err := w.registered(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range registered {
			if !slices.ContainsFunc(list, func(known store.Reference) bool { return known.Column == r.Column }) {
				list = append(list, r)
			}
		}
	}
	for i := range list {
		if err := w.count(ctx, &list[i], ids); err != nil {
			return nil, fmt.Errorf("count in %v: %w", list[i].Column, err)
		}
	}
	slices.SortFunc(list, func(a, b store.Reference) int { return strings.Compare(a.String(), b.String()) })
	return list, nil
}

func (w *writer) columns(ctx context.Context, q query, foreign bool, args ...any) (list []store.Reference, err error) {
	err = w.each(ctx, q, func(r *sql.Rows) error {
		ref := store.Reference{ForeignKey: foreign}
		if err := r.Scan(&ref.Table, &ref.Column.Column); err != nil {
			return err
		}
		list = append(list, ref)
		return nil
	}, args...)
	return list, err
}

func (w *writer) registered(ctx context.Context) (list []store.Reference, err error) {
	err = w.each(ctx, registeredQuery, func(r *sql.Rows) error {
		var ref store.Reference
		there := false
		if err := r.Scan(&ref.Table, &ref.Column.Column, &there); err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("column %v, which was registered, is gone: what it says of key versions is unknown; unregister it", ref.Column)
		}
		list = append(list, ref)
		return nil
	})
	return list, err
}

func (w *writer) count(ctx context.Context, ref *store.Reference, ids []key.ID) error {
	ctx, err := steady(ctx)
	if err != nil {
		return err
	}
	column := quote(ref.Column.Column)
	text := "select count(*) from " + quote(ref.Table) + " where " + column
	if len(ids) == 0 {
		return w.conn.QueryRowContext(ctx, text+" is not null").Scan(&ref.Rows)
	}
	for part := range slices.Chunk(ids, maxVariables) {
		var args []any
		for _, id := range part {
			args = append(args, string(id))
		}
		var n int64
		in := " in (?" + strings.Repeat(", ?", len(args)-1) + ")"
		if err := w.conn.QueryRowContext(ctx, text+in, args...).Scan(&n); err != nil {
			return err
		}
		ref.Rows += n
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
	list, err := w.columns(ctx, columnQuery, false, c.Table, c.Column)
	if err == nil && len(list) == 0 {
		err = store.ErrNotFound
	}
	if err != nil {
		return c, err
	}
	return list[0].Column, nil
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
