package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

var (
	rootRef     = key.Ref{Scope: "a"}
	sessionsRef = key.Ref{Scope: "a", Purpose: "sessions"}
	rawRef      = key.Ref{Scope: "a", Purpose: "raw"}
	importedRef = key.Ref{Scope: "a", Purpose: "imported"}
)

// newChecked has two scopes. In "a", sessions has versions in every state, raw and index have their algorithms, and
// imported has an old id and a number that was missing.
func newChecked(t *testing.T) (*memstore.Store, *storetest.Maker) {
	t.Helper()
	ctx := t.Context()
	s, m := memstore.New(), storetest.NewMaker(1)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Migrate(ctx))
	must(s.Initialize(ctx, m.Installation()))
	keys := m.Scope("a", "sessions")
	root := &keys[0]
	imported := m.DataKey(root, "imported", key.Message)
	old := m.Version(key.DEK, 1, key.Retired, key.Imported, root.Versions[0].ID)
	old.ID = "kdkv_AbCdEfGhIj"
	imported.Versions[0].Number, imported.Head = 3, 3
	imported.Versions = []store.Version{old, imported.Versions[0]}
	imported.Tombstones = []store.Tombstone{{Number: 2, Commit: make([]byte, 32)}}
	keys = append(keys, m.DataKey(root, "raw", key.Raw), m.DataKey(root, "index", key.BlindIndex), imported)
	_, err := s.Create(ctx, m.Inst(), append(keys, m.Scope("b", "sessions")...))
	must(err)

	// Versions 1 to 5: destroyed, disabled, retired, active, pending.
	for _, change := range []func(k *store.Key) store.Update{
		func(k *store.Key) store.Update { return m.Add(k, root) },
		func(k *store.Key) store.Update { return m.Activate(k, 2) },
		func(k *store.Key) store.Update { return m.Add(k, root) },
		func(k *store.Key) store.Update { return m.Activate(k, 3) },
		func(k *store.Key) store.Update { return m.Add(k, root) },
		func(k *store.Key) store.Update { return m.Activate(k, 4) },
		func(k *store.Key) store.Update { return m.Add(k, root) },
		func(k *store.Key) store.Update { return m.Step(k, 1, key.Disabled) },
		func(k *store.Key) store.Update { return m.Step(k, 2, key.Disabled) },
		func(k *store.Key) store.Update { return m.Destroy(k, 1) },
	} {
		f, err := s.Key(ctx, sessionsRef)
		must(err)
		must(s.Update(ctx, change(&f.Data[0])))
	}
	return s, m
}

func TestCheckFindsNothingWhereAllIsWell(t *testing.T) {
	s, _ := newChecked(t)
	storetest.Check(t, s)

	s.Edit(rekeyed(func(*store.Installation) {}))
	storetest.Check(t, s)
	s.Edit(func(d *memstore.Data) {
		in := d.Installation
		slot := &in.Slots[2]
		slot.State, slot.Blob, slot.Retired, slot.Removed = key.Destroyed, nil, 1, 1
		in.Keys = in.Keys[:1]
	})
	storetest.Check(t, s)

	empty := memstore.New()
	if err := empty.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	storetest.Check(t, empty)
}

