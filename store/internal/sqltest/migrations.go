package sqltest

import (
	"bytes"
	"errors"
	"io/fs"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	gomigrate "github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

var defaults migrate.Options

// TestMigrations is about the migration files and who runs them.
func (db Database) TestMigrations(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]func(*testing.T){
		"names fit PostgreSQL":                            db.namesFit,
		"other people's tables are refused":               db.otherPeoplesTables,
		"one that cannot be done leaves nothing":          db.inTheWay,
		"the configured scope type has to be the tables'": db.scopeType,
		"status says what is applied":                     db.status,
		"an application runs them among its own":          db.amongTheApplications,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t)
		})
	}
}

func (db Database) namesFit(t *testing.T) {
	longest := strings.Repeat("p", migrate.MaxPrefixLen)
	fsys, err := db.Migrations(migrate.Options{Prefix: longest, ScopeTable: "t", ScopeColumn: "c"})
	must(t, err)
	files, err := migrate.List(fsys)
	must(t, err)
	seen := map[string]bool{}
	for _, f := range files {
		text, err := fs.ReadFile(fsys, f.File)
		must(t, err)
		for _, name := range regexp.MustCompile(longest+`\w*`).FindAllString(string(text), -1) {
			seen[name] = true
			if len(name) > 63 {
				t.Errorf("%s: %s has %d bytes", f.File, name, len(name))
			}
		}
		if i := bytes.IndexAny(text, "{}"); i >= 0 {
			t.Errorf("%s: something is not rendered: %.40s", f.File, text[i:])
		}
	}
	if len(seen) < 100 {
		t.Errorf("only %d names found", len(seen))
	}
}

func (db Database) otherPeoplesTables(t *testing.T) {
	for name, c := range map[string]struct {
		sql  string
		want store.SchemaError
	}{
		"newer": {
			"create table kms_schema_version (only_row integer, version integer); insert into kms_schema_version values (1, 2)",
			store.SchemaError{Prefix: "kms", Have: 2, Want: 1},
		},
		"another system's": {
			"create table kms_schema_version (version text primary key); insert into kms_schema_version values ('v0.0.2')",
			store.SchemaError{Prefix: "kms", Want: 1, Foreign: "v0.0.2"},
		},
		"another system's that looks like a number": {
			"create table kms_schema_version (version text primary key); insert into kms_schema_version values ('1')",
			store.SchemaError{Prefix: "kms", Want: 1, Foreign: "1"},
		},
		"another system's that says no version yet": {
			"create table kms_schema_version (version text primary key)",
			store.SchemaError{Prefix: "kms", Want: 1, Foreign: "none"},
		},
		"another system's that calls its version otherwise": {
			"create table kms_schema_version (number integer); insert into kms_schema_version values (1)",
			store.SchemaError{Prefix: "kms", Want: 1, Foreign: "none"},
		},
		"another system's without a version": {
			"create table kms_data_key_version (id integer)",
			store.SchemaError{Prefix: "kms", Want: 1, Foreign: "none"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := db.Open(t, defaults, db.Fresh(t))
			db.Exec(t, s, c.sql)
			before := db.Dump(t, s)
			_, statusErr := db.Status(t.Context(), s)
			for what, err := range map[string]error{
				"CheckSchema": s.CheckSchema(t.Context()), "Migrate": s.Migrate(t.Context()), "MigrationStatus": statusErr,
			} {
				var got *store.SchemaError
				if !errors.As(err, &got) || *got != c.want {
					t.Errorf("%s: %v; want %v", what, err, &c.want)
				}
			}
			if d := cmp.Diff(before, db.Dump(t, s)); d != "" {
				t.Errorf("(-before +after):\n%s", d)
			}
		})
	}
}

func (db Database) inTheWay(t *testing.T) {
	s := db.Open(t, defaults, db.Fresh(t))
	db.Exec(t, s, "create view kms_data_key as select 1 as id")
	before := db.Dump(t, s)
	if err := s.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "kms_data_key") {
		t.Errorf("Migrate: %v; want an error that names what is in the way", err)
	}
	if d := cmp.Diff(before, db.Dump(t, s)); d != "" {
		t.Errorf("(-before +after):\n%s", d)
	}
	db.Exec(t, s, "drop view kms_data_key")
	must(t, s.Migrate(t.Context()))
}

