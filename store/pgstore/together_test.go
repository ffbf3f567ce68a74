package pgstore

import (
	"context"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// While keys of many scopes are rewrapped or rekeyed, no scope is waited for that the application is about to delete,
// or has locked: what is to be done with the others is, and that one is left out. By itself it is waited for, as
// before.
func TestManyScopesAreRewrappedAndRekeyedWithoutWaiting(t *testing.T) {
	type made struct {
		s    *Store
		m    *storetest.Maker
		fams []store.Family
	}
	for name, do := range map[string]func(ctx context.Context, w *made, fams []store.Family) (int, error){
		"rewrap": func(ctx context.Context, w *made, fams []store.Family) (int, error) {
			var rows []store.Rewrap
			for _, f := range fams {
				v := &f.Data[0].Versions[0]
				rows = append(rows, w.m.Rewrap(v, v.Parent))
			}
			return w.s.Rewrap(ctx, w.m.Inst(), rows, nil)
		},
		"rekey": func(ctx context.Context, w *made, fams []store.Family) (int, error) {
			var keys []store.Rekey
			for _, f := range fams {
				keys = append(keys, w.m.Rekey(&f.Root, f.Root.IKKID))
			}
			return w.s.Rekey(ctx, w.m.Inst(), keys, nil)
		},
		"rekey data keys": func(ctx context.Context, w *made, fams []store.Family) (int, error) {
			var keys []store.Rekey
			for _, f := range fams {
				keys = append(keys, w.m.Rekey(&f.Data[0], f.Data[0].IKKID))
			}
			return w.s.Rekey(ctx, w.m.Inst(), keys, nil)
		},
	} {
		for _, lock := range []string{
			"delete from kms_root_key where private_id = $1", "select 1 from kms_root_key where private_id = $1 for update",
		} {
			t.Run(name+" beside "+lock[:6], func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				w := &made{s: migrated(t, Config{}), m: storetest.NewMaker(1)}
				must(t, w.s.Initialize(ctx, w.m.Installation()))
				for _, scope := range []key.Scope{"a", "b", "c"} {
					_, err := w.s.Create(ctx, w.m.Inst(), w.m.Scope(scope, "one"))
					must(t, err)
					f, err := w.s.Key(ctx, key.Ref{Scope: scope, Purpose: "one"})
					must(t, err)
					w.fams = append(w.fams, f)
				}
				tx, err := w.s.Pool().Begin(ctx)
				must(t, err)
				defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
				_, err = tx.Exec(ctx, lock, string(w.fams[1].Root.ID))
				must(t, err)
				if n, err := do(ctx, w, w.fams); n != 2 || err != nil {
					t.Fatalf("of three: %d, %v; want two", n, err)
				}
				soon, stop := context.WithTimeout(ctx, time.Second)
				defer stop()
				if n, err := do(soon, w, w.fams[1:2]); n != 0 || err == nil {
					t.Errorf("of the one that is locked: %d, %v; want to wait", n, err)
				}
				must(t, tx.Rollback(ctx))
				if n, err := do(ctx, w, w.fams[1:2]); n != 1 || err != nil {
					t.Errorf("afterwards: %d, %v; want one", n, err)
				}
				storetest.Check(t, w.s)
			})
		}
	}
}
