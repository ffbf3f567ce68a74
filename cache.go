package keyhold

import (
	"context"
	"errors"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Bounds of the cache, where [Config.CacheKeys] does not ask for more.
const (
	defaultCached = 32_768 // opened data key versions, and snapshots
	maxParents    = 4096
	maxSeen       = 131_072
	maxBudgets    = 16_384
	maxDurable    = 16_384
)

// cache keeps what is costly to make or to read again.
//
// Opened keys are found only by a row that is, byte for byte, the one that was unwrapped, so that a changed row is
// never taken for an opened one; they say nothing of whether a key may be used. Snapshots do, as long as their epochs
// are right, which who asks for them looks at. The highest sequence number that was seen of each key is remembered,
// too.
//
// What there is of each key is kept small, and nothing in it refers to what a caller passed or a database answered, so
// that it is all that it takes.
type cache struct {
	limit     int
	mu        sync.Mutex
	opened    lru[key.KID, openedKey] // data key versions
	parents   lru[key.KID, openedKey] // root key versions, which it takes to open those, and not to use them
	seen      lru[mark, sequence]
	snapshots lru[key.Ref, *snapshot]
	refs      lru[uint64, place] // of versions
	budgets   lru[key.ID, *budget]
	durable   lru[mark, mark]           // versions that no failover loses
	lost      lru[key.Ref, *snapshot]   // of keys that the database has in an older state
	fills     map[any]*filling          // under way; by key.Ref, or by the id of a version
	openings  map[openedRow]*oneOpening // likewise
	forgets   uint64                    // how often something was forgotten
	work      chan struct{}             // told when there may be something for a sweep to do at once

	// drops is how often the snapshot of a key was dropped, or is not to be used any more, unless for want of room.
	drops atomic.Uint64
}

// The groups of the snapshots.
const (
	ofScope = iota
	ofRoot
)

// mark stands for an id, in less room.
type mark [16]byte

func markOf(id key.ID) mark {
	digest := seal.Digest([]byte(id))
	return mark(digest[:len(mark{})])
}

func (m mark) key() mark { return m }

// sequence is the highest sequence number that was seen of a key.
type sequence struct {
	id  mark
	seq uint64
}

func (s sequence) key() mark { return s.id }

// place is where the snapshot of a version's key was when it was kept. Who finds another one there has found nothing.
type place struct {
	version  uint64 // its id's hash
	snapshot int32
}

func (p place) key() uint64 { return p.version }

func hashText[T ~string](s T) uint64 { return maphash.String(lruSeed, string(s)) }

func newCache(limit int) *cache {
	c := &cache{limit: limit, fills: map[any]*filling{}, openings: map[openedRow]*oneOpening{}, work: make(chan struct{}, 1)}
	c.empty()
	return c
}

func (c *cache) empty() {
	c.opened, c.parents = newLRU[key.KID, openedKey](c.limit), newLRU[key.KID, openedKey](min(maxParents, c.limit))
	c.seen = newLRU[mark, sequence](max(maxSeen, 2*c.limit)) // of root keys and data keys
	c.snapshots = newLRU[key.Ref](c.limit,
		func(s *snapshot) uint64 { return hashText(s.key().Scope) },
		func(s *snapshot) uint64 { root, _ := s.rows.ids(); return hashText(root) })
	c.refs, c.budgets = newLRU[uint64, place](c.limit), newLRU[key.ID, *budget](max(maxBudgets, c.limit))
	c.lost = newLRU[key.Ref, *snapshot](c.limit)
	c.forgetDurable()
}

func (c *cache) forgetDurable() { c.durable = newLRU[mark, mark](max(maxDurable, c.limit)) }

func (c *cache) snapshot(ref key.Ref) (*snapshot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshots.get(ref)
}

// uses says whether what a key in use was found in is still kept, and it too, and that it is used.
func (c *cache) uses(h *hotKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.snapshots.get(h.ref)
	if !ok || s != h.snapshot {
		return false
	}
	s.used.Store(true)
	_, ok = c.opened.get(h.kid)
	return ok
}

// peek is snapshot, for who does not use the key.
func (c *cache) peek(ref key.Ref) (*snapshot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshots.peek(ref)
}

// keepSnapshot keeps what was read after forgotten said so, and says whether it did: not if this process changed
// something since.
func (c *cache) keepSnapshot(s *snapshot, forgotten uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.forgets != forgotten {
		return false
	}
	c.snapshots.put(s)
	return true
}

// filled ends f, and keeps what was read; nil if there is nothing to keep. What this process changed meanwhile is not
// used: it may have been read before.
func (c *cache) filled(ref key.Ref, f *filling, s *snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fills[ref] == f {
		delete(c.fills, ref)
	}
	if f.err == nil {
		c.compareLocked(ref, &f.family)
	}
	switch {
	case errors.Is(f.err, store.ErrUnavailable), errors.Is(f.err, context.Canceled), errors.Is(f.err, context.DeadlineExceeded):
		// What is kept may be all that is left of the key.
	case s == nil:
		if _, ok := c.snapshots.get(ref); ok {
			c.drops.Add(1)
			c.snapshots.drop(ref)
		}
	case f.forgets == c.forgets:
		c.snapshots.put(s)
	default:
		// It is not to be used, but who asked for it may have sealed with it, and a failover may lose it.
		if kept, ok := c.snapshots.get(ref); !ok || !kept.hasMore(&f.family) {
			c.drops.Add(1)
			c.snapshots.put(s.toCompare())
		}
	}
	close(f.done)
}

// compare remembers what is kept of a key if that is more than was read of it now.
func (c *cache) compare(ref key.Ref, read *family) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compareLocked(ref, read)
}

