package keyhold

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Bounds of the cache. An opened key takes about 2 KiB, a snapshot of a key with one version 2 KiB and of each further
// one 200 bytes, the others about 150 bytes.
const (
	defaultCached = 16_384 // opened keys, and snapshots
	maxSeen       = 131_072
	maxRefs       = 16_384
	maxBudgets    = 16_384
	maxDurable    = 16_384
)

// cache keeps what is costly to make or to read again.
//
// Opened keys are found only by a row that is, byte for byte, the one that was unwrapped, so that a changed row is
// never taken for an opened one; they say nothing of whether a key may be used. Snapshots do, as long as their epochs
// are right, which who asks for them looks at. The highest sequence number that was seen of each key is remembered,
// too.
type cache struct {
	limit     int
	mu        sync.Mutex
	opened    lru[key.ID, opened]
	seen      lru[key.ID, uint64]
	snapshots lru[key.Ref, *snapshot]
	refs      lru[key.ID, key.Ref] // of versions
	budgets   lru[key.ID, *budget]
	durable   lru[key.ID, struct{}]   // versions that no failover loses
	lost      lru[key.Ref, *snapshot] // of keys that the database has in an older state
	fills     map[any]*filling        // under way; by key.Ref, or by the id of a version
	openings  map[key.ID]*oneOpening  // likewise
	forgets   uint64                  // how often something was forgotten
	work      chan struct{}           // told when there may be something for a sweep to do at once

	// drops is how often the snapshot of a key was dropped, or is not to be used any more, unless for want of room.
	drops atomic.Uint64
}

// opened is a version whose wrapped key opened, as its row was then, with what it is ready for.
type opened struct {
	row      store.Version
	parent   *seal.Parent     // of a root key version made here
	messages *seal.MessageKey // of a data key version for messages
	raw      *secret.Shared   // of a data key version of raw bytes
	kept     bool             // whether it is in the cache, and others may be using it
}

// same says whether v is the row that was opened. What the manifest vouches for, its state, may differ.
func (o *opened) same(v *store.Version) bool {
	return o.row.Number == v.Number && o.row.Alg == v.Alg && o.row.Created == v.Created && o.row.Parent == v.Parent &&
		bytes.Equal(o.row.IKKID, v.IKKID) && bytes.Equal(o.row.Commit, v.Commit) && bytes.Equal(o.row.Blob, v.Blob)
}

func newCache(limit int) *cache {
	c := &cache{limit: limit, fills: map[any]*filling{}, openings: map[key.ID]*oneOpening{}, work: make(chan struct{}, 1)}
	c.empty()
	return c
}

func (c *cache) empty() {
	c.opened, c.seen = newLRU[key.ID, opened](c.limit), newLRU[key.ID, uint64](maxSeen)
	c.snapshots, c.refs = newLRU[key.Ref, *snapshot](c.limit), newLRU[key.ID, key.Ref](maxRefs)
	c.budgets, c.lost = newLRU[key.ID, *budget](maxBudgets), newLRU[key.Ref, *snapshot](c.limit)
	c.durable = newLRU[key.ID, struct{}](maxDurable)
}

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
	_, ok = c.opened.get(h.id)
	return ok
}

// peek is snapshot, for who does not use the key.
func (c *cache) peek(ref key.Ref) (*snapshot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.snapshots.byKey[ref]; ok {
		return e.Value.(*entry[key.Ref, *snapshot]).value, true
	}
	return nil, false
}

