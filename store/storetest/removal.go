package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var removalTests = []test{
	{"a removed key is gone with its versions, and leaves its name", initialized(func(e *env) {
		ref, other := key.Ref{Scope: e.scope(1), Purpose: "one"}, key.Ref{Scope: e.scope(1), Purpose: "two"}
		e.create(e.m.Scope(ref.Scope, ref.Purpose, other.Purpose)...)
		k := e.life(ref)
		e.take(head(&k).ID, 10, 10, 10)
		before := e.family(other)
		n := e.m.Removed(&k, store.Name{Generator: "other-function"})
		e.changes("RemoveKey", []key.ID{k.ID}, func() { e.removeKey(&k, 0, n) })

		for _, s := range e.handles(2) {
			f, err := s.Key(e.ctx, ref)
			if err != nil || len(f.Data) != 0 {
				e.Errorf("Key: %d data keys, %v; want none", len(f.Data), err)
			}
			_, got, err := s.Name(e.ctx, ref)
			if d := diff(n, got); d != "" || err != nil {
				e.Errorf("Name: %v (-stored +read):\n%s", err, d)
			}
		}
		for _, v := range k.Versions {
			e.wasDestroyed(v.ID, true)
			_, err := e.s.KeyOfVersion(e.ctx, v.ID)
			e.wantClass("KeyOfVersion", err, store.ErrNotFound)
			_, err = e.s.Take(e.ctx, v.ID, 1, 10)
			e.wantClass("Take", err, store.ErrNotFound)
		}
		for _, t := range k.Tombstones {
			e.wasDestroyed(t.ID, true)
		}
		if d := diff(before, e.family(other)); d != "" {
			e.Errorf("another key (-before +after):\n%s", d)
		}
		if list, err := e.s.Named(e.ctx, ref.Scope, "", 10); err != nil || len(list) != 0 {
			e.Errorf("Named: %v, %v; want none", list, err)
		}
		due, err := e.s.Due(e.ctx, store.AllBuckets, store.Due{}, 10)
		for _, d := range due {
			if d.KeyID == k.ID {
				e.Errorf("the removed key is due: %+v", d)
			}
		}
		e.wantClass("Due", err, nil)
		e.wantClass("Update", e.s.Update(e.ctx, e.m.Next(&k)), store.ErrConflict)
		e.unchanged(func() {
			err := e.s.RemoveKey(e.ctx, e.m.Inst(), k.ID, k.Seq, 1, e.m.Removed(&k, n))
			e.wantClass("RemoveKey again", err, store.ErrConflict)
		})
	})},
	{"a key is removed only from what was seen", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		keys := e.m.Scope(ref.Scope, ref.Purpose, "two")
		e.create(keys...)
		k := e.update(ref, e.m.Next(&keys[1]))
		known := e.m.Name(keys[0].ID, ref.Purpose)
		e.putName(0, known)
		for what, c := range map[string]struct {
			inst          [16]byte
			id            key.ID
			keyFrom, from uint64
			change        func(n *store.Name)
		}{
			"from an old sequence number":          {e.m.Inst(), k.ID, 1, 1, func(*store.Name) {}},
			"from one to come":                     {e.m.Inst(), k.ID, 3, 1, func(*store.Name) {}},
			"that is not there":                    {e.m.Inst(), e.m.ID(key.PrefixDataKey), 2, 1, func(*store.Name) {}},
			"that is a root key":                   {e.m.Inst(), keys[0].ID, 1, 1, func(*store.Name) {}},
			"as if nothing were known of its name": {e.m.Inst(), k.ID, 2, 0, func(*store.Name) {}},
			"from another of its name":             {e.m.Inst(), k.ID, 2, 7, func(n *store.Name) { n.Seq = 8 }},
			"under an unknown installation key":    {e.m.Inst(), k.ID, 2, 1, func(n *store.Name) { n.IKKID[0] ^= 1 }},
			"of another installation":              {[16]byte{1}, k.ID, 2, 1, func(*store.Name) {}},
		} {
			n := e.m.Removed(&k, known)
			c.change(&n)
			e.unchanged(func() {
				e.changes("RemoveKey "+what, nil, func() {
					err := e.s.RemoveKey(e.ctx, c.inst, c.id, c.keyFrom, c.from, n)
					e.wantClass("RemoveKey "+what, err, store.ErrConflict)
				})
			})
		}
		e.removeKey(&k, 1, e.m.Removed(&k, known))
	})},
	{"what a removed key leaves has to say so, and how far its numbers went", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		keys := e.m.Scope(ref.Scope, ref.Purpose, "two")
		other := e.m.RootKey(e.scope(2))
		e.create(append(keys, other)...)
		k := e.life(ref)
		for k.Versions[len(k.Versions)-1].State == key.Pending {
			k = e.update(ref, e.m.Destroy(&k, newest(&k)))
		}
		for what, change := range map[string]func(n *store.Name){
			"that is not removed":            func(n *store.Name) { n.Removed = false },
			"with a number less":             func(n *store.Name) { n.Last-- },
			"with no number":                 func(n *store.Name) { n.Last = 0 },
			"with the number of its head":    func(n *store.Name) { n.Last = k.Head },
			"of another purpose":             func(n *store.Name) { n.Purpose = "three" },
			"of another key":                 func(n *store.Name) { n.Purpose = "two" },
			"of another root key":            func(n *store.Name) { n.RootKeyID = other.ID },
			"with the sequence number 0":     func(n *store.Name) { n.Seq = 0 },
			"without a MAC":                  func(n *store.Name) { n.MAC = nil },
			"without an installation key":    func(n *store.Name) { n.IKKID = nil },
			"with a generator too long":      func(n *store.Name) { n.Generator = strings.Repeat("g", 256) },
			"with a number too high for any": func(n *store.Name) { n.Last = key.MaxVersion + 1 },
		} {
			n := e.m.Removed(&k, store.Name{})
			change(&n)
			e.unchanged(func() {
				err := e.s.RemoveKey(e.ctx, e.m.Inst(), k.ID, k.Seq, 0, n)
				if class(err) != class(errRefused) && class(err) != class(store.ErrConflict) {
					e.Errorf("RemoveKey with a name %s: %v; want it refused", what, err)
				}
			})
		}
		e.removeKey(&k, 0, e.m.Removed(&k, store.Name{}))
	})},
	{"a key with a version that a row has is not removed", initialized(func(e *env) {
		if e.h.Refer == nil {
			e.Skip("the harness cannot refer to versions")
		}
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		e.create(e.m.Scope(ref.Scope, ref.Purpose, "two")...)
		k := e.life(ref)
		retired := slices.IndexFunc(k.Versions, func(v store.Version) bool { return v.State == key.Retired })
		e.h.Refer(e.T, e.s, k.Versions[retired].ID)
		e.unchanged(func() {
			e.changes("RemoveKey", nil, func() {
				err := e.s.RemoveKey(e.ctx, e.m.Inst(), k.ID, k.Seq, 0, e.m.Removed(&k, store.Name{}))
				e.wantInUse("RemoveKey", err, k.Versions[retired].ID, 1)
			})
		})
		k = e.key(key.Ref{Scope: e.scope(1), Purpose: "two"})
		e.removeKey(&k, 0, e.m.Removed(&k, store.Name{}))
	})},
	{"a new key of the name goes on counting, once it is registered", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		root := e.m.RootKey(ref.Scope)
		k := e.m.DataKey(&root, ref.Purpose, key.Raw)
		e.create(root, k)
		var known store.Name
		for round := range 3 {
			k = e.update(ref, e.m.Add(&k, &root))
			from := known.Seq
			known = e.m.Removed(&k, known)
			e.removeKey(&k, from, known)
			if want := key.Version(2 * (round + 1)); known.Last != want {
				e.Fatalf("the last number is %d, want %d", known.Last, want)
			}
			e.notCreated(store.ErrConflict, e.m.After(&root, known))

			known = e.m.NextName(known)
			known.Removed = false
			e.putName(known.Seq-1, known)
			low := known
			low.Last--
			fresh := e.m.RootKey(e.scope(2))
			e.notCreated(store.ErrConflict, e.m.After(&root, low))
			e.notCreated(store.ErrConflict, e.m.DataKey(&root, ref.Purpose, key.Message))
			e.notCreated(store.ErrConflict, fresh, e.m.DataKey(&root, "another", key.Raw), e.m.After(&root, low))
			same := e.m.After(&root, known)
			same.Versions[0] = k.Versions[0]
			same.Versions[0].Number = same.Head
			e.notCreated(errRefused, same)

			old := k
			k = e.m.After(&root, known)
			e.changes("Create", nil, func() { e.create(k) })
			if d := diff(k, e.key(ref)); d != "" {
				e.Errorf("the new key (-stored +read):\n%s", d)
			}
			e.wasDestroyed(old.Versions[0].ID, true)
			e.wasDestroyed(k.Versions[0].ID, false)

			// Whose name is taken is left out, whatever its numbers.
			e.unchanged(func() {
				taken := e.m.DataKey(&root, ref.Purpose, key.Raw)
				if n, err := e.s.Create(e.ctx, e.m.Inst(), []store.Key{taken}); n != 0 || err != nil {
					e.Errorf("Create of what is there: %d, %v; want 0, nil", n, err)
				}
			})
		}
	})},
	{"a generator is read as it was stored, by every way to read", initialized(func(e *env) {
		scope := e.scope(1)
		ref := key.Ref{Scope: scope, Purpose: "b"}
		root := e.m.RootKey(scope)
		k := e.m.DataKey(&root, "b", key.Raw)
		k.Generator = strings.Repeat("g", 253) + "ß"
		e.create(root, e.m.DataKey(&root, "a", key.Raw), k, e.m.DataKey(&root, "c", key.Message))
		for i, generator := range []string{k.Generator, "aes128-random", "", "a b"} {
			if i > 0 {
				u := e.m.Next(&k)
				u.Manifest.Generator = generator
				k = e.update(ref, u)
			}
			e.generatorRead(ref, k.Versions[0].ID, generator)
		}
		kid := e.secondKey()
		e.rekeyScope(scope, kid)
		e.generatorRead(ref, k.Versions[0].ID, "a b")
	})},
	{"a generator that breaks a rule is refused", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		root := e.m.RootKey(ref.Scope)
		k := e.m.DataKey(&root, ref.Purpose, key.Raw)
		e.create(root, k)
		for _, generator := range []string{strings.Repeat("g", 254) + "ß", "g\x00", "g\n", "\x7f", "\u0085", "\xff"} {
			u, fresh := e.m.Next(&k), e.m.DataKey(&root, "two", key.Raw)
			u.Manifest.Generator, fresh.Generator = generator, generator
			e.unchanged(func() {
				e.wantClass(fmt.Sprintf("Update with %q", generator), e.s.Update(e.ctx, u), errRefused)
			})
			e.notCreated(errRefused, fresh)
		}
		u, fresh := e.m.Next(&root), e.m.RootKey(e.scope(2))
		u.Manifest.Generator, fresh.Generator = "g", "g"
		e.unchanged(func() {
			e.wantClass("Update of a root key with one", e.s.Update(e.ctx, u), errRefused)
		})
		e.notCreated(errRefused, fresh)
	})},
	{"of a removal and creations at once, no number comes again", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		root := e.m.RootKey(ref.Scope)
		k := e.m.DataKey(&root, ref.Purpose, key.Raw)
		e.create(root, k)
		var known store.Name
		for range 4 {
			from := known.Seq
			known = e.m.Removed(&k, known)
			e.removedWhile(ref, &root, &k, from, known)
			if d := diff(known, e.name(ref)); d != "" {
				e.Errorf("Name (-stored +read):\n%s", d)
			}

			known = e.m.NextName(known)
			known.Removed = false
			e.putName(known.Seq-1, known)
			if !e.createdWhileRemoved(ref, &root, known) {
				known = e.name(ref)
				known = e.m.NextName(known)
				known.Removed = false
				e.putName(known.Seq-1, known)
				e.create(e.m.After(&root, known))
			}
			k = e.key(ref)
		}
	})},
	{"of 16 removals of a key, or changes of a name, from one state just one wins", initialized(func(e *env) {
		root := e.m.RootKey(e.scope(1))
		k := e.m.DataKey(&root, "one", key.Raw)
		e.create(root, k)
		for round, call := range []func(i int, s store.Store) error{
			func(_ int, s store.Store) error {
				return s.PutName(e.ctx, e.m.Inst(), 0, e.m.Name(root.ID, "one"))
			},
			func(i int, s store.Store) error {
				if i%2 == 0 {
					return s.Update(e.ctx, e.m.Next(&k))
				}
				return s.RemoveKey(e.ctx, e.m.Inst(), k.ID, 1, 1, e.m.Removed(&k, store.Name{Seq: 1}))
			},
			func(_ int, s store.Store) error {
				k := e.m.DataKey(&root, "two", key.Raw)
				return s.PutName(e.ctx, e.m.Inst(), 0, e.m.Removed(&k, store.Name{}))
			},
		} {
			won := 0
			for _, err := range e.race(16, call) {
				if err == nil {
					won++
					continue
				}
				e.wantClass(fmt.Sprint("round ", round), err, store.ErrConflict)
			}
			if won != 1 {
				e.Errorf("round %d: %d won, want 1", round, won)
			}
		}
	})},
}

