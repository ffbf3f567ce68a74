// Package localroot is an external root that is one line of text, in a file or in an environment variable.
//
// It is for development, for tests, and for installations without a key management service. Whoever reads the line can
// open everything; whoever loses it, and every other root, can open nothing. The line and what it seals are those of
// docs/format.md, section 8.
package localroot

import (
	"context"
	"errors"
	"fmt"
	"io"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/reflect/protoreflect"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// WrapperType is what [Root.Type] returns.
const WrapperType wrapping.WrapperType = "keyhold-local"

// ErrOpen says that a blob was not sealed by this root with this AAD, or was changed. It is the same error for all of
// these; that a blob names another root, which is no secret, stands in its text.
var ErrOpen = errors.New("local root does not open this")

// Root is an opened local root. It implements [wrapping.Wrapper], prints as its id, and is safe for concurrent use.
type Root struct {
	id   string
	aad  []byte // the root's own key id, as the AAD has it
	xaes *seal.XAES
}

var _ wrapping.Wrapper = (*Root)(nil)

func newRoot(keyID []byte, k secret.Bytes) *Root {
	sealing := seal.Expand(k, envelope.Tuple("kh1/root-seal"))
	defer sealing.Clear()
	return &Root{id: idPrefix + key.Base32(keyID), aad: keyID, xaes: seal.NewXAES(sealing)}
}

// String is the root's id, which is not secret.
func (r *Root) String() string { return "local root " + r.id }

// Format implements [fmt.Formatter]: every verb prints what [Root.String] returns.
func (r *Root) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// Type returns [WrapperType].
func (r *Root) Type(context.Context) (wrapping.WrapperType, error) { return WrapperType, nil }

// KeyId returns the root's id: "khr_" and what its line begins with.
//
//nolint:revive // the interface has this name
func (r *Root) KeyId(context.Context) (string, error) { return r.id, nil }

// SetConfig is an error: a local root is complete when it is opened.
func (r *Root) SetConfig(context.Context, ...wrapping.Option) (*wrapping.WrapperConfig, error) {
	return nil, errors.New("configure local root: it takes no configuration, open it with another line instead")
}

// Encrypt seals plaintext, at most [envelope.MaxPlaintext] bytes; more is an [*envelope.TooLargeError]. The one option
// is [wrapping.WithAad]; any other is an error.
func (r *Root) Encrypt(_ context.Context, plaintext []byte, options ...wrapping.Option) (*wrapping.BlobInfo, error) {
	given, err := aadOf(options)
	if err != nil {
		return nil, fmt.Errorf("seal with %v: %w", r, err)
	}
	if len(plaintext) > envelope.MaxPlaintext {
		return nil, &envelope.TooLargeError{What: "plaintext", Size: len(plaintext), Limit: envelope.MaxPlaintext}
	}
	return &wrapping.BlobInfo{
		Ciphertext: r.xaes.Seal(nil, plaintext, r.bind(given)),
		KeyInfo:    &wrapping.KeyInfo{KeyId: r.id},
	}, nil
}

// Decrypt opens what [Root.Encrypt] returned, with the same AAD. The result is the caller's. The error is [ErrOpen] if
// it does not open, and another one for an option other than [wrapping.WithAad].
func (r *Root) Decrypt(_ context.Context, blob *wrapping.BlobInfo, options ...wrapping.Option) ([]byte, error) {
	given, err := aadOf(options)
	if err != nil {
		return nil, fmt.Errorf("open with %v: %w", r, err)
	}
	switch other := blob.GetKeyInfo().GetKeyId(); {
	case other == "":
		return nil, fmt.Errorf("open with %v: %w: it does not say which root sealed it", r, ErrOpen)
	case other != r.id:
		return nil, fmt.Errorf("open with %v: %w: it was sealed by %.64q", r, ErrOpen, other)
	}
	plaintext, err := r.xaes.Open(nil, blob.GetCiphertext(), r.bind(given))
	if err != nil {
		return nil, fmt.Errorf("open with %v: %w", r, ErrOpen)
	}
	return plaintext, nil
}

func (r *Root) bind(given []byte) []byte { return envelope.Tuple("kh1/root-aad", r.aad, given) }

// aadOf returns the AAD that options give, and refuses those that mean nothing here rather than ignore them.
func aadOf(options []wrapping.Option) ([]byte, error) {
	opts, err := wrapping.GetOpts(options...)
	if err != nil {
		return nil, err
	}
	given := opts.GetWithAad()
	opts.WithAad = nil
	opts.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		err = fmt.Errorf("option %s means nothing to a local root", field.Name())
		return false
	})
	if err != nil {
		return nil, err
	}
	return given, nil
}
