package keyhold

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// Each key is rotated by its own period, and its scope's data keys are rewrapped, also by a process that knows none of
// their purposes.
func TestAProcessThatKnowsNoPurposeRotatesAllOfThem(t *testing.T) {
	another := Ref{Scope: inner.Scope, Purpose: "another"}
	inTwoWith(t, Config{Policies: map[Purpose]Policy{
		inner.Purpose: {RotateEvery: time.Hour}, another.Purpose: {RotateEvery: 3 * time.Hour}, "": {RotateEvery: 2*time.Hour + time.Minute},
	}}, func(t *testing.T, w *two) {
		bare, err := New(t.Context(), w.store, Config{Root: w.root})
		check(t, err)
		defer func() { check(t, bare.Close()) }()
		stop := running(t, bare)
		pass(time.Hour + time.Minute)
		w.hasStates(t, inner, key.Retired, key.Active)
		w.hasStates(t, another, key.Active)
		w.hasStates(t, innerRoot, key.Active)
		pass(time.Hour + time.Minute)
		w.hasStates(t, inner, key.Retired, key.Retired, key.Active)
		w.hasStates(t, another, key.Active)
		w.hasStates(t, innerRoot, key.Retired, key.Active)
		fam, err := w.store.Scope(t.Context(), inner.Scope)
		check(t, err)
		for _, data := range fam.Data {
			for _, v := range data.Versions {
				if v.Parent != fam.Root.Versions[1].ID {
					t.Errorf("version %d of %q is not under the root key's head", v.Number, data.Purpose)
				}
			}
		}
		pass(time.Hour)
		w.hasStates(t, another, key.Retired, key.Active)
		stop()
		w.sound(t)
	})
}

// What the clock of a process says decides nothing, were it ten years from the database's. It is the database's that is
// moved, as all processes of a machine have one wall clock, and it cannot be set for one of them. That comes to the
// same: what counts is how far they are from each other, and a Manager learns the database's time from the store alone.
// TestFleetRotatesByTheClockOfADatabaseThatIsYearsOff does it to PostgreSQL.
func TestADatabaseWhoseClockIsYearsOff(t *testing.T) {
	for _, off := range []time.Duration{-10 * 365 * 24 * time.Hour, 10 * 365 * 24 * time.Hour} {
		bubble.Test(t, func(t *testing.T) {
			root, err := localroot.Generate(t.TempDir() + "/root.key")
			check(t, err)
			s := memstore.New()
			s.Clock = func() time.Time { return time.Now().Add(off) }
			w := &two{store: s, root: root, config: Config{
				Grace: time.Hour, Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: 24 * time.Hour}},
			}}
			w.other = w.open(t, s)
			check(t, w.other.CreateScope(t.Context(), inner.Scope))
			w.Manager = w.open(t, s)
			ct := sealing(t, w.Manager, inner, "x")
			stop := running(t, w.Manager, w.other)
			pass(24*time.Hour - time.Second)
			w.hasStates(t, inner, key.Active)
			pass(15 * time.Second)
			w.hasStates(t, inner, key.Retired, key.Active)
			pass(5 * time.Second)
			w.sealsWith(t, 2)
			reads(t, w.Manager, ct, "x")
			fam, err := s.Key(t.Context(), inner)
			check(t, err)
			old := fam.Data[0].Versions[0].ID
			check(t, w.other.Disable(t.Context(), old))
			pass(time.Hour - time.Second)
			wants(t, w.other.Destroy(t.Context(), old), ErrState)
			pass(time.Second)
			check(t, w.other.AwaitInstances(t.Context()))
			check(t, w.other.Destroy(t.Context(), old))
			stop()
			w.sound(t)
		})
	}
}

// Run and Close return as soon as nothing is under way: nobody waits for a tick, and nothing goes on afterwards.
func TestRunEndsAtOnce(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		stop := running(t, w.Manager, w.other)
		pass(10 * time.Minute)
		began := time.Now()
		stop()
		check(t, w.Manager.Close())
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
		before := w.calls.Calls()
		pass(48 * time.Hour)
		if got := w.since(before); len(got) != 0 {
			t.Errorf("afterwards it called %v", got)
		}
	})
}

// The cache is used by many goroutines at once, which move what they find to the front: nothing is lost, and nothing
// is kept beyond the limit.
func TestTheCacheHoldsManyGoroutinesAtOnce(t *testing.T) {
	const goroutines, names, limit = 8, 100, 60
	c := newCache(defaultCached)
	c.snapshots = newLRU[Ref, *snapshot](limit)
	ref := func(i int) Ref { return Ref{Scope: "s", Purpose: Purpose(fmt.Sprint("p", i%names))} }
	of := func(ref Ref) *snapshot {
		fam := family{Family: store.Family{Root: store.Key{Scope: ref.Scope}, Data: []store.Key{{Purpose: ref.Purpose}}}}
		return fam.keep(nil, instant{}, 0, 0)
	}
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range 50_000 {
				n := i * (g + 1)
				if _, ok := c.snapshot(ref(n)); !ok {
					c.keepSnapshot(of(ref(n)), c.forgotten())
				}
			}
		})
	}
	wg.Wait()
	found := 0
	for n, s := range c.snapshots.all() {
		if c.snapshots.find(s.key()) != n {
			t.Errorf("%v is in order, and not found", s.key())
		}
		found++
	}
	if kept := c.snapshots.len(); kept != limit || found != limit {
		t.Errorf("%d are kept, and %d in order, want %d", kept, found, limit)
	}
}
