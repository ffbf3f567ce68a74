package keyhold

import (
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// A key that is read while this process changes it is not used again without being read again, and kept all the same:
// whoever asked may have sealed with it, and a failover may lose it.
func TestWhatIsReadDuringAChangeIsKeptToCompare(t *testing.T) {
	c := newCache(defaultCached)
	with := func(versions ...store.Version) family {
		return family{Family: store.Family{
			Root: store.Key{ID: "krk_a", Scope: inner.Scope}, Data: []store.Key{{ID: "kdk_a", Purpose: inner.Purpose, Versions: versions}},
		}}
	}
	one, two := store.Version{ID: "kdkv_1", Number: 1, Alg: key.Message}, store.Version{ID: "kdkv_2", Number: 2, Alg: key.Message}
	now := &reading{}
	fill := func(read family, during func()) {
		f, mine := c.filling(inner, now, nil, func(*snapshot) bool { return false })
		if !mine {
			t.Fatal("somebody else reads it")
		}
		during()
		f.family = read
		c.filled(inner, f, read.keep(now, instant{}, 0, 0))
	}
	change := func() { c.forgetKey("kdk_a", inner) }

	fill(with(one), func() {})
	fill(with(one, two), change)
	kept, ok := c.snapshot(inner)
	if !ok || len(kept.family().Data[0].Versions) != 2 {
		t.Fatal("what was read during a change is lost")
	}
	if kept.epochs != nil {
		t.Error("what was read during a change is used without being read again")
	}
	fill(with(one), change) // an answer that comes late
	if kept, _ = c.snapshot(inner); len(kept.family().Data[0].Versions) != 2 {
		t.Error("an older answer takes the place of a newer one")
	}
}
