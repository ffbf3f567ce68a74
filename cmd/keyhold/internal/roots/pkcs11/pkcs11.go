//go:build pkcs11

package pkcs11

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/miekg/pkcs11"
)

// WrapperType is what [Wrapper.Type] returns.
const WrapperType wrapping.WrapperType = "pkcs11"

const (
	ivSize  = 12
	tagBits = 128
	maxPIN  = 4096
)

// What can be wrong with a token. Other errors are those of the module: it is broken or away.
var (
	// ErrPIN says that there is no PIN, or that the token does not take it, or not any more.
	ErrPIN = errors.New("PIN is not valid")
	// ErrNoKey says that there is no such token, or not exactly one such AES key in it.
	ErrNoKey = errors.New("no such key")
	// ErrRefused says that the key is not for encrypting, or not for decrypting.
	ErrRefused = errors.New("key is not for this")
	// ErrOpen says that a blob was not sealed by this key with this AAD, or was changed.
	ErrOpen = errors.New("key does not open this")
)

// Place is where a key is.
type Place struct {
	Module        string // the path of the token's library
	Token, Serial string // the token's label and serial number; empty: any
	Object, ID    string // the key's CKA_LABEL and CKA_ID; empty: any
	PIN           string // where the PIN is: /PATH, file:PATH or env:NAME; never the PIN itself
}

// Wrapper seals with an AES key that does not leave its token, by CKM_AES_GCM. It implements [wrapping.Wrapper], and is
// safe for concurrent use: each call has a session of its own, and all share a login, which stays.
//
// No call ends before the token answers. When the module fails, or finds no such key, the call sets it up again and
// tries again, five times within about a second or until its context ends; then the error is the module's, or
// [ErrNoKey] if each attempt said so.
type Wrapper struct {
	place  Place
	module *module
	id     string
}

var _ wrapping.Wrapper = (*Wrapper)(nil)

// Open opens the key at a place, for which it logs in, unless another wrapper of this process is logged in to the
// token: its PIN is then not tried. The error is [ErrPIN], [ErrNoKey], the module's own, or that of ctx, in which case
// it may be one of these too. [Wrapper.Close] has to be called in the end.
func Open(ctx context.Context, place Place) (*Wrapper, error) {
	m, err := load(place.Module)
	if err != nil {
		return nil, err
	}
	w := &Wrapper{place: place, module: m}
	err = w.with(ctx, func(s *session) (err error) {
		w.id, err = s.keyID()
		return err
	})
	if err != nil {
		return nil, errors.Join(err, m.release())
	}
	return w, nil
}

// Close lets go of the module. The wrapper must not be used afterwards.
func (w *Wrapper) Close() error { return w.module.release() }

// Type returns [WrapperType].
func (w *Wrapper) Type(context.Context) (wrapping.WrapperType, error) { return WrapperType, nil }

// KeyId returns the key's CKA_ID in hexadecimal digits, or its label if it has none.
//
//nolint:revive // the interface has this name
func (w *Wrapper) KeyId(context.Context) (string, error) { return w.id, nil }

// SetConfig is an error: the wrapper is complete when it is opened.
func (w *Wrapper) SetConfig(context.Context, ...wrapping.Option) (*wrapping.WrapperConfig, error) {
	return nil, errors.New("configure an open key of a token: it takes no configuration, open another one instead")
}