func TestCheckFindsEachBrokenInvariant(t *testing.T) {
	// The versions of sessions as they are listed: 0 disabled, 1 retired, 2 active, 3 pending; its tombstone is of
	// number 1.
	onKey := func(ref key.Ref, edit func(k *store.Key)) func(*memstore.Data) {
		return func(d *memstore.Data) { edit(d.Key(ref)) }
	}
	sessions := func(edit func(k *store.Key)) func(*memstore.Data) { return onKey(sessionsRef, edit) }
	root := func(edit func(k *store.Key)) func(*memstore.Data) { return onKey(rootRef, edit) }
	installation := func(edit func(in *store.Installation)) func(*memstore.Data) {
		return func(d *memstore.Data) { edit(d.Installation) }
	}
	activeSlot := func(in *store.Installation) *store.Slot {
		for i := range in.Slots {
			if in.Slots[i].ID == in.ActiveSlot {
				return &in.Slots[i]
			}
		}
		panic("no active slot")
	}
	otherSlot := func(in *store.Installation) *store.Slot {
		for i := range in.Slots {
			if in.Slots[i].ID != in.ActiveSlot {
				return &in.Slots[i]
			}
		}
		panic("no other slot")
	}
	const sessionsName = `key "sessions" of scope "a"`
	for name, c := range map[string]struct {
		edit    func(*memstore.Data)
		subject string // of a finding that has to be there
		problem string // a part of it
	}{
		"no installation":       {func(d *memstore.Data) { d.Installation = nil }, "installation", "no installation"},
		"inst":                  {installation(func(in *store.Installation) { in.Inst = in.Inst[1:] }), "installation", "inst has 15 bytes"},
		"installation MAC":      {installation(func(in *store.Installation) { in.MAC = nil }), "installation", "MAC has 0 bytes"},
		"installation ik_kid":   {installation(func(in *store.Installation) { in.IKKID = in.IKKID[1:] }), "installation", "has 15 bytes"},
		"installation sequence": {installation(func(in *store.Installation) { in.Seq = 0 }), "installation", "sequence number is 0"},
		"no slots":              {installation(func(in *store.Installation) { in.Slots = nil }), "installation", "0 root slots are active"},
		"two active slots": {installation(func(in *store.Installation) {
			otherSlot(in).State = key.Active
		}), "installation", "2 root slots are active"},
		"active slot is another": {installation(func(in *store.Installation) { in.ActiveSlot = otherSlot(in).ID }), "root slot", "is active"},
		"slot twice":             {installation(func(in *store.Installation) { in.Slots = append(in.Slots, *otherSlot(in)) }), "root slot", "too"},
		"slot id":                {installation(func(in *store.Installation) { otherSlot(in).ID = "kr_1" }), "root slot kr_1", "base32hex"},
		"slot type":              {installation(func(in *store.Installation) { otherSlot(in).WrapperType = "" }), "root slot", "wrapper type is empty"},
		"slot ik_kid":            {installation(func(in *store.Installation) { otherSlot(in).IKKID = nil }), "root slot", "has 0 bytes"},
		"slot state":             {installation(func(in *store.Installation) { otherSlot(in).State = key.Pending }), "root slot", "cannot be in pending"},
		"slot blob":              {installation(func(in *store.Installation) { activeSlot(in).Blob = nil }), "root slot", "is empty"},
		"only a removed slot holds the key": {func(d *memstore.Data) {
			rekeyed(func(in *store.Installation) {
				slot := &in.Slots[2]
				slot.State, slot.Blob, slot.Retired, slot.Removed = key.Destroyed, nil, 1, 1
			})(d)
			d.Key(sessionsRef).IKKID = d.Installation.Keys[1].KID
		}, sessionsName, "no root slot holds"},
		"slot of no key":       {installation(func(in *store.Installation) { otherSlot(in).IKKID = make([]byte, 16) }), "root slot", "is no key"},
		"slot never made":      {installation(func(in *store.Installation) { otherSlot(in).Created = 0 }), "root slot", "made at 0"},
		"slot never activated": {installation(func(in *store.Installation) { activeSlot(in).Activated = 0 }), "root slot", "activated at 0"},
		"slot activated early": {installation(func(in *store.Installation) { otherSlot(in).Activated = -7 }), "root slot", "activated at -7"},
		"slot never retired":   {installation(func(in *store.Installation) { otherSlot(in).Retired = 0 }), "root slot", "retired at 0"},
		"slot retired early":   {installation(func(in *store.Installation) { otherSlot(in).Retired = -7 }), "root slot", "retired at -7"},
		"slot retired by half": {installation(func(in *store.Installation) { activeSlot(in).Retired = 5 }), "root slot", "retired at 5"},
		"slot removed by half": {installation(func(in *store.Installation) { otherSlot(in).Removed = 5 }), "root slot", "time of removal"},
		"removed slot with blob": {installation(func(in *store.Installation) {
			otherSlot(in).State, otherSlot(in).Removed = key.Destroyed, 5
		}), "root slot", "still has"},
		"removed slot without a time": {installation(func(in *store.Installation) {
			otherSlot(in).State, otherSlot(in).Blob = key.Destroyed, nil
		}), "root slot", "no time of removal"},
		"no installation keys": {installation(func(in *store.Installation) { in.Keys = nil }), "installation", "0 installation keys"},
		"three installation keys": {rekeyed(func(in *store.Installation) {
			in.Keys = append(in.Keys, store.InstallationKey{KID: make([]byte, 16), Previous: in.Keys[1].KID, Link: make([]byte, 32), Created: 1})
		}), "installation", "3 installation keys"},
		"installation key's id":      {installation(func(in *store.Installation) { in.Keys[0].KID = in.Keys[0].KID[1:] }), "installation key", "id has 15"},
		"installation key's time":    {installation(func(in *store.Installation) { in.Keys[0].Created = 0 }), "installation key", "made at 0"},
		"installation key by half":   {rekeyed(func(in *store.Installation) { in.Keys[1].Link = nil }), "installation key", "previous installation key has 0"},
		"installation key's link":    {rekeyed(func(in *store.Installation) { in.Keys[1].Previous = nil }), "installation key", "id has 0"},
		"installation keys unlinked": {rekeyed(func(in *store.Installation) { in.Keys[1].Previous = make([]byte, 16) }), "installation key", "does not follow"},
		"two first ones": {rekeyed(func(in *store.Installation) {
			in.Keys[1].Previous, in.Keys[1].Link = nil, nil
		}), "installation key", "does not follow"},
		"installation key twice": {rekeyed(func(in *store.Installation) { in.Keys[1].KID = in.Keys[0].KID }), "installation key", "comes twice"},
		"manifest under no key":  {installation(func(in *store.Installation) { in.IKKID = make([]byte, 16) }), "installation", "is no key of the installation"},
		"two active slots of the other key": {rekeyed(func(in *store.Installation) {
			in.Slots = append(in.Slots, in.Slots[2])
			in.Slots[3].ID = "kr_" + key.ID(strings.Repeat("0", 26))
		}), "installation", "2 root slots of installation key"},
		"active slot is the other key's": {rekeyed(func(in *store.Installation) { in.ActiveSlot = in.Slots[2].ID }), "root slot", "is active"},
		"no slot for the installation key": {installation(func(in *store.Installation) {
			for i := range in.Slots {
				in.Slots[i].IKKID = make([]byte, 16)
			}
		}), "installation", "no root slot holds"},

		"root key id": {func(d *memstore.Data) {
			old := d.Key(rootRef).ID
			for i := range d.Keys {
				if d.Keys[i].RootKeyID == old {
					d.Keys[i].RootKeyID = "krk_1"
				}
			}
			d.Key(rootRef).ID = "krk_1"
		}, `root key of scope "a"`, "base32hex"},
		"root key renamed": {root(func(k *store.Key) { k.ID = "krk_1" }), "database", "refers to root key"},
		"root key purpose": {root(func(k *store.Key) { k.Purpose = "x" }), `root key of scope "a"`, "was read as"},
		"scope":            {root(func(k *store.Key) { k.Scope = "a\n" }), `root key of scope "a\n"`, "control character"},
		"root key's sequence number": {
			root(func(k *store.Key) { k.Seq = 0 }),
			`root key of scope "a"`, "sequence number is 0",
		},
		"data key id": {sessions(func(k *store.Key) { k.ID = "kdk_1" }), sessionsName, "base32hex"},
		"data key with another's id": {func(d *memstore.Data) {
			// A key's id cannot come twice in the specification's maps, one of a version can.
			d.Key(sessionsRef).Versions[0].ID = d.Key(rawRef).ID
		}, `version 2 of ` + sessionsName, "too"},
		"purpose":        {sessions(func(k *store.Key) { k.Purpose = "a " }), `key "a " of scope "a"`, "white space"},
		"data key scope": {sessions(func(k *store.Key) { k.Scope = "a" }), sessionsName, "was read as"},
		"two of one purpose": {func(d *memstore.Data) {
			second := *d.Key(sessionsRef)
			second.ID = "kdk_" + key.ID(strings.Repeat("0", 26))
			d.Keys = append(d.Keys, second)
		}, sessionsName, "comes twice"},
		"data key without root key": {sessions(func(k *store.Key) { k.RootKeyID = "krk_none" }), "database", "krk_none"},

		"MAC":            {sessions(func(k *store.Key) { k.MAC = k.MAC[1:] }), sessionsName, "MAC has 31 bytes"},
		"ik_kid":         {sessions(func(k *store.Key) { k.IKKID = append(k.IKKID, 0) }), sessionsName, "has 17 bytes"},
		"foreign ik_kid": {sessions(func(k *store.Key) { k.IKKID = make([]byte, 16) }), sessionsName, "is no key of the installation"},
		"ik_kid without a slot": {func(d *memstore.Data) {
			rekeyed(func(in *store.Installation) { in.Slots = in.Slots[:2] })(d)
			d.Key(sessionsRef).IKKID = d.Installation.Keys[1].KID
		}, sessionsName, "no root slot holds"},
		"sequence number": {sessions(func(k *store.Key) { k.Seq = 0 }), sessionsName, "sequence number is 0"},
		"no head":         {sessions(func(k *store.Key) { k.Head = 0 }), sessionsName, "the head is 0"},
		"other head":      {sessions(func(k *store.Key) { k.Head = 3 }), sessionsName, "the head is 3"},
		"two active":      {sessions(func(k *store.Key) { k.Versions[1].State = key.Active }), sessionsName, "2 versions are active"},
		"none active":     {sessions(func(k *store.Key) { k.Versions[2].State = key.Retired }), sessionsName, "0 versions are active"},
		"no versions":     {sessions(func(k *store.Key) { k.Versions, k.Tombstones = nil, nil }), sessionsName, "0 versions are active"},
		"gap":             {sessions(func(k *store.Key) { k.Versions = append(k.Versions[:1:1], k.Versions[2:]...) }), sessionsName, "version 3 is not there"},
		"tombstone gone":  {sessions(func(k *store.Key) { k.Tombstones = nil }), sessionsName, "version 1 is not there"},
		"number twice":    {sessions(func(k *store.Key) { k.Versions[1].Number = 2 }), sessionsName, "version 3 is not there"},
		"live and dead":   {sessions(func(k *store.Key) { k.Tombstones[0].Number = 2 }), sessionsName, "version 1 is not there"},
		"too many versions": {sessions(func(k *store.Key) {
			k.Versions, k.Tombstones, k.Head = k.Versions[2:3], nil, key.MaxVersion+1
			k.Versions[0].Number = k.Head
			for n := key.Version(1); n < k.Head; n++ {
				k.Tombstones = append(k.Tombstones, store.Tombstone{Number: n, Commit: make([]byte, 32), Destroyed: 1})
			}
		}), sessionsName, "more than 65535 versions"},
		"live and dead, dense": {sessions(func(k *store.Key) {
			second := k.Tombstones[0]
			second.Number = 2
			k.Tombstones = append(k.Tombstones, second)
		}), sessionsName, "version 2 is there live and as a tombstone"},

		"version state":      {sessions(func(k *store.Key) { k.Versions[0].State = key.Destroyed }), "version 2 of " + sessionsName, "cannot be in destroyed"},
		"unknown state":      {sessions(func(k *store.Key) { k.Versions[0].State = 9 }), "version 2 of " + sessionsName, "cannot be in state 9"},
		"version time":       {sessions(func(k *store.Key) { k.Versions[0].Created = 0 }), "version 2 of " + sessionsName, "was made at 0"},
		"disabled, never":    {sessions(func(k *store.Key) { k.Versions[0].Disabled = 0 }), "version 2 of " + sessionsName, "was disabled at 0"},
		"disabled, early":    {sessions(func(k *store.Key) { k.Versions[0].Disabled = -7 }), "version 2 of " + sessionsName, "was disabled at -7"},
		"not disabled":       {sessions(func(k *store.Key) { k.Versions[1].Disabled = 7 }), "version 3 of " + sessionsName, "was disabled at 7"},
		"version alg":        {sessions(func(k *store.Key) { k.Versions[0].Alg = 0x10 }), "version 2 of " + sessionsName, "alg 0x10"},
		"root version's alg": {root(func(k *store.Key) { k.Versions[0].Alg = key.BlindIndex }), `version 1 of root key of scope "a"`, "blind-index"},
		"parent's state":     {root(func(k *store.Key) { k.Versions[0].State = key.Disabled }), "version 2 of " + sessionsName, "is disabled"},
		"parent's alg":       {root(func(k *store.Key) { k.Versions[0].Alg = key.Imported }), "version 2 of " + sessionsName, "wraps nothing"},
		"commitment":         {sessions(func(k *store.Key) { k.Versions[0].Commit = nil }), "version 2 of " + sessionsName, "commitment has 0 bytes"},
		"other commitment":   {sessions(func(k *store.Key) { k.Versions[0].Commit[0] ^= 1 }), "version 2 of " + sessionsName, "does not follow"},
		"no id":              {sessions(func(k *store.Key) { k.Versions[0].ID = "" }), "version 2 of " + sessionsName, "no id of a version"},
		"id of other kind": {sessions(func(k *store.Key) {
			k.Versions[0].ID = key.VersionID(key.KEK, key.KID(k.Versions[0].Commit[:16]))
		}), "version 2 of " + sessionsName, "other kind"},
		"free id without import": {sessions(func(k *store.Key) { k.Versions[0].ID = "kdkv_1" }), "version 2 of " + sessionsName, "does not follow"},
		"import with another's form": {onKey(importedRef, func(k *store.Key) {
			k.Versions[0].ID = key.VersionID(key.DEK, key.KID(make([]byte, 16)))
		}), `version 1 of key "imported" of scope "a"`, "does not follow"},
		"ids swapped": {sessions(func(k *store.Key) {
			k.Versions[0].ID, k.Versions[1].ID = k.Versions[1].ID, k.Versions[0].ID
		}), "version 3 of " + sessionsName, "does not follow"},
		"id twice": {sessions(func(k *store.Key) { k.Versions[1].ID = k.Versions[0].ID }), "version 3 of " + sessionsName, "too"},
		"a version of another key": {func(d *memstore.Data) {
			d.Key(rawRef).Versions[0] = d.Key(sessionsRef).Versions[2]
			d.Key(rawRef).Versions[0].Number = 1
		}, "version 4 of " + sessionsName, "too"},

		"empty blob":    {sessions(func(k *store.Key) { k.Versions[0].Blob = nil }), "version 2 of " + sessionsName, "has 0 bytes"},
		"short blob":    {sessions(func(k *store.Key) { k.Versions[0].Blob = k.Versions[0].Blob[:72] }), "version 2 of " + sessionsName, "has 72 bytes"},
		"long blob":     {sessions(func(k *store.Key) { k.Versions[0].Blob = append(k.Versions[0].Blob, 0) }), "version 2 of " + sessionsName, "has 74 bytes"},
		"blob's format": {sessions(func(k *store.Key) { k.Versions[0].Blob[0] = 2 }), "version 2 of " + sessionsName, "begins with 0x02"},
		"raw blob empty": {onKey(rawRef, func(k *store.Key) {
			k.Versions[0].Blob = k.Versions[0].Blob[:73]
		}), `version 1 of key "raw" of scope "a"`, "has 73 bytes"},
		"raw blob too long": {onKey(rawRef, func(k *store.Key) {
			k.Versions[0].Blob = append([]byte{1}, make([]byte, 73+1024)...)
		}), `version 1 of key "raw" of scope "a"`, "has 1098 bytes"},

		"no parent":           {sessions(func(k *store.Key) { k.Versions[0].Parent = "" }), "version 2 of " + sessionsName, "its parent"},
		"another's parent":    {moveParent, "version 2 of " + sessionsName, "its parent"},
		"data version ik_kid": {sessions(func(k *store.Key) { k.Versions[0].IKKID = k.IKKID }), "version 2 of " + sessionsName, "has an installation key id"},
		"root version parent": {root(func(k *store.Key) { k.Versions[0].Parent = "krkv_0" }), `version 1 of root key of scope "a"`, "has the parent"},
		"root version ik_kid": {root(func(k *store.Key) { k.Versions[0].IKKID = nil }), `version 1 of root key of scope "a"`, "has 0 bytes"},
		"root version's foreign ik_kid": {
			root(func(k *store.Key) { k.Versions[0].IKKID = make([]byte, 16) }),
			`version 1 of root key of scope "a"`, "is no key of the installation",
		},

		"tombstone time": {sessions(func(k *store.Key) { k.Tombstones[0].Destroyed = 0 }), "tombstone 1 of " + sessionsName, "destroyed at 0"},
		"tombstone alg":  {sessions(func(k *store.Key) { k.Tombstones[0].Alg = 7 }), "tombstone 1 of " + sessionsName, "alg 0x07"},
		"tombstone commitment": {
			sessions(func(k *store.Key) { k.Tombstones[0].Commit = k.Tombstones[0].Commit[:9] }),
			"tombstone 1 of " + sessionsName, "has 9 bytes",
		},
		"tombstone id":    {sessions(func(k *store.Key) { k.Tombstones[0].ID = "kdkv_1" }), "tombstone 1 of " + sessionsName, "does not follow"},
		"tombstone no id": {sessions(func(k *store.Key) { k.Tombstones[0].ID = "" }), "tombstone 1 of " + sessionsName, "no id of a version"},
		"tombstone alg of a missing number": {
			onKey(importedRef, func(k *store.Key) { k.Tombstones[0].Alg = 7 }),
			`tombstone 2 of key "imported" of scope "a"`, "alg 0x07",
		},
		"tombstone of a live id": {sessions(func(k *store.Key) {
			k.Tombstones[0].ID, k.Tombstones[0].Commit = k.Versions[0].ID, k.Versions[0].Commit
		}), "tombstone 1 of " + sessionsName, "too"},

		"due without a period": {sessions(func(k *store.Key) { k.RotateEvery = 0 }), sessionsName, "has no period"},
		"never due":            {sessions(func(k *store.Key) { k.RotateAt = 0 }), sessionsName, "never due"},
		"due before all time":  {sessions(func(k *store.Key) { k.RotateAt = -5 }), sessionsName, "never due"},
		"due too late":         {sessions(func(k *store.Key) { k.RotateAt++ }), sessionsName, "later than"},
		"due at the end":       {sessions(func(k *store.Key) { k.RotateAt = 1<<63 - 1 }), sessionsName, "later than"},
		"period out of range":  {sessions(func(k *store.Key) { k.RotateEvery = 1 << 63 }), sessionsName, "out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newChecked(t)
			s.Edit(c.edit)
			found, err := store.Check(t.Context(), s)
			if err != nil {
				t.Fatalf("Check: %v", err)
			}
			for _, f := range found {
				if strings.HasPrefix(f.Subject, c.subject) && strings.Contains(f.Problem, c.problem) {
					return
				}
			}
			t.Errorf("found %d, none about %q with %q:\n%v", len(found), c.subject, c.problem, lines(found))
		})
	}
}