func (db Database) scopeType(t *testing.T) {
	address := db.Fresh(t)
	must(t, db.Open(t, migrate.Options{ScopeType: migrate.BigInt}, address).Migrate(t.Context()))
	s := db.Open(t, defaults, address)
	for what, err := range map[string]error{"CheckSchema": s.CheckSchema(t.Context()), "Migrate": s.Migrate(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "bigint") {
			t.Errorf("%s: %v; want an error that names the type", what, err)
		}
	}
}

func (db Database) status(t *testing.T) {
	s := db.Open(t, defaults, db.Fresh(t))
	for _, applied := range []bool{false, true} {
		list, err := db.Status(t.Context(), s)
		must(t, err)
		want := []Migration{
			{1, "installation", applied}, {2, "root_keys", applied}, {3, "data_keys", applied}, {4, "schema_version_1", applied},
		}
		if d := cmp.Diff(want, list); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		must(t, s.Migrate(t.Context()))
	}
}

// amongTheApplications folds the files in after the application's first one, under another prefix, renumbered and
// renamed, and runs all with golang-migrate's own driver.
func (db Database) amongTheApplications(t *testing.T) {
	o := migrate.Options{Prefix: "app_keys", First: 2, Name: "keys_", ScopeTable: "tenant", ScopeColumn: "id"}
	ours, err := db.Migrations(o)
	must(t, err)
	all := fstest.MapFS{
		"0001_tenants.up.sql": {Data: []byte("create table tenant (id text primary key);")},
		"0006_secrets.up.sql": {Data: []byte(`create table secret (
			tenant text references tenant (id) on delete cascade,
			key_id text references app_keys_data_key_version (private_id) on delete no action deferrable initially deferred);`)},
	}
	must(t, fs.WalkDir(ours, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(ours, path)
		all[path] = &fstest.MapFile{Data: text}
		return err
	}))
	if len(all) != 6 || all["0002_keys_installation.up.sql"] == nil || all["0005_keys_schema_version_1.up.sql"] == nil {
		t.Fatalf("the files are %v", all)
	}
	address := db.Fresh(t)
	name, driver := db.Driver(t, address)
	files, err := iofs.New(all, ".")
	must(t, err)
	app, err := gomigrate.NewWithInstance("iofs", files, name, driver)
	must(t, err)
	must(t, app.Up())
	if version, dirty, err := app.Version(); version != 6 || dirty || err != nil {
		t.Errorf("the application's own bookkeeping: %d, dirty %v, %v; want 6", version, dirty, err)
	}
	must(t, errors.Join(app.Close()))

	s := db.Open(t, o, address)
	must(t, s.CheckSchema(t.Context()))
	before := db.Dump(t, s)
	must(t, s.Migrate(t.Context()))
	if d := cmp.Diff(before, db.Dump(t, s)); d != "" {
		t.Errorf("Migrate after the application's own (-before +after):\n%s", d)
	}
	list, err := db.Status(t.Context(), s)
	if err != nil || len(list) != 4 || !list[0].Applied || !list[3].Applied {
		t.Errorf("MigrationStatus: %v, %v; want all applied", list, err)
	}

	m := storetest.NewMaker(1)
	must(t, s.Initialize(t.Context(), m.Installation()))
	if _, err := s.Create(t.Context(), m.Inst(), m.Scope("a", "one")); !errors.Is(err, store.ErrForeignKey) {
		t.Errorf("Create of a scope that no tenant has: %v; want %v", err, store.ErrForeignKey)
	}
	db.Exec(t, s, "insert into tenant values ('a')")
	keys := m.Scope("a", "one")
	_, err = s.Create(t.Context(), m.Inst(), keys)
	must(t, err)
	db.Exec(t, s, "insert into secret values ('a', '"+string(keys[1].Versions[0].ID)+"')")
	db.Exec(t, s, "delete from tenant")
	if _, err := s.Scope(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after the tenant is deleted: %v; want %v", err, store.ErrNotFound)
	}
	storetest.Check(t, s)
}
