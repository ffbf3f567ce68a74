package faultstore_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

// With nothing armed the wrapped store has to be as good as the one below, inside a transaction, too.
func TestWithoutFaultsKeepsTheContract(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open: func(testing.TB) store.Store {
			mem := memstore.New()
			return pair{faultstore.New(mem), mem}
		},
		Begin: func(t testing.TB, s store.Store) (tx store.Tx, commit, rollback func() error) {
			p := s.(pair)
			memTx := p.mem.Begin()
			t.Cleanup(func() { _ = memTx.Rollback() })
			return p.InTx(p.mem.InTx(memTx)), memTx.Commit, memTx.Rollback
		},
	})
}

// pair is a store and what is below it.
type pair struct {
	*faultstore.Store

	mem *memstore.Store
}

type fixture struct {
	mem    *memstore.Store
	faults *faultstore.Store
	m      *storetest.Maker
	keys   []store.Key
}

// newFixture has one scope with one data key, and nothing counted.
func newFixture(t *testing.T) fixture {
	t.Helper()
	f := fixture{mem: memstore.New(), m: storetest.NewMaker(1)}
	f.faults = faultstore.New(f.mem)
	f.keys = f.m.Scope("a", "sessions")
	if err := f.mem.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.mem.Initialize(t.Context(), f.m.Installation()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.mem.Create(t.Context(), f.m.Inst(), f.keys); err != nil {
		t.Fatal(err)
	}
	return f
}

type call struct {
	name   string
	writes bool
	do     func(ctx context.Context, s store.Queries, f fixture) error
	done   func(ctx context.Context, s store.Queries, f fixture) bool // of what writes
}

var calls = []call{
	{"Installation", false, func(ctx context.Context, s store.Queries, _ fixture) error {
		_, err := s.Installation(ctx)
		return err
	}, nil},
	{"Key", false, func(ctx context.Context, s store.Queries, _ fixture) error {
		_, err := s.Key(ctx, key.Ref{Scope: "a"})
		return err
	}, nil},
	{"KeyOfVersion", false, func(ctx context.Context, s store.Queries, f fixture) error {
		_, err := s.KeyOfVersion(ctx, f.keys[0].Versions[0].ID)
		return err
	}, nil},
	{"Scope", false, func(ctx context.Context, s store.Queries, _ fixture) error {
		_, err := s.Scope(ctx, "a")
		return err
	}, nil},
	{"Name", false, func(ctx context.Context, s store.Queries, _ fixture) error {
		_, _, err := s.Name(ctx, key.Ref{Scope: "a", Purpose: "sessions"})
		return err
	}, nil},
	{"Scopes", false, func(ctx context.Context, s store.Queries, _ fixture) error {
		_, err := s.Scopes(ctx, "", 1)
		return err
	}, nil},
	{"Roll", false, func(ctx context.Context, s store.Queries, _ fixture) error {
		_, err := s.Roll(ctx)
		return err
	}, nil},
	{"Take", true, func(ctx context.Context, s store.Queries, f fixture) error {
		_, err := s.Take(ctx, f.keys[1].Versions[0].ID, 4, 5)
		return err
	}, func(ctx context.Context, s store.Queries, f fixture) bool {
		n, err := s.Take(ctx, f.keys[1].Versions[0].ID, 5, 5)
		return err == nil && n == 1
	}},
	{"Create", true, func(ctx context.Context, s store.Queries, f fixture) error {
		_, err := s.Create(ctx, f.m.Inst(), f.m.Scope("b"))
		return err
	}, func(ctx context.Context, s store.Queries, _ fixture) bool {
		_, err := s.Scope(ctx, "b")
		return err == nil
	}},
	{"Update", true, func(ctx context.Context, s store.Queries, f fixture) error {
		return s.Update(ctx, f.m.Next(&f.keys[0]))
	}, func(ctx context.Context, s store.Queries, _ fixture) bool {
		a, err := s.Scope(ctx, "a")
		return err == nil && a.Root.Seq == 2
	}},
	{"Rewrap", true, func(ctx context.Context, s store.Queries, f fixture) error {
		r := f.m.Rewrap(&f.keys[0].Versions[0], "")
		_, err := s.Rewrap(ctx, f.m.Inst(), []store.Rewrap{r}, nil)
		return err
	}, func(ctx context.Context, s store.Queries, f fixture) bool {
		a, err := s.Scope(ctx, "a")
		return err == nil && !cmp.Equal(a.Root.Versions[0].Blob, f.keys[0].Versions[0].Blob)
	}},
}

func TestFailsOnceBeforeOrAfter(t *testing.T) {
	ctx := t.Context()
	for _, c := range calls {
		for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
			for _, inTx := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, mode %d, in a transaction %v", c.name, mode, inTx), func(t *testing.T) {
					f := newFixture(t)
					var through, beneath store.Queries = f.faults, f.mem
					name := c.name
					if inTx {
						tx := f.mem.Begin()
						defer func() { _ = tx.Rollback() }()
						beneath = f.mem.InTx(tx)
						through = f.faults.InTx(f.mem.InTx(tx))
						name = "Tx." + name
					}
					f.faults.Fail(0, mode)
					err := c.do(ctx, through, f)
					want := store.ErrUnavailable
					if c.writes && mode == faultstore.After {
						want = store.ErrUnknownOutcome
					}
					if !errors.Is(err, want) || !f.faults.Fired() {
						t.Errorf("error %v, fired %v; want %v, true", err, f.faults.Fired(), want)
					}
					if c.writes && c.done(ctx, beneath, f) != (mode == faultstore.After) {
						t.Errorf("done: %v", mode != faultstore.After)
					}
					if log := f.faults.Log(); !cmp.Equal(log, []string{name}) {
						t.Errorf("Log %q, want %q alone", log, name)
					}
					if mode == faultstore.Before || !c.writes {
						if err := c.do(ctx, through, f); err != nil {
							t.Errorf("the call after it: %v", err)
						}
					}
				})
			}
		}
	}
}