// Encrypt seals plaintext. Of the options, only the AAD has a meaning. The token makes the nonce: by itself while it
// encrypts, if it is one of those that do, and otherwise when it is asked for random bytes before.
func (w *Wrapper) Encrypt(ctx context.Context, plaintext []byte, opt ...wrapping.Option) (*wrapping.BlobInfo, error) {
	opts, err := wrapping.GetOpts(opt...)
	if err != nil {
		return nil, err
	}
	blob := &wrapping.BlobInfo{KeyInfo: &wrapping.KeyInfo{Mechanism: pkcs11.CKM_AES_GCM, KeyId: w.id}}
	err = w.with(ctx, func(s *session) error {
		iv, err := s.ctx.GenerateRandom(s.handle, ivSize)
		if err != nil {
			return err
		}
		params := pkcs11.NewGCMParams(iv, opts.WithAad, tagBits)
		defer params.Free()
		if err := s.ctx.EncryptInit(s.handle, gcm(params), s.key); err != nil {
			return err
		}
		blob.Ciphertext, err = s.ctx.Encrypt(s.handle, plaintext)
		blob.Iv = params.IV()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("encrypt with the key %s: %w", w.id, err)
	}
	return blob, nil
}

// Decrypt opens what Encrypt sealed with the same AAD. The error is [ErrOpen] for anything else.
func (w *Wrapper) Decrypt(ctx context.Context, blob *wrapping.BlobInfo, opt ...wrapping.Option) ([]byte, error) {
	opts, err := wrapping.GetOpts(opt...)
	if err != nil {
		return nil, err
	}
	info := blob.GetKeyInfo()
	if info.GetMechanism() != pkcs11.CKM_AES_GCM || len(blob.GetIv()) == 0 || len(blob.GetCiphertext()) < tagBits/8 {
		return nil, fmt.Errorf("decrypt a blob: it is damaged, or of another wrapper: %w", ErrOpen)
	}
	var plaintext []byte
	err = w.with(ctx, func(s *session) error {
		params := pkcs11.NewGCMParams(blob.GetIv(), opts.WithAad, tagBits)
		defer params.Free()
		err := s.ctx.DecryptInit(s.handle, gcm(params), s.key)
		if err != nil {
			return err
		}
		plaintext, err = s.ctx.Decrypt(s.handle, blob.GetCiphertext())
		if errors.Is(err, pkcs11.Error(pkcs11.CKR_GENERAL_ERROR)) { // SoftHSM has no other word for a tag that is wrong
			return fmt.Errorf("%w: %w", err, ErrOpen)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("decrypt with the key %s: %w", w.id, err)
	}
	return plaintext, nil
}

func gcm(params *pkcs11.GCMParams) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}
}

// session is a session of which the key was found.
type session struct {
	ctx    *pkcs11.Ctx
	handle pkcs11.SessionHandle
	key    pkcs11.ObjectHandle
}

// with gives f a session of its own, so that one that the token has ended, as when it was taken out, ends one attempt
// only.
func (w *Wrapper) with(ctx context.Context, f func(*session) error) error {
	return w.module.persist(ctx, func() error {
		if err := w.module.enter(); err != nil {
			return err
		}
		defer w.module.leave()
		return w.once(f)
	})
}

func (w *Wrapper) once(f func(*session) error) (err error) {
	ctx := w.module.ctx
	slot, err := w.slot()
	if err != nil {
		return err
	}
	handle, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return known(err)
	}
	defer func() { err = errors.Join(err, known(ctx.CloseSession(handle))) }()
	if err := w.logIn(slot, handle); err != nil {
		return err
	}
	s := &session{ctx: ctx, handle: handle}
	if s.key, err = w.find(ctx, handle); err != nil {
		return err
	}
	return known(f(s))
}

// logIn logs in if the sessions of this process, which share the login, are not.
func (w *Wrapper) logIn(slot uint, handle pkcs11.SessionHandle) error {
	m := w.module
	m.loginMu.Lock()
	defer m.loginMu.Unlock()
	info, err := m.ctx.GetSessionInfo(handle)
	if err != nil {
		return known(err)
	}
	loggedIn := info.State == pkcs11.CKS_RO_USER_FUNCTIONS || info.State == pkcs11.CKS_RW_USER_FUNCTIONS
	if _, kept := m.logins[slot]; kept && loggedIn {
		return nil
	}
	stays, err := m.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return known(err)
	}
	pin, err := readPIN(w.place.PIN)
	if err == nil {
		// The library takes the PIN as a string, of which a copy stays in memory.
		err = known(m.ctx.Login(stays, pkcs11.CKU_USER, string(pin)))
		clear(pin)
	}
	if err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		return errors.Join(err, known(m.ctx.CloseSession(stays)))
	}
	m.logins[slot] = stays // one from before is not of this login: the token has ended it
	return nil
}

