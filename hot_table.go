package keyhold

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"keyhold.example/keyhold/key"
)

// hotName is what a key in use is found by.
type hotName struct {
	what   byte
	ref    Ref     // whose it is; not what a version for messages is found by
	number Version // of a version of a raw key
	kid    key.KID // of a version for messages; whatever it was found by, of the version that was found
}

// What a hotName names.
const (
	headOfRef byte = iota
	numberOfRef
	versionWithKID
)

var hotSeed = maphash.MakeSeed()

func (n *hotName) hash() uint64 {
	if n.what == versionWithKID {
		return maphash.Bytes(hotSeed, n.kid[:])
	}
	return maphash.Comparable(hotSeed, n.ref) + uint64(n.number)*0x9e3779b97f4a7c15 // neighbours in number are far apart
}

func (n *hotName) is(other *hotName) bool {
	if n.what != other.what {
		return false
	}
	if n.what == versionWithKID {
		return n.kid == other.kid
	}
	return n.number == other.number && n.ref == other.ref
}

// hotKeys is a table that is read without a lock. What is in it may be of no use any more: who finds it, looks.
type hotKeys struct {
	slots atomic.Pointer[[]atomic.Pointer[hotKey]] // a power of two of them, at most half of them used

	mu   sync.Mutex // held by who changes it
	used int
	puts int // since it was last made anew
}

// find returns what was kept by that name, nil if nothing was.
func (t *hotKeys) find(name *hotName) *hotKey {
	slots := t.slots.Load()
	if slots == nil {
		return nil
	}
	hash := name.hash()
	mask := uint64(len(*slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		h := (*slots)[i].Load()
		if h == nil || h.hash == hash && h.is(name) {
			return h
		}
	}
}

// put keeps h, in the place of what has its name. What is gone is thrown out, once as many were put as there were.
func (t *hotKeys) put(h *hotKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slots := t.slots.Load()
	if t.puts++; slots == nil || 2*(t.used+1) > len(*slots) || t.puts > max(len(*slots)/4, 64) {
		slots = t.renew(slots)
	}
	if t.insert(*slots, h) {
		t.used++
	}
}

// insert says whether it took an empty slot.
func (*hotKeys) insert(slots []atomic.Pointer[hotKey], h *hotKey) bool {
	mask := uint64(len(slots) - 1)
	for i := h.hash & mask; ; i = (i + 1) & mask {
		its := slots[i].Load()
		if its == nil || its.hash == h.hash && its.is(&h.hotName) {
			slots[i].Store(h)
			return its == nil
		}
	}
}

// renew makes a table for those that are still there, with room for as many again.
func (t *hotKeys) renew(old *[]atomic.Pointer[hotKey]) *[]atomic.Pointer[hotKey] {
	var keep []*hotKey
	if old != nil {
		for i := range *old {
			if h := (*old)[i].Load(); h != nil && !h.gone() {
				keep = append(keep, h)
			}
		}
	}
	size := 64
	for size < 4*(len(keep)+1) {
		size *= 2
	}
	slots := make([]atomic.Pointer[hotKey], size)
	for _, h := range keep {
		t.insert(slots, h)
	}
	t.used, t.puts = len(keep), 0
	t.slots.Store(&slots)
	return &slots
}
