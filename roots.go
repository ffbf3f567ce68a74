package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// The external roots of an installation each have a slot, in which the installation key is sealed; any of them opens
// it. One of the slots is the active one. A process whose root has another slot does all that takes no decision, and
// leaves rotations and changes of roots to those that have the active root: it may be of a deployment that is over.

// InUseRootError says which live instances have opened the installation by the slot that was to be removed.
type InUseRootError struct {
	Slot      key.ID
	Instances []InstanceInfo
}

func (e *InUseRootError) Error() string {
	return fmt.Sprintf("root slot %s is in use by %s: start them with another root first, or wait until they are gone",
		e.Slot, instanceNames(e.Instances))
}

// AddRoot gives root a slot, so that whoever has it can open the installation. The slot is not the active one until
// [Manager.ActivateRoot]. A root that has a slot keeps it, and that is returned: so it may be repeated, and any number
// of callers may do it at once.
//
// It calls root to seal, and to open again what it sealed; before and after that, once for each slot of a root of the
// same type, as nothing else says for sure whether one of them is its own. It calls m's own root not at all, and takes
// four round trips, however many keys there are. Errors: [ErrRoot] and [ErrRootUnavailable] about root; [ErrOldRoot] if
// m's own is not the active one; [ErrRolledBack]; [*IntegrityError]; [ErrUnavailable]; [ErrUnknownOutcome], after which
// it may be repeated.
func (m *Manager) AddRoot(ctx context.Context, root wrapping.Wrapper) (RootInfo, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return RootInfo{}, err
	}
	defer end()
	if root == nil {
		return RootInfo{}, key.Invalid("root", "nil", "there is none to add")
	}
	id, err := m.changeRoots(ctx, func(now *slots) (*store.RootsChange, key.ID, error) {
		own, err := m.slotOfRoot(ctx, root, now)
		switch {
		case err != nil && ctx.Err() != nil:
			return nil, "", rootFailed("", "", m.noAnswer(ctx, nil))
		case err == nil, !errors.Is(err, ErrRoot):
			return nil, own, err
		}
		return m.newSlots(ctx, root, now, key.Retired, err)
	})
	if err != nil {
		return RootInfo{}, fmt.Errorf("add a root: %w", err)
	}
	now := m.slots.Load()
	return now.info(slotOf(&now.Installation, id)), nil
}

// ActivateRoot makes the slot with the given id the active one, and the one that was it an old one. Processes with the
// root of that go on, but rotate no more keys and change no roots. Activating the active one does nothing.
//
// It calls no root, and takes four round trips however many keys there are. Errors: [ErrNotFound]; [ErrState] for a
// removed slot, and while the installation is rekeyed; the others are those of [Manager.AddRoot].
func (m *Manager) ActivateRoot(ctx context.Context, id key.ID) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = m.changeSlots(ctx, func(now *slots) (*store.RootsChange, key.ID, error) {
		if id == now.ActiveSlot { // by this call, perhaps, which makes m's root an old one
			return nil, id, nil
		}
		slot, err := now.changeable(id)
		if mayNot := now.mayChange(); mayNot != nil {
			err = mayNot
		}
		if err != nil {
			return nil, id, err
		}
		return &store.RootsChange{ActiveSlot: id, States: []store.SlotChange{
			{ID: now.ActiveSlot, From: key.Active, To: key.Retired}, {ID: id, From: slot.State, To: key.Active},
		}}, id, nil
	})
	if err != nil {
		return fmt.Errorf("activate root slot %s: %w", id, err)
	}
	return nil
}