func (w *Wrapper) slot() (uint, error) {
	slots, err := w.module.ctx.GetSlotList(true)
	if err != nil {
		return 0, known(err)
	}
	var mute error
	for _, slot := range slots {
		info, err := w.module.ctx.GetTokenInfo(slot)
		if err != nil {
			mute = err // it may be the one that was named
			continue
		}
		if matches(w.place.Token, info.Label) && matches(w.place.Serial, info.SerialNumber) {
			return slot, nil
		}
	}
	if mute != nil {
		return 0, fmt.Errorf("find the token: one does not say what it is: %w", mute)
	}
	return 0, fmt.Errorf("find the token: no token has this label and serial number: %w", ErrNoKey)
}

// matches says whether a name is the one that was asked for. Tokens fill names up with spaces.
func matches(asked, name string) bool {
	return asked == "" || asked == strings.TrimRight(name, " \x00")
}

func (w *Wrapper) find(ctx *pkcs11.Ctx, handle pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
	}
	if w.place.Object != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, w.place.Object))
	}
	if w.place.ID != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, w.place.ID))
	}
	if err := ctx.FindObjectsInit(handle, template); err != nil {
		return 0, known(err)
	}
	found, _, err := ctx.FindObjects(handle, 2)
	if err = errors.Join(err, ctx.FindObjectsFinal(handle)); err != nil {
		return 0, known(err)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return 0, fmt.Errorf("find the key: the token has no AES key with this label and id: %w", ErrNoKey)
	}
	return 0, fmt.Errorf("find the key: the token has several AES keys with this label, add id= to the address: %w", ErrNoKey)
}

func (s *session) keyID() (string, error) {
	attributes, err := s.ctx.GetAttributeValue(s.handle, s.key, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_ID, nil), pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil),
	})
	if err != nil {
		return "", err
	}
	if id := attributes[0].Value; len(id) > 0 {
		return hex.EncodeToString(id), nil
	}
	return string(attributes[1].Value), nil
}

// readPIN reads the PIN from where it is. It is read for each login, so that a new one is used without a new start.
func readPIN(source string) ([]byte, error) {
	if name, ok := strings.CutPrefix(source, "env:"); ok {
		pin := []byte(os.Getenv(name))
		if len(pin) == 0 {
			return nil, fmt.Errorf("read the PIN from %s: the environment variable is not set: %w", name, ErrPIN)
		}
		return pin, nil
	}
	path := strings.TrimPrefix(strings.TrimPrefix(source, "file://"), "file:")
	pin, err := os.ReadFile(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the PIN: %w: %w", err, ErrPIN)
	case len(pin) > maxPIN:
		clear(pin)
		return nil, fmt.Errorf("read the PIN from %s: this is no file with a PIN: %w", path, ErrPIN)
	}
	return bytes.TrimRight(pin, "\r\n"), nil
}

// known gives an error of a module the kind that it is of.
func known(err error) error {
	code, ok := errors.AsType[pkcs11.Error](err)
	if !ok {
		return err
	}
	switch code {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED,
		pkcs11.CKR_USER_PIN_NOT_INITIALIZED, pkcs11.CKR_USER_NOT_LOGGED_IN:
		return fmt.Errorf("log in to the token: %w: %w", err, ErrPIN)
	case pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_MECHANISM_INVALID:
		return fmt.Errorf("%w: %w", err, ErrRefused)
	case pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, pkcs11.CKR_MECHANISM_PARAM_INVALID,
		pkcs11.CKR_ARGUMENTS_BAD:
		return fmt.Errorf("%w: %w", err, ErrOpen)
	}
	return err
}
