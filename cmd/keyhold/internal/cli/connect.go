package cli

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

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

// openStore opens the database, and makes its file first if create is set and it is not there.
func (a *app) openStore(ctx context.Context, scopeType migrate.ScopeType, create bool) (*sqlitestore.Store, error) {
	path, err := databasePath(setting(a.db, "KEYHOLD_DB"))
	if err != nil {
		return nil, err
	}
	// Before the file is made.
	if _, err := (migrate.Options{Prefix: a.prefix, ScopeType: scopeType}).Checked(); err != nil {
		return nil, err
	}
	if create {
		if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
			return nil, failed("no_database", "there is no folder "+filepath.Dir(path)+" to make the database in", "")
		}
	}
	config := sqlitestore.Config{Prefix: a.prefix, ScopeType: scopeType}
	open := config.Open
	if create {
		open = config.Create
	}
	s, err := open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failed("no_database", "there is no database "+path, "keyhold init makes one")
	}
	if err != nil {
		return nil, err
	}
	have, err := scopeTypeOf(ctx, s, a.prefix)
	if err == nil && have != "" && scopeType != "" && have != scopeType {
		err = usageError("the tables "+a.prefix+"_* have scopes of type "+string(have)+", which cannot be changed", "leave out --scope-type")
	}
	if err != nil || have == "" || have == scopeType {
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		return s, nil
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	config.ScopeType = have
	return config.Open(path)
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
	s, err := a.openStore(ctx, "", false)
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
