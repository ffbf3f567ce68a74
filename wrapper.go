package keyhold

import (
	"context"
	"fmt"
	"strconv"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

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
// Encrypt and Decrypt return the errors of [Manager.Seal] and [Manager.Open]. It takes one round trip, to check that
// there is such a key.
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
	fam, err := w.m.committed().dataKey(ctx, w.ref)
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

// KeyId is the id of the head version. It takes one round trip.
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

// Decrypt is [Manager.OpenDetached] with the version that the blob names.
func (w *dataKeyWrapper) Decrypt(ctx context.Context, blob *wrapping.BlobInfo, opts ...wrapping.Option) ([]byte, error) {
	aad, err := aadOf(opts)
	if err != nil {
		return nil, err
	}
	info := blob.GetKeyInfo()
	switch {
	case info.GetKeyId() == "":
		return nil, fmt.Errorf("%w: the blob names no key, and keys are not tried", ErrOpen)
	case info.GetMechanism() != mechanism:
		return nil, fmt.Errorf("%w: the blob was not sealed by keyhold", ErrOpen)
	case len(blob.GetIv()) > 0 || len(blob.GetHmac()) > 0 || len(info.GetWrappedKey()) > 0:
		return nil, fmt.Errorf("%w: the blob has parts that keyhold does not make", ErrOpen)
	}
	return w.m.OpenDetached(ctx, w.ref, key.ID(info.GetKeyId()), blob.GetCiphertext(), aad)
}

// aadOf reads the only option that means something here.
func aadOf(opts []wrapping.Option) (AAD, error) {
	o, err := wrapping.GetOpts(opts...)
	if err != nil {
		return AAD{}, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	var other string
	switch {
	case o.GetWithKeyId() != "":
		other = "WithKeyId"
	case len(o.GetWithIv()) > 0:
		other = "WithIV"
	case len(o.GetWithConfigMap()) > 0:
		other = "WithConfigMap"
	case len(o.GetWithKeyPurposes()) > 0:
		other = "WithKeyPurposes"
	case o.GetWithKeyType() != wrapping.KeyType_Unknown_KeyType:
		other = "WithKeyType " + strconv.Itoa(int(o.GetWithKeyType()))
	case len(o.GetWithRandomBytes()) > 0:
		other = "WithRandomBytes"
	case o.GetWithKeyEncoding() != 0:
		other = "WithKeyEncoding"
	case o.GetWithWrappedKeyEncoding() != 0:
		other = "WithWrappedKeyEncoding"
	case o.GetWithDisallowEnvVars():
		other = "WithDisallowEnvVars"
	case o.GetWithoutHmac():
		other = "WithoutHMAC"
	}
	if other != "" {
		return AAD{}, fmt.Errorf("option %s: %w", other, ErrUnsupported)
	}
	return Context(string(o.GetWithAad())), nil
}
