package keyhold

import (
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

// cache keeps what is costly to make again: opened keys, by what they are and never by where they were found. Every
// entry is asked for by a version id and commitment that a manifest has just vouched for, so no entry can be stale, and
// none says whether its key may be used.
//
// It also remembers the highest sequence number that was seen of each key.
type cache struct {
	mu     sync.Mutex
	opened lru[opened]
	seen   lru[uint64]
}

// opened is a key version ready for use: one of the two, by what it is for.
type opened struct {
	commit   [32]byte
	parent   *seal.Parent     // of a root key version
	messages *seal.MessageKey // of a data key version for messages
}

func newCache() *cache {
	return &cache{opened: newLRU[opened](maxOpened), seen: newLRU[uint64](maxSeen)}
}

// find returns the opened version v, if it is there.
func (c *cache) find(v *store.Version) (opened, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.opened.get(v.ID)
	return o, ok && string(o.commit[:]) == string(v.Commit)
}

// keep stores an opened version, unless another goroutine was first; it returns the one that is there now, so that all
// seal with the same sealing prefix.
func (c *cache) keep(id key.ID, o opened) opened {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first, ok := c.opened.get(id); ok && first.commit == o.commit {
		return first
	}
	c.opened.put(id, o)
	return o
}

// olderThanSeen says whether a newer state of the key was seen before, and otherwise remembers this one.
func (c *cache) olderThanSeen(k *store.Key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	seq, ok := c.seen.get(k.ID)
	if ok && k.Seq < seq {
		return true
	}
	if !ok || k.Seq > seq {
		c.seen.put(k.ID, k.Seq)
	}
	return false
}

// clear drops everything.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened, c.seen = newLRU[opened](maxOpened), newLRU[uint64](maxSeen)
}

// lru is a map of at most limit entries, which drops the least recently used.
type lru[V any] struct {
	limit int
	byID  map[key.ID]*list.Element
	order *list.List // of entry[V], the most recently used in front
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

func (l *lru[V]) put(id key.ID, value V) {
	if e, ok := l.byID[id]; ok {
		e.Value.(*entry[V]).value = value
		l.order.MoveToFront(e)
		return
	}
	l.byID[id] = l.order.PushFront(&entry[V]{id, value})
	if l.order.Len() > l.limit {
		last := l.order.Back()
		l.order.Remove(last)
		delete(l.byID, last.Value.(*entry[V]).id)
	}
}
