// Package roots opens an external root by its address, such as transit:KEY or awskms:arn:aws:kms:....
//
// docs/roots.md has the addresses, and where each vendor's credentials come from: never from the address. The vendors'
// wrappers are go-kms-wrapping's. They differ in whether they end with their context, panic, print, name the key that
// they open with, and in how they word an error; what this package returns does not.
package roots

import (
	"context"
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold/localroot"
)

// Root is an open external root. It is a [wrapping.Wrapper], prints as its address, and is safe for concurrent use.
//
// The errors of Encrypt and Decrypt are one sentence that begins with the vendor's name, holds nothing secret, and is
// one of the kinds that this package names; those of a local root are its own. They return when ctx ends, with its
// error and [ErrUnreachable]. A call takes one round trip; two for Encrypt of ocikms.
type Root struct {
	// Shown is the address that the root was opened by. It is safe to print.
	Shown string

	vendor vendor
}

var _ wrapping.Wrapper = (*Root)(nil)

// vendor is a provider's wrapper and what has to be known to use it.
type vendor struct {
	wrapper wrapping.Wrapper
	// keyID is the same at all times; empty: it is what the wrapper says.
	keyID string
	// sealed says whether a blob that names this key was sealed by it, as far as its name says; nil: nobody can tell.
	sealed func(keyID string) bool
	// envelope: the wrapper seals with a key of its own that the vendor's key wraps.
	envelope bool
	// explain makes a sentence of an error of the wrapper. Nil: its errors are such sentences.
	explain func(operation string, err error) error
	// begin waits until the wrapper can be called, and has the call end with ctx. Nil: the wrapper does that by itself.
	begin func(ctx context.Context) (end func(), err error)
	close func(context.Context) error
	// detached: the library does not see that ctx ends, as it reads and writes the same at once then.
	detached bool
	// inline: no call leaves the process, so that none is waited for.
	inline bool
}

// provider is how the addresses of a scheme are written, and opened.
type provider struct {
	form     string   // one line, for who wrote it wrong
	settings []string // what may stand behind the question mark
	check    func(address) bool
	open     func(context.Context, address) (vendor, error)
	// ownNonces: the wrapper chooses nonces of AES-GCM itself, which a process that enforces FIPS 140-3 refuses.
	ownNonces bool
}

func providers() map[string]provider {
	return map[string]provider{
		"transit": transitProvider(), "awskms": awsProvider(), "gcpckms": gcpProvider(), "azurekeyvault": azureProvider(),
		"ocikms": ociProvider(), "alicloudkms": aliProvider(), "pkcs11": pkcs11Provider(),
	}
}

// Open opens the external root at an address: file:PATH, env:NAME, raw:PATH, or one of docs/roots.md.
//
// The error is one sentence that repeats the address only if that holds no secret. It is [ErrAddress] for what is no
// address; for file, env and raw, that of [localroot.Open], [localroot.FromEnv] and [localroot.FromRawFile]; otherwise
// of one of the other kinds of this package. Open returns when ctx ends. It makes up to three calls to the vendor, none
// for gcpckms, file, env and raw: awskms and azurekeyvault ask for the key, transit, ocikms and alicloudkms try it.
// [Root.Close] has to be called in the end.
func Open(ctx context.Context, given string) (*Root, error) {
	scheme, rest, _ := strings.Cut(given, ":")
	if local := scheme == "file" || scheme == "env"; local && rest != "" && !holdsSecret(given) {
		return openLocal(scheme, rest, given)
	}
	if scheme == "raw" && Printable(given) {
		return openRaw(rest, given)
	}
	a, p, err := parse(given)
	if err != nil {
		return nil, err
	}
	if p.ownNonces && fips140.Enforced() {
		return nil, problem(ErrUnsupported, a.scheme+" cannot be used in a process that enforces FIPS 140-3: "+
			"its wrapper chooses the nonces of AES-GCM itself; transit and pkcs11 can")
	}
	v, err := p.open(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", given, err)
	}
	return &Root{Shown: given, vendor: v}, nil
}

