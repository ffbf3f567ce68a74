package keyhold

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

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

// keptOf fills a cache with snapshots of so many scopes of so many keys.
func keptOf(scopes, keys int) *cache {
	c := newCache(scopes * keys)
	for i := range scopes {
		for j := range keys {
			fam := family{Family: store.Family{
				Root: store.Key{ID: key.ID(fmt.Sprint("krk_", i)), Scope: key.Scope(fmt.Sprint("s", i))},
				Data: []store.Key{{ID: key.ID(fmt.Sprint("kdk_", i, "_", j)), Purpose: Purpose(fmt.Sprint("p", j))}},
			}}
			c.keepSnapshot(fam.keep(&reading{}, instant{}, 0, 0), 0)
		}
	}
	return c
}

// A change is one of all keys of its scope, or of its root key, and of no other.
func TestAChangeIsOfTheKeysOfItsScope(t *testing.T) {
	const scopes, keys = 200, 3
	for name, forget := range map[string]func(c *cache){
		"scope":                    func(c *cache) { c.forget("", "s7") },
		"root key":                 func(c *cache) { c.forget("krk_7", "") },
		"root key, of a few":       func(c *cache) { c.forget("krk_7", "s7") },
		"root key, after a rename": func(c *cache) { c.forget("krk_7", "renamed") },
	} {
		c := keptOf(scopes, keys)
		for _, dropped := range []Ref{{Scope: "s6", Purpose: "p0"}, {Scope: "s7", Purpose: "p1"}, {Scope: "s8", Purpose: "p0"}} {
			c.snapshots.drop(dropped)
		}
		forget(c)
		for _, s := range c.snapshots.all() {
			if changed := s.epochs == nil; changed != (s.key().Scope == "s7") {
				t.Errorf("%s: of %v it is %v that it was changed", name, s.key(), changed)
			}
		}
		if n := c.snapshots.len(); n != scopes*keys-3 {
			t.Errorf("%s: %d are kept", name, n)
		}
	}
}

// BenchmarkForget is what a change holds up everybody else for.
func BenchmarkForget(b *testing.B) {
	for _, scopes := range []int{1000, 100_000} {
		c := keptOf(scopes, 1)
		b.Run(fmt.Sprint(scopes), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				c.forget(key.ID(fmt.Sprint("krk_", i%scopes)), "")
			}
		})
	}
}

// An lru finds what was put in and not dropped, in the order of use, whatever was dropped in between.
func TestLRU(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 40).Draw(t, "limit")
		l := newLRU[mark, sequence](limit, func(s sequence) uint64 { return uint64(s.id[0] % 3) })
		var order []sequence // the least recently used first
		unused := map[mark]bool{}
		use := func(m mark) (at int) {
			if at = slices.IndexFunc(order, func(s sequence) bool { return s.id == m }); at >= 0 {
				order = append(slices.Delete(slices.Clone(order), at, at+1), order[at])
				delete(unused, m)
			}
			return at
		}
		for i := range rapid.IntRange(1, 200).Draw(t, "steps") {
			m := mark{rapid.ByteRange(0, 60).Draw(t, "key")}
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				l.drop(m)
				order = slices.DeleteFunc(order, func(s sequence) bool { return s.id == m })
				delete(unused, m)
			case 1:
				if i%4 != 0 {
					continue
				}
				for _, s := range l.idle() {
					if !unused[s.id] {
						t.Fatalf("%v is idle", s)
					}
					order = slices.DeleteFunc(order, func(o sequence) bool { return o.id == s.id })
					delete(unused, s.id)
				}
				if len(unused) > 0 {
					t.Fatalf("%v are not idle", unused)
				}
				for _, s := range order {
					unused[s.id] = true
				}
			case 2, 3, 4:
				s, ok := l.get(m)
				if at := use(m); ok != (at >= 0) || ok && s != order[len(order)-1] {
					t.Fatalf("found %v, %v", s, ok)
				}
			default:
				s := sequence{m, uint64(i)}
				dropped, ok := l.put(s)
				if use(m) >= 0 {
					order[len(order)-1] = s
				} else if order = append(order, s); len(order) > limit {
					if !ok || dropped != order[0] {
						t.Fatalf("%v had to go, %v", dropped, ok)
					}
					delete(unused, order[0].id)
					order = order[1:]
				}
			}
		}
		var all []sequence
		grouped := map[sequence]bool{}
		for _, s := range l.all() {
			all = append(all, s)
		}
		slices.Reverse(all)
		for of := range uint64(3) {
			for n := range l.inGroup(0, of) {
				if s, ok := l.value(n); ok && uint64(s.id[0]%3) == of {
					grouped[s] = true
				}
			}
		}
		if !slices.Equal(all, order) || l.len() != len(order) || len(grouped) != len(order) {
			t.Fatalf("there are %v, in groups %v, want %v", all, grouped, order)
		}
	})
}
