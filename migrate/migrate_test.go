package migrate

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/golang-migrate/migrate/v4/database"
	"github.com/google/go-cmp/cmp"
)

var source = Source{
	Files: fstest.MapFS{
		"0001_one.up.sql": {Data: []byte("create table {prefix}_one (id {scope_type} check ({scope_check}){scope_reference});")},
		"0002_two.up.sql": {Data: []byte("create table {prefix}_two (id {scope_type});")},
	},
	Scope: map[ScopeType]ScopeColumn{
		Text:   {Type: "text", Check: "id <> '{prefix}'"},
		BigInt: {Type: "bigint", Check: "id > 0"},
	},
}

func TestRendering(t *testing.T) {
	for name, c := range map[string]struct {
		options Options
		want    map[string]string
	}{
		"defaults": {
			Options{},
			map[string]string{
				"0001_one.up.sql": "create table kms_one (id text check (id <> '{prefix}'));",
				"0002_two.up.sql": "create table kms_two (id text);",
			},
		},
		"everything else": {
			Options{Prefix: "a1_b", ScopeType: BigInt, ScopeTable: `my "t"`, ScopeColumn: "{prefix}", First: 12000, Name: "keys_"},
			map[string]string{
				"12000_keys_one.up.sql": "create table a1_b_one (id bigint check (id > 0),\n" +
					"    constraint a1_b_root_key_scope_id_fkey foreign key (scope_id)\n" +
					`        references "my ""t""" ("{prefix}") on delete cascade on update cascade);`,
				"12001_keys_two.up.sql": "create table a1_b_two (id bigint);",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			fsys, err := FS(source, c.options)
			if err != nil {
				t.Fatal(err)
			}
			files, err := List(fsys)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, f := range files {
				text, err := fs.ReadFile(fsys, f.File)
				if err != nil {
					t.Fatal(err)
				}
				got[f.File] = string(text)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestRenderingOfSchemas(t *testing.T) {
	src := source
	src.Schemas = true
	src.Files = fstest.MapFS{"0001_a.up.sql": {Data: []byte("create function {schema}{prefix}_a() {function_options}as 'b';")}}
	for schema, want := range map[string]string{
		"":           "create function kms_a() set search_path from current as 'b';",
		`the "keys"`: `create function "the ""keys""".kms_a() as 'b';`,
	} {
		fsys, err := FS(src, Options{Schema: schema})
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.ReadFile(fsys, "0001_a.up.sql")
		if err != nil || string(got) != want {
			t.Errorf("schema %q: %s, %v; want %s", schema, got, err, want)
		}
	}
}

func TestOptionsThatCannotBeUsed(t *testing.T) {
	for name, o := range map[string]Options{
		"prefix with a hyphen":         {Prefix: "a-b"},
		"prefix that ends a statement": {Prefix: "a;drop table b"},
		"prefix with a digit first":    {Prefix: "1a"},
		"prefix in upper case":         {Prefix: "A"},
		"prefix that is too long":      {Prefix: strings.Repeat("a", MaxPrefixLen+1)},
		"prefix of SQLite's own":       {Prefix: "sqlite"},
		"prefix that begins like it":   {Prefix: "sqlite_x"},
		"prefix of PostgreSQL's own":   {Prefix: "pg"},
		"another one of PostgreSQL's":  {Prefix: "pg_x"},
		"scope type nobody knows":      {ScopeType: "blob"},
		"scope type the source lacks":  {ScopeType: UUID},
		"scope column alone":           {ScopeColumn: "id"},
		"file name with a slash":       {Name: "../"},
		"file name with a dot":         {Name: "a."},
		"number that is too great":     {First: 1 << 40},
		"schema the source lacks":      {Schema: "keys"},
		"schema that is too long":      {Schema: strings.Repeat("a", maxSchemaLen+1)},
		"schema with a zero byte":      {Schema: "a\x00"},
	} {
		var option *OptionError
		if _, err := FS(source, o); !errors.As(err, &option) || option.Option == "" {
			t.Errorf("%s: %v; want a %T", name, err, option)
		}
	}
}

func TestSourcesThatAreNoMigrations(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"empty":                 {},
		"a stranger":            {"0001_a.up.sql": {}, "README": {}},
		"a way down":            {"0001_a.up.sql": {}, "0001_a.down.sql": {}},
		"a number too great":    {"99999999999_a.up.sql": {}},
		"an unknown word in it": {"0001_a.up.sql": {Data: []byte("{table}")}},
	} {
		if _, err := FS(Source{Files: files, Scope: source.Scope}, Options{}); err == nil {
			t.Errorf("%s was rendered", name)
		}
	}
}

func TestPrefixesThatOnlyResembleTheDatabasesOwnCanBeUsed(t *testing.T) {
	for _, prefix := range []string{"pgx", "p", "sql", "my_sqlite", "a_pg_"} {
		if o, err := (Options{Prefix: prefix}).Checked(); err != nil || o.Prefix != prefix {
			t.Errorf("%s: %q, %v", prefix, o.Prefix, err)
		}
	}
}

// recorder is a database that remembers what was run.
type recorder struct {
	database.Driver

	version int
	ran     []string
	fail    error
}

func (r *recorder) Lock() error                    { return nil }
func (r *recorder) Unlock() error                  { return nil }
func (r *recorder) Close() error                   { return nil }
func (r *recorder) Version() (int, bool, error)    { return r.version, false, nil }
func (r *recorder) SetVersion(v int, _ bool) error { r.version = v; return nil }
func (r *recorder) Run(file io.Reader) error {
	text, err := io.ReadAll(file)
	r.ran = append(r.ran, string(text))
	return errors.Join(err, r.fail)
}

func TestUpRunsWhatIsMissing(t *testing.T) {
	fsys, err := FS(source, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[int]int{database.NilVersion: 2, 1: 1, 2: 0} {
		r := &recorder{version: version}
		if err := Up(fsys, r); err != nil || len(r.ran) != want || r.version != 2 {
			t.Errorf("from version %d: %v, ran %q, now version %d; want %d files and version 2", version, err, r.ran, r.version, want)
		}
	}
}

func TestUpStopsAtAnError(t *testing.T) {
	fsys, err := FS(source, Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{version: database.NilVersion, fail: errors.New("no")}
	if err := Up(fsys, r); !errors.Is(err, r.fail) || len(r.ran) != 1 {
		t.Errorf("%v after %d files; want %v after one", err, len(r.ran), r.fail)
	}
}
