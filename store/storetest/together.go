package storetest

import (
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var togetherTests = []test{
	{"keys are changed together as each alone", initialized(func(e *env) {
		refs := e.together()
		var updates []store.Update
		for _, ref := range refs {
			k := e.key(ref)
			updates = append(updates, e.m.Add(&k, e.rootOf(ref.Scope)))
		}
		e.updateAll(updates, true, true, true, true)
		for i, ref := range refs {
			k := e.key(ref)
			if v := k.Versions[1]; k.Seq != 2 || v.ID != updates[i].Add.ID || v.State != key.Pending || k.RotateAt != updates[i].RotateAt {
				e.Errorf("%v: %+v after adding %+v", ref, k, updates[i])
			}
			updates[i] = e.m.Activate(&k, 2)
		}
		epochs := e.epochs()
		e.updateAll(updates, true, true, true, true)
		for _, ref := range refs {
			k := e.key(ref)
			if k.Head != 2 || k.Versions[0].State != key.Retired || k.Versions[1].State != key.Active {
				e.Errorf("%v: %+v after activating", ref, k)
			}
			now := e.epochs()
			if b := store.Bucket(k.ID); now.Keys[b] == epochs.Keys[b] {
				e.Errorf("%v: the epoch of bucket %d is the same", ref, b)
			}
		}
		e.updateAll(nil)
	})},
	{"a key that was changed meanwhile is left out, and no other", initialized(func(e *env) {
		refs := e.together()
		var updates []store.Update
		for _, ref := range refs {
			k := e.key(ref)
			updates = append(updates, e.m.Add(&k, e.rootOf(ref.Scope)))
		}
		k := e.key(refs[1])
		moved := e.update(refs[1], e.m.Next(&k))
		updates[2].From = 1 << 63 // more than a database can hold
		gone := e.m.DataKey(e.rootOf(e.scope(1)), "gone", key.Message)
		updates = append(updates, e.m.Add(&gone, e.rootOf(e.scope(1))))
		e.updateAll(updates, true, false, false, true, false)
		for i, want := range []int{2, 1, 1, 2} {
			if k := e.key(refs[i]); len(k.Versions) != want {
				e.Errorf("%v has %d versions, want %d", refs[i], len(k.Versions), want)
			}
		}
		if d := diff(moved, e.key(refs[1])); d != "" {
			e.Errorf("the key that was left out (-before +after):\n%s", d)
		}
	})},
	{"where one change cannot be made none is", initialized(func(e *env) {
		refs := e.together()
		for what, spoil := range map[string]func(u *store.Update){
			"a version of a number that is there": func(u *store.Update) { u.Add.Number = 1 },
			"an installation key that is not":     func(u *store.Update) { u.Manifest.IKKID = e.m.Bytes(16) },
			"a head that is not":                  func(u *store.Update) { u.Manifest.Head = 7 },
			"a sequence number that does not grow": func(u *store.Update) {
				u.Manifest.Seq = u.From
			},
			"a version that is destroyed": func(u *store.Update) { u.Destroy = []key.Version{1} },
			"a version that is disabled": func(u *store.Update) {
				u.States = []store.StateChange{{Number: 1, From: key.Retired, To: key.Disabled}}
			},
			"a key of another kind":     func(u *store.Update) { u.Kind = key.IK },
			"another installation":      func(u *store.Update) { u.Inst[0]++ },
			"another lease":             func(u *store.Update) { u.Lease = &store.Lease{Name: "another"} },
			"a state that is not there": func(u *store.Update) { u.States = []store.StateChange{{Number: 1, From: key.Pending, To: key.Active}} },
		} {
			e.unchanged(func() {
				var updates []store.Update
				for _, ref := range refs {
					k := e.key(ref)
					updates = append(updates, e.m.Add(&k, e.rootOf(ref.Scope)))
				}
				spoil(&updates[2])
				if made, err := e.s.UpdateAll(e.ctx, updates); err == nil || made != nil {
					e.Errorf("UpdateAll with %s: %v, %v; want an error", what, made, err)
				}
			})
		}
		e.unchanged(func() {
			k := e.key(refs[1])
			u := e.m.Next(&k)
			if made, err := e.s.UpdateAll(e.ctx, []store.Update{u, u}); err == nil {
				e.Errorf("UpdateAll with a key named twice: %v", made)
			}
		})
	})},
	{"none is changed for another installation or without the lease", initialized(func(e *env) {
		ref := e.together()[1]
		held, over := e.lease("held", "one", hour), e.lease("over", "one", 0)
		update := func(inst [16]byte, l *store.Lease) store.Update {
			k := e.key(ref)
			u := e.m.Next(&k)
			u.Inst, u.Lease = inst, l
			return u
		}
		e.unchanged(func() {
			e.updateAll([]store.Update{update([16]byte{1}, nil)}, false)
			e.updateAll([]store.Update{update(e.m.Inst(), &over)}, false)
		})
		e.updateAll([]store.Update{update(e.m.Inst(), &held)}, true)
	})},
	{"of 8 that change the same keys together, one changes each", initialized(func(e *env) {
		refs := e.together()
		for range 5 {
			updates := make([][]store.Update, 8)
			for i := range updates {
				for _, ref := range refs {
					k := e.key(ref)
					updates[i] = append(updates[i], e.m.Next(&k))
				}
				if i%2 == 1 {
					slices.Reverse(updates[i])
				}
			}
			made := make([][]bool, len(updates))
			for i, err := range e.race(len(updates), func(i int, s store.Store) (err error) {
				made[i], err = s.UpdateAll(e.ctx, updates[i])
				return err
			}) {
				if err != nil {
					e.Errorf("caller %d: %v", i, err)
				}
			}
			for n, ref := range refs {
				times := 0
				for i := range made {
					at := n
					if i%2 == 1 {
						at = len(refs) - 1 - n
					}
					if made[i] != nil && made[i][at] {
						times++
					}
				}
				if times != 1 {
					e.Errorf("%v was changed %d times", ref, times)
				}
			}
		}
	})},
	{"keys are read as each alone", initialized(func(e *env) {
		refs := e.together()
		k := e.key(refs[1])
		e.update(refs[1], e.m.Add(&k, e.rootOf(refs[1].Scope)))
		refs = append(refs,
			key.Ref{Scope: e.scope(9), Purpose: "one"}, key.Ref{Scope: e.scope(1), Purpose: "nothing"}, refs[2],
			key.Ref{Scope: e.scope(2), Purpose: "one"}, key.Ref{Scope: e.scope(1), Purpose: "a\x00b"})
		list, err := e.s.Keys(e.ctx, refs)
		if err != nil || len(list) != len(refs) {
			e.Fatalf("Keys: %d, %v; want %d", len(list), err, len(refs))
		}
		for i, ref := range refs {
			want, err := e.s.Key(e.ctx, ref)
			if err != nil {
				want.Roots = list[i].Roots // of what is not there
			}
			want.Epoch = 0
			if list[i].Now < Created && err == nil || err == nil && list[i].Roots == 0 {
				e.Errorf("Keys: %v at %d, slots %d", ref, list[i].Now, list[i].Roots)
			}
			want.Now = list[i].Now
			if d := diff(want, list[i]); d != "" {
				e.Errorf("Keys: %v (-Key +Keys):\n%s", ref, d)
			}
		}
		if list, err := e.s.Keys(e.ctx, nil); err != nil || len(list) != 0 {
			e.Errorf("Keys of nothing: %v, %v", list, err)
		}
	})},
}

// together makes two root keys and two data keys of one of them.
func (e *env) together() []key.Ref {
	e.Helper()
	e.create(e.m.Scope(e.scope(1), "one", "two")...)
	e.create(e.m.Scope(e.scope(2))...)
	return []key.Ref{
		{Scope: e.scope(1)}, {Scope: e.scope(1), Purpose: "one"}, {Scope: e.scope(1), Purpose: "two"}, {Scope: e.scope(2)},
	}
}

// updateAll asserts which changes are made.
func (e *env) updateAll(updates []store.Update, want ...bool) {
	e.Helper()
	made, err := e.s.UpdateAll(e.ctx, updates)
	if err != nil || !slices.Equal(made, want) {
		e.Fatalf("UpdateAll: %v, %v; want %v", made, err, want)
	}
}
