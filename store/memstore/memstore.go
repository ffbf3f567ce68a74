// Package memstore is the contract of package store in its smallest form, for tests.
//
// It is the executable specification: what it refuses, a database's constraints have to refuse, and storetest compares
// every other store with it. Nothing outlives the process.
package memstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Prefix is the prefix of the tables that are not there, as a [*store.SchemaError] names it.
const Prefix = "kms"

// lockWait is how long a write waits for another transaction before it gives up, as a database's lock timeout.
const lockWait = 5 * time.Second

var (
	errClosed = errors.New("the store is closed")
	errTxOver = errors.New("the transaction is over")
)

// Store is one handle on a database in memory; [New] makes both, [Store.Reopen] another handle. It implements
// [store.Store]. The zero value is not usable. Each write copies the indexes, so that its cost grows with the number of
// rows.
type Store struct {
	// Clock is the database's clock; nil is [time.Now]. To be set before the store is used.
	Clock func() time.Time

	queries
	db     *db
	closed atomic.Bool
}

// db is what the handles share. Committed states are never changed, only replaced, by whoever holds the lock.
type db struct {
	lock      chan struct{} // holds a token while somebody writes
	committed atomic.Pointer[state]
}

// New returns a handle on a new database, which has no tables until Migrate.
func New() *Store {
	d := &db{lock: make(chan struct{}, 1)}
	d.committed.Store(newState())
	return open(d, nil)
}

func open(d *db, clock func() time.Time) *Store {
	s := &Store{Clock: clock, db: d}
	s.queries = queries{s}
	return s
}

// Reopen returns a further handle on the same database with the same clock, also if s is closed.
func (s *Store) Reopen() *Store { return open(s.db, s.Clock) }

// CheckSchema is as [store.Store] has it.
func (s *Store) CheckSchema(ctx context.Context) error {
	d, err := s.open(ctx)
	if err != nil {
		return err
	}
	return d.checkSchema()
}

// Migrate is as [store.Store] has it.
func (s *Store) Migrate(ctx context.Context) error {
	return s.change(ctx, (*state).migrate)
}

// Initialize is as [store.Store] has it.
func (s *Store) Initialize(ctx context.Context, in store.Installation) error {
	return s.write(ctx, func(d *state) error { return d.initialize(in, s.now()) })
}

// Integrity names data keys, and names of such, whose root key is not there, the one broken reference that reading by
// scope cannot show.
func (s *Store) Integrity(ctx context.Context) ([]string, error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return d.orphans(), nil
}

// Close closes this handle and leaves the database and other handles alone.
func (s *Store) Close() error {
	s.closed.Store(true)
	return nil
}

// DeleteScope does what an application's delete that cascades to the scope's root key does: the root key, its data keys
// and all their versions go, and each version leaves a tombstone. It does nothing if there is no such scope.
func (s *Store) DeleteScope(ctx context.Context, scope key.Scope) error {
	return s.write(ctx, func(d *state) error {
		d.deleteScope(scope, s.now())
		return nil
	})
}

// RenameScope does what an application's update that cascades to the scope's root key does: the row has the new name,
// the manifest still the old one. [store.ErrConflict] if the new name is taken; it does nothing if there is no such
// scope.
func (s *Store) RenameScope(ctx context.Context, old, renamed key.Scope) error {
	return s.write(ctx, func(d *state) error { return d.renameScope(old, renamed) })
}

// RequireScopes stands for a foreign key from root keys to an application's table of scopes: from now on Create refuses
// scopes that were not named here in any call. Scopes that have a root key already are not looked at.
func (s *Store) RequireScopes(ctx context.Context, scopes ...key.Scope) error {
	return s.write(ctx, func(d *state) error {
		d.requireScopes(scopes)
		return nil
	})
}

// Refer stands for a row of the application's that refers to the version with this id: Update refuses to destroy it.
func (s *Store) Refer(ctx context.Context, id key.ID) error {
	return s.write(ctx, func(d *state) error { return d.refer(id) })
}

func (s *Store) now() int64 {
	if s.Clock != nil {
		return s.Clock().Unix()
	}
	return time.Now().Unix()
}

// open returns the committed state, with tables or without.
func (s *Store) open(ctx context.Context) (*state, error) {
	if err := store.ContextError(ctx); err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, errClosed
	}
	return s.db.committed.Load(), nil
}

func (s *Store) read(ctx context.Context) (*state, error) {
	d, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	return d, d.checkSchema()
}

func (s *Store) write(ctx context.Context, f func(*state) error) error {
	return s.change(ctx, func(d *state) error {
		if err := d.checkSchema(); err != nil {
			return err
		}
		return f(d)
	})
}

// change replaces the committed state by what f makes of a copy, unless f returns an error.
func (s *Store) change(ctx context.Context, f func(*state) error) error {
	if err := s.acquire(ctx); err != nil {
		return err
	}
	defer s.release()
	d, err := s.open(ctx)
	if err != nil {
		return err
	}
	next := d.clone()
	if err := f(next); err != nil {
		return err
	}
	s.db.committed.Store(next)
	return nil
}

func (s *Store) acquire(ctx context.Context) error {
	if err := store.ContextError(ctx); err != nil {
		return err
	}
	timer := time.NewTimer(lockWait)
	defer timer.Stop()
	select {
	case s.db.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return store.ContextError(ctx)
	case <-timer.C:
		return fmt.Errorf("wait %v for another transaction: %w", lockWait, store.ErrUnavailable)
	}
}

func (s *Store) release() { <-s.db.lock }

// Tx is a transaction of an application's. From Begin to Commit or Rollback it holds the one lock that every write of
// this database needs, so that what it sees cannot change; reads outside it go on and see what was committed before. It
// is not safe for concurrent use.
type Tx struct {
	s    *Store
	d    *state
	over bool
}

// Begin begins a transaction. It waits, without a limit, until no other one is open.
func (s *Store) Begin() *Tx {
	s.db.lock <- struct{}{}
	return &Tx{s: s, d: s.db.committed.Load()}
}

// Commit makes what was done in the transaction visible to all. It is an error if the transaction is over.
func (t *Tx) Commit() error {
	if t.over {
		return errTxOver
	}
	t.s.db.committed.Store(t.d)
	return t.Rollback()
}

// Rollback ends the transaction without a trace. It does nothing if the transaction is over, so that it can be
// deferred.
func (t *Tx) Rollback() error {
	if !t.over {
		t.over = true
		t.s.release()
	}
	return nil
}

// InTx returns the tables inside tx, which has to be of the same database.
func (s *Store) InTx(tx *Tx) store.Tx { return store.Tx{Queries: queries{tx}} }

func (t *Tx) now() int64 { return t.s.now() }

func (t *Tx) read(ctx context.Context) (*state, error) {
	if err := store.ContextError(ctx); err != nil {
		return nil, err
	}
	if t.over {
		return nil, errTxOver
	}
	return t.d, t.d.checkSchema()
}

// write undoes what a refused call did, and keeps what the transaction did before.
func (t *Tx) write(ctx context.Context, f func(*state) error) error {
	d, err := t.read(ctx)
	if err != nil {
		return err
	}
	next := d.clone()
	if err := f(next); err != nil {
		return err
	}
	t.d = next
	return nil
}
