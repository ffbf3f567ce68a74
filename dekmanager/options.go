package dekmanager

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"time"

	"keyhold.example/keyhold"
)

// DefaultScope is the scope that the keys are in, unless [WithScope] names another: that into which
// "keyhold import dek" brings keys.
const DefaultScope = "dek-manager"

// MinimalLogger is told what somebody should know. It may be called by several goroutines at once, and must not call
// [DEKManager.Shutdown]. args are names and values in turn, as [log/slog] takes them; none is secret.
type MinimalLogger interface {
	Warn(msg string, args ...any)
}

// DEKGenerationFunc makes the bytes of one version of a key, 1 to 1024 of them. They are copied, and stay its own. It
// is called outside of any transaction, possibly by several goroutines; its result may be dropped, when another process
// was first. A panic of it is an error.
type DEKGenerationFunc func(ctx context.Context) ([]byte, error)

// DEKManagerOption is an option of [NewDEKManager]. Of two that say different things, the later one counts.
type DEKManagerOption func(*DEKManagerConfig)

// DEKManagerConfig is what options fill in, and finds the defaults there. DB and MEK are those that [NewDEKManager] was
// given; DEKGenFuncs is what [WithFunction] says; each other field is what the option of the same name says.
type DEKManagerConfig struct {
	DB                    *sql.DB
	MEK                   []byte
	OldMEK                []byte
	SchemaName            string
	TablePrefix           string
	Scope                 string
	CleanupPeriod         *time.Duration
	DEKRotationPeriod     time.Duration
	TransitionCheckPeriod time.Duration
	LockLeaseDuration     time.Duration
	Logger                MinimalLogger
	MaxCacheSize          int
	CacheExpiration       time.Duration
	DriverName            string
	DEKGenFuncs           map[string]DEKGenerationFunc
	DefaultGenFuncName    string
	MaxKeyFuncCache       int

	periodGiven bool // whether keys that are there are to get it, too
}

// The defaults that are not zero values.
const (
	defaultPrefix     = "kms"
	defaultPeriod     = 90 * 24 * time.Hour
	defaultTransition = time.Hour
	defaultLease      = time.Minute
	defaultCached     = 16384
	defaultExpiration = 10 * time.Minute
)

func defaults(db *sql.DB, mek []byte) DEKManagerConfig {
	return DEKManagerConfig{
		DB:                    db,
		MEK:                   mek,
		TablePrefix:           defaultPrefix,
		Scope:                 DefaultScope,
		DEKRotationPeriod:     defaultPeriod,
		TransitionCheckPeriod: defaultTransition,
		LockLeaseDuration:     defaultLease,
		MaxCacheSize:          defaultCached,
		CacheExpiration:       defaultExpiration,
		DefaultGenFuncName:    keyhold.DefaultGenerator,
		MaxKeyFuncCache:       1000,
	}
}

// WithCleanupPeriod removes what an old MEK could still open, for so long after another took its place: its sealed copy
// of the installation key, as soon as no live instance uses it. Less than a minute is a minute. Without it, that stays.
// No version of a key is ever deleted by time.
func WithCleanupPeriod(d time.Duration) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.CleanupPeriod = &d }
}

// WithDEKRotationPeriod is how old the newest version of a key may get before the next is made: 90 days by default, and
// at most a hundred years. It is stored with each key, and a new key has that of the instance that makes it.
//
// Given, it becomes that of the keys that are there as well, one after another soon after the start; of instances that
// give different ones, the last to start has its way with these. A key that is never rotated, as keyhold's policies
// and the import can have it, stays so. An instance whose MEK is an old one changes no key that is there; nor does it,
// until it is started again, when that becomes the current one.
func WithDEKRotationPeriod(d time.Duration) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.DEKRotationPeriod, c.periodGiven = d, true }
}

// WithTransitionCheckPeriod is how often one of all instances looks for what a change of keys has left to do: by
// default each hour, at least each minute. A MEK's transition is over before [NewDEKManager] returns, and needs none.
func WithTransitionCheckPeriod(d time.Duration) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.TransitionCheckPeriod = d }
}

// WithTablePrefix begins the names of the tables, "kms" by default, which is also that of the command line. The tables
// are not those of go-pg-dek-manager, and may be beside them.
func WithTablePrefix(prefix string) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.TablePrefix = prefix }
}

// WithSchemaName is the schema of the tables, which is made if it is not there. By default they are where the
// connection's search_path finds them, or makes new ones. SQLite has only "main".
func WithSchemaName(schema string) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.SchemaName = schema }
}

// WithScope is the scope of the keys, [DefaultScope] by default. Two scopes have keys of their own of the same names.
func WithScope(name string) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.Scope = name }
}

// WithLogger is who is told; by default, or if it is nil, [slog.Default].
func WithLogger(logger MinimalLogger) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.Logger = logger }
}

// WithLockLeaseDuration is for how long others wait for an instance that died at its work before they go on with it: a
// minute by default. Less than 10 s is 10 s, and more than an hour an hour.
func WithLockLeaseDuration(d time.Duration) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.LockLeaseDuration = d }
}

// WithOldMEK is the MEK of before, 32 bytes; nil is none. Where the tables are under it, and it is the current one, the
// new MEK takes its place, which takes no longer for many keys than for one. It may stay configured after that. A MEK
// that was the current one before does not become it again so: "keyhold root activate" does that.
func WithOldMEK(oldMEK []byte) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.OldMEK = oldMEK }
}

// WithMaxCacheSize is how many keys, and as many versions, are kept ready at most: 16,384 by default. It is for all
// keys together.
func WithMaxCacheSize(size int) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.MaxCacheSize = size }
}

