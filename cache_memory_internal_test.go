package keyhold

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// anyScope has the keys of whatever scope it is asked for. It makes them when they are asked for, and has those of the
// last scope alone, so that its heap does not count.
type anyScope struct {
	store.Store
	m    *Manager
	keys []store.Key // the root key, and the data keys
}

func (s *anyScope) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	in, err := s.Store.Installation(ctx)
	if err != nil {
		return store.Family{}, err
	}
	now := time.Now().Unix()
	if len(s.keys) == 0 || s.keys[0].Scope != ref.Scope {
		if s.keys, err = s.m.newFamily(now, ref.Scope); err != nil {
			return store.Family{}, err
		}
	}
	data := slices.IndexFunc(s.keys, func(k store.Key) bool { return k.Purpose == ref.Purpose })
	return store.Family{Now: now, Roots: in.Seq, Root: s.keys[0], Data: []store.Key{s.keys[data]}}, nil
}

// withKeys is a Manager that has sealed once with each of so many keys of so many scopes, and what the heap has for
// each of them.
func withKeys(t testing.TB, scopes, keys int) (m *Manager, each uint64) {
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	var purposes []Purpose
	for i := range keys {
		purposes = append(purposes, Purpose(fmt.Sprintf("purpose-%d", i)))
	}
	s := &anyScope{Store: memstore.New()}
	s.m, err = New(t.Context(), s, Config{Root: root, Purposes: purposes, Initialize: true, CacheKeys: scopes*keys + 10})
	must(err)
	seal := func(scope int, p Purpose) {
		_, err := s.m.Seal(t.Context(), Ref{Scope: key.Scope(fmt.Sprintf("tenant-%06d", scope)), Purpose: p}, nil, AAD{})
		must(err)
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	s.m.cache.parents.limit = max(1, scopes*keys*maxParents/100_000) // its part of what 100 000 keys take
	seal(scopes, purposes[0])
	before := heap()
	for i := range scopes {
		for _, p := range purposes {
			seal(i, p)
		}
	}
	each = (heap() - before) / uint64(scopes*keys)
	if kept := s.m.cache.sizes()["version"].kept; kept != scopes*keys+1 {
		t.Fatalf("%d versions are kept", kept)
	}
	return s.m, each
}

// shapes are many scopes of one key, each of which has its root key to itself, and few of many.
var shapes = []struct{ scopes, keys int }{{100, 1}, {1, 100}}

// A key that was sealed with once takes at most 2 KiB, whatever it takes them for.
func TestWhatACachedKeyTakes(t *testing.T) {
	const limit = 2048
	for _, shape := range shapes {
		if _, each := withKeys(t, 100*shape.scopes, shape.keys); each > limit {
			t.Errorf("each of the keys of %d scopes takes %d bytes, want at most %d", 100*shape.scopes, each, limit)
		}
	}
}

// BenchmarkWhatACachedKeyTakes is that at 100 000 keys, 1 000 with -short.
func BenchmarkWhatACachedKeyTakes(b *testing.B) {
	more := 1000
	if testing.Short() {
		more = 10
	}
	for _, shape := range shapes {
		scopes := more * shape.scopes
		b.Run(fmt.Sprintf("%dx%d", scopes, shape.keys), func(b *testing.B) {
			for range b.N {
				m, each := withKeys(b, scopes, shape.keys)
				b.ReportMetric(float64(each), "B/key")
				runtime.KeepAlive(m)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
