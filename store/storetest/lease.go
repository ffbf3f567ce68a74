package storetest

import (
	"fmt"
	"math"
	"strings"
	"sync/atomic"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// hour is a lease that no test outlasts.
const hour = 3600

var leaseTests = []test{
	{"of 16 who want a name one gets it", initialized(func(e *env) {
		for round := range 3 {
			leases := make([]store.Lease, 16)
			won := make([]bool, len(leases))
			for i, err := range e.race(len(leases), func(i int, s store.Store) (err error) {
				leases[i], won[i], err = s.Lease(e.ctx, "sweep", e.m.ID(key.PrefixInstance), hour)
				return err
			}) {
				if err != nil {
					e.Errorf("Lease, caller %d: %v", i, err)
				}
			}
			winner := -1
			for i, l := range leases {
				switch {
				case won[i] && winner >= 0:
					e.Fatalf("both have it: %+v, %+v", leases[winner], l)
				case won[i]:
					winner = i
				case l != store.Lease{}:
					e.Errorf("not given: %+v", l)
				}
			}
			if winner < 0 {
				e.Fatalf("round %d: nobody has it", round)
			}
			if err := e.s.Release(e.ctx, leases[winner]); err != nil {
				e.Fatalf("Release: %v", err)
			}
		}
	})},
	{"16 times one owner has one fence", initialized(func(e *env) {
		owner := e.m.ID(key.PrefixInstance)
		var fences, refused atomic.Int64
		e.lease("sweep", owner, hour)
		for i, err := range e.race(16, func(_ int, s store.Store) error {
			l, ok, err := s.Lease(e.ctx, "sweep", owner, hour)
			switch {
			case err != nil:
				return err
			case !ok:
				refused.Add(1) // another call was just prolonging it
			case l.Fence == 1:
				fences.Add(1)
			}
			return nil
		}) {
			if err != nil {
				e.Errorf("Lease, caller %d: %v", i, err)
			}
		}
		if fences.Load() == 0 || fences.Load()+refused.Load() != 16 {
			e.Errorf("%d kept the fence, %d were refused; want 16 in all, and one that kept it", fences.Load(), refused.Load())
		}
	})},
	{"its owner prolongs it, and nobody else gets it", initialized(func(e *env) {
		one, two := e.m.ID(key.PrefixInstance), e.m.ID(key.PrefixInstance)
		before := e.roll().Now
		l := e.lease("sweep", one, hour)
		if after := e.roll().Now; l.Name != "sweep" || l.Owner != one || l.Fence != 1 || l.Until < before+hour || l.Until > after+hour {
			e.Errorf("%+v; want the first of %s, until an hour after %d to %d", l, one, before, after)
		}
		longer := e.lease("sweep", one, 2*hour)
		if longer.Fence != l.Fence || longer.Until < l.Until+hour {
			e.Errorf("prolonged to %+v from %+v", longer, l)
		}
		e.notLeased("sweep", two)
		if other := e.lease("rewrap", two, hour); other.Fence != 1 {
			e.Errorf("another name's: %+v", other)
		}
	})},
	{"one that is over is anybody's, with a new fence", initialized(func(e *env) {
		one, two := e.m.ID(key.PrefixInstance), e.m.ID(key.PrefixInstance)
		fence := int64(0)
		for _, owner := range []key.ID{one, one, two, one, two, two} {
			l := e.lease("sweep", owner, 0)
			if l.Fence <= fence || l.Owner != owner {
				e.Errorf("%+v after fence %d; want a greater one, of %s", l, fence, owner)
			}
			fence = l.Fence
			e.tidy(e.s)
		}
		l := e.lease("sweep", one, hour)
		if shorter := e.lease("sweep", one, 0); shorter.Fence != l.Fence {
			e.Errorf("%+v; want the fence of %+v", shorter, l)
		}
		if after := e.lease("sweep", two, hour); after.Fence <= l.Fence {
			e.Errorf("%+v after %+v", after, l)
		}
	})},
	{"who releases it gives it to anybody, and only what is his", initialized(func(e *env) {
		one, two := e.m.ID(key.PrefixInstance), e.m.ID(key.PrefixInstance)
		first := e.lease("sweep", one, hour)
		release := func(l store.Lease) {
			e.Helper()
			if err := e.s.Release(e.ctx, l); err != nil {
				e.Errorf("Release: %v", err)
			}
		}
		others := []store.Lease{{}, {Name: "a\x00", Owner: "b\xff", Fence: math.MinInt64}}
		for _, change := range []func(*store.Lease){
			func(l *store.Lease) { l.Name = "rewrap" },
			func(l *store.Lease) { l.Owner = two },
			func(l *store.Lease) { l.Fence++ },
			func(l *store.Lease) { l.Fence = math.MaxInt64 },
		} {
			l := first
			change(&l)
			others = append(others, l)
		}
		for _, l := range others {
			release(l)
			e.notLeased("sweep", two)
		}
		release(first)
		release(first)
		second := e.lease("sweep", two, hour)
		if second.Fence <= first.Fence {
			e.Errorf("%+v after %+v", second, first)
		}
		release(first)
		e.notLeased("sweep", one)
	})},
	{"names, owners and times that cannot be are refused", initialized(func(e *env) {
		owner := e.m.ID(key.PrefixInstance)
		long := strings.Repeat("n", 64)
		for _, c := range []struct {
			name    string
			owner   key.ID
			seconds int64
		}{
			{"", owner, hour},
			{"a\x00", owner, hour},
			{"é", owner, hour},
			{"\xff", owner, hour},
			{long + "n", owner, hour},
			{"n", "", hour},
			{"n", "a\x00", hour},
			{"n", "é", hour},
			{"n", key.ID(long + "n"), hour},
			{"n", owner, -1},
			{"n", owner, math.MinInt64},
			{"n", owner, math.MaxInt32 + 1},
			{"n", owner, math.MaxInt64},
		} {
			_, ok, err := e.s.Lease(e.ctx, c.name, c.owner, c.seconds)
			if e.wantClass(fmt.Sprintf("Lease(%q, %q, %d)", c.name, c.owner, c.seconds), err, errRefused); ok {
				e.Errorf("Lease(%q, %q, %d) gave it", c.name, c.owner, c.seconds)
			}
		}
		for _, name := range []string{long, " ", "';--", "\x01\x7f"} {
			if l := e.lease(name, key.ID(long), math.MaxInt32); l.Name != name || l.Owner != key.ID(long) {
				e.Errorf("%+v; want %q of %q", l, name, long)
			}
		}
	})},
	{"what is written under a lease needs it held", initialized(func(e *env) { e.writeUnderLeases(e.s) })},
	{"what is written under a lease inside a transaction needs it held", inTx(
		func(e *env, begin func() (store.Tx, func() error, func() error)) {
			e.writeUnderLeases(nil)
			// A transaction of its own for each write, so that who gets leases meanwhile waits for none.
			ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
			l := e.lease("inside", "one", hour)
			tx, commit, _ := begin()
			k := e.key(ref)
			u := e.m.Next(&k)
			u.Lease = &l
			if err := tx.Update(e.ctx, u); err != nil {
				e.Errorf("Update under a lease that is held: %v", err)
			}
			if err := commit(); err != nil {
				e.Fatalf("commit: %v", err)
			}
			if k = e.key(ref); k.Seq != u.Manifest.Seq {
				e.Errorf("sequence number %d, want %d", k.Seq, u.Manifest.Seq)
			}
			e.lease("inside", "one", 0)
			tx, _, rollback := begin()
			u = e.m.Next(&k)
			u.Lease = &l
			e.wantClass("Update under a lease that is over", tx.Update(e.ctx, u), store.ErrConflict)
			if err := rollback(); err != nil {
				e.Fatalf("rollback: %v", err)
			}
		})},
	{"of updates beside a change of owner none is later than it", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		e.create(e.m.Scope(ref.Scope, ref.Purpose)...)
		for range 4 {
			first := e.lease("sweep", "one", hour)
			over := make(chan struct{})
			for i, err := range e.race(4, func(i int, s store.Store) error {
				if i == 0 {
					defer close(over)
					if err := s.Release(e.ctx, first); err != nil {
						return err
					}
					// Somebody's write under the lease may hold it for a moment.
					for {
						_, ok, err := s.Lease(e.ctx, "sweep", "two", hour)
						if ok || err != nil {
							return err
						}
					}
				}
				update := func() error {
					f, err := s.Key(e.ctx, ref)
					if err != nil {
						return err
					}
					u := e.m.Next(&f.Data[0])
					u.Lease = &first
					return s.Update(e.ctx, u)
				}
				for range 5 {
					if err := update(); err != nil && class(err) != class(store.ErrConflict) {
						return err
					}
				}
				<-over
				if err := update(); class(err) != class(store.ErrConflict) {
					return fmt.Errorf("an update under %+v after somebody else had it: %v", first, err)
				}
				return nil
			}) {
				if err != nil {
					e.Errorf("caller %d: %v", i, err)
				}
			}
			e.lease("sweep", "two", 0)
		}
	})},
}

