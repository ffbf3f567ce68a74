package cli

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store/sqlitestore"
)

const (
	dbHint   = "give --db sqlite:PATH, or set KEYHOLD_DB"
	rootHint = "give --root file:PATH or --root env:NAME, or set KEYHOLD_ROOT; keyhold root keygen FILE makes a root"
)

// databasePath is the file that a database's address names.
func databasePath(address string) (string, error) {
	scheme, path, _ := strings.Cut(address, ":")
	switch {
	case address == "":
		return "", usageError("no database is given", dbHint)
	case scheme == "postgres" || scheme == "postgresql":
		return "", usageError("PostgreSQL is not supported by this version of keyhold", dbHint)
	case scheme != "sqlite" || path == "":
		// The address may be a connection string with a password, so it is not repeated.
		return "", usageError("the database's address is not of the form sqlite:PATH", dbHint)
	}
	return path, nil
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
			"on SQLite this cannot be added later; the table has to be there when keys are created")
	c.Flags().StringVar(&f.scopeColumn, "scope-column", "", "the column of --scope-table with the scope's id")
}

func (f *tableFlags) options(prefix string) (migrate.Options, error) {
	if (f.scopeTable == "") != (f.scopeColumn == "") {
		return migrate.Options{}, usageError("--scope-table and --scope-column have to be given together", "")
	}
	return migrate.Options{
		Prefix: prefix, ScopeType: migrate.ScopeType(f.scopeType), ScopeTable: f.scopeTable, ScopeColumn: f.scopeColumn,
	}.Checked()
}

// openStore opens the database, and makes its file first if create is set and it is not there.
func (a *app) openStore(ctx context.Context, tables tableFlags, create bool) (*sqlitestore.Store, error) {
	path, err := databasePath(setting(a.db, "KEYHOLD_DB"))
	if err != nil {
		return nil, err
	}
	// Before the file is made.
	options, err := tables.options(a.prefix)
	if err != nil {
		return nil, err
	}
	if create {
		if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
			return nil, failed("no_database", "there is no folder "+filepath.Dir(path)+" to make the database in", "")
		}
	}
	config := sqlitestore.Config{
		Prefix: a.prefix, ScopeType: options.ScopeType, ScopeTable: options.ScopeTable, ScopeColumn: options.ScopeColumn,
	}
	open := config.Open
	if create {
		open = config.Create
	}
	s, err := open(path)
	if errors.Is(err, fs.ErrNotExist) {
		hint := "keyhold init makes one"
		if len(a.allPins()) > 0 {
			hint = "look at its path; keyhold init makes one only where no pin is given, by --pin or KEYHOLD_PIN"
		}
		return nil, failed("no_database", "there is no database "+path, hint)
	}
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
	if err := s.Close(); err != nil {
		return nil, err
	}
	config.ScopeType = have
	return config.Open(path)
}

// checkTables returns the type that the tables have for scopes, empty where there are none, and refuses flags that
// tables which are there already do not fit.
func (a *app) checkTables(ctx context.Context, s *sqlitestore.Store, given tableFlags) (migrate.ScopeType, error) {
	have, err := scopeTypeOf(ctx, s, a.prefix)
	if err != nil || have == "" {
		return "", err
	}
	if given.scopeType != "" && string(have) != given.scopeType {
		return "", usageError("the tables "+a.prefix+"_* have scopes of type "+string(have)+", which cannot be changed", "leave out --scope-type")
	}
	if given.scopeTable != "" {
		refers := false
		err := s.DB().QueryRowContext(ctx, `select exists (select 1 from pragma_foreign_key_list(?)
			where "from" = 'scope_id' and lower("table") = lower(?) and lower("to") = lower(?))`,
			a.prefix+"_root_key", given.scopeTable, given.scopeColumn).Scan(&refers)
		if err != nil {
			return "", err
		}
		if !refers {
			return "", usageError(fmt.Sprintf("the tables %s_* have no foreign key to %s (%s), and none can be added",
				a.prefix, given.scopeTable, given.scopeColumn), "leave out --scope-table and --scope-column, or make new tables with another --prefix")
		}
	}
	return have, nil
}

