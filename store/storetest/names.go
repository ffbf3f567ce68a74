package storetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var nameTests = []test{
	{"a name is read as it was stored, and is unknown until then", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		other := e.m.RootKey(e.scope(2))
		e.create(append(keys, other)...)
		for _, scope := range []key.Scope{e.scope(1), e.scope(2)} {
			if n := e.name(key.Ref{Scope: scope, Purpose: "one"}); n.Seq != 0 {
				e.Errorf("a name that nobody stored has the sequence number %d", n.Seq)
			}
		}
		f, _, err := e.s.Name(e.ctx, key.Ref{Scope: e.scope(9), Purpose: "one"})
		e.wantClass("Name without a scope", err, store.ErrNotFound)
		nearNow(e.T, "Now", f.Now)

		var n store.Name
		for i, change := range []func(n *store.Name){
			func(*store.Name) {},
			func(n *store.Name) { n.Generator = "" },
			func(n *store.Name) { n.Generator, n.Last = strings.Repeat("g", 253)+"ß", 7 },
			func(n *store.Name) { n.Seq, n.Last = n.Seq+40, key.MaxVersion },
			func(n *store.Name) { n.Removed = true },
			func(n *store.Name) { n.Seq = math.MaxInt64 },
		} {
			from := n.Seq
			if n = e.m.NextName(n); i == 0 {
				n = e.m.Name(other.ID, "one")
			}
			change(&n)
			e.changes("PutName", nil, func() { e.putName(from, n) })
			for _, s := range e.handles(2) {
				f, got, err := s.Name(e.ctx, key.Ref{Scope: e.scope(2), Purpose: "one"})
				if d := diff(n, got) + diff(store.Family{Root: other}, f); d != "" || err != nil {
					e.Errorf("change %d: %v (-stored +read):\n%s", i, err, d)
				}
			}
		}
		if n := e.name(key.Ref{Scope: e.scope(1), Purpose: "one"}); n.Seq != 0 {
			e.Errorf("the same name of another scope: %+v", n)
		}
		if n := e.name(key.Ref{Scope: e.scope(2), Purpose: "on"}); n.Seq != 0 {
			e.Errorf("another name of the scope: %+v", n)
		}
	})},
	{"a name is read with the epochs and roots of its root key", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		e.update(key.Ref{Scope: e.scope(1)}, e.m.Next(&keys[0]))
		e.update(key.Ref{Scope: e.scope(1), Purpose: "one"}, e.m.Next(&keys[1]))
		want := e.family(key.Ref{Scope: e.scope(1)})
		f, _, err := e.s.Name(e.ctx, key.Ref{Scope: e.scope(1), Purpose: "one"})
		if d := diff(want, f); d != "" || err != nil || f.Epoch != want.Epoch || f.Roots != want.Roots {
			e.Errorf("epoch %d, roots %d, %v; want %d, %d (-Key +Name):\n%s",
				f.Epoch, f.Roots, err, want.Epoch, want.Roots, d)
		}
	})},
	{"a name changes only from what was seen, and names what is there", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		first := e.m.Name(keys[0].ID, "named")
		e.putName(0, first)
		next := e.m.NextName(first)
		for what, c := range map[string]struct {
			inst   [16]byte
			from   uint64
			change func(n *store.Name)
		}{
			"as if there were none":        {e.m.Inst(), 0, func(*store.Name) {}},
			"from another sequence number": {e.m.Inst(), 7, func(n *store.Name) { n.Seq = 8 }},
			"of which nothing is known":    {e.m.Inst(), 1, func(n *store.Name) { n.Purpose = "none" }},
			"of no root key":               {e.m.Inst(), 0, func(n *store.Name) { n.RootKeyID = "krk_none" }},
			"of a data key":                {e.m.Inst(), 0, func(n *store.Name) { n.RootKeyID = keys[1].ID }},
			"of an empty root key":         {e.m.Inst(), 0, func(n *store.Name) { n.RootKeyID = "" }},
			"under an unknown key":         {e.m.Inst(), 1, func(n *store.Name) { n.IKKID = e.m.Bytes(16) }},
			"of another installation":      {[16]byte{1}, 1, func(*store.Name) {}},
			"as removed, and there is a key": {e.m.Inst(), 0, func(n *store.Name) {
				n.Purpose, n.Removed, n.Last = "one", true, 1
			}},
		} {
			n := next
			c.change(&n)
			e.unchanged(func() {
				e.wantClass("PutName "+what, e.s.PutName(e.ctx, c.inst, c.from, n), store.ErrConflict)
			})
		}
		e.putName(1, next)
		e.unchanged(func() {
			e.wantClass("PutName again", e.s.PutName(e.ctx, e.m.Inst(), 1, next), store.ErrConflict)
		})
	})},
	{"a name that breaks a rule is refused", initialized(func(e *env) {
		root := e.m.RootKey(e.scope(1))
		e.create(root)
		n := e.m.Name(root.ID, "one")
		n.Last, n.Seq = 7, 5
		e.putName(0, n)
		for what, change := range map[string]func(n *store.Name){
			"with the sequence number that is stored": func(n *store.Name) { n.Seq = 5 },
			"with a lower one":                        func(n *store.Name) { n.Seq = 4 },
			"with one out of range":                   func(n *store.Name) { n.Seq = math.MaxInt64 + 1 },
			"with a lower last number":                func(n *store.Name) { n.Last = 6 },
			"with a last number out of range":         func(n *store.Name) { n.Last = key.MaxVersion + 1 },
			"without a MAC":                           func(n *store.Name) { n.MAC = nil },
			"with a short MAC":                        func(n *store.Name) { n.MAC = n.MAC[1:] },
			"without an installation key":             func(n *store.Name) { n.IKKID = nil },
			"with a long generator":                   func(n *store.Name) { n.Generator = strings.Repeat("ß", 128) },
			"with a zero in the generator":            func(n *store.Name) { n.Generator = "g\x00" },
			"with a line break in the generator":      func(n *store.Name) { n.Generator = "g\n" },
			"with a generator that is no text":        func(n *store.Name) { n.Generator = "\xff" },
		} {
			next := e.m.NextName(n)
			change(&next)
			e.unchanged(func() {
				e.wantClass("PutName "+what, e.s.PutName(e.ctx, e.m.Inst(), 5, next), errRefused)
			})
		}
		for _, p := range []key.Purpose{"", " one", "o\nne", key.Purpose(strings.Repeat("p", key.MaxPurposeLen+1))} {
			e.unchanged(func() {
				err := e.s.PutName(e.ctx, e.m.Inst(), 0, e.m.Name(root.ID, p))
				e.wantClass(fmt.Sprintf("PutName of %q", p), err, errRefused)
			})
		}
	})},
	{"raw keys and registered names are listed in pages, by name", initialized(func(e *env) {
		root, other := e.m.RootKey(e.scope(1)), e.m.RootKey(e.scope(2))
		e.create(root, other)
		var want []store.Named
		for i := range 30 {
			p := key.Purpose(fmt.Sprintf("%c%02d", "Za"[i%2], i))
			k := e.m.DataKey(&root, p, key.Raw)
			k.Generator = fmt.Sprint("generator", i)
			n := e.m.Name(root.ID, p)
			named := store.Named{Purpose: p, Generator: k.Generator, Head: 1, RotateEvery: k.RotateEvery}
			switch i % 6 {
			case 0: // a key alone, which was rotated and lives on another period
				e.create(k)
				ref := key.Ref{Scope: e.scope(1), Purpose: p}
				k = e.update(ref, e.m.Add(&k, &root))
				u := e.m.Activate(&k, 2)
				u.Manifest.RotateEvery, u.RotateAt = 0, 0
				e.update(ref, u)
				named.Head, named.RotateEvery = 2, 0
				want = append(want, named)
			case 1: // a key whose name is known, with another generator
				e.create(k)
				e.putName(0, n)
				want = append(want, named)
			case 2: // a name alone
				e.putName(0, n)
				want = append(want, store.Named{Purpose: p, Generator: n.Generator})
			case 3: // a removed name
				n.Removed = true
				e.putName(0, n)
			case 4: // a key of another algorithm
				e.create(e.m.DataKey(&root, p, key.Message))
			case 5: // what is in another scope
				e.create(e.m.DataKey(&other, p, key.Raw))
				e.putName(0, e.m.Name(other.ID, p+"x"))
			}
		}
		slices.SortFunc(want, func(a, b store.Named) int { return cmp.Compare(a.Purpose, b.Purpose) })
		for _, limit := range []int{1, 4, 15, 1000, math.MaxInt32} {
			var got []store.Named
			var after key.Purpose
			for range len(want) + 1 {
				page, err := e.s.Named(e.ctx, e.scope(1), after, limit)
				if err != nil || len(page) > limit {
					e.Fatalf("Named after %q: %d, %v", after, len(page), err)
				}
				if len(page) == 0 {
					break
				}
				got, after = append(got, page...), page[len(page)-1].Purpose
			}
			if d := diff(want, got); d != "" {
				e.Errorf("Named in pages of %d (-want +listed):\n%s", limit, d)
			}
		}
		if page, err := e.s.Named(e.ctx, e.scope(2), "", 100); err != nil || len(page) != 10 {
			e.Errorf("Named of the other scope: %d, %v; want 10", len(page), err)
		}
		for what, c := range map[string]struct {
			scope key.Scope
			after key.Purpose
			limit int
		}{
			"of no scope":    {e.scope(9), "", 10},
			"after the last": {e.scope(1), want[len(want)-1].Purpose, 10},
			"with limit 0":   {e.scope(1), "", 0},
			"with limit -1":  {e.scope(1), "", -1},
		} {
			if page, err := e.s.Named(e.ctx, c.scope, c.after, c.limit); err != nil || len(page) != 0 {
				e.Errorf("Named %s: %v, %v; want none", what, page, err)
			}
		}
	})},
	{"names keep their installation key, and are listed until they are under another", initialized(func(e *env) {
		root, other := e.m.RootKey(e.scope(1)), e.m.RootKey(e.scope(2))
		e.create(root, other)
		var names []store.Name
		for i := range 10 {
			n := e.m.Name([]key.ID{root.ID, other.ID}[i%2], key.Purpose(fmt.Sprint("name", i)))
			n.Removed = i%3 == 0
			names = append(names, n)
			e.putName(0, n)
		}
		first, second := e.m.IKKID(), e.secondKey()
		if list, err := e.s.NamesNotUnder(e.ctx, [16]byte(first), 100); err != nil || len(list) != 0 {
			e.Errorf("NamesNotUnder the first: %d, %v", len(list), err)
		}
		e.rekeyAll(e.s, second)
		for left := len(names); left > 0; {
			in := e.installation()
			e.unchanged(func() {
				e.wantClass("ChangeRoots", e.s.ChangeRoots(e.ctx, e.m.DropKey(&in, first)), store.ErrConflict)
			})
			page, err := e.s.NamesNotUnder(e.ctx, [16]byte(second), 3)
			if err != nil || len(page) != min(3, left) {
				e.Fatalf("NamesNotUnder: %d, %v; want %d", len(page), err, min(3, left))
			}
			for _, n := range page {
				i := slices.IndexFunc(names, func(have store.Name) bool { return have.Purpose == n.Purpose })
				if d := diff(names[i], n); d != "" {
					e.Errorf("NamesNotUnder (-stored +listed):\n%s", d)
				}
				next := e.m.NextName(n)
				next.IKKID = second
				e.putName(n.Seq, next)
				left--
			}
		}
		for _, limit := range []int{-1, 0, math.MaxInt32} {
			if list, err := e.s.NamesNotUnder(e.ctx, [16]byte(second), limit); err != nil || len(list) != 0 {
				e.Errorf("NamesNotUnder, limit %d: %d, %v; want none", limit, len(list), err)
			}
			list, err := e.s.NamesNotUnder(e.ctx, [16]byte(first), limit)
			if err != nil || len(list) != max(0, min(limit, 10)) {
				e.Errorf("NamesNotUnder the other, limit %d: %d, %v", limit, len(list), err)
			}
		}
		in := e.installation()
		e.changeRoots(e.m.DropKey(&in, first))
	})},
	{"names go with their root key", initialized(func(e *env) {
		for i, remove := range []func(){
			func() {
				if _, err := e.s.Shred(e.ctx, e.m.Inst(), e.scope(0)); err != nil {
					e.Fatalf("Shred: %v", err)
				}
			},
			func() {
				if e.h.DeleteScope == nil {
					e.Skip("the harness cannot delete scopes")
				}
				e.h.DeleteScope(e.T, e.s, e.scope(1))
			},
		} {
			ref := key.Ref{Scope: e.scope(i), Purpose: "one"}
			root, other := e.m.RootKey(ref.Scope), e.m.RootKey(e.scope(9+i))
			e.create(root, other, e.m.DataKey(&root, "two", key.Raw))
			n := e.m.Name(root.ID, "one")
			n.Removed, n.Last = true, 7
			e.putName(0, n)
			e.putName(0, e.m.Name(root.ID, "two"))
			e.putName(0, e.m.Name(other.ID, "one"))
			remove()
			_, _, err := e.s.Name(e.ctx, ref)
			e.wantClass("Name", err, store.ErrNotFound)
			if page, err := e.s.Named(e.ctx, ref.Scope, "", 10); err != nil || len(page) != 0 {
				e.Errorf("Named: %v, %v; want none", page, err)
			}
			if n := e.name(key.Ref{Scope: e.scope(9 + i), Purpose: "one"}); n.Seq != 1 {
				e.Errorf("the name of another scope: %+v", n)
			}
			root = e.m.RootKey(ref.Scope)
			e.create(root, e.m.DataKey(&root, "one", key.Raw))
			if n := e.name(ref); n.Seq != 0 {
				e.Errorf("the name under the new root key: %+v", n)
			}
		}
	})},
	{"what was given and what was read is the caller's", initialized(func(e *env) {
		root := e.m.RootKey(e.scope(1))
		e.create(root)
		n := e.m.Name(root.ID, "one")
		e.putName(0, n)
		want := n
		want.IKKID, want.MAC = bytes.Clone(n.IKKID), bytes.Clone(n.MAC)
		got := e.name(key.Ref{Scope: e.scope(1), Purpose: "one"})
		list, err := allNames(e.ctx, e.s)
		if err != nil || len(list) != 1 {
			e.Fatalf("NamesNotUnder: %d, %v", len(list), err)
		}
		for _, b := range [][]byte{n.IKKID, n.MAC, got.IKKID, got.MAC, list[0].IKKID, list[0].MAC} {
			clear(b)
		}
		if d := diff(want, e.name(key.Ref{Scope: e.scope(1), Purpose: "one"})); d != "" {
			e.Errorf("Name (-stored +read):\n%s", d)
		}
	})},
	{"in a transaction a name is read, and gone with its scope", inTx(namesInTx)},
}

