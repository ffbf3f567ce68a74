package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/internal/rotor"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

// running runs managers until the test says stop.
func running(t *testing.T, managers ...*Manager) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, m := range managers {
		wg.Go(func() {
			if err := m.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("run: %v", err)
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// told collects the events of a manager.
type told struct {
	mu     sync.Mutex
	events []Event
}

func (l *told) hear(_ context.Context, e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *told) kinds() (kinds []EventKind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// states is the states of a data key's versions.
func (w *two) states(t *testing.T, ref Ref) (states []key.State) {
	t.Helper()
	fam, err := w.store.Key(t.Context(), ref)
	check(t, err)
	k := &fam.Root
	if !ref.IsRoot() {
		k = &fam.Data[0]
	}
	for _, v := range k.Versions {
		states = append(states, v.State)
	}
	return states
}

func (w *two) hasStates(t *testing.T, ref Ref, want ...key.State) {
	t.Helper()
	if got := w.states(t, ref); !slices.Equal(got, want) {
		t.Errorf("%v: versions are %v, want %v", ref, got, want)
	}
}

// sound asserts that everything the tables hold is as it has to be.
func (w *two) sound(t *testing.T) {
	t.Helper()
	storetest.Check(t, w.store)
	findings, err := w.other.Check(t.Context())
	check(t, err)
	for _, f := range findings {
		t.Error(f)
	}
}

var innerRoot = Ref{Scope: inner.Scope}

// Each key that is due gets one successor, however many run, and each root key's data keys are wrapped anew.
func TestDueKeysAreRotatedOnce(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{
		inner.Purpose: {RotateEvery: time.Hour}, "": {RotateEvery: 4*time.Hour + time.Minute},
	}}, func(t *testing.T, w *two) {
		ct := sealing(t, w.Manager, inner, "x")
		sealing(t, w.other, inner, "x")
		stop := running(t, w.Manager, w.other)
		pass(time.Hour - time.Second)
		w.hasStates(t, inner, key.Active)
		pass(15 * time.Second)
		w.hasStates(t, inner, key.Retired, key.Active)
		w.hasStates(t, innerRoot, key.Active)
		pass(3*time.Hour + 3*time.Minute)
		w.hasStates(t, innerRoot, key.Retired, key.Active)
		w.hasStates(t, inner, key.Retired, key.Retired, key.Retired, key.Retired, key.Active)
		fam, err := w.store.Scope(t.Context(), inner.Scope)
		check(t, err)
		for _, data := range fam.Data {
			for _, v := range data.Versions {
				if v.Parent != fam.Root.Versions[1].ID {
					t.Errorf("version %d of %q is not under the root key's head", v.Number, data.Purpose)
				}
			}
		}
		reads(t, w.Manager, ct, "x")
		stop()
		w.sound(t)
	})
}

// With another instance there, a new version is pending until that has seen it; alone, it is the head at once.
func TestANewVersionWaitsForTheOtherInstances(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}}, func(t *testing.T, w *two) {
		pass(time.Hour)
		swept, err := w.other.Sweep(t.Context()) // the reader has signed, and lives for another quarter of an hour
		check(t, err)
		w.hasStates(t, inner, key.Retired, key.Active)
		if swept.Rotated != 1 || swept.Pending != 0 {
			t.Errorf("the reader was gone: %+v", swept)
		}

		sealing(t, w.Manager, inner, "x")
		pass(time.Hour - time.Minute)
		sealing(t, w.Manager, inner, "x")
		pass(time.Minute)
		swept, err = w.other.Sweep(t.Context())
		check(t, err)
		if swept.Rotated != 0 || swept.Pending != 1 {
			t.Errorf("with the reader there: %+v", swept)
		}
		w.hasStates(t, inner, key.Retired, key.Active, key.Pending)
		w.sealsWith(t, 2)

		// It asks, so that it sees the epochs, and then again, to say so.
		w.Manager.epochs.changed()
		sealing(t, w.Manager, inner, "x")
		w.Manager.epochs.changed()
		sealing(t, w.Manager, inner, "x")
		swept, err = w.other.Sweep(t.Context())
		check(t, err)
		if swept.Rotated != 1 || swept.Pending != 0 {
			t.Errorf("the reader has seen it: %+v", swept)
		}
		w.hasStates(t, inner, key.Retired, key.Retired, key.Active)
		pass(5 * time.Second)
		w.sealsWith(t, 3)

		// An instance that says nothing is not waited for longer than any takes whose questions are answered.
		pass(time.Hour - 5*time.Second)
		sealing(t, w.Manager, inner, "x")
		for _, want := range []Swept{{Pending: 1}, {Pending: 1}, {Rotated: 1}} {
			if swept, err = w.other.Sweep(t.Context()); err != nil || swept != want {
				t.Errorf("%+v, %v, want %+v", swept, err, want)
			}
			pass(activateAfter * time.Second / 2)
		}
		w.sound(t)
	})
}

