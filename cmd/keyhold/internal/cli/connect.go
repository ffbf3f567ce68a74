package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/migrate"
)

const dbHint = "give --db sqlite:PATH or --db postgres://..., or set KEYHOLD_DB"

// address is the database that the command is to work with.
func (a *app) address() (address, error) { return parseAddress(setting(a.db, "KEYHOLD_DB")) }

// tables is the names of the tables, as messages have them.
func (a *app) tables() string {
	if a.schema != "" {
		return a.schema + "." + a.prefix + "_*"
	}
	return a.prefix + "_*"
}

// limited is ctx with the time that one call may take.
func (a *app) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.timeout < 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, a.timeout)
}

// tableFlags are the flags that say how new tables are made. Nothing of it can be changed later.
type tableFlags struct {
	scopeType               string
	scopeTable, scopeColumn string
}

func (f *tableFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.scopeType, "scope-type", "", "type of the scope's id in new tables: text, uuid or bigint (default text)")
	c.Flags().StringVar(&f.scopeTable, "scope-table", "",
		"the application's table of scopes, which new tables get a foreign key to: deleting a scope there deletes its keys; "+
			"on PostgreSQL the table has to be there; on SQLite this cannot be added later, and the table has to be there when keys are created")
	c.Flags().StringVar(&f.scopeColumn, "scope-column", "", "the column of --scope-table with the scope's id")
}

func (f *tableFlags) options(a *app) (migrate.Options, error) {
	if (f.scopeTable == "") != (f.scopeColumn == "") {
		return migrate.Options{}, usageError("--scope-table and --scope-column have to be given together", "")
	}
	return migrate.Options{
		Prefix: a.prefix, Schema: a.schema, ScopeType: migrate.ScopeType(f.scopeType), ScopeTable: f.scopeTable, ScopeColumn: f.scopeColumn,
	}.Checked()
}

// openStore opens the database, and makes its file first if create is set and it is not there.
func (a *app) openStore(ctx context.Context, tables tableFlags, create bool) (database, error) {
	ctx, cancel := a.limited(ctx)
	defer cancel()
	// Before the file is made.
	options, err := tables.options(a)
	if err != nil {
		return nil, err
	}
	s, err := a.openDatabase(ctx, options, create)
	if err != nil {
		return nil, err
	}
	have, err := a.checkTables(ctx, s, tables)
	switch {
	case err != nil:
		return nil, errors.Join(err, s.Close())
	case have == "" || have == options.ScopeType:
		return s, nil
	}
	return s.withScopeType(have)
}

// checkTables returns the type that the tables have for scopes, empty where there are none, and refuses flags that
// tables which are there already do not fit.
func (a *app) checkTables(ctx context.Context, s database, given tableFlags) (migrate.ScopeType, error) {
	have, err := s.scopeType(ctx)
	if err != nil || have == "" {
		return "", err
	}
	if given.scopeType != "" && string(have) != given.scopeType {
		return "", usageError("the tables "+a.tables()+" have scopes of type "+string(have)+", which cannot be changed", "leave out --scope-type")
	}
	if given.scopeTable == "" {
		return have, nil
	}
	refers, err := s.refersTo(ctx, given.scopeTable, given.scopeColumn)
	if err != nil || refers {
		return have, err
	}
	message := fmt.Sprintf("the tables %s have no foreign key to %s (%s)", a.tables(), given.scopeTable, given.scopeColumn)
	if alter := s.addReference(given.scopeTable, given.scopeColumn); alter != "" {
		return "", usageError(message, "leave out --scope-table and --scope-column; this adds it: "+alter)
	}
	return "", usageError(message+", and none can be added", "leave out --scope-table and --scope-column, or make new tables with another --prefix")
}

// session is an open installation.
type session struct {
	*keyhold.Manager
	store database
	roots *rootSet
}

func (s *session) close(ctx context.Context, err error) error {
	defer s.roots.end(ctx)
	return errors.Join(err, closeSoon(func() error { return errors.Join(s.Manager.Close(), s.store.Close()) }))
}

// endWithin is how long a command that is at its end, or whose time is over, waits for its connections to be closed. A
// server that is silent holds that up for a quarter of a minute or more. The end of the program closes them as well.
const endWithin = 3 * time.Second

// closeSoon closes something, or leaves that to the end of the program.
func closeSoon(f func() error) error {
	closed := make(chan error, 1)
	go func() { closed <- f() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(endWithin):
		return nil
	}
}

// ended waits until done is closed, or ctx has ended and [endWithin] is over, and says which it was.
func ended(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	select {
	case <-done:
		return true
	case <-time.After(endWithin):
		return false
	}
}

// with opens the installation, lets f work with it, and closes it.
func (a *app) with(ctx context.Context, config keyhold.Config, f func(s *session) error) error {
	s, err := a.open(ctx, config)
	if err != nil {
		return err
	}
	return s.close(ctx, f(s))
}

func (a *app) open(ctx context.Context, config keyhold.Config) (*session, error) {
	// The roots first: with a wrong one the database need not be touched.
	roots, err := a.openRoots(ctx)
	if err != nil {
		return nil, err
	}
	s, err := a.openStore(ctx, tableFlags{}, false)
	if err != nil {
		roots.end(ctx)
		return nil, err
	}
	m, err := a.manager(ctx, s, config, roots)
	if err != nil {
		roots.end(ctx)
		return nil, errors.Join(err, s.Close())
	}
	return &session{m, s, roots}, nil
}

// manager opens the installation in s with the roots.
func (a *app) manager(ctx context.Context, s database, config keyhold.Config, roots *rootSet) (*keyhold.Manager, error) {
	pins, err := a.allPins()
	if err != nil {
		return nil, err
	}
	// A command that makes one call, or few, gains nothing by what it could keep between them.
	config.Pins, config.Timeout, config.Strict = pins, a.timeout, true
	roots.configure(&config)
	m, err := keyhold.New(ctx, s, config)
	if err != nil {
		return nil, roots.explain(ctx, s, err)
	}
	if old := roots.opener(); old != nil {
		a.say("the root %s is the active one now; the old root %s keeps its slot until that is removed: keyhold root list shows them",
			roots.own.given, old.given)
	}
	if config.OnEvent == nil { // or else it is told as an event
		a.warnOfRoot(m)
	}
	return m, nil
}

// warnOfRoot says that the command's root is not the active one, if so it is.
func (a *app) warnOfRoot(m *keyhold.Manager) {
	if err := m.Health().Root; err != nil {
		a.say("warning: %s: with it no keys are rotated and no roots changed", oldRootText(err))
	}
}

// warnOfPin says that no pin is given, in the commands that are there to look after an installation or change its
// roots.
func (a *app) warnOfPin(m *keyhold.Manager) {
	if pins, err := a.allPins(); err == nil && len(pins) == 0 {
		a.say("warning: no pin is given, so whoever can write to the database can put another installation in its place; "+
			"that of this one is %s, for --pin or KEYHOLD_PIN", m.Pin())
	}
}

// shellQuote is a word as a shell reads it, in quotes only where it needs them.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@%+,"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// argument is a word as an argument of a command that is to be copied into a shell: one that begins as a flag does
// stands after "--", and so has to be the last.
func argument(s string) string {
	if strings.HasPrefix(s, "-") {
		return "-- " + shellQuote(s)
	}
	return shellQuote(s)
}
