// Package storetest holds every store to the contract of package store.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Harness is how the suite gets at the databases of one kind. Its functions fail the test themselves, and close what
// they open when the test is over. Where an optional function is nil, the tests that need it are skipped.
type Harness struct {
	// Open returns a store on a fresh, empty database without tables.
	Open func(t testing.TB) store.Store

	// OpenMigrated returns a store on a fresh database with the tables that Migrate makes, such as a copy of a database
	// that has them, where that is faster. Optional: nil is Open, and then Migrate.
	OpenMigrated func(t testing.TB) store.Store

	// Reopen returns a further handle on the database of s, any number of them at once. Optional: nil uses s itself.
	Reopen func(t testing.TB, s store.Store) store.Store

	// Begin begins a transaction of an application's on the database of s, and sees to it that it is rolled back when
	// the test is over, if it is still open. Optional.
	Begin func(t testing.TB, s store.Store) (tx store.Tx, commit, rollback func() error)

	// NoDestroyInTx says that the transactions of Begin are not allowed to destroy versions, as those of a database
	// user without the right to are not.
	NoDestroyInTx bool

	// DeleteScope deletes the row of the scope's root key, as the application's delete of a tenant does by cascade.
	// Optional.
	DeleteScope func(t testing.TB, s store.Store, scope key.Scope)

	// RenameScope changes the scope in the row of its root key, as the application's update does by cascade. Optional.
	RenameScope func(t testing.TB, s store.Store, old, renamed key.Scope)

	// RequireScopes puts a foreign key on root keys that allows these scopes alone. Called once, before there are keys.
	// Optional.
	RequireScopes func(t testing.TB, s store.Store, scopes ...key.Scope)

	// Refer inserts a row into a table of the application's that refers to the data key version with the id. Called
	// once. Optional.
	Refer func(t testing.TB, s store.Store, id key.ID)

	// ScopeName returns the n-th of any number of scopes, for databases whose type of scopes is not text. Optional: nil
	// takes any text.
	ScopeName func(n int) key.Scope
}

type test struct {
	name string
	run  func(e *env)
}

// Run runs the suite. Subtests run in parallel, each on a database of its own and with [Check] at its end.
func Run(t *testing.T, h Harness) {
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"schema", schemaTests},
		{"installation", installationTests},
		{"create", createTests},
		{"read", readTests},
		{"references", referenceTests},
		{"shred", shredTests},
		{"epochs", epochTests},
		{"names", nameTests},
		{"removal", removalTests},
		{"update", updateTests},
		{"together", togetherTests},
		{"disabled", disabledTests},
		{"rewrap", rewrapTests},
		{"roots", rootsTests},
		{"rekey", rekeyTests},
		{"escrow", escrowTests},
		{"concurrency", concurrencyTests},
		{"context", contextTests},
		{"fleet", fleetTests},
		{"lease", leaseTests},
		{"take", takeTests},
		{"due", dueTests},
		{"transaction", txTests},
		{"cascade", cascadeTests},
		{"model", modelTests},
	} {
		t.Run(group.name, func(t *testing.T) {
			t.Parallel()
			for _, test := range group.tests {
				t.Run(test.name, func(t *testing.T) {
					t.Parallel()
					test.run(newEnv(t, h))
				})
			}
		})
	}
}

// Check fails the test for every invariant that [store.Check] finds broken. It may be called in a cleanup function.
func Check(t testing.TB, s store.Store) {
	t.Helper()
	found, err := store.Check(context.WithoutCancel(t.Context()), s)
	if err != nil {
		t.Errorf("store.Check: %v", err)
	}
	for _, f := range found {
		t.Errorf("store.Check: %v", f)
	}
}

// env is one test with a database of its own, from empty, migrate or initialize on.
type env struct {
	*testing.T

	h   Harness
	ctx context.Context
	s   store.Store
	m   *Maker
}

func newEnv(t *testing.T, h Harness) *env {
	t.Helper()
	return &env{T: t, h: h, ctx: t.Context(), m: NewMaker(1)}
}

// empty makes a test that begins with a database without tables.
func empty(run func(e *env)) func(e *env) {
	return func(e *env) {
		e.s = e.h.Open(e.T)
		run(e)
	}
}

// initialize gives the database its tables and installation.
func (e *env) initialize() *env {
	e.Helper()
	e.migrate()
	if err := e.s.Initialize(e.ctx, e.m.Installation()); err != nil {
		e.Fatalf("Initialize: %v", err)
	}
	return e
}

// migrate gives the database its tables. Where the test did not begin with an empty one, they may be there already.
func (e *env) migrate() {
	e.Helper()
	if e.s == nil && e.h.OpenMigrated != nil {
		e.s = e.h.OpenMigrated(e.T)
	} else {
		if e.s == nil {
			e.s = e.h.Open(e.T)
		}
		if err := e.s.Migrate(e.ctx); err != nil {
			e.Fatalf("Migrate: %v", err)
		}
	}
	e.Cleanup(func() { Check(e.T, e.s) })
}

// initialized makes a test that begins with an installation.
func initialized(run func(e *env)) func(e *env) {
	return func(e *env) { run(e.initialize()) }
}

// scope is the name of the n-th scope.
func (e *env) scope(n int) key.Scope {
	if e.h.ScopeName != nil {
		return e.h.ScopeName(n)
	}
	return key.Scope(fmt.Sprintf("scope-%04d", n))
}

func (e *env) needText() {
	e.Helper()
	if e.h.ScopeName != nil {
		e.Skip("scopes are not text in this database")
	}
}

