package memstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

func TestTimesOfSlotsAreTheClocks(t *testing.T) {
	s, m := newInstalled(t)
	now := time.Unix(1_000, 0)
	s.Clock = func() time.Time { return now }
	change := func(edit func(in *store.Installation, c *store.RootsChange)) store.Installation {
		t.Helper()
		in, err := s.Installation(t.Context())
		must(t, err)
		c := m.NextRoots(&in)
		edit(&in, &c)
		now = now.Add(time.Second)
		must(t, s.ChangeRoots(t.Context(), c))
		in, err = s.Installation(t.Context())
		must(t, err)
		return in
	}
	step := func(id key.ID, from, to key.State) store.SlotChange {
		return store.SlotChange{ID: id, From: from, To: to}
	}
	times := func(s store.Slot) [4]int64 { return [4]int64{s.Created, s.Activated, s.Retired, s.Removed} }

	in := change(func(in *store.Installation, c *store.RootsChange) { *c = m.AddKey(in) })
	if got := in.Keys[1].Created; got != 1_001 {
		t.Errorf("the installation key was made at %d, want 1001", got)
	}
	id := in.ActiveSlot
	for i, c := range []struct {
		from, to key.State
		want     [4]int64
	}{
		{key.Active, key.Retired, [4]int64{1_001, 1_001, 1_002}},
		{key.Retired, key.Active, [4]int64{1_001, 1_003, 0}},
		{key.Active, key.Destroyed, [4]int64{1_001, 1_003, 1_004, 1_004}},
	} {
		in = change(func(in *store.Installation, next *store.RootsChange) {
			next.IKKID, next.ActiveSlot = in.Keys[0].KID, in.Slots[0].ID
			next.States = []store.SlotChange{step(id, c.from, c.to)}
		})
		if d := cmp.Diff(c.want, times(in.Slots[2])); d != "" {
			t.Errorf("step %d: made, activated, retired, removed (-want +got):\n%s", i, d)
		}
	}
	in = change(func(in *store.Installation, c *store.RootsChange) {
		c.Add = []store.Slot{m.Slot(in.IKKID, key.Retired)}
	})
	id = in.Slots[3].ID
	in = change(func(_ *store.Installation, c *store.RootsChange) {
		c.States = []store.SlotChange{step(id, key.Retired, key.Destroyed)}
	})
	if d := cmp.Diff([4]int64{1_005, 0, 1_005, 1_006}, times(in.Slots[3])); d != "" {
		t.Errorf("of one that was never active (-want +got):\n%s", d)
	}
	in = change(func(in *store.Installation, c *store.RootsChange) { *c = m.DropKey(in, in.Keys[1].KID) })
	must(t, s.AddEscrow(t.Context(), m.Inst(), store.Escrow{IKKID: in.IKKID, Event: "verified"}))
	list, err := s.Escrows(t.Context())
	if must(t, err); list[0].At != 1_007 {
		t.Errorf("an escrow was verified at %d, want 1007", list[0].At)
	}
}

func TestEditKeepsEscrowsAndGivesAccessToInstallationKeys(t *testing.T) {
	s, m := newInstalled(t)
	must(t, s.AddEscrow(t.Context(), m.Inst(), store.Escrow{IKKID: m.IKKID(), Event: "written"}))
	kid := m.Bytes(16)
	var kept *memstore.Data
	s.Edit(func(d *memstore.Data) {
		kept = d
		in := d.Installation
		in.Keys = append(in.Keys, store.InstallationKey{KID: kid, Previous: in.IKKID, Link: m.Bytes(32), Created: 1})
		slot := in.Slots[0]
		slot.ID, slot.IKKID = m.ID(key.PrefixRootSlot), kid
		in.Slots = append(in.Slots, slot)
	})
	clear(kept.Installation.Keys[1].Link) // too late
	in, err := s.Installation(t.Context())
	must(t, err)
	if len(in.Keys) != 2 || in.Keys[1].Link[0] == 0 && in.Keys[1].Link[1] == 0 {
		t.Errorf("installation keys %x; want the second as it was edited", in.Keys)
	}
	list, err := s.Escrows(t.Context())
	if must(t, err); len(list) != 1 {
		t.Errorf("%d escrows, want 1", len(list))
	}
	root := m.RootKey("b")
	root.IKKID = kid
	n, err := s.Create(t.Context(), m.Inst(), []store.Key{root})
	if must(t, err); n != 1 {
		t.Errorf("Create under the edited one: %d keys", n)
	}
}

// The specification's own: what is named twice, a store cannot always tell from what is named once.
func TestRefusesWhatAProgramMustNotDoToRoots(t *testing.T) {
	s, m := newInstalled(t)
	in, err := s.Installation(t.Context())
	must(t, err)
	c := m.NextRoots(&in)
	c.States = []store.SlotChange{
		{ID: in.Slots[0].ID, From: key.Active, To: key.Retired}, {ID: in.Slots[0].ID, From: key.Retired, To: key.Active},
	}
	if err := s.ChangeRoots(t.Context(), c); err == nil {
		t.Error("ChangeRoots that names a slot twice: no error")
	}
	c = m.AddKey(&in)
	c.Drop = in.IKKID
	c.States = m.DropKey(&in, in.IKKID).States
	if err := s.ChangeRoots(t.Context(), c); err == nil || errors.Is(err, store.ErrConflict) {
		t.Errorf("ChangeRoots that adds a key and drops another: %v; want it refused", err)
	}
	f, err := s.Scope(t.Context(), "a")
	must(t, err)
	first, second := m.Rekey(&f.Data[0], in.IKKID), m.Rekey(&f.Data[0], in.IKKID)
	second.From, second.Seq = first.Seq, first.Seq+1
	if n, err := s.Rekey(t.Context(), m.Inst(), []store.Rekey{first, second}, nil); err == nil {
		t.Errorf("Rekey that names a key twice: %d, no error", n)
	}
	after, err := s.Scope(t.Context(), "a")
	must(t, err)
	if d := cmp.Diff(f.Data, after.Data); d != "" {
		t.Errorf("the refused Rekey changed something (-before +after):\n%s", d)
	}
}