func TestWholeStoreCallsFailToo(t *testing.T) {
	ctx := t.Context()
	for name, c := range map[string]struct {
		do   func(s store.Store, m *storetest.Maker) error
		lost error
	}{
		"CheckSchema": {func(s store.Store, _ *storetest.Maker) error { return s.CheckSchema(ctx) }, store.ErrUnavailable},
		"Migrate":     {func(s store.Store, _ *storetest.Maker) error { return s.Migrate(ctx) }, store.ErrUnknownOutcome},
		"Initialize": {func(s store.Store, m *storetest.Maker) error {
			return s.Initialize(ctx, m.Installation())
		}, store.ErrUnknownOutcome},
		"Integrity": {func(s store.Store, _ *storetest.Maker) error {
			_, err := s.Integrity(ctx)
			return err
		}, store.ErrUnavailable},
		"Sign": {func(s store.Store, m *storetest.Maker) error {
			_, err := s.Sign(ctx, m.Instance())
			return err
		}, store.ErrUnknownOutcome},
		"Leave": {func(s store.Store, _ *storetest.Maker) error { return s.Leave(ctx, "ki_a") }, store.ErrUnknownOutcome},
		"Due": {func(s store.Store, _ *storetest.Maker) error {
			_, err := s.Due(ctx, store.AllBuckets, store.Due{}, 1)
			return err
		}, store.ErrUnavailable},
		"Upcoming": {func(s store.Store, _ *storetest.Maker) error {
			_, _, err := s.Upcoming(ctx)
			return err
		}, store.ErrUnavailable},
		"Lagging": {func(s store.Store, _ *storetest.Maker) error {
			_, _, err := s.Lagging(ctx, "", 1)
			return err
		}, store.ErrUnavailable},
		"Lease": {func(s store.Store, _ *storetest.Maker) error {
			l, ok, err := s.Lease(ctx, "sweep", "one", 1)
			if ok || l != (store.Lease{}) {
				t.Errorf("Lease gave %+v with %v", l, err)
			}
			return err
		}, store.ErrUnknownOutcome},
		"Release": {func(s store.Store, _ *storetest.Maker) error { return s.Release(ctx, store.Lease{}) }, store.ErrUnknownOutcome},
		"ChangeRoots": {func(s store.Store, m *storetest.Maker) error {
			in := m.Installation()
			return s.ChangeRoots(ctx, m.NextRoots(&in))
		}, store.ErrUnknownOutcome},
		"Rekey": {func(s store.Store, m *storetest.Maker) error {
			_, err := s.Rekey(ctx, m.Inst(), nil, nil)
			return err
		}, store.ErrUnknownOutcome},
		"NotUnder": {func(s store.Store, _ *storetest.Maker) error {
			_, _, err := s.NotUnder(ctx, [16]byte{}, "", 1)
			return err
		}, store.ErrUnavailable},
		"Named": {func(s store.Store, _ *storetest.Maker) error {
			_, err := s.Named(ctx, "a", "", 1)
			return err
		}, store.ErrUnavailable},
		"NamesNotUnder": {func(s store.Store, _ *storetest.Maker) error {
			_, err := s.NamesNotUnder(ctx, [16]byte{}, 1)
			return err
		}, store.ErrUnavailable},
		"PutName": {func(s store.Store, m *storetest.Maker) error {
			return s.PutName(ctx, m.Inst(), 0, m.Name("krk_a", "one"))
		}, store.ErrUnknownOutcome},
		"RemoveKey": {func(s store.Store, m *storetest.Maker) error {
			return s.RemoveKey(ctx, m.Inst(), "kdk_a", 1, 0, m.Name("krk_a", "one"))
		}, store.ErrUnknownOutcome},
		"Escrows": {func(s store.Store, _ *storetest.Maker) error {
			_, err := s.Escrows(ctx)
			return err
		}, store.ErrUnavailable},
		"AddEscrow": {func(s store.Store, m *storetest.Maker) error {
			return s.AddEscrow(ctx, m.Inst(), store.Escrow{})
		}, store.ErrUnknownOutcome},
		"Tidy": {func(s store.Store, _ *storetest.Maker) error {
			_, err := s.Tidy(ctx)
			return err
		}, store.ErrUnknownOutcome},
	} {
		s := faultstore.New(memstore.New())
		s.Fail(0, faultstore.Before)
		if err := c.do(s, storetest.NewMaker(1)); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s, before: %v", name, err)
		}
		s.Fail(0, faultstore.After)
		if err := c.do(s, storetest.NewMaker(1)); !errors.Is(err, c.lost) {
			t.Errorf("%s, after: %v; want %v", name, err, c.lost)
		}
	}
}

