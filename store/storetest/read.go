package storetest

import (
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var readTests = []test{
	{"a scope that is not there is not found, and Now is right", initialized(func(e *env) {
		for what, read := range map[string]func() (store.Family, error){
			"Key of a root key": func() (store.Family, error) { return e.s.Key(e.ctx, key.Ref{Scope: e.scope(1)}) },
			"Key of a data key": func() (store.Family, error) {
				return e.s.Key(e.ctx, key.Ref{Scope: e.scope(1), Purpose: "sessions"})
			},
			"Scope": func() (store.Family, error) { return e.s.Scope(e.ctx, e.scope(1)) },
		} {
			f, err := read()
			e.wantClass(what, err, store.ErrNotFound)
			nearNow(e.T, "Now", f.Now)
		}
	})},
	{"Key reads the root key alone, or with the one data key", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		for _, c := range []struct {
			purpose key.Purpose
			want    store.Family
		}{
			{"", store.Family{Root: keys[0]}},
			{"one", store.Family{Root: keys[0], Data: keys[1:2]}},
			{"two", store.Family{Root: keys[0], Data: keys[2:3]}},
			{"three", store.Family{Root: keys[0]}},
		} {
			got := e.family(key.Ref{Scope: e.scope(1), Purpose: c.purpose})
			if d := diff(c.want, got); d != "" {
				e.Errorf("Key for purpose %q (-stored +read):\n%s", c.purpose, d)
			}
			nearNow(e.T, "Now", got.Now)
		}
	})},
	{"Scope reads the data keys by purpose", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "zebra", "Apple", "apple", "äpfel", "mango")
		e.create(keys...)
		f, err := e.s.Scope(e.ctx, e.scope(1))
		if err != nil {
			e.Fatalf("Scope: %v", err)
		}
		var got []key.Purpose
		for _, k := range f.Data {
			got = append(got, k.Purpose)
		}
		if want := []key.Purpose{"Apple", "apple", "mango", "zebra", "äpfel"}; !slices.Equal(got, want) {
			e.Errorf("purposes %q, want %q", got, want)
		}
	})},
	{"a version's id finds its key, whatever became of the version", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		pending := e.m.Add(&keys[1], &keys[0])
		k := e.update(ref, pending)
		k = e.update(ref, e.m.Destroy(&k, 2))
		root := e.update(key.Ref{Scope: e.scope(1)}, e.m.Add(&keys[0], nil))
		for what, c := range map[string]struct {
			id   key.ID
			want store.Family
		}{
			"the root key's head":    {root.Versions[0].ID, store.Family{Root: root}},
			"its pending version":    {root.Versions[1].ID, store.Family{Root: root}},
			"a data key's head":      {k.Versions[0].ID, store.Family{Root: root, Data: []store.Key{k}}},
			"a destroyed version":    {pending.Add.ID, store.Family{Root: root, Data: []store.Key{k}}},
			"the other data key's":   {keys[2].Versions[0].ID, store.Family{Root: root, Data: keys[2:3]}},
			"nobody's":               {"kdkv_0123456789", store.Family{}},
			"the id of no version":   {k.ID, store.Family{}},
			"an empty one":           {"", store.Family{}},
			"one in the wrong case":  {"KDKV_" + k.Versions[0].ID[5:], store.Family{}},
			"one with a space added": {k.Versions[0].ID + " ", store.Family{}},
		} {
			got, err := e.s.KeyOfVersion(e.ctx, c.id)
			if c.want.Root.ID == "" {
				e.wantClass("KeyOfVersion of "+what, err, store.ErrNotFound)
				continue
			}
			if err != nil {
				e.Errorf("KeyOfVersion of %s: %v", what, err)
				continue
			}
			if d := diff(c.want, got); d != "" {
				e.Errorf("KeyOfVersion of %s (-want +read):\n%s", what, d)
			}
			nearNow(e.T, "Now", got.Now)
		}
	})},
	{"an empty tombstone's id finds nothing", initialized(func(e *env) {
		e.create(e.imported(e.m.RootKey(e.scope(1)), "krkv_0123456789"))
		_, err := e.s.KeyOfVersion(e.ctx, "")
		e.wantClass("KeyOfVersion", err, store.ErrNotFound)
		if f, err := e.s.KeyOfVersion(e.ctx, "krkv_0123456789"); err != nil || f.Root.Scope != e.scope(1) {
			e.Errorf("KeyOfVersion of the imported id: scope %q, %v", f.Root.Scope, err)
		}
	})},
	{"a tombstone that came with its key is found by its id", initialized(func(e *env) {
		k := e.m.RootKey(e.scope(1))
		dead := e.m.Version(key.KEK, 2, key.Disabled, key.Message, "")
		k.Tombstones = []store.Tombstone{tombstoneOf(dead)}
		e.create(k)
		f, err := e.s.KeyOfVersion(e.ctx, dead.ID)
		if d := diff(store.Family{Root: k}, f); d != "" || err != nil {
			e.Errorf("KeyOfVersion: %v (-want +read):\n%s", err, d)
		}
	})},
	{"Scopes lists 1000 scopes in pages, each once", initialized(func(e *env) {
		const n = 1000
		var keys []store.Key
		want := map[key.Scope]bool{}
		for i := range n {
			keys = append(keys, e.m.RootKey(e.scope(i*7919%n)))
			want[e.scope(i)] = true
		}
		e.create(keys...)
		whole, err := e.s.Scopes(e.ctx, "", n+1)
		if err != nil || len(whole) != n {
			e.Fatalf("Scopes: %d, %v; want %d", len(whole), err, n)
		}
		for _, scope := range whole {
			delete(want, scope)
		}
		if len(want) != 0 {
			e.Errorf("%d scopes are not listed", len(want))
		}
		if e.h.ScopeName == nil && !slices.IsSorted(whole) {
			e.Errorf("the scopes are not ascending")
		}
		for _, limit := range []int{1, 37, 100, n} {
			var paged []key.Scope
			var after key.Scope
			for {
				page, err := e.s.Scopes(e.ctx, after, limit)
				if err != nil {
					e.Fatalf("Scopes after %q: %v", after, err)
				}
				if len(page) == 0 {
					break
				}
				if len(page) > limit {
					e.Fatalf("Scopes: %d, the limit is %d", len(page), limit)
				}
				paged = append(paged, page...)
				after = page[len(page)-1]
			}
			if !slices.Equal(paged, whole) {
				e.Errorf("pages of %d are not the whole list", limit)
			}
		}
		if got, err := e.s.Scopes(e.ctx, "", 0); len(got) != 0 || err != nil {
			e.Errorf("Scopes with limit 0: %d, %v; want none", len(got), err)
		}
	})},
	{"Scopes goes on after a scope that is not there", initialized(func(e *env) {
		e.needText()
		e.create(e.m.RootKey(e.scope(1)), e.m.RootKey(e.scope(3)))
		got, err := e.s.Scopes(e.ctx, e.scope(2), 10)
		if err != nil || !slices.Equal(got, []key.Scope{e.scope(3)}) {
			e.Errorf("Scopes after %q: %q, %v; want %q", e.scope(2), got, err, e.scope(3))
		}
	})},
}