// RemoveRoot deletes the installation key that is sealed in the slot with the given id. The slot stays as a record.
// From then on its root opens the installation no more, nor any backup that is made from then on; backups that were
// made before it does open, and whoever had root and database has had the installation key: [Manager.Rekey] is for
// that. Removing a removed slot does nothing.
//
// Errors: [ErrState] for the active slot, without which nobody could change anything, and while the installation is
// rekeyed; an [*InUseRootError] names the live instances that opened the installation by it, of those that have
// registered: see [Manager.Instances]. The others are those of [Manager.ActivateRoot]. It takes five round trips.
func (m *Manager) RemoveRoot(ctx context.Context, id key.ID) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = m.changeRoots(ctx, func(now *slots) (*store.RootsChange, key.ID, error) {
		slot, err := now.changeable(id)
		switch {
		case slot != nil && slot.State == key.Destroyed:
			return nil, id, nil
		case err != nil:
			return nil, id, err
		case id == now.ActiveSlot:
			return nil, id, fmt.Errorf("it is the active one, so activate another before: %w", ErrState)
		}
		if err := m.unused(ctx, id); err != nil {
			return nil, id, err
		}
		return &store.RootsChange{ActiveSlot: now.ActiveSlot, States: []store.SlotChange{{ID: id, From: slot.State, To: key.Destroyed}}}, id, nil
	})
	if err != nil {
		return fmt.Errorf("remove root slot %s: %w", id, err)
	}
	return nil
}

// unused is an [*InUseRootError] if a live instance depends on the slot.
func (m *Manager) unused(ctx context.Context, id key.ID) error {
	roll, err := m.store.Roll(ctx)
	if err != nil {
		return err
	}
	var live []InstanceInfo
	now := m.slots.Load()
	for i := range roll.Instances {
		if in := &roll.Instances[i]; now.depends(in.Slot, id) && !in.Gone(roll.Now) {
			live = append(live, m.instanceInfo(in, roll.Now))
		}
	}
	if now.own == id && !slices.ContainsFunc(live, func(in InstanceInfo) bool { return in.Self }) {
		live = append(live, InstanceInfo{ID: string(m.self.ID), Name: m.self.Name, Slot: id, Self: true})
	}
	if len(live) > 0 {
		return &InUseRootError{id, live}
	}
	return nil
}

// depends says whether an instance that opened the installation by the slot its needs the slot id: if it is that, or if
// it has not followed a rekey yet and may be going to by that.
func (s *slots) depends(its, id key.ID) bool {
	from, to := slotOf(&s.Installation, its), slotOf(&s.Installation, id)
	return its == id || from != nil && from.WrapperType == to.WrapperType && !bytes.Equal(from.IKKID, to.IKKID)
}

// changeable is a slot that may become the active one, or be removed.
func (s *slots) changeable(id key.ID) (*store.Slot, error) {
	slot := slotOf(&s.Installation, id)
	switch {
	case slot == nil:
		return nil, store.ErrNotFound
	case slot.State == key.Destroyed:
		return slot, fmt.Errorf("it was removed: %w", ErrState)
	case s.rekeyed():
		return nil, fmt.Errorf("the installation is being rekeyed, which has to be ended before: %w", ErrState)
	}
	return slot, nil
}

// oldRoot is [ErrOldRoot], with what the active root is, if m's is not it.
func (s *slots) oldRoot() error {
	if !s.isOld() {
		return nil
	}
	name, its := "a root that has no slot", slotOf(&s.Installation, s.own)
	if its != nil {
		name = rootName(its.WrapperType, its.WrapperKeyID) + ", slot " + string(its.ID)
	}
	if its != nil && its.State == key.Destroyed {
		name += ", which was removed"
	}
	active := s.active()
	return fmt.Errorf("%w: it is %s, and the active one is %s, slot %s: configure that",
		ErrOldRoot, name, rootName(active.WrapperType, active.WrapperKeyID), active.ID)
}

// mayRotate is why the process that read fam may not rotate a key of it; nil if it may.
func (r reader) mayRotate(ctx context.Context, fam *family) error {
	if fam.roots != nil {
		if err := r.adopt(ctx, nil); err != nil {
			return fmt.Errorf("read which root is the active one: %w", err)
		}
	}
	return r.m.slots.Load().oldRoot()
}

// rootsChanger says what is to become of the slots as they are now; nothing, if all is as it should be. id is whatever
// slot it is about.
type rootsChanger func(now *slots) (c *store.RootsChange, id key.ID, err error)

