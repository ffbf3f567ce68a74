package sqlitestore

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

var (
	integrityQuery  = define(`select integrity_check from pragma_integrity_check`)
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
)

// Integrity implements [store.Store].
func (s *Store) Integrity(ctx context.Context) ([]string, error) {
	var found []string
	for _, check := range []struct {
		query query
		say   func(*sql.Rows) (string, error)
	}{
		{integrityQuery, func(rows *sql.Rows) (string, error) {
			var text string
			err := rows.Scan(&text)
			if text == "ok" {
				text = ""
			}
			return text, err
		}},
		{foreignKeyQuery, func(rows *sql.Rows) (string, error) {
			var table, parent string
			var row int64
			err := rows.Scan(&table, &row, &parent)
			return fmt.Sprintf("row %d of table %s refers to a row of %s that is not there", row, table, parent), err
		}},
		{gapsQuery, sayOf("the versions of key %s are not numbered 1, 2, 3 and so on")},
		{strangeParentsQuery, sayOf("version %s is wrapped under what is no version of its root key that wraps")},
	} {
		err := s.each(ctx, check.query, nil, func(rows *sql.Rows) error {
			text, err := check.say(rows)
			if text = strings.TrimSpace(text); text != "" {
				found = append(found, text)
			}
			return err
		})
		if err != nil {
			return nil, s.tables.explain(ctx, "check the integrity", err)
		}
	}
	return found, nil
}

func sayOf(format string) func(*sql.Rows) (string, error) {
	return func(rows *sql.Rows) (string, error) {
		var id string
		err := rows.Scan(&id)
		return fmt.Sprintf(format, id), err
	}
}
