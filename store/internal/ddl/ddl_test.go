package ddl

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func TestSQLThatMeansTheSameIsEqual(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"create table T (a text)", "CREATE  TABLE t\r\n(\"a\" text) -- ;", true},
		{"a /* ' */ b", "a b", true},
		{"a /* b", "a", true},
		{"'a  b'", "'a b'", false},
		{"'A'", "'a'", false},
		{"'a''b'", "'a'", false},
		{"'a''b'", "'a' 'b'", false},
		{`"C"`, "c", false},
		{`"a b"`, "a b", false},
		{`"a""b"`, `"a"`, false},
		{"ab", "a b", false},
		{"a <> b", "a<>b", true},
		{"$$ select 1; -- one $$", "$x$\nSELECT 1;$x$", true},
		{"$$ select 1 $$", "$$ select 2 $$", false},
		{"$$ a $$ b", "$$ a b $$", false},
		{"$1", "$2", false},
		{"é", "É", false},
		{"'open", "'open'", false},
		{"\xff", "\xfe", false},
	} {
		if same := Scan(c.a).Equal(Scan(c.b)); same != c.same {
			t.Errorf("%q and %q: equal %v, want %v", c.a, c.b, same, c.same)
		}
	}
}

// TestStringIsTheSameSQL matters where an expression is given to a server.
func TestStringIsTheSameSQL(t *testing.T) {
	const text = "p = btrim(p, U&'\\0009' -- tab\n  '\\000a') and a <> 1.5 and b::text !~ '[a-z]'"
	const want = "p\n=\nbtrim(p,\nU&'\\0009'\n'\\000a')\nand\na\n<>\n1.5\nand\nb::text\n!~\n'[a-z]'"
	if got := Scan(text).String(); got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestReadKnowsEveryStatementOfAMigration(t *testing.T) {
	schema, err := Read(fstest.MapFS{
		"0002_b.up.sql": {Data: []byte(`alter table s.t add constraint t_fk foreign key (a, b) references s.u (a, b);
			create trigger t_tr before update of a, b on s.t when old.a is null begin
				select case when 1 then 2 end; select raise(abort, 'end; begin');
			end;
			create constraint trigger t_end after update on s.t deferrable for each row execute function s.f();
			insert into s.t values (1, 2)`)},
		"0001_a.up.sql": {Data: []byte(`create table s.t (
				a text default ('a, b'), -- not this: c text,
				b numeric(1, 2),
				constraint t_c check (a in (1, 2))
			) strict;
			create unique index i on s.t (a) where b = 1;
			create function s.f(a text, b text) returns text language sql as $$ select a from s.t; $$;`)},
	}, "s")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for o, definition := range schema {
		got[o.String()] = strings.ReplaceAll(definition.String(), "\n", " ")
	}
	want := map[string]string{
		"table t":                    "strict",
		"column a of table t":        "text default ('a, b')",
		"column b of table t":        "numeric(1, 2)",
		"constraint t_c of table t":  "check (a in (1, 2))",
		"constraint t_fk of table t": "foreign key (a, b) references u (a, b)",
		"index i of table t":         "create unique index i on t (a) where b = 1",
		"trigger t_tr of table t": "create trigger t_tr before update of a, b on t when old.a is null begin " +
			"select case when 1 then 2 end; select raise(abort, 'end; begin'); end",
		"trigger t_end of table t":   "create constraint trigger t_end after update on t deferrable for each row execute function f()",
		"function f(a text, b text)": "create function f(a text, b text) returns text language sql as $$ select a from s.t; $$",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestReadRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, text := range []string{
		"drop table t", "create view v as select 1", "alter table t drop column c", "create table t", "create table t (a text",
		"create table t (a text,,)", "create index i", "create trigger on", "create function f", "create function (a text)", "x",
	} {
		if schema, err := Read(fstest.MapFS{"0001_a.up.sql": {Data: []byte(text)}}, ""); err == nil {
			t.Errorf("%s: %v; want an error", text, schema)
		}
	}
}

func TestCompareTellsOfAMissingTableOnce(t *testing.T) {
	schema := func(statements ...string) Schema {
		s := Schema{}
		for _, st := range statements {
			if err := s.Add(Scan(st)); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	want := schema("create table t (a text, b text)", "create index i on t (a)", "create table u (a text, b text)", "create index j on u (a)",
		"create function f() returns text")
	have := schema("create table u (b bytea, c text)", "create index j on u (a)", "create table v (a text)")
	var got []string
	for _, d := range want.Compare(have, func(_ Object, want, have Tokens) bool { return want.Equal(have) }) {
		got = append(got, d.String())
	}
	const missing, changed = " is missing: make it again", " is not what the migrations make: change it back"
	says := []string{"table t" + missing, "column a of table u" + missing, "column b of table u" + changed, "function f()" + missing}
	if !slices.EqualFunc(got, says, strings.HasPrefix) {
		t.Errorf("%q; want %q", got, says)
	}
}

func FuzzScan(f *testing.F) {
	for _, text := range []string{"a 'b''c' \"d\"", "$x$ a $x$ $1 $$", "-- a\n/* b */ c", "'", "\"", "$$", "/*", "é\xff"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tokens := Scan(text)
		if again := Scan(tokens.String()); !again.Equal(tokens) {
			t.Errorf("%q, and again %q", tokens, again)
		}
		for _, st := range split(tokens) {
			_ = Schema{}.Add(st) // never panics
		}
	})
}
