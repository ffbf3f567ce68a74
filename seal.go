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
// see [Config.Strict].
//
// Errors: [ErrNotFound] for an unknown scope or purpose; [ErrPurpose]; [ErrTooLarge]; [*InvalidError] for a malformed
// name; [ErrUsedUp] if the key's policy limits its messages, and there are none left; [ErrRolledBack];
// [*IntegrityError]; [ErrUnavailable] if the database is away and what is at hand does not do without it. That comes
// with [ErrStale] if the database has been away for [Config.SealFor], and with ErrUsedUp if only this process's part of
// the messages is used up.
func (m *Manager) Seal(ctx context.Context, ref key.Ref, plaintext []byte, aad AAD) ([]byte, error) {
	_, sealed, err := m.seal(ctx, m.hot(seals), ref, plaintext, aad, (*seal.MessageKey).Seal)
	return sealed, err
}

// SealDetached is [Manager.Seal] for ciphertext in a table: the key version's id comes by itself, for a column that
// references kms_data_key_version(private_id), and the ciphertext is only 42 bytes longer than the plaintext.
func (m *Manager) SealDetached(ctx context.Context, ref key.Ref, plaintext []byte, aad AAD) (key.ID, []byte, error) {
	return m.seal(ctx, m.hot(seals), ref, plaintext, aad, (*seal.MessageKey).SealDetached)
}

// SealTx is [Manager.Seal] with the keys that the application's transaction sees, which it may have made itself. What
// it sealed with a key that is rolled back opens nowhere. It reads its key each time, so there is no [ErrStale] and no
// [ErrRolledBack]. Of a key with a limit it takes a message that this process has, which counts in any case, or else
// one in the transaction. After [ErrUnavailable] and [ErrUnknownOutcome] that has to be rolled back.
func (m *Manager) SealTx(ctx context.Context, tx store.Tx, ref key.Ref, plaintext []byte, aad AAD) ([]byte, error) {
	_, sealed, err := m.seal(ctx, m.inside(tx), ref, plaintext, aad, (*seal.MessageKey).Seal)
	return sealed, err
}

// SealDetachedTx is [Manager.SealDetached] with the keys that the application's transaction sees; see [Manager.SealTx].
func (m *Manager) SealDetachedTx(ctx context.Context, tx store.Tx, ref key.Ref, plaintext []byte, aad AAD) (key.ID, []byte, error) {
	return m.seal(ctx, m.inside(tx), ref, plaintext, aad, (*seal.MessageKey).SealDetached)
}

type sealFunc func(k *seal.MessageKey, dst, plaintext []byte, c *envelope.Parts, at time.Duration) ([]byte, error)

func (m *Manager) seal(
	ctx context.Context, r reader, ref key.Ref, plaintext []byte, aad AAD, do sealFunc,
) (key.ID, []byte, error) {
	id, sealed, err := m.trySeal(ctx, r, ref, plaintext, aad, do)
	if err != nil {
		m.telemetry.refused(ctx, "seal", ref.Purpose, err)
	}
	return id, sealed, err
}

