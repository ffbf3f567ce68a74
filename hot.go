package keyhold

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/store"
)

// Raw keys that are in use are found without a lock, and without looking at their manifest again: what was found out by
// the last look holds as long as nothing that it depended on has changed, which is a few words to compare, and at most
// until the next question to the database.

// A look at a clock costs more than all the rest. So while keys are in use and Run is at work, it looks at the clocks
// for all of them every tickEvery. A key goes on for so long when it should not any more, and as long as the process
// does not get to run besides.
const (
	tickEvery = 20 * time.Millisecond
	tickFor   = time.Second // after the last use

	// recheck is how long, without Run, the monotonic clock alone is asked, which stands still while a machine is
	// suspended: so for so long, at most, a key that was in use before goes on after that.
	recheck = 100 * time.Millisecond
)

// tick says that a reading was new enough a moment ago.
type tick struct {
	reading *reading
	mono    time.Duration
}

// ticker is the looks at the clocks.
type ticker struct {
	last atomic.Pointer[tick] // nil while nobody looks
	used atomic.Bool          // since the last look
	wake chan struct{}
}

// tickLoop looks at the clocks while keys are in use.
func (m *Manager) tickLoop(ctx context.Context) error {
	t := &m.ticker
	defer t.last.Store(nil)
	for {
		t.last.Store(nil)
		select {
		case <-t.wake:
		case <-ctx.Done():
			return nil
		}
		for unused := time.Duration(0); unused < tickFor; unused += tickEvery {
			now, r := m.epochs.clock(), m.epochs.known.Load()
			if r != nil && now.since(r.asked) >= epochLife {
				r = nil
			}
			t.last.Store(&tick{r, now.mono})
			if !pause(ctx, tickEvery, nil) {
				return nil
			}
			if t.used.Swap(false) {
				unused = 0
			}
		}
	}
}

// hotRaw is a version of a raw key that may be used while the standing is the same. It never changes, but for when the
// clocks were compared.
type hotRaw struct {
	hash     uint64
	ref      Ref
	asked    Version // the number that is asked for; 0 for the head
	number   Version
	material *secret.Shared

	standing standing
	until    time.Duration // by the monotonic clock
	compared atomic.Int64  // when both clocks were, by the monotonic one
}

// standing is what is known now, as far as the use of a kept key depends on it.
type standing struct {
	reading             *reading
	changes, registered uint64
	ring                uint64
}

func (m *Manager) standing() standing {
	// What the reading has to be newer than comes first.
	s := standing{changes: m.epochs.changes.Load(), registered: m.epochs.registered.Load(), ring: m.ring.changes.Load()}
	s.reading = m.epochs.known.Load()
	return s
}

// usable says whether it may be used now.
func (h *hotRaw) usable(m *Manager) bool {
	if h.standing != m.standing() {
		return false
	}
	if last := m.ticker.last.Load(); last != nil {
		if !m.ticker.used.Load() { // a line that is only read stays with every core
			m.ticker.used.Store(true)
		}
		if last.reading == h.standing.reading && last.mono+tickEvery < h.until {
			return true
		}
	} else if m.epochs.runs.Load() {
		signal(m.ticker.wake)
	}
	now := m.epochs.mono()
	if now >= h.until {
		return false
	}
	if now-time.Duration(h.compared.Load()) < recheck {
		return true
	}
	both := m.epochs.clock()
	if both.since(h.standing.reading.asked) >= epochLife {
		return false
	}
	h.compared.Store(int64(both.mono))
	return true
}

// keepHot keeps a version that was read and opened, if nothing has changed since the given standing and the key is one
// that may be used without being read again.
func (m *Manager) keepHot(before standing, ref Ref, asked Version, v *store.Version, material *secret.Shared) {
	u, e := opens, m.epochs
	if asked == 0 {
		u = seals
	}
	now, clock := m.standing(), e.clock()
	s, ok := m.cache.peek(ref)
	if now != before || m.strict || !ok || now.reading == nil || now.reading.changes < now.changes ||
		!s.valid(now.reading, u) || s.ring != now.ring || clock.since(now.reading.asked) >= epochLife {
		return
	}
	// The one that was read may have been another state of the key.
	kept := s.family()
	if its, ok := versionByID(&kept.Data[0], v.ID); !ok || its.State != v.State {
		return
	}
	until := min(now.reading.asked.mono+epochLife, s.read.mono+m.snapshotLife)
	if u == seals {
		signed := e.signed.Load()
		if signed == nil || !e.mayServe(now.reading) {
			return
		}
		until = min(until, signed.at.mono+e.lives[seals])
	}
	h := &hotRaw{hash: hashOf(ref, asked), ref: ref, asked: asked, number: v.Number, material: material, standing: now, until: until}
	h.compared.Store(int64(clock.mono))
	m.hotRaws.put(h)
}

// hotRaws is a table that is read without a lock. What is in it may be of no use any more: who finds it, looks.
type hotRaws struct {
	slots atomic.Pointer[[]atomic.Pointer[hotRaw]] // a power of two of them, at most half of them used

	mu   sync.Mutex // held by who changes it
	used int
}

var hotSeed = maphash.MakeSeed()

func hashOf(ref Ref, asked Version) uint64 {
	return maphash.Comparable(hotSeed, ref) + uint64(asked)*0x9e3779b97f4a7c15 // neighbours in number are far apart
}

// find returns what may be used now for a version of ref's key, nil if there is nothing.
func (t *hotRaws) find(ref Ref, asked Version, m *Manager) *hotRaw {
	slots := t.slots.Load()
	if slots == nil {
		return nil
	}
	hash := hashOf(ref, asked)
	mask := uint64(len(*slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		h := (*slots)[i].Load()
		if h == nil {
			return nil
		}
		if h.hash == hash && h.asked == asked && h.ref == ref {
			if h.usable(m) {
				return h
			}
			return nil
		}
	}
}

func (t *hotRaws) put(h *hotRaw) {
	t.mu.Lock()
	defer t.mu.Unlock()
	slots := t.slots.Load()
	if slots == nil || 2*(t.used+1) > len(*slots) {
		slots = t.grow(slots, h.standing)
	}
	if t.insert(*slots, h) {
		t.used++
	}
}

// insert says whether it took an empty slot.
func (*hotRaws) insert(slots []atomic.Pointer[hotRaw], h *hotRaw) bool {
	mask := uint64(len(slots) - 1)
	for i := h.hash & mask; ; i = (i + 1) & mask {
		its := slots[i].Load()
		if its == nil || its.hash == h.hash && its.asked == h.asked && its.ref == h.ref {
			slots[i].Store(h)
			return its == nil
		}
	}
}

// grow makes a table for those that can still be used, with room for as many again.
func (t *hotRaws) grow(old *[]atomic.Pointer[hotRaw], now standing) *[]atomic.Pointer[hotRaw] {
	var keep []*hotRaw
	if old != nil {
		for i := range *old {
			if h := (*old)[i].Load(); h != nil && h.standing == now && !h.material.Cleared() {
				keep = append(keep, h)
			}
		}
	}
	size := 64
	for size < 4*(len(keep)+1) {
		size *= 2
	}
	slots := make([]atomic.Pointer[hotRaw], size)
	for _, h := range keep {
		t.insert(slots, h)
	}
	t.used = len(keep)
	t.slots.Store(&slots)
	return &slots
}
