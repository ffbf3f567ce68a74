package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/sha3"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/vectors"
)

// sealWithNonce is XAES-256-GCM with a nonce that the caller chooses, which nothing but a test may do. The module does
// not approve of chosen nonces, so its enforcement is suspended for the call; the subkey is derived under it like
// everywhere.
func sealWithNonce(x *XAES, nonce, plaintext, aad []byte) (sealed []byte) {
	var d derivation
	if err := x.derive(&d, (*[prefixSize]byte)(nonce)); err != nil {
		panic(err)
	}
	fips140.WithoutEnforcement(func() {
		block, err := aes.NewCipher(d.subkey[:])
		if err != nil {
			panic(err)
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			panic(err)
		}
		sealed = gcm.Seal(nil, nonce[prefixSize:], plaintext, aad)
	})
	return sealed
}

type xaesVectors struct {
	Vectors []struct {
		Key, Nonce, Plaintext, AAD, Ciphertext vectors.Hex
	}
	Accumulated []struct {
		Rounds int
		Hash   vectors.Hex
	}
}

func loadXAES(t *testing.T) xaesVectors {
	t.Helper()
	var v xaesVectors
	if err := json.Unmarshal(vectors.XAES, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Vectors) != 2 || len(v.Accumulated) != 2 {
		t.Fatalf("there are %d vectors and %d accumulated ones, want 2 and 2", len(v.Vectors), len(v.Accumulated))
	}
	return v
}

func TestXAESVectors(t *testing.T) {
	for i, v := range loadXAES(t).Vectors {
		x := NewXAES(secret.New(v.Key))
		if got := sealWithNonce(x, v.Nonce, v.Plaintext, v.AAD); !bytes.Equal(got, v.Ciphertext) {
			t.Errorf("%d: sealed %x, want %x", i, got, v.Ciphertext)
		}
		got, err := x.Open(nil, append(bytes.Clone(v.Nonce), v.Ciphertext...), v.AAD)
		if err != nil || !bytes.Equal(got, v.Plaintext) {
			t.Errorf("%d: opened %x, %v, want %x", i, got, err, v.Plaintext)
		}
	}
}

// TestXAESAccumulated runs 10 000 random cases, and 1 000 000 where KEYHOLD_LONG is set.
func TestXAESAccumulated(t *testing.T) {
	for _, v := range loadXAES(t).Accumulated {
		if v.Rounds > 10_000 && os.Getenv("KEYHOLD_LONG") == "" {
			continue
		}
		in, out := sha3.NewSHAKE128(), sha3.NewSHAKE128()
		read := func(n int) []byte {
			b := make([]byte, n)
			_, _ = in.Read(b)
			return b
		}
		for range v.Rounds {
			x := newXAES(read(32))
			nonce := read(24)
			plaintext := read(int(read(1)[0]))
			aad := read(int(read(1)[0]))
			sealed := sealWithNonce(x, nonce, plaintext, aad)
			_, _ = out.Write(sealed)
			if got, err := x.Open(nil, append(nonce, sealed...), aad); err != nil || !bytes.Equal(got, plaintext) {
				t.Fatalf("opened %x, %v, want %x", got, err, plaintext)
			}
		}
		sum := make([]byte, 32)
		_, _ = out.Read(sum)
		if !bytes.Equal(sum, v.Hash) {
			t.Errorf("%d rounds give %x, want %x", v.Rounds, sum, v.Hash)
		}
	}
}

func TestXAESNoncesAreRandom(t *testing.T) {
	x := NewXAES(Random(32))
	seen := make(map[[24]byte]bool)
	for range 1000 {
		sealed := x.Seal(nil, []byte("text"), nil)
		nonce := [24]byte(sealed)
		if seen[nonce] || len(sealed) != 40+4 {
			t.Fatalf("nonce %x again, or %d bytes", nonce, len(sealed))
		}
		seen[nonce] = true
	}
}

func TestXAESAppends(t *testing.T) {
	x := NewXAES(Random(32))
	sealed := x.Seal([]byte("before"), []byte("text"), []byte("aad"))
	if !bytes.HasPrefix(sealed, []byte("before")) {
		t.Fatalf("sealed begins with %q", sealed[:6])
	}
	got, err := x.Open([]byte("and "), sealed[6:], []byte("aad"))
	if err != nil || string(got) != "and text" {
		t.Errorf("opened %q, %v", got, err)
	}
	for n := range len(sealed) - 6 {
		if _, err := x.Open(nil, sealed[6:6+n], []byte("aad")); !errors.Is(err, ErrOpen) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestXAESRefusesKeysOfOtherLengths(t *testing.T) {
	for _, n := range []int{0, 16, 24, 31, 33} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a key of %d bytes is accepted", n)
				}
			}()
			NewXAES(Random(n))
		}()
	}
}