// changeRoots changes the slots as change says, which is asked again when somebody else was first.
func (m *Manager) changeRoots(ctx context.Context, change rootsChanger) (key.ID, error) {
	return m.changeSlots(ctx, func(now *slots) (*store.RootsChange, key.ID, error) {
		if err := now.mayChange(); err != nil {
			return nil, "", err
		}
		return change(now)
	})
}

// mayChange is why the process may not change the roots; nil if it may.
func (s *slots) mayChange() error {
	if s.older {
		return fmt.Errorf("root slots: %w", ErrRolledBack)
	}
	return s.oldRoot()
}

// changeSlots is changeRoots for whoever need not have the active root.
func (m *Manager) changeSlots(ctx context.Context, change rootsChanger) (id key.ID, err error) {
	r := m.committed()
	for {
		if err := m.adopt(ctx); err != nil {
			return "", r.known(err)
		}
		now := m.slots.Load()
		c, id, err := change(now)
		if err != nil {
			return "", r.known(err)
		}
		if c == nil {
			return id, nil
		}
		if err := m.writeSlots(ctx, now, c); err == nil {
			if err := m.adopt(ctx); err != nil {
				text := fmt.Sprintf("%v: it was written, and could not be read again: %v", store.ErrUnknownOutcome, err)
				return "", &wordedError{text, []error{store.ErrUnknownOutcome}}
			}
			return id, nil
		} else if err := again(ctx, &r, err); err != nil {
			return "", err
		}
	}
}

// writeSlots writes a change, in which what is not said stays as it is, with the manifest that it leads to.
func (m *Manager) writeSlots(ctx context.Context, now *slots, c *store.RootsChange) error {
	c.Inst, c.From, c.Seq = m.ring.inst, now.Seq, now.Seq+1
	if len(c.IKKID) == 0 {
		c.IKKID = now.IKKID
	}
	next := now.Installation
	next.Seq, next.IKKID, next.ActiveSlot = c.Seq, c.IKKID, c.ActiveSlot
	next.Slots = slices.Concat(now.Slots, c.Add)
	for _, change := range c.States {
		slot := slotOf(&next, change.ID)
		slot.State = change.To
		if change.To == key.Destroyed {
			slot.Blob = nil
		}
	}
	manifest, err := slotsManifest(next)
	if err != nil {
		return err
	}
	iks := m.ring.clones()
	defer closeAll(iks)
	ik := keyOf(iks, c.IKKID)
	if ik == nil {
		return store.ErrConflict // there is another one by now
	}
	mac := ik.MAC(manifest.Append(nil))
	c.MAC = mac[:]
	return m.store.ChangeRoots(ctx, *c)
}

// slotOfRoot is the slot by which a root opens the newest installation key.
func (m *Manager) slotOfRoot(ctx context.Context, root wrapping.Wrapper, now *slots) (key.ID, error) {
	iks, own, err := m.openKeys(ctx, root, now.Installation)
	closeAll(iks)
	return own, err
}

// newSlots seals every installation key with a root that opened no slot, and says which of the new slots is the one of
// the newest. Where why says that the root may just have failed, it may have a slot all the same: so it is tried again,
// now that it has shown that it works.
func (m *Manager) newSlots(
	ctx context.Context, root wrapping.Wrapper, now *slots, state key.State, why error,
) (*store.RootsChange, key.ID, error) {
	iks := m.ring.clones()
	defer closeAll(iks)
	c := &store.RootsChange{ActiveSlot: now.ActiveSlot}
	for _, ik := range iks {
		slot, err := m.sealSlot(ctx, root, ik)
		if err != nil {
			return nil, "", err
		}
		slot.State = state
		c.Add = append(c.Add, slot)
		if state == key.Active {
			activateNew(c, now, &slot)
		}
	}
	if errors.Is(why, ErrRootUnavailable) || errors.Is(why, errUnsure) {
		if own, err := m.slotOfRoot(ctx, root, now); err == nil {
			return nil, own, nil
		}
	}
	return c, c.Add[len(c.Add)-1].ID, nil
}

