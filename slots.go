package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// slots is what a process knows of the installation and its root slots. It never changes.
type slots struct {
	store.Installation        // as it was checked
	own                key.ID // the slot by which the process's root opens the newest installation key; empty if by none
	older              bool   // the database had a later state before, so that it was rolled back
}

// active is the slot of the active root.
func (s *slots) active() *store.Slot { return slotOf(&s.Installation, s.ActiveSlot) }

// isOld says whether the process's root is not the active one.
func (s *slots) isOld() bool {
	own, active := slotOf(&s.Installation, s.own), s.active()
	switch {
	case own == nil || active == nil:
		return true
	case bytes.Equal(own.IKKID, active.IKKID):
		return own.ID != active.ID
	}
	return own.State != key.Active // of the next installation key, while the installation is rekeyed
}

// rekeyed says whether the installation gets another installation key just now.
func (s *slots) rekeyed() bool { return len(s.Keys) > 1 }

func slotOf(in *store.Installation, id key.ID) *store.Slot {
	i := slices.IndexFunc(in.Slots, func(s store.Slot) bool { return s.ID == id })
	if i < 0 {
		return nil
	}
	return &in.Slots[i]
}

func kidsOf(in *store.Installation) (kids [][]byte) {
	for _, k := range in.Keys {
		kids = append(kids, k.KID)
	}
	return kids
}

// makeInstallation makes an installation key, seals it with the external root, and stores both with the slot. Whoever
// loses a race gets the winner's installation.
func (m *Manager) makeInstallation(ctx context.Context) (store.Installation, error) {
	ik, err := seal.GenerateIK()
	if err != nil {
		return store.Installation{}, err
	}
	defer ik.Close()
	slot, err := m.sealSlot(ctx, m.root, ik)
	if err != nil {
		return store.Installation{}, err
	}
	inst, kid := ik.Inst(), ik.KID()
	in := store.Installation{
		Inst: inst[:], IKKID: kid[:], Seq: 1, ActiveSlot: slot.ID, Slots: []store.Slot{slot},
	}
	manifest, err := slotsManifest(in)
	if err != nil {
		return store.Installation{}, err
	}
	mac := ik.MAC(manifest.Append(nil))
	in.MAC = mac[:]

	err = m.store.Initialize(ctx, in)
	if err != nil && !errors.Is(err, store.ErrConflict) && (!errors.Is(err, store.ErrUnknownOutcome) || ctx.Err() != nil) {
		return store.Installation{}, err
	}
	stored, err := m.store.Installation(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return stored, fmt.Errorf("new installation was not stored, try again: %w", store.ErrUnavailable)
	}
	m.made = bytes.Equal(stored.Inst, in.Inst)
	return stored, err
}

// openInstallation opens the installation with the root, or with an old one, which then gives it a slot; and checks pin
// and slots.
func (m *Manager) openInstallation(ctx context.Context, in store.Installation) error {
	if err := wellFormed(&in); err != nil {
		return err
	}
	iks, own, err := m.openKeys(ctx, m.root, in)
	why := err // of the root itself
	var by key.ID
	for _, old := range m.oldRoots {
		if err == nil || errors.Is(why, errRemoved) { // somebody wanted it to be out, and has to say so if not any more
			break
		}
		var oldErr error
		if iks, by, oldErr = m.openKeys(ctx, old, in); oldErr == nil {
			oldErr = mayTakeOver(&in, by)
		}
		if oldErr == nil {
			err = nil
			break
		}
		closeAll(iks)
		err = fmt.Errorf("%w; and of an old root: %w", err, oldErr)
	}
	if err != nil {
		return err
	}
	if err := m.trust(&in, iks); err != nil {
		closeAll(iks)
		return err
	}
	m.ring = newKeyring(iks)
	m.slots.Store(&slots{Installation: in, own: own})
	if why == nil {
		return nil
	}
	if err := m.takeOver(ctx, why, by); err != nil {
		m.ring.close()
		return err
	}
	return nil
}

// mayTakeOver is nil if the root of the given slot is the active one, which alone another takes the place of: whoever
// configures an older one may have a deployment that is over.
func mayTakeOver(in *store.Installation, by key.ID) error {
	slot, active := slotOf(in, by), slotOf(in, in.ActiveSlot)
	if slot != nil && slot.State == key.Active {
		return nil
	}
	return fmt.Errorf("%w: slot %s opens the installation, and the active root is %s, slot %s",
		ErrOldRoot, by, rootName(active.WrapperType, active.WrapperKeyID), active.ID)
}

