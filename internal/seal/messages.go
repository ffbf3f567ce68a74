package seal

import (
	"crypto/cipher"
	"slices"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// MessageKey seals and opens messages with one data key version (section 5). It prints as redacted and is safe for
// concurrent use: neither sealing nor opening ever waits for another goroutine.
//
// Between calls it keeps a nonce prefix and the cipher state that it selects, within the limits of the format. The
// subkeys of other prefixes that it has opened are in a cache of fixed size that all keys of the process share. A key
// that has sealed takes less than 1000 bytes.
type MessageKey struct {
	opaque
	kid     key.KID
	xaes    XAES
	sealing atomic.Pointer[prefixState] // nil before the first use, &closedState after the last
	cached  atomic.Bool                 // whether the cache of subkeys may have some of it
}

// Messages returns k as a key of messages. If k is an installation key, or not of algorithm [key.Message], the error is
// a [*key.InvalidError]. It derives a key, so it is worth keeping.
func (k *Key) Messages() (*MessageKey, error) {
	if k.id.Kind == key.IK || k.id.Alg != key.Message {
		return nil, key.Invalid("algorithm", k.id.Alg.String(), "only keys for messages seal messages")
	}
	messageKey := expand(k.material.Reveal(), envelope.Tuple("kh1/msg-key", envelope.U8(uint8(k.id.Alg))))
	defer clear(messageKey)
	return &MessageKey{kid: k.KID(), xaes: *newXAES(messageKey)}, nil
}

// KID returns the kid of the key version, which attached messages carry.
func (m *MessageKey) KID() key.KID { return m.kid }

// Closed says whether the key is closed.
func (m *MessageKey) Closed() bool { return m.sealing.Load() == &closedState }

// Close overwrites the key and lets go of everything that was derived from it: sealing and opening are [ErrClosed] from
// then on. It may run at any time. Calls that have begun end as if it had not been called, or with ErrClosed. Closing
// again does nothing.
func (m *MessageKey) Close() { CloseAll([]*MessageKey{m}) }

// CloseAll closes many keys at the cost of closing one, which is a look at the whole cache of subkeys if any of them
// has opened a message of another prefix than its own.
func CloseAll(keys []*MessageKey) {
	cached := false
	for _, m := range keys {
		m.sealing.Store(&closedState)
		m.xaes.key.Clear()
		cached = cached || m.cached.Load()
	}
	if cached {
		subkeys.drop(func(owner *MessageKey) bool { return owner.Closed() })
	}
}

// Seal appends a message in the attached form to dst, which is 58 bytes more than the plaintext, and returns the longer
// slice. plaintext and the capacity of dst must overlap exactly (plaintext[:0] as dst) or not at all. It allocates
// nothing if dst has room for the message. dst and plaintext have to be in memory of their own, not on a stack, as for
// every cipher.AEAD; c need not.
//
// at is the time by a monotonic clock of the caller's, the same one for all calls with one key; any origin will do. It
// only says when the nonce prefix is too old to be kept, so that no clock is read here: a caller that was stopped since
// it looked seals one message with a prefix that is older by that, or makes one that only this message has.
//
// A plaintext longer than [envelope.MaxPlaintext] or a context longer than [envelope.MaxContext] is an
// [*envelope.TooLargeError]; a closed key is [ErrClosed], and dst and plaintext are as they were.
func (m *MessageKey) Seal(dst, plaintext []byte, c *envelope.Parts, at time.Duration) ([]byte, error) {
	return m.seal(dst, plaintext, c, at, envelope.AttachedHeader)
}

// SealDetached is [MessageKey.Seal] in the detached form, 42 bytes more than the plaintext. What opens it has to be
// told the key.
func (m *MessageKey) SealDetached(dst, plaintext []byte, c *envelope.Parts, at time.Duration) ([]byte, error) {
	return m.seal(dst, plaintext, c, at, envelope.DetachedHeader)
}

func (m *MessageKey) seal(dst, plaintext []byte, c *envelope.Parts, at time.Duration, header int) ([]byte, error) {
	switch {
	case len(plaintext) > envelope.MaxPlaintext:
		return nil, &envelope.TooLargeError{What: "plaintext", Size: len(plaintext), Limit: envelope.MaxPlaintext}
	case c.Len() > envelope.MaxContext:
		return nil, &envelope.TooLargeError{What: "context", Size: c.Len(), Limit: envelope.MaxContext}
	}
	w := getScratch()
	s, err := m.claim(w, unitsOf(len(plaintext)), at)
	if err != nil {
		w.release()
		return nil, err
	}

	start := len(dst)
	body := start + header + prefixSize
	inPlace := len(plaintext) > 0 && cap(dst) > start && &dst[:start+1][start] == &plaintext[0]
	size := header + prefixSize + gcmOverhead + len(plaintext)
	var out []byte
	if dst != nil {
		out = slices.Grow(dst, size)[:body]
	} else { // 4 ns sooner than what grows from nothing
		out = make([]byte, body, size)
	}
	if inPlace {
		// The header goes where the plaintext is, so that has to move to where GCM would write.
		moved := out[body : body+len(plaintext)]
		copy(moved, plaintext)
		plaintext = moved
	}
	w.aad = envelope.AppendMessageAAD(w.aad[:0], key.Message, &m.kid, c)
	out = s.aead.Seal(out, nil, plaintext, w.aad)
	w.release()
	// After the plaintext is read, so that nothing of it can be overwritten before.
	if header == envelope.AttachedHeader {
		envelope.PutAttachedHeader(out[start:], key.Message, &m.kid)
	} else {
		envelope.PutDetachedHeader(out[start:], key.Message)
	}
	copy(out[body-prefixSize:], s.prefix[:])
	return out, nil
}

// Open appends the plaintext of a message in the attached form to dst, and returns the longer slice. ciphertext and the
// capacity of dst must overlap exactly (ciphertext[:0] as dst) or not at all; of what is overwritten then, nothing is
// left if it does not open, and zeros follow the plaintext if it does. A message that names another key, is in the
// other form, or is too long is refused like a changed one, with [ErrOpen]; a closed key is [ErrClosed], and dst and
// ciphertext are as they were. It allocates nothing if dst has room for the plaintext and the prefix is that of
// messages sealed here or opened before.
func (m *MessageKey) Open(dst, ciphertext []byte, c *envelope.Parts) ([]byte, error) {
	sealed, ok := envelope.SealedAttached(ciphertext, &m.kid)
	if !ok {
		return nil, ErrOpen
	}
	return m.open(dst, ciphertext, sealed, c)
}

// OpenDetached is [MessageKey.Open] for the detached form.
func (m *MessageKey) OpenDetached(dst, ciphertext []byte, c *envelope.Parts) ([]byte, error) {
	sealed, ok := envelope.SealedDetached(ciphertext)
	if !ok {
		return nil, ErrOpen
	}
	return m.open(dst, ciphertext, sealed, c)
}

func (m *MessageKey) open(dst, whole, sealed []byte, c *envelope.Parts) ([]byte, error) {
	if len(sealed) > maxSealed || c.Len() > envelope.MaxContext {
		return nil, ErrOpen
	}
	prefix := (*[prefixSize]byte)(sealed)
	body := sealed[prefixSize:]
	w := getScratch()
	aead, fresh, err := m.subkey(w, prefix)
	if err != nil {
		w.release()
		return nil, err
	}

	start := len(dst)
	out := dst
	inPlace := cap(dst) > start && &dst[:start+1][start] == &whole[0]
	if inPlace {
		out = body[:0]
	}
	w.aad = envelope.AppendMessageAAD(w.aad[:0], key.Message, &m.kid, c)
	out, err = aead.Open(out, nil, body, w.aad)
	w.release()
	if err != nil {
		return nil, ErrOpen
	}
	if fresh != nil {
		subkeys.add(fresh)
	}
	if inPlace {
		out = append(dst, out...)
		clear(whole[len(out)-start:]) // where GCM wrote it, the end of the plaintext is left
	}
	return out, nil
}

// subkey returns the cipher that a prefix selects; if it was not at hand, with what is to be kept of it if it opens the
// message. The error is [ErrClosed].
func (m *MessageKey) subkey(w *scratch, prefix *[prefixSize]byte) (cipher.AEAD, *subkey, error) {
	s := m.sealing.Load()
	if s == &closedState {
		return nil, nil, ErrClosed
	}
	if s != nil && s.prefix == *prefix {
		return s.aead, nil, nil
	}
	if aead := subkeys.find(m, prefix); aead != nil {
		return aead, nil, nil
	}
	aead, err := m.xaes.aead(&w.derivation, prefix)
	if err != nil {
		return nil, nil, err
	}
	return aead, &subkey{owner: m, prefix: *prefix, aead: aead}, nil
}
