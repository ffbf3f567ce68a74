package keyhold

import (
	"fmt"
	"testing"

	"keyhold.example/keyhold/internal/secret"
)

// Each of many finds its own in the table, which holds no more than it has to when they are kept anew.
func TestTheTableOfHotRawKeys(t *testing.T) {
	const names, versions = 100_000, 5000
	shared := secret.NewShared([]byte("material"))
	inTwo(t, func(t *testing.T, w *two) {
		w.rawKeyed(t)
		table := &hotRaws{}
		put := func(r Ref, asked, number Version) *hotRaw {
			h := &hotRaw{hash: hashOf(r, asked), ref: r, asked: asked, number: number, material: shared}
			h.standing, h.until = w.standing(), 1<<62
			h.compared.Store(int64(w.epochs.mono()))
			table.put(h)
			return h
		}
		for round := range 4 {
			ref := func(i int) Ref { return Ref{Scope: "s", Purpose: Purpose(fmt.Sprint("n", round, "-", i))} }
			kept := map[int]*hotRaw{}
			for i := range names {
				kept[i] = put(ref(i), 0, Version(i))
				if i%7 == 0 {
					kept[i] = put(ref(i), 0, Version(i)) // once more
				}
			}
			old := map[int]*hotRaw{}
			for i := 1; i <= versions; i++ {
				old[i] = put(ref(3), Version(i), Version(i))
			}
			for i := range names {
				if table.find(ref(i), 0, w.Manager) != kept[i] {
					t.Fatalf("round %d: %v was not found", round, ref(i))
				}
			}
			for i := 1; i <= versions; i++ {
				if table.find(ref(3), Version(i), w.Manager) != old[i] {
					t.Fatalf("round %d: version %d was not found", round, i)
				}
			}
			if table.find(ref(names), 0, w.Manager) != nil || table.find(ref(3), versions+1, w.Manager) != nil {
				t.Error("what was never kept is found")
			}
			table.isSound(t, names+versions)
			w.epochs.changed() // what is kept is of no use from now on
			if table.find(ref(1), 0, w.Manager) != nil {
				t.Error("what was kept before a change is found")
			}
		}
	})
}

// isSound asserts that a table for n has enough places, not too many, and what is in it near where it is looked for.
func (h *hotRaws) isSound(t *testing.T, n int) {
	t.Helper()
	slots := *h.slots.Load()
	if len(slots) < 2*h.used || len(slots) > 8*n {
		t.Errorf("%d places for %d", len(slots), n)
	}
	used, mask, away := 0, uint64(len(slots)-1), uint64(0)
	for i := range slots {
		if its := slots[i].Load(); its != nil {
			used++
			away += (uint64(i) - its.hash) & mask
		}
	}
	if used != h.used {
		t.Errorf("%d places are used, and it counts %d", used, h.used)
	}
	if away > 4*uint64(used) {
		t.Errorf("on average %d places are looked at", away/uint64(used))
	}
}

// What was cleared, as it was evicted, does not stay in the table for good.
func TestTheTableOfHotRawKeysForgetsWhatWasCleared(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		w.rawKeyed(t)
		table := &hotRaws{}
		for i := range 10_000 {
			material := secret.NewShared([]byte("material"))
			r := Ref{Scope: "s", Purpose: Purpose(fmt.Sprint(i))}
			h := &hotRaw{hash: hashOf(r, 0), ref: r, number: 1, material: material}
			h.standing, h.until = w.standing(), 1<<62
			table.put(h)
			if i >= 100 {
				material.Clear()
			}
		}
		if n := len(*table.slots.Load()); n > 1024 {
			t.Errorf("%d places for 100 keys", n)
		}
	})
}