func wellFormed(in *store.Installation) error {
	broken := func(reason string) error { return &IntegrityError{Subject: "the installation", Reason: reason} }
	switch {
	case len(in.Inst) != 16 || len(in.IKKID) != 16:
		return broken("its id does not have 16 bytes")
	case len(in.Keys) < 1 || len(in.Keys) > 2 || !bytes.Equal(in.Keys[0].KID, in.IKKID):
		return broken("its list of installation keys is not the one of its slots")
	}
	if _, err := slotsManifest(*in); err != nil {
		return broken(err.Error())
	}
	return nil
}

// openKeys opens every installation key that there is with the root, and says by which slot it opens the newest.
func (m *Manager) openKeys(ctx context.Context, root wrapping.Wrapper, in store.Installation) ([]*seal.IK, key.ID, error) {
	iks, ids, err := m.openSlots(ctx, root, in)
	if err != nil {
		return nil, "", err
	}
	return iks, ids[len(ids)-1], nil
}

// openSlots is openKeys, with all slots.
func (m *Manager) openSlots(ctx context.Context, root wrapping.Wrapper, in store.Installation) (iks []*seal.IK, ids []key.ID, err error) {
	for _, k := range in.Keys {
		ik, slot, err := m.openAnySlot(ctx, root, in, k.KID)
		if err != nil {
			closeAll(iks)
			return nil, nil, err
		}
		iks, ids = append(iks, ik), append(ids, slot)
	}
	return iks, ids, nil
}

// trust checks that the installation keys are the expected ones, that the second was made by who had the first, and
// that the slots are those that were written with them.
func (m *Manager) trust(in *store.Installation, iks []*seal.IK) error {
	pinned := func(ik *seal.IK) bool { return len(m.pins) == 0 || slices.Contains(m.pins, ik.Pin()) }
	if !pinned(iks[0]) {
		if len(iks) > 1 {
			return fmt.Errorf("%w: it is being rekeyed from pin %x to %x; configure both until that is over", ErrPin, iks[0].Pin(), iks[1].Pin())
		}
		rekeyed := ""
		if len(in.Keys[0].Previous) > 0 { // so says the database, which is no proof
			rekeyed = ", and it has been rekeyed: if that was you, configure this pin"
		}
		return fmt.Errorf("%w: its pin is %x%s", ErrPin, iks[0].Pin(), rekeyed)
	}
	if len(iks) > 1 {
		if err := m.follows(iks[0], iks[1], in); err != nil {
			return err
		}
	}
	return verifySlots(in, iks)
}

// follows checks that whoever made the second key had the first; and that it is the one that is expected, if somebody
// said which: a list of pins is more than that of the first.
func (m *Manager) follows(first, second *seal.IK, in *store.Installation) error {
	if pin := second.Pin(); len(m.pins) > 1 && !slices.Contains(m.pins, pin) {
		return fmt.Errorf("%w: the pin of its new installation key is %x", ErrPin, pin)
	}
	i := slices.IndexFunc(in.Keys, func(k store.InstallationKey) bool {
		kid := second.KID()
		return bytes.Equal(k.KID, kid[:])
	})
	previous := first.KID()
	if i < 0 || !bytes.Equal(in.Keys[i].Previous, previous[:]) || !first.FollowedBy(second.Pin(), in.Keys[i].Link) {
		return &IntegrityError{Subject: "the installation", Reason: "its new installation key does not follow the one before"}
	}
	return nil
}

func verifySlots(in *store.Installation, iks []*seal.IK) error {
	manifest, err := slotsManifest(*in)
	if err != nil {
		return &IntegrityError{Subject: "the installation", Reason: err.Error()}
	}
	if ik := keyOf(iks, in.IKKID); ik == nil || !ik.Verify(manifest.Append(nil), in.MAC) {
		return &IntegrityError{Subject: "the installation", Reason: "the list of its root slots was changed"}
	}
	return nil
}

// followAgain is how soon a root is asked again for a new installation key that it did not open.
const followAgain = time.Second

// unfollowed is why the newest state of the slots is not known here.
type unfollowed struct {
	at  instant
	err error
}

