package storetest

import (
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var rewrapTests = []test{
	{"replaces wrapped keys, and nothing else", initialized(func(e *env) {
		f := e.rotated()
		var rows []store.Rewrap
		rows = append(rows, e.rewrapRoot(&f.Root, 0), e.rewrapRoot(&f.Root, 1))
		for i := range f.Data {
			for j := range f.Data[i].Versions {
				v := &f.Data[i].Versions[j]
				r := e.m.Rewrap(v, f.Root.Versions[1].ID)
				rows = append(rows, r)
				v.Blob, v.Parent = r.Blob, r.Parent
			}
		}
		n, err := e.s.Rewrap(e.ctx, e.m.Inst(), rows, nil)
		if n != len(rows) || err != nil {
			e.Fatalf("Rewrap: %d, %v; want %d, nil", n, err, len(rows))
		}
		got, err := e.s.Scope(e.ctx, e.scope(1))
		if d := diff(f, got); d != "" || err != nil {
			e.Errorf("Scope: %v (-want +read):\n%s", err, d)
		}
	})},
	{"only where the old one is still stored", initialized(func(e *env) {
		f := e.rotated()
		v := &f.Data[0].Versions[0]
		first, late := e.m.Rewrap(v, f.Root.Versions[1].ID), e.m.Rewrap(v, f.Root.Versions[1].ID)
		other := e.m.Rewrap(&f.Data[1].Versions[0], f.Root.Versions[1].ID)
		e.wantRewrapped(1, first)
		e.unchanged(func() { e.wantRewrapped(0, late) })
		e.wantRewrapped(1, late, other)
		for what, old := range map[string][]byte{
			"none": nil, "a part": first.Blob[:72], "one byte more": append(first.Blob[:73:73], 0), "one bit changed": flipped(first.Blob),
		} {
			r := e.m.Rewrap(v, f.Root.Versions[1].ID)
			r.Old = old
			e.unchanged(func() {
				if n, err := e.s.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{r}, nil); n != 0 || err != nil {
					e.Errorf("Rewrap where the old one is %s: %d, %v", what, n, err)
				}
			})
		}
	})},
	{"of one version twice in a call: the first", initialized(func(e *env) {
		f := e.rotated()
		v := &f.Data[0].Versions[0]
		first, second := e.m.Rewrap(v, f.Root.Versions[1].ID), e.m.Rewrap(v, f.Root.Versions[1].ID)
		e.wantRewrapped(1, first, second)
		got := e.key(key.Ref{Scope: e.scope(1), Purpose: f.Data[0].Purpose})
		if d := diff(first.Blob, got.Versions[0].Blob); d != "" {
			e.Errorf("the stored one is not the first (-first +read):\n%s", d)
		}
	})},
	{"leaves out what is not there", initialized(func(e *env) {
		f := e.rotated()
		k := &f.Data[0]
		pending := e.m.Add(k, &f.Root)
		ref := key.Ref{Scope: e.scope(1), Purpose: k.Purpose}
		after := e.update(ref, pending)
		e.update(ref, e.m.Destroy(&after, 3))
		missing := e.m.Version(key.DEK, 1, key.Active, key.Message, "")
		e.wantRewrapped(1,
			e.m.Rewrap(pending.Add, f.Root.Versions[1].ID),
			e.m.Rewrap(&missing, f.Root.Versions[1].ID),
			e.m.Rewrap(&k.Versions[0], f.Root.Versions[1].ID))
	})},
	{"nothing of another installation's", initialized(func(e *env) {
		f := e.rotated()
		r := e.m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[1].ID)
		e.unchanged(func() {
			if n, err := e.s.Rewrap(e.ctx, NewMaker(2).Inst(), []store.Rewrap{r}, nil); n != 0 || err != nil {
				e.Errorf("Rewrap: %d, %v; want 0, nil", n, err)
			}
			e.wantRewrapped(0)
		})
	})},
	{"what breaks a rule is refused, and then nothing is replaced", initialized(func(e *env) {
		f := e.rotated()
		other := e.m.RootKey(e.scope(2))
		e.create(other)
		parent := f.Root.Versions[1].ID
		for what, change := range map[string]func(r *store.Rewrap){
			"no wrapped key":         func(r *store.Rewrap) { r.Blob = nil },
			"no parent":              func(r *store.Rewrap) { r.Parent, r.IKKID = "", nil },
			"a parent not there":     func(r *store.Rewrap) { r.Parent = "krkv_0" },
			"another scope's parent": func(r *store.Rewrap) { r.Parent = other.Versions[0].ID },
		} {
			good, bad := e.m.Rewrap(&f.Data[0].Versions[0], parent), e.m.Rewrap(&f.Data[1].Versions[0], parent)
			change(&bad)
			e.unchanged(func() {
				n, err := e.s.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{good, bad}, nil)
				e.wantClass("Rewrap, "+what, err, errRefused)
				if n != 0 {
					e.Errorf("Rewrap, %s: %d and an error", what, n)
				}
			})
		}
		bad := e.m.Rewrap(&f.Root.Versions[0], "")
		bad.IKKID = bad.IKKID[:15]
		e.unchanged(func() {
			_, err := e.s.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{bad}, nil)
			e.wantClass("Rewrap, short ik_kid", err, errRefused)
		})
	})},
	{"given slices are not kept", initialized(func(e *env) {
		f := e.rotated()
		r := e.m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[1].ID)
		root := e.m.Rewrap(&f.Root.Versions[0], "")
		e.wantRewrapped(2, r, root)
		e.unchanged(func() {
			clear(r.Blob)
			clear(root.Blob)
			clear(root.IKKID)
		})
	})},
	{"300 in one call", initialized(func(e *env) {
		var keys []store.Key
		for i := range 300 {
			keys = append(keys, e.m.Scope(e.scope(i), "sessions")...)
		}
		e.create(keys...)
		var rows []store.Rewrap
		for i := 0; i < len(keys); i += 2 {
			rows = append(rows, e.m.Rewrap(&keys[i+1].Versions[0], keys[i].Versions[0].ID))
		}
		e.wantRewrapped(len(rows), rows...)
		e.wantRewrapped(0, rows...)
	})},
}

// rotated makes a scope whose root key and two data keys have two versions each, the data keys' all under the root
// key's first.
func (e *env) rotated() store.Family {
	e.Helper()
	scope := e.scope(1)
	keys := e.m.Scope(scope, "one", "two")
	e.create(keys...)
	for i := range keys {
		k := keys[i]
		ref := key.Ref{Scope: scope, Purpose: k.Purpose}
		k = e.update(ref, e.m.Add(&k, &keys[0]))
		e.update(ref, e.m.Activate(&k, 2))
	}
	f, err := e.s.Scope(e.ctx, scope)
	if err != nil {
		e.Fatalf("Scope: %v", err)
	}
	return f
}

// rewrapRoot makes a row for a version of k, and k what it then is.
func (e *env) rewrapRoot(k *store.Key, i int) store.Rewrap {
	r := e.m.Rewrap(&k.Versions[i], "")
	k.Versions[i].Blob, k.Versions[i].IKKID = r.Blob, r.IKKID
	return r
}

func (e *env) wantRewrapped(want int, rows ...store.Rewrap) {
	e.Helper()
	if n, err := e.s.Rewrap(e.ctx, e.m.Inst(), rows, nil); n != want || err != nil {
		e.Errorf("Rewrap: %d, %v; want %d, nil", n, err, want)
	}
}

func flipped(b []byte) []byte {
	c := append([]byte(nil), b...)
	c[len(c)-1] ^= 1
	return c
}
