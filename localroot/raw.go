package localroot

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// RawWrapperType is what [RawRoot.Type] returns.
const RawWrapperType wrapping.WrapperType = "keyhold-raw"

const labelPrefix = "khm_"

// RawRoot is an external root that is 32 bytes which somebody has already, such as a master key from a secret manager.
// It implements [wrapping.Wrapper], prints as "raw root [redacted]", and is safe for concurrent use. What it seals is
// that of docs/format.md, section 8.
//
// Unlike [Root] it has no id of its own, as one computed from the key would have to be stored, and would let whoever
// reads it test guesses of the key. Which key a slot belongs to shows only when it is opened. The bytes have to be
// random: a password in their place can be guessed by whoever has the database.
type RawRoot struct {
	xaes *seal.XAES
}

var _ wrapping.Wrapper = (*RawRoot)(nil)

// FromBytes opens the raw root that mek is: exactly 32 bytes. They are copied; mek stays the caller's, who may clear
// it. The error is [ErrNotLocalRoot], and says how many bytes there were.
func FromBytes(mek []byte) (*RawRoot, error) {
	if len(mek) != envelope.KeySize {
		return nil, fmt.Errorf("%w: a raw key has to have %d bytes, this one has %d", ErrNotLocalRoot, envelope.KeySize, len(mek))
	}
	k := secret.New(bytes.Clone(mek))
	defer k.Clear()
	sealing := seal.Expand(k, envelope.Tuple("kh1/raw-root-seal"))
	defer sealing.Clear()
	return &RawRoot{xaes: seal.NewXAES(sealing)}, nil
}

// FromRawFile opens the raw root that [ReadRaw] reads. The errors are those of [ReadRaw].
func FromRawFile(path string) (*RawRoot, error) {
	mek, err := ReadRaw(path)
	if err != nil {
		return nil, err
	}
	defer clear(mek)
	return FromBytes(mek)
}

// ReadRaw returns the 32 bytes in a file, which holds them and nothing else, or one line with their base64: that of RFC
// 4648, section 4, which has 44 characters; white space around it is ignored. They are the caller's, who should clear
// them. The errors are those of reading the file, such as [os.ErrNotExist], and [ErrNotLocalRoot], which never shows
// what is in the file. As with [Open], the permissions of the file are not looked at.
func ReadRaw(path string) ([]byte, error) {
	content, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read raw root: %w", err)
	}
	defer clear(content)
	mek, err := parseRaw(content)
	if err != nil {
		return nil, fmt.Errorf("read raw root from %s: %w", path, err)
	}
	return mek, nil
}

// parseRaw returns a new slice with the 32 bytes that a file's content says.
func parseRaw(content []byte) ([]byte, error) {
	if len(content) == envelope.KeySize {
		return bytes.Clone(content), nil
	}
	line := bytes.TrimSpace(content)
	text := base64.StdEncoding.Strict()
	mek := make([]byte, text.DecodedLen(len(line)))
	n, err := text.Decode(mek, line)
	switch {
	case err == nil && n == envelope.KeySize && !bytes.ContainsAny(line, "\r\n"): // which base64 would pass over
		return mek[:n], nil
	case len(line) == envelope.KeySize:
		err = fmt.Errorf("%w: it has %d bytes and white space around them; if they are the key, write them to the file alone",
			ErrNotLocalRoot, envelope.KeySize)
	default:
		err = fmt.Errorf("%w: the file has to hold %d bytes, or their base64 in one line, and holds %d bytes",
			ErrNotLocalRoot, envelope.KeySize, len(content))
	}
	clear(mek)
	return nil, err
}

// String says what it is, and nothing of the key.
func (r *RawRoot) String() string { return "raw root " + secret.Redacted }

// Format implements [fmt.Formatter]: every verb prints what [RawRoot.String] returns.
func (r *RawRoot) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// Type returns [RawWrapperType].
func (r *RawRoot) Type(context.Context) (wrapping.WrapperType, error) { return RawWrapperType, nil }

// KeyId is empty: a raw root has no id.
//
//nolint:revive // the interface has this name
func (r *RawRoot) KeyId(context.Context) (string, error) { return "", nil }

// SetConfig is an error: a raw root is complete when it is opened.
func (r *RawRoot) SetConfig(context.Context, ...wrapping.Option) (*wrapping.WrapperConfig, error) {
	return nil, errors.New("configure raw root: it takes no configuration, open it with other bytes instead")
}

// Encrypt seals plaintext, at most [envelope.MaxPlaintext] bytes; more is an [*envelope.TooLargeError]. The one option
// is [wrapping.WithAad]; any other is an error. The blob's key id is a random label, "khm_" and 13 characters, by which
// people can tell two blobs apart; it says nothing of the key.
func (r *RawRoot) Encrypt(_ context.Context, plaintext []byte, options ...wrapping.Option) (*wrapping.BlobInfo, error) {
	given, err := aadOf(options)
	if err != nil {
		return nil, fmt.Errorf("seal with %v: %w", r, err)
	}
	if len(plaintext) > envelope.MaxPlaintext {
		return nil, &envelope.TooLargeError{What: "plaintext", Size: len(plaintext), Limit: envelope.MaxPlaintext}
	}
	return &wrapping.BlobInfo{
		Ciphertext: r.xaes.Seal(nil, plaintext, bindRaw(given)),
		KeyInfo:    &wrapping.KeyInfo{KeyId: labelPrefix + key.Base32(seal.Random(8).Reveal())},
	}, nil
}

// Decrypt opens what [RawRoot.Encrypt] returned, with the same bytes and AAD; the blob's key id is not looked at. The
// result is the caller's. The error is [ErrOpen] if it does not open, and another one for an option other than
// [wrapping.WithAad].
func (r *RawRoot) Decrypt(_ context.Context, blob *wrapping.BlobInfo, options ...wrapping.Option) ([]byte, error) {
	given, err := aadOf(options)
	if err != nil {
		return nil, fmt.Errorf("open with %v: %w", r, err)
	}
	plaintext, err := r.xaes.Open(nil, blob.GetCiphertext(), bindRaw(given))
	if err != nil {
		return nil, fmt.Errorf("open with %v: %w: other bytes sealed it, or it was changed", r, ErrOpen)
	}
	return plaintext, nil
}

func bindRaw(given []byte) []byte { return envelope.Tuple("kh1/raw-root-aad", given) }