// handles returns n handles on the database.
func (e *env) handles(n int) []store.Store {
	e.Helper()
	handles := []store.Store{e.s}
	for len(handles) < n {
		s := e.s
		if e.h.Reopen != nil {
			s = e.h.Reopen(e.T, e.s)
		}
		handles = append(handles, s)
	}
	return handles
}

// race calls f in n goroutines over 4 handles, all at once, and returns the errors.
func (e *env) race(n int, f func(i int, s store.Store) error) []error {
	e.Helper()
	handles := e.handles(4)
	errs := make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = f(i, handles[i%len(handles)])
		})
	}
	close(start)
	wg.Wait()
	return errs
}

// create inserts keys that all have to be new.
func (e *env) create(keys ...store.Key) {
	e.Helper()
	n, err := e.s.Create(e.ctx, e.m.Inst(), keys)
	if err != nil || n != len(keys) {
		e.Fatalf("Create: %d keys, %v; want %d, nil", n, err, len(keys))
	}
}

// update changes a key and returns it as it is then stored.
func (e *env) update(ref key.Ref, u store.Update) store.Key {
	e.Helper()
	if err := e.s.Update(e.ctx, u); err != nil {
		e.Fatalf("Update of %v: %v", ref, err)
	}
	return e.key(ref)
}

func (e *env) family(ref key.Ref) store.Family {
	e.Helper()
	f, err := e.s.Key(e.ctx, ref)
	if err != nil {
		e.Fatalf("Key(%v): %v", ref, err)
	}
	return f
}

// key reads the key that ref names.
func (e *env) key(ref key.Ref) store.Key {
	e.Helper()
	f := e.family(ref)
	if ref.IsRoot() {
		return f.Root
	}
	if len(f.Data) != 1 {
		e.Fatalf("Key(%v): %d data keys, want 1", ref, len(f.Data))
	}
	return f.Data[0]
}

// dump is everything that can be read, in the order of its names.
type dump struct {
	Installation store.Installation
	Escrows      []store.Escrow
	Families     []store.Family
	Names        []store.Name
}

func dumpOf(ctx context.Context, s store.Store) (d dump, err error) {
	if d.Installation, err = s.Installation(ctx); err != nil && !errors.Is(err, store.ErrNotFound) {
		return d, err
	}
	if d.Escrows, err = s.Escrows(ctx); err != nil {
		return d, err
	}
	if d.Names, err = allNames(ctx, s); err != nil {
		return d, err
	}
	scopes, err := s.Scopes(ctx, "", 1_000_000)
	if err != nil {
		return d, err
	}
	for _, scope := range scopes {
		f, err := s.Scope(ctx, scope)
		if err != nil {
			return d, fmt.Errorf("scope %q: %w", scope, err)
		}
		d.Families = append(d.Families, f)
	}
	return d, nil
}

// unchanged fails the test if f changes anything that can be read.
func (e *env) unchanged(f func()) {
	e.Helper()
	before, err := dumpOf(e.ctx, e.s)
	if err != nil {
		e.Fatalf("read everything: %v", err)
	}
	f()
	after, err := dumpOf(e.ctx, e.s)
	if err != nil {
		e.Fatalf("read everything: %v", err)
	}
	if diff := cmp.Diff(before, after, equalBytes, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(store.Family{}, "Now")); diff != "" {
		e.Errorf("something was changed (-before +after):\n%s", diff)
	}
}

// equalBytes saves cmp from looking at each byte by reflection, which took most of the suite's time. Two empty ones are
// left to EquateEmpty.
var equalBytes = cmp.FilterValues(func(a, b []byte) bool { return len(a)+len(b) > 0 }, cmp.Comparer(bytes.Equal))

// diff compares what was given with what was read, but for what the store itself sets.
func diff(want, got any) string {
	return cmp.Diff(want, got, equalBytes, cmpopts.EquateEmpty(),
		cmpopts.IgnoreFields(store.Family{}, "Now", "Epoch", "Roots"),
		cmpopts.IgnoreFields(store.Installation{}, "Created"),
		cmpopts.IgnoreFields(store.InstallationKey{}, "Created"),
		cmpopts.IgnoreFields(store.Slot{}, "Created", "Activated", "Retired", "Removed"),
		cmpopts.IgnoreFields(store.Version{}, "Disabled"),
		cmpopts.IgnoreFields(store.Tombstone{}, "Destroyed"))
}

// class is what a caller can decide on about an error.
func class(err error) string {
	if err == nil {
		return "no error"
	}
	for _, sentinel := range []error{
		store.ErrNotFound, store.ErrConflict, store.ErrForeignKey, store.ErrUnavailable, store.ErrUnknownOutcome,
		context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, sentinel) {
			return sentinel.Error()
		}
	}
	return "refused"
}

func (e *env) wantClass(what string, err, want error) {
	e.Helper()
	if class(err) != class(want) {
		e.Errorf("%s: %v; want %v", what, err, want)
	}
}

// wantInUse asserts what is said of a version that has rows in one column.
func (e *env) wantInUse(what string, err error, id key.ID, rows int64) {
	e.Helper()
	e.wantClass(what, err, store.ErrForeignKey)
	use, ok := errors.AsType[*store.InUseError](err)
	if !ok || use.ID != id || len(use.References) != 1 || use.References[0].Rows != rows || !strings.Contains(err.Error(), use.References[0].String()) {
		e.Errorf("%s: %v; want an InUseError about %s with %d rows in one column", what, err, id, rows)
	}
}

// errRefused stands for an error that is none of the store's: what was asked for breaks a rule, and trying again is no
// use.
var errRefused = errors.New("refused")
