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

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// sealSlot seals ik with the external root, and opens it again, as a root that can only encrypt would lose everything.
func (m *Manager) sealSlot(ctx context.Context, root wrapping.Wrapper, ik *seal.IK) (store.Slot, error) {
	id, err := seal.RandomID(key.PrefixRootSlot)
	if err != nil {
		return store.Slot{}, err
	}
	wrapperType, keyID, err := m.describeRoot(ctx, root)
	if err != nil {
		return store.Slot{}, err
	}
	payload := ik.SlotPayload(id, wrapperType)
	defer payload.Clear()
	its := secret.New(bytes.Clone(payload.Reveal())) // a root that does not end with ctx may still read it
	info, err := callRoot(ctx, m, "encrypt", func(ctx context.Context) (*wrapping.BlobInfo, error) {
		defer its.Clear()
		return root.Encrypt(ctx, its.Reveal())
	})
	if err != nil {
		return store.Slot{}, rootFailed(wrapperType, keyID, fmt.Errorf("seal the installation key: %w", err))
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
	again, err := m.openSlot(ctx, root, inst, slot)
	switch {
	case isCallError(err):
		return store.Slot{}, rootFailed(wrapperType, keyID, fmt.Errorf("open again what it just sealed: %w", err))
	case err != nil:
		return store.Slot{}, fmt.Errorf("open again what the root just sealed: %w: %w", ErrRoot, err)
	}
	again.Close()
	return slot, nil
}

// openAnySlot opens an installation key by the first of its slots that the root opens. Slots that name the root's own
// key id are tried first, so that there is one call to the root, also where a root of the same type has a slot.
func (m *Manager) openAnySlot(
	ctx context.Context, root wrapping.Wrapper, in store.Installation, kid []byte,
) (*seal.IK, key.ID, error) {
	wrapperType, keyID, err := m.describeRoot(ctx, root)
	if err != nil {
		return nil, "", err
	}
	var candidates []store.Slot
	var active, removed string
	own := 0 // how many of them name the root's own key; they come first
	for _, slot := range in.Slots {
		if slot.ID == in.ActiveSlot {
			active = rootName(slot.WrapperType, slot.WrapperKeyID)
		}
		mine := slot.WrapperType == wrapperType && keyID != "" && slot.WrapperKeyID == keyID
		switch {
		case slot.State == key.Destroyed && mine:
			removed = string(slot.ID)
		case slot.State == key.Destroyed || slot.WrapperType != wrapperType || !bytes.Equal(slot.IKKID, kid):
		case mine:
			candidates = slices.Insert(candidates, 0, slot)
			own++
		default:
			candidates = append(candidates, slot)
		}
	}
	var errs []error
	var failed error // of a root of which nothing says that it is another one
	for i, slot := range candidates {
		ik, err := m.openSlot(ctx, root, [16]byte(in.Inst), slot)
		if err == nil {
			return ik, slot.ID, nil
		}
		errs = append(errs, err)
		if failed == nil && isCallError(err) && (i < own || keyID == "" && ctx.Err() != nil) {
			failed = err
		}
		if ctx.Err() != nil {
			break // nor would it answer for the next one
		}
	}
	switch {
	case failed != nil:
		return nil, "", rootFailed(wrapperType, keyID, failed)
	case own > 0:
		err = ErrRoot
	case removed != "":
		err = &wordedError{
			fmt.Sprintf("%v: its slot %s was removed: %s; the active root is %s", ErrRoot, removed, rootName(wrapperType, keyID), active),
			[]error{ErrRoot, errRemoved},
		}
	case wrapperType == rawRootType && len(candidates) > 0:
		return nil, "", fmt.Errorf("%w: the given key is another one than that of the active root, %s", ErrRoot, active)
	case keyID == "" && len(candidates) > 0:
		err = &wordedError{
			fmt.Sprintf("%v: %s failed, or it is another one than the active root, %s", ErrRoot, wrapperType, active), []error{ErrRoot, errUnsure},
		}
	default:
		err = fmt.Errorf("%w: by its type and its key's id it is another one: %s, and the active root is %s",
			ErrRoot, rootName(wrapperType, keyID), active)
		if slices.ContainsFunc(errs, isCallError) { // the id may have changed since it sealed
			err = &wordedError{err.Error(), []error{ErrRoot, errUnsure}}
		}
	}
	for _, why := range errs {
		err = fmt.Errorf("%w; %w", err, why)
	}
	return nil, "", err
}

// rawRootType is the type of package localroot's roots from given bytes. They have no id, and never fail but by being
// another key.
const rawRootType = "keyhold-raw"

// errRemoved says of a root that somebody has taken its slot away.
var errRemoved = errors.New("the root's slot was removed")

// errUnsure says of a root that it may be one that has a slot.
var errUnsure = errors.New("the root may have failed")

// openSlot asks the external root once to open one slot.
func (m *Manager) openSlot(ctx context.Context, root wrapping.Wrapper, inst [16]byte, slot store.Slot) (*seal.IK, error) {
	var info wrapping.BlobInfo
	if err := proto.Unmarshal(slot.Blob, &info); err != nil {
		return nil, fmt.Errorf("slot %s: not a marshalled BlobInfo", slot.ID)
	}
	plain, err := callRoot(ctx, m, "decrypt", func(ctx context.Context) ([]byte, error) { return root.Decrypt(ctx, &info) })
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
func (m *Manager) describeRoot(ctx context.Context, root wrapping.Wrapper) (wrapperType, keyID string, err error) {
	t, err := guard(ctx, m, func() (wrapping.WrapperType, error) { return root.Type(ctx) })
	if err != nil {
		return "", "", rootFailed("", "", fmt.Errorf("ask for its type: %w", err))
	}
	// A wrapper that does not know its key id before its first use is no error: the id is only a hint of the slot to
	// try first.
	id, err := guard(ctx, m, func() (string, error) { return root.KeyId(ctx) })
	switch {
	case err != nil && ctx.Err() != nil:
		return "", "", rootFailed(string(t), "", fmt.Errorf("ask for its key's id: %w", err))
	case err != nil:
		id = ""
	}
	return string(t), id, nil
}

// callRoot lets an external root encrypt or decrypt, and tells.
func callRoot[T any](ctx context.Context, m *Manager, operation string, call func(context.Context) (T, error)) (T, error) {
	ctx, sp := m.telemetry.span(ctx, "keyhold.root."+operation)
	result, err := guard(ctx, m, func() (T, error) { return call(ctx) })
	m.telemetry.rootCalled(ctx, operation, err)
	sp.end(err)
	return result, err
}

// callError is why an external root did not do what it was called for.
type callError struct{ error }

func (e callError) Unwrap() error { return e.error }

func isCallError(err error) bool {
	_, ok := errors.AsType[callError](err)
	return ok
}

// rootFailed says of an external root that it failed, and not that it is another one.
func rootFailed(wrapperType, keyID string, err error) error {
	subject := "the external root"
	if name := rootName(wrapperType, keyID); name != "" {
		subject += " (" + name + ")"
	}
	return &wordedError{subject + " failed: " + err.Error(), []error{ErrRoot, ErrRootUnavailable, err}}
}

func rootName(wrapperType, keyID string) string { return strings.TrimSpace(wrapperType + " " + keyID) }

// guard calls an external root, and waits until ctx ends; its error is a callError. A wrapper that panics, as some do
// with a damaged blob, has not opened anything. One that does not end with ctx is left to itself, and what it returns
// then is cleared.
func guard[T any](ctx context.Context, m *Manager, call func() (T, error)) (result T, err error) {
	type answer struct {
		result T
		err    error
	}
	answered := make(chan answer)
	go func() {
		var a answer
		a.result, a.err = caught(call)
		select {
		case answered <- a:
		case <-ctx.Done():
			if late, ok := any(a.result).([]byte); ok {
				clear(late)
			}
		}
	}()
	select {
	case a := <-answered:
		if a.err == nil {
			return a.result, nil
		}
		err = a.err
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		err = m.noAnswer(ctx, err)
	}
	return result, callError{err}
}

func caught[T any](call func() (T, error)) (result T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("the wrapper panicked")
		}
	}()
	return call()
}

// noAnswer says what ended a call of the external root; why is the root's own error, if it returned one. The cause that
// Config.Timeout gives says that the database is away, which is not so here.
func (m *Manager) noAnswer(ctx context.Context, why error) error {
	ended, when := store.ContextError(ctx), ""
	if errors.Is(ended, ErrUnavailable) {
		ended, when = ctx.Err(), fmt.Sprintf(" by the end of Config.Timeout (%v)", m.timeout)
	}
	switch {
	case why == nil:
		why = ended
	case !errors.Is(why, ended):
		why = fmt.Errorf("%w: %w", ended, why)
	}
	return fmt.Errorf("no answer%s: %w", when, why)
}
