// Package faultstore makes any store fail at a chosen call, for tests.
//
// A test that sweeps n from 0 until the fault no longer fires has seen its operation fail at each of its calls:
//
//	for n := 0; ; n++ {
//		faults := faultstore.New(memstore.New())
//		...
//		faults.Fail(n, faultstore.After)
//		err := operation(faults)
//		if !faults.Fired() {
//			break
//		}
//		...
//	}
package faultstore

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Mode says when a call fails.
type Mode int

// The modes.
const (
	Before Mode = iota // nothing is done; the error is [store.ErrUnavailable]
	After              // done, and the answer is lost: [store.ErrUnknownOutcome] if it writes, else [store.ErrUnavailable]
)

// Store passes every call on to another store, but for the one that has to fail. It is safe for concurrent use. Every
// call counts but those of Close, InTx and the functions below, whatever comes of it, also those inside a transaction.
type Store struct {
	queries
	s store.Store
}

// New returns a store that passes every call on to s until it is told to fail.
func New(s store.Store) *Store {
	return &Store{queries: queries{q: s, plan: &plan{}}, s: s}
}

// Fail lets the n-th call from now fail, 0 being the next, and only that one. It replaces what an earlier Fail said,
// and [Store.Fired] is false again.
func (s *Store) Fail(n int, mode Mode) {
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	s.plan.armed, s.plan.fired = true, false
	s.plan.at, s.plan.mode = len(s.plan.log)+n, mode
}

// Away lets every call fail before it begins, however many come at once, until it is told otherwise: the database is
// away. What [Store.Fail] said waits until then.
func (s *Store) Away(away bool) {
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	s.plan.away = away
}

// Disarm lets no call fail until the next Fail.
func (s *Store) Disarm() {
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	s.plan.armed = false
}

// Fired says whether the call that the last Fail meant has come.
func (s *Store) Fired() bool {
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	return s.plan.fired
}

// Calls is the number of calls since New.
func (s *Store) Calls() int {
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	return len(s.plan.log)
}

// Log is the names of the calls since New, in the order in which they began, such as "Create" and, inside a
// transaction, "Tx.Create".
func (s *Store) Log() []string {
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	return slices.Clone(s.plan.log)
}

// Hook lets f be called with its name before each call; nil ends that. Calls that f itself makes through this store or
// its transactions call f again, so it should use the store below.
func (s *Store) Hook(f func(call string)) {
	s.plan.mu.Lock()
	defer s.plan.mu.Unlock()
	s.plan.hook = f
}

// InTx returns tx with its calls counted with the others, and failing like them. A call that fails in mode After has
// been done inside the transaction.
func (s *Store) InTx(tx store.Tx) store.Tx {
	return store.Tx{Queries: queries{q: tx.Queries, plan: s.plan, prefix: "Tx."}}
}

// Epochs passes on to the store below.
func (s *Store) Epochs(ctx context.Context) (store.Epochs, error) {
	return do(s.queries, "Epochs", reads, func() (store.Epochs, error) { return s.s.Epochs(ctx) })
}

// Families passes on to the store below.
func (s *Store) Families(ctx context.Context, scopes []key.Scope) (list []store.Family, e store.Epochs, err error) {
	list, err = do(s.queries, "Families", reads, func() (all []store.Family, err error) {
		all, e, err = s.s.Families(ctx, scopes)
		return all, err
	})
	return list, e, err
}

// Keys passes on to the store below.
func (s *Store) Keys(ctx context.Context, refs []key.Ref) ([]store.Family, error) {
	return do(s.queries, "Keys", reads, func() ([]store.Family, error) { return s.s.Keys(ctx, refs) })
}

// Lacking passes on to the store below.
func (s *Store) Lacking(ctx context.Context, p key.Purpose, after key.Scope, limit int) ([]key.Scope, error) {
	return do(s.queries, "Lacking", reads, func() ([]key.Scope, error) { return s.s.Lacking(ctx, p, after, limit) })
}

