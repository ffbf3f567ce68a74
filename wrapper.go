package keyhold

import (
	"context"
	"errors"
	"fmt"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/reflect/protoreflect"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

const (
	// wrapperType is what a data key says of itself as a go-kms-wrapping Wrapper.
	wrapperType = wrapping.WrapperType("keyhold")

	// mechanism marks what such a Wrapper sealed (docs/format.md, section 5).
	mechanism = 0x6b6831
)

// keyWrapper is a key as a go-kms-wrapping Wrapper, or one version of it.
type keyWrapper struct {
	m    *Manager
	ref  key.Ref
	only key.ID // empty: seals with the head, opens with any
}

// Wrapper returns ref's key as a go-kms-wrapping Wrapper, for everything that takes one: it encrypts with the head of
// the moment, and decrypts with whichever version the blob names. WithAad is the context. A blob without a key id is
// refused, and so is every option that has no meaning for a key that is managed here ([ErrUnsupported]); nothing is
// ignored. The Wrapper is safe for concurrent use, and works as long as m is open.
//
// With an empty purpose it is the root key of the scope, to wrap keys of the application's own, and not for data: data
// has data keys, whose versions can be referenced, and which do not cost a query and an unwrapping at every call.
//
// Encrypt and Decrypt return the errors of [Manager.Seal] and [Manager.Open], [ErrUsedUp] and [ErrStale] among them,
// which a root key never has: it is read at every call. Wrapper takes the round trips of Seal, to check that there is
// such a key: its errors are those of Open, but [ErrOpen], and [ErrRolledBack].
func (m *Manager) Wrapper(ctx context.Context, ref key.Ref) (wrapping.Wrapper, error) {
	w := &keyWrapper{m: m, ref: ref}
	if _, err := w.KeyId(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

// VersionWrapper is [Manager.Wrapper] for one version of ref's key: KeyId is its id, whatever the head is; Decrypt
// refuses blobs of other versions with [ErrOpen]; Encrypt is [ErrState] as soon as another version is the head. It is
// for what tells wrappers apart by the key id that they had when they were added, such as multi.PooledWrapper.
func (m *Manager) VersionWrapper(ctx context.Context, ref key.Ref, id key.ID) (wrapping.Wrapper, error) {
	if err := errors.Join(ref.Validate(), id.Validate()); err != nil {
		return nil, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	_, v, err := m.hot(opens).keyWith(ctx, ref, id)
	switch {
	case errors.Is(err, ErrOpen):
		return nil, fmt.Errorf("%v has no version %s: %w", ref, id, ErrNotFound)
	case err != nil:
		return nil, err
	case v.Alg != key.Message && v.Alg != key.Imported:
		return nil, fmt.Errorf("%v is of alg %v: %w", ref, v.Alg, ErrPurpose)
	}
	return &keyWrapper{m: m, ref: ref, only: id}, nil
}

// keyWith reads ref's key, and the version of it that has the id, if that may open; or the head if id is empty. Only
// data keys are kept.
func (r reader) keyWith(ctx context.Context, ref key.Ref, id key.ID) (family, *store.Version, error) {
	if !ref.IsRoot() && id != "" {
		return r.dataKeyWith(ctx, ref, id)
	}
	var fam family
	var err error
	k := &fam.Root
	if ref.IsRoot() {
		fam, err = r.key(ctx, ref)
	} else if fam, _, err = r.dataKey(ctx, ref); err == nil {
		k = &fam.Data[0]
	}
	if err != nil {
		return fam, nil, err
	}
	if id == "" {
		head, _ := headOf(k)
		return fam, head, fam.notOlder()
	}
	v, err := opening(k, id)
	return fam, v, err
}

// Type is "keyhold".
func (w *keyWrapper) Type(context.Context) (wrapping.WrapperType, error) { return wrapperType, nil }

// KeyId is the id of the head version, or of the one version. It takes the round trips of [Manager.Seal].
func (w *keyWrapper) KeyId(ctx context.Context) (string, error) { //nolint:revive // the interface's spelling
	if w.only != "" {
		return string(w.only), nil
	}
	ctx, end, err := w.m.begin(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	_, head, err := w.m.hot(opens).keyWith(ctx, w.ref, "")
	if err != nil {
		return "", err
	}
	if head.Alg != key.Message {
		return "", fmt.Errorf("%v is of alg %v: %w", w.ref, head.Alg, ErrPurpose)
	}
	return string(head.ID), nil
}

// SetConfig is [ErrUnsupported]: what the key is, is in the database.
func (w *keyWrapper) SetConfig(context.Context, ...wrapping.Option) (*wrapping.WrapperConfig, error) {
	return nil, fmt.Errorf("SetConfig: %w", ErrUnsupported)
}

// Encrypt is [Manager.SealDetached].
func (w *keyWrapper) Encrypt(ctx context.Context, plaintext []byte, opts ...wrapping.Option) (*wrapping.BlobInfo, error) {
	aad, err := aadOf(opts)
	if err != nil {
		return nil, err
	}
	encrypt := w.m.SealDetached
	if w.ref.IsRoot() {
		encrypt = w.m.sealUnderRoot
	}
	id, sealed, err := encrypt(ctx, w.ref, plaintext, aad)
	if err != nil {
		return nil, err
	}
	if w.only != "" && id != w.only {
		return nil, fmt.Errorf("%w: version %s seals now, and %s only opens", ErrState, id, w.only)
	}
	return &wrapping.BlobInfo{
		Ciphertext: sealed,
		KeyInfo:    &wrapping.KeyInfo{KeyId: string(id), Mechanism: mechanism},
	}, nil
}

// Decrypt is [Manager.OpenDetached] with the version that the blob names; if that was imported, the blob is what
// go-kms-wrapping sealed with it before.
func (w *keyWrapper) Decrypt(ctx context.Context, blob *wrapping.BlobInfo, opts ...wrapping.Option) ([]byte, error) {
	aad, err := aadOf(opts)
	if err != nil {
		return nil, err
	}
	info := blob.GetKeyInfo()
	id := key.ID(info.GetKeyId())
	switch {
	case id == "":
		return nil, fmt.Errorf("%w: the blob names no key, and keys are not tried", ErrOpen)
	case len(blob.GetIv()) > 0 || len(blob.GetHmac()) > 0 || len(info.GetWrappedKey()) > 0:
		return nil, fmt.Errorf("%w: the blob has parts that keyhold does not make", ErrOpen)
	case w.only != "" && id != w.only:
		return nil, fmt.Errorf("%w: it was sealed with another version", ErrOpen)
	case info.GetMechanism() == mechanism && w.ref.IsRoot():
		return w.m.openUnderRoot(ctx, w.ref, id, blob.GetCiphertext(), aad)
	case info.GetMechanism() == mechanism:
		return w.m.OpenDetached(ctx, w.ref, id, blob.GetCiphertext(), aad)
	default:
		return w.m.openImported(ctx, w.ref, id, blob.GetCiphertext(), aad)
	}
}

// openImported opens what go-kms-wrapping's AES-GCM sealed, if id names a version that was imported; nothing else opens
// it.
func (m *Manager) openImported(
	ctx context.Context, ref key.Ref, id key.ID, ciphertext []byte, aad AAD,
) (_ []byte, err error) {
	defer func() {
		if err != nil {
			m.telemetry.refused(ctx, "open", ref.Purpose, err)
		}
	}()
	if err := aad.invalid(); err != nil {
		return nil, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	r := m.hot(opens)
	fam, v, err := r.keyWith(ctx, ref, id)
	if err != nil {
		return nil, err
	}
	if v.Alg != key.Imported {
		return nil, fmt.Errorf("%w: the blob was not sealed by keyhold", ErrOpen)
	}
	of := &fam.Root
	if !ref.IsRoot() {
		if err := usableParent(&fam.Family, v.Parent); err != nil {
			return nil, err
		}
		of = &fam.Data[0]
	}
	k, err := r.unwrap(&fam.Family, of, v)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	plaintext, err := k.OpenImported(ciphertext, aad.parts.Append(nil))
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}

// sealUnderRoot is [Manager.SealDetached] with a root key. What is opened for it is not kept.
func (m *Manager) sealUnderRoot(ctx context.Context, ref key.Ref, plaintext []byte, aad AAD) (key.ID, []byte, error) {
	if err := aad.invalid(); err != nil {
		return "", nil, err
	}
	if len(plaintext) > envelope.MaxPlaintext {
		return "", nil, fmt.Errorf("plaintext of %d bytes, the limit is %d: %w", len(plaintext), envelope.MaxPlaintext, ErrTooLarge)
	}
	id, sealed, err := m.underRoot(ctx, ref, "", func(k *seal.MessageKey) ([]byte, error) {
		return k.SealDetached(nil, plaintext, &aad.parts, m.epochs.mono())
	})
	if err != nil {
		return "", nil, err
	}
	return id, sealed, nil
}

// openUnderRoot is [Manager.OpenDetached] with a root key.
func (m *Manager) openUnderRoot(ctx context.Context, ref key.Ref, id key.ID, ciphertext []byte, aad AAD) ([]byte, error) {
	if err := aad.invalid(); err != nil {
		return nil, err
	}
	if msg, err := envelope.ParseMessage(ciphertext); err != nil || msg.Attached {
		return nil, fmt.Errorf("%w: it is not a detached keyhold message", ErrOpen)
	}
	_, plaintext, err := m.underRoot(ctx, ref, id, func(k *seal.MessageKey) ([]byte, error) {
		plaintext, err := k.OpenDetached(nil, ciphertext, &aad.parts)
		if err != nil {
			return nil, ErrOpen
		}
		return plaintext, nil
	})
	return plaintext, err
}

func (m *Manager) underRoot(
	ctx context.Context, ref key.Ref, id key.ID, do func(*seal.MessageKey) ([]byte, error),
) (_ key.ID, _ []byte, err error) {
	defer func() {
		if err != nil && id == "" {
			m.telemetry.refused(ctx, "seal", "", err)
		} else if err != nil {
			m.telemetry.refused(ctx, "open", "", err)
		}
	}()
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return "", nil, err
	}
	defer end()
	r := m.committed()
	fam, v, err := r.keyWith(ctx, ref, id)
	if err != nil {
		return "", nil, err
	}
	if v.Alg != key.Message {
		return "", nil, ErrOpen // imported; a head is never
	}
	k, err := r.unwrap(&fam.Family, &fam.Root, v)
	if err != nil {
		return "", nil, err
	}
	defer k.Close()
	messages, err := k.Messages()
	if err != nil {
		return "", nil, err
	}
	defer messages.Close()
	out, err := do(messages)
	return v.ID, out, err
}

// aadOf reads the only option that means something here.
func aadOf(opts []wrapping.Option) (AAD, error) {
	o, err := wrapping.GetOpts(opts...)
	if err != nil {
		return AAD{}, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	var other string
	o.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if field.Name() != "with_aad" {
			other = string(field.Name())
		}
		return other == ""
	})
	if other != "" {
		return AAD{}, fmt.Errorf("option %s: %w", other, ErrUnsupported)
	}
	return Context(string(o.GetWithAad())), nil
}
