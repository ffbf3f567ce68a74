package keyhold

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// A question that had no answer long ago says nothing of the database now: nobody goes on with what is old, and nobody
// is refused.
func TestAFailureLongAgoIsForgotten(t *testing.T) {
	for _, idle := range []time.Duration{10 * time.Minute, 20 * time.Minute} {
		inSlow(t, func(t *testing.T, w *two, s *slowStore) {
			ct := sealing(t, w.Manager, inner, "x")
			first := headID(t, w.Manager)
			pass(6 * time.Second)
			w.away(true)
			sealing(t, w.Manager, inner, "x")
			w.away(false)
			rotated(t, w, inner)
			step(t, w.other, inner, 1, key.Disabled)
			pass(idle)
			s.takes.Store(int64(5 * time.Millisecond))
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if id := headID(t, w.Manager); id == first {
						t.Error("sealed with a disabled version")
					}
					_, err := w.Open(t.Context(), inner, ct, AAD{})
					wants(t, err, ErrDisabled)
				})
			}
			wg.Wait()
		})
	}
}

// That signs cannot be written is no matter to who opens.
func TestOpeningDoesNotWaitForSigns(t *testing.T) {
	inLocked(t, Config{}, func(t *testing.T, w *two, s *lockedStore) {
		ct := sealing(t, w.Manager, inner, "x")
		stop := running(t, w.Manager)
		s.lock.Store(silent)
		for _, d := range []time.Duration{time.Minute, 16 * time.Minute} {
			pass(d)
			var waited time.Duration
			for began := time.Now(); time.Since(began) < 5*time.Minute; pass(100 * time.Millisecond) {
				call := time.Now()
				reads(t, w.Manager, ct, "x")
				waited += time.Since(call)
			}
			if waited > 15*time.Second {
				t.Errorf("opening waited for %v in 5 min", waited)
			}
		}
		s.lock.Store(written)
		stop()
	})
}

// A process that seals for the first time keeps what it opens with.
func TestKeysThatOpenAreKeptWhenAProcessRegisters(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ct := sealing(t, w.Manager, inner, "x")
		other := Ref{Scope: "b", Purpose: inner.Purpose}
		check(t, w.other.CreateScope(t.Context(), other.Scope))
		m := w.open(t, w.calls)
		reads(t, m, ct, "x")
		sealing(t, m, other, "y")
		w.away(true)
		reads(t, m, ct, "x")
		w.away(false)
	})
}

// lockedTake is a database in which somebody's transaction has locked what was taken of all versions.
type lockedTake struct{ store.Store }

func (s *lockedTake) Take(ctx context.Context, _ key.ID, _, _ uint64) (uint64, error) {
	<-ctx.Done()
	return 0, store.ContextError(ctx)
}

// Messages that cannot be had at the moment hold up no rotation.
func TestMessagesThatAreLockedHoldUpNoRotation(t *testing.T) {
	policies := map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour, MaxMessages: 1000}}
	inTwoWith(t, Config{Policies: policies}, func(t *testing.T, w *two) {
		m := w.open(t, &lockedTake{Store: w.store})
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		for i := range 5 {
			m.cache.budget(key.ID(fmt.Sprint(i))).wanted.Store(&fam.Data[0])
		}
		pass(time.Hour + time.Minute)
		check(t, w.other.Close())
		check(t, w.Manager.Close())
		began := time.Now()
		swept, err := m.Sweep(t.Context())
		check(t, err)
		if took := time.Since(began); swept.Rotated != 1 || took > 2*refillLimit {
			t.Errorf("%+v after %v", swept, took)
		}
	})
}

