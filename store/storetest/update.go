package storetest

import (
	"math"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// bothKinds is a test of a root key and of a data key.
func bothKinds(run func(e *env, ref key.Ref)) func(e *env) {
	return func(e *env) {
		for _, ref := range []key.Ref{{Scope: e.scope(0)}, {Scope: e.scope(0), Purpose: "sessions"}} {
			e.Run(map[bool]string{true: "root key", false: "data key"}[ref.IsRoot()], func(t *testing.T) {
				e := newEnv(t, e.h).initialize()
				e.create(e.m.Scope(ref.Scope, "another", "sessions")...)
				run(e, ref)
			})
		}
	}
}

// life brings the key to these versions: 1 destroyed, 2 disabled, 3 retired, 4 active, 5 pending, all data keys' under
// the root key's version that was the head before.
func (e *env) life(ref key.Ref) store.Key {
	e.Helper()
	k := e.key(ref)
	root := e.key(key.Ref{Scope: ref.Scope})
	if ref.IsRoot() {
		// Nothing may be wrapped under the versions that go.
		k = e.update(ref, e.m.Add(&k, &root))
		k = e.update(ref, e.m.Activate(&k, 2))
		e.rewrapAll(ref.Scope)
		k = e.update(ref, e.m.Step(&k, 1, key.Disabled))
		k = e.update(ref, e.m.Destroy(&k, 1))
	} else {
		k = e.update(ref, e.m.Add(&k, &root))
		k = e.update(ref, e.m.Activate(&k, 2))
		k = e.update(ref, e.m.Step(&k, 1, key.Disabled))
		k = e.update(ref, e.m.Destroy(&k, 1))
	}
	for n := key.Version(3); n <= 5; n++ {
		k = e.update(ref, e.m.Add(&k, &root))
		if n < 5 {
			k = e.update(ref, e.m.Activate(&k, n))
		}
	}
	if ref.IsRoot() {
		e.rewrapAll(ref.Scope)
	}
	return e.update(ref, e.m.Step(&k, 2, key.Disabled))
}

// rewrapAll wraps all versions of the scope's data keys under its root key's head.
func (e *env) rewrapAll(scope key.Scope) {
	e.Helper()
	root := e.key(key.Ref{Scope: scope})
	e.rewrapUnder(scope, head(&root).ID)
}

func (e *env) rewrapUnder(scope key.Scope, parent key.ID) {
	e.Helper()
	f, err := e.s.Scope(e.ctx, scope)
	if err != nil {
		e.Fatalf("Scope: %v", err)
	}
	var rows []store.Rewrap
	for _, k := range f.Data {
		for i := range k.Versions {
			rows = append(rows, e.m.Rewrap(&k.Versions[i], parent))
		}
	}
	if n, err := e.s.Rewrap(e.ctx, e.m.Inst(), rows, nil); n != len(rows) || err != nil {
		e.Fatalf("Rewrap: %d, %v; want %d", n, err, len(rows))
	}
}

var updateTests = []test{
	{"changes the manifest and nothing else", bothKinds(func(e *env, ref key.Ref) {
		want := e.key(ref)
		u := e.m.Next(&want)
		u.Manifest.Seq = want.Seq + 5
		u.Manifest.RotateEvery, u.Manifest.MaxMessages, u.RotateAt = 60, 7, want.Versions[0].Created+60
		u.Manifest.IKKID = want.IKKID
		want.Manifest, want.RotateAt = u.Manifest, u.RotateAt
		if d := diff(want, e.update(ref, u)); d != "" {
			e.Errorf("Key (-want +read):\n%s", d)
		}
		u = e.m.Next(&want)
		u.Manifest.RotateEvery, u.RotateAt = 0, 0
		want.Manifest, want.RotateAt = u.Manifest, 0
		if d := diff(want, e.update(ref, u)); d != "" {
			e.Errorf("Key without a period (-want +read):\n%s", d)
		}
	})},
	{"adds a pending version, and the head stays", bothKinds(func(e *env, ref key.Ref) {
		want := e.key(ref)
		u := e.m.Add(&want, e.rootOf(ref.Scope))
		want.Manifest, want.RotateAt = u.Manifest, u.RotateAt
		want.Versions = append(want.Versions, *u.Add)
		if d := diff(want, e.update(ref, u)); d != "" {
			e.Errorf("Key (-want +read):\n%s", d)
		}
	})},
	{"activates a version and retires the old head", bothKinds(func(e *env, ref key.Ref) {
		k := e.key(ref)
		want := e.update(ref, e.m.Add(&k, e.rootOf(ref.Scope)))
		u := e.m.Activate(&want, 2)
		want.Manifest = u.Manifest
		want.Versions[0].State, want.Versions[1].State = key.Retired, key.Active
		if d := diff(want, e.update(ref, u)); d != "" {
			e.Errorf("Key (-want +read):\n%s", d)
		}
	})},
	{"activates a version past a pending one", bothKinds(func(e *env, ref key.Ref) {
		k := e.key(ref)
		for range 2 {
			k = e.update(ref, e.m.Add(&k, e.rootOf(ref.Scope)))
		}
		k = e.update(ref, e.m.Activate(&k, 3))
		if k.Head != 3 || k.Versions[1].State != key.Pending {
			e.Errorf("head %d, version 2 %v; want 3, pending", k.Head, k.Versions[1].State)
		}
	})},
	{"disables and enables", bothKinds(func(e *env, ref key.Ref) {
		want := e.life(ref)
		for _, to := range []key.State{key.Retired, key.Disabled} {
			u := e.m.Step(&want, 2, to)
			want.Manifest = u.Manifest
			want.Versions[0].State = to
			if d := diff(want, e.update(ref, u)); d != "" {
				e.Errorf("version 2 to %v (-want +read):\n%s", to, d)
			}
		}
	})},
	{"destroys disabled and pending versions and keeps tombstones", bothKinds(func(e *env, ref key.Ref) {
		k := e.life(ref)
		u := e.m.Destroy(&k, 5, 2)
		want := k
		want.Manifest, want.RotateAt = u.Manifest, u.RotateAt
		want.Versions = k.Versions[1:3]
		want.Tombstones = append(want.Tombstones, tombstoneOf(k.Versions[0]), tombstoneOf(k.Versions[3]))
		got := e.update(ref, u)
		if d := diff(want, got); d != "" {
			e.Errorf("Key (-want +read):\n%s", d)
		}
		for _, t := range got.Tombstones {
			nearNow(e.T, "Destroyed", t.Destroyed)
		}
	})},
	{"never gives a destroyed version's number again", bothKinds(func(e *env, ref key.Ref) {
		k := e.key(ref)
		k = e.update(ref, e.m.Add(&k, e.rootOf(ref.Scope)))
		k = e.update(ref, e.m.Destroy(&k, 2))
		u := e.m.Add(&k, e.rootOf(ref.Scope))
		again := e.m.Add(&k, e.rootOf(ref.Scope))
		again.Add.Number = 2
		e.unchanged(func() { e.wantClass("Update that adds version 2 again", e.s.Update(e.ctx, again), errRefused) })
		if k = e.update(ref, u); len(k.Versions) != 2 || k.Versions[1].Number != 3 {
			e.Errorf("versions %+v; want 1 and 3", k.Versions)
		}
	})},
	{"does all of it at once", bothKinds(func(e *env, ref key.Ref) {
		k := e.life(ref)
		u := e.m.Add(&k, e.rootOf(ref.Scope))
		u.Manifest.Head = 5
		u.States = []store.StateChange{
			{Number: 4, From: key.Active, To: key.Retired},
			{Number: 5, From: key.Pending, To: key.Active},
			{Number: 3, From: key.Retired, To: key.Disabled},
		}
		u.Destroy = []key.Version{2}
		got := e.update(ref, u)
		states := map[key.Version]key.State{}
		for _, v := range got.Versions {
			states[v.Number] = v.State
		}
		want := map[key.Version]key.State{3: key.Disabled, 4: key.Retired, 5: key.Active, 6: key.Pending}
		if d := diff(want, states); d != "" || len(got.Tombstones) != 2 || got.Head != 5 {
			e.Errorf("head %d, %d tombstones, states (-want +read):\n%s", got.Head, len(got.Tombstones), d)
		}
	})},
	{"conflicts when the key is not as the caller saw it", bothKinds(func(e *env, ref key.Ref) {
		stale := e.key(ref)
		k := e.update(ref, e.m.Next(&stale))
		root := e.rootOf(ref.Scope)
		for what, change := range map[string]func(u *store.Update){
			"an older sequence number": func(u *store.Update) { u.From = stale.Seq },
			"a later one":              func(u *store.Update) { u.From, u.Manifest.Seq = k.Seq+1, k.Seq+2 },
			"none":                     func(u *store.Update) { u.From = 0 },
			"a key that is not there":  func(u *store.Update) { u.KeyID = e.m.ID(string(u.KeyID[:4])) },
			"another installation":     func(u *store.Update) { u.Inst = NewMaker(2).Inst() },
			"the other kind": func(u *store.Update) {
				u.Kind = map[key.Kind]key.Kind{key.KEK: key.DEK, key.DEK: key.KEK}[u.Kind]
				u.Add = nil
			},
		} {
			u := e.m.Add(&k, root)
			change(&u)
			e.unchanged(func() { e.wantClass("Update from "+what, e.s.Update(e.ctx, u), store.ErrConflict) })
		}
	})},
	{"what breaks a rule is refused, and then nothing is changed", bothKinds(updateRefused)},
	{"a version with something of the application's referring to it stays", initialized(func(e *env) {
		if e.h.Refer == nil {
			e.Skip("the harness has no Refer")
		}
		ref := key.Ref{Scope: e.scope(1), Purpose: "sessions"}
		e.create(e.m.Scope(ref.Scope, ref.Purpose)...)
		k := e.life(ref)
		e.h.Refer(e.T, e.s, k.Versions[0].ID)
		u := e.m.Destroy(&k, 2, 5)
		e.unchanged(func() { e.wantInUse("Update", e.s.Update(e.ctx, u), k.Versions[0].ID, 1) })
		e.update(ref, e.m.Destroy(&k, 5))
	})},
	{"a root key version that wraps something is neither disabled nor destroyed", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1)}
		e.create(e.m.Scope(ref.Scope, "sessions", "tokens")...)
		k := e.key(ref)
		for n := key.Version(2); n <= 3; n++ {
			k = e.update(ref, e.m.Add(&k, nil))
			k = e.update(ref, e.m.Activate(&k, n))
		}
		off := e.m.Step(&k, 1, key.Disabled)
		off.States = append(off.States, store.StateChange{Number: 2, From: key.Retired, To: key.Disabled})
		e.unchanged(func() { e.wantInUse("Update that disables", e.s.Update(e.ctx, off), k.Versions[0].ID, 2) })
		k = e.update(ref, e.m.Step(&k, 2, key.Disabled))
		e.rewrapAll(ref.Scope)
		k = e.update(ref, e.m.Step(&k, 1, key.Disabled))
		k = e.update(ref, e.m.Destroy(&k, 1, 2))

		k = e.update(ref, e.m.Add(&k, nil))
		e.rewrapUnder(ref.Scope, k.Versions[1].ID)
		u := e.m.Destroy(&k, 4)
		e.unchanged(func() { e.wantInUse("Update that destroys", e.s.Update(e.ctx, u), k.Versions[1].ID, 2) })
	})},
	{"nothing is wrapped under a disabled root key version", initialized(func(e *env) {
		ref, data := key.Ref{Scope: e.scope(1)}, key.Ref{Scope: e.scope(1), Purpose: "sessions"}
		e.create(e.m.Scope(ref.Scope, data.Purpose)...)
		before := e.key(ref)
		k := e.update(ref, e.m.Add(&before, nil))
		k = e.update(ref, e.m.Activate(&k, 2))
		e.rewrapAll(ref.Scope)
		k = e.update(ref, e.m.Step(&k, 1, key.Disabled))

		// Of whoever read the root key before.
		d := e.key(data)
		add, fresh := e.m.Add(&d, &before), e.m.DataKey(&before, "tokens", key.Message)
		rewrap := []store.Rewrap{e.m.Rewrap(&d.Versions[0], before.Versions[0].ID)}
		e.unchanged(func() {
			e.wantClass("Update", e.s.Update(e.ctx, add), store.ErrConflict)
			_, err := e.s.Create(e.ctx, e.m.Inst(), []store.Key{fresh})
			e.wantClass("Create", err, store.ErrConflict)
			_, err = e.s.Rewrap(e.ctx, e.m.Inst(), rewrap, nil)
			e.wantClass("Rewrap", err, store.ErrConflict)
		})
		e.update(ref, e.m.Step(&k, 1, key.Retired))
		e.update(data, add)
		e.create(fresh)
		e.wantRewrapped(1, rewrap...)
	})},
	{"given slices are not kept", bothKinds(func(e *env, ref key.Ref) {
		k := e.key(ref)
		u := e.m.Add(&k, e.rootOf(ref.Scope))
		e.update(ref, u)
		e.unchanged(func() {
			clear(u.Manifest.MAC)
			clear(u.Manifest.IKKID)
			clear(u.Add.Blob)
			clear(u.Add.Commit)
			clear(u.Add.IKKID)
			u.Add.State = key.Disabled
		})
	})},
}

