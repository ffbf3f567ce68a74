// Package seal makes, wraps, unwraps and uses keys.
//
// It is the only package that imports ciphers, hashes and the random source, and everything here is as docs/format.md
// says; the section numbers in the comments are that document's. It uses the standard library's cryptography alone, and
// only what the FIPS 140-3 module approves.
//
// Every refusal of bytes that came from outside is the one error [ErrOpen]. Key bytes are overwritten when a key is
// closed, as far as Go allows: the state of a cipher is out of reach and is left to the garbage collector.
package seal

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// ErrOpen says that something did not open: a wrapped key, a slot's payload, a message. It is the same value whatever
// was wrong with it, a changed bit, another key, another place, so that nothing can be learned from it.
var ErrOpen = errors.New("does not open: changed, or sealed with another key or for another place")

// ErrClosed says that a key was used after it was closed. Of a [MessageKey], which may be closed while others have it,
// it says that the same key is to be opened again; of all others, that there is a mistake in the program.
var ErrClosed = errors.New("key is closed")

// opaque, embedded, makes a struct that leads to key material print as [secret.Redacted] however it is printed.
type opaque struct{}

func (opaque) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, secret.Redacted) }
func (opaque) String() string               { return secret.Redacted }
func (opaque) GoString() string             { return secret.Redacted }
func (opaque) LogValue() slog.Value         { return slog.StringValue(secret.Redacted) }
func (opaque) MarshalText() ([]byte, error) { return []byte(secret.Redacted), nil }

// RandomID returns a new id with the given prefix, for a root key, a data key or a root slot. No two are ever the same.
// The error is that of the random source; today's never has one.
func RandomID(prefix string) (key.ID, error) {
	var b [16]byte
	fill(b[:])
	return key.NewID(prefix, b), nil
}

// Random returns n random bytes that are to become a key.
func Random(n int) secret.Bytes {
	b := make([]byte, n)
	fill(b)
	return secret.New(b)
}

// Expand derives 32 bytes from k, which has 32 bytes, for the use that info names: HKDF-Expand with SHA-256 and k as
// its PRK.
func Expand(k secret.Bytes, info []byte) secret.Bytes { return secret.New(expand(k.Reveal(), info)) }

// Checksum returns the first 4 bytes of the SHA-256 of b, which show a mistyped line of text and nothing more.
func Checksum(b []byte) [4]byte {
	sum := sha256.Sum256(b)
	return [4]byte(sum[:])
}

// BlobHash is the SHA-256 of a slot's blob, as the manifest of the slots has it (section 7). For a removed slot, whose
// blob is gone, it is that of no bytes.
func BlobHash(blob []byte) [32]byte { return sha256.Sum256(blob) }

// fill overwrites b with random bytes. The source never fails: where there is no randomness, the process ends.
func fill(b []byte) { _, _ = rand.Read(b) }

// expand is HKDF-Expand(prk, info, 32). It panics if prk is empty, as that of a closed key is, rather than use no key.
func expand(prk, info []byte) []byte {
	if len(prk) == 0 {
		panic(ErrClosed)
	}
	out, err := hkdf.Expand(sha256.New, prk, string(info), 32)
	if err != nil {
		panic(fmt.Errorf("expand a key of %d bytes: %w", len(prk), err))
	}
	return out
}
