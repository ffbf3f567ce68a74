package keyhold_test

import (
	"errors"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func TestFindSaysWhoseAVersionIs(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		imports(t, w.Manager, true)
		_, err := w.Rotate(ctx, ref)
		must(t, err)
		for _, scope := range []key.Scope{tenant, oldTenant} {
			infos, err := w.Keys(ctx, scope)
			must(t, err)
			for _, k := range infos {
				for _, v := range k.Versions {
					if v.ID == "" {
						continue
					}
					if got, err := w.Find(ctx, v.ID); err != nil || got != k.Ref {
						t.Errorf("version %s is of %v, %v; want %v", v.ID, got, err, k.Ref)
					}
				}
			}
		}
		_, err = w.Find(ctx, "kdkv_none")
		fails(t, err, keyhold.ErrNotFound)
		if _, err = w.Find(ctx, "kdk_none"); !errors.As(err, new(*keyhold.InvalidError)) {
			t.Errorf("an id of no version: %v", err)
		}
	})
}