// follow learns of a change of the slots or of the installation key, where a family that was read shows one. Without
// the new key nothing of it can be checked; everything else does without, but for what only the active root may do.
func (r reader) follow(ctx context.Context, fam *family) error {
	var unknown [][]byte
	for _, k := range allKeys(&fam.Family) {
		if !r.m.ring.has(k.IKKID) {
			unknown = append(unknown, k.IKKID)
		}
		for i := range k.Versions {
			if v := &k.Versions[i]; k.Kind == key.KEK && !r.m.ring.has(v.IKKID) {
				unknown = append(unknown, v.IKKID)
			}
		}
	}
	known := r.m.slots.Load()
	changed := fam.Roots != 0 && fam.Roots != known.Seq && (!r.tx || fam.Roots > known.Seq)
	switch {
	case len(unknown) > 0:
		if err := r.adopt(ctx, unknown); err != nil || !r.tx {
			return err
		}
		keys := r.m.slots.Load().Keys
		before := keys[len(keys)-1].Previous
		isBefore := func(kid []byte) bool { return bytes.Equal(kid, before) }
		if !r.m.ring.has(before) && slices.ContainsFunc(unknown, isBefore) {
			return fmt.Errorf("the transaction shows a state from before the last rekey, so roll it back and try again: %w", store.ErrUnavailable)
		}
	case changed:
		err := r.look(ctx)
		if _, tampered := errors.AsType[*IntegrityError](err); tampered {
			return err
		}
		fam.roots = err
	}
	return nil
}

// adopt reads the slots, and opens an installation key that is not known yet, with one call to the root.
func (m *Manager) adopt(ctx context.Context) error { return m.committed().adopt(ctx, nil) }

// adopt asks through the application's transaction, if r is inside one, which may rightly see an older state. wanted
// are keys that something names: if they are there by now, nothing is to be done.
func (r reader) adopt(ctx context.Context, wanted [][]byte) error {
	m := r.m
	if u := m.unfollowed.Load(); u != nil && m.epochs.clock().since(u.at) < followAgain {
		return u.err
	}
	before := m.slots.Load()
	// Not while m.adopting is held: who waits for that may have the connection that this needs.
	in, err := r.installation(ctx)
	if err != nil || r.tx && in.Seq <= before.Seq {
		return err
	}
	select {
	case m.adopting <- struct{}{}:
	case <-ctx.Done():
		return store.ContextError(ctx)
	}
	err = func() error {
		defer func() { <-m.adopting }()
		if len(wanted) > 0 && !slices.ContainsFunc(wanted, func(kid []byte) bool { return !m.ring.has(kid) }) {
			return nil
		}
		if now := m.slots.Load(); now != before && in.Seq <= now.Seq && m.ring.hasJust(kidsOf(&now.Installation)) {
			return nil // somebody else was first, and may have read later
		}
		err := m.learn(ctx, in)
		m.unfollowed.Store(nil)
		if errors.Is(err, ErrRoot) && ctx.Err() == nil {
			m.unfollowed.Store(&unfollowed{m.epochs.clock(), err})
		}
		return err
	}()
	m.warnOfRoot(ctx, before) // the application may call m
	return err
}

// Why it is not known which root is the active one, before somebody asks again and waits for it.
var (
	errLooking    = fmt.Errorf("somebody else asks just now: %w", store.ErrUnavailable)
	errRootNeeded = fmt.Errorf("the root has to be asked: %w", store.ErrUnavailable)
)

// look is adopt for who needs no new installation key, and so does without the root, and does not wait for who waits
// for that.
func (r reader) look(ctx context.Context) error {
	m := r.m
	before := m.slots.Load()
	in, err := r.installation(ctx)
	if err != nil || r.tx && in.Seq <= before.Seq {
		return err
	}
	if err := wellFormed(&in); err != nil {
		return err
	}
	iks := m.ring.clones()
	defer closeAll(iks)
	if own := slotOf(&in, before.own); own == nil || own.State == key.Destroyed || keyOf(iks, in.IKKID) == nil {
		return errRootNeeded
	}
	if err := verifySlots(&in, iks); err != nil {
		return err
	}
	if !m.slots.CompareAndSwap(before, before.next(in)) {
		return errLooking
	}
	m.warnOfRoot(ctx, before)
	return nil
}

// installation reads the installation, which has to be the one that m opened.
func (r reader) installation(ctx context.Context) (store.Installation, error) {
	in, err := r.q.Installation(ctx)
	if errors.Is(err, store.ErrNotFound) || err == nil && !bytes.Equal(in.Inst, r.m.ring.inst[:]) {
		return in, replaced()
	}
	return in, err
}

// next is what is known after the installation was read again.
func (s *slots) next(in store.Installation) *slots {
	return &slots{Installation: in, own: s.own, older: s.older || in.Seq < s.Seq}
}

