package seal

import (
	"crypto/cipher"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// How long a sealer may keep one nonce prefix (docs/format.md, section 5).
const (
	maxPrefixMessages = 1 << 16
	maxPrefixBytes    = 1 << 34
	maxPrefixAge      = 60 * time.Second
)

// MessageKey seals and opens messages with one data key version (section 5). It prints as redacted and is safe for
// concurrent use: neither sealing nor opening ever waits for another goroutine.
//
// Between calls it keeps a nonce prefix and the cipher state that it selects, within the limits of the format. The
// subkeys of other prefixes that it has opened are in a cache of fixed size that all keys of the process share. A key
// that has sealed takes about 1.5 KiB.
type MessageKey struct {
	opaque
	kid     key.KID
	xaes    *XAES
	sealing atomic.Pointer[prefixState]
	closed  atomic.Bool
}

// prefixState is a nonce prefix and the subkey that it selects.
type prefixState struct {
	prefix [prefixSize]byte
	aead   cipher.AEAD
	born   time.Time     // with a monotonic reading
	used   atomic.Uint64 // messages and bytes sealed; see claim
}

// Messages returns k as a key of messages. If k is not a data key of algorithm [key.Message] the error is a
// [*key.InvalidError]. It derives a key, so it is worth keeping.
func (k *Key) Messages() (*MessageKey, error) {
	if k.id.Kind == key.IK || k.id.Alg != key.Message {
		return nil, key.Invalid("algorithm", k.id.Alg.String(), "only keys for messages seal messages")
	}
	messageKey := expand(k.material.Reveal(), envelope.Tuple("kh1/msg-key", envelope.U8(uint8(k.id.Alg))))
	defer clear(messageKey)
	return &MessageKey{kid: k.KID(), xaes: newXAES(messageKey)}, nil
}

// KID returns the kid of the key version, which attached messages carry.
func (m *MessageKey) KID() key.KID { return m.kid }

// Close lets go of the key: sealing and opening are errors from then on, [ErrOpen] for opening. Calls that have begun
// end as if it had not been called. Closing again does nothing.
func (m *MessageKey) Close() { CloseAll([]*MessageKey{m}) }

// CloseAll closes many keys at the cost of closing one, which is a look at the whole cache of subkeys.
func CloseAll(keys []*MessageKey) {
	for _, m := range keys {
		m.closed.Store(true)
		m.sealing.Store(nil)
	}
	subkeys.drop(func(owner *MessageKey) bool { return owner.closed.Load() })
}

// Forget drops what m keeps between calls, for a key that is no longer kept itself and that calls may still be using.
func (m *MessageKey) Forget() { ForgetAll([]*MessageKey{m}) }

// ForgetAll forgets many keys at the cost of one.
func ForgetAll(keys []*MessageKey) {
	if len(keys) == 0 {
		return
	}
	gone := make(map[*MessageKey]bool, len(keys))
	for _, m := range keys {
		m.sealing.Store(nil)
		gone[m] = true
	}
	subkeys.drop(func(owner *MessageKey) bool { return gone[owner] })
}

// Seal appends a message in the attached form to dst, which is 58 bytes more than the plaintext, and returns the longer
// slice. plaintext and the capacity of dst must overlap exactly (plaintext[:0] as dst) or not at all. A plaintext
// longer than [envelope.MaxPlaintext] or a context longer than [envelope.MaxContext] is an [*envelope.TooLargeError].
// It allocates nothing if dst has room for the message.
func (m *MessageKey) Seal(dst, plaintext []byte, context string) ([]byte, error) {
	return m.seal(dst, plaintext, context, envelope.AttachedHeader)
}

// SealDetached is [MessageKey.Seal] in the detached form, 42 bytes more than the plaintext. What opens it has to be
// told the key.
func (m *MessageKey) SealDetached(dst, plaintext []byte, context string) ([]byte, error) {
	return m.seal(dst, plaintext, context, envelope.DetachedHeader)
}

func (m *MessageKey) seal(dst, plaintext []byte, context string, header int) ([]byte, error) {
	switch {
	case len(plaintext) > envelope.MaxPlaintext:
		return nil, &envelope.TooLargeError{What: "plaintext", Size: len(plaintext), Limit: envelope.MaxPlaintext}
	case len(context) > envelope.MaxContext:
		return nil, &envelope.TooLargeError{What: "context", Size: len(context), Limit: envelope.MaxContext}
	case m.closed.Load():
		return nil, errClosed
	}
	s := m.claim(len(plaintext))

	start := len(dst)
	body := start + header + prefixSize
	inPlace := len(plaintext) > 0 && cap(dst) > start && &dst[:start+1][start] == &plaintext[0]
	out := slices.Grow(dst, header+prefixSize+gcmOverhead+len(plaintext))[:body]
	if inPlace {
		// The header goes where the plaintext is, so that has to move to where GCM would write.
		moved := out[body : body+len(plaintext)]
		copy(moved, plaintext)
		plaintext = moved
	}
	aad := m.aad(context)
	out = s.aead.Seal(out, nil, plaintext, *aad)
	release(aad)
	// After the plaintext is read, so that nothing of it can be overwritten before.
	if header == envelope.AttachedHeader {
		envelope.PutAttachedHeader(out[start:], key.Message, m.kid)
	} else {
		envelope.PutDetachedHeader(out[start:], key.Message)
	}
	copy(out[body-prefixSize:], s.prefix[:])
	return out, nil
}

// claim returns a prefix that one more message of n bytes may be sealed under, and counts it.
//
// The count is one number, messages above and bytes below, so that one addition does it. Others may add between the
// look at it and the addition, and then go elsewhere: so many that the upper part would wrap, 900 000 at once, there
// are not.
func (m *MessageKey) claim(n int) *prefixState {
	const (
		shift      = 44
		oneMessage = uint64(1) << shift
		bytes      = oneMessage - 1
	)
	add := oneMessage + uint64(n)
	within := func(used uint64) bool { return used>>shift <= maxPrefixMessages && used&bytes <= maxPrefixBytes }
	for {
		s := m.sealing.Load()
		if s != nil && within(s.used.Load()+add) && time.Since(s.born) < maxPrefixAge && within(s.used.Add(add)) {
			return s
		}
		fresh := &prefixState{born: time.Now()}
		fill(fresh.prefix[:])
		fresh.aead = m.xaes.aead(fresh.prefix[:])
		fresh.used.Store(add)
		if m.sealing.CompareAndSwap(s, fresh) {
			return fresh
		}
	}
}

// Open appends the plaintext of a message in the attached form to dst, and returns the longer slice. ciphertext and the
// capacity of dst must overlap exactly (ciphertext[:0] as dst) or not at all; of what is overwritten then, nothing is
// left if it does not open. A message that names another key, is in the other form, or is too long is refused like a
// changed one, with [ErrOpen].
func (m *MessageKey) Open(dst, ciphertext []byte, context string) ([]byte, error) {
	msg, err := envelope.ParseMessage(ciphertext)
	if err != nil || !msg.Attached || msg.KID != m.kid {
		return nil, ErrOpen
	}
	return m.open(dst, ciphertext, msg.Sealed, context)
}

// OpenDetached is [MessageKey.Open] for the detached form.
func (m *MessageKey) OpenDetached(dst, ciphertext []byte, context string) ([]byte, error) {
	msg, err := envelope.ParseMessage(ciphertext)
	if err != nil || msg.Attached {
		return nil, ErrOpen
	}
	return m.open(dst, ciphertext, msg.Sealed, context)
}

func (m *MessageKey) open(dst, whole, sealed []byte, context string) ([]byte, error) {
	if len(sealed) > maxSealed || len(context) > envelope.MaxContext || m.closed.Load() {
		return nil, ErrOpen
	}
	prefix := [prefixSize]byte(sealed)
	body := sealed[prefixSize:]
	aead, known := m.subkey(&prefix)

	start := len(dst)
	out := dst
	inPlace := cap(dst) > start && &dst[:start+1][start] == &whole[0]
	if inPlace {
		out = body[:0]
	}
	aad := m.aad(context)
	out, err := aead.Open(out, nil, body, *aad)
	release(aad)
	if err != nil {
		return nil, ErrOpen
	}
	if !known {
		subkeys.add(m, prefix, aead)
	}
	if inPlace {
		out = append(dst, out...)
	}
	return out, nil
}

// subkey returns the cipher that a prefix selects, and whether it was at hand.
func (m *MessageKey) subkey(prefix *[prefixSize]byte) (aead cipher.AEAD, known bool) {
	if s := m.sealing.Load(); s != nil && s.prefix == *prefix {
		return s.aead, true
	}
	if aead := subkeys.find(m, prefix); aead != nil {
		return aead, true
	}
	return m.xaes.aead(prefix[:]), false
}

// buffers holds AADs while they are in use: what is passed through the cipher.AEAD interface cannot be on the stack.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 256); return &b }}

// aad returns the AAD of a message in a buffer, which is to be released.
func (m *MessageKey) aad(context string) *[]byte {
	buf, _ := buffers.Get().(*[]byte)
	*buf = envelope.AppendMessageAAD((*buf)[:0], key.Message, m.kid, context)
	return buf
}

// release keeps a buffer for later, unless a long context has made it large.
func release(buf *[]byte) {
	if cap(*buf) <= 4096 {
		buffers.Put(buf)
	}
}
