package keyhold_test

import (
	"bytes"
	"context"
	"crypto/fips140"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/v2/aead"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

const (
	tenant  = key.Scope("org_42")
	secrets = key.Purpose("client-secrets")
	session = key.Purpose("sessions")
	search  = key.Purpose("search")
	token   = key.Purpose("token")
)

var ref = key.Ref{Scope: tenant, Purpose: secrets}

// newRoot makes a local root in a directory of the test's.
func newRoot(t testing.TB) wrapping.Wrapper {
	t.Helper()
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// aeadRoot is go-kms-wrapping's own wrapper, with a key of its own.
func aeadRoot(t testing.TB, id string, fill byte) wrapping.Wrapper {
	t.Helper()
	if fips140.Enforced() {
		t.Skip("go-kms-wrapping's aead wrapper makes the nonces of GCM itself, which GODEBUG=fips140=only refuses")
	}
	w := aead.NewWrapper()
	raw := make([]byte, 32)
	for i := range raw {
		raw[i] = fill
	}
	if _, err := w.SetConfig(t.Context(), wrapping.WithKeyId(id)); err != nil {
		t.Fatal(err)
	}
	if err := w.SetAesGcmKeyBytes(raw); err != nil {
		t.Fatal(err)
	}
	return w
}

// countingRoot counts what an external root is asked, and can be told to misbehave.
type countingRoot struct {
	wrapping.Wrapper
	encrypts, decrypts atomic.Int64
	last               []byte // what was encrypted last
	encrypt            func(*wrapping.BlobInfo, error) (*wrapping.BlobInfo, error)
	decrypt            func([]byte, error) ([]byte, error)
}

func (r *countingRoot) Encrypt(ctx context.Context, pt []byte, o ...wrapping.Option) (*wrapping.BlobInfo, error) {
	r.encrypts.Add(1)
	r.last = bytes.Clone(pt)
	info, err := r.Wrapper.Encrypt(ctx, pt, o...)
	if r.encrypt != nil {
		return r.encrypt(info, err)
	}
	return info, err
}

func (r *countingRoot) Decrypt(ctx context.Context, in *wrapping.BlobInfo, o ...wrapping.Option) ([]byte, error) {
	r.decrypts.Add(1)
	pt, err := r.Wrapper.Decrypt(ctx, in, o...)
	if r.decrypt != nil {
		return r.decrypt(pt, err)
	}
	return pt, err
}

func config(root wrapping.Wrapper) keyhold.Config {
	return keyhold.Config{
		Grace:         -1,
		Root:          root,
		Purposes:      []key.Purpose{secrets, session},
		RawPurposes:   []key.Purpose{token},
		IndexPurposes: []key.Purpose{search},
		Initialize:    true,
	}
}

// newManager opens s, which it initializes if need be, and at the end of the test checks what is in it.
func newManager(t testing.TB, s store.Store, root wrapping.Wrapper) *keyhold.Manager {
	t.Helper()
	m, err := keyhold.New(t.Context(), s, config(root))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// checked asserts that nothing is wrong with what m has stored.
func checked(t testing.TB, m *keyhold.Manager) {
	t.Helper()
	findings, err := m.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Errorf("check: %v", f)
	}
}

// world is a store with an installation, its root, and a manager with one scope.
type world struct {
	kind  kind
	store store.Store
	root  wrapping.Wrapper
	*keyhold.Manager
}

// each runs f on every kind of store.
func each(t *testing.T, f func(t *testing.T, w world)) {
	t.Helper()
	for name, kind := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, root := kind.open(t), newRoot(t)
			w := world{kind, s, root, newManager(t, s, root)}
			must(t, w.CreateScope(t.Context(), tenant))
			f(t, w)
			if !t.Failed() {
				checked(t, w.Manager)
				storetest.Check(t, s)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sealed(t testing.TB, m *keyhold.Manager, r key.Ref, plaintext string, aad keyhold.AAD) []byte {
	t.Helper()
	ct, err := m.Seal(t.Context(), r, []byte(plaintext), aad)
	if err != nil {
		t.Fatal(err)
	}
	return ct
}

func opens(t testing.TB, m *keyhold.Manager, r key.Ref, ct []byte, aad keyhold.AAD, want string) {
	t.Helper()
	pt, err := m.Open(t.Context(), r, ct, aad)
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	if string(pt) != want {
		t.Errorf("open: got %q, want %q", pt, want)
	}
}

// fails asserts the class of an error.
func fails(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

// integrity asserts an [*keyhold.IntegrityError].
func integrity(t testing.TB, err error) {
	t.Helper()
	if _, ok := errors.AsType[*keyhold.IntegrityError](err); !ok {
		t.Errorf("got error %v, want an IntegrityError", err)
	}
}

// noSecret asserts that nothing that is printed of the values shows the secret, in plain or as numbers.
func noSecret(t testing.TB, secret []byte, values ...any) {
	t.Helper()
	forms := []string{
		string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)),
		base64.StdEncoding.EncodeToString(secret)[:20], key.Base32(secret), strings.Trim(fmt.Sprint(secret), "[]"),
	}
	for _, v := range values {
		var printed []string
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			printed = append(printed, fmt.Sprintf(verb, v))
		}
		if b, err := json.Marshal(v); err == nil {
			printed = append(printed, string(b))
		}
		for _, text := range printed {
			for _, form := range forms {
				if strings.Contains(text, form) {
					t.Errorf("%T shows a key", v)
				}
			}
		}
	}
}
