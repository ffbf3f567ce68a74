package sqlitestore

import (
	"slices"
	"strings"
	"testing"

	"keyhold.example/keyhold/internal/manykeys"
	"keyhold.example/keyhold/store/storetest"
)

// begins are the statements that begin to read at an end of a table or an index, and why they may.
var begins = map[query]string{
	gapsQuery: integrity, strangeParentsQuery: integrity, strangeNamesQuery: integrity, strangeUsageQuery: integrity,

	firstScopesQuery: limited, firstLackingQuery: limited, namesNotUnderQuery: limited,

	// The foreign keys to them need no index, as long as this is so seldom: at the end of a rekey, which has written
	// all these rows. The programs of the others would look, too, if a deferred foreign key were broken.
	deleteInstallationKey: "once a rekey", insertInstallationKey: unbroken, insertInstallation: unbroken,
}

const (
	integrity = "it looks at everything"
	limited   = "it goes on as far as its limit, or the range that it asks for"
	unbroken  = "nothing of its transaction breaks a foreign key"
)

// grows are the tables with more rows the more keys there are. Of the others, that of the epochs is kept small by Tidy.
var grows = []string{
	"kms_root_key", "kms_root_key_version", "kms_data_key", "kms_data_key_version", "kms_tombstone", "kms_usage", "kms_data_key_name",
}

// No statement reads a whole table that grows, or a whole index of one, with statistics or, as usual, without.
func TestNoStatementReadsAWholeTable(t *testing.T) {
	for name, analyzed := range map[string]bool{"analyzed": true, "never analyzed": false} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s := open(t, Config{}, t.TempDir()+"/keys.db")
			must(t, s.Migrate(ctx))
			must(t, s.Initialize(ctx, storetest.NewMaker(1).Installation()))
			must(t, manykeys.SQLite(ctx, s.DB(), 5000, analyzed))
			tables := tablesByPage(t, s)
			for q := range templates {
				text := s.tables.text[q]
				if analyzed && strings.Count(text, "?") > 500 {
					continue // that are more scopes than there are
				}
				if !strings.Contains(text, "kms_") || strings.Contains(text, "kms_schema_migrations") {
					continue
				}
				whole := scans(t, s, text, tables)
				if why, may := begins[query(q)]; may != (len(whole) > 0) {
					t.Errorf("it reads all of %q, and may: %v %s:\n%s", whole, may, why, text)
				}
			}
		})
	}
}

// tablesByPage is the tables that grow, by the page where they, or an index of them, begin.
func tablesByPage(t *testing.T, s *Store) map[int]string {
	t.Helper()
	rows, err := s.DB().QueryContext(t.Context(), "select rootpage, tbl_name from sqlite_master where rootpage > 0")
	must(t, err)
	defer func() { must(t, rows.Close()) }()
	tables := map[int]string{}
	for rows.Next() {
		var page int
		var table string
		must(t, rows.Scan(&page, &table))
		if slices.Contains(grows, table) {
			tables[page] = table
		}
	}
	must(t, rows.Err())
	return tables
}

// scans is the tables that the statement's program begins to read at one of their ends, and not where something was
// looked for.
func scans(t *testing.T, s *Store, text string, tables map[int]string) (list []string) {
	t.Helper()
	rows, err := s.DB().QueryContext(t.Context(), "explain "+text, slices.Repeat([]any{nil}, strings.Count(text, "?")+12)...)
	must(t, err)
	defer func() { must(t, rows.Close()) }()
	open := map[int]string{} // by cursor
	for rows.Next() {
		var addr, p1, p2, p3 int
		var opcode string
		var p4, p5, comment any
		must(t, rows.Scan(&addr, &opcode, &p1, &p2, &p3, &p4, &p5, &comment))
		switch opcode {
		case "OpenRead", "OpenWrite":
			open[p1] = tables[p2]
		case "Rewind", "Last":
			if open[p1] != "" {
				list = append(list, open[p1])
			}
		}
	}
	must(t, rows.Err())
	return list
}
