package keyhold

import (
	"hash/maphash"
	"iter"
)

// lru holds at most limit values, each found by its key, and drops the least recently used. A value says its key itself
// and the rest of an entry is a few numbers, so that a hundred thousand of them take little more than what they hold.
// Entries are numbered, from 1 on; the number of one that was dropped is given to another.
type lru[K comparable, V keyed[K]] struct {
	limit   int
	entries slab[lruEntry[V]]
	buckets []int32 // the first entry of each; a power of two of them
	free    int32   // the first of those that were dropped, of which each says the next as its after
	count   int
	evicted int // since it was made

	newest, oldest int32
	idlest         int32 // the newest of those that were not used since idle was called last

	groups []group[V]
}

// keyed is a value that is found by a key, which never changes.
type keyed[K comparable] interface{ key() K }

type lruEntry[V any] struct {
	value        V
	newer, older int32
	after        int32 // in its bucket
	hash         uint32
}

var lruSeed = maphash.MakeSeed()

func newLRU[K comparable, V keyed[K]](limit int, groups ...func(V) uint64) lru[K, V] {
	l := lru[K, V]{limit: limit, buckets: make([]int32, 8)}
	l.entries.add() // number 0, which stands for none
	for _, of := range groups {
		l.groups = append(l.groups, group[V]{of: of, buckets: make([]int32, len(l.buckets))})
	}
	return l
}

func (l *lru[K, V]) len() int { return l.count }

func (l *lru[K, V]) bucket(hash uint32) *int32 { return &l.buckets[hash&uint32(len(l.buckets)-1)] }

// find returns the number of k's entry, 0 if there is none. It does not count as use.
func (l *lru[K, V]) find(k K) int32 { return l.findBy(k, hashKey(k)) }

func (l *lru[K, V]) findBy(k K, hash uint32) int32 {
	for n := *l.bucket(hash); n != 0; {
		e := l.entries.at(n)
		if e.hash == hash && e.value.key() == k {
			return n
		}
		n = e.after
	}
	return 0
}

func hashKey[K comparable](k K) uint32 { return uint32(maphash.Comparable(lruSeed, k)) }

// peek is get, for who does not use the value.
func (l *lru[K, V]) peek(k K) (v V, ok bool) { return l.value(l.find(k)) }

func (l *lru[K, V]) get(k K) (v V, ok bool) { return l.use(l.find(k)) }

// use is get by the number of the entry, which may be another's by now, or nobody's.
func (l *lru[K, V]) use(n int32) (v V, ok bool) {
	if v, ok = l.value(n); ok {
		l.toFront(n)
	}
	return v, ok
}

func (l *lru[K, V]) value(n int32) (v V, ok bool) {
	if n == 0 {
		return v, false
	}
	e := l.entries.at(n)
	return e.value, e.newer != 0 || l.newest == n // it is in the order
}

func (l *lru[K, V]) toFront(n int32) {
	if l.newest != n || l.idlest == n {
		l.unlink(n)
		l.link(n)
	}
}

func (l *lru[K, V]) link(n int32) {
	e := l.entries.at(n)
	e.newer, e.older = 0, l.newest
	if l.newest != 0 {
		l.entries.at(l.newest).newer = n
	} else {
		l.oldest = n
	}
	l.newest = n
}

func (l *lru[K, V]) unlink(n int32) {
	e := l.entries.at(n)
	if l.idlest == n {
		l.idlest = e.older
	}
	if e.newer != 0 {
		l.entries.at(e.newer).older = e.older
	} else {
		l.newest = e.older
	}
	if e.older != 0 {
		l.entries.at(e.older).newer = e.newer
	} else {
		l.oldest = e.newer
	}
	e.newer, e.older = 0, 0
}

// put stores value, and returns what had to go for it.
func (l *lru[K, V]) put(value V) (dropped V, ok bool) {
	k := value.key()
	hash := hashKey(k)
	if n := l.findBy(k, hash); n != 0 {
		l.replace(n, value)
		l.toFront(n)
		return dropped, false
	}
	if l.count >= l.limit {
		dropped, ok = l.entries.at(l.oldest).value, true
		l.remove(l.oldest)
		l.evicted++
	}
	if l.count >= len(l.buckets) {
		l.grow()
	}
	n := l.free
	if n != 0 {
		l.free = l.entries.at(n).after
	} else {
		n = l.entries.add()
	}
	e, first := l.entries.at(n), l.bucket(hash)
	e.value, e.hash, e.after = value, hash, *first
	*first = n
	l.link(n)
	l.count++
	for i := range l.groups {
		l.groups[i].add(n, value)
	}
	return dropped, ok
}

