package dekmanager

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

const mekSize = 32

// NewDEKManager opens the keys in db under mek, which is 32 bytes, and starts what they need over time: rotations, and
// what [DEKManager.Shutdown] ends. Where there is nothing yet it makes the tables, which takes the right to, and
// everything else; where there is, it changes no table. Any number of processes may do so at once. db stays the
// caller's, who closes it after Shutdown; so do mek and the old MEK, which are copied and may be cleared.
//
// It has no context, and each of its few calls to the database takes at most 30 s. After an error nothing runs. Errors:
// "invalid MEK size"; one that names the option that makes no sense; [keyhold.ErrRoot] for a wrong MEK;
// [keyhold.ErrOldRoot] if the old MEK opens the keys and is not the current one; [ErrLegacy] where PostgreSQL has keys
// of go-pg-dek-manager that were not imported, before anything is made: as long as the scope is not there, in any table
// that may be read, and later in those that the options given, or its defaults, would have it use; a
// [*keyhold.SchemaError] for tables of another version, or of something else; [*keyhold.IntegrityError];
// [keyhold.ErrUnavailable]. A mek that was the current one before is no error: see the package.
func NewDEKManager(db *sql.DB, mek []byte, options ...DEKManagerOption) (*DEKManager, error) {
	config := defaults(db, mek)
	for i, option := range options {
		if option == nil {
			return nil, fmt.Errorf("open DEK manager: option %d of %d is nil", i+1, len(options))
		}
		option(&config)
	}
	d, err := open(context.Background(), &config) //nolint:forbidigo // those who call it have no context to give
	if err != nil {
		return nil, fmt.Errorf("open DEK manager: %w", err)
	}
	d.start(&config)
	return d, nil
}

// open does everything that can fail.
func open(ctx context.Context, config *DEKManagerConfig) (_ *DEKManager, err error) {
	if config.DB == nil {
		return nil, errors.New("there is no database: the *sql.DB is nil")
	}
	d, settings, err := prepare(config)
	if err != nil {
		return nil, err
	}
	if d.store, err = openStore(ctx, config); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.store.Close())
		}
	}()
	if d.keys, err = openKeys(ctx, config, d, settings); err != nil {
		return nil, wrongMEK(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.keys.Close())
		}
	}()
	if d.schema, err = schemaOf(ctx, config); err != nil {
		return nil, err
	}
	return d, d.makeScope(ctx, config)
}

// openKeys opens the installation. Where there is none it makes one, with the tables, unless there are keys that have
// to be imported: then it changes nothing.
func openKeys(
	ctx context.Context, config *DEKManagerConfig, d *DEKManager, settings keyhold.Config,
) (*keyhold.Manager, error) {
	settings.Initialize = false
	m, err := keyhold.New(ctx, d.store, settings)
	if !errors.Is(err, keyhold.ErrNotInitialized) {
		return m, err
	}
	schema, err := schemaOf(ctx, config)
	if err == nil {
		err = noLegacy(ctx, config, d.scope, schema)
	}
	if err != nil {
		return nil, err
	}
	settings.Initialize = true
	return keyhold.New(ctx, d.store, settings)
}

// prepare makes of the options what needs no database.
func prepare(config *DEKManagerConfig) (*DEKManager, keyhold.Config, error) {
	root, olds, err := roots(config)
	if err == nil {
		err = config.check()
	}
	if err != nil {
		return nil, keyhold.Config{}, err
	}
	d := &DEKManager{
		scope:  keyhold.Scope(config.Scope),
		prefix: cmp.Or(config.TablePrefix, defaultPrefix),
		logger: config.Logger,
		how: keyhold.RawKey{
			Generator: config.DefaultGenFuncName, Policy: keyhold.Policy{RotateEvery: config.DEKRotationPeriod},
		},
	}
	if d.logger == nil {
		d.logger = defaultLogger{}
	}
	settings := config.settings()
	settings.Root, settings.OldRoots, settings.OnEvent = root, olds, d.onEvent
	return d, settings, nil
}