// writeUnderLeases updates and rewraps under leases that are held and such that are not; nil is the store itself.
func (e *env) writeUnderLeases(q store.Queries) {
	e.Helper()
	if q == nil {
		q = e.s
	}
	ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
	e.create(e.m.Scope(ref.Scope, ref.Purpose)...)
	held := e.lease("held", "one", hour)
	over := e.lease("over", "one", 0)
	released := e.lease("released", "one", hour)
	if err := e.s.Release(e.ctx, released); err != nil {
		e.Fatalf("Release: %v", err)
	}
	taken := e.lease("taken", "one", 0)
	e.lease("taken", "two", hour)
	again := e.lease("again", "one", 0)
	e.lease("again", "one", hour)
	other := func(change func(*store.Lease)) *store.Lease {
		l := held
		change(&l)
		return &l
	}
	for what, l := range map[string]*store.Lease{
		"over": &over, "released": &released, "taken over": &taken, "given to its owner again": &again, "empty": {},
		"never given":        {Name: "never", Owner: "one", Fence: 1},
		"another owner's":    other(func(l *store.Lease) { l.Owner = "two" }),
		"of an older fence":  other(func(l *store.Lease) { l.Fence-- }),
		"of a later fence":   other(func(l *store.Lease) { l.Fence++ }),
		"of no fence at all": other(func(l *store.Lease) { l.Fence = math.MinInt64 }),
		"of no name at all":  other(func(l *store.Lease) { l.Name = "held\x00" }),
		"of other bytes":     other(func(l *store.Lease) { l.Owner = "\xff" }),
	} {
		e.unchanged(func() {
			f := e.family(ref)
			u := e.m.Add(&f.Data[0], &f.Root)
			u.Lease = l
			e.wantClass("Update under a lease that is "+what, q.Update(e.ctx, u), store.ErrConflict)
			r := e.m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[0].ID)
			n, err := q.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{r}, l)
			if n != 0 || err != nil {
				e.Errorf("Rewrap under a lease that is %s: %d, %v; want 0", what, n, err)
			}
		})
	}
	prolonged := e.lease("held", "one", 2*hour)
	for _, l := range []*store.Lease{&held, &prolonged, nil} {
		f := e.family(ref)
		u := e.m.Next(&f.Data[0])
		u.Lease = l
		if err := q.Update(e.ctx, u); err != nil {
			e.Errorf("Update under %+v: %v", l, err)
		}
		r := e.m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[0].ID)
		if n, err := q.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{r}, l); n != 1 || err != nil {
			e.Errorf("Rewrap under %+v: %d, %v", l, n, err)
		}
	}
}

func (e *env) lease(name string, owner key.ID, seconds int64) store.Lease {
	e.Helper()
	l, ok, err := e.s.Lease(e.ctx, name, owner, seconds)
	if err != nil || !ok {
		e.Fatalf("Lease of %q: %v, %v; want it given", name, ok, err)
	}
	return l
}

func (e *env) notLeased(name string, owner key.ID) {
	e.Helper()
	if l, ok, err := e.s.Lease(e.ctx, name, owner, hour); ok || err != nil || l != (store.Lease{}) {
		e.Fatalf("Lease of %q: %+v, %v, %v; want it not given", name, l, ok, err)
	}
}