// What fails each time is tried as often however many processes run.
func TestAFailingTurnIsNotTakenByAll(t *testing.T) {
	for _, n := range []int{1, 16} {
		inTwoWith(t, Config{Cleanup: Cleanup{After: time.Hour, Purposes: []Purpose{"nobody"}}}, func(t *testing.T, w *two) {
			var all []*Manager
			for range n {
				all = append(all, w.open(t, w.calls))
			}
			before := w.calls.Calls()
			stop := running(t, all...)
			pass(5 * time.Hour)
			stop()
			if got := count(w.since(before), "Lagging"); got < 20 || got > 32 {
				t.Errorf("%d processes tried %d times in 5 hours", n, got)
			}
		})
	}
}

// panicky is a store whose driver panics once.
type panicky struct {
	store.Store
	panics bool
}

func (s *panicky) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	if s.panics {
		s.panics = false
		panic("driver")
	}
	return s.Store.Key(ctx, ref)
}

// A panic of the database's driver is one call's, if the application survives it.
func TestAPanicIsOneCalls(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		p := &panicky{Store: w.store}
		m := w.open(t, p)
		p.panics = true
		func() {
			defer func() {
				if recover() == nil {
					t.Error("it did not panic")
				}
			}()
			_, _ = m.Seal(t.Context(), inner, nil, AAD{})
		}()
		began := time.Now()
		sealing(t, m, inner, "x")
		if took := time.Since(began); took != 0 || len(m.unknownRefs.slots) != 0 {
			t.Errorf("the next call took %v, and %d slots are taken", took, len(m.unknownRefs.slots))
		}
	})
}

// However many keys a failover lost something of, all are written back by who has them; and Run goes on asking.
func TestManyLostKeysAreWrittenBack(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		const n = 1100
		slow := &slowReads{Store: w.store}
		m := w.open(t, slow)
		var refs []Ref
		for i := range n {
			r := Ref{Scope: Scope(fmt.Sprint("s", i)), Purpose: inner.Purpose}
			check(t, w.other.CreateScope(t.Context(), r.Scope))
			sealing(t, m, r, "x")
			refs = append(refs, r)
		}
		before := copied(w.store)
		for _, r := range refs {
			rotated(t, w, r)
		}
		pass(10 * time.Second)
		var cts [][]byte
		for _, r := range refs {
			cts = append(cts, sealing(t, m, r, "x"))
		}
		w.failover(before)
		slow.takes = 10 * time.Millisecond
		stop := running(t, m)
		pass(5 * time.Minute)
		stop()
		fresh := w.fresh(t)
		lost := 0
		for i, r := range refs {
			if _, err := fresh.Open(t.Context(), r, cts[i], AAD{}); err != nil {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("%d of %d do not open", lost, n)
		}
	})
}

// slowRefs takes long to count rows, of which each version has one.
type slowRefs struct{ store.Store }

func (s *slowRefs) References(context.Context, key.ID) ([]store.Reference, error) {
	pass(5 * time.Second)
	return []store.Reference{{Rows: 1}}, nil
}

// A scope that takes longer to clean up than a lease lasts keeps no other from its turn.
func TestCleanupGetsThroughHoweverLongItTakes(t *testing.T) {
	seen := map[Scope]int{}
	inTwoWith(t, Config{
		Cleanup: Cleanup{After: time.Hour, Purposes: []Purpose{inner.Purpose}},
		OnEvent: func(_ context.Context, e Event) {
			if e.Kind == Kept {
				seen[e.Ref.Scope]++
			}
		},
	}, func(t *testing.T, w *two) {
		scopes := []Scope{inner.Scope, "z1", "z2"}
		for _, scope := range scopes[1:] {
			check(t, w.other.CreateScope(t.Context(), scope))
		}
		for range 15 {
			for _, scope := range scopes {
				rotated(t, w, Ref{Scope: scope, Purpose: inner.Purpose})
			}
		}
		pass(2 * time.Hour)
		_, err := w.open(t, &slowRefs{w.store}).Sweep(t.Context())
		check(t, err)
		for _, scope := range scopes {
			if seen[scope] != 15 {
				t.Errorf("%d versions of %q were looked at, want 15", seen[scope], scope)
			}
		}
	})
}