// A key that was due for longer than a whole period is rotated once, and processes that come and go change nothing.
func TestRestartsDoNotPutOffARotation(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}}, func(t *testing.T, w *two) {
		for range 40 {
			m := w.open(t, w.store)
			stop := running(t, m)
			pass(2 * time.Minute)
			stop()
			check(t, m.Close())
		}
		w.hasStates(t, inner, key.Retired, key.Active)
		pass(10 * time.Hour)
		stop := running(t, w.other)
		pass(2 * time.Minute)
		stop()
		w.hasStates(t, inner, key.Retired, key.Retired, key.Active)
		w.sound(t)
	})
}

// A key at which something fails holds up no other; it is tried again, ever less often, and told.
func TestAKeyThatFailsHoldsUpNoOther(t *testing.T) {
	var heard told
	inTwoWith(t, Config{OnEvent: heard.hear, Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}}, func(t *testing.T, w *two) {
		for i := range 300 {
			check(t, w.other.CreateScope(t.Context(), Scope(fmt.Sprint("s", i))))
		}
		var right []byte
		w.store.Edit(func(d *memstore.Data) {
			right = d.Key(inner).MAC
			d.Key(inner).MAC = make([]byte, 32)
		})
		stop := running(t, w.other)
		pass(time.Hour + 2*time.Minute)
		for i := range 300 {
			w.hasStates(t, Ref{Scope: Scope(fmt.Sprint("s", i)), Purpose: inner.Purpose}, key.Retired, key.Active)
		}
		w.hasStates(t, inner, key.Active)
		failures := func() (n int) {
			for _, k := range heard.kinds() {
				if k == RotationFailed {
					n++
				}
			}
			return n
		}
		if n := failures(); n != 1 && n != 2 {
			t.Errorf("%d failures were told in two minutes, want one or two", n)
		}
		pass(50 * time.Minute)
		if n := failures(); n < 4 || n > 7 {
			t.Errorf("%d failures were told in an hour, want four to seven: after 1, 2, 4, 8, 16, 32 minutes", n)
		}
		w.store.Edit(func(d *memstore.Data) { d.Key(inner).MAC = right })
		pass(2 * time.Hour)
		if got := w.states(t, inner); len(got) < 2 {
			t.Errorf("it is not rotated when it is right again: %v", got)
		}
		stop()
	})
}

// While Run runs, no call waits for the database.
func TestNoCallWaitsWhileRunRuns(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		sealing(t, w.Manager, inner, "x")
		stop := running(t, w.Manager)
		for range 1500 { // for twenty minutes, in which it grows too old
			if i := time.Now().Minute(); i%7 == 3 && time.Now().Second() == 0 {
				rotated(t, w, inner)
			}
			synctest.Wait()
			before := w.calls.Calls()
			sealing(t, w.Manager, inner, "x")
			if got := w.since(before); len(got) != 0 {
				t.Errorf("a call made %v", got)
			}
			pass(777 * time.Millisecond)
		}
		stop()
	})
}

