package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

func invalid(err error) bool {
	var e *key.InvalidError
	return errors.As(err, &e)
}

func TestImpossibleKeysAreRefused(t *testing.T) {
	dek := newTestKey(t, key.Message).Identity()
	for name, change := range map[string]func(*Identity){
		"no kind":                  func(id *Identity) { id.Kind = "" },
		"installation key":         func(id *Identity) { id.Kind = key.IK },
		"no root key":              func(id *Identity) { id.RootKeyID = "" },
		"no purpose":               func(id *Identity) { id.Purpose = "" },
		"purpose with white space": func(id *Identity) { id.Purpose = " x" },
		"unknown algorithm":        func(id *Identity) { id.Alg = 9 },
		"imported":                 func(id *Identity) { id.Alg = key.Imported },
		"root key with a purpose":  func(id *Identity) { id.Kind = key.KEK },
		"root key that is raw":     func(id *Identity) { id.Kind, id.Purpose, id.Alg = key.KEK, "", key.Raw },
	} {
		id := dek
		change(&id)
		if _, err := Generate(id); !invalid(err) {
			t.Errorf("%s: generates, %v", name, err)
		}
	}
	for _, alg := range []key.Alg{key.Message, key.BlindIndex} {
		if _, err := FromBytes(newTestKey(t, alg).Identity(), Random(32)); !invalid(err) {
			t.Errorf("%v from bytes: %v", alg, err)
		}
	}
	for _, n := range []int{0, 1025} {
		if _, err := FromBytes(newTestKey(t, key.Raw).Identity(), Random(n)); !invalid(err) {
			t.Errorf("%d raw bytes: %v", n, err)
		}
	}
}

func TestFromBytesCopies(t *testing.T) {
	given := Random(10)
	want := bytes.Clone(given.Reveal())
	k, err := FromBytes(newTestKey(t, key.Raw).Identity(), given)
	if err != nil {
		t.Fatal(err)
	}
	given.Clear()
	if !bytes.Equal(k.Bytes().Reveal(), want) {
		t.Error("the key changed with the bytes that it was made from")
	}
}

func TestCommitmentOfRawKeysHidesThem(t *testing.T) {
	id := newTestKey(t, key.Raw).Identity()
	seen := make(map[[32]byte]bool)
	for range 100 {
		k, err := FromBytes(id, secret.New([]byte("password")))
		if err != nil {
			t.Fatal(err)
		}
		if seen[k.Commit()] {
			t.Fatal("two keys of the same bytes have the same commitment")
		}
		seen[k.Commit()] = true
	}
}

func TestIDFollowsFromCommitment(t *testing.T) {
	k := newTestKey(t, key.Message)
	commit, kid := k.Commit(), k.KID()
	if !bytes.Equal(kid[:], commit[:16]) {
		t.Errorf("kid is %x, commitment %x", kid, commit)
	}
	if got, ok := k.ID().KID(); !ok || got != kid {
		t.Errorf("id %s gives kid %x, want %x", k.ID(), got, kid)
	}
}

func TestClosedKeysAreNotUsed(t *testing.T) {
	kek, ik := newTestRootKey(t)
	k := newTestKey(t, key.Raw)
	parent, err := kek.Parent()
	if err != nil {
		t.Fatal(err)
	}
	shared := k.Bytes()
	k.Close()
	k.Close()
	if shared.Reveal() != nil || k.Bytes().Reveal() != nil {
		t.Error("a closed key still has bytes")
	}
	if _, err := parent.Wrap(k, 1, 1); err == nil {
		t.Error("a closed key is wrapped")
	}
	index := newTestKey(t, key.BlindIndex)
	index.Close()
	ik.Close()
	for name, use := range map[string]func(){
		"blind index": func() { _, _ = index.BlindIndex("email", nil, 16) },
		"MAC":         func() { ik.MAC(nil) },
		"pin":         func() { ik.Pin() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a closed key", name)
				}
			}()
			use()
		}()
	}
}

