package seal

import (
	"crypto/cipher"
	"sync"
	"sync/atomic"
	"time"
)

// How long a sealer may keep one nonce prefix (docs/format.md, section 5): 2^16 messages, 2^34 bytes, 60 seconds.
//
// Messages and bytes are counted together, in units: a message takes one, and one more for each unitBytes that it has.
// So neither are the units more than the messages may be, nor do they stand for more bytes than there may be.
const (
	maxPrefixUnits = 1 << 16
	unitBytes      = 1 << 18
	maxPrefixAge   = 59 * time.Second // the times that callers say may be older than they are
	maxLag         = time.Second      // by which one may be older than another's

	// maxBlock is how many units a scratch claims at most before they are needed. What it does not use is lost.
	maxBlock = 64
)

func unitsOf(plaintext int) uint32 { return 1 + uint32(plaintext/unitBytes) }

// prefixState is a nonce prefix and the subkey that it selects. Only used ever changes.
type prefixState struct {
	prefix [prefixSize]byte
	used   atomic.Uint32 // units; never more than maxPrefixUnits
	aead   cipher.AEAD
	born   time.Duration // by the callers' clock
}

// closedState is what a closed key has in place of a prefix. It has no cipher.
var closedState prefixState

// young says whether s may be used at the given time, which may be from before that for a caller who is later than the
// one who made s. One from long before is of a clock that went back, and then the age of s is unknown.
func (s *prefixState) young(at time.Duration) bool {
	age := at - s.born
	return age < maxPrefixAge && age > -maxLag
}

// claim returns a prefix that one more message of so many units may be sealed under, and counts it. The error is
// [ErrClosed].
func (m *MessageKey) claim(w *scratch, units uint32, at time.Duration) (*prefixState, error) {
	for {
		s := m.sealing.Load()
		if s == &closedState {
			return nil, ErrClosed
		}
		if s != nil && s.young(at) && w.take(s, units) {
			return s, nil
		}
		fresh := &prefixState{born: at}
		fill(fresh.prefix[:])
		var err error
		if fresh.aead, err = m.xaes.aead(&w.derivation, &fresh.prefix); err != nil {
			return nil, err
		}
		m.sealing.CompareAndSwap(s, fresh) // or another did
	}
}

// scratch is what one call at a time may use. There are about as many as there are processors.
type scratch struct {
	aad []byte
	derivation

	// Units of a prefix that were claimed and are not used yet, so that processors that seal with one key seldom write
	// to the same memory. It is named by its own bytes, so that no scratch keeps a cipher that its key let go of.
	prefix [prefixSize]byte
	left   uint32
	block  uint32 // how many are claimed next: twice as many each time that they are of the same prefix
}

// What is passed through the cipher.AEAD interface cannot be on the stack.
var scratches = sync.Pool{New: func() any { return &scratch{aad: make([]byte, 0, 256)} }}

func getScratch() *scratch { return scratches.Get().(*scratch) }

// release keeps a scratch for later, unless a long context has made it large.
func (w *scratch) release() {
	if cap(w.aad) <= 4096 {
		scratches.Put(w)
	}
}

// take counts so many units of s as used, and says whether it had them.
func (w *scratch) take(s *prefixState, units uint32) bool {
	if w.prefix != s.prefix {
		w.prefix, w.left, w.block = s.prefix, 0, 1
	}
	for w.left < units {
		used := s.used.Load()
		there := maxPrefixUnits - used
		if there < units {
			return false
		}
		claimed := min(max(units, w.block), there)
		if s.used.CompareAndSwap(used, used+claimed) {
			w.left += claimed
			w.block = min(2*w.block, maxBlock)
		}
	}
	w.left -= units
	return true
}
