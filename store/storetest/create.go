package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var createTests = []test{
	{"keys are read as they were stored", initialized(func(e *env) {
		scope := e.scope(1)
		keys := []store.Key{e.m.RootKey(scope)}
		keys = append(keys,
			e.m.DataKey(&keys[0], "a-message", key.Message),
			e.m.DataKey(&keys[0], "b-raw", key.Raw),
			e.m.DataKey(&keys[0], "c-index", key.BlindIndex))
		e.create(keys...)
		f, err := e.s.Scope(e.ctx, scope)
		if err != nil {
			e.Fatalf("Scope: %v", err)
		}
		if d := diff(store.Family{Root: keys[0], Data: keys[1:]}, f); d != "" {
			e.Errorf("Scope (-stored +read):\n%s", d)
		}
		nearNow(e.T, "Now", f.Now)
	})},
	{"several scopes in one call", initialized(func(e *env) {
		var keys []store.Key
		for i := range 50 {
			keys = append(keys, e.m.Scope(e.scope(i), "one", "two")...)
		}
		e.create(keys...)
		for i := range 50 {
			want := store.Family{Root: keys[3*i], Data: keys[3*i+1 : 3*i+3]}
			f, err := e.s.Scope(e.ctx, e.scope(i))
			if err != nil {
				e.Fatalf("Scope %d: %v", i, err)
			}
			if d := diff(want, f); d != "" {
				e.Fatalf("Scope %d (-stored +read):\n%s", i, d)
			}
		}
	})},
	{"no keys are no change", initialized(func(e *env) {
		e.unchanged(func() {
			if n, err := e.s.Create(e.ctx, e.m.Inst(), nil); n != 0 || err != nil {
				e.Errorf("Create of nothing: %d, %v", n, err)
			}
		})
	})},
	{"a taken scope is left out with its data keys, and the rest is inserted", initialized(func(e *env) {
		first := e.m.Scope(e.scope(1), "sessions")
		e.create(first...)
		n, err := e.s.Create(e.ctx, e.m.Inst(), slices.Concat(e.m.Scope(e.scope(1), "sessions", "other"), e.m.Scope(e.scope(2))))
		if n != 1 || err != nil {
			e.Errorf("Create: %d, %v; want 1, nil", n, err)
		}
		f, err := e.s.Scope(e.ctx, e.scope(1))
		if d := diff(store.Family{Root: first[0], Data: first[1:]}, f); d != "" || err != nil {
			e.Errorf("Scope: %v (-stored +read):\n%s", err, d)
		}
		e.key(key.Ref{Scope: e.scope(2)})
	})},
	{"creating the same again changes nothing", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "sessions")
		e.create(keys...)
		e.unchanged(func() {
			if n, err := e.s.Create(e.ctx, e.m.Inst(), keys); n != 0 || err != nil {
				e.Errorf("Create again: %d, %v; want 0, nil", n, err)
			}
		})
	})},
	{"a taken purpose is left out", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "sessions")
		e.create(keys...)
		late := e.m.DataKey(&keys[0], "sessions", key.Message)
		n, err := e.s.Create(e.ctx, e.m.Inst(), []store.Key{late, e.m.DataKey(&keys[0], "other", key.Message)})
		if n != 1 || err != nil {
			e.Errorf("Create: %d, %v; want 1, nil", n, err)
		}
		if d := diff(keys[1], e.key(key.Ref{Scope: e.scope(1), Purpose: "sessions"})); d != "" {
			e.Errorf("the first key (-stored +read):\n%s", d)
		}
		_, err = e.s.KeyOfVersion(e.ctx, late.Versions[0].ID)
		e.wantClass("KeyOfVersion of the key left out", err, store.ErrNotFound)
	})},
	{"one name twice in one call: the first is inserted", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "sessions", "sessions")
		if n, err := e.s.Create(e.ctx, e.m.Inst(), keys); n != 2 || err != nil {
			e.Errorf("Create: %d, %v; want 2, nil", n, err)
		}
		if d := diff(keys[1], e.key(key.Ref{Scope: e.scope(1), Purpose: "sessions"})); d != "" {
			e.Errorf("the key (-first +read):\n%s", d)
		}
	})},
	{"a data key without its root key is left out", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "sessions")
		e.unchanged(func() {
			if n, err := e.s.Create(e.ctx, e.m.Inst(), keys[1:]); n != 0 || err != nil {
				e.Errorf("Create: %d, %v; want 0, nil", n, err)
			}
		})
		if n, err := e.s.Create(e.ctx, e.m.Inst(), []store.Key{keys[1], keys[0]}); n != 1 || err != nil {
			e.Errorf("Create, root key last: %d, %v; want 1, nil", n, err)
		}
	})},
	{"another installation's keys are not inserted", initialized(func(e *env) {
		e.unchanged(func() {
			if n, err := e.s.Create(e.ctx, NewMaker(2).Inst(), e.m.Scope(e.scope(1))); n != 0 || err != nil {
				e.Errorf("Create: %d, %v; want 0, nil", n, err)
			}
		})
	})},
	{"imported keys keep ids, states and gaps", initialized(func(e *env) {
		root := e.imported(e.m.RootKey(e.scope(1)), "krkv_0123456789")
		e.create(root)
		data := e.m.DataKey(&root, "sessions", key.Message)
		data = e.imported(data, "kdkv_AbCdEfGhIj")
		e.create(data)
		f, err := e.s.Scope(e.ctx, e.scope(1))
		if d := diff(store.Family{Root: root, Data: []store.Key{data}}, f); d != "" || err != nil {
			e.Errorf("Scope: %v (-stored +read):\n%s", err, d)
		}
		nearNow(e.T, "Destroyed", f.Data[0].Tombstones[0].Destroyed)
	})},
	{"imported root keys with gaps come with data keys under their heads", initialized(importedFamilies)},
	{"300 versions of one key", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "sessions")
		k := &keys[1]
		k.Versions = nil
		for n := key.Version(1); n <= 300; n++ {
			k.Versions = append(k.Versions, e.m.Version(key.DEK, n, key.Retired, key.Message, head(&keys[0]).ID))
		}
		k.Versions[299].State, k.Head = key.Active, 300
		e.create(keys...)
		if d := diff(*k, e.key(key.Ref{Scope: e.scope(1), Purpose: "sessions"})); d != "" {
			e.Errorf("Key (-stored +read):\n%s", d)
		}
	})},
	{"the largest values", initialized(func(e *env) {
		scope := e.scope(1)
		if e.h.ScopeName == nil {
			scope = key.Scope(strings.Repeat("é", key.MaxScopeLen/2))
		}
		keys := []store.Key{e.m.RootKey(scope)}
		k := e.m.DataKey(&keys[0], key.Purpose(strings.Repeat("p", key.MaxPurposeLen)), key.Raw)
		k.Versions[0].Blob = e.m.Blob(1 + 24 + 32 + 1024 + 16)
		k.Versions[0].Created = 1 << 52
		k.Seq, k.MaxMessages, k.RotateEvery, k.RotateAt = 1<<62, 1<<62, 1<<60, 1<<60
		e.create(append(keys, k)...)
		if d := diff(k, e.key(key.Ref{Scope: scope, Purpose: k.Purpose})); d != "" {
			e.Errorf("Key (-stored +read):\n%s", d)
		}
	})},
	{"keys that never rotate", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "sessions")
		for i := range keys {
			keys[i].RotateEvery, keys[i].RotateAt, keys[i].MaxMessages = 0, 0, 0
		}
		e.create(keys...)
		if d := diff(keys[1], e.key(key.Ref{Scope: e.scope(1), Purpose: "sessions"})); d != "" {
			e.Errorf("Key (-stored +read):\n%s", d)
		}
	})},
	{"names are compared byte for byte", initialized(func(e *env) {
		e.needText()
		names := []string{
			"a", "A", "á", "a\u0301", "a ", " a", "a%", "a_", "%", "_", "*", "?", "'", "''", `"`, `\`, `\\`, "';DROP TABLE kms_root_key;--",
			"042", "42", "42.0", "1e3", "NULL", "x'00'", "$1", "?1", ":a", "@a", "😀", "\u200b", "\uFFFD", "ß", "ss", "İ", "i", "ı", "K", "\u212a",
			"{prefix}", "{scope_type}", "{}", "{a,b}", ",", "a,b",
		}
		families := map[string]store.Family{}
		for _, name := range names {
			keys := e.m.Scope(key.Scope(name))
			for _, p := range names {
				if key.Purpose(p).Validate() == nil && len(families) < 3 {
					keys = append(keys, e.m.DataKey(&keys[0], key.Purpose(p), key.Message))
				}
			}
			e.create(keys...)
			data := keys[1:]
			slices.SortFunc(data, func(a, b store.Key) int { return strings.Compare(string(a.Purpose), string(b.Purpose)) })
			families[name] = store.Family{Root: keys[0], Data: data}
		}
		for _, name := range names {
			got, err := e.s.Scope(e.ctx, key.Scope(name))
			if err != nil {
				e.Errorf("Scope(%q): %v", name, err)
				continue
			}
			if d := diff(families[name], got); d != "" {
				e.Errorf("Scope(%q) (-stored +read):\n%s", name, d)
			}
			for _, k := range families[name].Data {
				if d := diff(k, e.key(key.Ref{Scope: key.Scope(name), Purpose: k.Purpose})); d != "" {
					e.Errorf("key %q of %q (-stored +read):\n%s", k.Purpose, name, d)
				}
			}
		}
	})},
	{"the application's foreign key refuses a scope, and then nothing is inserted", initialized(func(e *env) {
		if e.h.RequireScopes == nil {
			e.Skip("the harness has no RequireScopes")
		}
		e.h.RequireScopes(e.T, e.s, e.scope(1), e.scope(2))
		e.create(e.m.Scope(e.scope(1), "sessions")...)
		e.unchanged(func() {
			n, err := e.s.Create(e.ctx, e.m.Inst(), slices.Concat(e.m.Scope(e.scope(2)), e.m.Scope(e.scope(3), "sessions")))
			e.wantClass("Create", err, store.ErrForeignKey)
			if n != 0 {
				e.Errorf("Create: %d keys and an error", n)
			}
		})
	})},
	{"what breaks a rule is refused, and then nothing is inserted", initialized(createRefused)},
	{"given and returned slices belong to the caller", initialized(func(e *env) {
		in := e.m.Installation()
		keys := e.m.Scope(e.scope(1), "sessions")
		e.create(keys...)
		e.unchanged(func() {
			for i := range keys {
				scribble(&keys[i])
			}
			f, err := e.s.Scope(e.ctx, e.scope(1))
			if err != nil {
				e.Fatalf("Scope: %v", err)
			}
			scribble(&f.Root)
			scribble(&f.Data[0])
			if in, err = e.s.Installation(e.ctx); err != nil {
				e.Fatalf("Installation: %v", err)
			}
			for _, b := range [][]byte{in.Inst, in.IKKID, in.MAC, in.Slots[0].Blob, in.Slots[0].IKKID} {
				clear(b)
			}
			in.Slots[0].ID = "x"
			scopes, err := e.s.Scopes(e.ctx, "", 10)
			if err != nil || len(scopes) != 1 {
				e.Fatalf("Scopes: %q, %v", scopes, err)
			}
			scopes[0] = "x"
		})
	})},
}

// imported makes the only version of k its third: before it an imported one with an old id, and a number that is
// missing.
func (e *env) imported(k store.Key, oldID key.ID) store.Key {
	v := k.Versions[0]
	old := e.m.Version(k.Kind, 1, key.Retired, key.Imported, v.Parent)
	old.ID = oldID
	v.Number = 3
	k.Head, k.Seq = 3, 7
	k.Versions = []store.Version{old, v}
	k.Tombstones = []store.Tombstone{{Number: 2, Alg: key.Imported, Commit: make([]byte, 32)}}
	return k
}

// importedFamilies creates scopes in one call whose root keys lack numbers at different places, each with a data key
// without gaps and one with. One of them is there already, but for its data keys.
func importedFamilies(e *env) {
	missing := [][]key.Version{nil, {1}, {2}, {1, 2, 3}, {1, 3}, {2, 3}}
	var all []store.Key
	var want []store.Family
	for i, dead := range missing {
		root := e.m.RootKey(e.scope(i))
		root = e.gaps(root, 5, "", dead...)
		f := store.Family{Root: root, Data: []store.Key{
			e.m.DataKey(&root, "a", key.Message),
			e.gaps(e.m.DataKey(&root, "b", key.Message), 4, head(&root).ID, 2),
			e.gaps(e.m.DataKey(&root, "c", key.Message), 3, head(&root).ID, 1),
		}}
		all, want = append(append(all, root), f.Data...), append(want, f)
	}
	e.create(want[1].Root)
	if n, err := e.s.Create(e.ctx, e.m.Inst(), all); n != len(all)-1 || err != nil {
		e.Fatalf("Create: %d, %v; want %d, nil", n, err, len(all)-1)
	}
	for i := range want {
		f, err := e.s.Scope(e.ctx, e.scope(i))
		if d := diff(want[i], f); d != "" || err != nil {
			e.Errorf("root key without %d: %v (-stored +read):\n%s", missing[i], err, d)
		}
	}
}

// gaps makes the only version of k its newest, of the given number: before it imported ones, but for those that are
// missing.
func (e *env) gaps(k store.Key, newest key.Version, parent key.ID, missing ...key.Version) store.Key {
	v := k.Versions[0]
	k.Versions = nil
	for n := key.Version(1); n < newest; n++ {
		if slices.Contains(missing, n) {
			k.Tombstones = append(k.Tombstones, store.Tombstone{Number: n, Alg: key.Imported, Commit: make([]byte, 32)})
		} else {
			k.Versions = append(k.Versions, e.m.Version(k.Kind, n, key.Retired, key.Imported, parent))
		}
	}
	v.Number, k.Head = newest, newest
	k.Versions = append(k.Versions, v)
	return k
}

func scribble(k *store.Key) {
	clear(k.MAC)
	clear(k.IKKID)
	for i := range k.Versions {
		clear(k.Versions[i].Blob)
		clear(k.Versions[i].Commit)
		clear(k.Versions[i].IKKID)
		k.Versions[i] = store.Version{}
	}
}

func createRefused(e *env) {
	first := e.m.Scope(e.scope(1), "sessions")
	e.create(first...)
	// data makes a case out of what spoils a data key, root one of what spoils a root key.
	cases := map[string]func() store.Key{}
	data := func(name string, spoil func(k *store.Key)) {
		cases["data key: "+name] = func() store.Key {
			k := e.m.DataKey(&first[0], "other", key.Message)
			spoil(&k)
			return k
		}
	}
	root := func(name string, spoil func(k *store.Key)) {
		cases["root key: "+name] = func() store.Key {
			k := e.m.RootKey(e.scope(2))
			spoil(&k)
			return k
		}
	}
	both := func(name string, spoil func(k *store.Key)) {
		data(name, spoil)
		root(name, spoil)
	}
	both("no id", func(k *store.Key) { k.ID = "" })
	both("id too long", func(k *store.Key) { k.ID += key.ID(strings.Repeat("0", 64)) })
	both("no sequence number", func(k *store.Key) { k.Seq = 0 })
	both("mac too short", func(k *store.Key) { k.MAC = k.MAC[:31] })
	both("no mac", func(k *store.Key) { k.MAC = nil })
	both("ik_kid too long", func(k *store.Key) { k.IKKID = make([]byte, 17) })
	both("rotate_at without a period", func(k *store.Key) { k.RotateEvery = 0 })
	both("rotate_at before all time", func(k *store.Key) { k.RotateAt = -1 })
	both("no versions", func(k *store.Key) { k.Versions = nil })
	both("no head", func(k *store.Key) { k.Head = 0 })
	both("the head is not there", func(k *store.Key) { k.Head = 2 })
	both("the head is not active", func(k *store.Key) { k.Versions[0].State = key.Retired })
	both("the head is pending", func(k *store.Key) { k.Versions[0].State = key.Pending })
	both("a version without a state", func(k *store.Key) { k.Versions[0].State = 0 })
	both("a live version that is destroyed", func(k *store.Key) { k.Versions[0].State = key.Destroyed })
	both("version number 0", func(k *store.Key) { k.Versions[0].Number, k.Head = 0, 0 })
	both("version number 1 skipped", func(k *store.Key) { k.Versions[0].Number, k.Head = 2, 2 })
	both("version without an id", func(k *store.Key) { k.Versions[0].ID = "" })
	both("unknown alg", func(k *store.Key) { k.Versions[0].Alg = 0x04 })
	both("commitment too short", func(k *store.Key) { k.Versions[0].Commit = k.Versions[0].Commit[:31] })
	both("no commitment", func(k *store.Key) { k.Versions[0].Commit = nil })
	both("empty wrapped key", func(k *store.Key) { k.Versions[0].Blob = []byte{} })
	both("no wrapped key", func(k *store.Key) { k.Versions[0].Blob = nil })
	both("two active versions", func(k *store.Key) {
		k.Versions = append(k.Versions, e.m.Version(k.Kind, 2, key.Active, key.Message, k.Versions[0].Parent))
	})
	for _, state := range []key.State{0, key.Destroyed} {
		both(fmt.Sprintf("a further version in %v", state), func(k *store.Key) {
			k.Versions = append(k.Versions, e.m.Version(k.Kind, 2, state, key.Message, k.Versions[0].Parent))
		})
	}
	both("a number twice", func(k *store.Key) {
		k.Versions = append(k.Versions, e.m.Version(k.Kind, 1, key.Retired, key.Message, k.Versions[0].Parent))
	})
	both("a number live and as a tombstone", func(k *store.Key) {
		k.Tombstones = []store.Tombstone{{Number: 1, Alg: key.Message, Commit: make([]byte, 32)}}
	})
	both("a tombstone beyond the newest", func(k *store.Key) {
		k.Tombstones = []store.Tombstone{{Number: 3, Alg: key.Message, Commit: make([]byte, 32)}}
	})
	both("tombstone with a short commitment", func(k *store.Key) {
		v := e.m.Version(k.Kind, 2, key.Disabled, key.Message, "")
		k.Tombstones = []store.Tombstone{{ID: v.ID, Number: 2, Alg: key.Message, Commit: v.Commit[:31]}}
	})
	both("tombstone of an unknown alg", func(k *store.Key) {
		k.Tombstones = []store.Tombstone{{Number: 2, Alg: 0x04, Commit: make([]byte, 32)}}
	})
	root("the id of another root key", func(k *store.Key) { k.ID = first[0].ID })
	root("the id of another's version", func(k *store.Key) { k.Versions[0].ID = first[0].Versions[0].ID })
	root("version's ik_kid is short", func(k *store.Key) { k.Versions[0].IKKID = k.Versions[0].IKKID[:15] })
	data("the id of another data key", func(k *store.Key) { k.ID = first[1].ID })
	data("the id of another's version", func(k *store.Key) { k.Versions[0].ID = first[1].Versions[0].ID })
	data("no parent", func(k *store.Key) { k.Versions[0].Parent = "" })
	data("parent is not there", func(k *store.Key) { k.Versions[0].Parent = "krkv_0" })
	data("parent is another scope's", func(k *store.Key) {
		other := e.m.RootKey(e.scope(3))
		if n, err := e.s.Create(e.ctx, e.m.Inst(), []store.Key{other}); err != nil || n > 1 {
			e.Fatalf("Create: %d, %v", n, err)
		}
		k.Versions[0].Parent = head(e.rootOf(e.scope(3))).ID
	})
	for _, p := range []key.Purpose{
		"", " a", "a ", "a\n", "\ta", "\u00a0a", "a\u3000", "\u2028a", "a\u0085", "a\x00b", "a\x7fb", "a\u009fb",
		key.Purpose(bytes.Repeat([]byte("p"), key.MaxPurposeLen+1)),
	} {
		data(fmt.Sprintf("purpose %.20q", string(p)), func(k *store.Key) { k.Purpose = p })
	}
	if e.h.ScopeName == nil {
		for _, s := range []key.Scope{"", "a\x00b", "a\nb", "a\x7f", "a\u0080", key.Scope(bytes.Repeat([]byte("s"), key.MaxScopeLen+1))} {
			root(fmt.Sprintf("scope %.20q", string(s)), func(k *store.Key) { k.Scope = s })
		}
	}
	for name, spoiled := range cases {
		k := spoiled()
		e.unchanged(func() {
			// A good key before and after it in the same call must not stay either.
			keys := []store.Key{e.m.RootKey(e.scope(8)), k, e.m.RootKey(e.scope(9))}
			n, err := e.s.Create(e.ctx, e.m.Inst(), keys)
			e.wantClass("Create, "+name, err, errRefused)
			if n != 0 {
				e.Errorf("Create, %s: %d keys and an error", name, n)
			}
		})
	}
}

func (e *env) rootOf(scope key.Scope) *store.Key {
	e.Helper()
	k := e.key(key.Ref{Scope: scope})
	return &k
}
