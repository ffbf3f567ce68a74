package keyhold

import (
	"bytes"
	"container/list"
	"sync"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Bounds of the cache. An opened key takes at most 2 KiB, a sequence number about 150 bytes.
const (
	maxOpened = 16_384
	maxSeen   = 131_072
)

// cache keeps what is costly to make again: opened keys. It answers only for a row that is, byte for byte, the one that
// was unwrapped, so a changed row is never taken for an opened one; and it says nothing of whether a key may be used.
//
// It also remembers the highest sequence number that was seen of each key.
type cache struct {
	mu     sync.Mutex
	opened lru[opened]
	seen   lru[uint64]
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
	return &cache{opened: newLRU[opened](maxOpened), seen: newLRU[uint64](maxSeen)}
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
	for _, e := range c.opened.byID {
		if o := e.Value.(*entry[opened]).value; o.messages != nil {
			keys = append(keys, o.messages)
		}
	}
	seal.CloseAll(keys)
	c.opened, c.seen = newLRU[opened](maxOpened), newLRU[uint64](maxSeen)
}

// lru is a map of at most limit entries, which drops the least recently used.
type lru[V any] struct {
	limit int
	byID  map[key.ID]*list.Element
	order *list.List // of *entry[V], the most recently used in front
}

type entry[V any] struct {
	id    key.ID
	value V
}

func newLRU[V any](limit int) lru[V] {
	return lru[V]{limit: limit, byID: map[key.ID]*list.Element{}, order: list.New()}
}

func (l *lru[V]) get(id key.ID) (V, bool) {
	e, ok := l.byID[id]
	if !ok {
		var zero V
		return zero, false
	}
	l.order.MoveToFront(e)
	return e.Value.(*entry[V]).value, true
}

// put stores value, and returns what had to go for it.
func (l *lru[V]) put(id key.ID, value V) (dropped V, ok bool) {
	if e, ok := l.byID[id]; ok {
		e.Value.(*entry[V]).value = value
		l.order.MoveToFront(e)
		return dropped, false
	}
	l.byID[id] = l.order.PushFront(&entry[V]{id, value})
	if l.order.Len() <= l.limit {
		return dropped, false
	}
	last := l.order.Remove(l.order.Back()).(*entry[V])
	delete(l.byID, last.id)
	return last.value, true
}
