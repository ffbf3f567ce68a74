package keyhold

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// After Close no key opens anything, wherever a reference to it is left.
func TestCloseClosesTheKeys(t *testing.T) {
	m := innerManager(t, memstore.New())
	ct, err := m.Seal(t.Context(), inner, []byte("x"), AAD{})
	check(t, err)
	var keys []*seal.MessageKey
	for _, o := range m.cache.opened.all() {
		if o.messages != nil {
			keys = append(keys, o.messages)
		}
	}
	if len(keys) != 1 {
		t.Fatalf("%d keys in the cache", len(keys))
	}
	if _, err := keys[0].Open(nil, ct, &envelope.Parts{}); err != nil {
		t.Errorf("before: %v", err)
	}
	check(t, m.Close())
	if _, err := keys[0].Open(nil, ct, &envelope.Parts{}); err == nil {
		t.Error("a key of a closed manager opens")
	}
}

// A key that is closed since a call found it is opened again for that call, which may work in place.
func TestKeyThatIsClosedUnderACallIsOpenedAgain(t *testing.T) {
	m := innerManager(t, memstore.New())
	ctx := t.Context()
	ct, err := m.Seal(ctx, inner, []byte("x"), AAD{})
	check(t, err)
	id, detached, err := m.SealDetached(ctx, inner, []byte("y"), AAD{})
	check(t, err)
	for name, call := range map[string]func() ([]byte, error){
		"seal": func() ([]byte, error) {
			sealed, err := m.AppendSeal(ctx, nil, inner, []byte("seal"), AAD{})
			if err != nil {
				return nil, err
			}
			return m.Open(ctx, inner, sealed, AAD{})
		},
		"x": func() ([]byte, error) {
			inPlace := bytes.Clone(ct)
			return m.AppendOpen(ctx, inPlace[:0], inner, inPlace, AAD{})
		},
		"y": func() ([]byte, error) { return m.OpenDetached(ctx, inner, id, detached, AAD{}) },
	} {
		closed := 0
		for _, o := range m.cache.opened.all() {
			if k := o.messages; k != nil {
				k.Close()
				closed++
			}
		}
		if closed != 1 {
			t.Fatalf("%d keys in the cache", closed)
		}
		if got, err := call(); err != nil || string(got) != name {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// Whatever goes wrong, no error holds a key or the plaintext.
func TestNoErrorHoldsASecret(t *testing.T) {
	s := memstore.New()
	faulty := faultstore.New(s)
	m := innerManager(t, faulty)
	ctx := t.Context()
	const plaintext = "a plaintext that is nowhere else"
	ct, err := m.Seal(ctx, inner, []byte(plaintext), AAD{})
	check(t, err)

	secrets := map[string][]byte{"plaintext": []byte(plaintext), "installation key": m.ring.keys[0].SlotPayload("kr_0", "x").Reveal()[33:]}
	fam, err := m.committed().key(ctx, inner)
	check(t, err)
	for _, k := range allKeys(&fam.Family) {
		opened, err := m.committed().unwrap(&fam.Family, k, &k.Versions[0])
		check(t, err)
		secrets[describe(k)] = bytes.Clone(opened.Bytes().Reveal())
		opened.Close()
	}

	var errs []error
	try := func() {
		m.cache.clear()
		other := key.Ref{Scope: inner.Scope, Purpose: "other"}
		_, err1 := m.Seal(ctx, inner, []byte(plaintext), AAD{})
		_, err2 := m.Open(ctx, inner, ct, Context("elsewhere"))
		_, err3 := m.Open(ctx, inner, append([]byte(plaintext), ct...), AAD{})
		_, err4 := m.Seal(ctx, other, []byte(plaintext), AAD{})
		_, err5 := m.Rotate(ctx, inner)
		_, err6 := m.Rewrap(ctx, inner.Scope)
		_, err7 := m.Keys(ctx, inner.Scope)
		_, err8 := New(ctx, faulty, Config{Root: m.root, Pins: []string{strings.Repeat("00", 32)}})
		_, err9 := m.Check(ctx)
		errs = append(errs, err1, err2, err3, err4, err5, err6, err7, err8, err9, m.CreateScope(ctx, "new\x00"))
	}
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for n := range 12 {
			faulty.Fail(n, mode)
			try()
		}
	}
	faulty.Disarm()
	for bit := range 73 {
		s.Edit(func(d *memstore.Data) { d.Key(inner).Versions[0].Blob[bit] ^= 1 })
		try()
	}
	seen := 0
	for _, err := range errs {
		if err == nil {
			continue
		}
		seen++
		for name, b := range secrets {
			for _, form := range []string{
				string(b), fmt.Sprintf("%x", b), fmt.Sprintf("%X", b), fmt.Sprint(b), fmt.Sprintf("%q", b),
				base64.StdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b), key.Base32(b),
			} {
				if strings.Contains(err.Error(), form) {
					t.Fatalf("an error holds the %s", name)
				}
			}
		}
	}
	if seen < 400 {
		t.Errorf("only %d errors were looked at", seen)
	}
}