// replace changes what is held under a number, not its key.
func (l *lru[K, V]) replace(n int32, value V) {
	e := l.entries.at(n)
	for i := range l.groups {
		if g := &l.groups[i]; g.of(e.value) != g.of(value) {
			g.remove(n, e.value)
			g.add(n, value)
		}
	}
	e.value = value
}

func (l *lru[K, V]) drop(k K) {
	if n := l.find(k); n != 0 {
		l.remove(n)
	}
}

func (l *lru[K, V]) remove(n int32) {
	e := l.entries.at(n)
	for i := range l.groups {
		l.groups[i].remove(n, e.value)
	}
	at := l.bucket(e.hash)
	for *at != n {
		at = &l.entries.at(*at).after
	}
	*at = e.after
	l.unlink(n)
	*e = lruEntry[V]{after: l.free}
	l.free = n
	l.count--
}

// grow doubles the buckets.
func (l *lru[K, V]) grow() {
	l.buckets = make([]int32, 2*len(l.buckets))
	for i := range l.groups {
		l.groups[i].buckets = make([]int32, len(l.buckets))
	}
	for n := l.newest; n != 0; {
		e := l.entries.at(n)
		first := l.bucket(e.hash)
		e.after, *first = *first, n
		for i := range l.groups {
			l.groups[i].add(n, e.value)
		}
		n = e.older
	}
}

// all is the values, the most recently used first, by their numbers. What it gave last may be replaced.
func (l *lru[K, V]) all() iter.Seq2[int32, V] {
	return func(yield func(int32, V) bool) {
		for n := l.newest; n != 0; {
			e := l.entries.at(n)
			if !yield(n, e.value) {
				return
			}
			n = e.older
		}
	}
}

// idle drops what was not used since it was called last, and returns it.
func (l *lru[K, V]) idle() (dropped []V) {
	for n := l.idlest; n != 0; {
		e := l.entries.at(n)
		older := e.older
		dropped = append(dropped, e.value)
		l.remove(n)
		n = older
	}
	l.idlest = l.newest
	return dropped
}

// inGroup is the numbers of the entries of which the given group's number is of, and of others by chance. What it gave
// last may be replaced.
func (l *lru[K, V]) inGroup(group int, of uint64) iter.Seq[int32] {
	g := &l.groups[group]
	return func(yield func(int32) bool) {
		for n := *g.bucket(of); n != 0; {
			after := g.members.at(n).after
			if !yield(n) {
				return
			}
			n = after
		}
	}
}

// group finds the entries that have something in common, for which of gives the same number.
type group[V any] struct {
	of      func(V) uint64
	members slab[member] // by the number of the entry
	buckets []int32      // the first entry of each; a power of two of them
}

type member struct{ before, after int32 } // in its bucket

func (g *group[V]) bucket(of uint64) *int32 { return &g.buckets[of&uint64(len(g.buckets)-1)] }

func (g *group[V]) add(n int32, value V) {
	for g.members.len() <= n {
		g.members.add()
	}
	first := g.bucket(g.of(value))
	*g.members.at(n) = member{after: *first}
	if *first != 0 {
		g.members.at(*first).before = n
	}
	*first = n
}

func (g *group[V]) remove(n int32, value V) {
	m := g.members.at(n)
	if m.before != 0 {
		g.members.at(m.before).after = m.after
	} else {
		*g.bucket(g.of(value)) = m.after
	}
	if m.after != 0 {
		g.members.at(m.after).before = m.before
	}
}

// slab is a slice that grows without being copied: to what it has beyond the first part, pointers stay right.
type slab[T any] struct{ parts [][]T }

const slabPart = 256

func (s *slab[T]) at(n int32) *T { return &s.parts[n/slabPart][n%slabPart] }

func (s *slab[T]) len() int32 {
	if len(s.parts) == 0 {
		return 0
	}
	last := len(s.parts) - 1
	return int32(last*slabPart + len(s.parts[last]))
}

// add appends a zero and returns its index.
func (s *slab[T]) add() int32 {
	n := s.len()
	switch {
	case n == 0:
		s.parts = append(s.parts, nil) // small caches stay small
	case n%slabPart == 0:
		s.parts = append(s.parts, make([]T, 0, slabPart))
	}
	part := &s.parts[len(s.parts)-1]
	var zero T
	*part = append(*part, zero)
	return n
}