func TestCountsAcrossStoreAndTransactions(t *testing.T) {
	f := newFixture(t)
	tx := f.mem.Begin()
	defer func() { _ = tx.Rollback() }()
	inTx := f.faults.InTx(f.mem.InTx(tx))
	f.faults.Fail(2, faultstore.Before)
	for n, s := range []store.Queries{f.faults, inTx, f.faults, inTx} {
		_, err := s.Scopes(t.Context(), "", 1)
		if failed := errors.Is(err, store.ErrUnavailable); failed != (n == 2) {
			t.Errorf("call %d: %v", n, err)
		}
	}
	if got := f.faults.Calls(); got != 4 {
		t.Errorf("Calls: %d, want 4", got)
	}
	if d := cmp.Diff([]string{"Scopes", "Tx.Scopes", "Scopes", "Tx.Scopes"}, f.faults.Log()); d != "" {
		t.Errorf("Log (-want +got):\n%s", d)
	}
}

func TestDisarmedNeverFires(t *testing.T) {
	f := newFixture(t)
	f.faults.Fail(0, faultstore.Before)
	f.faults.Disarm()
	for range 3 {
		if _, err := f.faults.Scopes(t.Context(), "", 1); err != nil || f.faults.Fired() {
			t.Errorf("Scopes: %v, fired %v", err, f.faults.Fired())
		}
	}
}

func TestFailCountsFromNowAndForgetsTheLast(t *testing.T) {
	f := newFixture(t)
	f.faults.Fail(0, faultstore.Before)
	_, first := f.faults.Scopes(t.Context(), "", 1)
	f.faults.Fail(1, faultstore.Before)
	if f.faults.Fired() {
		t.Error("Fired before the call came")
	}
	_, second := f.faults.Scopes(t.Context(), "", 1)
	_, third := f.faults.Scopes(t.Context(), "", 1)
	if first == nil || second != nil || third == nil {
		t.Errorf("errors %v, %v, %v; want the second call alone to succeed", first, second, third)
	}
}

func TestHookRunsBeforeTheCallAndMayChangeTheDatabase(t *testing.T) {
	f := newFixture(t)
	var seen []string
	f.faults.Hook(func(call string) {
		seen = append(seen, call)
		if call == "Update" {
			if err := f.mem.Update(t.Context(), f.m.Next(&f.keys[0])); err != nil {
				t.Errorf("Update below: %v", err)
			}
		}
	})
	if _, err := f.faults.Key(t.Context(), key.Ref{Scope: "a"}); err != nil {
		t.Errorf("Key: %v", err)
	}
	if err := f.faults.Update(t.Context(), f.m.Next(&f.keys[0])); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Update: %v; want %v, as somebody came in between", err, store.ErrConflict)
	}
	f.faults.Hook(nil)
	if _, err := f.faults.Key(t.Context(), key.Ref{Scope: "a"}); err != nil {
		t.Errorf("Key: %v", err)
	}
	if d := cmp.Diff([]string{"Key", "Update"}, seen); d != "" {
		t.Errorf("the hook saw (-want +got):\n%s", d)
	}
}

func TestOfConcurrentCallsJustOneFails(t *testing.T) {
	f := newFixture(t)
	f.faults.Fail(7, faultstore.Before)
	errs := make([]error, 32)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = f.faults.Scopes(t.Context(), "", 1) })
	}
	wg.Wait()
	failed := 0
	for _, err := range errs {
		if err != nil {
			failed++
		}
	}
	if failed != 1 || f.faults.Calls() != 32 {
		t.Errorf("%d of %d calls failed, want 1 of 32", failed, f.faults.Calls())
	}
}

func TestWhileItIsAwayEveryCallFails(t *testing.T) {
	f := newFixture(t)
	f.faults.Fail(1, faultstore.After)
	f.faults.Away(true)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := f.faults.Scopes(t.Context(), "", 1); !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("Scopes: %v; want %v", err, store.ErrUnavailable)
			}
		})
	}
	wg.Wait()
	f.faults.Away(false)
	for i, want := range []error{nil, store.ErrUnavailable, nil} {
		if _, err := f.faults.Scopes(t.Context(), "", 1); !errors.Is(err, want) {
			t.Errorf("call %d after that: %v; want %v", i, err, want)
		}
	}
	if f.faults.Calls() != 35 {
		t.Errorf("%d calls, want 35", f.faults.Calls())
	}
}
