package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// makeInstallation makes an installation key, seals it with the external root, and stores both with the slot. Whoever
// loses a race gets the winner's installation.
func (m *Manager) makeInstallation(ctx context.Context) (store.Installation, error) {
	ik, err := seal.GenerateIK()
	if err != nil {
		return store.Installation{}, err
	}
	defer ik.Close()
	slot, err := m.sealSlot(ctx, ik)
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
	if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknownOutcome) {
		return store.Installation{}, err
	}
	stored, err := m.store.Installation(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return stored, fmt.Errorf("new installation was not stored, try again: %w", store.ErrUnavailable)
	}
	m.made = bytes.Equal(stored.Inst, in.Inst)
	return stored, err
}

// sealSlot seals ik with the external root, and opens it again, as a root that can only encrypt would lose everything.
func (m *Manager) sealSlot(ctx context.Context, ik *seal.IK) (store.Slot, error) {
	id, err := seal.RandomID(key.PrefixRootSlot)
	if err != nil {
		return store.Slot{}, err
	}
	wrapperType, keyID, err := describeRoot(ctx, m.root)
	if err != nil {
		return store.Slot{}, err
	}
	payload := ik.SlotPayload(id, wrapperType)
	defer payload.Clear()
	info, err := guard(func() (*wrapping.BlobInfo, error) { return m.root.Encrypt(ctx, payload.Reveal()) })
	if err != nil {
		return store.Slot{}, fmt.Errorf("seal the installation key with the root (%s %s): %w: %w", wrapperType, keyID, ErrRoot, err)
	}
	blob, err := proto.Marshal(info)
	if err != nil {
		return store.Slot{}, fmt.Errorf("marshal what the root (%s %s) returned: %w", wrapperType, keyID, err)
	}
	if info.GetKeyInfo().GetKeyId() != "" {
		keyID = info.GetKeyInfo().GetKeyId()
	}
	kid := ik.KID()
	slot := store.Slot{
		ID: id, WrapperType: wrapperType, WrapperKeyID: keyID, IKKID: kid[:], State: key.Active, Blob: blob,
	}
	inst := ik.Inst()
	if bytes.Contains(blob, payload.Reveal()[len(payload.Reveal())-32:]) {
		return store.Slot{}, fmt.Errorf("the root (%s %s) returned the installation key unsealed: %w", wrapperType, keyID, ErrRoot)
	}
	again, err := m.openSlot(ctx, inst, slot)
	if err != nil {
		return store.Slot{}, fmt.Errorf("open again what the root just sealed: %w: %w", ErrRoot, err)
	}
	again.Close()
	return slot, nil
}

// openInstallation opens the installation key by the first slot that the external root opens, and checks pin and slots
// with it. Slots that name the root's own key id are tried first, so that there is one call to the root, also where a
// root of the same type has a slot.
func (m *Manager) openInstallation(ctx context.Context, in store.Installation) (*seal.IK, error) {
	broken := func(reason string) error { return &IntegrityError{Subject: "the installation", Reason: reason} }
	if len(in.Inst) != 16 || len(in.IKKID) != 16 {
		return nil, broken("its id does not have 16 bytes")
	}
	manifest, err := slotsManifest(in)
	if err != nil {
		return nil, broken(err.Error())
	}
	wrapperType, keyID, err := describeRoot(ctx, m.root)
	if err != nil {
		return nil, err
	}
	ik, err := m.openAnySlot(ctx, in, wrapperType, keyID)
	if err != nil {
		return nil, err
	}
	if pin := ik.Pin(); len(m.pins) > 0 && !slices.Contains(m.pins, pin) {
		ik.Close()
		return nil, fmt.Errorf("%w: its pin is %x", ErrPin, pin)
	}
	if !ik.Verify(manifest.Append(nil), in.MAC) {
		ik.Close()
		return nil, broken("the list of its root slots was changed")
	}
	return ik, nil
}

// verifySlots checks the slots of an installation that is open.
func (m *Manager) verifySlots(in store.Installation) error {
	inst := m.ik.Inst()
	if !bytes.Equal(in.Inst, inst[:]) {
		return replaced()
	}
	manifest, err := slotsManifest(in)
	if err != nil {
		return &IntegrityError{Subject: "the installation", Reason: err.Error()}
	}
	if !m.ik.Verify(manifest.Append(nil), in.MAC) {
		return &IntegrityError{Subject: "the installation", Reason: "the list of its root slots was changed"}
	}
	return nil
}

func (m *Manager) openAnySlot(ctx context.Context, in store.Installation, wrapperType, keyID string) (*seal.IK, error) {
	var candidates []store.Slot
	var active string
	for _, slot := range in.Slots {
		if slot.ID == in.ActiveSlot {
			active = strings.TrimSpace(slot.WrapperType + " " + slot.WrapperKeyID)
		}
		if slot.State == key.Destroyed || slot.WrapperType != wrapperType || !bytes.Equal(slot.IKKID, in.IKKID) {
			continue
		}
		if keyID != "" && slot.WrapperKeyID == keyID {
			candidates = slices.Insert(candidates, 0, slot)
		} else {
			candidates = append(candidates, slot)
		}
	}
	var errs []error
	for _, slot := range candidates {
		ik, err := m.openSlot(ctx, [16]byte(in.Inst), slot)
		if err == nil {
			return ik, nil
		}
		errs = append(errs, err)
	}
	err := fmt.Errorf("%w: the configured root is %s, the active one is %s",
		ErrRoot, strings.TrimSpace(wrapperType+" "+keyID), active)
	for _, why := range errs {
		err = fmt.Errorf("%w; %w", err, why)
	}
	return nil, err
}

// openSlot asks the external root once to open one slot.
func (m *Manager) openSlot(ctx context.Context, inst [16]byte, slot store.Slot) (*seal.IK, error) {
	var info wrapping.BlobInfo
	if err := proto.Unmarshal(slot.Blob, &info); err != nil {
		return nil, fmt.Errorf("slot %s: not a marshalled BlobInfo", slot.ID)
	}
	plain, err := guard(func() ([]byte, error) { return m.root.Decrypt(ctx, &info) })
	if err != nil {
		return nil, fmt.Errorf("slot %s: %w", slot.ID, err)
	}
	payload := secret.New(plain)
	defer payload.Clear()
	ik, err := seal.OpenSlotPayload(inst, slot.ID, slot.WrapperType, key.KID(slot.IKKID), payload)
	if err != nil {
		return nil, fmt.Errorf("slot %s: what the root opened is not its installation key", slot.ID)
	}
	return ik, nil
}

// describeRoot asks the external root what it is.
func describeRoot(ctx context.Context, root wrapping.Wrapper) (wrapperType, keyID string, err error) {
	t, err := guard(func() (wrapping.WrapperType, error) { return root.Type(ctx) })
	if err != nil {
		return "", "", fmt.Errorf("ask the root for its type: %w: %w", ErrRoot, err)
	}
	// A wrapper that does not know its key id before its first use is no error: the id is only a hint of the slot to
	// try first.
	id, err := guard(func() (string, error) { return root.KeyId(ctx) })
	if err != nil {
		id = ""
	}
	return string(t), id, nil
}

// guard calls an external root. A wrapper that panics, as some do with a damaged blob, has not opened anything.
func guard[T any](call func() (T, error)) (result T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("the wrapper panicked")
		}
	}()
	return call()
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
