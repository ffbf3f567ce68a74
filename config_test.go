package keyhold_test

import (
	"slices"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/memstore"
)

// New writes nothing into the caller's slices, also where they have room for more, and works with none of them: what
// the caller does with them afterwards changes nothing.
func TestTheConfigsSlicesStayTheCallers(t *testing.T) {
	s, root := memstore.New(), newRoot(t)
	roomy := func(p ...key.Purpose) []key.Purpose { return append(make([]key.Purpose, 0, 8), p...) }
	cfg := keyhold.Config{
		Root: root, Purposes: roomy(secrets, session), RawPurposes: roomy(token), IndexPurposes: roomy(search), Initialize: true,
	}
	lists := [][]key.Purpose{cfg.Purposes, cfg.RawPurposes, cfg.IndexPurposes}
	var before [][]key.Purpose
	for _, list := range lists {
		before = append(before, slices.Clone(list[:cap(list)]))
	}
	m, err := keyhold.New(t.Context(), s, cfg)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	must(t, m.CreateScope(t.Context(), tenant))
	_, err = m.Reconcile(t.Context())
	must(t, err)
	for i, list := range lists {
		if !slices.Equal(list[:cap(list)], before[i]) {
			t.Errorf("%q became %q", before[i], list[:cap(list)])
		}
		for j := range list[:cap(list)] {
			list[:cap(list)][j] = "changed"
		}
	}

	must(t, m.CreateScope(t.Context(), "later"))
	keys, err := m.Keys(t.Context(), "later")
	must(t, err)
	var have []key.Purpose
	for _, k := range keys {
		have = append(have, k.Ref.Purpose)
	}
	if want := []key.Purpose{"", secrets, search, session, token}; !slices.Equal(have, want) {
		t.Errorf("a scope that was made later has keys for %q, want %q", have, want)
	}
	if done, err := m.Reconcile(t.Context()); err != nil || done.Created != 0 || len(done.Dropped) != 0 {
		t.Errorf("reconcile: %+v, %v", done, err)
	}
}
