package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"keyhold.example/keyhold/cmd/keyhold/internal/demo"
	"keyhold.example/keyhold/migrate"
)

// slow is how long something takes before a progress bar is shown for it.
const slow = 500 * time.Millisecond

// demoFlags are the flags of the command.
type demoFlags struct {
	scopeColumn, sealColumn, dir string
}

func (a *app) demoCommand() *cobra.Command {
	var f demoFlags
	c := &cobra.Command{
		Use:   "demo [FILE.csv --scope-column C --seal-column S]",
		Short: "Walk through the whole life of a key, on real data, in seconds",
		Long: `Shows on a real database what an application does with keyhold: makes an installation, tables and tenants with their keys,
seals a column, opens it, rotates, rewraps, tampers, deletes a tenant, and checks everything. It says what it did, how often, how
long it took and why it matters, and leaves the files for the other commands to explore.

The data is a list of 1000 invented customers, or FILE.csv: the rows are sealed by tenant (--scope-column), one column of
each (--seal-column). The files are a database demo.db and a root root.key in a new folder keyhold-demo, or in --dir. It
ignores KEYHOLD_DB, KEYHOLD_ROOT and KEYHOLD_PIN.

With --db it works in that database: on PostgreSQL in a schema of its own, keyhold_demo, on SQLite in tables that begin with
khdemo_. It touches nothing else, and refuses if there are such tables. What it made stays; on PostgreSQL
"drop schema keyhold_demo cascade" removes it.`,
		Args: args("[FILE.csv]"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runDemo(cmd, args, &f) },
	}
	c.Flags().StringVar(&f.scopeColumn, "scope-column", "", "the column of FILE.csv that names the tenant")
	c.Flags().StringVar(&f.sealColumn, "seal-column", "", "the column of FILE.csv to seal")
	c.Flags().StringVar(&f.dir, "dir", "", "the folder for the files (default a new one, keyhold-demo)")
	return c
}

func (a *app) runDemo(cmd *cobra.Command, args []string, f *demoFlags) error {
	for _, flag := range []string{"root", "pin", "prefix", "schema"} {
		if cmd.Flags().Changed(flag) {
			return usageError("demo makes an installation of its own, and takes no --"+flag, "")
		}
	}
	var where address
	if a.db != "" {
		var err error
		if where, err = parseAddress(a.db); err != nil {
			return err
		}
	}
	data, err := demoData(args, f)
	if err != nil {
		return err
	}
	dir, made, err := demoDir(f.dir)
	if err != nil {
		return err
	}
	// What may be said of the database is about this one, whatever the environment names.
	if a.db == "" {
		a.db = "sqlite:" + filepath.Join(dir, demo.File)
	}
	account, err := demo.Run(cmd.Context(), demo.Config{
		Dir: dir, Database: where.path, Postgres: where.dsn, PostgresShown: where.shown,
		Timeout: a.timeout, Data: data, Progress: a.progress(), Step: a.demoStep(data),
	})
	if err != nil && made {
		_ = os.Remove(dir) // which does nothing if there is something in it
	}
	switch {
	case errors.Is(err, demo.ErrExists):
		hint := "choose another --dir or --db"
		if account.Schema != "" {
			hint = "choose another --db, or remove what is there: drop schema " + account.Schema + " cascade"
		}
		return failed("exists",
			"a demo was made in "+account.Database+" already, or tables with its names are there: nothing was changed", hint)
	case errors.Is(err, fs.ErrExist):
		return failed("exists", account.Root+" is there already, and was not touched", "choose another --dir")
	case err != nil:
		return err
	}
	commands := exploring(account)
	if account.Schema != "" && !where.whole {
		a.say("the commands leave out the password, or what else may be secret in the address: PGPASSWORD or the password file can have a password")
	}
	if a.json {
		return writeError(encode(a.out, struct {
			*demo.Account
			Explore []string `json:"explore"`
		}{account, commands}))
	}
	text := fmt.Sprintf("\nDone in %.1f s. To explore what is left:\n\n  %s\n", account.Milliseconds/1000, strings.Join(commands, "\n  "))
	if account.Schema != "" {
		text += "\nTo remove it from the database, with all its keys: drop schema " + account.Schema + " cascade\n"
	}
	return a.write([]byte(text))
}