// WasDestroyed passes on to the store below.
func (s *Store) WasDestroyed(ctx context.Context, id key.ID) (bool, error) {
	return do(s.queries, "WasDestroyed", reads, func() (bool, error) { return s.s.WasDestroyed(ctx, id) })
}

// Named passes on to the store below.
func (s *Store) Named(ctx context.Context, scope key.Scope, after key.Purpose, limit int) ([]store.Named, error) {
	return do(s.queries, "Named", reads, func() ([]store.Named, error) { return s.s.Named(ctx, scope, after, limit) })
}

// NamesNotUnder passes on to the store below.
func (s *Store) NamesNotUnder(ctx context.Context, kid [16]byte, limit int) ([]store.Name, error) {
	return do(s.queries, "NamesNotUnder", reads, func() ([]store.Name, error) {
		return s.s.NamesNotUnder(ctx, kid, limit)
	})
}

// PutName passes on to the store below.
func (s *Store) PutName(ctx context.Context, inst [16]byte, from uint64, n store.Name) error {
	return s.doErr("PutName", writes, func() error { return s.s.PutName(ctx, inst, from, n) })
}

// RemoveKey passes on to the store below.
func (s *Store) RemoveKey(ctx context.Context, inst [16]byte, id key.ID, keyFrom, from uint64, n store.Name) error {
	return s.doErr("RemoveKey", writes, func() error { return s.s.RemoveKey(ctx, inst, id, keyFrom, from, n) })
}

// UpdateAll passes on to the store below.
func (s *Store) UpdateAll(ctx context.Context, updates []store.Update) ([]bool, error) {
	return do(s.queries, "UpdateAll", writes, func() ([]bool, error) { return s.s.UpdateAll(ctx, updates) })
}

// Purposes passes on to the store below.
func (s *Store) Purposes(ctx context.Context) ([]store.Purpose, error) {
	return do(s.queries, "Purposes", reads, func() ([]store.Purpose, error) { return s.s.Purposes(ctx) })
}

// AddPurposes passes on to the store below.
func (s *Store) AddPurposes(ctx context.Context, purposes []store.Purpose) error {
	return s.doErr("AddPurposes", writes, func() error { return s.s.AddPurposes(ctx, purposes) })
}

// Register passes on to the store below.
func (s *Store) Register(ctx context.Context, c store.Column) error {
	return s.doErr("Register", writes, func() error { return s.s.Register(ctx, c) })
}

// Unregister passes on to the store below.
func (s *Store) Unregister(ctx context.Context, c store.Column) error {
	return s.doErr("Unregister", writes, func() error { return s.s.Unregister(ctx, c) })
}

// CheckSchema passes on to the store below.
func (s *Store) CheckSchema(ctx context.Context) error {
	return s.doErr("CheckSchema", reads, func() error { return s.s.CheckSchema(ctx) })
}

// Migrate passes on to the store below.
func (s *Store) Migrate(ctx context.Context) error {
	return s.doErr("Migrate", writes, func() error { return s.s.Migrate(ctx) })
}

// Initialize passes on to the store below.
func (s *Store) Initialize(ctx context.Context, in store.Installation) error {
	return s.doErr("Initialize", writes, func() error { return s.s.Initialize(ctx, in) })
}

// Integrity passes on to the store below.
func (s *Store) Integrity(ctx context.Context) ([]string, error) {
	return do(s.queries, "Integrity", reads, func() ([]string, error) { return s.s.Integrity(ctx) })
}

// Close closes the store below. It never fails by itself and does not count.
func (s *Store) Close() error { return s.s.Close() }

// plan is what a store and its transactions share.
type plan struct {
	mu    sync.Mutex
	away  bool
	armed bool
	fired bool
	at    int // the call that fails, as an index of log
	mode  Mode
	log   []string
	hook  func(call string)
}