// activateNew has a change make a slot that it adds the active one.
func activateNew(c *store.RootsChange, now *slots, slot *store.Slot) {
	for _, was := range now.Slots {
		if was.State == key.Active && bytes.Equal(was.IKKID, slot.IKKID) {
			c.States = append(c.States, store.SlotChange{ID: was.ID, From: key.Active, To: key.Retired})
		}
	}
	if bytes.Equal(now.IKKID, slot.IKKID) {
		c.ActiveSlot = slot.ID
	}
}

// takeOver gives m's root a slot, which becomes the active one, where another root has opened the installation. Of any
// number of processes with that root one does it. why is the error of its own attempt to open the
// installation, and by the slot of the root that did.
func (m *Manager) takeOver(ctx context.Context, why error, by key.ID) error {
	tried := m.slots.Load().Seq
	own, err := m.changeSlots(ctx, func(now *slots) (*store.RootsChange, key.ID, error) {
		if now.Seq != tried { // somebody else may have been first
			own, err := m.slotOfRoot(ctx, m.root, now)
			if err == nil || !errors.Is(err, ErrRoot) || ctx.Err() != nil {
				return nil, own, err
			}
			why, tried = err, now.Seq
		}
		if err := mayTakeOver(&now.Installation, by); err != nil {
			return nil, "", err
		}
		return m.newSlots(ctx, m.root, now, key.Active, why)
	})
	if err != nil {
		return fmt.Errorf("give the root a slot: %w", err)
	}
	known := *m.slots.Load()
	known.own = own
	m.slots.Store(&known)
	return nil
}

// removeOldRoots removes the slots of roots that have not been the active one for [Config.RemoveRootsAfter].
func (s *sweep) removeOldRoots(ctx context.Context) error {
	after := s.m.removeRootsAfter
	now := s.m.slots.Load()
	if after == 0 || now.isOld() || now.rekeyed() {
		return nil
	}
	var at int64
	if err := s.m.step(ctx, func(ctx context.Context) (err error) {
		at, _, err = s.m.store.Upcoming(ctx)
		return err
	}); err != nil {
		return err
	}
	var failed []error
	for _, slot := range now.Slots {
		// One that was never the active one was added for later.
		if slot.State != key.Retired || !now.wasActive(&slot) || at-slot.Retired < int64(after/time.Second) {
			continue
		}
		err := s.m.RemoveRoot(ctx, slot.ID)
		_, inUse := errors.AsType[*InUseRootError](err)
		switch {
		case err == nil:
			s.m.tell(ctx, Event{Kind: RootRemoved, ID: slot.ID})
		case inUse:
			s.m.tell(ctx, Event{Kind: Kept, ID: slot.ID, Err: err})
		default:
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// wasActive says whether the slot's root has been the active one, by this slot or by one of before a rekey.
func (s *slots) wasActive(slot *store.Slot) bool {
	return slices.ContainsFunc(s.Slots, func(its store.Slot) bool {
		return its.Activated != 0 && its.WrapperType == slot.WrapperType && its.WrapperKeyID == slot.WrapperKeyID
	})
}

// warnOfRoot tells when m's root has become one that is not the active one.
func (m *Manager) warnOfRoot(ctx context.Context, before *slots) {
	now := m.slots.Load()
	if now == before {
		return
	}
	err := now.oldRoot()
	if err == nil || before.oldRoot() != nil {
		return
	}
	m.tell(ctx, Event{Kind: OldRoot, ID: now.own, Err: err})
}

// info describes a slot.
func (s *slots) info(slot *store.Slot) RootInfo {
	at := func(seconds int64) time.Time {
		if seconds == 0 {
			return time.Time{}
		}
		return time.Unix(seconds, 0).UTC()
	}
	return RootInfo{
		ID: slot.ID, Type: slot.WrapperType, KeyID: slot.WrapperKeyID, State: slot.State,
		Active: slot.ID == s.ActiveSlot, Own: slot.ID == s.own, InstallationKey: key.KID(slot.IKKID),
		Created: at(slot.Created), Activated: at(slot.Activated), Retired: at(slot.Retired), Removed: at(slot.Removed),
	}
}
