package storetest

import (
	"errors"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var shredTests = []test{
	{"all keys of the scope go, and no others", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		e.create(e.m.Scope(e.scope(2), "one")...)
		other := e.family(key.Ref{Scope: e.scope(2), Purpose: "one"})
		e.changes("Shred", []key.ID{keys[0].ID, keys[1].ID, keys[2].ID}, func() {
			done, err := e.s.Shred(e.ctx, e.m.Inst(), e.scope(1))
			if err != nil || done.Versions != 3 {
				e.Fatalf("Shred: %+v, %v; want 3 versions", done, err)
			}
		})
		for _, s := range e.handles(2) {
			_, err := s.Scope(e.ctx, e.scope(1))
			e.wantClass("Scope", err, store.ErrNotFound)
		}
		if d := diff(other, e.family(key.Ref{Scope: e.scope(2), Purpose: "one"})); d != "" {
			e.Errorf("another scope (-before +after):\n%s", d)
		}
		_, err := e.s.Shred(e.ctx, e.m.Inst(), e.scope(1))
		e.wantClass("Shred again", err, store.ErrNotFound)

		// The ids are used up, which can be asked for; the name is not.
		for _, k := range keys {
			e.wasDestroyed(k.Versions[0].ID, true)
		}
		e.wasDestroyed(other.Root.Versions[0].ID, false)
		if n, err := e.s.Create(e.ctx, e.m.Inst(), keys); err == nil {
			e.Errorf("Create of the same keys: %d", n)
		}
		e.create(e.m.Scope(e.scope(1), "one")...)
	})},
	{"a destroyed version is known by its id, and others are not", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		keys := e.m.Scope(ref.Scope, ref.Purpose)
		keys[1] = e.gaps(keys[1], 3, head(&keys[0]).ID, 1)
		e.create(keys...)
		dead := keys[1].Versions[0].ID
		k := e.update(ref, e.m.Step(&keys[1], 2, key.Disabled))
		e.wasDestroyed(dead, false)
		k = e.update(ref, e.m.Destroy(&k, 2))
		e.wasDestroyed(dead, true)
		e.wasDestroyed(head(&k).ID, false)
		for _, id := range []key.ID{"", "kdkv_0", "kdkv_\x00", k.ID} {
			e.wasDestroyed(id, false)
		}
	})},
	{"another installation's caller finds nothing", initialized(func(e *env) {
		e.create(e.m.Scope(e.scope(1), "one")...)
		e.unchanged(func() {
			_, err := e.s.Shred(e.ctx, [16]byte{1}, e.scope(1))
			e.wantClass("Shred", err, store.ErrNotFound)
		})
	})},
	{"a version that a row has keeps its scope", initialized(func(e *env) {
		if e.h.Refer == nil {
			e.Skip("the harness cannot refer to versions")
		}
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		e.h.Refer(e.T, e.s, keys[2].Versions[0].ID)
		e.unchanged(func() {
			_, err := e.s.Shred(e.ctx, e.m.Inst(), e.scope(1))
			e.wantInUse("Shred", err, keys[2].Versions[0].ID, 1)
			_, err = e.s.Shred(e.ctx, e.m.Inst(), e.scope(2))
			e.wantClass("Shred of a scope that is not there", err, store.ErrNotFound)
		})
	})},
	{"a rollback brings the scope back", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		if e.h.NoDestroyInTx {
			e.Skip("transactions have no right to delete keys")
		}
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		e.putName(0, e.m.Name(keys[0].ID, "two"))
		e.unchanged(func() {
			tx, _, rollback := begin()
			done, err := tx.Shred(e.ctx, e.m.Inst(), e.scope(1))
			_, again := tx.Shred(e.ctx, e.m.Inst(), e.scope(1))
			if err != nil || done.Versions != 2 || len(done.Remains) > 0 && done.Remains[0] == "" || !errors.Is(again, store.ErrNotFound) {
				e.Errorf("Shred: %+v, %v; again: %v", done, err, again)
			}
			if err := rollback(); err != nil {
				e.Fatalf("rollback: %v", err)
			}
		})
	})},
}

func (e *env) wasDestroyed(id key.ID, want bool) {
	e.Helper()
	if was, err := e.s.WasDestroyed(e.ctx, id); was != want || err != nil {
		e.Errorf("WasDestroyed(%q): %v, %v; want %v", id, was, err, want)
	}
}
