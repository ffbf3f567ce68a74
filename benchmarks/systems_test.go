package benchmarks_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	kmsaead "github.com/hashicorp/go-kms-wrapping/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"golang.org/x/crypto/chacha20poly1305"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/sqlitestore"
)

// What every message belongs to: keyhold gets it as a context, made anew for each call as an application does, and the
// others the same text, encoded once. GCM alone authenticates what keyhold does besides, so that its work is the same.
const (
	table  = "oidc_client"
	row    = "4f6e2c9a81d07b35"
	joined = table + "/" + row
)

// A system is one way of sealing. All goroutines use the same key.
type system struct {
	name string

	// worker prepares what one goroutine needs to seal and to open a plaintext again and again.
	worker func(plaintext []byte) (worker, error)
}

// A worker belongs to one goroutine. What it returns is good until its next call.
type worker struct {
	seal func() ([]byte, error) // the plaintext
	open func() ([]byte, error) // what was sealed when the worker was made
}

func (w worker) do(op string) func() ([]byte, error) {
	if op == "open" {
		return w.open
	}
	return w.seal
}

// systems are all that is compared, each with a new key, until tb is over. The names are those of docs/benchmarks.md's
// tables.
func systems(tb testing.TB) []system {
	tb.Helper()
	keys := manager(tb)
	gcm := raw(tb)
	return []system{
		{"gcm", gcmWorker(gcm, sameAAD(tb))},
		{"keyhold", keyholdWorker(tb.Context(), keys)},
		{"tink", tinkWorker(tb)},
		{"kms-aead", kmsWorker(tb)},
		{"xchacha", xchachaWorker(tb)},
		{"gcm-less", gcmWorker(gcm, []byte(joined))},
		{"gcm-append", gcmAppendWorker(gcm, sameAAD(tb))},
		{"gcm-less-append", gcmAppendWorker(gcm, []byte(joined))},
		{"keyhold-append", keyholdAppendWorker(tb.Context(), keys)},
	}
}

var ref = keyhold.Ref{Scope: "org_42", Purpose: "client-secrets"}

// manager is one as an application has it, with Run at work, on an embedded database.
func manager(tb testing.TB) *keyhold.Manager {
	tb.Helper()
	db, err := sqlitestore.Create(filepath.Join(tb.TempDir(), "keys.db"))
	must(tb, err)
	tb.Cleanup(func() { must(tb, db.Close()) })
	root, err := localroot.Generate(filepath.Join(tb.TempDir(), "root.key"))
	must(tb, err)
	m, err := keyhold.New(tb.Context(), db, keyhold.Config{
		Root: root, Purposes: []keyhold.Purpose{ref.Purpose}, Initialize: true,
	})
	must(tb, err)
	tb.Cleanup(func() { must(tb, m.Close()) })
	must(tb, m.CreateScope(tb.Context(), ref.Scope))
	ctx, stop := context.WithCancel(tb.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx); !errors.Is(err, context.Canceled) {
			tb.Error(err)
		}
	})
	tb.Cleanup(func() { stop(); running.Wait() })
	return m
}

func keyholdWorker(ctx context.Context, m *keyhold.Manager) func([]byte) (worker, error) {
	return func(plaintext []byte) (worker, error) {
		sealed, err := m.Seal(ctx, ref, plaintext, keyhold.Context(table, row))
		return worker{
			seal: func() ([]byte, error) { return m.Seal(ctx, ref, plaintext, keyhold.Context(table, row)) },
			open: func() ([]byte, error) { return m.Open(ctx, ref, sealed, keyhold.Context(table, row)) },
		}, err
	}
}

func keyholdAppendWorker(ctx context.Context, m *keyhold.Manager) func([]byte) (worker, error) {
	return func(plaintext []byte) (worker, error) {
		sealed, err := m.Seal(ctx, ref, plaintext, keyhold.Context(table, row))
		dst := make([]byte, 0, len(sealed))
		return worker{
			seal: func() ([]byte, error) { return m.AppendSeal(ctx, dst, ref, plaintext, keyhold.Context(table, row)) },
			open: func() ([]byte, error) { return m.AppendOpen(ctx, dst, ref, sealed, keyhold.Context(table, row)) },
		}, err
	}
}

