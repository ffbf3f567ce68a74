// Package demo walks through the whole life of a key: with an application's tables, in a real database, on the
// rows of a CSV file.
package demo

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
)

// Purpose is what the data keys of a demo are for.
const Purpose key.Purpose = "records"

// File is the name of the database that a demo makes if it is given none.
const File = "demo.db"

// ErrExists says that the database has tables already that the demo would make. Nothing was changed.
var ErrExists = errors.New("the demo's tables are there already")

// Config is where a demo takes place.
type Config struct {
	Dir string // a folder that is there; the demo makes root.key in it, and must not find one
	// Database is the SQLite file of the user's to work in, where all the demo's tables begin with khdemo_. Empty is a
	// new file demo.db in Dir, with keyhold's usual prefix and an application's usual names.
	Database string
	// Postgres, if not empty, is the address of the PostgreSQL database to work in, where all is in the schema
	// keyhold_demo. The account has PostgresShown in its place, which has no password.
	Postgres, PostgresShown string

	Timeout time.Duration // as [keyhold.Config.Timeout]
	Data    *Table

	Step func(Step) // if not nil, called after each step
	// Progress, if not nil, is called when something begins that has so many parts; what it returns is called after
	// each.
	Progress func(what string, parts int) func()
}

// Account is what a demo did.
type Account struct {
	Database     string  `json:"database"` // the file, or the address
	Root         string  `json:"root"`     // the file
	Schema       string  `json:"schema,omitempty"`
	Prefix       string  `json:"prefix"`
	Pin          string  `json:"pin"`
	Source       string  `json:"source"` // of the rows
	SealColumn   string  `json:"seal_column"`
	Rows         int     `json:"rows"`
	Tenants      int     `json:"tenants"`
	Example      string  `json:"example"` // a scope that is there at the end
	Steps        []Step  `json:"steps"`
	Milliseconds float64 `json:"milliseconds"`
}

// Step is one part of the account.
type Step struct {
	Name         string         `json:"name"`
	Did          []string       `json:"did"`    // what was done and seen, in sentences
	Why          string         `json:"why"`    // it matters
	Counts       map[string]int `json:"counts"` // the numbers in the sentences
	Milliseconds float64        `json:"milliseconds"`
}

// walk is a demo under way.
type walk struct {
	Config
	account *Account
	names   names
	at      *place
	keys    *keyhold.Manager
	root    *localroot.Root

	rollback func(*sql.Tx) error // what ends a transaction that is not committed

	tenants []*tenant      // in the order of their first row
	secrets map[int]string // what the sealed column of each row says, by the row's id
}

type tenant struct {
	id   key.Scope
	rows []int // their ids
}

func (t *tenant) ref() key.Ref { return key.Ref{Scope: t.id, Purpose: Purpose} }

// Run does all of it. Whatever does not come out as it should is an error; [ErrExists] if the tables are there
// already. It returns what was done until then.
func Run(ctx context.Context, cfg Config) (*Account, error) { return newWalk(cfg).all(ctx) }

func newWalk(cfg Config) *walk {
	w := &walk{Config: cfg, account: &Account{}, names: embeddedNames, secrets: map[int]string{}, rollback: (*sql.Tx).Rollback}
	switch {
	case w.Postgres != "":
		w.names, w.Database = schemaNames, w.PostgresShown
	case w.Database != "":
		w.names = guestNames
	default:
		w.Database = filepath.Join(w.Dir, File)
	}
	byScope := map[key.Scope]*tenant{}
	for i, row := range cfg.Data.Rows {
		t := byScope[row.Scope]
		if t == nil {
			t = &tenant{id: row.Scope}
			byScope[row.Scope] = t
			w.tenants = append(w.tenants, t)
		}
		t.rows = append(t.rows, i+1)
		w.secrets[i+1] = row.Secret
	}
	*w.account = Account{
		Database: w.Database, Root: filepath.Join(w.Dir, "root.key"), Schema: w.names.schema, Prefix: w.names.prefix, Source: cfg.Data.Source,
		SealColumn: cfg.Data.SealColumn, Rows: len(cfg.Data.Rows), Tenants: len(w.tenants),
	}
	return w
}

func (w *walk) all(ctx context.Context) (*Account, error) {
	start := time.Now()
	err := w.run(ctx)
	w.account.Milliseconds = milliseconds(start)
	return w.account, err
}

func (w *walk) run(ctx context.Context) (err error) {
	defer func() {
		if w.keys != nil {
			err = errors.Join(err, w.keys.Close())
		}
		if w.at != nil {
			err = errors.Join(err, w.at.close())
		}
	}()
	for _, part := range []struct {
		name string
		why  string
		do   func(context.Context, *Step) error
	}{
		{"installation", "The root alone is outside the database: a stolen copy of the database opens nothing without it.", w.install},
		{"tenants", "A tenant never exists without its keys, nor keys without their tenant.", w.createTenants},
		{"seal", "Each value is bound to its tenant, its column and its row.", w.seal},
		{"open", "What was sealed is what comes back.", w.openAll},
		{"rotate", "A key that is used for ever is worth ever more to a thief. Nothing has to be encrypted anew to change it.", w.rotate},
		{"rewrap", "After this the old root key version protects nothing any more, and not one row was touched.", w.rewrap},
		{"tamper", "Whoever can write to the database still cannot make it say something else.", w.tamper},
		{"delete", "Without its keys a tenant's data is gone for good, in every copy that was made of the rows alone. " +
			"Backups of the whole database still hold both, until they expire.", w.deleteTenant},
		{"check", "The same check is there for every day: keyhold doctor.", w.check},
	} {
		step := Step{Name: part.name, Why: part.why, Counts: map[string]int{}}
		start := time.Now()
		if err := part.do(ctx, &step); err != nil {
			return fmt.Errorf("demo, step %s: %w", part.name, err)
		}
		step.Milliseconds = milliseconds(start)
		w.account.Steps = append(w.account.Steps, step)
		if w.Step != nil {
			w.Step(step)
		}
	}
	return nil
}

