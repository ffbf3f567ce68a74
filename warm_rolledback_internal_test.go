package keyhold

import (
	"testing"

	"keyhold.example/keyhold/store/memstore"
)

// Nothing seals any more with a key that a read found rolled back, though its epoch is what it was.
func TestNothingSealsWithWhatWarmFoundRolledBack(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		first, _ := w.lettered(t)
		before := stored(w.store)
		rotated(t, w, inner)
		pass(epochLife)
		for range 2 {
			w.sealAll(t, 3)
		}
		w.store.Edit(func(d *memstore.Data) {
			k := d.Key(inner)
			for i := range before.Keys {
				if before.Keys[i].ID == k.ID {
					*k = before.Keys[i]
				}
			}
		})
		_, err := w.Manager.Warm(t.Context(), inner.Scope)
		wants(t, err, ErrRolledBack)
		w.sealsNot(t, ErrRolledBack)
		w.openAll(t, first)
	})
}