// raw is the cipher that messages of keyhold are made of.
func raw(tb testing.TB) cipher.AEAD {
	tb.Helper()
	block, err := aes.NewCipher(randomKey())
	must(tb, err)
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	must(tb, err)
	return gcm
}

// sameAAD has what keyhold authenticates with a message: the context, and the key version.
func sameAAD(tb testing.TB) []byte {
	tb.Helper()
	c, err := envelope.PartsOf(table, row)
	must(tb, err)
	return envelope.AppendMessageAAD(nil, key.Message, &key.KID{}, &c)
}

func gcmWorker(gcm cipher.AEAD, aad []byte) func([]byte) (worker, error) {
	return func(plaintext []byte) (worker, error) {
		sealed := gcm.Seal(nil, nil, plaintext, aad)
		return worker{
			seal: func() ([]byte, error) { return gcm.Seal(nil, nil, plaintext, aad), nil },
			open: func() ([]byte, error) { return gcm.Open(nil, nil, sealed, aad) },
		}, nil
	}
}

func gcmAppendWorker(gcm cipher.AEAD, aad []byte) func([]byte) (worker, error) {
	return func(plaintext []byte) (worker, error) {
		sealed := gcm.Seal(nil, nil, plaintext, aad)
		dst := make([]byte, 0, len(sealed))
		return worker{
			seal: func() ([]byte, error) { return gcm.Seal(dst, nil, plaintext, aad), nil },
			open: func() ([]byte, error) { return gcm.Open(dst, nil, sealed, aad) },
		}, nil
	}
}

func tinkWorker(tb testing.TB) func([]byte) (worker, error) {
	tb.Helper()
	handle, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	must(tb, err)
	primitive, err := aead.New(handle)
	must(tb, err)
	return func(plaintext []byte) (worker, error) {
		aad := []byte(joined)
		sealed, err := primitive.Encrypt(plaintext, aad)
		return worker{
			seal: func() ([]byte, error) { return primitive.Encrypt(plaintext, aad) },
			open: func() ([]byte, error) { return primitive.Decrypt(sealed, aad) },
		}, err
	}
}

// What go-kms-wrapping returns is not bytes yet: an application has to marshal it besides, which is not measured.
func kmsWorker(tb testing.TB) func([]byte) (worker, error) {
	tb.Helper()
	w := kmsaead.NewWrapper()
	must(tb, w.SetAesGcmKeyBytes(randomKey()))
	ctx := tb.Context()
	return func(plaintext []byte) (worker, error) {
		aad := []byte(joined)
		sealed, err := w.Encrypt(ctx, plaintext, wrapping.WithAad(aad))
		return worker{
			seal: func() ([]byte, error) {
				blob, err := w.Encrypt(ctx, plaintext, wrapping.WithAad(aad))
				return blob.GetCiphertext(), err
			},
			open: func() ([]byte, error) { return w.Decrypt(ctx, sealed, wrapping.WithAad(aad)) },
		}, err
	}
}

func xchachaWorker(tb testing.TB) func([]byte) (worker, error) {
	tb.Helper()
	x, err := chacha20poly1305.NewX(randomKey())
	must(tb, err)
	return func(plaintext []byte) (worker, error) {
		aad := []byte(joined)
		seal := func() ([]byte, error) {
			nonce := make([]byte, x.NonceSize(), x.NonceSize()+len(plaintext)+x.Overhead())
			_, _ = rand.Read(nonce) // never returns an error
			return x.Seal(nonce, nonce, plaintext, aad), nil
		}
		sealed, err := seal()
		return worker{
			seal: seal,
			open: func() ([]byte, error) {
				return x.Open(nil, sealed[:x.NonceSize()], sealed[x.NonceSize():], aad)
			},
		}, err
	}
}

func randomKey() []byte {
	k := make([]byte, 32)
	_, _ = rand.Read(k) // never returns an error
	return k
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