func (m *Manager) trySeal(
	ctx context.Context, r reader, ref key.Ref, plaintext []byte, aad AAD, do sealFunc,
) (key.ID, []byte, error) {
	text, err := aad.value()
	if err != nil {
		return "", nil, err
	}
	if len(plaintext) > envelope.MaxPlaintext {
		return "", nil, fmt.Errorf("plaintext of %d bytes, the limit is %d: %w", len(plaintext), envelope.MaxPlaintext, ErrTooLarge)
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return "", nil, err
	}
	defer end()
	fam, head, err := r.sealingKey(ctx, ref)
	if err != nil {
		return "", nil, err
	}
	c, at := envelope.WholeContext(text), m.epochs.mono()
	sealed, err := r.withMessages(&fam.Family, &fam.Data[0], head, func(k *seal.MessageKey) ([]byte, error) {
		sealed, err := do(k, nil, plaintext, &c, at)
		if err != nil {
			return nil, fmt.Errorf("seal with %s: %w", head.ID, err)
		}
		return sealed, nil
	})
	if err != nil {
		return "", nil, err
	}
	return head.ID, sealed, nil
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

// Open decrypts what [Manager.Seal] made with any version of ref's key, given the same aad. The result belongs to the
// caller.
//
// It takes the round trips of Seal; two, and 100 ms at most, where the version is one that m has not seen yet.
//
// Errors: [ErrOpen] if it does not open here, for whatever reason; [ErrDisabled] if its key version is disabled or
// destroyed; [ErrNotFound] for an unknown scope or purpose; [*InvalidError] for a malformed name; [ErrPurpose];
// [*IntegrityError]; [ErrUnavailable] if the database is away and what is at hand does not do without it, with
// [ErrStale] if it has been away for [Config.OpenFor]. A key that has sealed all that it may, or that was rolled back,
// opens.
func (m *Manager) Open(ctx context.Context, ref key.Ref, ciphertext []byte, aad AAD) ([]byte, error) {
	return m.openAttached(ctx, m.hot(opens), ref, ciphertext, aad)
}

// OpenTx is [Manager.Open] with the keys that the application's transaction sees. It reads them each time, so there is
// no [ErrStale]. After [ErrUnavailable] the transaction has to be rolled back.
func (m *Manager) OpenTx(ctx context.Context, tx store.Tx, ref key.Ref, ciphertext []byte, aad AAD) ([]byte, error) {
	return m.openAttached(ctx, m.inside(tx), ref, ciphertext, aad)
}

// OpenDetached is [Manager.Open] for what [Manager.SealDetached] made; id is the key version's id that came with it.
func (m *Manager) OpenDetached(ctx context.Context, ref key.Ref, id key.ID, ciphertext []byte, aad AAD) ([]byte, error) {
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
	text, err := aad.value()
	if err != nil {
		return nil, key.Ref{}, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, key.Ref{}, err
	}
	defer end()
	r := m.hot(opens)
	fam, v, err := r.keyOfOpening(ctx, key.VersionID(key.DEK, msg.KID))
	if errors.Is(err, store.ErrNotFound) {
		err = ErrOpen
	}
	if err != nil {
		return nil, key.Ref{}, err
	}
	plaintext, err := r.openVersion(&fam.Family, v, ciphertext, text, (*seal.MessageKey).Open)
	if err != nil {
		return nil, key.Ref{}, err
	}
	return plaintext, key.Ref{Scope: fam.Root.Scope, Purpose: fam.Data[0].Purpose}, nil
}

type openFunc func(k *seal.MessageKey, dst, ciphertext []byte, c *envelope.Parts) ([]byte, error)

func (m *Manager) openAttached(ctx context.Context, r reader, ref key.Ref, ciphertext []byte, aad AAD) ([]byte, error) {
	msg, err := attached(ciphertext)
	if err != nil {
		m.telemetry.refused(ctx, "open", "", err)
		return nil, err
	}
	return m.open(ctx, r, ref, key.VersionID(key.DEK, msg.KID), ciphertext, aad, (*seal.MessageKey).Open)
}

func (m *Manager) openDetached(
	ctx context.Context, r reader, ref key.Ref, id key.ID, ciphertext []byte, aad AAD,
) ([]byte, error) {
	err := id.Validate()
	if msg, wrong := envelope.ParseMessage(ciphertext); err == nil && (wrong != nil || msg.Attached) {
		err = fmt.Errorf("%w: it is not a detached keyhold message", ErrOpen)
	}
	if err != nil {
		m.telemetry.refused(ctx, "open", "", err)
		return nil, err
	}
	return m.open(ctx, r, ref, id, ciphertext, aad, (*seal.MessageKey).OpenDetached)
}

func attached(ciphertext []byte) (envelope.Message, error) {
	msg, err := envelope.ParseMessage(ciphertext)
	if err != nil || !msg.Attached {
		return msg, fmt.Errorf("%w: it is not a keyhold message with a key id", ErrOpen)
	}
	return msg, nil
}

func (m *Manager) open(
	ctx context.Context, r reader, ref key.Ref, id key.ID, ciphertext []byte, aad AAD, do openFunc,
) ([]byte, error) {
	plaintext, err := m.tryOpen(ctx, r, ref, id, ciphertext, aad, do)
	if err != nil {
		m.telemetry.refused(ctx, "open", ref.Purpose, err)
	}
	return plaintext, err
}

func (m *Manager) tryOpen(
	ctx context.Context, r reader, ref key.Ref, id key.ID, ciphertext []byte, aad AAD, do openFunc,
) ([]byte, error) {
	text, err := aad.value()
	if err != nil {
		return nil, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	fam, v, err := r.dataKeyWith(ctx, ref, id)
	if err != nil {
		return nil, err
	}
	return r.openVersion(&fam.Family, v, ciphertext, text, do)
}

// openVersion opens a message with a version of fam's data key.
func (r reader) openVersion(fam *store.Family, v *store.Version, ciphertext []byte, text string, do openFunc) ([]byte, error) {
	data := &fam.Data[0]
	if v.Alg == key.Imported {
		return nil, ErrOpen // it never sealed a message
	}
	c := envelope.WholeContext(text)
	plaintext, err := r.withMessages(fam, data, v, func(k *seal.MessageKey) ([]byte, error) {
		return do(k, nil, ciphertext, &c)
	})
	if errors.Is(err, seal.ErrOpen) {
		return nil, ErrOpen
	}
	return plaintext, err
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

// BlindIndex returns the first size bytes (4 to 32) of a keyed hash of value, for a column to search in: equal values
// of one index have equal results. ref names a key of [Config.IndexPurposes], name the index (1 to 255 bytes). Whoever
// sees the column sees which rows are equal and how often.
//
// After a rotation of the key new results differ from old ones; search for both until the column is written anew. It
// takes the round trips of [Manager.Seal], and has the errors of [Manager.Open], but [ErrOpen], and [ErrRolledBack].
func (m *Manager) BlindIndex(ctx context.Context, ref key.Ref, name string, value []byte, size int) ([]byte, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	r := m.hot(opens)
	fam, _, err := r.dataKey(ctx, ref)
	if err != nil {
		return nil, err
	}
	data := &fam.Data[0]
	head, _ := headOf(data)
	if head.Alg != key.BlindIndex {
		return nil, fmt.Errorf("%s is of alg %v: %w", describe(data), head.Alg, ErrPurpose)
	}
	if err := errors.Join(fam.notOlder(), usableParent(&fam.Family, head.Parent)); err != nil {
		return nil, err
	}
	k, err := r.unwrap(&fam.Family, data, head)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	return k.BlindIndex(name, value, size)
}
