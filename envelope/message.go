package envelope

import (
	"encoding/binary"
	"slices"

	"keyhold.example/keyhold/key"
)

// Sizes of sealed bytes (docs/format.md, sections 4 and 5).
const (
	NonceSize        = 24
	TagSize          = 16
	AttachedHeader   = 1 + 1 + 16 // first byte, alg, kid
	DetachedHeader   = 1 + 1
	AttachedOverhead = AttachedHeader + NonceSize + TagSize // bytes that an attached message has more than its plaintext
	DetachedOverhead = DetachedHeader + NonceSize + TagSize // bytes that a detached message has more
)

const (
	attachedByte = 0xE1
	detachedByte = 0xE2
	wrappedByte  = 0x01
	slotByte     = 0x02
)

// Message is a sealed message taken apart (section 5).
type Message struct {
	Attached bool    // whether the message names its key itself
	Alg      key.Alg // what it is sealed with; [key.Message]
	KID      key.KID // the key that it names; zero unless Attached
	Sealed   []byte  // nonce, ciphertext and tag: at least NonceSize + TagSize bytes, a part of what was parsed
}

// ParseMessage takes a message apart. The error is [ErrMalformed] if b is too short, does not begin like a message, or
// has an algorithm that this version of the format does not know. Nothing is copied, and nothing is checked beyond
// that.
func ParseMessage(b []byte) (Message, error) {
	switch {
	case isAttached(b):
		return Message{Attached: true, Alg: key.Message, KID: key.KID(b[2:AttachedHeader]), Sealed: b[AttachedHeader:]}, nil
	case isDetached(b):
		return Message{Alg: key.Message, Sealed: b[DetachedHeader:]}, nil
	}
	return Message{}, ErrMalformed
}

func isAttached(b []byte) bool {
	return len(b) >= AttachedOverhead && b[0] == attachedByte && key.Alg(b[1]) == key.Message
}

func isDetached(b []byte) bool {
	return len(b) >= DetachedOverhead && b[0] == detachedByte && key.Alg(b[1]) == key.Message
}

// SealedAttached returns what [ParseMessage] calls Sealed if b is an attached message of the key with this kid, and
// whether it is.
func SealedAttached(b []byte, kid *key.KID) ([]byte, bool) {
	if !isAttached(b) || key.KID(b[2:AttachedHeader]) != *kid {
		return nil, false
	}
	return b[AttachedHeader:], true
}

// SealedDetached returns what [ParseMessage] calls Sealed if b is a detached message, and whether it is.
func SealedDetached(b []byte) ([]byte, bool) {
	if !isDetached(b) {
		return nil, false
	}
	return b[DetachedHeader:], true
}

// PutAttachedHeader writes what an attached message begins with into the first [AttachedHeader] bytes of b.
func PutAttachedHeader(b []byte, alg key.Alg, kid *key.KID) {
	b[0], b[1] = attachedByte, byte(alg)
	copy(b[2:AttachedHeader], kid[:])
}

// PutDetachedHeader writes what a detached message begins with into the first [DetachedHeader] bytes of b.
func PutDetachedHeader(b []byte, alg key.Alg) {
	b[0], b[1] = detachedByte, byte(alg)
}

// AppendMessageAAD appends what a message of either form is authenticated with (section 5): a tuple, written without
// the detour of [AppendTuple], because every message needs one. The context has at most [MaxContext] bytes.
func AppendMessageAAD(dst []byte, alg key.Alg, kid *key.KID, context *Parts) []byte {
	const begin = "\x07kh1/msg" + "\x02" + "\x00\x00\x00\x12" + "\xE1" // with the first byte of an attached header
	const size = len(begin) + AttachedHeader - 1 + 4
	start := len(dst)
	dst = slices.Grow(dst, size+context.size)[:start+size]
	b := dst[start:]
	copy(b, begin)
	b[len(begin)] = byte(alg)
	copy(b[len(begin)+1:], kid[:])
	binary.BigEndian.PutUint32(b[size-4:], uint32(context.size))
	return context.Append(dst)
}

// Sizes of the key inside a wrapped key (sections 3 and 4), in bytes.
const (
	KeySize        = 32   // keys of algs 0x01 and 0x03
	MaxRawKey      = 1024 // keys of algs 0x00 and 0x02, which have at least 1
	CommitKeySize  = 32   // what stands before a key of algs 0x00 and 0x02
	WrapOverhead   = 1 + NonceSize + TagSize
	minWrapped     = WrapOverhead + KeySize
	maxWrapped     = WrapOverhead + CommitKeySize + MaxRawKey
	slotPayloadLen = 1 + 32 + KeySize
)

// ParseWrapped returns the nonce, ciphertext and tag of a wrapped key (section 4), a part of blob. The error is
// [ErrMalformed] if its first byte is unknown or no key of any algorithm has that length.
func ParseWrapped(blob []byte) ([]byte, error) {
	if len(blob) < minWrapped || len(blob) > maxWrapped || blob[0] != wrappedByte {
		return nil, ErrMalformed
	}
	return blob[1:], nil
}

// AppendWrappedHeader appends what a wrapped key begins with; nonce, ciphertext and tag have to follow.
func AppendWrappedHeader(dst []byte) []byte { return append(dst, wrappedByte) }

// AppendSlotPayload appends the payload of a root slot (section 2): binding is the hash that ties it to its row, ik the
// installation key of [KeySize] bytes. The result holds a secret.
func AppendSlotPayload(dst []byte, binding [32]byte, ik []byte) []byte {
	dst = append(dst, slotByte)
	dst = append(dst, binding[:]...)
	return append(dst, ik...)
}

// ParseSlotPayload takes the payload of a root slot apart. ik is a part of payload, and secret. The error is
// [ErrMalformed] if the length or the first byte is wrong.
func ParseSlotPayload(payload []byte) (binding [32]byte, ik []byte, err error) {
	if len(payload) != slotPayloadLen || payload[0] != slotByte {
		return binding, nil, ErrMalformed
	}
	return [32]byte(payload[1:33]), payload[33:], nil
}
