package storetest

import (
	"bytes"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var rootsTests = []test{
	{"a new slot becomes the active one, and the old one stays", initialized(func(e *env) {
		in := e.installation()
		c := e.m.NextRoots(&in)
		c.Seq = in.Seq + 7
		c.Add = []store.Slot{e.m.Slot(in.IKKID, key.Active)}
		c.States = []store.SlotChange{{ID: in.ActiveSlot, From: key.Active, To: key.Retired}}
		c.ActiveSlot = c.Add[0].ID
		e.changeRoots(c)
	})},
	{"a slot is activated, retired and removed, and its row stays", initialized(func(e *env) {
		in := e.installation()
		first, second := in.Slots[0].ID, in.Slots[1].ID
		swap := func(from, to key.ID) store.RootsChange {
			c := e.m.NextRoots(&in)
			c.States = []store.SlotChange{
				{ID: to, From: key.Retired, To: key.Active},
				{ID: from, From: key.Active, To: key.Retired},
			}
			c.ActiveSlot = to
			return c
		}
		in = e.changeRoots(swap(first, second))
		in = e.changeRoots(swap(second, first))
		in = e.changeRoots(e.m.NextRoots(&in))
		c := swap(first, second)
		c.States[1].To = key.Destroyed
		in = e.changeRoots(c)
		c = e.m.NextRoots(&in)
		c.Add = []store.Slot{e.m.Slot(in.IKKID, key.Retired), e.m.Slot(in.IKKID, key.Retired)}
		in = e.changeRoots(c)
		c = e.m.NextRoots(&in)
		c.States = []store.SlotChange{{ID: c.ActiveSlot, From: key.Active, To: key.Retired}}
		for _, slot := range in.Slots[2:] {
			c.States = append(c.States, store.SlotChange{ID: slot.ID, From: key.Retired, To: key.Destroyed})
		}
		c.Add = []store.Slot{e.m.Slot(in.IKKID, key.Active)}
		c.ActiveSlot = c.Add[0].ID
		e.changeRoots(c)
	})},
	{"slots stay in the order in which they were made", initialized(func(e *env) {
		in := e.installation()
		for n := range 4 {
			c := e.m.NextRoots(&in)
			for range n {
				c.Add = append(c.Add, e.m.Slot(in.IKKID, key.Retired))
			}
			in = e.changeRoots(c)
		}
		if len(in.Slots) != 8 {
			e.Errorf("%d slots, want 8", len(in.Slots))
		}
	})},
	{"an installation key is added, replaces the old one, and that goes", initialized(func(e *env) {
		in := e.installation()
		old := in.IKKID
		for range 3 {
			in = e.changeRoots(e.m.AddKey(&in))
			in = e.changeRoots(e.m.NextRoots(&in))
			in = e.changeRoots(e.m.DropKey(&in, in.Keys[0].KID))
		}
		if len(in.Keys) != 1 || bytes.Equal(in.Keys[0].KID, old) {
			e.Errorf("installation keys %x; want one that is not %x", in.Keys, old)
		}
	})},
	{"an installation key is added beside the one in use, and given up", initialized(func(e *env) {
		in := e.installation()
		c := e.m.AddKey(&in)
		c.IKKID, c.ActiveSlot = in.IKKID, in.ActiveSlot
		c.Add = append(c.Add, e.m.Slot(c.AddKey.KID, key.Retired), e.m.Slot(in.IKKID, key.Retired))
		added := e.changeRoots(c)
		// Each of the two has slots of its own.
		c = e.m.NextRoots(&added)
		c.States = []store.SlotChange{
			{ID: added.Slots[2].ID, From: key.Active, To: key.Destroyed},
			{ID: added.Slots[3].ID, From: key.Retired, To: key.Active},
		}
		added = e.changeRoots(c)
		in = e.changeRoots(e.m.DropKey(&added, added.Keys[1].KID))
		in = e.changeRoots(e.m.AddKey(&in))
		e.changeRoots(e.m.DropKey(&in, in.Keys[0].KID))
	})},
	{"conflicts when the slots are not as the caller saw them", initialized(func(e *env) {
		stale := e.installation()
		in := e.changeRoots(e.m.NextRoots(&stale))
		for what, change := range map[string]func(c *store.RootsChange){
			"an older sequence number": func(c *store.RootsChange) { c.From = stale.Seq },
			"a later one":              func(c *store.RootsChange) { c.From, c.Seq = in.Seq+1, in.Seq+2 },
			"none":                     func(c *store.RootsChange) { c.From = 0 },
			"another installation":     func(c *store.RootsChange) { c.Inst = NewMaker(2).Inst() },
		} {
			c := e.m.AddKey(&in)
			change(&c)
			e.unchanged(func() { e.wantClass("ChangeRoots from "+what, e.s.ChangeRoots(e.ctx, c), store.ErrConflict) })
		}
	})},
	{"without an installation it is a conflict", func(e *env) {
		e.migrate()
		in := e.m.Installation()
		e.wantClass("ChangeRoots", e.s.ChangeRoots(e.ctx, e.m.NextRoots(&in)), store.ErrConflict)
	}},
	{"what breaks a rule is refused, and then nothing is changed", initialized(rootsRefused)},
	{"an installation key stays while anything names it", initialized(func(e *env) {
		// What is left under the old one, each in a scope of its own.
		for i, move := range []func(k *store.Key, kid []byte){
			func(k *store.Key, kid []byte) { // the manifest of a root key
				r := e.m.Rewrap(&k.Versions[0], "")
				r.IKKID = kid
				e.wantRewrapped(1, r)
			},
			func(k *store.Key, kid []byte) { // a version of a root key
				u := e.m.Next(k)
				u.Manifest.IKKID = kid
				e.update(key.Ref{Scope: k.Scope}, u)
			},
			func(k *store.Key, kid []byte) { e.rekey(1, e.m.Rekey(k, kid)) }, // the manifest of a data key
		} {
			old := e.m.IKKID()
			keys := e.m.Scope(e.scope(i), "one")
			e.create(keys...)
			in := e.installation()
			in = e.changeRoots(e.m.AddKey(&in))
			move(&keys[0], in.IKKID)
			if i < 2 {
				e.rekey(1, e.m.Rekey(&keys[1], in.IKKID))
			}
			for j := range i {
				e.rekeyScope(e.scope(j), in.IKKID)
			}
			drop := e.m.DropKey(&in, old)
			e.unchanged(func() { e.wantClass("ChangeRoots", e.s.ChangeRoots(e.ctx, drop), store.ErrConflict) })
			e.rekeyScope(e.scope(i), in.IKKID)
			e.changeRoots(drop)
			e.m.Use(in.IKKID)
		}
	})},
	{"nothing is written under an installation key that is gone, or never was", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		old := e.m.IKKID()
		in := e.installation()
		in = e.changeRoots(e.m.AddKey(&in))
		// Of whoever read everything before the old one went.
		add, next, nextData := e.m.Add(&keys[0], nil), e.m.Next(&keys[0]), e.m.Next(&keys[1])
		e.rekeyScope(e.scope(1), in.IKKID)
		in = e.changeRoots(e.m.DropKey(&in, old))
		keys = []store.Key{e.key(key.Ref{Scope: e.scope(1)}), e.key(key.Ref{Scope: e.scope(1), Purpose: "one"})}
		add.From, next.From, nextData.From = keys[0].Seq, keys[0].Seq, keys[1].Seq
		add.Manifest.Seq, next.Manifest.Seq, nextData.Manifest.Seq = keys[0].Seq+1, keys[0].Seq+1, keys[1].Seq+1
		// The manifest is under the new one, and the version alone under the old.
		add.Manifest.IKKID = in.IKKID
		for _, kid := range [][]byte{old, e.m.Bytes(16)} {
			e.m.Use(in.IKKID)
			good, root := e.m.RootKey(e.scope(2)), e.m.RootKey(e.scope(3))
			data := e.m.DataKey(&keys[0], "two", key.Message)
			root.Versions[0].IKKID, data.IKKID = kid, kid
			manifest := e.m.RootKey(e.scope(4))
			manifest.IKKID = kid
			add.Add.IKKID, next.Manifest.IKKID, nextData.Manifest.IKKID = kid, kid, kid
			rewrap := e.m.Rewrap(&keys[0].Versions[0], "")
			rewrap.IKKID = kid
			rewraps := []store.Rewrap{e.m.Rewrap(&keys[1].Versions[0], keys[0].Versions[0].ID), rewrap}
			e.unchanged(func() {
				for what, k := range map[string]store.Key{
					"a root key version": root, "a root key": manifest, "a data key": data,
				} {
					n, err := e.s.Create(e.ctx, e.m.Inst(), []store.Key{good, k})
					if e.wantClass("Create of "+what, err, store.ErrConflict); n != 0 {
						e.Errorf("Create of %s: %d and an error", what, n)
					}
				}
				e.wantClass("Update that adds", e.s.Update(e.ctx, add), store.ErrConflict)
				e.wantClass("Update of a root key", e.s.Update(e.ctx, next), store.ErrConflict)
				e.wantClass("Update of a data key", e.s.Update(e.ctx, nextData), store.ErrConflict)
				_, err := e.s.Rewrap(e.ctx, e.m.Inst(), rewraps, nil)
				e.wantClass("Rewrap", err, store.ErrConflict)
			})
		}
	})},
	{"of 16 changes from one manifest just one wins", initialized(func(e *env) {
		for range 3 {
			in := e.installation()
			changes := make([]store.RootsChange, 16)
			for i := range changes {
				changes[i] = e.m.NextRoots(&in)
				changes[i].Add = []store.Slot{e.m.Slot(in.IKKID, key.Active)}
				changes[i].States = []store.SlotChange{{ID: in.ActiveSlot, From: key.Active, To: key.Retired}}
				changes[i].ActiveSlot = changes[i].Add[0].ID
			}
			winner := -1
			for i, err := range e.race(len(changes), func(i int, s store.Store) error {
				return s.ChangeRoots(e.ctx, changes[i])
			}) {
				if err == nil && winner < 0 {
					winner = i
					continue
				}
				e.wantClass("ChangeRoots", err, store.ErrConflict)
			}
			if winner < 0 {
				e.Fatal("no change won")
			}
			if d := diff(changed(in, changes[winner]), e.installation()); d != "" {
				e.Errorf("the installation is not as the winner made it (-want +read):\n%s", d)
			}
		}
	})},
	{"an installation key goes, or somebody writes under it, and never both", initialized(func(e *env) {
		for round := range 6 {
			in := e.installation()
			old := in.IKKID
			families := make([][]store.Key, 7)
			for i := range families {
				families[i] = e.m.Scope(e.scope(round*len(families)+i), "one")
			}
			in = e.changeRoots(e.m.AddKey(&in))
			drop := e.m.DropKey(&in, old)
			errs := e.race(len(families)+1, func(i int, s store.Store) error {
				if i == len(families) {
					return s.ChangeRoots(e.ctx, drop)
				}
				_, err := s.Create(e.ctx, e.m.Inst(), families[i])
				return err
			})
			written := 0
			for i, err := range errs {
				switch {
				case err != nil:
					e.wantClass("ChangeRoots or Create", err, store.ErrConflict)
				case i < len(families):
					written++
				}
			}
			dropErr := errs[len(families)]
			if (dropErr == nil) != (written == 0) {
				e.Errorf("ChangeRoots that drops: %v; %d wrote under it", dropErr, written)
			}
			if dropErr != nil {
				e.rekeyAll(e.s, in.IKKID)
				e.changeRoots(drop)
			}
			e.m.Use(in.IKKID)
		}
	})},
	{"an installation key stays for what a transaction has written under it", inTx(
		func(e *env, begin func() (store.Tx, func() error, func() error)) {
			in := e.installation()
			in = e.changeRoots(e.m.AddKey(&in))
			tx, commit, _ := begin()
			if n, err := tx.Create(e.ctx, e.m.Inst(), e.m.Scope(e.scope(1), "one")); n != 2 || err != nil {
				e.Fatalf("Create inside: %d, %v", n, err)
			}
			dropped := make(chan error, 1)
			go func() { dropped <- e.s.ChangeRoots(e.ctx, e.m.DropKey(&in, e.m.IKKID())) }()
			if err := commit(); err != nil {
				e.Fatalf("commit: %v", err)
			}
			e.wantClass("ChangeRoots", <-dropped, store.ErrConflict)
		})},
	{"a change moves the epochs' sequence number, and no key's epoch", initialized(func(e *env) {
		e.create(e.m.Scope(e.scope(1), "one")...)
		in := e.installation()
		before := e.epochs()
		e.changes("ChangeRoots", nil, func() { in = e.changeRoots(e.m.AddKey(&in)) })
		signed, err := e.s.Sign(e.ctx, e.m.Instance())
		for what, got := range map[string]store.Epochs{"Epochs": e.epochs(), "Sign": signed} {
			if err != nil || got.Seq != in.Seq || got.Seq <= before.Seq || !bytes.Equal(got.Inst, in.Inst) {
				e.Errorf("%s: sequence number %d, %v; want %d", what, got.Seq, err, in.Seq)
			}
		}
	})},
	{"a key is read with the slots' sequence number", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		for range 3 {
			in := e.installation()
			e.rootsRead(e.s, keys, in.Seq)
			in = e.changeRoots(e.m.NextRoots(&in))
			e.rootsRead(e.s, keys, in.Seq)
			if e.h.Begin != nil {
				tx, _, rollback := e.h.Begin(e.T, e.s)
				e.rootsRead(tx, keys, in.Seq)
				if err := rollback(); err != nil {
					e.Fatalf("rollback: %v", err)
				}
			}
		}
	})},
	{"given and returned slices belong to the caller", initialized(func(e *env) {
		in := e.installation()
		c := e.m.AddKey(&in)
		in = e.changeRoots(c)
		e.unchanged(func() {
			for _, b := range [][]byte{
				c.MAC, c.IKKID, c.AddKey.KID, c.AddKey.Previous, c.AddKey.Link, c.Add[0].Blob, c.Add[0].IKKID,
				in.Keys[0].KID, in.Keys[1].KID, in.Keys[1].Previous, in.Keys[1].Link,
			} {
				clear(b)
			}
			c.Add[0].ID, in.Keys[0] = "x", store.InstallationKey{}
		})
	})},
}

