// Package sqltest holds the stores in SQL databases to what each of them promises besides the contract.
package sqltest

import (
	"context"
	"io/fs"
	"testing"

	"github.com/golang-migrate/migrate/v4/database"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// Database is how the tests get at the databases of one kind. What takes a test fails it by itself, and closes what it
// opens when the test is over.
type Database struct {
	// Fresh returns the address of an empty database.
	Fresh func(t testing.TB) (address string)

	// Connect returns a store with the default options on the database with the address.
	Connect func(ctx context.Context, address string) (store.Store, error)

	// Open returns a store on the database with the address. Of the options, First and Name do not count.
	Open func(t testing.TB, o migrate.Options, address string) store.Store

	// Exec runs SQL of the application's own in the database of s.
	Exec func(t testing.TB, s store.Store, text string)

	// Dump returns all rows of all tables in the database of s, but for times and for numbers that only have to differ.
	Dump func(t testing.TB, s store.Store) []string

	// Status returns what s.MigrationStatus does.
	Status func(ctx context.Context, s store.Store) ([]Migration, error)

	// Migrations are the store's migration files.
	Migrations func(o migrate.Options) (fs.FS, error)

	// Driver returns golang-migrate's own driver on the database with the address, and its name.
	Driver func(t testing.TB, address string) (name string, d database.Driver)
}

// Migration is a migration file and whether the database has it.
type Migration struct {
	Number  uint
	Name    string
	Applied bool
}

// Initialized leaves an installation and a scope "a" with a data key "one".
func Initialized(t testing.TB, s store.Store, m *storetest.Maker) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	must(t, s.Migrate(ctx))
	must(t, s.Initialize(ctx, m.Installation()))
	_, err := s.Create(ctx, m.Inst(), m.Scope("a", "one"))
	must(t, err)
}

// WithLife leaves besides a disabled, an active and a pending version of the data key.
func WithLife(t testing.TB, s store.Store, m *storetest.Maker) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	Initialized(t, s, m)
	for _, next := range []func(f store.Family) store.Update{
		func(f store.Family) store.Update { return m.Add(&f.Data[0], &f.Root) },
		func(f store.Family) store.Update { return m.Activate(&f.Data[0], 2) },
		func(f store.Family) store.Update { return m.Step(&f.Data[0], 1, key.Disabled) },
		func(f store.Family) store.Update { return m.Add(&f.Data[0], &f.Root) },
	} {
		f, err := s.Key(ctx, shared)
		must(t, err)
		must(t, s.Update(ctx, next(f)))
	}
}

// shared is the data key of Initialized.
var shared = key.Ref{Scope: "a", Purpose: "one"}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