// keepSnapshot keeps what was read after forgotten said so, and says whether it did: not if this process changed
// something since.
func (c *cache) keepSnapshot(ref key.Ref, s *snapshot, forgotten uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.forgets != forgotten {
		return false
	}
	c.snapshots.put(ref, s)
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
		c.snapshots.put(ref, s)
	default:
		// It is not to be used, but who asked for it may have sealed with it, and a failover may lose it.
		if kept, ok := c.snapshots.get(ref); !ok || !kept.family.hasMore(&s.family) {
			c.drops.Add(1)
			c.snapshots.put(ref, s.toCompare())
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
	if kept, ok := c.snapshots.get(ref); ok && (read.older || kept.family.hasMore(read)) {
		c.lost.put(ref, kept)
		c.drops.Add(1)
		c.durable = newLRU[key.ID, struct{}](maxDurable) // the database did lose something
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
	for ref, e := range c.snapshots.byKey {
		kept := e.Value.(*entry[key.Ref, *snapshot])
		if ref.Scope == scope || kept.value.family.Root.ID == root {
			kept.value = kept.value.toCompare()
		}
	}
}

// forgetKey is forget for one data key, which stands under ref unless its scope was renamed.
func (c *cache) forgetKey(id key.ID, ref key.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgets++
	c.drops.Add(1)
	if e, ok := c.snapshots.byKey[ref]; ok {
		kept := e.Value.(*entry[key.Ref, *snapshot])
		if kept.value.family.Data[0].ID == id {
			kept.value = kept.value.toCompare()
		}
	}
}

// budget is what may still be sealed with a version. One that is dropped takes its messages with it.
func (c *cache) budget(id key.ID) *budget {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.budgets.get(id)
	if !ok {
		b = newBudget(id)
		c.budgets.put(id, b)
	}
	return b
}

// wanted is the budgets that somebody wants more of.
func (c *cache) wanted() (all []*budget) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.budgets.byKey {
		if b := e.Value.(*entry[key.ID, *budget]).value; b.wanted.Load() != nil {
			all = append(all, b)
		}
	}
	return all
}

// dropIdle drops the opened keys that nobody has used since it was called last.
func (c *cache) dropIdle() {
	c.mu.Lock()
	var keys []*seal.MessageKey
	for _, o := range c.opened.idle() {
		o.raw.Clear()
		if o.messages != nil {
			keys = append(keys, o.messages)
		}
	}
	c.mu.Unlock()
	seal.CloseAll(keys)
}

// toRefresh is at most so many of the kept keys that are to be read again before somebody has to wait for that, the
// most recently used first: those that were used and have changed, by now's epochs, or are about to be too old; and
// before them those in the given buckets, which the database may have lost.
func (c *cache) toRefresh(now *reading, clock instant, after time.Duration, back store.BucketSet, limit int) (refs []key.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ref, e := range c.snapshots.byKey {
		fam := &e.Value.(*entry[key.Ref, *snapshot]).value.family
		if back&(bucketOf(fam.Root.ID)|bucketOf(fam.Data[0].ID)) != 0 {
			refs = append(refs, ref)
		}
	}
	limit += len(refs)
	for e := c.snapshots.order.Front(); e != nil && len(refs) < limit; e = e.Next() {
		kept := e.Value.(*entry[key.Ref, *snapshot])
		if s := kept.value; s.used.Load() && (!s.valid(now, seals) || clock.since(s.read) >= after) {
			refs = append(refs, kept.key)
		}
	}
	return refs
}

// isDurable says whether no failover loses the version.
func (c *cache) isDurable(id key.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.durable.get(id)
	return ok
}

func (c *cache) keepDurable(id key.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.durable.put(id, struct{}{})
}

// lostRefs is the keys that the database has in an older state than they were read in.
func (c *cache) lostRefs() (refs []key.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ref := range c.lost.byKey {
		refs = append(refs, ref)
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
	if ok = ok && s.family.Root.ID != root; ok {
		c.forgets++
		c.drops.Add(1)
		c.snapshots.drop(ref)
	}
	return ok
}

// refOf returns whose version this was when it was last read.
func (c *cache) refOf(id key.ID) (key.Ref, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refs.get(id)
}

func (c *cache) keepRef(id key.ID, ref key.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refs.put(id, ref)
}

// find returns the opened version v, if its row is as it was then.
func (c *cache) find(v *store.Version) (opened, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.opened.get(v.ID)
	return o, ok && o.same(v)
}

// keep stores an opened version and returns what is stored now. Of a key that is there already, under the row that it
// had before it was rewrapped or from another goroutine, the sealing state stays.
func (c *cache) keep(o opened) opened {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first, ok := c.opened.get(o.row.ID); ok && bytes.Equal(first.row.Commit, o.row.Commit) {
		if o.raw != first.raw {
			o.raw.Clear()
		}
		o.parent, o.messages, o.raw = first.parent, first.messages, first.raw
	}
	o.kept = true
	if dropped, ok := c.opened.put(o.row.ID, o); ok {
		dropped.raw.Clear()
		if dropped.messages != nil {
			dropped.messages.Close()
		}
	}
	return o
}

// sequence returns the highest sequence number that was seen of a key, 0 if none.
func (c *cache) sequence(id key.ID) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	seq, _ := c.seen.get(id)
	return seq
}

// saw remembers that a key was seen with a sequence number.
func (c *cache) saw(id key.ID, seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if highest, ok := c.seen.get(id); !ok || seq > highest {
		c.seen.put(id, seq)
	}
}

// size is how many entries there are, and how many had to go for others.
type size struct{ kept, evicted int }

// sizes is those of data keys as they were read, and of opened versions.
func (c *cache) sizes() map[string]size {
	c.mu.Lock()
	defer c.mu.Unlock()
	return map[string]size{
		"key":     {c.snapshots.order.Len(), c.snapshots.evicted},
		"version": {c.opened.order.Len(), c.opened.evicted},
	}
}

// ages is how old the newest versions of the kept keys are, by the database's clock when they were read, by purpose:
// the oldest of each. That of root keys is under the empty purpose.
func (c *cache) ages(now instant) map[key.Purpose]time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	ages := map[key.Purpose]time.Duration{}
	for _, e := range c.snapshots.byKey {
		s := e.Value.(*entry[key.Ref, *snapshot]).value
		for _, k := range []*store.Key{&s.family.Root, &s.family.Data[0]} {
			age := time.Duration(s.family.Now-newestCreated(k))*time.Second + now.since(s.read)
			ages[k.Purpose] = max(age, ages[k.Purpose])
		}
	}
	return ages
}

// clear drops everything, and closes the keys.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var keys []*seal.MessageKey
	for _, e := range c.opened.byKey {
		o := e.Value.(*entry[key.ID, opened]).value
		o.raw.Clear()
		if o.messages != nil {
			keys = append(keys, o.messages)
		}
	}
	seal.CloseAll(keys)
	c.empty()
}