func (e *env) installation() store.Installation {
	e.Helper()
	in, err := e.s.Installation(e.ctx)
	if err != nil {
		e.Fatalf("Installation: %v", err)
	}
	return in
}

// changeRoots changes the roots, and asserts what is read then, by all handles.
func (e *env) changeRoots(c store.RootsChange) store.Installation {
	e.Helper()
	before, from := e.installation(), e.roll().Now
	if err := e.s.ChangeRoots(e.ctx, c); err != nil {
		e.Fatalf("ChangeRoots: %v", err)
	}
	to := e.roll().Now
	want := changed(before, c)
	for _, s := range e.handles(2) {
		after, err := s.Installation(e.ctx)
		if d := diff(want, after); d != "" || err != nil {
			e.Fatalf("Installation: %v (-want +read):\n%s", err, d)
		}
		e.slotTimes(before, after, from, to)
	}
	return e.installation()
}

// changed is what an installation becomes by a change, but for the times.
func changed(in store.Installation, c store.RootsChange) store.Installation {
	in.Seq, in.IKKID, in.ActiveSlot, in.MAC = c.Seq, c.IKKID, c.ActiveSlot, c.MAC
	in.Slots, in.Keys = slices.Clone(in.Slots), slices.Clone(in.Keys)
	for i := range in.Slots {
		for _, step := range c.States {
			if s := &in.Slots[i]; s.ID == step.ID {
				if s.State = step.To; step.To == key.Destroyed {
					s.Blob = nil
				}
			}
		}
	}
	in.Slots = append(in.Slots, c.Add...)
	if c.AddKey != nil {
		in.Keys = append(in.Keys, *c.AddKey)
	}
	in.Keys = slices.DeleteFunc(in.Keys, func(k store.InstallationKey) bool { return bytes.Equal(k.KID, c.Drop) })
	return in
}

