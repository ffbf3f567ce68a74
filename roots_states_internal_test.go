package keyhold

import (
	"errors"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// Whoever has the old installation key, and can write to the database, announces another new one than the one that is
// expected: a list of two pins says which that is.
func TestRekeyToAThirdKeyIsRefused(t *testing.T) {
	s, root := memstore.New(), newStub(t)
	m := openedBy(t, s, root, nil)
	check(t, m.CreateScope(t.Context(), inner.Scope))
	a := m.ring.clones()[0]
	pins := []string{m.Pin(), begun(t, s, root).Pin()}
	running := openedBy(t, s, root, func(c *Config) { c.Pins = pins })
	other := a.Next()
	kid, theirs := a.KID(), other.KID()
	slot, err := m.sealSlot(t.Context(), root, other)
	check(t, err)
	s.Edit(func(d *memstore.Data) {
		in := d.Installation
		link := a.NextMAC(other.Pin())
		in.Keys = []store.InstallationKey{in.Keys[0], {KID: theirs[:], Previous: kid[:], Link: link[:], Created: 1}}
		slot.Created, slot.Activated = 1, 1
		in.Slots = append(in.Slots[:1], slot)
		resign(t, in, a)
	})
	_, err = New(t.Context(), s, Config{Root: root, Pins: pins})
	wants(t, err, ErrPin)
	_, err = running.Installation(t.Context())
	wants(t, err, ErrPin)
	if running.Pin() != pins[1] {
		t.Error("the running process took it over")
	}
}

// An instance that has not followed a rekey yet will do so by its root's new slot, which is therefore in use; as soon as
// it has followed, it says so.
func TestRootsThatAreNeededToFollowAreInUse(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s, first, second := memstore.New(), newStub(t), newStub(t)
		m := openedBy(t, s, first, func(c *Config) { c.OldRoots = append(c.OldRoots, second) })
		check(t, m.CreateScope(ctx, inner.Scope))
		_, err := m.AddRoot(ctx, second)
		check(t, err)
		user := openedBy(t, s, second, nil)
		check(t, usable(t, user))
		_, err = m.Rekey(ctx, NoEscrow)
		check(t, err)
		now := m.slots.Load().Slots
		last := now[len(now)-1].ID
		removed := func() []InstanceInfo {
			inUse, _ := errors.AsType[*InUseRootError](m.RemoveRoot(ctx, last))
			if inUse == nil {
				return nil
			}
			return inUse.Instances
		}
		if in := removed(); len(in) != 1 || in[0].Slot == last {
			t.Errorf("in use by %+v, want the instance that has not followed", in)
		}
		stop := running(t, user)
		pass(10 * time.Second)
		if in := removed(); len(in) != 1 || in[0].Slot != last {
			t.Errorf("in use by %+v, want the instance by its new slot", in)
		}
		check(t, usable(t, user))
		stop()
	})
}

// What a failover loses of a rekey, the processes that had followed it forget.
func TestRekeyThatAFailoverLost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s, root := memstore.New(), newStub(t)
		m := openedBy(t, s, root, nil)
		for _, scope := range []Scope{inner.Scope, "other"} {
			check(t, m.CreateScope(ctx, scope))
		}
		var before memstore.Data
		backup(t, s).Edit(func(d *memstore.Data) { before = *d })
		check(t, begun(t, s, root).CreateScope(ctx, "new"))
		_, err := m.Keys(ctx, "new")
		check(t, err)
		s.Edit(func(d *memstore.Data) { *d = before })
		_, err = m.Rotate(ctx, Ref{Scope: "other", Purpose: inner.Purpose})
		check(t, err)
		check(t, m.Health().Root)
		_, err = m.AddRoot(ctx, newStub(t))
		wants(t, err, ErrRolledBack)
	})
}

// A root whose slot was removed, and that got another, is known by that to processes that had the first.
func TestRootsThatAreRemovedAndAddedAgain(t *testing.T) {
	ctx := t.Context()
	s, first, second := memstore.New(), newStub(t), newStub(t)
	m := openedBy(t, s, first, nil)
	check(t, m.CreateScope(ctx, inner.Scope))
	info, err := m.AddRoot(ctx, second)
	check(t, err)
	idle := openedBy(t, s, second, nil)
	check(t, m.RemoveRoot(ctx, info.ID))
	_, err = idle.Rotate(ctx, inner)
	wants(t, err, ErrOldRoot)
	info, err = m.AddRoot(ctx, second)
	check(t, err)
	check(t, m.ActivateRoot(ctx, info.ID))
	_, err = idle.Rotate(ctx, inner)
	check(t, err)
	if own := idle.slots.Load().own; own != info.ID || slotOf(&idle.slots.Load().Installation, own).State != key.Active {
		t.Errorf("its slot is %s, want %s", own, info.ID)
	}
}