// Run survives a database that is away, at any call, and goes on when it is back.
func TestRunSurvivesEveryFault(t *testing.T) {
	for n := 0; ; n++ {
		fired := true
		inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}, "": {RotateEvery: time.Hour}}}, func(t *testing.T, w *two) {
			pass(time.Hour)
			mode := faultstore.Before
			if n%2 == 1 {
				mode = faultstore.After
			}
			w.calls.Fail(n/2, mode)
			stop := running(t, w.Manager)
			pass(5 * time.Minute)
			fired = w.calls.Fired()
			w.calls.Disarm()
			w.hasStates(t, inner, key.Retired, key.Active)
			w.hasStates(t, innerRoot, key.Retired, key.Active)
			stop()
			w.sound(t)
		})
		if !fired || n > 400 {
			if n < 20 {
				t.Errorf("only %d calls were made", n/2)
			}
			return
		}
	}
}

// What is written under a lease that somebody else has by now is refused.
func TestWhoLostItsLeaseWritesNothing(t *testing.T) {
	inTwoWith(t, Config{Timeout: -1, Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}}, func(t *testing.T, w *two) {
		pass(time.Hour)
		taken := false
		w.calls.Hook(func(call string) {
			if call != "Update" || taken {
				return
			}
			taken = true
			pass(61 * time.Second) // as if the process had been stopped for so long
			s := rotor.Sweeper{Fleet: w.store, Owner: w.other.self.ID}
			for b := range store.Buckets {
				_, ok, err := s.Hold(t.Context(), fmt.Sprintf("keys/%02d", b))
				check(t, err)
				if !ok {
					t.Errorf("bucket %d is still held", b)
				}
			}
		})
		due, err := w.store.Due(t.Context(), store.AllBuckets, store.Due{}, 10)
		if err != nil || len(due) != 1 {
			t.Fatalf("due: %v, %v", due, err)
		}
		s := w.Manager.newSweep()
		held, ok, err := s.sweeper.Hold(t.Context(), fmt.Sprintf("keys/%02d", store.Bucket(due[0].KeyID)))
		if err != nil || !ok {
			t.Fatalf("hold: %v, %v", ok, err)
		}
		rotated, err := s.rotateDue(t.Context(), inner, due[0], held.Lease())
		wants(t, err, store.ErrConflict)
		if !taken || rotated {
			t.Errorf("rotated: %v", rotated)
		}
		w.hasStates(t, inner, key.Active)
		w.sound(t)
	})
}

// Two that sweep at the same time share the work, and neither fails.
func TestSweepsShareTheWork(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}}, func(t *testing.T, w *two) {
		const scopes = 400
		for i := range scopes {
			check(t, w.other.CreateScope(t.Context(), Scope(fmt.Sprint("s", i))))
		}
		pass(time.Hour)
		var managers []*Manager
		for range 8 {
			managers = append(managers, w.open(t, w.store))
		}
		var mu sync.Mutex
		var all Swept
		var wg sync.WaitGroup
		for _, m := range managers {
			wg.Go(func() {
				swept, err := m.Sweep(t.Context())
				check(t, err)
				mu.Lock()
				defer mu.Unlock()
				all.Rotated += swept.Rotated
				all.Failed += swept.Failed
			})
		}
		wg.Wait()
		if all.Rotated != scopes+1 || all.Failed != 0 {
			t.Errorf("%+v, want %d rotated", all, scopes+1)
		}
		w.sound(t)
	})
}