// slotTimes asserts that what was made or changed from one moment to another has that time, and the rest the one that
// it had.
func (e *env) slotTimes(before, after store.Installation, from, to int64) {
	e.Helper()
	at := func(what string, got, want int64, now bool) {
		e.Helper()
		if now && (got < from || got > to) || !now && got != want {
			e.Errorf("%s at %d; want %d, or from %d to %d: %v", what, got, want, from, to, now)
		}
	}
	at("the installation was made", after.Created, before.Created, false)
	for i, s := range after.Slots {
		old, added := store.Slot{}, i >= len(before.Slots)
		if !added {
			old = before.Slots[i]
		}
		if s.State == key.Active {
			old.Retired = 0
		}
		stepped, id := added || s.State != old.State, string(s.ID)
		at("slot "+id+" was made", s.Created, old.Created, added)
		at("slot "+id+" was activated", s.Activated, old.Activated, stepped && s.State == key.Active)
		at("slot "+id+" was retired", s.Retired, old.Retired, s.State != key.Active && (added || old.State == key.Active))
		at("slot "+id+" was removed", s.Removed, old.Removed, stepped && s.State == key.Destroyed)
	}
	for _, k := range after.Keys {
		i := slices.IndexFunc(before.Keys, func(old store.InstallationKey) bool { return bytes.Equal(old.KID, k.KID) })
		if i < 0 {
			at("the installation key was made", k.Created, 0, true)
		} else {
			at("the installation key was made", k.Created, before.Keys[i].Created, false)
		}
	}
}