// next counts a call and says whether it fails, and how.
func (p *plan) next(call string) (mode Mode, fails bool) {
	p.mu.Lock()
	hook := p.hook
	p.mu.Unlock()
	if hook != nil {
		hook(call)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away {
		p.log = append(p.log, call)
		p.at++
		return Before, true
	}
	fails = p.armed && len(p.log) == p.at
	p.log = append(p.log, call)
	if fails {
		p.armed, p.fired = false, true
	}
	return p.mode, fails
}

type queries struct {
	q      store.Queries
	plan   *plan
	prefix string
}

var (
	_ store.Store   = (*Store)(nil)
	_ store.Queries = queries{}
)

// What a call does decides how a lost answer is reported.
type effect int

const (
	reads effect = iota
	writes
)

func do[T any](q queries, call string, effect effect, f func() (T, error)) (T, error) {
	mode, fails := q.plan.next(q.prefix + call)
	if !fails {
		return f()
	}
	var none T
	if mode == Before {
		return none, fmt.Errorf("%s%s was made to fail before it began: %w", q.prefix, call, store.ErrUnavailable)
	}
	// What comes of it is what the caller never gets to know.
	_, _ = f()
	err := store.ErrUnavailable
	if effect == writes {
		err = store.ErrUnknownOutcome
	}
	return none, fmt.Errorf("%s%s was made to fail after it ended: %w", q.prefix, call, err)
}

func (q queries) doErr(call string, effect effect, f func() error) error {
	_, err := do(q, call, effect, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

func (q queries) Installation(ctx context.Context) (store.Installation, error) {
	return do(q, "Installation", reads, func() (store.Installation, error) { return q.q.Installation(ctx) })
}

func (q queries) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	return do(q, "Key", reads, func() (store.Family, error) { return q.q.Key(ctx, ref) })
}

func (q queries) KeyOfVersion(ctx context.Context, id key.ID) (store.Family, error) {
	return do(q, "KeyOfVersion", reads, func() (store.Family, error) { return q.q.KeyOfVersion(ctx, id) })
}

func (q queries) Scope(ctx context.Context, scope key.Scope) (store.Family, error) {
	return do(q, "Scope", reads, func() (store.Family, error) { return q.q.Scope(ctx, scope) })
}

func (q queries) Name(ctx context.Context, ref key.Ref) (store.Family, store.Name, error) {
	type result struct {
		f store.Family
		n store.Name
	}
	r, err := do(q, "Name", reads, func() (r result, err error) {
		r.f, r.n, err = q.q.Name(ctx, ref)
		return r, err
	})
	return r.f, r.n, err
}

func (q queries) Scopes(ctx context.Context, after key.Scope, limit int) ([]key.Scope, error) {
	return do(q, "Scopes", reads, func() ([]key.Scope, error) { return q.q.Scopes(ctx, after, limit) })
}

func (q queries) References(ctx context.Context, id key.ID) ([]store.Reference, error) {
	return do(q, "References", reads, func() ([]store.Reference, error) { return q.q.References(ctx, id) })
}

func (q queries) Create(ctx context.Context, inst [16]byte, keys []store.Key) (int, error) {
	return do(q, "Create", writes, func() (int, error) { return q.q.Create(ctx, inst, keys) })
}

func (q queries) Update(ctx context.Context, u store.Update) error {
	return q.doErr("Update", writes, func() error { return q.q.Update(ctx, u) })
}

func (q queries) Shred(ctx context.Context, inst [16]byte, scope key.Scope) (store.Shredded, error) {
	return do(q, "Shred", writes, func() (store.Shredded, error) { return q.q.Shred(ctx, inst, scope) })
}

func (q queries) Rewrap(ctx context.Context, inst [16]byte, rows []store.Rewrap, under *store.Lease) (int, error) {
	return do(q, "Rewrap", writes, func() (int, error) { return q.q.Rewrap(ctx, inst, rows, under) })
}
