package sqlitestore

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gomigrate "github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/source/iofs"

	"keyhold.example/keyhold/migrate"
)

// tableElement is a column or a constraint in the text that SQLite keeps of a table.
var tableElement = regexp.MustCompile(`(?m)^    (constraint )?(\w+) .*(?:\n     .*)*`)

// harm is SQL that takes an object away or changes it, and the object as Integrity calls it.
type harm struct{ object, sql string }

// harms asks the database which objects there are, so that none is left out. Where SQLite has no statement for a
// change, the text that it keeps is changed, which a connection does not read again until it is told to.
func harms(t *testing.T, s *Store) (list []harm) {
	t.Helper()
	text := func(name, old, changed string) string {
		quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
		return "update sqlite_master set sql = replace(sql, " + quote(old) + ", " + quote(changed) + ") where name = " + quote(name)
	}
	rows, err := s.DB().Query(`select type, name, tbl_name, sql from sqlite_master
		where sql is not null and tbl_name like 'kms_%' and name <> 'kms_schema_migrations'`)
	must(t, err)
	defer rows.Close()
	for rows.Next() {
		var kind, name, table, definition string
		must(t, rows.Scan(&kind, &name, &table, &definition))
		object := kind + " " + name + " of table " + table
		switch kind {
		case "table":
			object = "table " + name
			list = append(list, harm{object, text(name, definition, definition+" without rowid")},
				harm{object, text(name, definition, "create virtual table "+name+" using x")})
			for _, e := range tableElement.FindAllStringSubmatch(definition, -1) {
				element, kind := strings.TrimSuffix(e[0], ","), "column "
				changed := strings.Replace(element, e[2]+" ", e[2]+" x", 1)
				if e[1] != "" {
					kind, changed = "constraint ", element+" on conflict replace"
					if strings.Contains(element, " check (") {
						changed = strings.Replace(element, " check (", " check (1 or ", 1)
					}
				}
				object := kind + e[2] + " of table " + name
				list = append(list, harm{object, text(name, element, "    mine integer")}, harm{object, text(name, element, changed)})
				if strings.Contains(element, " not null") {
					list = append(list, harm{object, text(name, element, strings.Replace(element, " not null", "", 1))})
				}
			}
		case "index":
			list = append(list, harm{object, text(name, definition, definition+" where 1")})
		case "trigger":
			list = append(list, harm{object, text(name, "begin", "when 0 begin")})
		}
		list = append(list, harm{object, "drop " + kind + " " + name})
	}
	must(t, rows.Err())
	return list
}

func TestIntegrityFindsEveryRuleThatIsGone(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	list := harms(t, s)
	if len(list) < 500 {
		t.Errorf("there are only %d ways to harm the tables", len(list))
	}
	list = append(list,
		harm{"table kms_reference", "alter table kms_reference rename to other"},
		harm{"column table_name of table kms_reference", "alter table kms_reference rename table_name to other"},
		harm{"trigger kms_tombstone_kept of table kms_tombstone", `drop trigger kms_tombstone_kept;
			create trigger kms_tombstone_kept before delete on kms_purpose begin select raise(abort, 'kept'); end`},
	)
	for _, h := range list {
		found := afterHarm(t, s, h.sql)
		if !slices.ContainsFunc(found, func(sentence string) bool { return strings.HasPrefix(sentence, h.object+" is ") }) {
			t.Errorf("%s\nfound %q; want a sentence about %s", h.sql, found, h.object)
		}
	}
}