func namesInTx(e *env, begin func() (store.Tx, func() error, func() error)) {
	ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
	root := e.m.RootKey(ref.Scope)
	e.create(root)
	n := e.m.Name(root.ID, "one")
	n.Last = 1
	e.putName(0, n)
	tx, commit, _ := begin()
	f, got, err := tx.Name(e.ctx, ref)
	if d := diff(n, got) + diff(store.Family{Root: root}, f); d != "" || err != nil {
		e.Errorf("Name inside: %v (-stored +read):\n%s", err, d)
	}
	low := e.m.DataKey(&root, "one", key.Raw)
	created, err := tx.Create(e.ctx, e.m.Inst(), []store.Key{low})
	if e.wantClass("Create inside of a number that was used", err, store.ErrConflict); created != 0 {
		e.Errorf("Create: %d and an error", created)
	}
	after := e.m.After(&root, n)
	if created, err := tx.Create(e.ctx, e.m.Inst(), []store.Key{after}); created != 1 || err != nil {
		e.Fatalf("Create inside: %d, %v", created, err)
	}
	_, _, err = tx.Name(e.ctx, key.Ref{Scope: e.scope(9), Purpose: "one"})
	e.wantClass("Name inside without a scope", err, store.ErrNotFound)
	if !e.h.NoDestroyInTx {
		if _, err := tx.Shred(e.ctx, e.m.Inst(), ref.Scope); err != nil {
			e.Fatalf("Shred inside: %v", err)
		}
		_, _, err = tx.Name(e.ctx, ref)
		e.wantClass("Name inside after Shred", err, store.ErrNotFound)
	}
	if err := commit(); err != nil {
		e.Fatalf("commit: %v", err)
	}
	_, _, err = e.s.Name(e.ctx, ref)
	if e.h.NoDestroyInTx {
		e.wantClass("Name", err, nil)
	} else {
		e.wantClass("Name after the commit", err, store.ErrNotFound)
	}
}

// allNames lists all names, in a fixed order: no installation key has the kid of zeros.
func allNames(ctx context.Context, s store.Store) ([]store.Name, error) {
	list, err := s.NamesNotUnder(ctx, [16]byte{}, 1_000_000)
	slices.SortFunc(list, func(a, b store.Name) int {
		return cmp.Or(cmp.Compare(a.RootKeyID, b.RootKeyID), cmp.Compare(a.Purpose, b.Purpose))
	})
	return list, err
}

func (e *env) putName(from uint64, n store.Name) {
	e.Helper()
	if err := e.s.PutName(e.ctx, e.m.Inst(), from, n); err != nil {
		e.Fatalf("PutName of %q: %v", n.Purpose, err)
	}
}

func (e *env) name(ref key.Ref) store.Name {
	e.Helper()
	_, n, err := e.s.Name(e.ctx, ref)
	if err != nil {
		e.Fatalf("Name(%v): %v", ref, err)
	}
	return n
}