// scopeTypeOf reads from the tables which type they have for scopes, so that nobody has to say it again. It is
// empty where there are none.
func scopeTypeOf(ctx context.Context, s *sqlitestore.Store, prefix string) (migrate.ScopeType, error) {
	var declared string
	err := s.DB().QueryRowContext(ctx,
		"select lower(type) from pragma_table_info(?) where name = 'scope_id'", prefix+"_root_key").Scan(&declared)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", nil
	case err != nil:
		return "", errors.Join(s.CheckSchema(ctx), err) // the store says best what is wrong with the file
	}
	switch declared {
	case "char(36)":
		return migrate.UUID, nil
	case "bigint":
		return migrate.BigInt, nil
	}
	return migrate.Text, nil
}

// openRoot opens the external root. given is how the user wrote it.
func (a *app) openRoot() (root wrapping.Wrapper, given string, err error) {
	given = setting(a.root, "KEYHOLD_ROOT")
	scheme, rest, _ := strings.Cut(given, ":")
	var local *localroot.Root
	switch {
	case given == "":
		return nil, "", usageError("no external root is given", rootHint)
	case holdsRoot(given):
		return nil, "", usageError("a root itself is given where its place belongs", rootHint)
	case scheme == "file" && rest != "":
		local, err = localroot.Open(rest)
	case scheme == "env" && rest != "":
		local, err = localroot.FromEnv(rest)
	default:
		return nil, "", usageError("roots other than file:PATH and env:NAME are not supported by this version of keyhold", rootHint)
	}
	if err != nil {
		return nil, "", explainRoot(given, err)
	}
	return local, given, nil
}

// holdsRoot says whether somebody gave the line of a local root itself, which no message must repeat.
func holdsRoot(given string) bool {
	_, rest, found := strings.Cut(given, "khr1_")
	return found && len(rest) >= 16
}

func (a *app) allPins() []string {
	if len(a.pins) > 0 {
		return a.pins
	}
	var pins []string
	for pin := range strings.SplitSeq(os.Getenv("KEYHOLD_PIN"), ",") {
		if pin = strings.TrimSpace(pin); pin != "" {
			pins = append(pins, pin)
		}
	}
	return pins
}

// session is an open installation.
type session struct {
	*keyhold.Manager
	store *sqlitestore.Store
}

func (s *session) close(err error) error {
	return errors.Join(err, s.Manager.Close(), s.store.Close())
}

// with opens the installation, lets f work with it, and closes it.
func (a *app) with(ctx context.Context, config keyhold.Config, f func(s *session) error) error {
	s, err := a.open(ctx, config)
	if err != nil {
		return err
	}
	return s.close(f(s))
}

func (a *app) open(ctx context.Context, config keyhold.Config) (*session, error) {
	// The root first: with a wrong one the database need not be touched.
	root, given, err := a.openRoot()
	if err != nil {
		return nil, err
	}
	s, err := a.openStore(ctx, tableFlags{}, false)
	if err != nil {
		return nil, err
	}
	config.Root = root
	m, err := a.manager(ctx, s, config, given)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &session{m, s}, nil
}

// manager opens the installation in s.
func (a *app) manager(ctx context.Context, s *sqlitestore.Store, config keyhold.Config, given string) (*keyhold.Manager, error) {
	config.Pins, config.Timeout = a.allPins(), a.timeout
	m, err := keyhold.New(ctx, s, config)
	if errors.Is(err, keyhold.ErrRoot) {
		return nil, wrongRoot(ctx, s, config.Root, given)
	}
	return m, err
}

// wrongRoot says which root was given and which would be right, by their ids, which are not secret.
func wrongRoot(ctx context.Context, s *sqlitestore.Store, root wrapping.Wrapper, given string) error {
	message := "the root " + given
	if id, err := root.KeyId(ctx); err == nil && id != "" {
		message += " (" + id + ")"
	}
	message += " does not open this installation"
	in, err := s.Installation(ctx)
	if err != nil {
		return failed("root", message, "")
	}
	var names []string
	for _, slot := range in.Slots {
		if slot.State != key.Destroyed {
			names = append(names, strings.TrimSpace(slot.WrapperType+" "+slot.WrapperKeyID))
		}
	}
	return failed("root", message, "what opens it is "+strings.Join(names, " or "))
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