// removedWhile removes k while others create a key of its name, with the number that k has: none of them does.
func (e *env) removedWhile(ref key.Ref, root, k *store.Key, from uint64, n store.Name) {
	e.Helper()
	for i, err := range e.race(16, func(i int, s store.Store) error {
		if i == 0 {
			return s.RemoveKey(e.ctx, e.m.Inst(), k.ID, k.Seq, from, n)
		}
		before := n
		before.Last = k.Head - 1
		created, err := s.Create(e.ctx, e.m.Inst(), []store.Key{e.m.After(root, before)})
		if created != 0 {
			return fmt.Errorf("%d keys created", created)
		}
		return err
	}) {
		if i == 0 || err != nil {
			want := store.ErrConflict
			if i == 0 {
				want = nil
			}
			e.wantClass(fmt.Sprint("caller ", i), err, want)
		}
	}
	if f := e.family(ref); len(f.Data) != 0 {
		e.Errorf("there is a key of number %d", f.Data[0].Head)
	}
}

// createdWhileRemoved lets many create a key of the registered name n, while one removes the name, and says whether
// there is a key then: just one of the two came about.
func (e *env) createdWhileRemoved(ref key.Ref, root *store.Key, n store.Name) bool {
	e.Helper()
	var created atomic.Int64
	gone := e.m.NextName(n)
	gone.Removed = true
	errs := e.race(16, func(i int, s store.Store) error {
		if i == 5 {
			return s.PutName(e.ctx, e.m.Inst(), n.Seq, gone)
		}
		c, err := s.Create(e.ctx, e.m.Inst(), []store.Key{e.m.After(root, n)})
		created.Add(int64(c))
		return err
	})
	removed := errs[5] == nil
	for i, err := range errs {
		if err != nil {
			e.wantClass(fmt.Sprint("caller ", i), err, store.ErrConflict)
		}
		if i != 5 && err == nil && removed {
			e.Errorf("caller %d found the name neither taken nor removed", i)
		}
		if i != 5 && err != nil && !removed {
			e.Errorf("caller %d: %v, and nobody removed the name", i, err)
		}
	}
	there := len(e.family(ref).Data) == 1
	if there == removed || there != (created.Load() == 1) {
		e.Errorf("the name is removed: %v, a key is there: %v, %d were created", removed, there, created.Load())
	}
	return there
}

