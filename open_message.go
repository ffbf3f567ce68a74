package keyhold

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Open decrypts what [Manager.Seal] made with any version of ref's key, given the same aad. The result belongs to the
// caller.
//
// It takes the round trips of Seal; two, and 100 ms at most, where the version is one that m has not seen yet. Where
// the version is in use it waits for nobody, and allocates the result alone.
//
// Errors: [ErrOpen] if it does not open here, for whatever reason; [ErrDisabled] if its key version is disabled or
// destroyed; [ErrNotFound] for an unknown scope or purpose; [*InvalidError] for a malformed name; [ErrPurpose];
// [*IntegrityError]; [ErrUnavailable] if the database is away and what is at hand does not do without it, with
// [ErrStale] if it has been away for [Config.OpenFor]. A key that has sealed all that it may, or that was rolled back,
// opens.
func (m *Manager) Open(ctx context.Context, ref key.Ref, ciphertext []byte, aad AAD) ([]byte, error) {
	return m.appendOpen(ctx, nil, ref, ciphertext, &aad)
}

// AppendOpen is [Manager.Open] that appends to dst, and returns the longer slice: with room for the plaintext in dst it
// allocates nothing where the version is in use. ciphertext and the capacity of dst must overlap exactly
// (ciphertext[:0] as dst) or not at all; zeros follow the plaintext in the place of the ciphertext then, and of what is
// overwritten nothing is left if it does not open. After an error the result is nil, and what dst had is as it was.
func (m *Manager) AppendOpen(ctx context.Context, dst []byte, ref key.Ref, ciphertext []byte, aad AAD) ([]byte, error) {
	return m.appendOpen(ctx, dst, ref, ciphertext, &aad)
}

func (m *Manager) appendOpen(ctx context.Context, dst []byte, ref key.Ref, ciphertext []byte, aad *AAD) ([]byte, error) {
	msg, err := attached(ciphertext)
	if err != nil {
		m.telemetry.refused(ctx, "open", "", err)
		return nil, err
	}
	if h := m.hotOpening(msg.KID, aad); h != nil && h.ref == ref {
		m.telemetry.hits.add()
		plaintext, err := h.messages.Open(dst, ciphertext, &aad.parts)
		switch {
		case err == nil:
			return plaintext, nil
		case !errors.Is(err, seal.ErrClosed):
			return nil, m.refusedOpen(ctx, h, nil)
		}
	}
	return m.open(ctx, m.hot(opens), dst, ref, key.VersionID(key.DEK, msg.KID), ciphertext, *aad, false)
}

// OpenTx is [Manager.Open] with the keys that the application's transaction sees. It reads them each time, so there is
// no [ErrStale]. After [ErrUnavailable] the transaction has to be rolled back.
func (m *Manager) OpenTx(ctx context.Context, tx store.Tx, ref key.Ref, ciphertext []byte, aad AAD) ([]byte, error) {
	msg, err := attached(ciphertext)
	if err != nil {
		m.telemetry.refused(ctx, "open", "", err)
		return nil, err
	}
	return m.open(ctx, m.inside(tx), nil, ref, key.VersionID(key.DEK, msg.KID), ciphertext, aad, false)
}

// OpenDetached is [Manager.Open] for what [Manager.SealDetached] made; id is the key version's id that came with it.
func (m *Manager) OpenDetached(ctx context.Context, ref key.Ref, id key.ID, ciphertext []byte, aad AAD) ([]byte, error) {
	if kid, ok := id.KID(); ok {
		if h := m.hotOpening(kid, &aad); h != nil && h.id == id && h.ref == ref {
			m.telemetry.hits.add()
			plaintext, err := h.messages.OpenDetached(nil, ciphertext, &aad.parts)
			switch {
			case err == nil:
				return plaintext, nil
			case !errors.Is(err, seal.ErrClosed):
				return nil, m.refusedOpen(ctx, h, notDetached(ciphertext))
			}
		}
	}
	return m.openDetached(ctx, m.hot(opens), ref, id, ciphertext, aad)
}

// OpenDetachedTx is [Manager.OpenDetached] with the keys that the application's transaction sees; see
// [Manager.OpenTx].
func (m *Manager) OpenDetachedTx(
	ctx context.Context, tx store.Tx, ref key.Ref, id key.ID, ciphertext []byte, aad AAD,
) ([]byte, error) {
	return m.openDetached(ctx, m.inside(tx), ref, id, ciphertext, aad)
}

// OpenAny is [Manager.Open] where the ciphertext is to say whose it is: it returns the plaintext with the reference of
// its key. A caller who expects a certain scope should use Open, which refuses another's. The errors are those of Open,
// but [ErrNotFound]: what no key here sealed is [ErrOpen].
func (m *Manager) OpenAny(ctx context.Context, ciphertext []byte, aad AAD) ([]byte, key.Ref, error) {
	plaintext, ref, err := m.tryOpenAny(ctx, ciphertext, aad)
	if err != nil {
		m.telemetry.refused(ctx, "open", "", err)
	}
	return plaintext, ref, err
}

