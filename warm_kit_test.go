package keyhold_test

import (
	"fmt"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/memstore"
)

func manyName(i int) key.Scope { return key.Scope(fmt.Sprintf("scope_%05d", i)) }

// manyScopes is a world in memory with so many scopes, whose keys are made in one call of the store's.
func manyScopes(t testing.TB, n int) world {
	t.Helper()
	s, root := memstore.New(), newRoot(t)
	w := world{stores["memstore"], s, root, newManager(t, s, root)}
	var names []key.Scope
	for i := range n {
		names = append(names, manyName(i))
	}
	keys, err := keyhold.FamiliesOf(w.Manager, time.Now().Unix(), names)
	must(t, err)
	in, err := s.Installation(t.Context())
	must(t, err)
	if n, err := s.Create(t.Context(), [16]byte(in.Inst), keys); n != len(keys) || err != nil {
		t.Fatalf("%d keys of %d, %v", n, len(keys), err)
	}
	return w
}