// demoData reads the data that the arguments name.
func demoData(args []string, f *demoFlags) (*demo.Table, error) {
	given := f.scopeColumn != "" || f.sealColumn != ""
	switch {
	case f.scopeColumn != "" && f.scopeColumn == f.sealColumn:
		return nil, usageError("--scope-column and --seal-column are the same", "the tenant's name stays readable, as rows are found by it")
	case len(args) == 0 && given:
		return nil, usageError("--scope-column and --seal-column are columns of a FILE.csv, and none is given", "")
	case len(args) == 0:
		return demo.Bundled()
	case f.scopeColumn == "" || f.sealColumn == "":
		return nil, usageError("a FILE.csv needs --scope-column and --seal-column", "")
	}
	file, err := os.Open(args[0])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failed("input", "there is no file "+args[0], "")
	}
	if err != nil {
		return nil, failed("input", "cannot read "+args[0]+": "+pathReason(err), "")
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.IsDir() {
		return nil, failed("input", args[0]+" is a folder, not a CSV file", "")
	}
	data, err := demo.Read(file, args[0], f.scopeColumn, f.sealColumn)
	if err != nil {
		return nil, failed("input", err.Error(), "")
	}
	return data, nil
}

// demoDir makes the folder for a demo's files: the given one if it is not there, or one with a new name.
func demoDir(given string) (dir string, made bool, err error) {
	if given != "" {
		_, err := os.Stat(given)
		made := errors.Is(err, fs.ErrNotExist)
		if err := os.MkdirAll(given, 0o700); err != nil {
			return "", false, failed("output", "cannot make the folder "+given+": "+pathReason(err), "")
		}
		return given, made, nil
	}
	for n := 1; ; n++ {
		dir := "keyhold-demo"
		if n > 1 {
			dir = fmt.Sprintf("keyhold-demo-%d", n)
		}
		err := os.Mkdir(dir, 0o700)
		switch {
		case err == nil:
			return dir, true, nil
		case !errors.Is(err, fs.ErrExist):
			return "", false, failed("output", "cannot make the folder "+dir+": "+pathReason(err), "--dir chooses another")
		}
	}
}

// demoStep prints the account as it goes on.
func (a *app) demoStep(data *demo.Table) func(demo.Step) {
	n := 0
	return func(step demo.Step) {
		if a.json {
			return
		}
		n++
		text := ""
		if n == 1 {
			text = fmt.Sprintf("The whole life of a key, with %s.\n", data.Source)
		}
		text += fmt.Sprintf("\n%d  %s  %.0f ms\n", n, step.Name, step.Milliseconds)
		for _, did := range step.Did {
			text += "   " + did + "\n"
		}
		text += "   Why: " + step.Why + "\n"
		_ = a.write([]byte(text)) // the last write says whether output works
	}
}

// progress shows a bar on a terminal for what takes long, and returns nil where there is no terminal.
func (a *app) progress() func(what string, parts int) func() {
	file, ok := a.err.(*os.File)
	if !ok || a.json || !term.IsTerminal(int(file.Fd())) {
		return nil
	}
	return func(what string, parts int) func() {
		start, done := time.Now(), 0
		var bar *progressbar.ProgressBar
		return func() {
			done++
			if bar == nil && time.Since(start) > slow && done < parts {
				bar = progressbar.NewOptions(parts, progressbar.OptionSetWriter(file), progressbar.OptionSetDescription(what),
					progressbar.OptionClearOnFinish(), progressbar.OptionShowCount(), progressbar.OptionThrottle(100*time.Millisecond))
			}
			if bar != nil {
				_ = bar.Set(done) // a bar that cannot be drawn is no reason to stop
			}
		}
	}
}

// exploring is commands to go on with, complete with their flags.
func exploring(account *demo.Account) []string {
	program := programName()
	// The pin too, as the environment may have that of another installation.
	db := account.Database
	if account.Schema == "" {
		db = "sqlite:" + db
	}
	flags := " --db " + shellQuote(db) + " --root " + shellQuote("file:"+account.Root) + " --pin " + account.Pin
	if account.Prefix != migrate.DefaultPrefix {
		flags += " --prefix " + account.Prefix
	}
	if account.Schema != "" {
		flags += " --schema " + account.Schema
	}
	return []string{
		program + " status" + flags,
		program + " key list" + flags + " " + argument(account.Example),
		"echo hello | " + program + " seal --scope " + shellQuote(account.Example) + " --purpose " + string(demo.Purpose) + flags +
			" | " + program + " open" + flags,
	}
}

// programName is how this program can be run again.
func programName() string {
	path, err := os.Executable()
	if err == nil && strings.Contains(path, "go-build") {
		// Of "go run" nothing is left that could be.
		if _, err := os.Stat(filepath.Join("cmd", "keyhold", "main.go")); err == nil {
			return "go run ./cmd/keyhold"
		}
		return "keyhold"
	}
	if filepath.Base(os.Args[0]) != os.Args[0] {
		return shellQuote(os.Args[0])
	}
	return "keyhold"
}
