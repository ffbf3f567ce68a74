package keyhold

import (
	"context"
	"errors"
	"fmt"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Seal encrypts plaintext with the head of ref's key, bound to aad. The result holds the key version's id, and is 58
// bytes longer than the plaintext. It belongs to the caller; plaintext may be nil, and is not kept.
//
// It takes no round trip where the key was used before, one where it was not, and one besides for all calls within 5 s;
// see [Config.Strict]. Where the key is in use it takes no lock, but a short one after an answer of the database, and
// allocates the result alone.
//
// Errors: [ErrNotFound] for an unknown scope or purpose; [ErrPurpose]; [ErrTooLarge]; [*InvalidError] for a malformed
// name; [ErrUsedUp] if the key's policy limits its messages, and there are none left; [ErrRolledBack];
// [*IntegrityError]; [ErrUnavailable] if the database is away and what is at hand does not do without it. That comes
// with [ErrStale] if the database has been away for [Config.SealFor], and with ErrUsedUp if only this process's part of
// the messages is used up.
func (m *Manager) Seal(ctx context.Context, ref key.Ref, plaintext []byte, aad AAD) ([]byte, error) {
	return m.appendSeal(ctx, nil, ref, plaintext, &aad)
}

// AppendSeal is [Manager.Seal] that appends to dst, and returns the longer slice: with room for the result in dst it
// allocates nothing where the key is in use. plaintext and the capacity of dst must overlap exactly (plaintext[:0] as
// dst) or not at all. After an error the result is nil, and what dst had is as it was.
func (m *Manager) AppendSeal(ctx context.Context, dst []byte, ref key.Ref, plaintext []byte, aad AAD) ([]byte, error) {
	return m.appendSeal(ctx, dst, ref, plaintext, &aad)
}

func (m *Manager) appendSeal(ctx context.Context, dst []byte, ref key.Ref, plaintext []byte, aad *AAD) ([]byte, error) {
	if h, at := m.hotSealing(ref, plaintext, aad); h != nil {
		if sealed, err := h.messages.Seal(dst, plaintext, &aad.parts, at); err == nil {
			return sealed, nil
		}
	}
	_, sealed, err := m.seal(ctx, m.hot(seals), dst, ref, plaintext, *aad, false)
	return sealed, err
}

// SealDetached is [Manager.Seal] for ciphertext in a table: the key version's id comes by itself, for a column that
// references kms_data_key_version(private_id), and the ciphertext is only 42 bytes longer than the plaintext.
func (m *Manager) SealDetached(ctx context.Context, ref key.Ref, plaintext []byte, aad AAD) (key.ID, []byte, error) {
	if h, at := m.hotSealing(ref, plaintext, &aad); h != nil {
		if sealed, err := h.messages.SealDetached(nil, plaintext, &aad.parts, at); err == nil {
			return h.id, sealed, nil
		}
	}
	return m.seal(ctx, m.hot(seals), nil, ref, plaintext, aad, true)
}

// SealTx is [Manager.Seal] with the keys that the application's transaction sees, which it may have made itself. What
// it sealed with a key that is rolled back opens nowhere. It reads its key each time, so there is no [ErrStale] and no
// [ErrRolledBack]. Of a key with a limit it takes a message that this process has, which counts in any case, or else
// one in the transaction. After [ErrUnavailable] and [ErrUnknownOutcome] that has to be rolled back.
func (m *Manager) SealTx(ctx context.Context, tx store.Tx, ref key.Ref, plaintext []byte, aad AAD) ([]byte, error) {
	_, sealed, err := m.seal(ctx, m.inside(tx), nil, ref, plaintext, aad, false)
	return sealed, err
}

// SealDetachedTx is [Manager.SealDetached] with the keys that the application's transaction sees; see [Manager.SealTx].
func (m *Manager) SealDetachedTx(ctx context.Context, tx store.Tx, ref key.Ref, plaintext []byte, aad AAD) (key.ID, []byte, error) {
	return m.seal(ctx, m.inside(tx), nil, ref, plaintext, aad, true)
}

// hotSealing returns the head of ref's key, if it is in use and may seal one message more, which it takes.
func (m *Manager) hotSealing(ref key.Ref, plaintext []byte, aad *AAD) (*hotKey, time.Duration) {
	if aad.err != nil || len(plaintext) > envelope.MaxPlaintext {
		return nil, 0
	}
	name := hotName{what: headOfRef, ref: ref}
	h, at := m.hotKey(&name)
	if h == nil || h.messages == nil || h.budget != nil && !h.budget.shards[anyShard()].take() {
		return nil, 0
	}
	m.telemetry.hits.add()
	return h, at
}

// seal appends to dst, and says what it sealed with. It does not keep dst or plaintext.
func (m *Manager) seal(
	ctx context.Context, r reader, dst []byte, ref key.Ref, plaintext []byte, aad AAD, detached bool,
) (key.ID, []byte, error) {
	id, sealed, err := m.trySeal(ctx, r, dst, ref, plaintext, aad, detached)
	if err != nil {
		m.telemetry.refused(ctx, "seal", ref.Purpose, err)
	}
	return id, sealed, err
}

func (m *Manager) trySeal(
	ctx context.Context, r reader, dst []byte, ref key.Ref, plaintext []byte, aad AAD, detached bool,
) (key.ID, []byte, error) {
	if aad.err != nil {
		return "", nil, aad.invalid()
	}
	if len(plaintext) > envelope.MaxPlaintext {
		return "", nil, fmt.Errorf("plaintext of %d bytes, the limit is %d: %w", len(plaintext), envelope.MaxPlaintext, ErrTooLarge)
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return "", nil, err
	}
	defer end()
	before := m.counts()
	fam, head, err := r.sealingKey(ctx, ref)
	if err != nil {
		return "", nil, err
	}
	k, err := r.messages(&fam.Family, &fam.Data[0], head)
	if err != nil {
		return "", nil, err
	}
	sealed, err := k.seal(dst, plaintext, &aad, m.epochs.mono(), detached)
	if errors.Is(err, seal.ErrClosed) { // it was dropped from the cache just now
		if k, err = r.ownMessages(&fam.Family, &fam.Data[0], head); err != nil {
			return "", nil, err
		}
		sealed, err = k.seal(dst, plaintext, &aad, m.epochs.mono(), detached)
	}
	k.release()
	if err != nil {
		return "", nil, fmt.Errorf("seal with %s: %w", head.ID, err)
	}
	if k.kept && r.keeps {
		h := &hotKey{hotName: hotName{what: headOfRef, ref: ref}, messages: k.messages}
		if fam.Data[0].MaxMessages > 0 {
			h.budget = m.cache.budget(head.ID)
		}
		m.keepHot(before, h, &fam, head)
	}
	return head.ID, sealed, nil
}

func (o *opened) seal(dst, plaintext []byte, aad *AAD, at time.Duration, detached bool) ([]byte, error) {
	if detached {
		return o.messages.SealDetached(dst, plaintext, &aad.parts, at)
	}
	return o.messages.Seal(dst, plaintext, &aad.parts, at)
}

// sealingKey reads the data key that seals, and its head, which may seal one message more. Where it may not, because it
// has sealed all that its policy allows, the database is asked once whether there is another head by now; not where it
// was found away just then.
func (r reader) sealingKey(ctx context.Context, ref key.Ref) (family, *store.Version, error) {
	fam, head, kept, err := r.sealingHead(ctx, ref)
	if !kept || !errors.Is(err, ErrUsedUp) || errors.Is(err, ErrUnavailable) {
		return fam, head, err
	}
	if err := r.m.epochs.renew(ctx); err != nil {
		return fam, head, err
	}
	fam, head, _, err = r.sealingHead(ctx, ref)
	return fam, head, err
}

func (r reader) sealingHead(ctx context.Context, ref key.Ref) (fam family, head *store.Version, kept bool, err error) {
	if fam, kept, err = r.dataKey(ctx, ref); err != nil {
		return fam, nil, kept, err
	}
	data := &fam.Data[0]
	head, _ = headOf(data) // its being there and active was checked with the manifest
	if err := fam.notOlder(); err != nil {
		return fam, head, kept, err
	}
	if err := r.timely(&fam.Family, data); err != nil {
		return fam, head, kept, err
	}
	return fam, head, kept, r.spend(ctx, data, head)
}