func (m *Manager) tryOpenAny(ctx context.Context, ciphertext []byte, aad AAD) ([]byte, key.Ref, error) {
	msg, err := attached(ciphertext)
	if err != nil {
		return nil, key.Ref{}, err
	}
	if aad.err != nil {
		return nil, key.Ref{}, aad.invalid()
	}
	if h := m.hotOpening(msg.KID, &aad); h != nil {
		m.telemetry.hits.add()
		plaintext, err := h.messages.Open(nil, ciphertext, &aad.parts)
		switch {
		case err == nil:
			return plaintext, h.ref, nil
		case !errors.Is(err, seal.ErrClosed):
			return nil, key.Ref{}, ErrOpen
		}
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, key.Ref{}, err
	}
	defer end()
	r, before := m.hot(opens), m.counts()
	fam, v, err := r.keyOfOpening(ctx, key.VersionID(key.DEK, msg.KID))
	if errors.Is(err, store.ErrNotFound) {
		err = ErrOpen
	}
	if err != nil {
		return nil, key.Ref{}, err
	}
	plaintext, err := r.openVersion(before, &fam, v, nil, ciphertext, &aad, false)
	if err != nil {
		return nil, key.Ref{}, err
	}
	return plaintext, key.Ref{Scope: fam.Root.Scope, Purpose: fam.Data[0].Purpose}, nil
}

// hotOpening returns the version of a key for messages that has the kid, if it is in use.
func (m *Manager) hotOpening(kid key.KID, aad *AAD) *hotKey {
	if aad.err != nil {
		return nil
	}
	name := hotName{what: versionWithKID, kid: kid}
	h, _ := m.hotKey(&name)
	return h
}

// refusedOpen is why a message did not open with a key in use: its form, if that is wrong.
func (m *Manager) refusedOpen(ctx context.Context, h *hotKey, form error) error {
	err := cmp.Or(form, ErrOpen)
	m.telemetry.refused(ctx, "open", h.ref.Purpose, err)
	return err
}

func (m *Manager) openDetached(
	ctx context.Context, r reader, ref key.Ref, id key.ID, ciphertext []byte, aad AAD,
) ([]byte, error) {
	err := id.Validate()
	if err == nil {
		err = notDetached(ciphertext)
	}
	if err != nil {
		m.telemetry.refused(ctx, "open", "", err)
		return nil, err
	}
	return m.open(ctx, r, nil, ref, id, ciphertext, aad, true)
}

// notDetached says of a message that it is not in the detached form.
func notDetached(ciphertext []byte) error {
	if msg, err := envelope.ParseMessage(ciphertext); err != nil || msg.Attached {
		return fmt.Errorf("%w: it is not a detached keyhold message", ErrOpen)
	}
	return nil
}

func attached(ciphertext []byte) (envelope.Message, error) {
	msg, err := envelope.ParseMessage(ciphertext)
	if err != nil || !msg.Attached {
		return msg, fmt.Errorf("%w: it is not a keyhold message with a key id", ErrOpen)
	}
	return msg, nil
}

func (m *Manager) open(
	ctx context.Context, r reader, dst []byte, ref key.Ref, id key.ID, ciphertext []byte, aad AAD, detached bool,
) ([]byte, error) {
	plaintext, err := m.tryOpen(ctx, r, dst, ref, id, ciphertext, aad, detached)
	if err != nil {
		m.telemetry.refused(ctx, "open", ref.Purpose, err)
	}
	return plaintext, err
}

func (m *Manager) tryOpen(
	ctx context.Context, r reader, dst []byte, ref key.Ref, id key.ID, ciphertext []byte, aad AAD, detached bool,
) ([]byte, error) {
	if aad.err != nil {
		return nil, aad.invalid()
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	before := m.counts()
	fam, v, err := r.dataKeyWith(ctx, ref, id)
	if err != nil {
		return nil, err
	}
	return r.openVersion(before, &fam, v, dst, ciphertext, &aad, detached)
}

// openVersion opens a message with a version of fam's data key, which was read since the given counts.
func (r reader) openVersion(
	before counts, fam *family, v *store.Version, dst, ciphertext []byte, aad *AAD, detached bool,
) ([]byte, error) {
	data := &fam.Data[0]
	if v.Alg == key.Imported {
		return nil, ErrOpen // it never sealed a message
	}
	k, err := r.messages(&fam.Family, data, v)
	if err != nil {
		return nil, err
	}
	plaintext, err := k.open(dst, ciphertext, aad, detached)
	if errors.Is(err, seal.ErrClosed) { // it was dropped from the cache just now
		if k, err = r.ownMessages(&fam.Family, data, v); err != nil {
			return nil, err
		}
		plaintext, err = k.open(dst, ciphertext, aad, detached)
	}
	k.release()
	if err != nil {
		return nil, ErrOpen
	}
	if k.kept && r.keeps {
		ref := key.Ref{Scope: fam.Root.Scope, Purpose: data.Purpose}
		name := hotName{what: versionWithKID, ref: ref, kid: k.messages.KID()}
		r.m.keepHot(before, &hotKey{hotName: name, messages: k.messages}, fam, v)
	}
	return plaintext, nil
}

func (o *opened) open(dst, ciphertext []byte, aad *AAD, detached bool) ([]byte, error) {
	if detached {
		return o.messages.OpenDetached(dst, ciphertext, &aad.parts)
	}
	return o.messages.Open(dst, ciphertext, &aad.parts)
}

// opening returns the version of data that id names, if it may open. A version of another key is not looked for.
func opening(data *store.Key, id key.ID) (*store.Version, error) {
	v, ok := versionByID(data, id)
	switch {
	case ok && v.State.Opens():
		return v, nil
	case ok:
		return nil, fmt.Errorf("key version %s is %v: %w", id, v.State, ErrDisabled)
	}
	for _, dead := range data.Tombstones {
		if dead.ID == id {
			return nil, fmt.Errorf("key version %s was destroyed: %w", id, ErrDisabled)
		}
	}
	return nil, ErrOpen
}
