package sqlitestore

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"keyhold.example/keyhold/store/internal/ddl"
)

var (
	integrityQuery = define(`select integrity_check from pragma_integrity_check`)
	catalogueQuery = define(`
select sql from sqlite_master
where type in ('table', 'index', 'trigger') and sql is not null and substr(tbl_name, 1, length('{prefix}_')) = '{prefix}_'`)

	scopeReferenceQuery = define(`
select count(*) from pragma_foreign_key_list('{prefix}_root_key')
where "from" = 'scope_id' and "table" = ? collate nocase and coalesce("to", ?) = ? collate nocase
    and on_delete = 'CASCADE' and on_update = 'CASCADE'`)

	foreignKeyQuery = define(`select "table", coalesce(rowid, 0), parent from pragma_foreign_key_check`)

	// Each of these is refused by a trigger, which whoever writes to the file by hand can drop.
	gapsQuery = define(`
with numbers (key_id, version) as (
    select root_key_id, version from {prefix}_root_key_version
    union all
    select data_key_id, version from {prefix}_data_key_version
    union all
    select t.key_id, t.version from {prefix}_tombstone t
    where exists (select 1 from {prefix}_root_key where private_id = t.key_id)
        or exists (select 1 from {prefix}_data_key where private_id = t.key_id))
select key_id from numbers group by key_id
having min(version) <> 1 or max(version) <> count(*) or count(distinct version) <> count(*)
order by key_id`)

	strangeParentsQuery = define(`
select v.private_id
from {prefix}_data_key_version v
join {prefix}_data_key k on k.private_id = v.data_key_id
join {prefix}_root_key_version p on p.private_id = v.root_key_version_id
where p.root_key_id <> k.root_key_id or p.alg <> 1
order by v.private_id`)

	strangeNamesQuery = define(`
select k.private_id
from {prefix}_data_key_name n
join {prefix}_data_key k on k.root_key_id = n.root_key_id and k.purpose = n.purpose
where n.removed = 1 or exists (
    select 1 from {prefix}_data_key_version v where v.data_key_id = k.private_id and v.version <= n.last_version)
order by k.private_id`)

	strangeUsageQuery = define(`
select u.private_id from {prefix}_usage u
where not exists (select 1 from {prefix}_data_key_version v where v.private_id = u.private_id)
order by u.private_id`)
)

// Integrity implements [store.Store]. It compares the statements that SQLite keeps of the tables with those of the
// migrations, but for white space and comments. Of constraints and triggers it cannot see those that a connection has
// turned off for itself.
func (s *Store) Integrity(ctx context.Context) ([]string, error) {
	found, err := s.integrity(ctx)
	if err != nil {
		return nil, s.tables.explain(ctx, "check the integrity", err)
	}
	return found, nil
}

func (q queries) integrity(ctx context.Context) ([]string, error) {
	found, err := q.list(ctx, integrityQuery, func(rows *sql.Rows) (string, error) {
		var text string
		err := rows.Scan(&text)
		if text == "ok" {
			text = ""
		}
		return text, err
	})
	if err != nil {
		return nil, err
	}
	differences, readable, err := q.differences(ctx)
	found = append(found, differences...)
	if err != nil || !readable {
		return found, err
	}
	for _, check := range []struct {
		query query
		say   func(*sql.Rows) (string, error)
	}{
		{foreignKeyQuery, func(rows *sql.Rows) (string, error) {
			var table, parent string
			var row int64
			err := rows.Scan(&table, &row, &parent)
			return fmt.Sprintf("row %d of table %s refers to a row of %s that is not there", row, table, parent), err
		}},
		{gapsQuery, sayOf("the versions of key %s are not numbered 1, 2, 3 and so on")},
		{strangeParentsQuery, sayOf("version %s is wrapped under what is no version of its root key that wraps")},
		{strangeNamesQuery, sayOf("the name of key %s says that the key, or a number of its versions, was removed")},
		{strangeUsageQuery, sayOf("messages were taken of version %s, which is not there")},
	} {
		list, err := q.list(ctx, check.query, check.say)
		if err != nil {
			return nil, err
		}
		found = append(found, list...)
	}
	return found, nil
}

// differences are those between the tables and what the migrations make. Where a table is not readable, because it is
// not there or has other columns or constraints, statements about its rows need not work.
func (q queries) differences(ctx context.Context) (found []string, readable bool, err error) {
	o := q.tables.options
	o.ScopeTable, o.ScopeColumn = "", ""
	files, err := Migrations(o)
	if err != nil {
		return nil, false, err
	}
	want, err := ddl.Read(files, "")
	if err != nil {
		return nil, false, err
	}
	have := ddl.Schema{}
	err = q.each(ctx, catalogueQuery, nil, func(rows *sql.Rows) error {
		var text string
		if err := rows.Scan(&text); err != nil {
			return err
		}
		_ = have.Add(ddl.Scan(text)) // what it does not know, as in tables of the application's, no migration makes
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	readable = true
	for _, d := range want.Compare(have, sameDefinition) {
		found = append(found, d.String())
		readable = readable && d.Kind != ddl.Table && d.Kind != ddl.Column && d.Kind != ddl.Constraint
	}
	if !readable || q.tables.options.ScopeTable == "" {
		return found, readable, nil
	}
	table, column, references := q.tables.options.ScopeTable, q.tables.options.ScopeColumn, 0
	err = q.each(ctx, scopeReferenceQuery, []any{table, column, column}, func(rows *sql.Rows) error { return rows.Scan(&references) })
	if references == 0 {
		found = append(found, fmt.Sprintf("table %s_root_key has no foreign key from scope_id to column %s of table %s with cascades on delete "+
			"and update: add it, or configure the table that it refers to", o.Prefix, column, table))
	}
	return found, true, err
}

// sameDefinition lets a column have a foreign key of the application's own.
func sameDefinition(o ddl.Object, want, have ddl.Tokens) bool {
	return have.Equal(want) ||
		o.Kind == ddl.Column && have.StartWith(want) && have[len(want):].StartWithWords("references")
}

func (q queries) list(ctx context.Context, what query, say func(*sql.Rows) (string, error)) (found []string, err error) {
	err = q.each(ctx, what, nil, func(rows *sql.Rows) error {
		text, err := say(rows)
		if text = strings.TrimSpace(text); text != "" {
			found = append(found, text)
		}
		return err
	})
	return found, err
}

func sayOf(format string) func(*sql.Rows) (string, error) {
	return func(rows *sql.Rows) (string, error) {
		var id string
		err := rows.Scan(&id)
		return fmt.Sprintf(format, id), err
	}
}
