package storetest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync/atomic"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var rekeyTests = []test{
	{"replaces manifests and wrapped keys, and nothing else", initialized(func(e *env) {
		scope := e.scope(1)
		e.create(e.m.Scope(scope, "one", "two")...)
		e.life(key.Ref{Scope: scope, Purpose: "one"})
		e.life(key.Ref{Scope: scope})
		kid := e.secondKey()
		want := e.scopeOf(scope)
		batch := e.rekeys(&want, kid)
		batch[0].Seq += 40
		e.rekey(3, batch...)
		for i, k := range append([]*store.Key{&want.Root}, &want.Data[0], &want.Data[1]) {
			k.Seq, k.IKKID, k.MAC = batch[i].Seq, batch[i].IKKID, batch[i].MAC
			for j, v := range batch[i].Versions {
				k.Versions[j].Blob, k.Versions[j].IKKID = v.Blob, v.IKKID
			}
		}
		for _, s := range e.handles(2) {
			got, err := s.Scope(e.ctx, scope)
			if d := diff(want, got); d != "" || err != nil {
				e.Errorf("Scope: %v (-want +read):\n%s", err, d)
			}
			for i, v := range got.Root.Versions {
				if v.Disabled != want.Root.Versions[i].Disabled {
					e.Errorf("version %d disabled since %d, not %d", v.Number, v.Disabled, want.Root.Versions[i].Disabled)
				}
			}
		}
		e.unchanged(func() { e.rekey(0, batch...) })
	})},
	{"keys that changed meanwhile, or are not there, are left out", initialized(func(e *env) {
		for n := 1; n <= 3; n++ {
			e.create(e.m.Scope(e.scope(n), "one", "two")...)
		}
		kid := e.secondKey()
		var batch []store.Rekey
		for n := 1; n <= 3; n++ {
			f := e.scopeOf(e.scope(n))
			batch = append(batch, e.rekeys(&f, kid)...)
		}
		// Scope 1's root key, scope 2's data key "one" and all of scope 3.
		root, data := e.key(key.Ref{Scope: e.scope(1)}), e.key(key.Ref{Scope: e.scope(2), Purpose: "one"})
		root = e.update(key.Ref{Scope: e.scope(1)}, e.m.Add(&root, nil))
		data = e.update(key.Ref{Scope: e.scope(2), Purpose: "one"}, e.m.Next(&data))
		if _, err := e.s.Shred(e.ctx, e.m.Inst(), e.scope(3)); err != nil {
			e.Fatalf("Shred: %v", err)
		}
		never, early := e.m.RootKey(e.scope(9)), e.m.Rekey(&data, kid)
		early.From, early.Seq = data.Seq+1, data.Seq+2
		kind := e.m.Rekey(&root, kid)
		kind.Kind, kind.Versions = key.DEK, nil
		replaced := []key.ID{batch[1].KeyID, batch[2].KeyID, batch[3].KeyID, batch[5].KeyID}
		e.changes("Rekey", replaced, func() { e.rekey(4, batch...) })
		e.unchanged(func() {
			e.changes("Rekey of what is not as given", nil, func() {
				e.rekey(0, append(batch, e.m.Rekey(&never, kid))...)
				e.rekey(0, early, kind)
				e.rekey(0)
			})
		})
		for ref, want := range map[key.Ref]store.Key{
			{Scope: e.scope(1)}: root, {Scope: e.scope(2), Purpose: "one"}: data,
		} {
			if d := diff(want, e.key(ref)); d != "" {
				e.Errorf("%v (-before +after):\n%s", ref, d)
			}
		}
		e.notUnder(kid, e.scope(1), e.scope(2))
	})},
	{"a root key is replaced whole, or not", initialized(func(e *env) {
		f := e.rotated()
		kid := e.secondKey()
		other := e.m.RootKey(e.scope(2))
		e.create(other)
		others := e.m.Rewrap(&other.Versions[0], "")
		for what, change := range map[string]func(r *store.Rekey){
			"without a version":                func(r *store.Rekey) { r.Versions = r.Versions[:1] },
			"without any":                      func(r *store.Rekey) { r.Versions = nil },
			"with one that is not there":       func(r *store.Rekey) { r.Versions[1].ID = "krkv_0" },
			"with one more":                    func(r *store.Rekey) { r.Versions = append(r.Versions, others) },
			"with another's":                   func(r *store.Rekey) { r.Versions[1] = others },
			"with a version twice":             func(r *store.Rekey) { r.Versions[1] = r.Versions[0] },
			"with another wrapped key before":  func(r *store.Rekey) { r.Versions[1].Old = flipped(r.Versions[1].Old) },
			"with no wrapped key before":       func(r *store.Rekey) { r.Versions[0].Old = nil },
			"under an unknown one":             func(r *store.Rekey) { r.IKKID = e.m.Bytes(16) },
			"with a version under unknown one": func(r *store.Rekey) { r.Versions[1].IKKID = e.m.Bytes(16) },
		} {
			batch := e.rekeys(&f, kid)
			change(&batch[0])
			e.unchanged(func() {
				e.changes("Rekey "+what, nil, func() {
					n, err := e.s.Rekey(e.ctx, e.m.Inst(), []store.Rekey{batch[1], batch[0], batch[2]}, nil)
					if e.wantClass("Rekey "+what, err, store.ErrConflict); n != 0 {
						e.Errorf("Rekey %s: %d and an error", what, n)
					}
				})
			})
		}
		stale := e.rekeys(&f, kid)
		stale[0].Versions, stale[0].From = nil, stale[0].From-1
		e.rekey(2, stale...)
	})},
	{"what breaks a rule is refused, and then nothing is replaced", initialized(func(e *env) {
		f := e.rotated()
		kid := e.secondKey()
		cases := map[string]func() []store.Rekey{}
		on := func(name string, i int, spoil func(r *store.Rekey)) {
			cases[name] = func() []store.Rekey {
				batch := e.rekeys(&f, kid)
				spoil(&batch[i])
				return batch
			}
		}
		for i, kind := range []string{"root key", "data key"} {
			on(kind+", the same sequence number", i, func(r *store.Rekey) { r.Seq = r.From })
			on(kind+", a lower sequence number", i, func(r *store.Rekey) { r.Seq = r.From - 1 })
			on(kind+", a sequence number out of range", i, func(r *store.Rekey) { r.Seq = math.MaxUint64 })
			on(kind+", mac too short", i, func(r *store.Rekey) { r.MAC = r.MAC[:31] })
			on(kind+", no mac", i, func(r *store.Rekey) { r.MAC = nil })
			on(kind+", ik_kid too short", i, func(r *store.Rekey) { r.IKKID = r.IKKID[:15] })
		}
		on("a version without a wrapped key", 0, func(r *store.Rekey) { r.Versions[1].Blob = nil })
		on("a version's ik_kid too short", 0, func(r *store.Rekey) { r.Versions[1].IKKID = r.Versions[1].IKKID[:15] })
		on("a version with a parent", 0, func(r *store.Rekey) { r.Versions[1].Parent = r.Versions[0].ID })
		on("versions of a data key", 1, func(r *store.Rekey) {
			r.Versions = []store.Rewrap{e.m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[0].ID)}
		})
		for name, batch := range cases {
			list := batch()
			e.unchanged(func() {
				n, err := e.s.Rekey(e.ctx, e.m.Inst(), list, nil)
				if e.wantClass("Rekey, "+name, err, errRefused); n != 0 {
					e.Errorf("Rekey, %s: %d and an error", name, n)
				}
			})
		}
		e.unchanged(func() {
			if n, err := e.s.Rekey(e.ctx, NewMaker(2).Inst(), e.rekeys(&f, kid), nil); n != 0 || err != nil {
				e.Errorf("Rekey of another installation's: %d, %v; want 0", n, err)
			}
		})
	})},
	{"what is done under a lease needs it held", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		kid := e.secondKey()
		held := e.lease("rekey", "one", hour)
		over := e.lease("over", "one", 0)
		other := held
		other.Owner = "two"
		batch := []store.Rekey{e.m.Rekey(&keys[0], kid), e.m.Rekey(&keys[1], kid)}
		e.unchanged(func() {
			for _, l := range []*store.Lease{&over, &other, {}, {Name: "never", Owner: "one", Fence: 1}} {
				if n, err := e.s.Rekey(e.ctx, e.m.Inst(), batch, l); n != 0 || err != nil {
					e.Errorf("Rekey under %+v: %d, %v; want 0", l, n, err)
				}
			}
		})
		if n, err := e.s.Rekey(e.ctx, e.m.Inst(), batch, &held); n != 2 || err != nil {
			e.Errorf("Rekey under a lease that is held: %d, %v; want 2", n, err)
		}
	})},
	{"of 16 at once each key is replaced by one", initialized(func(e *env) {
		macs := map[string]bool{}
		for n := range 8 {
			e.create(e.m.Scope(e.scope(n), "one")...)
		}
		kid := e.secondKey()
		batches := make([][]store.Rekey, 16)
		for i := range batches {
			for n := range 8 {
				f := e.scopeOf(e.scope((n*5 + i) % 8))
				batches[i] = append(batches[i], e.rekeys(&f, kid)...)
			}
			for _, r := range batches[i] {
				macs[string(r.KeyID)+string(r.MAC)] = true
			}
		}
		var replaced atomic.Int64
		for i, err := range e.race(len(batches), func(i int, s store.Store) error {
			n, err := s.Rekey(e.ctx, e.m.Inst(), batches[i], nil)
			replaced.Add(int64(n))
			return err
		}) {
			if err != nil {
				e.Errorf("Rekey, caller %d: %v", i, err)
			}
		}
		if replaced.Load() != 16 {
			e.Errorf("%d were replaced, want 16", replaced.Load())
		}
		for n := range 8 {
			for _, k := range e.scopeOf(e.scope(n)).Data {
				if !macs[string(k.ID)+string(k.MAC)] {
					e.Errorf("the manifest of %s is nobody's", k.ID)
				}
			}
		}
		e.notUnder(kid)
	})},
	{"an installation is rekeyed while its keys are rotated and made", initialized(func(e *env) {
		const scopes = 12
		for n := range scopes {
			e.create(e.m.Scope(e.scope(n), "one", "two")...)
		}
		in := e.installation()
		old := in.IKKID
		in = e.changeRoots(e.m.AddKey(&in))
		for i, err := range e.race(4, func(i int, s store.Store) error {
			switch i {
			case 0, 1:
				return e.rekeyPages(s, in.IKKID)
			case 2: // of whoever has not seen yet that there is another
				for n := range scopes {
					if _, err := s.Create(e.ctx, e.m.Inst(), e.m.Scope(e.scope(scopes+n), "one")); err != nil {
						return err
					}
				}
				return nil
			}
			for n := range scopes {
				f, err := s.Key(e.ctx, key.Ref{Scope: e.scope(n), Purpose: "one"})
				if err != nil {
					return err
				}
				for k, u := range map[*store.Key]store.Update{
					&f.Root: e.m.Add(&f.Root, nil), &f.Data[0]: e.m.Add(&f.Data[0], &f.Root),
				} {
					u.Manifest.IKKID = k.IKKID
					if err := s.Update(e.ctx, u); err != nil && !errors.Is(err, store.ErrConflict) {
						return err
					}
				}
			}
			return nil
		}) {
			if err != nil {
				e.Errorf("caller %d: %v", i, err)
			}
		}
		e.rekeyAll(e.s, in.IKKID)
		in = e.changeRoots(e.m.DropKey(&in, old))
		for n := range 2 * scopes {
			f := e.scopeOf(e.scope(n))
			for _, kid := range [][]byte{f.Root.IKKID, f.Root.Versions[0].IKKID, f.Data[0].IKKID} {
				if d := diff(in.IKKID, kid); d != "" {
					e.Errorf("scope %d is under %x", n, kid)
				}
			}
		}
	})},
	{"200 scopes in one call", initialized(func(e *env) {
		var keys []store.Key
		for n := range 200 {
			keys = append(keys, e.m.Scope(e.scope(n), "one")...)
		}
		e.create(keys...)
		kid := e.secondKey()
		var batch []store.Rekey
		for i := range keys {
			batch = append(batch, e.m.Rekey(&keys[i], kid))
		}
		slices.Reverse(batch)
		e.rekey(len(keys), batch...)
		e.notUnder(kid)
	})},
	{"given slices are not kept", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		kid := e.secondKey()
		batch := []store.Rekey{e.m.Rekey(&keys[0], kid), e.m.Rekey(&keys[1], kid)}
		e.rekey(2, batch...)
		e.unchanged(func() {
			for _, b := range [][]byte{
				batch[0].IKKID, batch[0].MAC, batch[0].Versions[0].Blob, batch[0].Versions[0].IKKID,
				batch[1].IKKID, batch[1].MAC,
			} {
				clear(b)
			}
		})
	})},
	{"scopes are listed until nothing of them names another installation key", initialized(func(e *env) {
		for n := range 9 {
			e.create(e.m.Scope(e.scope(n), "one", "two")...)
		}
		in := e.installation()
		old := in.IKKID
		e.notUnder(old)
		kid := e.secondKey()
		e.notUnder(old)
		want := map[key.Scope]bool{}
		listed := func() {
			e.Helper()
			e.notUnder(kid, slices.Collect(maps.Keys(want))...)
		}
		for n := range 9 {
			want[e.scope(n)] = true
		}
		listed()
		for n := range 9 {
			scope := e.scope(n)
			f := e.scopeOf(scope)
			batch := e.rekeys(&f, kid)
			root := e.m.Next(&f.Root)
			root.Manifest.IKKID = kid
			switch n {
			case 0, 1, 2: // but for one key
				e.rekey(2, slices.Delete(batch, n, n+1)...)
			case 3: // but for the root key's manifest
				r := batch[0].Versions[0]
				e.rekey(2, batch[1:]...)
				e.wantRewrapped(1, r)
			case 4: // but for the root key's version
				e.rekey(2, batch[1:]...)
				e.update(key.Ref{Scope: scope}, root)
			default:
				e.rekey(3, batch...)
				delete(want, scope)
			}
			listed()
		}
		e.create(e.m.Scope(e.scope(20))...)
		want[e.scope(20)] = true
		listed()
		for scope := range maps.Clone(want) {
			e.rekeyScope(scope, kid)
			delete(want, scope)
			listed()
		}
	})},
	{"a list of scopes goes on anywhere, but not after what is no id", initialized(func(e *env) {
		e.create(e.m.Scope(e.scope(1), "one")...)
		kid := [16]byte(e.m.Bytes(16))
		last := key.ID(strings.Repeat("z", key.MaxIDLen))
		for after, want := range map[key.ID]int{"": 1, "a": 1, "krk_": 1, "~": 0, last: 0} {
			scopes, next, err := e.s.NotUnder(e.ctx, kid, after, 10)
			for range 20 {
				if next == "" || err != nil {
					break
				}
				var more []key.Scope
				more, next, err = e.s.NotUnder(e.ctx, kid, next, 10)
				scopes = append(scopes, more...)
			}
			if len(scopes) != want || next != "" || err != nil {
				e.Errorf("NotUnder after %q: %q, %q, %v; want %d", after, scopes, next, err, want)
			}
		}
		for _, limit := range []int{0, -1, math.MinInt} {
			if scopes, next, err := e.s.NotUnder(e.ctx, kid, "", limit); len(scopes) != 0 || next != "" || err != nil {
				e.Errorf("at most %d: %q, %q, %v", limit, scopes, next, err)
			}
		}
		for _, id := range []key.ID{"\x00", "krk_\xff", "é", key.ID(strings.Repeat("k", key.MaxIDLen+1))} {
			_, _, err := e.s.NotUnder(e.ctx, kid, id, 10)
			e.wantClass(fmt.Sprintf("NotUnder after %q", id), err, errRefused)
		}
	})},
}