func (c *cache) compareLocked(ref key.Ref, read *family) {
	if kept, ok := c.snapshots.get(ref); ok && (read.older || kept.hasMore(read)) {
		c.lost.put(kept)
		c.drops.Add(1)
		c.snapshots.put(kept.toCompare())
		c.forgetDurable() // the database did lose something
		signal(c.work)
	}
}

// forget has a scope's keys read again before they are used, since this process changed one, or may have. Either of the
// two says whose. What is kept of them stays, to compare: a failover may have lost it.
func (c *cache) forget(root key.ID, scope key.Scope) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgets++
	c.drops.Add(1)
	for n := range c.snapshots.inGroup(ofScope, hashText(scope)) {
		if s, _ := c.snapshots.value(n); s.key().Scope == scope {
			c.snapshots.replace(n, s.toCompare())
		}
	}
	for n := range c.snapshots.inGroup(ofRoot, hashText(root)) {
		s, _ := c.snapshots.value(n)
		if its, _ := s.rows.ids(); its == root {
			c.snapshots.replace(n, s.toCompare())
		}
	}
}

// forgetKey is forget for one data key, which stands under ref unless its scope was renamed.
func (c *cache) forgetKey(id key.ID, ref key.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgets++
	c.drops.Add(1)
	n := c.snapshots.find(ref)
	if s, ok := c.snapshots.value(n); ok {
		if _, its := s.rows.ids(); its == id {
			c.snapshots.replace(n, s.toCompare())
		}
	}
}

// budget is what may still be sealed with a version. One that is dropped takes its messages with it.
func (c *cache) budget(id key.ID) *budget {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.budgets.get(id)
	if !ok {
		b = newBudget(key.ID(strings.Clone(string(id))))
		c.budgets.put(b)
	}
	return b
}

// wanted is the budgets that somebody wants more of.
func (c *cache) wanted() (all []*budget) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.budgets.all() {
		if b.wanted.Load() != nil {
			all = append(all, b)
		}
	}
	return all
}

// dropIdle drops the opened keys that nobody has used since it was called last.
func (c *cache) dropIdle() {
	c.mu.Lock()
	dropped := append(c.parents.idle(), c.opened.idle()...)
	c.mu.Unlock()
	closeKeys(dropped)
}

// toRefresh is at most so many of the kept keys that are to be read again before somebody has to wait for that, the
// most recently used first: those that were used and have changed, by now's epochs, or are about to be too old; and
// before them those in the given buckets, which the database may have lost.
func (c *cache) toRefresh(now *reading, clock instant, after time.Duration, back store.BucketSet, limit int) (refs []key.Ref) {
	kept := c.allSnapshots()
	if back != 0 {
		for _, s := range kept {
			if root, data := s.rows.ids(); back&(bucketOf(root)|bucketOf(data)) != 0 {
				refs = append(refs, s.key())
			}
		}
	}
	limit += len(refs)
	for _, s := range kept {
		if len(refs) == limit {
			break
		}
		if s.used.Load() && (!s.valid(now, seals) || clock.since(s.read.instant()) >= after) {
			refs = append(refs, s.key())
		}
	}
	return refs
}

// allSnapshots is what is kept of all keys, the most recently used first, to be looked at without the lock: there may
// be many, and others wait for it.
func (c *cache) allSnapshots() []*snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := make([]*snapshot, 0, c.snapshots.len())
	for _, s := range c.snapshots.all() {
		kept = append(kept, s)
	}
	return kept
}

// isDurable says whether no failover loses the version.
func (c *cache) isDurable(id key.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.durable.get(markOf(id))
	return ok
}

func (c *cache) keepDurable(id key.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.durable.put(markOf(id))
}

// lostRefs is the keys that the database has in an older state than they were read in.
func (c *cache) lostRefs() (refs []key.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.lost.all() {
		refs = append(refs, s.key())
	}
	return refs
}

