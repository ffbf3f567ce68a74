package storetest

import (
	"bytes"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var epochTests = []test{
	{"there are none without an installation", func(e *env) {
		e.migrate()
		_, err := e.s.Epochs(e.ctx)
		e.wantClass("Epochs", err, store.ErrNotFound)
		if list, epochs, err := e.s.Families(e.ctx, []key.Scope{e.scope(1)}); err != nil || len(list) != 0 || len(epochs.Inst) != 0 || epochs.Seq != 0 {
			e.Errorf("Families: %v, %v, %v; want none", list, epochs, err)
		}
	}},
	{"they are the installation's", initialized(func(e *env) {
		in, err := e.s.Installation(e.ctx)
		if err != nil {
			e.Fatalf("Installation: %v", err)
		}
		if got := e.epochs(); !bytes.Equal(got.Inst, in.Inst) || got.Seq != in.Seq || got.Keys != [store.Buckets]uint64{} {
			e.Errorf("Epochs: %v; want those of %v, all 0", got, in)
		}
	})},
	{"a new key and a rewrapped one change none", initialized(func(e *env) {
		before := e.epochs()
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		v := &keys[1].Versions[0]
		if n, err := e.s.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{e.m.Rewrap(v, v.Parent)}, nil); n != 1 || err != nil {
			e.Fatalf("Rewrap: %d, %v", n, err)
		}
		if after := e.epochs(); after.Keys != before.Keys {
			e.Errorf("from %v to %v", before.Keys, after.Keys)
		}
	})},
	{"a changed key changes its own, for all handles", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		for i := range keys {
			k := &keys[i]
			e.changes("Update of "+string(k.ID), []key.ID{k.ID}, func() {
				if err := e.s.Update(e.ctx, e.m.Add(k, &keys[0])); err != nil {
					e.Fatalf("Update: %v", err)
				}
			})
		}
	})},
	{"a renamed scope changes its root key's", initialized(func(e *env) {
		if e.h.RenameScope == nil {
			e.Skip("the harness cannot rename scopes")
		}
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		e.changes("renaming", []key.ID{keys[0].ID}, func() { e.h.RenameScope(e.T, e.s, e.scope(1), e.scope(2)) })
	})},
	{"a deleted scope changes those of all its keys", initialized(func(e *env) {
		if e.h.DeleteScope == nil {
			e.Skip("the harness cannot delete scopes")
		}
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		e.changes("deleting", []key.ID{keys[0].ID, keys[1].ID, keys[2].ID}, func() { e.h.DeleteScope(e.T, e.s, e.scope(1)) })
	})},
	{"a key is read with its own", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two", "three")
		e.create(keys...)
		e.readWith(keys, "before any change")
		for i := range keys {
			if err := e.s.Update(e.ctx, e.m.Add(&keys[i], &keys[0])); err != nil {
				e.Fatalf("Update: %v", err)
			}
			e.readWith(keys, "after one of "+string(keys[i].ID))
		}
	})},
	{"what is rolled back changes none", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		e.changes("a change that is rolled back", nil, func() {
			tx, _, rollback := begin()
			if err := tx.Update(e.ctx, e.m.Add(&keys[1], &keys[0])); err != nil {
				e.Fatalf("Update: %v", err)
			}
			if err := rollback(); err != nil {
				e.Fatalf("rollback: %v", err)
			}
		})
	})},
}

func (e *env) epochs() store.Epochs {
	e.Helper()
	epochs, err := e.s.Epochs(e.ctx)
	if err != nil {
		e.Fatalf("Epochs: %v", err)
	}
	return epochs
}

// readWith asserts that the keys, a root key and its data keys, are read with the epochs of their buckets.
func (e *env) readWith(keys []store.Key, when string) {
	e.Helper()
	epochs, scope := e.epochs(), keys[0].Scope
	wants := func(what string, f store.Family, err error, ids ...key.ID) {
		e.Helper()
		if want := epochs.Of(ids...); err != nil || f.Epoch != want {
			e.Errorf("%s, %s: epoch %d, %v; want %d", when, what, f.Epoch, err, want)
		}
	}
	root := keys[0].ID
	f, err := e.s.Key(e.ctx, key.Ref{Scope: scope})
	wants("its root key", f, err, root)
	f, err = e.s.KeyOfVersion(e.ctx, keys[0].Versions[0].ID)
	wants("the root key of a version", f, err, root)
	ids := []key.ID{root}
	for i := range keys[1:] {
		k := &keys[i+1]
		ids = append(ids, k.ID)
		f, err = e.s.Key(e.ctx, key.Ref{Scope: scope, Purpose: k.Purpose})
		wants(string(k.Purpose), f, err, root, k.ID)
		f, err = e.s.KeyOfVersion(e.ctx, k.Versions[0].ID)
		wants("the key of a version", f, err, root, k.ID)
	}
	f, err = e.s.Scope(e.ctx, scope)
	wants("the scope", f, err, ids...)
	list, read, err := e.s.Families(e.ctx, []key.Scope{scope})
	if err != nil || len(list) != 1 || read.Keys != epochs.Keys || read.Seq != epochs.Seq || !bytes.Equal(read.Inst, epochs.Inst) {
		e.Fatalf("%s, Families: %d with %v, %v; want one with %v", when, len(list), read, err, epochs)
	}
	wants("one of many scopes", list[0], err, ids...)
}

// changes asserts that f moves on the epochs of these keys, and no others.
func (e *env) changes(what string, keys []key.ID, f func()) {
	e.Helper()
	before := e.epochs()
	f()
	for _, s := range e.handles(2) {
		after, err := s.Epochs(e.ctx)
		if err != nil {
			e.Fatalf("Epochs: %v", err)
		}
		want := map[int]bool{}
		for _, id := range keys {
			want[store.Bucket(id)] = true
		}
		for bucket := range after.Keys {
			if moved := after.Keys[bucket] > before.Keys[bucket]; moved != want[bucket] || after.Keys[bucket] < before.Keys[bucket] {
				e.Errorf("%s: bucket %d from %d to %d", what, bucket, before.Keys[bucket], after.Keys[bucket])
			}
		}
	}
}