func tombstoneOf(v store.Version) store.Tombstone {
	return store.Tombstone{ID: v.ID, Number: v.Number, Alg: v.Alg, Commit: v.Commit}
}

func updateRefused(e *env, ref key.Ref) {
	k := e.life(ref)
	root := e.rootOf(ref.Scope)
	cases := map[string]store.Update{}
	step := func(name string, u store.Update, change func(u *store.Update)) {
		change(&u)
		cases[name] = u
	}
	manifest := func(name string, change func(u *store.Update)) { step(name, e.m.Next(&k), change) }
	add := func(name string, change func(u *store.Update)) {
		step("added version: "+name, e.m.Add(&k, root), change)
	}
	states := func(name string, changes ...store.StateChange) {
		manifest(name, func(u *store.Update) { u.States = changes })
	}

	manifest("the same sequence number", func(u *store.Update) { u.Manifest.Seq = u.From })
	manifest("a lower sequence number", func(u *store.Update) { u.Manifest.Seq = u.From - 1 })
	manifest("a sequence number out of range", func(u *store.Update) { u.Manifest.Seq = math.MaxUint64 })
	manifest("mac too short", func(u *store.Update) { u.Manifest.MAC = u.Manifest.MAC[:31] })
	manifest("ik_kid too short", func(u *store.Update) { u.Manifest.IKKID = nil })
	manifest("rotate_at without a period", func(u *store.Update) { u.Manifest.RotateEvery = 0 })
	manifest("period out of range", func(u *store.Update) { u.Manifest.RotateEvery = math.MaxUint64 })
	manifest("limit of messages out of range", func(u *store.Update) { u.Manifest.MaxMessages = math.MaxUint64 })
	manifest("the head is retired", func(u *store.Update) { u.Manifest.Head = 3 })
	manifest("the head is pending", func(u *store.Update) { u.Manifest.Head = 5 })
	manifest("the head is destroyed", func(u *store.Update) { u.Manifest.Head = 1 })
	manifest("no head", func(u *store.Update) { u.Manifest.Head = 0 })
	step("activated, the old head stays active", e.m.Activate(&k, 5), func(u *store.Update) { u.States = u.States[:1] })
	step("activated, the head is the old one", e.m.Activate(&k, 5), func(u *store.Update) { u.Manifest.Head = 4 })
	step("retired without a new head", e.m.Activate(&k, 5), func(u *store.Update) { u.States = u.States[1:] })
	for n, from := range map[key.Version]key.State{2: key.Disabled, 3: key.Retired, 4: key.Active, 5: key.Pending} {
		for to := key.State(0); to <= key.Destroyed+1; to++ {
			legal := n == 2 && to == key.Retired || n == 3 && to == key.Disabled
			if !legal {
				states(from.String()+" to "+to.String(), store.StateChange{Number: n, From: from, To: to})
			}
		}
	}
	states("from a state that it is not in", store.StateChange{Number: 3, From: key.Disabled, To: key.Retired})
	states("a version that is destroyed", store.StateChange{Number: 1, From: key.Disabled, To: key.Retired})
	states("a version that is not there", store.StateChange{Number: 9, From: key.Retired, To: key.Disabled})
	for what, n := range map[string]key.Version{"the active": 4, "a retired": 3, "a destroyed": 1, "no": 9} {
		manifest("destroys "+what+" version", func(u *store.Update) { u.Destroy = []key.Version{n} })
	}
	manifest("destroys one that may go and one that may not", func(u *store.Update) { u.Destroy = []key.Version{2, 3} })

	add("number skipped", func(u *store.Update) { u.Add.Number++ })
	add("number 0", func(u *store.Update) { u.Add.Number = 0 })
	add("number of the head", func(u *store.Update) { u.Add.Number = 4 })
	add("number of a destroyed one", func(u *store.Update) { u.Add.Number = 1 })
	add("number beyond the last", func(u *store.Update) { u.Add.Number = key.MaxVersion + 1 })
	add("active", func(u *store.Update) { u.Add.State = key.Active })
	add("retired", func(u *store.Update) { u.Add.State = key.Retired })
	add("destroyed", func(u *store.Update) { u.Add.State = key.Destroyed })
	add("no state", func(u *store.Update) { u.Add.State = 0 })
	add("no id", func(u *store.Update) { u.Add.ID = "" })
	add("id of another version", func(u *store.Update) { u.Add.ID = k.Versions[0].ID })
	add("unknown alg", func(u *store.Update) { u.Add.Alg = 0x10 })
	add("short commitment", func(u *store.Update) { u.Add.Commit = u.Add.Commit[1:] })
	add("empty wrapped key", func(u *store.Update) { u.Add.Blob = nil })
	if ref.IsRoot() {
		add("short ik_kid", func(u *store.Update) { u.Add.IKKID = u.Add.IKKID[1:] })
	} else {
		other := e.m.RootKey(e.scope(1))
		e.create(other)
		add("no parent", func(u *store.Update) { u.Add.Parent = "" })
		add("another scope's parent", func(u *store.Update) { u.Add.Parent = other.Versions[0].ID })
	}
	for name, u := range cases {
		e.unchanged(func() { e.wantClass("Update, "+name, e.s.Update(e.ctx, u), errRefused) })
	}
}
