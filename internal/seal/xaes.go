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
	block cipher.Block
	// k1 is the CMAC subkey for whole blocks. A pointer, because the fmt package, asked to print an unexported field
	// that points to an XAES with a verb that pointers do not have, prints what it points to, calling no method; but
	// goes no deeper.
	k1 *[aes.BlockSize]byte
}

// NewXAES returns the cipher for a key of 32 bytes, of which it keeps no reference. It panics on any other length.
func NewXAES(k secret.Bytes) *XAES { return newXAES(k.Reveal()) }

func newXAES(k []byte) *XAES {
	if len(k) != envelope.KeySize {
		panic(fmt.Sprintf("seal: XAES-256-GCM with a key of %d bytes", len(k)))
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		panic(err)
	}
	x := &XAES{block: block, k1: new([aes.BlockSize]byte)}
	block.Encrypt(x.k1[:], x.k1[:])
	// One doubling in GF(2^128), without a branch on what is secret (RFC 4493, section 2.3).
	var carry byte
	for i := aes.BlockSize - 1; i >= 0; i-- {
		next := x.k1[i] >> 7
		x.k1[i] = x.k1[i]<<1 | carry
		carry = next
	}
	x.k1[aes.BlockSize-1] ^= byte(subtle.ConstantTimeSelect(int(carry), 0x87, 0))
	return x
}

// cmacBlock writes the CMAC of one whole block to out.
func (x *XAES) cmacBlock(out, block []byte) {
	subtle.XORBytes(out, block, x.k1[:])
	x.block.Encrypt(out, out)
}

// subkey returns the AES-256 key that the first 12 bytes of a nonce select.
func (x *XAES) subkey(prefix []byte) []byte {
	buf := make([]byte, 3*aes.BlockSize)
	out, m := buf[:2*aes.BlockSize], buf[2*aes.BlockSize:]
	m[2] = 'X'
	copy(m[4:], prefix[:prefixSize])
	for i := range 2 {
		m[1] = byte(i + 1)
		x.cmacBlock(out[i*aes.BlockSize:(i+1)*aes.BlockSize], m)
	}
	return out
}

// aead returns the AES-GCM that a nonce's prefix selects. It makes the other 12 bytes of each nonce itself, at random.
func (x *XAES) aead(prefix []byte) cipher.AEAD {
	k := x.subkey(prefix)
	defer clear(k)
	return randomNonceGCM(k)
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
	prefix := make([]byte, prefixSize)
	fill(prefix)
	return x.aead(prefix).Seal(append(dst, prefix...), nil, plaintext, aad)
}

// Open appends the plaintext of what [XAES.Seal] appended to dst. sealed and aad must not overlap what is appended. The
// error is [ErrOpen].
func (x *XAES) Open(dst, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < xaesMin || len(sealed) > maxSealed {
		return nil, ErrOpen
	}
	plaintext, err := x.aead(sealed[:prefixSize]).Open(dst, nil, sealed[prefixSize:], aad)
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}
