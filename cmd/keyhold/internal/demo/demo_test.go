package demo

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
)

// databases are what a demo works in.
var databases = map[string]func(t *testing.T) Config{
	"sqlite": func(*testing.T) Config { return Config{} },
	"postgres": func(t *testing.T) Config {
		t.Helper()
		return Config{Postgres: keyholdtest.Postgres(t), PostgresShown: "postgres://the/database"}
	},
}

func TestRunTellsWhatItDidWithAnyData(t *testing.T) {
	for kind, config := range databases {
		t.Run(kind, func(t *testing.T) { testRunTellsWhatItDid(t, config) })
	}
}

func testRunTellsWhatItDid(t *testing.T, config func(t *testing.T) Config) {
	var every [256]byte
	for i := range every {
		every[i] = byte(i)
	}
	many := []Row{{Scope: "first", Rest: "{}"}}
	for i := range 300 {
		many = append(many, Row{Scope: key.Scope(fmt.Sprintf("tenant %d", i%40)), Secret: strings.Repeat("x", i), Rest: "{}"})
	}
	for _, test := range []struct {
		name string
		rows []Row
		want map[string]map[string]int
	}{
		{"one row", []Row{{Scope: "only", Secret: "s", Rest: "{}"}}, map[string]map[string]int{
			"tenants": {"tenants": 1},
			"seal":    {"rows": 1, "transactions": 1},
			"rotate":  {"data_keys": 1, "root_keys": 1, "rows": 2, "old_rows": 1, "new_rows": 1},
			"rewrap":  {"versions": 2, "rows": 2},
			"tamper":  {"refused": 2},
			"delete":  {},
			"check":   {"findings": 0, "rows": 2, "versions": 4},
		}},
		{"odd names and bytes", []Row{
			{Scope: "rolled back", Secret: string(every[:]), Rest: "{}"},
			{Scope: "rolled back!", Secret: "", Rest: "{}"},
			{Scope: "' or 1=1 --", Secret: "s", Rest: "{}"},
		}, map[string]map[string]int{
			"tenants": {"tenants": 3},
			"seal":    {"rows": 3, "transactions": 1},
			"rotate":  {"data_keys": 3, "root_keys": 1, "rows": 6, "old_rows": 3, "new_rows": 3},
			"rewrap":  {"versions": 2, "rows": 2},
			"tamper":  {"refused": 3},
			"delete":  {"rows": 2, "versions": 2},
			"check":   {"findings": 0, "rows": 4, "versions": 7},
		}},
		{"many tenants", many, map[string]map[string]int{
			"tenants": {"tenants": 41},
			"seal":    {"rows": 301, "transactions": 2},
			"rotate":  {"data_keys": 41, "root_keys": 1, "rows": 342, "old_rows": 301, "new_rows": 41},
			"rewrap":  {"versions": 2, "rows": 9},
			"tamper":  {"refused": 3},
			"delete":  {"rows": 2, "versions": 2},
			"check":   {"findings": 0, "rows": 340, "versions": 121},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var told []Step
			parts := 0
			cfg := config(t)
			cfg.Dir, cfg.Data = t.TempDir(), &Table{Source: "a test", SealColumn: "secret", Rows: test.rows}
			cfg.Step = func(s Step) { told = append(told, s) }
			cfg.Progress = func(_ string, n int) func() {
				parts += n
				return func() { parts-- }
			}
			account, err := Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if cfg.Postgres != "" && account.Database != cfg.PostgresShown {
				t.Errorf("the account is of %s", account.Database)
			}
			if diff := cmp.Diff(account.Steps, told); diff != "" {
				t.Errorf("what was told as it went on is not what the account says:\n%s", diff)
			}
			if parts != 0 {
				t.Errorf("progress ended %d parts early", parts)
			}
			got := map[string]map[string]int{}
			for _, s := range account.Steps {
				if s.Name != "installation" && s.Name != "open" {
					got[s.Name] = s.Counts
				}
				if s.Why == "" || len(s.Did) == 0 {
					t.Errorf("step %s says nothing", s.Name)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRunRefusesADatabaseWithADemoInIt(t *testing.T) {
	for kind, config := range databases {
		t.Run(kind, func(t *testing.T) {
			cfg := config(t)
			cfg.Data = &Table{Rows: []Row{{Scope: "s", Rest: "{}"}}}
			if cfg.Postgres == "" {
				cfg.Database = filepath.Join(t.TempDir(), "app.db")
			}
			cfg.Dir = t.TempDir()
			if _, err := Run(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			cfg.Dir = t.TempDir()
			if _, err := Run(t.Context(), cfg); !errors.Is(err, ErrExists) {
				t.Errorf("the second time: %v", err)
			}
			if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
				t.Errorf("it left %v, %v", left, err)
			}
		})
	}
}

func TestRunStopsWhereSomethingIsNotAsItShouldBe(t *testing.T) {
	// What the application's own code did wrong has to show: here the row is sealed for one column and opened for
	// another.
	data := &Table{SealColumn: "secret", Rows: []Row{{Scope: "s", Secret: "x", Rest: "{}"}}}
	cfg := Config{Dir: t.TempDir(), Data: data}
	cfg.Step = func(s Step) {
		if s.Name == "seal" {
			data.SealColumn = "another"
		}
	}
	account, err := Run(t.Context(), cfg)
	if err == nil || !strings.HasPrefix(err.Error(), "demo, step open: row 1: ") {
		t.Errorf("error %v", err)
	}
	if n := len(account.Steps); n != 3 {
		t.Errorf("%d steps are told", n)
	}
}

func TestReadTakesTheWholeOfEveryField(t *testing.T) {
	var file bytes.Buffer
	w := csv.NewWriter(&file)
	records := [][]string{{"a", "tenant", "b", "secret"}, {"1,2", "t 1", "\"", "line 1\nline 2"}, {"", "Zoë", "ü", ""}}
	if err := w.WriteAll(records); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&file, "file.csv", "tenant", "secret")
	if err != nil {
		t.Fatal(err)
	}
	want := &Table{Source: "file.csv", SealColumn: "secret", Rows: []Row{
		{"t 1", "line 1\nline 2", `{"a":"1,2","b":"\""}`},
		{"Zoë", "", `{"a":"","b":"ü"}`},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadSaysWhichColumnAndRowIsWrong(t *testing.T) {
	for _, test := range []struct{ name, file, want string }{
		{"a mark before a quoted name", "\ufeff\"tenant\",secret\nt,s\n", ""},
		{"a mark and no more", "\ufeff", "file.csv is empty: a header and at least one row are needed"},
		{"two columns to seal", "tenant,secret,secret\nt,s,s\n", `file.csv has two columns "secret"`},
		{"two other columns", "tenant,note,secret,note\nt,1,s,2\n", `file.csv has two columns "note"`},
		{"two columns without a name", "tenant,,secret,\nt,1,s,2\n", `file.csv has two columns ""`},
		{"Latin 1 in a name", "tenant,secret,gr\xfc\xdfe\nt,s,x\n", "file.csv: the name of column 3 is not valid UTF-8"},
		{"Latin 1 in the tenant", "tenant,secret\nt,s\nB\xfccher,s\n", `file.csv, line 3, column "tenant" is not valid UTF-8`},
		{"Latin 1 in the secret", "tenant,secret\nt,\xff\n", `file.csv, line 2, column "secret" is not valid UTF-8`},
		{"Latin 1 elsewhere", "tenant,secret,note\nt,s,\xe4\n", `file.csv, line 2, column "note" is not valid UTF-8`},
		{"UTF-16", "\xff\xfet\x00", "file.csv: the name of column 1 is not valid UTF-8"},
	} {
		_, err := Read(strings.NewReader(test.file), "file.csv", "tenant", "secret")
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: %q, not %q", test.name, got, test.want)
		}
	}
}

func TestReadRefusesMoreRowsThanTheLimit(t *testing.T) {
	for rows, ok := range map[int]bool{MaxRows: true, MaxRows + 1: false} {
		_, err := Read(strings.NewReader("tenant,secret\n"+strings.Repeat("t,s\n", rows)), "file.csv", "tenant", "secret")
		if (err == nil) != ok {
			t.Errorf("%d rows: %v", rows, err)
		}
	}
}

func TestTheBundledDataIsAThousandRowsOfEightTenants(t *testing.T) {
	data, err := Bundled()
	if err != nil {
		t.Fatal(err)
	}
	tenants := map[key.Scope]bool{}
	for i, row := range data.Rows {
		tenants[row.Scope] = true
		// No country has the code ZZ.
		if !strings.HasPrefix(row.Secret, "ZZ") || !strings.Contains(row.Rest, ".example\"") {
			t.Errorf("row %d could be of somebody real: %v", i+1, row)
		}
	}
	if len(data.Rows) != 1000 || len(tenants) != 8 {
		t.Errorf("%d rows of %d tenants", len(data.Rows), len(tenants))
	}
}