// rootsRead asserts with which sequence number of the slots the keys, a root key and a data key, are read.
func (e *env) rootsRead(q store.Queries, keys []store.Key, want uint64) {
	e.Helper()
	ref, data := key.Ref{Scope: keys[0].Scope}, key.Ref{Scope: keys[0].Scope, Purpose: keys[1].Purpose}
	version, root := keys[1].Versions[0].ID, keys[0].Versions[0].ID
	for what, read := range map[string]func() (store.Family, error){
		"Key of the root key":          func() (store.Family, error) { return q.Key(e.ctx, ref) },
		"Key":                          func() (store.Family, error) { return q.Key(e.ctx, data) },
		"KeyOfVersion of the root key": func() (store.Family, error) { return q.KeyOfVersion(e.ctx, root) },
		"KeyOfVersion":                 func() (store.Family, error) { return q.KeyOfVersion(e.ctx, version) },
		"Scope":                        func() (store.Family, error) { return q.Scope(e.ctx, ref.Scope) },
	} {
		if f, err := read(); f.Roots != want || err != nil {
			e.Errorf("%s: with the slots of %d, %v; want %d", what, f.Roots, err, want)
		}
	}
	list, epochs, err := e.s.Families(e.ctx, []key.Scope{ref.Scope})
	if err != nil || len(list) != 1 || list[0].Roots != want || epochs.Seq != want {
		e.Errorf("Families: %+v, %v, %v; want one, with the slots of %d", list, epochs, err, want)
	}
}