// rekeyed edits an installation that is being rekeyed: its second key has an active slot, the third.
func rekeyed(edit func(in *store.Installation)) func(*memstore.Data) {
	return func(d *memstore.Data) {
		in := d.Installation
		next := store.InstallationKey{KID: []byte("0123456789abcdef"), Previous: in.IKKID, Link: make([]byte, 32), Created: 1}
		slot := in.Slots[0]
		slot.ID, slot.IKKID = key.NewID(key.PrefixRootSlot, [16]byte{1}), next.KID
		in.Keys, in.Slots = append(in.Keys, next), append(in.Slots, slot)
		edit(in)
	}
}

func moveParent(d *memstore.Data) {
	d.Key(sessionsRef).Versions[0].Parent = d.Key(key.Ref{Scope: "b"}).Versions[0].ID
}

func lines(found []store.Finding) string {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}

func TestCheckAllowsARotationThatIsDueEarly(t *testing.T) {
	s, _ := newChecked(t)
	s.Edit(func(d *memstore.Data) { d.Key(sessionsRef).RotateAt = 1 })
	storetest.Check(t, s)
}

func TestCheckReturnsTheErrorOfAnyRead(t *testing.T) {
	s, _ := newChecked(t)
	n := 0
	for ; ; n++ {
		faults := faultstore.New(s)
		faults.Fail(n, faultstore.Before)
		_, err := store.Check(t.Context(), faults)
		if !faults.Fired() {
			break
		}
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("call %d failed, Check: %v", n, err)
		}
	}
	if n < 7 {
		t.Errorf("Check makes %d calls: it cannot have read everything", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Check(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("Check with a cancelled context: %v", err)
	}
}

func TestCheckNeedsTheTables(t *testing.T) {
	_, err := store.Check(t.Context(), memstore.New())
	if _, ok := errors.AsType[*store.SchemaError](err); !ok {
		t.Errorf("Check without tables: %v; want a *store.SchemaError", err)
	}
}

// What comes and goes between two reads of Check is no finding.
func TestCheckRunsBesideChanges(t *testing.T) {
	s, m := newChecked(t)
	faults := faultstore.New(s)
	faults.Hook(func(call string) {
		if call != "Scope" {
			return
		}
		if err := s.DeleteScope(t.Context(), "b"); err != nil {
			t.Error(err)
		}
		if _, err := s.Create(t.Context(), m.Inst(), m.Scope("c", "sessions")); err != nil {
			t.Error(err)
		}
		// A new installation key instead of the old one, in a slot that was not there when Check read them.
		s.Edit(func(d *memstore.Data) {
			slot := d.Installation.Slots[0]
			next := store.InstallationKey{KID: make([]byte, 16), Previous: d.Installation.IKKID, Link: make([]byte, 32), Created: 1}
			slot.ID, slot.State, slot.Retired, slot.IKKID = m.ID(key.PrefixRootSlot), key.Retired, 1, next.KID
			d.Installation.Keys = []store.InstallationKey{next}
			d.Installation.Slots = append(d.Installation.Slots, slot)
			d.Key(sessionsRef).IKKID = slot.IKKID
		})
	})
	found, err := store.Check(t.Context(), faults)
	if err != nil || len(found) != 0 {
		t.Errorf("Check: %v, %v; want nothing", lines(found), err)
	}
}

func TestFindingIsOneLine(t *testing.T) {
	f := store.Finding{Subject: "installation", Problem: "the sequence number is 0"}
	if got, want := f.String(), "installation: the sequence number is 0"; got != want {
		t.Errorf("String: %q, want %q", got, want)
	}
}
