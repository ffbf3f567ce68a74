package pgstore

import (
	"bytes"
	"database/sql"
	"errors"
	"io/fs"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	gomigrate "github.com/golang-migrate/migrate/v4"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

func TestNamesFit(t *testing.T) {
	longest := strings.Repeat("p", migrate.MaxPrefixLen)
	fsys, err := Migrations(migrate.Options{Prefix: longest, ScopeTable: "t", ScopeColumn: "c"})
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

func TestOtherPeoplesTablesAreRefused(t *testing.T) {
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
			s := byOpen(t, Config{}, keyholdtest.Postgres(t))
			mustExec(t, s, c.sql)
			before := dump(t, s)
			_, statusErr := s.MigrationStatus(t.Context())
			for what, err := range map[string]error{
				"CheckSchema": s.CheckSchema(t.Context()), "Migrate": s.Migrate(t.Context()), "MigrationStatus": statusErr,
			} {
				var got *store.SchemaError
				if !errors.As(err, &got) || *got != c.want {
					t.Errorf("%s: %v; want %v", what, err, &c.want)
				}
			}
			if d := cmp.Diff(before, dump(t, s)); d != "" {
				t.Errorf("(-before +after):\n%s", d)
			}
		})
	}
}

func TestAMigrationThatCannotBeDoneLeavesNothing(t *testing.T) {
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	mustExec(t, s, "create view kms_data_key as select 1 as id")
	before := dump(t, s)
	if err := s.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "kms_data_key") {
		t.Errorf("Migrate: %v; want an error that names the table in the way", err)
	}
	if d := cmp.Diff(before, dump(t, s)); d != "" {
		t.Errorf("(-before +after):\n%s", d)
	}
	mustExec(t, s, "drop view kms_data_key")
	must(t, s.Migrate(t.Context()))
}

func TestTheConfiguredScopeTypeHasToBeTheTables(t *testing.T) {
	dsn := keyholdtest.Postgres(t)
	must(t, byOpen(t, Config{ScopeType: migrate.BigInt}, dsn).Migrate(t.Context()))
	s := byOpen(t, Config{}, dsn)
	for what, err := range map[string]error{"CheckSchema": s.CheckSchema(t.Context()), "Migrate": s.Migrate(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "bigint") {
			t.Errorf("%s: %v; want an error that names the type", what, err)
		}
	}
}

func TestMigrationStatusSaysWhatIsApplied(t *testing.T) {
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	for _, applied := range []bool{false, true} {
		list, err := s.MigrationStatus(t.Context())
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

// TestAnApplicationRunsTheMigrationsAmongItsOwn folds the files in after its own first one, renumbered and renamed,
// and runs all with golang-migrate's own driver.
func TestAnApplicationRunsTheMigrationsAmongItsOwn(t *testing.T) {
	ours, err := Migrations(migrate.Options{First: 2, Name: "keys_", ScopeTable: "tenant", ScopeColumn: "id"})
	must(t, err)
	all := fstest.MapFS{
		"0001_tenants.up.sql": {Data: []byte("create table tenant (id text primary key);")},
		"0006_secrets.up.sql": {Data: []byte(`create table secret (
			tenant text references tenant (id) on delete cascade,
			key_id text references kms_data_key_version (private_id) on delete no action deferrable initially deferred);`)},
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
	dsn := keyholdtest.Postgres(t)
	db, err := sql.Open("pgx", dsn)
	must(t, err)
	driver, err := migratepgx.WithInstance(db, &migratepgx.Config{})
	must(t, err)
	files, err := iofs.New(all, ".")
	must(t, err)
	app, err := gomigrate.NewWithInstance("iofs", files, "pgx", driver)
	must(t, err)
	must(t, app.Up())
	sourceErr, driverErr := app.Close()
	must(t, errors.Join(sourceErr, driverErr))

	s := byOpen(t, Config{ScopeTable: "tenant", ScopeColumn: "id"}, dsn)
	must(t, s.CheckSchema(t.Context()))
	before := dump(t, s)
	must(t, s.Migrate(t.Context()))
	if d := cmp.Diff(before, dump(t, s)); d != "" {
		t.Errorf("Migrate after the application's own (-before +after):\n%s", d)
	}
	list, err := s.MigrationStatus(t.Context())
	if err != nil || len(list) != 4 || !list[0].Applied || !list[3].Applied {
		t.Errorf("MigrationStatus: %v, %v; want all applied", list, err)
	}
	m := storetest.NewMaker(1)
	must(t, s.Initialize(t.Context(), m.Installation()))
	mustExec(t, s, "insert into tenant values ('a')")
	keys := m.Scope("a", "one")
	_, err = s.Create(t.Context(), m.Inst(), keys)
	must(t, err)
	mustExec(t, s, "insert into secret values ('a', $1)", string(keys[1].Versions[0].ID))
	mustExec(t, s, "delete from tenant")
	storetest.Check(t, s)
}