func openLocal(scheme, rest, given string) (*Root, error) {
	open := localroot.Open
	if scheme == "env" {
		open = localroot.FromEnv
	}
	local, err := open(rest)
	if err != nil {
		return nil, err
	}
	return &Root{Shown: given, vendor: vendor{wrapper: local, inline: true}}, nil
}

// String is the address, which is not secret.
func (r *Root) String() string { return "root " + r.Shown }

// Format implements [fmt.Formatter]: every verb prints what [Root.String] returns.
func (r *Root) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, r.String()) }

// Type returns the type that go-kms-wrapping has for the vendor, "pkcs11", [localroot.WrapperType] or
// [localroot.RawWrapperType].
func (r *Root) Type(ctx context.Context) (wrapping.WrapperType, error) {
	return r.vendor.wrapper.Type(ctx)
}

// KeyId returns the id of the root's key. It is the one that blobs of Encrypt have, and stays when the vendor rotates
// the key; but for azurekeyvault, where it is the newest version that was seen, as every version is a key of its own.
//
//nolint:revive // the interface has this name
func (r *Root) KeyId(ctx context.Context) (string, error) {
	if r.vendor.keyID != "" {
		return r.vendor.keyID, nil
	}
	return r.vendor.wrapper.KeyId(ctx)
}

// SetConfig is an error: a root is complete when it is opened.
func (r *Root) SetConfig(context.Context, ...wrapping.Option) (*wrapping.WrapperConfig, error) {
	return nil, errors.New("configure an open root: it takes no configuration, open another address instead")
}

// Encrypt seals plaintext with the root's key. The plaintext stays the caller's; the wrapper gets a copy, which is
// cleared.
func (r *Root) Encrypt(ctx context.Context, plaintext []byte, opt ...wrapping.Option) (*wrapping.BlobInfo, error) {
	if r.vendor.inline {
		return r.vendor.wrapper.Encrypt(ctx, plaintext, opt...)
	}
	its := append([]byte{}, plaintext...)
	blob, err := call(ctx, &r.vendor, "encrypt", func(ctx context.Context) (*wrapping.BlobInfo, error) {
		defer clear(its)
		return r.vendor.wrapper.Encrypt(ctx, its, opt...)
	}, func(*wrapping.BlobInfo) {})
	if err != nil {
		return nil, err
	}
	if r.vendor.keyID != "" {
		blob.KeyInfo.KeyId = r.vendor.keyID
	}
	return blob, nil
}

// Decrypt opens what Encrypt, or the vendor's wrapper in another program, sealed with the root's key. A blob that is
// damaged, or names another key, is [ErrNotItsKey], as is one that the vendor says so of. The blob is not changed; what
// is returned is the caller's.
func (r *Root) Decrypt(ctx context.Context, blob *wrapping.BlobInfo, opt ...wrapping.Option) ([]byte, error) {
	if r.vendor.inline {
		return r.vendor.wrapper.Decrypt(ctx, blob, opt...)
	}
	info := blob.GetKeyInfo()
	if info == nil || len(blob.GetCiphertext()) == 0 || r.vendor.envelope && len(info.GetWrappedKey()) > 0 && len(blob.GetIv()) != 12 {
		return nil, problem(ErrNotItsKey, "decrypt a blob: it is damaged, or no root sealed it")
	}
	if id := info.GetKeyId(); id != "" && r.vendor.sealed != nil && !r.vendor.sealed(id) {
		return nil, problem(ErrNotItsKey, "decrypt a blob: it names another key than "+r.Shown)
	}
	its := &wrapping.BlobInfo{} // a wrapper that does not end with ctx may still read it
	proto.Merge(its, blob)
	return call(ctx, &r.vendor, "decrypt", func(ctx context.Context) ([]byte, error) {
		return r.vendor.wrapper.Decrypt(ctx, its, opt...)
	}, func(late []byte) { clear(late) })
}

// Close ends what the root keeps open: connections, the renewal of a token, a session with a token of PKCS #11. It
// waits for the vendor no longer than ctx. The root must not be used afterwards.
func (r *Root) Close(ctx context.Context) error {
	if r.vendor.close == nil {
		return nil
	}
	_, err := within(ctx, func() (struct{}, error) { return struct{}{}, r.vendor.close(ctx) }, func(struct{}) {})
	return err
}
