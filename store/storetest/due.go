package storetest

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// overdue is when the keys of the due list's tests had to be rotated, unless they say otherwise.
const overdue = Created + 100

var dueTests = []test{
	{"a key is due for each of its reasons", initialized(func(e *env) {
		keys := e.dueKeys(1, "used", "pending", "old", "none", "all")
		keys[0].RotateAt, keys[4].RotateAt = 0, 0
		keys[0].RotateEvery, keys[4].RotateEvery = 0, 0
		e.create(keys...)
		ref := func(p key.Purpose) key.Ref { return key.Ref{Scope: e.scope(1), Purpose: p} }
		root := e.key(ref(""))
		for _, p := range []key.Purpose{"", "pending", "all"} {
			k := e.key(ref(p))
			u := e.m.Add(&k, &root)
			u.RotateAt = k.RotateAt
			u.Manifest.RotateEvery = k.RotateEvery
			e.update(ref(p), u)
		}
		before := e.roll().Now
		for i, p := range []key.Purpose{"used", "all", "none"} {
			k := e.key(ref(p))
			e.take(k.Versions[0].ID, 80-uint64(i/2), 100, 80-uint64(i/2))
		}
		after := e.roll().Now
		due := func(p key.Purpose, at int64, why store.Why) store.Due {
			return store.Due{At: at, KeyID: e.key(ref(p)).ID, Why: why, Scope: e.scope(1), Purpose: p, Head: 1}
		}
		want := []store.Due{
			due("used", overdue, store.Old), due("pending", overdue, store.Old), due("old", overdue, store.Old), due("all", overdue, store.Old),
			due("", Created+2, store.Pending), due("pending", Created+2, store.Pending), due("all", Created+2, store.Pending),
			due("used", 0, store.Used), due("all", 0, store.Used),
		}
		got := e.due(store.AllBuckets, store.Due{}, 100)
		for i := range got {
			if got[i].Why == store.Used {
				if got[i].At < before || got[i].At > after {
					e.Errorf("used since %d; want from %d to %d", got[i].At, before, after)
				}
				for j := range want {
					if want[j].KeyID == got[i].KeyID && want[j].Why == store.Used {
						want[j].At = got[i].At
					}
				}
			}
		}
		slices.SortFunc(want, byDue)
		if d := diff(want, got); d != "" {
			e.Errorf("Due (-want +listed):\n%s", d)
		}
		e.duePages(got)
	})},
	{"only the keys of the buckets asked for are due", initialized(func(e *env) {
		var keys []store.Key
		for i := range 30 {
			keys = append(keys, e.dueKeys(i, "one", "two")...)
		}
		e.create(keys...)
		all := e.due(store.AllBuckets, store.Due{}, 1000)
		if len(all) != len(keys) {
			e.Fatalf("%d are due, want %d", len(all), len(keys))
		}
		e.duePages(all)
		for _, buckets := range []store.BucketSet{0, 1, 1 << 31, 0x5555_5555, 0x8000_0001, math.MaxUint32} {
			var want []store.Due
			for _, d := range all {
				if buckets.Has(store.Bucket(d.KeyID)) {
					want = append(want, d)
				}
			}
			if d := diff(want, e.due(buckets, store.Due{}, 1000)); d != "" {
				e.Errorf("Due of %#x (-want +listed):\n%s", buckets, d)
			}
		}
	})},
	{"what has no time, or a later one, or was deleted, is not due", initialized(func(e *env) {
		now := e.roll().Now
		keys := e.dueKeys(1, "now", "soon", "never")
		keys[0].RotateEvery, keys[1].RotateEvery, keys[2].RotateEvery = 1<<40, 1<<40, 1<<40
		keys[0].RotateAt, keys[1].RotateAt, keys[2].RotateAt = now+1000, now, now+2000
		keys[3].RotateEvery, keys[3].RotateAt = 0, 0
		e.create(keys...)
		want := []store.Due{{At: now, KeyID: keys[1].ID, Why: store.Old, Scope: e.scope(1), Purpose: "now", Head: 1}}
		if d := diff(want, e.due(store.AllBuckets, store.Due{}, 10)); d != "" {
			e.Errorf("Due (-want +listed):\n%s", d)
		}
		u := e.m.Next(&keys[1])
		u.Manifest.RotateEvery, u.RotateAt = 1<<40, now+2000
		e.update(key.Ref{Scope: e.scope(1), Purpose: "now"}, u)
		e.nothingDue()
		if e.h.DeleteScope == nil || e.h.RenameScope == nil {
			return
		}
		e.create(e.dueKeys(2, "one")...)
		e.h.RenameScope(e.T, e.s, e.scope(2), e.scope(3))
		for _, d := range e.due(store.AllBuckets, store.Due{}, 10) {
			if d.Scope != e.scope(3) {
				e.Errorf("%+v; want scope %q", d, e.scope(3))
			}
		}
		e.h.DeleteScope(e.T, e.s, e.scope(3))
		e.nothingDue()
	})},
	{"what comes next is not hidden by what is due", initialized(func(e *env) {
		e.upcoming(0)
		e.create(e.dueKeys(1, "one")...)
		e.upcoming(0)
		now := e.roll().Now
		keys := e.dueKeys(2, "one", "two", "now")
		for i := range keys {
			keys[i].RotateEvery, keys[i].RotateAt = 1<<40, now+int64(1000*(i+1))
		}
		keys[3].RotateAt = now
		e.create(keys...)
		for i, p := range []key.Purpose{"", "one", "two"} {
			e.upcoming(now + int64(1000*(i+1)))
			u := e.m.Next(&keys[i])
			u.Manifest.RotateEvery, u.RotateAt = 1<<40, now
			e.update(key.Ref{Scope: e.scope(2), Purpose: p}, u)
		}
		e.upcoming(0)
	})},
	{"only the newest version can be pending", bothKinds(func(e *env, ref key.Ref) {
		k := e.key(ref)
		root := e.rootOf(ref.Scope)
		pending := func(want ...int64) {
			e.Helper()
			var got []int64
			for _, d := range e.due(store.AllBuckets, store.Due{}, 100) {
				if d.Why != store.Pending {
					continue
				}
				if got = append(got, d.At); d.KeyID != k.ID || d.Head != e.key(ref).Head {
					e.Errorf("%+v; want key %s", d, k.ID)
				}
			}
			if d := diff(want, got); d != "" {
				e.Errorf("pending (-want +listed):\n%s", d)
			}
		}
		pending()
		k = e.update(ref, e.m.Add(&k, root))
		pending(Created + 2)
		k = e.update(ref, e.m.Add(&k, root))
		pending(Created + 3)
		k = e.update(ref, e.m.Activate(&k, 3))
		pending()
		k = e.update(ref, e.m.Add(&k, root))
		k = e.update(ref, e.m.Add(&k, root))
		k = e.update(ref, e.m.Destroy(&k, 5))
		pending(Created + 4)
	})},
	{"only the head can be used up", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		keys := e.dueKeys(1, ref.Purpose)
		e.create(keys...)
		used := func(want bool, head key.Version) {
			e.Helper()
			n := 0
			for _, d := range e.due(store.AllBuckets, store.Due{}, 100) {
				if d.Why == store.Used {
					n++
					if d.Head != head || d.Purpose != ref.Purpose || d.Scope != ref.Scope {
						e.Errorf("%+v; want version %d", d, head)
					}
				}
			}
			if (n == 1) != want || n > 1 {
				e.Errorf("used %d times; want %v", n, want)
			}
		}
		k := keys[1]
		id := k.Versions[0].ID
		e.take(id, 3, 5, 3)
		used(false, 1)
		e.take(id, 1, 3, 0)
		used(true, 1)
		e.take(id, 0, 5, 0)
		used(false, 1)
		e.take(id, 1, 5, 1)
		used(true, 1)
		e.take(id, 0, 6, 0)
		used(false, 1)
		e.take(id, 0, 5, 0)
		used(true, 1)
		k = e.update(ref, e.m.Add(&k, &keys[0]))
		e.take(k.Versions[1].ID, 4, 5, 4)
		used(true, 1)
		k = e.update(ref, e.m.Activate(&k, 2))
		used(true, 2)
		k = e.update(ref, e.m.Add(&k, &keys[0]))
		e.update(ref, e.m.Activate(&k, 3))
		used(false, 3)
		e.take(id, 9, 5, 1)
		used(false, 3)
	})},
	{"a list goes on anywhere, but not after what is no id", initialized(func(e *env) {
		keys := e.dueKeys(1, "one")
		e.create(keys...)
		for what, n := range map[store.Due]int{
			{At: math.MinInt64}: 2, {At: math.MaxInt64}: 0, {At: overdue, Why: math.MaxInt32}: 2, {At: overdue, KeyID: "kdk_"}: 2,
			{At: overdue, KeyID: "a"}: 2, {At: overdue, KeyID: "~"}: 0, {At: overdue - 1, KeyID: "~", Why: 9}: 2,
		} {
			if got := e.due(store.AllBuckets, what, 10); len(got) != n {
				e.Errorf("after %+v: %d, want %d", what, len(got), n)
			}
		}
		for _, limit := range []int{0, -1, math.MinInt} {
			if got := e.due(store.AllBuckets, store.Due{}, limit); len(got) != 0 {
				e.Errorf("at most %d: %d", limit, len(got))
			}
			if scopes, next, err := e.s.Lagging(e.ctx, "", limit); len(scopes) != 0 || next != "" || err != nil {
				e.Errorf("at most %d: %q, %q, %v", limit, scopes, next, err)
			}
		}
		for _, id := range []key.ID{"\x00", "krk_\xff", "é", key.ID(strings.Repeat("k", key.MaxIDLen+1))} {
			_, err := e.s.Due(e.ctx, store.AllBuckets, store.Due{KeyID: id}, 10)
			e.wantClass(fmt.Sprintf("Due after %q", id), err, errRefused)
			_, _, err = e.s.Lagging(e.ctx, id, 10)
			e.wantClass(fmt.Sprintf("Lagging after %q", id), err, errRefused)
		}
	})},
	{"scopes lag until all is wrapped under the head", initialized(func(e *env) {
		lagging := map[key.Scope]key.ID{}
		for i := range 12 {
			scope := e.scope(i)
			e.create(e.m.Scope(scope, "one", "two")...)
			root := e.key(key.Ref{Scope: scope})
			if i%2 == 0 {
				root = e.update(key.Ref{Scope: scope}, e.m.Add(&root, nil)) // pending: nothing has to be wrapped under it yet
			}
			if i%4 == 0 {
				e.update(key.Ref{Scope: scope}, e.m.Activate(&root, 2))
				lagging[scope] = root.ID
			}
		}
		e.create(e.m.Scope(e.scope(99))...)
		e.lags(lagging)
		for scope := range maps.Clone(lagging) {
			for _, p := range []key.Purpose{"one", "two"} {
				e.lags(lagging)
				f := e.family(key.Ref{Scope: scope, Purpose: p})
				e.wantRewrapped(1, e.m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[1].ID))
			}
			delete(lagging, scope)
			if e.lags(lagging); len(lagging) == 1 {
				break
			}
		}
	})},
}