// roots are the MEKs as external roots.
func roots(config *DEKManagerConfig) (wrapping.Wrapper, []wrapping.Wrapper, error) {
	if n := len(config.MEK); n != mekSize {
		return nil, nil, fmt.Errorf("invalid MEK size: it has %d bytes, and must be %d bytes", n, mekSize)
	}
	root, err := localroot.FromBytes(config.MEK)
	if err != nil || config.OldMEK == nil {
		return root, nil, err
	}
	if n := len(config.OldMEK); n != mekSize {
		return nil, nil, fmt.Errorf("WithOldMEK: invalid MEK size: it has %d bytes, and must be %d bytes", n, mekSize)
	}
	old, err := localroot.FromBytes(config.OldMEK)
	return root, []wrapping.Wrapper{old}, err
}

// wrongMEK says it in the words of who has a MEK.
func wrongMEK(err error) error {
	switch {
	case errors.Is(err, keyhold.ErrOldRoot):
		return fmt.Errorf("the old MEK is not the current MEK, so no other can take its place: %w", err)
	case errors.Is(err, keyhold.ErrRoot):
		return fmt.Errorf("the MEK is not that of the keys in this database: "+
			"give the right one, or the one of before by WithOldMEK: %w", err)
	}
	return err
}

type closable interface {
	store.Store
	Close() error
}

func openStore(ctx context.Context, config *DEKManagerConfig) (closable, error) {
	if !isSQLite(config) {
		return pgstore.Config{Schema: config.SchemaName, Prefix: config.TablePrefix}.FromSQL(config.DB)
	}
	if config.SchemaName != "" && config.SchemaName != sqliteSchema {
		return nil, fmt.Errorf("WithSchemaName: SQLite has no schema %q: leave the option out", config.SchemaName)
	}
	if err := hasForeignKeys(ctx, config.DB); err != nil {
		return nil, err
	}
	return sqlitestore.Config{Prefix: config.TablePrefix}.New(config.DB)
}

// hasForeignKeys is nil if SQLite keeps the rules between tables, which it does only where a connection asks for it:
// otherwise each write would be refused.
func hasForeignKeys(ctx context.Context, db *sql.DB) error {
	ctx, cancel := context.WithTimeout(ctx, keyhold.DefaultTimeout)
	defer cancel()
	on := false
	if err := db.QueryRowContext(ctx, "pragma foreign_keys").Scan(&on); err != nil {
		return fmt.Errorf("ask whether SQLite's foreign keys are on: %w: %w", keyhold.ErrUnavailable, err)
	}
	if !on {
		return errors.New(`SQLite's foreign keys are off: open the *sql.DB so that each connection has them on and waits for others, ` +
			`such as "file:app.db?_pragma=foreign_keys(1)&_pragma=busy_timeout(10000)&_txlock=immediate"`)
	}
	return nil
}

const sqliteSchema = "main"

func isSQLite(config *DEKManagerConfig) bool {
	if config.DriverName != "" {
		return strings.HasPrefix(strings.ToLower(config.DriverName), "sqlite")
	}
	return strings.Contains(strings.ToLower(fmt.Sprintf("%T", config.DB.Driver())), "sqlite")
}

// schemaOf is the schema in which the tables are, or are to be.
func schemaOf(ctx context.Context, config *DEKManagerConfig) (schema string, err error) {
	switch {
	case isSQLite(config):
		return sqliteSchema, nil
	case config.SchemaName != "":
		return config.SchemaName, nil
	}
	ctx, cancel := context.WithTimeout(ctx, keyhold.DefaultTimeout)
	defer cancel()
	err = config.DB.QueryRowContext(ctx, `
select coalesce(
    (select nspname from pg_namespace n join pg_class c on c.relnamespace = n.oid where c.oid = to_regclass($1::text)),
    current_schema(), 'public')`,
		migrate.Quote(cmp.Or(config.TablePrefix, defaultPrefix)+"_root_key")).Scan(&schema)
	if err != nil {
		return "", fmt.Errorf("ask in which schema the tables are: %w: %w", keyhold.ErrUnavailable, err)
	}
	return schema, nil
}

// makeScope makes the scope of the keys where it is not there.
func (d *DEKManager) makeScope(ctx context.Context, config *DEKManagerConfig) error {
	there, err := d.keys.HasScope(ctx, d.scope)
	switch {
	case err != nil:
		return err
	case there:
		return d.allImported(ctx, config)
	}
	if err := noLegacy(ctx, config, d.scope, d.schema); err != nil {
		return err
	}
	return d.keys.CreateScope(ctx, d.scope)
}
