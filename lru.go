package keyhold

import "container/list"

// lru is a map of at most limit entries, which drops the least recently used.
type lru[K comparable, V any] struct {
	limit int
	byKey map[K]*list.Element
	order *list.List // of *entry[K, V], the most recently used in front

	evicted int // since it was made
}

type entry[K comparable, V any] struct {
	key   K
	value V
	used  bool // since idle was called last
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
	kept := e.Value.(*entry[K, V])
	kept.used = true
	return kept.value, true
}

// put stores value, and returns what had to go for it.
func (l *lru[K, V]) put(k K, value V) (dropped V, ok bool) {
	if e, ok := l.byKey[k]; ok {
		kept := e.Value.(*entry[K, V])
		kept.value, kept.used = value, true
		l.order.MoveToFront(e)
		return dropped, false
	}
	l.byKey[k] = l.order.PushFront(&entry[K, V]{k, value, true})
	if l.order.Len() <= l.limit {
		return dropped, false
	}
	last := l.order.Remove(l.order.Back()).(*entry[K, V])
	delete(l.byKey, last.key)
	l.evicted++
	return last.value, true
}

func (l *lru[K, V]) drop(k K) {
	if e, ok := l.byKey[k]; ok {
		l.order.Remove(e)
		delete(l.byKey, k)
	}
}

// idle drops what was not used since it was called last, and returns it.
func (l *lru[K, V]) idle() (dropped []V) {
	var next *list.Element
	for e := l.order.Front(); e != nil; e = next {
		next = e.Next()
		kept := e.Value.(*entry[K, V])
		if kept.used {
			kept.used = false
			continue
		}
		l.order.Remove(e)
		delete(l.byKey, kept.key)
		dropped = append(dropped, kept.value)
	}
	return dropped
}
