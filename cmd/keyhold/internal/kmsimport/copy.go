package kmsimport

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/migrate"
)

// copyTo copies all rows: those of each key's versions and tombstones by their numbers, as the tables demand.
func (s *Stage) copyTo(ctx context.Context, q querier, prefix, schema string) error {
	c := copier{from: s.db, to: q, prefix: prefix, schema: schema}
	for _, table := range []string{"installation_key", "root_slot", "installation", "root_key", "data_key"} {
		if err := c.rows(ctx, table, ""); err != nil {
			return err
		}
	}
	for _, key := range []string{"root_key", "data_key"} {
		if err := c.versions(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

type copier struct {
	from, to       querier
	prefix, schema string
}

// run is numbers of a key, one after the other, that are all of versions or all of tombstones.
type run struct {
	key      string
	dead     bool
	from, to int64
}

// versions copies those of one kind of keys, those of keys without a tombstone all at once.
func (c *copier) versions(ctx context.Context, key string) error {
	if err := c.rows(ctx, key+"_version", fmt.Sprintf(
		"where %s_id not in (select key_id from %s_tombstone) order by %[1]s_id, version", key, c.prefix)); err != nil {
		return err
	}
	var runs []run
	err := each(ctx, c.from, fmt.Sprintf(`select key_id, version, true from %[1]s_tombstone
		where key_id in (select private_id from %[1]s_%[2]s)
		union all
		select %[2]s_id, version, false from %[1]s_%[2]s_version where %[2]s_id in (select key_id from %[1]s_tombstone)
		order by 1, 2`, c.prefix, key), func(r *sql.Rows) error {
		var next run
		if err := r.Scan(&next.key, &next.from, &next.dead); err != nil {
			return err
		}
		next.to = next.from
		if n := len(runs); n > 0 && runs[n-1].key == next.key && runs[n-1].dead == next.dead {
			runs[n-1].to = next.to
		} else {
			runs = append(runs, next)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, r := range runs {
		table, column := key+"_version", key+"_id"
		if r.dead {
			table, column = "tombstone", "key_id"
		}
		if err := c.rows(ctx, table, "where "+column+" = $1 and version between $2 and $3 order by version", r.key, r.from, r.to); err != nil {
			return err
		}
	}
	return nil
}

// manyValues is how many one statement inserts, of all columns together: more than that does not make it faster.
const manyValues = 1000

// isPassing says whether a column is of use within a transaction alone, and null in every row that is committed. SQLite
// has one, and PostgreSQL none.
func isPassing(column string) bool { return column == "leaving" }

// rows copies the rows of a table that the rest of a query wants, in its order.
func (c *copier) rows(ctx context.Context, table, rest string, args ...any) error {
	var columns []string
	var values []any
	insert := func() error {
		if len(values) == 0 {
			return nil
		}
		var names, rows []string
		for _, column := range columns {
			names = append(names, migrate.Quote(column))
		}
		for n := 0; n < len(values); {
			var places []string
			for range columns {
				n++
				places = append(places, fmt.Sprint("$", n))
			}
			rows = append(rows, "("+strings.Join(places, ", ")+")")
		}
		_, err := c.to.ExecContext(ctx, fmt.Sprintf("insert into %s (%s) values %s",
			qualified(c.schema, c.prefix+"_"+table), strings.Join(names, ", "), strings.Join(rows, ", ")), values...)
		values = nil
		return err
	}
	err := each(ctx, c.from, "select * from "+c.prefix+"_"+table+" "+rest, func(r *sql.Rows) (err error) {
		all, err := r.Columns()
		if err != nil {
			return err
		}
		columns = slices.DeleteFunc(slices.Clone(all), isPassing)
		row, into := make([]any, len(all)), make([]any, len(all))
		for i := range row {
			into[i] = &row[i]
		}
		if err := r.Scan(into...); err != nil {
			return err
		}
		for i := range row {
			if !isPassing(all[i]) {
				values = append(values, row[i])
			}
		}
		if len(values)+len(columns) > manyValues {
			return insert()
		}
		return nil
	}, args...)
	if err != nil {
		return err
	}
	return insert()
}