// generatorRead asserts the generator of the key that ref names, which has the version with the id, and that no other
// key of its scope has it.
func (e *env) generatorRead(ref key.Ref, version key.ID, want string) {
	e.Helper()
	for what, read := range map[string]func(s store.Store) (store.Family, error){
		"Key":          func(s store.Store) (store.Family, error) { return s.Key(e.ctx, ref) },
		"KeyOfVersion": func(s store.Store) (store.Family, error) { return s.KeyOfVersion(e.ctx, version) },
		"Scope":        func(s store.Store) (store.Family, error) { return s.Scope(e.ctx, ref.Scope) },
		"Families": func(s store.Store) (store.Family, error) {
			list, _, err := s.Families(e.ctx, []key.Scope{ref.Scope})
			return append(list, store.Family{})[0], err
		},
	} {
		for _, s := range e.handles(2) {
			f, err := read(s)
			found := 0
			for i := range append(f.Data, f.Root) {
				switch k := append(f.Data, f.Root)[i]; {
				case k.Purpose == ref.Purpose:
					if found++; k.Generator != want {
						e.Errorf("%s: generator %q, want %q", what, k.Generator, want)
					}
				case k.Generator != "":
					e.Errorf("%s: key %q has the generator %q", what, k.Purpose, k.Generator)
				}
			}
			if err != nil || found != 1 {
				e.Errorf("%s: %d keys, %v; want 1", what, found, err)
			}
		}
	}
}

// notCreated asserts that Create refuses the keys, all of them.
func (e *env) notCreated(want error, keys ...store.Key) {
	e.Helper()
	e.unchanged(func() {
		n, err := e.s.Create(e.ctx, e.m.Inst(), keys)
		if e.wantClass("Create", err, want); n != 0 {
			e.Errorf("Create: %d and an error", n)
		}
	})
}

func (e *env) removeKey(k *store.Key, from uint64, n store.Name) {
	e.Helper()
	if err := e.s.RemoveKey(e.ctx, e.m.Inst(), k.ID, k.Seq, from, n); err != nil {
		e.Fatalf("RemoveKey of %q: %v", k.Purpose, err)
	}
}