func TestBlindIndex(t *testing.T) {
	k := newTestKey(t, key.BlindIndex)
	index := func(name, value string, n int) []byte {
		t.Helper()
		b, err := k.BlindIndex(name, []byte(value), n)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != n {
			t.Fatalf("%d bytes, want %d", len(b), n)
		}
		return b
	}
	email := index("email", "a@b.c", 16)
	if !bytes.Equal(email, index("email", "a@b.c", 16)) {
		t.Error("equal values have different indexes")
	}
	if !bytes.Equal(index("email", "a@b.c", 4), email[:4]) || !bytes.Equal(index("email", "a@b.c", 32)[:16], email) {
		t.Error("an index of another length is not a prefix")
	}
	for name, other := range map[string][]byte{
		"value": index("email", "A@b.c", 16), "name": index("phone", "a@b.c", 16), "boundary": index("emaila", "@b.c", 16),
	} {
		if bytes.Equal(email, other) {
			t.Errorf("another %s has the same index", name)
		}
	}
	for name, refused := range map[string]func() ([]byte, error){
		"no name":       func() ([]byte, error) { return k.BlindIndex("", nil, 16) },
		"long name":     func() ([]byte, error) { return k.BlindIndex(string(make([]byte, 256)), nil, 16) },
		"3 bytes":       func() ([]byte, error) { return k.BlindIndex("email", nil, 3) },
		"33 bytes":      func() ([]byte, error) { return k.BlindIndex("email", nil, 33) },
		"a message key": func() ([]byte, error) { return newTestKey(t, key.Message).BlindIndex("email", nil, 16) },
	} {
		if _, err := refused(); !invalid(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenImportedRefusesEverythingElse(t *testing.T) {
	for _, n := range []int{1, 15, 16, 24, 32, 33, 1024} {
		k, err := FromBytes(newTestKey(t, key.Imported).Identity(), Random(n))
		if err != nil {
			t.Fatal(err)
		}
		for size := range 64 {
			if _, err := k.OpenImported(make([]byte, size), nil); !errors.Is(err, ErrOpen) {
				t.Errorf("a key of %d bytes, a blob of %d: %v", n, size, err)
			}
		}
	}
	k := newTestKey(t, key.Raw)
	sealed := randomNonceGCM(k.Bytes().Reveal()).Seal(nil, nil, []byte("x"), nil)
	if _, err := k.OpenImported(sealed, nil); !errors.Is(err, ErrOpen) {
		t.Errorf("a raw key opens: %v", err)
	}
}

func TestRandomIDs(t *testing.T) {
	seen := make(map[key.ID]bool)
	for range 1000 {
		id, err := RandomID(key.PrefixRootKey)
		if err != nil || seen[id] || len(id) != len("krk_")+26 {
			t.Fatalf("id %s, %v", id, err)
		}
		seen[id] = true
	}
}

func TestNoKeyPrints(t *testing.T) {
	kek, ik := newTestRootKey(t)
	k := newTestKey(t, key.Raw)
	m := testMessageKey(t)
	if _, err := forms[0].seal(m, nil, nil, ""); err != nil {
		t.Fatal(err)
	}
	parent, err := kek.Parent()
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		k *Key
		m *MessageKey
		v Key
		x *XAES
	}
	x := &m.xaes
	messageKey, _ := x.key.Copy()
	word := binary.LittleEndian.Uint64(messageKey) // as the key is kept
	for _, v := range []any{k, *k, kek, ik, parent, m, x, *x, holder{k, m, *k, x}, &holder{k, m, *k, x}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			printed := fmt.Sprintf(verb, v)
			noneOf(t, printed, k.Bytes(), kek.Bytes(), ik.material, ik.manifest, secret.New(bytes.Clone(messageKey)))
			if strings.Contains(printed, fmt.Sprint(word)) || strings.Contains(printed, fmt.Sprintf("%x", word)) {
				t.Errorf("printed: %s", printed)
			}
		}
	}
	if got := fmt.Sprintf("%v %+v %s", k, ik, m); got != "[redacted] [redacted] [redacted]" {
		t.Errorf("keys print as %s", got)
	}
}

// noneOf fails if printed shows the beginning of one of the secrets in any of the forms that bytes are printed in.
func noneOf(t *testing.T, printed string, secrets ...secret.Bytes) {
	t.Helper()
	for _, s := range secrets {
		b := s.Reveal()[:6]
		for _, form := range []string{
			string(b), fmt.Sprintf("%x", b), fmt.Sprintf("%X", b),
			strings.Trim(fmt.Sprint(b), "[]"),
			strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", b), "[]byte{"), "}"),
		} {
			if strings.Contains(printed, form) {
				t.Errorf("printed: %s", printed)
			}
		}
	}
}