// secondKey adds an installation key and returns its kid. Everything is still made under the first.
func (e *env) secondKey() []byte {
	e.Helper()
	in := e.installation()
	return e.changeRoots(e.m.AddKey(&in)).IKKID
}

func (e *env) scopeOf(scope key.Scope) store.Family {
	e.Helper()
	f, err := e.s.Scope(e.ctx, scope)
	if err != nil {
		e.Fatalf("Scope: %v", err)
	}
	return f
}

// rekeys are those of all keys of a family, the root key's first.
func (e *env) rekeys(f *store.Family, kid []byte) []store.Rekey {
	list := []store.Rekey{e.m.Rekey(&f.Root, kid)}
	for i := range f.Data {
		list = append(list, e.m.Rekey(&f.Data[i], kid))
	}
	return list
}

func (e *env) rekey(want int, keys ...store.Rekey) {
	e.Helper()
	if n, err := e.s.Rekey(e.ctx, e.m.Inst(), keys, nil); n != want || err != nil {
		e.Fatalf("Rekey: %d, %v; want %d, nil", n, err, want)
	}
}

// rekeyScope puts all of a scope under an installation key.
func (e *env) rekeyScope(scope key.Scope, kid []byte) {
	e.Helper()
	f := e.scopeOf(scope)
	e.rekey(1+len(f.Data), e.rekeys(&f, kid)...)
}