// afterHarm is what is found in a transaction that begins with the SQL, and is rolled back.
func afterHarm(t *testing.T, s *Store, text string) []string {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := s.DB().Conn(ctx)
	must(t, err)
	defer func() { must(t, conn.Close()) }()
	_, err = conn.ExecContext(ctx, "pragma writable_schema = on; pragma foreign_keys = off")
	must(t, err)
	tx, err := conn.BeginTx(ctx, nil)
	must(t, err)
	defer func() {
		must(t, tx.Rollback())
		_, err := conn.ExecContext(ctx, "pragma writable_schema = reset; pragma foreign_keys = on")
		must(t, err)
	}()
	if _, err := tx.ExecContext(ctx, text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	found, _, err := queries{s.tables, &inTx{tables: s.tables, tx: tx}}.differences(ctx)
	if err != nil {
		t.Fatalf("differences after %s: %v", text, err)
	}
	return found
}

func TestIntegrityLeavesTheApplicationsOwnAlone(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	for _, text := range []string{
		"create index mine on kms_root_key (created)",
		"create trigger kms_mine before insert on kms_root_key begin select 1; end",
		"create table kms_sessions (k, check (k <> ''))",
		"create table kms_copy as select * from kms_root_key",
		"create view kms_view as select 1",
		"create table oidc (k text references kms_data_key_version (private_id))",
		"alter table kms_root_key add note text not null default 'none' check (note <> ',')",
		"create table tenant (id text primary key); update sqlite_master set sql = replace(sql, 'scope_id text not null', " +
			"'scope_id text not null references tenant') where name = 'kms_root_key'",
		// SQLite puts names in quotes when it writes them itself.
		"alter table kms_root_key rename to other; alter table other rename to kms_root_key",
		"update sqlite_master set sql = replace(sql, char(10), '  /* here */' || char(13) || char(10)) where type <> 'table'",
	} {
		if found := afterHarm(t, s, text); len(found) > 0 {
			t.Errorf("%s\nfound %q", text, found)
		}
	}
}

func TestIntegrityFindsThatScopesDoNotReferToTheirTable(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{ScopeTable: "tenant", ScopeColumn: "id"}, filepath.Join(t.TempDir(), "keys.db"))
	mustExec(t, s, "create table tenant (id text primary key, name text unique)")
	if found, err := s.Integrity(t.Context()); err != nil || len(found) > 0 {
		t.Fatalf("Integrity: %q, %v; want nothing", found, err)
	}
	for _, c := range []Config{{ScopeTable: "other", ScopeColumn: "id"}, {ScopeTable: "tenant", ScopeColumn: "name"}} {
		found, err := open(t, c, fileOf(t, s)).Integrity(t.Context())
		if want := "from scope_id to column " + c.ScopeColumn + " of table " + c.ScopeTable; err != nil ||
			!strings.Contains(strings.Join(found, "\n"), want) {
			t.Errorf("Integrity: %q, %v; want %q", found, err, want)
		}
	}
}

func TestIntegrityFindsNothingInFreshTables(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Config{
		"defaults": {}, "another prefix, uuid": {Prefix: "other_1", ScopeType: migrate.UUID}, "bigint": {ScopeType: migrate.BigInt},
		"a scope table": {ScopeTable: "tenant", ScopeColumn: "id"},
	} {
		t.Run(name, func(t *testing.T) {
			byMigrate := migrated(t, c, filepath.Join(t.TempDir(), "keys.db"))
			path := filepath.Join(t.TempDir(), "keys.db")
			golangMigrate(t, c, path)
			for _, s := range []*Store{byMigrate, open(t, c, path), open(t, Config{Prefix: c.Prefix, ScopeType: c.ScopeType}, path)} {
				mustExec(t, s, "create table if not exists tenant (id text primary key)")
				if found, err := s.Integrity(t.Context()); err != nil || len(found) > 0 {
					t.Errorf("Integrity: %q, %v; want nothing", found, err)
				}
			}
		})
	}
}

func golangMigrate(t *testing.T, c Config, path string) {
	t.Helper()
	ours, err := Migrations(c.options())
	must(t, err)
	files, err := iofs.New(ours, ".")
	must(t, err)
	name, driver := kit.Driver(t, path)
	m, err := gomigrate.NewWithInstance("iofs", files, name, driver)
	must(t, err)
	must(t, m.Up())
	must(t, errors.Join(m.Close()))
}