// dueKeys are the n-th scope's with purposes, all of them due since the same moment.
func (e *env) dueKeys(n int, purposes ...key.Purpose) []store.Key {
	keys := e.m.Scope(e.scope(n), purposes...)
	for i := range keys {
		keys[i].RotateAt = overdue
	}
	return keys
}

func (e *env) due(buckets store.BucketSet, after store.Due, limit int) []store.Due {
	e.Helper()
	list, err := e.s.Due(e.ctx, buckets, after, limit)
	if err != nil {
		e.Fatalf("Due: %v", err)
	}
	if !slices.IsSortedFunc(list, byDue) {
		e.Errorf("not in order: %+v", list)
	}
	return list
}

func (e *env) nothingDue() {
	e.Helper()
	if list := e.due(store.AllBuckets, store.Due{}, 10); len(list) != 0 {
		e.Errorf("due: %+v; want nothing", list)
	}
}

func byDue(a, b store.Due) int {
	return cmp.Or(cmp.Compare(a.At, b.At), strings.Compare(string(a.KeyID), string(b.KeyID)), cmp.Compare(a.Why, b.Why))
}

// duePages asserts that pages of some sizes are the same list.
func (e *env) duePages(want []store.Due) {
	e.Helper()
	for _, limit := range []int{1, 2, 7, len(want)} {
		var got []store.Due
		var after store.Due
		for {
			page := e.due(store.AllBuckets, after, limit)
			if len(page) > limit {
				e.Fatalf("%d on a page of %d", len(page), limit)
			}
			if len(page) == 0 || len(got) > len(want) {
				break
			}
			got = append(got, page...)
			last := page[len(page)-1]
			after = store.Due{At: last.At, KeyID: last.KeyID, Why: last.Why}
		}
		if d := diff(want, got); d != "" {
			e.Errorf("in pages of %d (-want +listed):\n%s", limit, d)
		}
	}
}

func (e *env) upcoming(want int64) {
	e.Helper()
	before := e.roll().Now
	now, at, err := e.s.Upcoming(e.ctx)
	if after := e.roll().Now; err != nil || at != want || now < before || now > after {
		e.Errorf("Upcoming: %d, %d, %v; want %d at %d to %d", now, at, err, want, before, after)
	}
}

// lags asserts that these scopes lag, with the root keys by which they are listed.
func (e *env) lags(want map[key.Scope]key.ID) {
	e.Helper()
	for _, limit := range []int{1, 2, 100} {
		var got []key.Scope
		var after key.ID
		for range 100 {
			scopes, next, err := e.s.Lagging(e.ctx, after, limit)
			if err != nil || len(scopes) > limit || next != "" && next <= after {
				e.Fatalf("Lagging after %q: %q, %q, %v", after, scopes, next, err)
			}
			got = append(got, scopes...)
			if after = next; next == "" {
				break
			}
		}
		ordered := slices.SortedFunc(maps.Keys(want), func(a, b key.Scope) int { return strings.Compare(string(want[a]), string(want[b])) })
		if d := diff(ordered, got); d != "" || after != "" {
			e.Errorf("lagging in pages of %d (-want +listed):\n%s", limit, d)
		}
	}
}
