package keyhold

import (
	"context"
	"fmt"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/reflect/protoreflect"

	"keyhold.example/keyhold/key"
)

const (
	// wrapperType is what a data key says of itself as a go-kms-wrapping Wrapper.
	wrapperType = wrapping.WrapperType("keyhold")

	// mechanism marks what such a Wrapper sealed (docs/format.md, section 5).
	mechanism = 0x6b6831
)

// dataKeyWrapper is a data key as a go-kms-wrapping Wrapper.
type dataKeyWrapper struct {
	m   *Manager
	ref key.Ref
}

// Wrapper returns ref's key as a go-kms-wrapping Wrapper, for everything that takes one: it encrypts with the head of
// the moment, and decrypts with whichever version the blob names. WithAad is the context. A blob without a key id is
// refused, and so is every option that has no meaning for a key that is managed here ([ErrUnsupported]); nothing is
// ignored. The Wrapper is safe for concurrent use, and works as long as m is open.
//
// Encrypt and Decrypt return the errors of [Manager.Seal] and [Manager.Open]. It takes the round trips of Seal,
// to check that there is such a key.
func (m *Manager) Wrapper(ctx context.Context, ref key.Ref) (wrapping.Wrapper, error) {
	w := &dataKeyWrapper{m: m, ref: ref}
	if _, err := w.head(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *dataKeyWrapper) head(ctx context.Context) (key.ID, error) {
	ctx, end, err := w.m.begin(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	fam, _, err := w.m.hot().dataKey(ctx, w.ref)
	if err != nil {
		return "", err
	}
	head, _ := headOf(&fam.Data[0])
	if head.Alg != key.Message {
		return "", fmt.Errorf("%v is of alg %v: %w", w.ref, head.Alg, ErrPurpose)
	}
	return head.ID, nil
}

// Type is "keyhold".
func (w *dataKeyWrapper) Type(context.Context) (wrapping.WrapperType, error) { return wrapperType, nil }

// KeyId is the id of the head version. It takes the round trips of [Manager.Seal].
func (w *dataKeyWrapper) KeyId(ctx context.Context) (string, error) { //nolint:revive // the interface's spelling
	id, err := w.head(ctx)
	return string(id), err
}

// SetConfig is [ErrUnsupported]: what the key is, is in the database.
func (w *dataKeyWrapper) SetConfig(context.Context, ...wrapping.Option) (*wrapping.WrapperConfig, error) {
	return nil, fmt.Errorf("SetConfig: %w", ErrUnsupported)
}

// Encrypt is [Manager.SealDetached].
func (w *dataKeyWrapper) Encrypt(ctx context.Context, plaintext []byte, opts ...wrapping.Option) (*wrapping.BlobInfo, error) {
	aad, err := aadOf(opts)
	if err != nil {
		return nil, err
	}
	id, sealed, err := w.m.SealDetached(ctx, w.ref, plaintext, aad)
	if err != nil {
		return nil, err
	}
	return &wrapping.BlobInfo{
		Ciphertext: sealed,
		KeyInfo:    &wrapping.KeyInfo{KeyId: string(id), Mechanism: mechanism},
	}, nil
}

// Decrypt is [Manager.OpenDetached] with the version that the blob names; if that was imported, the blob is what
// go-kms-wrapping sealed with it before.
func (w *dataKeyWrapper) Decrypt(ctx context.Context, blob *wrapping.BlobInfo, opts ...wrapping.Option) ([]byte, error) {
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
	case info.GetMechanism() == mechanism:
		return w.m.OpenDetached(ctx, w.ref, id, blob.GetCiphertext(), aad)
	default:
		return w.m.openImported(ctx, w.ref, id, blob.GetCiphertext(), aad)
	}
}

// openImported opens what go-kms-wrapping's AES-GCM sealed, if id names a version that was imported; nothing else opens
// it.
func (m *Manager) openImported(ctx context.Context, ref key.Ref, id key.ID, ciphertext []byte, aad AAD) ([]byte, error) {
	text, err := aad.value()
	if err != nil {
		return nil, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	r := m.hot()
	fam, v, err := r.dataKeyWith(ctx, ref, id)
	if err != nil {
		return nil, err
	}
	if v.Alg != key.Imported {
		return nil, fmt.Errorf("%w: the blob was not sealed by keyhold", ErrOpen)
	}
	if err := usableParent(&fam.Family, v.Parent); err != nil {
		return nil, err
	}
	k, err := r.unwrap(&fam.Family, &fam.Data[0], v)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	plaintext, err := k.OpenImported(ciphertext, []byte(text))
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
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
