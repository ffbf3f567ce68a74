package storetest

import (
	"math"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// rootsRefused begins with two slots of the first installation key, two of the second, which the manifest is under, and
// a removed one.
func rootsRefused(e *env) {
	in := e.installation()
	other := in.IKKID
	c := e.m.AddKey(&in)
	c.Add = append(c.Add, e.m.Slot(c.IKKID, key.Retired), e.m.Slot(c.IKKID, key.Retired))
	in = e.changeRoots(c)
	const active, retired, gone = 2, 3, 4
	c = e.m.NextRoots(&in)
	c.States = []store.SlotChange{{ID: in.Slots[gone].ID, From: key.Retired, To: key.Destroyed}}
	in = e.changeRoots(c)

	cases := map[string]store.RootsChange{}
	on := func(name string, c store.RootsChange, spoil func(c *store.RootsChange)) {
		spoil(&c)
		cases[name] = c
	}
	manifest := func(name string, spoil func(c *store.RootsChange)) { on(name, e.m.NextRoots(&in), spoil) }
	slot := func(name string, spoil func(s *store.Slot)) {
		manifest("added slot: "+name, func(c *store.RootsChange) {
			s := e.m.Slot(in.IKKID, key.Retired)
			spoil(&s)
			c.Add = []store.Slot{s}
		})
	}
	states := func(name string, i int, from, to key.State) {
		manifest(name, func(c *store.RootsChange) {
			c.States = []store.SlotChange{{ID: in.Slots[i].ID, From: from, To: to}}
		})
	}

	manifest("the same sequence number", func(c *store.RootsChange) { c.Seq = c.From })
	manifest("a lower sequence number", func(c *store.RootsChange) { c.Seq = c.From - 1 })
	manifest("a sequence number out of range", func(c *store.RootsChange) { c.Seq = math.MaxUint64 })
	manifest("mac too short", func(c *store.RootsChange) { c.MAC = c.MAC[:31] })
	manifest("no mac", func(c *store.RootsChange) { c.MAC = nil })
	manifest("ik_kid too short", func(c *store.RootsChange) { c.IKKID = c.IKKID[:15] })
	manifest("an installation key that is not there", func(c *store.RootsChange) { c.IKKID = e.m.Bytes(16) })
	manifest("the other key's active slot", func(c *store.RootsChange) { c.ActiveSlot = in.Slots[0].ID })
	manifest("the other key, and this one's slot", func(c *store.RootsChange) { c.IKKID = other })
	manifest("an active slot that is retired", func(c *store.RootsChange) { c.ActiveSlot = in.Slots[retired].ID })
	manifest("an active slot that is removed", func(c *store.RootsChange) { c.ActiveSlot = in.Slots[gone].ID })
	manifest("an active slot that is not there", func(c *store.RootsChange) { c.ActiveSlot = "kr_none" })
	manifest("no active slot", func(c *store.RootsChange) { c.ActiveSlot = "" })

	states("two active slots of one key", retired, key.Retired, key.Active)
	states("two active slots of the other key", 1, key.Retired, key.Active)
	states("no active slot is left", active, key.Active, key.Retired)
	states("the active slot is removed", active, key.Active, key.Destroyed)
	for i, from := range map[int]key.State{0: key.Active, 1: key.Retired, gone: key.Destroyed} {
		for to := key.State(0); to <= key.Destroyed+1; to++ {
			legal := i != gone && (to == key.Active || to == key.Retired || to == key.Destroyed)
			if to == from || !legal {
				states(from.String()+" to "+to.String(), i, from, to)
			}
		}
	}
	states("from a state that it is not in", retired, key.Active, key.Destroyed)
	manifest("a slot that is not there", func(c *store.RootsChange) {
		c.States = []store.SlotChange{{ID: "kr_none", From: key.Retired, To: key.Destroyed}}
	})
	manifest("one step that is legal and one that is not", func(c *store.RootsChange) {
		c.States = []store.SlotChange{
			{ID: in.Slots[retired].ID, From: key.Retired, To: key.Destroyed},
			{ID: in.Slots[1].ID, From: key.Active, To: key.Destroyed},
		}
	})

	slot("no id", func(s *store.Slot) { s.ID = "" })
	slot("the id of another", func(s *store.Slot) { s.ID = in.Slots[retired].ID })
	slot("the id of a removed one", func(s *store.Slot) { s.ID = in.Slots[gone].ID })
	slot("no type", func(s *store.Slot) { s.WrapperType = "" })
	slot("no blob", func(s *store.Slot) { s.Blob = nil })
	slot("ik_kid too short", func(s *store.Slot) { s.IKKID = s.IKKID[:15] })
	slot("an installation key that is not there", func(s *store.Slot) { s.IKKID = e.m.Bytes(16) })
	slot("a second active one", func(s *store.Slot) { s.State = key.Active })
	for _, state := range []key.State{0, key.Pending, key.Disabled, key.Destroyed, key.Destroyed + 1} {
		slot(state.String(), func(s *store.Slot) { s.State = state })
	}
	manifest("a slot that is added twice", func(c *store.RootsChange) {
		s := e.m.Slot(in.IKKID, key.Retired)
		c.Add = []store.Slot{s, s}
	})

	on("a third installation key", e.m.AddKey(&in), func(*store.RootsChange) {})
	on("a second that follows the first", e.m.AddKey(&in), func(c *store.RootsChange) { c.AddKey.Previous = other })
	manifest("an installation key that goes is not there", func(c *store.RootsChange) { c.Drop = e.m.Bytes(16) })
	manifest("the manifest's own key goes", func(c *store.RootsChange) { c.Drop = c.IKKID })
	manifest("a key goes, and its slots stay", func(c *store.RootsChange) { c.Drop = other })
	on("a key goes, and a slot of it stays", e.m.DropKey(&in, other), func(c *store.RootsChange) {
		c.States = c.States[:1]
	})
	for name, c := range cases {
		e.unchanged(func() { e.wantClass("ChangeRoots, "+name, e.s.ChangeRoots(e.ctx, c), errRefused) })
	}

	// With one installation key there is room for another.
	in = e.changeRoots(e.m.DropKey(&in, other))
	cases = map[string]store.RootsChange{}
	add := func(name string, spoil func(k *store.InstallationKey)) {
		on("added key: "+name, e.m.AddKey(&in), func(c *store.RootsChange) {
			c.IKKID, c.ActiveSlot, c.Add = in.IKKID, in.ActiveSlot, nil
			spoil(c.AddKey)
		})
	}
	add("kid too short", func(k *store.InstallationKey) { k.KID = k.KID[:15] })
	add("the kid of the one that is there", func(k *store.InstallationKey) { k.KID = in.IKKID })
	add("no link", func(k *store.InstallationKey) { k.Link = nil })
	add("link too short", func(k *store.InstallationKey) { k.Link = k.Link[:31] })
	add("it follows none", func(k *store.InstallationKey) { k.Previous = nil })
	add("it follows none, without a link", func(k *store.InstallationKey) { k.Previous, k.Link = nil, nil })
	add("it follows one that is not there", func(k *store.InstallationKey) { k.Previous = e.m.Bytes(16) })
	add("it follows one that went", func(k *store.InstallationKey) { k.Previous = other })
	add("it follows itself", func(k *store.InstallationKey) { k.Previous = k.KID })
	on("the manifest is under none that is there", e.m.AddKey(&in), func(c *store.RootsChange) { c.AddKey = nil })
	on("the only one goes", e.m.NextRoots(&in), func(c *store.RootsChange) { c.Drop = c.IKKID })
	for name, c := range cases {
		e.unchanged(func() { e.wantClass("ChangeRoots, "+name, e.s.ChangeRoots(e.ctx, c), errRefused) })
	}
}