// learn takes over what was read of the slots. Whoever calls it has m.adopting.
func (m *Manager) learn(ctx context.Context, in store.Installation) error {
	if err := wellFormed(&in); err != nil {
		return err
	}
	next := m.slots.Load().next(in)
	iks := m.ring.clones()
	if m.ring.hasJust(kidsOf(&in)) {
		defer closeAll(iks)
		if err := verifySlots(&in, iks); err != nil {
			return err
		}
	} else {
		have, own, err := m.newKeys(ctx, &in, iks)
		if err != nil {
			return err
		}
		m.ring.set(have)
		next.own = own
	}
	if own := slotOf(&in, next.own); m.root != nil && in.Seq != m.slots.Load().Seq && (own == nil || own.State == key.Destroyed) {
		// It may have another one by now.
		ik, id, err := m.openAnySlot(ctx, m.root, in, in.Keys[len(in.Keys)-1].KID)
		if err == nil {
			ik.Close()
			next.own = id
		}
	}
	m.slots.Store(next)
	return nil
}

// newKeys is the installation keys of which there are others now than those that m has. It closes those that are over.
func (m *Manager) newKeys(ctx context.Context, in *store.Installation, iks []*seal.IK) (_ []*seal.IK, own key.ID, err error) {
	have := slices.Clone(iks)
	defer func() {
		if err != nil {
			closeAll(have)
		}
	}()
	var now []*seal.IK
	for _, k := range in.Keys {
		ik := keyOf(have, k.KID)
		if ik == nil && m.root == nil {
			return nil, "", fmt.Errorf("there is a new installation key, and no root to open it with: %w", ErrRoot)
		}
		if ik == nil {
			if ik, own, err = m.openAnySlot(ctx, m.root, *in, k.KID); err != nil {
				return nil, "", fmt.Errorf("open the new installation key: %w", err)
			}
			have = append(have, ik)
			err = m.mayFollow(in, &k, ik, have, iks[len(iks)-1])
			if err != nil {
				return nil, "", err
			}
		}
		now = append(now, ik)
	}
	if own == "" { // the newest one is known: it was rekeyed, and that is over
		own = m.slots.Load().own
	}
	if err = verifySlots(in, now); err != nil {
		return nil, "", err
	}
	for _, ik := range have {
		if !slices.Contains(now, ik) {
			ik.Close()
		}
	}
	return now, own, nil
}

// mayFollow says whether an installation key that is new to this process is the one that follows those that it has, of
// which newest was the newest.
func (m *Manager) mayFollow(in *store.Installation, k *store.InstallationKey, ik *seal.IK, have []*seal.IK, newest *seal.IK) error {
	before, pin := keyOf(have, k.Previous), ik.Pin()
	restart := func(why string) error {
		return &IntegrityError{Subject: "the installation", Reason: fmt.Sprintf("%s; if the pin is to be %x, start this process again", why, pin)}
	}
	kid := ik.KID()
	wasBefore := slices.ContainsFunc(in.Keys, func(k store.InstallationKey) bool {
		return bytes.Equal(k.Previous, kid[:]) && keyOf(have, k.KID) != nil
	})
	switch {
	case before != nil && before != newest && slices.Index(have, before) < slices.Index(have, newest): // which followed it, too
		return restart("another installation key follows the one before than this process knew")
	case before != nil:
		return m.follows(before, ik, in)
	case wasBefore:
		return restart("it has the installation key of before its last rekey again, as after a failover or a restored backup")
	case slices.Contains(m.pins, pin):
		return nil
	}
	return restart("its installation key was replaced more than once since this process knew it")
}

// slotsManifest is what the slots' MAC is over. It fails if a stored length is wrong, or if a slot's row names another
// key of its root than its blob does.
func slotsManifest(in store.Installation) (envelope.SlotsManifest, error) {
	manifest := envelope.SlotsManifest{Inst: [16]byte(in.Inst), Seq: in.Seq, Active: in.ActiveSlot}
	for _, slot := range in.Slots {
		if len(slot.IKKID) != 16 {
			return envelope.SlotsManifest{}, fmt.Errorf("slot %s names no installation key", slot.ID)
		}
		// The row's own id of the root's key is not in the manifest, and people ask for it by SQL. A blob that cannot
		// be read does not open, either.
		var info wrapping.BlobInfo
		if err := proto.Unmarshal(slot.Blob, &info); err == nil {
			if id := info.GetKeyInfo().GetKeyId(); id != "" && id != slot.WrapperKeyID {
				return envelope.SlotsManifest{}, fmt.Errorf("slot %s names another key of its root than it was sealed with", slot.ID)
			}
		}
		manifest.Slots = append(manifest.Slots, envelope.Slot{
			ID: slot.ID, WrapperType: slot.WrapperType, IKKID: key.KID(slot.IKKID), State: slot.State, BlobHash: seal.BlobHash(slot.Blob),
		})
	}
	return manifest, nil
}