// A version is not destroyed while an instance that lives may still use it, nor before its time.
func TestDestroyingWaitsForTheOthersAndForItsTime(t *testing.T) {
	inTwoWith(t, Config{Grace: time.Hour}, func(t *testing.T, w *two) {
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		id := fam.Data[0].Versions[0].ID
		_, err = w.other.Rotate(t.Context(), inner)
		check(t, err)
		check(t, w.other.Disable(t.Context(), id))
		wants(t, w.other.Destroy(t.Context(), id), ErrState)
		pass(time.Hour - time.Second)
		wants(t, w.other.Destroy(t.Context(), id), ErrState)
		pass(time.Second)

		// The reader sealed an hour ago, and is gone; one that has just come has seen it.
		sealing(t, w.Manager, inner, "x")
		_, err = w.other.Rotate(t.Context(), Ref{Scope: inner.Scope, Purpose: "another"})
		check(t, err)
		_, err = w.other.Rotate(t.Context(), innerRoot)
		check(t, err)
		err = w.other.Destroy(t.Context(), id)
		unseen, ok := errors.AsType[*UnseenError](err)
		if !ok || len(unseen.Instances) != 1 || unseen.Instances[0].ID != string(w.Manager.self.ID) {
			t.Fatalf("%v, want an UnseenError about the reader", err)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		wants(t, w.other.AwaitInstances(ctx), context.DeadlineExceeded)
		stop := running(t, w.Manager)
		began := time.Now()
		check(t, w.other.AwaitInstances(t.Context()))
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("it took %v", took)
		}
		check(t, w.other.Destroy(t.Context(), id))
		stop()
		w.sound(t)
	})
}

// An instance that is silent is waited for until it cannot seal any more, and not longer.
func TestASilentInstanceIsGone(t *testing.T) {
	inTwoWith(t, Config{SealFor: 10 * time.Minute}, func(t *testing.T, w *two) {
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)
		w.away(true)
		began := time.Now()
		check(t, w.other.AwaitInstances(t.Context()))
		if took := time.Since(began); took < 10*time.Minute || took > 11*time.Minute+2*time.Second {
			t.Errorf("waited for %v", took)
		}
		_, err = w.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrStale)
		w.away(false)
		w.sealsWith(t, 2)
	})
}

// What is cleaned up is old, of a purpose that was named, and nowhere referred to.
func TestCleanupGivesUpWhatNothingUses(t *testing.T) {
	var heard told
	inTwoWith(t, Config{
		OnEvent: heard.hear, Grace: 24 * time.Hour,
		Cleanup:  Cleanup{After: 48 * time.Hour, Purposes: []Purpose{inner.Purpose}},
		Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: -1}, "another": {RotateEvery: -1}},
	}, func(t *testing.T, w *two) {
		another := Ref{Scope: inner.Scope, Purpose: "another"}
		for _, r := range []Ref{inner, another} {
			for range 2 {
				_, err := w.other.Rotate(t.Context(), r)
				check(t, err)
			}
		}
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		check(t, w.store.Refer(t.Context(), fam.Data[0].Versions[1].ID))
		first := fam.Data[0].Versions[0].ID
		sweep := func(given Swept, want ...key.State) {
			t.Helper()
			heard.events = nil
			swept, err := w.other.Sweep(t.Context())
			check(t, err)
			if swept != given {
				t.Errorf("%+v, want %+v", swept, given)
			}
			// What can be taken back and what cannot are told apart.
			for kind, n := range map[EventKind]int{Disabled: given.Disabled, Destroyed: given.Destroyed} {
				of := slices.DeleteFunc(slices.Clone(heard.events), func(e Event) bool { return e.Kind != kind })
				if len(of) != n || n == 1 && (of[0].Ref != inner || of[0].ID != first || of[0].Version != 1 || of[0].Err != nil) {
					t.Errorf("told %+v, want %d %s", of, n, kind)
				}
			}
			w.hasStates(t, inner, want...)
			w.hasStates(t, another, key.Retired, key.Retired, key.Active)
		}
		pass(48*time.Hour - time.Second)
		sweep(Swept{}, key.Retired, key.Retired, key.Active)
		pass(time.Second)
		sweep(Swept{Disabled: 1}, key.Disabled, key.Retired, key.Active)
		pass(24*time.Hour - time.Second)
		sweep(Swept{}, key.Disabled, key.Retired, key.Active)
		pass(time.Second)
		sweep(Swept{Destroyed: 1}, key.Retired, key.Active)
		kept := slices.IndexFunc(heard.events, func(e Event) bool { return e.Kind == Kept })
		if kept < 0 {
			t.Fatalf("nothing is told of what is kept: %v", heard.kinds())
		}
		var inUse *InUseError
		if e := heard.events[kept]; e.Version != 2 || !errors.As(e.Err, &inUse) {
			t.Errorf("told %+v, want version 2 in use", e)
		}
		w.sound(t)
	})
}

