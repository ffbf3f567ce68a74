package secret

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
)

// Shared is secret bytes that any number of goroutines may copy while one clears them, without a lock: a copy is either
// whole or is not made. It prints as [Redacted]. A nil Shared holds nothing.
type Shared struct {
	words []atomic.Uint64
	n     uint32
	dead  atomic.Bool
}

// NewShared copies b, which stays the caller's.
func NewShared(b []byte) *Shared {
	s := &Shared{words: make([]atomic.Uint64, (len(b)+7)/8), n: uint32(len(b))}
	var word [8]byte
	defer clear(word[:])
	for i := range s.words {
		clear(word[:])
		copy(word[:], b[8*i:])
		s.words[i].Store(binary.LittleEndian.Uint64(word[:]))
	}
	return s
}

// Copy returns a new slice with the bytes, which is the caller's; or false, and nothing, once they are cleared.
func (s *Shared) Copy() ([]byte, bool) {
	if s == nil {
		return nil, false
	}
	b := make([]byte, s.n)
	if !s.CopyTo(b) {
		return nil, false
	}
	return b, true
}

// CopyTo overwrites b, which has to be as long as the bytes are, with them, and says whether they were still there. If
// not, b is zeros.
func (s *Shared) CopyTo(b []byte) bool {
	if s == nil || len(b) != int(s.n) {
		clear(b)
		return false
	}
	whole := len(b) / 8
	for i := range whole {
		binary.LittleEndian.PutUint64(b[8*i:], s.words[i].Load())
	}
	if rest := b[8*whole:]; len(rest) > 0 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], s.words[whole].Load())
		copy(rest, word[:])
		clear(word[:])
	}
	// What was cleared before the last word was read was said before.
	if s.dead.Load() {
		clear(b)
		return false
	}
	return true
}

// Clear overwrites the bytes with zeros. Clearing again does nothing.
func (s *Shared) Clear() {
	if s == nil {
		return
	}
	s.dead.Store(true)
	for i := range s.words {
		s.words[i].Store(0)
	}
}

// Cleared says whether the bytes are cleared, and no copy is to be had.
func (s *Shared) Cleared() bool { return s == nil || s.dead.Load() }

// Format implements [fmt.Formatter] for all verbs.
func (*Shared) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Redacted) }
