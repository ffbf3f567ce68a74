package keyhold_test

import (
	"testing"

	"keyhold.example/keyhold"
)

// Where a raw key was removed, a key of the same purpose for something else is refused, and nobody tries for ever.
func TestARemovedNameIsNoOtherPurpose(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		must(t, w.CreateScope(t.Context(), "other"))
		ref := keyhold.Ref{Scope: tenant, Purpose: "tokens"}
		_, err := w.MakeRaw(t.Context(), ref, keyhold.RawKey{})
		must(t, err)
		must(t, w.RemoveRaw(t.Context(), ref))

		for _, cfg := range []keyhold.Config{{IndexPurposes: []keyhold.Purpose{"tokens"}}, {Purposes: []keyhold.Purpose{"tokens"}}} {
			cfg.Root = w.root
			next, err := keyhold.New(t.Context(), w.store, cfg)
			must(t, err)
			fails(t, next.CreateScope(t.Context(), tenant), keyhold.ErrPurpose)
			must(t, next.Close())
		}
		next, err := keyhold.New(t.Context(), w.store, keyhold.Config{Root: w.root, Purposes: []keyhold.Purpose{"tokens"}})
		must(t, err)
		defer func() { must(t, next.Close()) }()
		done, err := next.Reconcile(t.Context())
		fails(t, err, keyhold.ErrPurpose)
		if done.Created != 1 {
			t.Errorf("%d keys were made, want that of the other scope", done.Created)
		}
	})
}