func (c *cache) lostKey(ref key.Ref) (*snapshot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost.get(ref)
}

// found says that there is nothing more to be done about a lost key.
func (c *cache) found(ref key.Ref, was *snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.lost.get(ref); ok && s == was {
		c.lost.drop(ref)
	}
}

// forgotten is how often something was forgotten: what was read before the last time may not be kept.
func (c *cache) forgotten() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.forgets
}

// dropOthers drops the snapshot of ref if it is of another root key, and says whether it was.
func (c *cache) dropOthers(ref key.Ref, root key.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.snapshots.get(ref)
	if !ok {
		return false
	}
	its, _ := s.rows.ids()
	if its == root {
		return false
	}
	c.forgets++
	c.drops.Add(1)
	c.snapshots.drop(ref)
	return true
}

// snapshotWith returns the snapshot that had the version with the given id when [cache.keepRef] was told so, or
// another.
func (c *cache) snapshotWith(id key.ID) (*snapshot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshotWithLocked(id)
}

func (c *cache) snapshotWithLocked(id key.ID) (*snapshot, bool) {
	p, ok := c.refs.get(hashText(id))
	if !ok {
		return nil, false
	}
	return c.snapshots.use(p.snapshot)
}

// keepRef remembers that the version with the given id is of ref's key.
func (c *cache) keepRef(id key.ID, ref key.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.snapshots.find(ref); n != 0 {
		c.refs.put(place{hashText(id), n})
	}
}

// openedOf is where opened versions of a kind of keys are.
func (c *cache) openedOf(kind key.Kind) *lru[key.KID, openedKey] {
	if kind == key.KEK {
		return &c.parents
	}
	return &c.opened
}

// find returns the opened version of a row, if that is as it was then; to be released.
func (c *cache) find(kind key.Kind, is openedRow) (opened, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.findLocked(kind, is)
}

func (c *cache) findLocked(kind key.Kind, is openedRow) (opened, bool) {
	o, ok := c.openedOf(kind).get(is.kid)
	if !ok || o.openedRow != is {
		return opened{}, false
	}
	return o.handOut(), true
}

// keep takes over an opened version, and returns what is stored now, to be released. Of a key that is there already,
// under the row that it had before it was rewrapped or from another goroutine, the sealing state stays, and the new one
// is closed: what has the same kid is the same key.
func (c *cache) keep(kind key.Kind, o openedKey) opened {
	stored, spare := c.store(kind, o)
	spare.close() // which may take a while, and others wait for the lock
	return stored
}

// store is keep, and returns what is to be closed.
func (c *cache) store(kind key.Kind, o openedKey) (stored opened, spare openedKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.openedOf(kind)
	if first, ok := kept.get(o.kid); ok {
		spare = o
		o.parent, o.messages, o.raw = first.parent, first.messages, first.raw
		kept.put(o)
	} else {
		spare, _ = kept.put(o)
	}
	return o.handOut(), spare
}

// sequence returns the highest sequence number that was seen of a key, 0 if none.
func (c *cache) sequence(id key.ID) uint64 {
	m := markOf(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	s, _ := c.seen.get(m)
	return s.seq
}

// saw remembers that a key was seen with a sequence number.
func (c *cache) saw(id key.ID, seq uint64) {
	m := markOf(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.seen.get(m); !ok || seq > s.seq {
		c.seen.put(sequence{m, seq})
	}
}

// size is how many entries there are, and how many had to go for others.
type size struct{ kept, evicted int }

// sizes is those of data keys as they were read, and of their opened versions.
func (c *cache) sizes() map[string]size {
	c.mu.Lock()
	defer c.mu.Unlock()
	return map[string]size{
		"key":     {c.snapshots.len(), c.snapshots.evicted},
		"version": {c.opened.len(), c.opened.evicted},
	}
}

// ages is how old the newest versions of the kept keys are, by the database's clock when they were read, by purpose:
// the oldest of each. That of root keys is under the empty purpose.
func (c *cache) ages(now instant) map[key.Purpose]time.Duration {
	ages := map[key.Purpose]time.Duration{}
	for _, s := range c.allSnapshots() {
		read, root, data := s.rows.times()
		purpose, since := s.key().Purpose, now.since(s.read.instant())
		ages[""] = max(time.Duration(read-root)*time.Second+since, ages[""])
		ages[purpose] = max(time.Duration(read-data)*time.Second+since, ages[purpose])
	}
	return ages
}

// clear drops everything, and closes the keys.
func (c *cache) clear() {
	c.mu.Lock()
	var dropped []openedKey
	for _, o := range c.parents.all() {
		dropped = append(dropped, o)
	}
	for _, o := range c.opened.all() {
		dropped = append(dropped, o)
	}
	c.empty()
	c.mu.Unlock()
	closeKeys(dropped)
}