func milliseconds(since time.Time) float64 {
	return float64(time.Since(since).Microseconds()) / 1000
}

// did adds a sentence to the account.
func (s *Step) did(format string, args ...any) { s.Did = append(s.Did, fmt.Sprintf(format, args...)) }

// progress returns what is to be called after each of so many parts.
func (w *walk) progress(what string, parts int) func() {
	if w.Progress == nil {
		return func() {}
	}
	return w.Progress(what, parts)
}

func (w *walk) install(ctx context.Context, step *Step) error {
	// Before the database is made or changed.
	if _, err := os.Lstat(w.account.Root); err == nil {
		return fmt.Errorf("%s: %w", w.account.Root, fs.ErrExist)
	}
	if err := w.prepare(ctx); err != nil {
		return err
	}
	var err error
	if w.root, err = localroot.Generate(w.account.Root); err != nil {
		return err
	}
	if w.keys, err = w.open(ctx, true); err != nil {
		return err
	}
	w.account.Pin = w.keys.Pin()
	if err := w.names.create(ctx, w.at.db); err != nil {
		return err
	}
	step.did("Made a root in %s, which only you can read.", w.account.Root)
	where := w.Database
	if w.names.schema != "" {
		where = "the schema " + w.names.schema + " of " + where
	}
	step.did("Made keyhold's tables, %s_*, in %s, and an installation key that the root seals.", w.names.prefix, where)
	step.did("Made two tables of an application: %s, and %s with a column for ciphertext. Foreign keys tie keys to tenants, and rows to keys.",
		w.names.tenant, w.names.record)
	return nil
}

// prepare opens the database and makes keyhold's tables, before there is a root: nothing is left of a demo that may
// not make tables.
func (w *walk) prepare(ctx context.Context) (err error) {
	ctx, cancel := w.limited(ctx)
	defer cancel()
	if w.at, err = w.connect(ctx); err != nil {
		return err
	}
	if err := w.names.absent(ctx, w.at.db); err != nil {
		return err
	}
	return w.at.store.Migrate(ctx)
}

// open opens the installation, as each process of the application's does.
func (w *walk) open(ctx context.Context, initialize bool) (*keyhold.Manager, error) {
	return keyhold.New(ctx, w.at.store, keyhold.Config{
		Root: w.root, Purposes: []key.Purpose{Purpose}, Initialize: initialize, Timeout: w.Timeout,
	})
}

func (w *walk) check(ctx context.Context, step *Step) error {
	findings, err := w.keys.Check(ctx)
	if err != nil {
		return err
	}
	if len(findings) > 0 {
		return fmt.Errorf("check found %d things, the first is: %v", len(findings), findings[0])
	}
	versions := 0
	for _, t := range w.tenants {
		keys, err := w.keys.Keys(ctx, t.id)
		if err != nil {
			return err
		}
		for _, k := range keys {
			versions += len(k.Versions)
		}
	}
	rows, err := w.names.countRows(ctx, w.at.db, "")
	if err != nil {
		return err
	}
	step.Counts["findings"], step.Counts["versions"], step.Counts["rows"] = 0, versions, rows
	step.did("Checked every row, every reference and every manifest, and opened all %d key versions: nothing is wrong.", versions)
	step.did("%d rows of %d tenants are left for you to explore.", rows, len(w.tenants))
	w.account.Example = string(w.tenants[0].id)
	return nil
}

// refused checks that something was refused, and for the right reason.
func refused(what string, err, reason error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%s was accepted", what)
	case !errors.Is(err, reason):
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// inTx runs f in a transaction of the application's. It begins with a write, so that it waits for other processes
// there and is not refused later.
func (w *walk) inTx(ctx context.Context, f func(tx *sql.Tx, keys store.Tx) error) error {
	tx, err := w.at.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = w.rollback(tx) }() // after a commit it does nothing
	if err := w.names.lock(ctx, tx); err != nil {
		return err
	}
	if err := f(tx, w.at.inTx(tx)); err != nil {
		return err
	}
	return tx.Commit()
}

// errRollBack ends a transaction that is to be rolled back.
var errRollBack = errors.New("roll back")

// tryTenant makes a tenant with its keys in a transaction of the application's, lets f work with them there, and rolls
// all of it back. Nothing of it must be left then.
func (w *walk) tryTenant(ctx context.Context, id key.Scope, f func(keys store.Tx) error) error {
	err := w.inTx(ctx, func(tx *sql.Tx, keys store.Tx) error {
		if err := w.createTenant(ctx, tx, keys, id); err != nil {
			return err
		}
		if err := f(keys); err != nil {
			return err
		}
		return errRollBack
	})
	if !errors.Is(err, errRollBack) {
		return err
	}
	_, err = w.keys.Keys(ctx, id)
	if err := refused("listing the keys of a tenant that was rolled back", err, keyhold.ErrNotFound); err != nil {
		return err
	}
	there, err := w.names.countTenants(ctx, w.at.db, id)
	if err == nil && there != 0 {
		err = errors.New("a tenant that was rolled back is there")
	}
	return err
}
