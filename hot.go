package keyhold

import (
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Keys that are in use are found without a lock that readers share, and without looking at their manifest again: what
// was found out by the last look holds as long as nothing that it depended on has changed, which is a few words to
// compare. After each answer of the database a key goes on if its epoch is what it was, and its snapshot the one that
// it was found in.

// recheck is how long the monotonic clock alone is asked, which costs half of asking both. It stands still while a
// machine is suspended, so for so long, at most, a key that was in use before goes on after that. It is shorter than
// what passes by this clock between a machine's coming back and its processes' going on.
const recheck = time.Millisecond

// counts are how often something happened after which what is kept has to be looked at again.
type counts struct {
	changes, registered uint64 // of this process's own
	ring                uint64 // of the installation keys
	drops               uint64 // of what was kept of some key, unless for want of room
}

func (m *Manager) counts() counts {
	return counts{m.epochs.changes.Load(), m.epochs.registered.Load(), m.ring.changes.Load(), m.cache.drops.Load()}
}

// standing is what is known now, as far as the use of kept keys depends on it. It never changes, but for when the
// clocks were compared.
type standing struct {
	reading  *reading
	counts   counts
	until    [2]time.Duration // by use: when the database is to be asked again, by the monotonic clock
	compared atomic.Int64     // when both clocks were, by the monotonic one
}

// stands returns what is known now, if kept keys may be used by it without a question to the database, and what the
// monotonic clock shows. A clock is asked each time: a process that was suspended goes on with whichever goroutine
// comes first, so none could look for the others.
func (m *Manager) stands(u use) (*standing, time.Duration) {
	s := m.standing.Load()
	// What the reading has to be newer than comes first.
	if now := m.counts(); s == nil || s.counts != now || s.reading != m.epochs.known.Load() {
		if s = m.newStanding(s, now); s == nil {
			return nil, 0
		}
	}
	now := m.epochs.mono()
	if now >= s.until[u] {
		return nil, 0
	}
	if now-time.Duration(s.compared.Load()) < recheck {
		return s, now
	}
	both := m.epochs.clock()
	if both.since(s.reading.asked) >= epochLife {
		return nil, 0
	}
	s.compared.Store(int64(both.mono))
	return s, now
}

// newStanding takes the place of the one that was, for all; nil if what is known does not do.
func (m *Manager) newStanding(was *standing, now counts) *standing {
	e := m.epochs
	s := &standing{reading: e.known.Load(), counts: now}
	if m.strict || s.reading == nil || s.reading.changes < now.changes {
		return nil
	}
	clock := e.clock()
	if clock.since(s.reading.asked) >= epochLife {
		return nil
	}
	s.until[opens] = s.reading.asked.mono + epochLife
	if signed := e.signed.Load(); signed != nil && e.mayServe(s.reading) {
		s.until[seals] = min(s.until[opens], signed.at.mono+e.lives[seals])
	}
	s.compared.Store(int64(clock.mono))
	if !m.standing.CompareAndSwap(was, s) {
		its := m.standing.Load()
		if its.counts != now || its.reading != s.reading {
			return nil
		}
		s = its
	}
	return s
}

// hotKey is a version of a data key that may be used while it stands. It never changes, but for that.
type hotKey struct {
	hotName
	hash uint64

	id       key.ID
	number   Version
	material *secret.Shared   // of a raw key
	messages *seal.MessageKey // of a key for messages
	budget   *budget          // of a head that may seal so many messages only
	snapshot *snapshot        // in which it was found
	until    time.Duration    // when that is to be read again, by the monotonic clock
	standing atomic.Pointer[standing]
}

// use is what it may be used for.
func (h *hotKey) use() use {
	if h.what == headOfRef {
		return seals
	}
	return opens
}

// gone says that the cache has dropped it.
func (h *hotKey) gone() bool {
	if h.messages != nil {
		return h.messages.Closed()
	}
	return h.material.Cleared()
}

// hotKey returns what may be used now by that name, nil if there is nothing, and what the monotonic clock shows.
func (m *Manager) hotKey(name *hotName) (*hotKey, time.Duration) {
	h := m.hotKeys.find(name)
	if h == nil {
		return nil, 0
	}
	s, at := m.stands(h.use())
	if s == nil || at >= h.until || h.standing.Load() != s && !m.goesOn(h, s) {
		return nil, 0
	}
	return h, at
}

// goesOn says whether a key may be used by what is known now, which is not what it was used by before.
func (m *Manager) goesOn(h *hotKey, s *standing) bool {
	u, clock := h.use(), m.epochs.clock()
	if !m.cache.uses(h) || !m.maySeeAs(h.snapshot, s, u, clock) || u == seals && !m.isDurable(h.id, h.snapshot.begun) {
		return false
	}
	h.standing.Store(s)
	return true
}

// maySeeAs says whether a snapshot may be used by what is known now.
func (m *Manager) maySeeAs(snap *snapshot, s *standing, u use, now instant) bool {
	return snap.valid(s.reading, u) && snap.ring == s.counts.ring && now.since(snap.read.instant()) < m.snapshotLife
}

// keepHot keeps a version that was read and opened since the given counts, for the next call, if nothing has changed
// since and the key is one that may be used without being read again.
func (m *Manager) keepHot(before counts, h *hotKey, fam *family, v *store.Version) {
	u := h.use()
	s, _ := m.stands(u)
	if s == nil || s.counts != before {
		return
	}
	clock := m.epochs.clock()
	snap, ok := m.cache.peek(key.Ref{Scope: fam.Root.Scope, Purpose: fam.Data[0].Purpose})
	// The one that was read may have been another state of the key.
	if !ok || !snap.isOf(fam) || fam.older || !m.maySeeAs(snap, s, u, clock) || u == seals && !m.isDurable(v.ID, snap.begun) {
		return
	}
	// Its texts are the snapshot's, so that it keeps nothing else alive.
	kept := snap.family()
	its, ok := versionByID(&kept.Data[0], v.ID)
	if !ok {
		return
	}
	h.ref, h.id, h.kid, h.number, h.snapshot = snap.key(), its.ID, key.KID(v.Commit), v.Number, snap
	h.hash = h.hotName.hash()
	h.until = snap.read.mono + m.snapshotLife
	h.standing.Store(s)
	m.hotKeys.put(h)
}