// rekeyPages goes once through everything that is not under an installation key, and puts it there unless it is changed
// meanwhile.
func (e *env) rekeyPages(s store.Store, kid []byte) error {
	var after key.ID
	for range 1000 {
		scopes, next, err := s.NotUnder(e.ctx, [16]byte(kid), after, 7)
		if err != nil {
			return err
		}
		for _, scope := range scopes {
			f, err := s.Scope(e.ctx, scope)
			if err != nil {
				return err
			}
			if _, err := s.Rekey(e.ctx, e.m.Inst(), e.rekeys(&f, kid), nil); err != nil {
				return err
			}
		}
		if after = next; next == "" {
			return nil
		}
	}
	return errors.New("there are more pages than scopes")
}

// rekeyAll puts everything under an installation key, when nobody else changes anything.
func (e *env) rekeyAll(s store.Store, kid []byte) {
	e.Helper()
	if err := e.rekeyPages(s, kid); err != nil {
		e.Fatalf("rekey: %v", err)
	}
	e.notUnder(kid)
}

// notUnder asserts which scopes are listed.
func (e *env) notUnder(kid []byte, want ...key.Scope) {
	e.Helper()
	ids := map[key.Scope]key.ID{}
	for _, scope := range want {
		ids[scope] = e.key(key.Ref{Scope: scope}).ID
	}
	slices.SortFunc(want, func(a, b key.Scope) int { return strings.Compare(string(ids[a]), string(ids[b])) })
	for _, limit := range []int{1, 2, 100} {
		var got []key.Scope
		var after key.ID
		for range 200 {
			scopes, next, err := e.s.NotUnder(e.ctx, [16]byte(kid), after, limit)
			if err != nil || len(scopes) > limit || next != "" && next <= after {
				e.Fatalf("NotUnder after %q: %q, %q, %v", after, scopes, next, err)
			}
			got = append(got, scopes...)
			if after = next; next == "" {
				break
			}
		}
		if d := diff(want, got); d != "" || after != "" {
			e.Errorf("NotUnder in pages of %d (-want +listed):\n%s", limit, d)
		}
	}
}