// Policies are stored with the key, and whoever changes them by hand is found out.
func TestSetPolicy(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		check(t, w.other.SetPolicy(t.Context(), inner, Policy{RotateEvery: time.Hour, MaxMessages: 10}))
		before := w.calls.Calls()
		check(t, w.Manager.SetPolicy(t.Context(), inner, Policy{RotateEvery: time.Hour, MaxMessages: 10}))
		if got := w.since(before); !slices.Equal(got, []string{"Key"}) {
			t.Errorf("what is as it is to be takes %v", got)
		}
		keys, err := w.Keys(t.Context(), inner.Scope)
		check(t, err)
		i := slices.IndexFunc(keys, func(k KeyInfo) bool { return k.Ref == inner })
		if keys[i].RotateEvery != time.Hour || keys[i].MaxMessages != 10 {
			t.Errorf("%+v", keys[i])
		}
		for _, bad := range []struct {
			ref Ref
			p   Policy
		}{
			{innerRoot, Policy{MaxMessages: 1}},
			{inner, Policy{MaxMessages: 1 << 63}},
			{inner, Policy{RotateEvery: maxPeriod + 1}},
		} {
			if _, ok := errors.AsType[*InvalidError](w.SetPolicy(t.Context(), bad.ref, bad.p)); !ok {
				t.Errorf("%+v was taken", bad)
			}
		}
		check(t, w.SetPolicy(t.Context(), inner, Policy{RotateEvery: -1}))
		pass(10 * 365 * 24 * time.Hour)
		_, err = w.other.Sweep(t.Context())
		check(t, err)
		w.hasStates(t, inner, key.Active)
		w.hasStates(t, innerRoot, key.Retired, key.Active)
		w.sound(t)
		wants(t, w.SetPolicy(t.Context(), Ref{Scope: "nobody", Purpose: "p"}, Policy{}), ErrNotFound)
	})
}

func TestCleanupByHalvesIsRefused(t *testing.T) {
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	for _, c := range []Cleanup{
		{After: -1, Purposes: []Purpose{"a"}},
		{After: time.Hour},
		{Purposes: []Purpose{"a"}},
		{After: time.Hour, Purposes: []Purpose{"a", "a\x00"}},
	} {
		m, err := New(t.Context(), memstore.New(), Config{Root: root, Initialize: true, Cleanup: c})
		if invalid, ok := errors.AsType[*InvalidError](err); !ok || m != nil {
			t.Errorf("%+v: %v, %v, want an InvalidError", c, invalid, err)
		}
	}
}

// A purpose for cleanup that is not there, or whose versions no column names, is an error of each cleanup.
func TestCleanupOfWhatIsNotThereIsReported(t *testing.T) {
	for _, p := range []Purpose{"anotehr", "raw"} {
		inTwoWith(t, Config{Cleanup: Cleanup{After: time.Hour, Purposes: []Purpose{inner.Purpose, p}}}, func(t *testing.T, w *two) {
			root := w.root
			raw, err := New(t.Context(), w.store, Config{Root: root, RawPurposes: []Purpose{"raw"}})
			check(t, err)
			check(t, raw.CreateScope(t.Context(), "raw"))
			check(t, raw.Close())
			_, err = w.Sweep(t.Context())
			if invalid, ok := errors.AsType[*InvalidError](err); !ok || !strings.Contains(invalid.Error(), string(p)) {
				t.Errorf("%v, want an InvalidError about %q", err, p)
			}
			if w.Health().Sweep == nil {
				t.Error("Health knows nothing of it")
			}
		})
	}
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	_, err = New(t.Context(), memstore.New(), Config{
		Root: root, Initialize: true, RawPurposes: []Purpose{"raw"}, Cleanup: Cleanup{After: time.Hour, Purposes: []Purpose{"raw"}},
	})
	if _, ok := errors.AsType[*InvalidError](err); !ok {
		t.Errorf("%v, want an InvalidError", err)
	}
}
