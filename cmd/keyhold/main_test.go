package main

import (
	"crypto/fips140"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/rogpeppe/go-internal/testscript"
	_ "modernc.org/sqlite"

	"keyhold.example/keyhold/keyholdtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keyhold": main})
}

// realFile is the size of the file $BIG, which each script has: the beginning of this test's own program.
const realFile = 5_000_000

// kinds are the databases that the scripts run on, each with what gives a script the address of a new one.
var kinds = map[string]func(t testing.TB, name string) string{
	"sqlite":   func(_ testing.TB, name string) string { return "sqlite:" + name + ".db" },
	"postgres": func(t testing.TB, _ string) string { return keyholdtest.Postgres(t) },
}

// theTest is the key of a script's test.
type theTest struct{}

// TestScripts runs the scripts of testdata/script on each kind of database, and those of a folder named after a kind
// on that alone. The conditions [sqlite] and [postgres] say which it is.
func TestScripts(t *testing.T) {
	for kind, address := range kinds {
		t.Run(kind, func(t *testing.T) {
			var files []string
			for _, pattern := range []string{"testdata/script/*.txtar", "testdata/script/" + kind + "/*.txtar"} {
				found, err := filepath.Glob(pattern)
				if err != nil || len(found) == 0 {
					t.Fatalf("%s: %v, %v", pattern, found, err)
				}
				files = append(files, found...)
			}
			testscript.Run(t, params(kind, address, files))
		})
	}
}

func params(kind string, address func(t testing.TB, name string) string, files []string) testscript.Params {
	return testscript.Params{
		Files:               files,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"KEYHOLD_DB", "KEYHOLD_ROOT", "KEYHOLD_OLD_ROOT", "KEYHOLD_PIN"} {
				env.Setenv(name, "")
			}
			env.Values[theTest{}] = env.T()
			big := filepath.Join(env.WorkDir, "big")
			env.Setenv("BIG", big)
			return copyPart(big, realFile)
		},
		Condition: func(cond string) (bool, error) {
			if cond == "fips" { // age has no approved algorithm
				return fips140.Enforced(), nil
			}
			if _, known := kinds[cond]; !known {
				return false, fmt.Errorf("there are no databases %q", cond)
			}
			return cond == kind, nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"newdb": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: newdb VARIABLE")
				}
				ts.Setenv(args[0], address(ts.Value(theTest{}).(testing.TB), strings.ToLower(args[0])))
			},
			"oldkms":   oldDatabases(kind, address),
			"olddek":   oldDEKs,
			"parts":    parts,
			"capture":  capture,
			"exits":    exits,
			"sql":      runSQL,
			"locked":   locked,
			"cut":      cut,
			"flip":     flip,
			"identity": identity,
			"reveal":   reveal,
		},
	}
}

// exits CODE PROGRAM ARG...: runs the program and checks its exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit code %d, not %d; standard error: %s", code, want, ts.ReadFile("stderr"))
	}
}

// sql ADDRESS STATEMENT: changes a database by hand. The name of a file is one of SQLite's.
func runSQL(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sql ADDRESS STATEMENT")
	}
	db := openSQL(ts, args[0])
	defer db.Close()
	_, err := db.Exec(args[1])
	ts.Check(err)
}

func openSQL(ts *testscript.TestScript, address string) *sql.DB {
	driver := "pgx"
	if !strings.HasPrefix(address, "postgres:") {
		driver, address = "sqlite", ts.MkAbs(strings.TrimPrefix(address, "sqlite:"))
	}
	db, err := sql.Open(driver, address)
	ts.Check(err)
	return db
}

// locked ADDRESS STATEMENT: does it in a transaction that stays open until the script ends.
func locked(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: locked ADDRESS STATEMENT")
	}
	db := openSQL(ts, args[0])
	tx, err := db.Begin()
	ts.Check(err)
	_, err = tx.Exec(args[1])
	ts.Check(err)
	ts.Defer(func() {
		if err := errors.Join(tx.Rollback(), db.Close()); err != nil {
			ts.Logf("locked: %v", err)
		}
	})
}

// parts URL: sets HOST, PORT, USER and DATABASE to those of PostgreSQL's address.
func parts(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: parts URL")
	}
	c, err := pgx.ParseConfig(args[0])
	ts.Check(err)
	for name, value := range map[string]string{
		"HOST": c.Host, "PORT": strconv.Itoa(int(c.Port)), "USER": c.User, "DATABASE": c.Database,
	} {
		ts.Setenv(name, value)
	}
}

// capture VARIABLE PATTERN: sets the variable to what the pattern's group matches in standard output, which has one
// such line.
func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture VARIABLE PATTERN")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	found := pattern.FindAllStringSubmatch(ts.ReadFile("stdout"), -1)
	if len(found) != 1 || len(found[0]) != 2 {
		ts.Fatalf("%s matches %q", args[1], found)
	}
	ts.Setenv(args[0], found[0][1])
}

// cut FROM TO BYTES: copies a file without its last bytes.
func cut(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: cut FROM TO BYTES")
	}
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	b := []byte(ts.ReadFile(args[0]))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b[:len(b)-n], 0o600))
}

// flip FROM TO OFFSET: copies a file with one bit of one byte changed.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: flip FROM TO OFFSET")
	}
	at, err := strconv.Atoi(args[2])
	ts.Check(err)
	b := []byte(ts.ReadFile(args[0]))
	b[at] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b, 0o600))
}

// copyPart writes the first bytes of this test's program to a file.
func copyPart(path string, size int64) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, err := os.Open(self)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o700)
	if err != nil {
		return err
	}
	_, err = io.CopyN(out, in, size)
	if errors.Is(err, io.EOF) && size == wholeFile {
		err = nil
	}
	return errors.Join(err, out.Close())
}

// wholeFile as a size is more than any file has.
const wholeFile = 1 << 62
