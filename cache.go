package keyhold

import (
	"bytes"
	"container/list"
	"sync"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Bounds of the cache. An opened key takes about 2 KiB, a snapshot of a key with one version 2 KiB and of each further
// one 200 bytes, the others about 150 bytes.
const (
	maxOpened    = 16_384
	maxSnapshots = 16_384
	maxSeen      = 131_072
	maxRefs      = 16_384
)

// cache keeps what is costly to make or to read again.
//
// Opened keys are found only by a row that is, byte for byte, the one that was unwrapped, so that a changed row is
// never taken for an opened one; they say nothing of whether a key may be used. Snapshots do, as long as their epochs
// are right, which who asks for them looks at. The highest sequence number that was seen of each key is remembered,
// too.
type cache struct {
	mu        sync.Mutex
	opened    lru[key.ID, opened]
	seen      lru[key.ID, uint64]
	snapshots lru[key.Ref, *snapshot]
	refs      lru[key.ID, key.Ref] // of versions
}

// opened is a version whose wrapped key opened, as its row was then, with what it is ready for.
type opened struct {
	row      store.Version
	parent   *seal.Parent     // of a root key version made here
	messages *seal.MessageKey // of a data key version for messages
	kept     bool             // whether it is in the cache, and others may be using it
}

// same says whether v is the row that was opened. What the manifest vouches for, its state, may differ.
func (o *opened) same(v *store.Version) bool {
	return o.row.Number == v.Number && o.row.Alg == v.Alg && o.row.Created == v.Created && o.row.Parent == v.Parent &&
		bytes.Equal(o.row.IKKID, v.IKKID) && bytes.Equal(o.row.Commit, v.Commit) && bytes.Equal(o.row.Blob, v.Blob)
}

func newCache() *cache {
	c := &cache{}
	c.empty()
	return c
}

func (c *cache) empty() {
	c.opened, c.seen = newLRU[key.ID, opened](maxOpened), newLRU[key.ID, uint64](maxSeen)
	c.snapshots, c.refs = newLRU[key.Ref, *snapshot](maxSnapshots), newLRU[key.ID, key.Ref](maxRefs)
}

func (c *cache) snapshot(ref key.Ref) (*snapshot, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshots.get(ref)
}

func (c *cache) keepSnapshot(ref key.Ref, s *snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshots.put(ref, s)
}

func (c *cache) dropSnapshot(ref key.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshots.drop(ref)
}

// dropOthers drops the snapshot of ref if it is of another root key, and says whether it was.
func (c *cache) dropOthers(ref key.Ref, root key.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.snapshots.get(ref)
	if ok = ok && s.family.Root.ID != root; ok {
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
		o.parent, o.messages = first.parent, first.messages
	}
	o.kept = true
	if dropped, ok := c.opened.put(o.row.ID, o); ok && dropped.messages != nil {
		dropped.messages.Forget()
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

// clear drops everything, and closes the keys.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var keys []*seal.MessageKey
	for _, e := range c.opened.byKey {
		if o := e.Value.(*entry[key.ID, opened]).value; o.messages != nil {
			keys = append(keys, o.messages)
		}
	}
	seal.CloseAll(keys)
	c.empty()
}

// lru is a map of at most limit entries, which drops the least recently used.
type lru[K comparable, V any] struct {
	limit int
	byKey map[K]*list.Element
	order *list.List // of *entry[K, V], the most recently used in front
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](limit int) lru[K, V] {
	return lru[K, V]{limit: limit, byKey: map[K]*list.Element{}, order: list.New()}
}

func (l *lru[K, V]) get(k K) (V, bool) {
	e, ok := l.byKey[k]
	if !ok {
		var zero V
		return zero, false
	}
	l.order.MoveToFront(e)
	return e.Value.(*entry[K, V]).value, true
}

// put stores value, and returns what had to go for it.
func (l *lru[K, V]) put(k K, value V) (dropped V, ok bool) {
	if e, ok := l.byKey[k]; ok {
		e.Value.(*entry[K, V]).value = value
		l.order.MoveToFront(e)
		return dropped, false
	}
	l.byKey[k] = l.order.PushFront(&entry[K, V]{k, value})
	if l.order.Len() <= l.limit {
		return dropped, false
	}
	last := l.order.Remove(l.order.Back()).(*entry[K, V])
	delete(l.byKey, last.key)
	return last.value, true
}

func (l *lru[K, V]) drop(k K) {
	if e, ok := l.byKey[k]; ok {
		l.order.Remove(e)
		delete(l.byKey, k)
	}
}
