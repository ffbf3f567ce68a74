package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"fmt"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
)

const (
	prefixSize  = 12                              // the half of a nonce that selects a subkey
	gcmOverhead = prefixSize + envelope.TagSize   // what GCM with a random nonce adds: its own nonce, and the tag
	xaesMin     = prefixSize + gcmOverhead        // the shortest that XAES may have sealed
	maxSealed   = envelope.MaxPlaintext + xaesMin // the longest
)

// XAES is XAES-256-GCM (c2sp.org/XAES-256-GCM) with random nonces, for what is sealed seldom: it derives a subkey each
// time. It is safe for concurrent use.
type XAES struct {
	opaque
	// The key alone, in 64 bytes: expanded it would take 512 more, which all keys that are at hand would have all the
	// time, to save a tenth of a derivation.
	key *secret.Shared
}

// NewXAES returns the cipher for a key of 32 bytes, of which it keeps no reference. It panics on any other length.
func NewXAES(k secret.Bytes) *XAES { return newXAES(k.Reveal()) }

func newXAES(k []byte) *XAES {
	if len(k) != envelope.KeySize {
		panic(fmt.Sprintf("seal: XAES-256-GCM with a key of %d bytes", len(k)))
	}
	return &XAES{key: secret.NewShared(k)}
}

// derivation is the memory that deriving a subkey takes. What is passed through an interface of the cipher package
// cannot be on the stack, so it is a part of a scratch.
type derivation struct {
	subkey [2 * aes.BlockSize]byte
	k1     [aes.BlockSize]byte // the CMAC subkey for whole blocks
	block  [aes.BlockSize]byte
}

// derive sets d.subkey to the AES-256 key that a nonce's prefix selects. The error is [ErrClosed].
func (x *XAES) derive(d *derivation, prefix *[prefixSize]byte) error {
	var k [envelope.KeySize]byte
	defer clear(k[:])
	if !x.key.CopyTo(k[:]) {
		return ErrClosed
	}
	block := d.expand(k[:])
	for i := range 2 {
		d.block = [aes.BlockSize]byte{1: byte(i + 1), 2: 'X'}
		copy(d.block[4:], prefix[:])
		d.cmacBlock(block, d.subkey[i*aes.BlockSize:])
	}
	return nil
}

// expand returns AES under k, and sets d.k1.
func (d *derivation) expand(k []byte) cipher.Block {
	block, err := aes.NewCipher(k)
	if err != nil {
		panic(err)
	}
	clear(d.k1[:])
	block.Encrypt(d.k1[:], d.k1[:])
	double(&d.k1)
	return block
}

// cmacBlock writes the CMAC of d.block, which it overwrites, to out.
func (d *derivation) cmacBlock(block cipher.Block, out []byte) {
	subtle.XORBytes(d.block[:], d.block[:], d.k1[:])
	block.Encrypt(out, d.block[:])
}

// double is one doubling in GF(2^128), without a branch on what is secret (RFC 4493, section 2.3).
func double(b *[aes.BlockSize]byte) {
	var carry byte
	for i := aes.BlockSize - 1; i >= 0; i-- {
		next := b[i] >> 7
		b[i] = b[i]<<1 | carry
		carry = next
	}
	b[aes.BlockSize-1] ^= byte(subtle.ConstantTimeSelect(int(carry), 0x87, 0))
}

// aead returns the AES-GCM that a nonce's prefix selects. It makes the other 12 bytes of each nonce itself, at random.
// The error is [ErrClosed].
func (x *XAES) aead(d *derivation, prefix *[prefixSize]byte) (cipher.AEAD, error) {
	defer func() { *d = derivation{} }()
	if err := x.derive(d, prefix); err != nil {
		return nil, err
	}
	return randomNonceGCM(d.subkey[:]), nil
}

// randomNonceGCM returns AES-GCM under k, which is of a length that AES has.
func randomNonceGCM(k []byte) cipher.AEAD {
	block, err := aes.NewCipher(k)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// Seal appends the 24 bytes of a random nonce, the ciphertext and the tag to dst. plaintext and aad must not overlap
// what is appended. It is 40 bytes more than plaintext, which is at most [envelope.MaxPlaintext] long.
func (x *XAES) Seal(dst, plaintext, aad []byte) []byte {
	var prefix [prefixSize]byte
	fill(prefix[:])
	w := getScratch()
	defer w.release()
	aead, err := x.aead(&w.derivation, &prefix)
	if err != nil {
		panic(err) // its user has closed it
	}
	return aead.Seal(append(dst, prefix[:]...), nil, plaintext, aad)
}

// Open appends the plaintext of what [XAES.Seal] appended to dst. sealed and aad must not overlap what is appended. The
// error is [ErrOpen].
func (x *XAES) Open(dst, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < xaesMin || len(sealed) > maxSealed {
		return nil, ErrOpen
	}
	prefix := [prefixSize]byte(sealed)
	w := getScratch()
	defer w.release()
	aead, err := x.aead(&w.derivation, &prefix)
	if err != nil {
		return nil, ErrOpen
	}
	plaintext, err := aead.Open(dst, nil, sealed[prefixSize:], aad)
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}
