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
		table := &hotKeys{}
		put := func(r Ref, asked, number Version) *hotKey {
			h := &hotKey{hotName: rawName(r, asked), number: number, material: shared}
			h.hash = h.hotName.hash()
			table.put(h)
			return h
		}
		find := func(r Ref, n Version) *hotKey {
			name := rawName(r, n)
			return table.find(&name)
		}
		for round := range 4 {
			ref := func(i int) Ref { return Ref{Scope: "s", Purpose: Purpose(fmt.Sprint("n", round, "-", i))} }
			kept := map[int]*hotKey{}
			for i := range names {
				kept[i] = put(ref(i), 0, Version(i))
				if i%7 == 0 {
					kept[i] = put(ref(i), 0, Version(i)) // once more
				}
			}
			old := map[int]*hotKey{}
			for i := 1; i <= versions; i++ {
				old[i] = put(ref(3), Version(i), Version(i))
			}
			for i := range names {
				if find(ref(i), 0) != kept[i] {
					t.Fatalf("round %d: %v was not found", round, ref(i))
				}
			}
			for i := 1; i <= versions; i++ {
				if find(ref(3), Version(i)) != old[i] {
					t.Fatalf("round %d: version %d was not found", round, i)
				}
			}
			if find(ref(names), 0) != nil || find(ref(3), versions+1) != nil {
				t.Error("what was never kept is found")
			}
			table.isSound(t, names+versions)
			for _, h := range kept {
				h.material = secret.NewShared(nil)
				h.material.Clear()
			}
			for _, h := range old {
				h.material = nil
			}
		}
	})
}

// isSound asserts that a table for n has enough places, not too many, and what is in it near where it is looked for.
func (h *hotKeys) isSound(t *testing.T, n int) {
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
		table := &hotKeys{}
		for i := range 10_000 {
			material := secret.NewShared([]byte("material"))
			r := Ref{Scope: "s", Purpose: Purpose(fmt.Sprint(i))}
			h := &hotKey{hotName: rawName(r, 0), number: 1, material: material}
			h.hash = h.hotName.hash()
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