// WithCacheExpiration is for how long a key is used before it is read again though nothing says that it has changed:
// ten minutes by default. Changes are noticed within seconds, whatever it is.
func WithCacheExpiration(d time.Duration) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.CacheExpiration = d }
}

// WithDriverName says of which driver the *sql.DB is. A name that begins with "sqlite" is SQLite; any other is
// PostgreSQL. By default the driver's type says it, which is needed only for one that hides in another, such as for
// traces.
func WithDriverName(driverName string) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.DriverName = driverName }
}

// WithFunction adds a function that makes keys' versions. Its name is stored with the keys; the name of one that is
// built in is refused, as other processes would go on using that. A process that lacks a key's function reads the key,
// and leaves its rotation to others.
func WithFunction(name string, fn DEKGenerationFunc) DEKManagerOption {
	return func(c *DEKManagerConfig) {
		if c.DEKGenFuncs == nil {
			c.DEKGenFuncs = map[string]DEKGenerationFunc{}
		}
		c.DEKGenFuncs[name] = fn
	}
}

// WithDefaultGenFuncName is the function that makes keys for which no other was registered: "aes256-random" by default,
// which makes 32 bytes. There are also "aes192-random" and "aes128-random", and those of [WithFunction].
func WithDefaultGenFuncName(name string) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.DefaultGenFuncName = name }
}

// WithMaxKeyFuncCache has no effect: which function a key has is kept with the key, and registering asks the database.
func WithMaxKeyFuncCache(size int) DEKManagerOption {
	return func(c *DEKManagerConfig) { c.MaxKeyFuncCache = size }
}

// RegisterKeyOption is an option of [DEKManager.RegisterKey].
type RegisterKeyOption func(*registerKeyOptions)

type registerKeyOptions struct{}

// WithSkipCache has no effect: [DEKManager.RegisterKey] always asks the database.
func WithSkipCache() RegisterKeyOption {
	return func(*registerKeyOptions) {}
}

// check says which option makes no sense.
func (c *DEKManagerConfig) check() error {
	positive := func(option string, d time.Duration) error {
		if d <= 0 {
			return fmt.Errorf("%s: %v is not a period: give one that is longer than zero, or leave the option out",
				option, d)
		}
		return nil
	}
	if c.CleanupPeriod != nil {
		if err := positive("WithCleanupPeriod", *c.CleanupPeriod); err != nil {
			return err
		}
	}
	for option, d := range map[string]time.Duration{
		"WithDEKRotationPeriod":     c.DEKRotationPeriod,
		"WithTransitionCheckPeriod": c.TransitionCheckPeriod,
		"WithLockLeaseDuration":     c.LockLeaseDuration,
		"WithCacheExpiration":       c.CacheExpiration,
	} {
		if err := positive(option, d); err != nil {
			return err
		}
	}
	switch {
	case c.DEKRotationPeriod > maxPeriod:
		return fmt.Errorf("WithDEKRotationPeriod: %v is longer than a hundred years", c.DEKRotationPeriod)
	case c.MaxCacheSize <= 0:
		return fmt.Errorf("WithMaxCacheSize: %d keys are too few: give a larger number, or leave the option out",
			c.MaxCacheSize)
	case c.MaxKeyFuncCache < 0:
		return fmt.Errorf("WithMaxKeyFuncCache: %d is negative", c.MaxKeyFuncCache)
	}
	if err := keyhold.Scope(c.Scope).Validate(); err != nil {
		return fmt.Errorf("WithScope: %w", err)
	}
	return c.checkFunctions()
}

const maxPeriod = 100 * 365 * 24 * time.Hour

// builtIn says whether every process has a function of that name.
func builtIn(name string) bool {
	switch name {
	case keyhold.DefaultGenerator, "aes192-random", "aes128-random":
		return true
	}
	return false
}

func (c *DEKManagerConfig) checkFunctions() error {
	for name, fn := range c.DEKGenFuncs {
		switch {
		case fn == nil:
			return fmt.Errorf("WithFunction: the function %q is nil", name)
		case builtIn(name):
			return fmt.Errorf("WithFunction: there is a function %q already, which other processes would go on using: "+
				"name yours otherwise", name)
		}
		if err := keyhold.Purpose(name).Validate(); err != nil {
			return fmt.Errorf("WithFunction: the name of a function is of the form of a key's name: %w", err)
		}
	}
	if _, ok := c.DEKGenFuncs[c.DefaultGenFuncName]; !ok && !builtIn(c.DefaultGenFuncName) {
		return fmt.Errorf("WithDefaultGenFuncName: DEK generation function '%s' not registered: %w",
			c.DefaultGenFuncName, keyhold.ErrGenerator)
	}
	return nil
}

// settings are the options as a keyhold.Config says them.
func (c *DEKManagerConfig) settings() keyhold.Config {
	s := keyhold.Config{
		Initialize:    true,
		MaintainEvery: max(c.TransitionCheckPeriod, time.Minute),
		LeaseFor:      min(max(c.LockLeaseDuration, 10*time.Second), time.Hour),
		CacheKeys:     c.MaxCacheSize,
		CacheFor:      c.CacheExpiration,
		Generators:    map[string]keyhold.Generator{},
	}
	if c.CleanupPeriod != nil {
		s.RemoveRootsAfter = max(*c.CleanupPeriod, time.Minute)
	}
	for name, fn := range c.DEKGenFuncs {
		s.Generators[name] = func(ctx context.Context) ([]byte, error) {
			dek, err := fn(ctx)
			return bytes.Clone(dek), err // keyhold clears it, and the function may want it again
		}
	}
	return s
}

// defaultLogger is [slog.Default] at the time of each call.
type defaultLogger struct{}

func (defaultLogger) Warn(msg string, args ...any) { slog.Warn(msg, args...) }
