package keyhold_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// ids are the ids of all versions of ref's key, from 1.
func ids(t testing.TB, m *keyhold.Manager, r key.Ref) (list []key.ID) {
	t.Helper()
	keys, err := m.Keys(t.Context(), r.Scope)
	must(t, err)
	for _, k := range keys {
		if k.Ref == r {
			for _, v := range k.Versions {
				list = append(list, v.ID)
			}
		}
	}
	return list
}

func TestAVersionIsDisabledEnabledAndDestroyed(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		_, err := w.Rotate(ctx, ref)
		must(t, err)
		old := ids(t, w.Manager, ref)[0]
		step := func(do func() error, want string) {
			t.Helper()
			for range 2 { // repeating it changes nothing
				must(t, do())
			}
			if got := states(t, w.Manager, ref); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		step(func() error { return w.Disable(ctx, old) }, "1:disabled 2:active")
		_, err = w.Open(ctx, ref, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrDisabled)
		step(func() error { return w.Enable(ctx, old) }, "1:retired 2:active")
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
		fails(t, w.Destroy(ctx, old), keyhold.ErrState)
		step(func() error { return w.Disable(ctx, old) }, "1:disabled 2:active")
		step(func() error { return w.Destroy(ctx, old) }, "1:destroyed 2:active")
		_, err = w.Open(ctx, ref, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrDisabled)
		fails(t, w.Enable(ctx, old), keyhold.ErrState)
		fails(t, w.Disable(ctx, old), keyhold.ErrState)

		// The number and the tombstone stay.
		n, err := w.Rotate(ctx, ref)
		if err != nil || n != 3 {
			t.Errorf("version %d, %v; want 3", n, err)
		}
	})
}

func TestTheHeadIsNeitherDisabledNorDestroyed(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		for _, r := range []key.Ref{ref, {Scope: tenant}} {
			head := ids(t, w.Manager, r)[0]
			fails(t, w.Disable(t.Context(), head), keyhold.ErrState)
			fails(t, w.Destroy(t.Context(), head), keyhold.ErrState)
			must(t, w.Enable(t.Context(), head))
			if got := states(t, w.Manager, r); got != "1:active" {
				t.Errorf("%v: %s", r, got)
			}
		}
	})
}

func TestVersionsThatAreNotThere(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		for id, want := range map[key.ID]error{
			"kdkv_00000000000000000000000000": keyhold.ErrNotFound,
			"krkv_00000000000000000000000000": keyhold.ErrNotFound,
		} {
			fails(t, w.Disable(t.Context(), id), want)
			fails(t, w.Enable(t.Context(), id), want)
			fails(t, w.Destroy(t.Context(), id), want)
		}
		for _, id := range []key.ID{"", "x", "kdk_00000000000000000000000000", key.ID(strings.Repeat("x", 1000))} {
			if err := w.Destroy(t.Context(), id); err == nil {
				t.Errorf("%.20s: no error", id)
			}
		}
	})
}

// A version of a root key goes only when it wraps nothing any more.
func TestARootKeysVersionThatWrapsIsNeitherDisabledNorDestroyed(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		root := key.Ref{Scope: tenant}
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		_, err := w.Rotate(ctx, root)
		must(t, err)
		old := ids(t, w.Manager, root)[0]
		err = w.Disable(ctx, old)
		used, ok := errors.AsType[*keyhold.InUseError](err)
		if !ok || len(used.References) != 1 || used.References[0].Rows != 4 || used.ID != old || !errors.Is(err, keyhold.ErrForeignKey) {
			t.Fatalf("%v; want an InUseError of 4 rows", err)
		}
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
		_, err = w.Rewrap(ctx, tenant)
		must(t, err)
		must(t, w.Disable(ctx, old))
		must(t, w.Destroy(ctx, old))
		if got := states(t, w.Manager, root); got != "1:destroyed 2:active" {
			t.Error(got)
		}
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
	})
}

// The foreign key of the row here cascades: destroying the version would take the application's row along.
func TestAVersionInUseIsNotDestroyed(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		_, err := w.Rotate(ctx, ref)
		must(t, err)
		old := ids(t, w.Manager, ref)[0]
		w.kind.refer(t, w.store, old)
		must(t, w.Disable(ctx, old))
		for name, destroy := range map[string]func() error{
			"by itself": func() error { return w.Destroy(ctx, old) },
			"in a transaction": func() error {
				tx, commit, _ := w.kind.begin(t, w.store)
				return errors.Join(w.DestroyTx(ctx, tx, old), commit())
			},
		} {
			err = destroy()
			used, ok := errors.AsType[*keyhold.InUseError](err)
			if !ok || len(used.References) != 1 || used.References[0].Rows != 1 || used.References[0].Table != "secret" ||
				!strings.Contains(err.Error(), "1 in ") || !strings.Contains(err.Error(), "secret.key_id") {
				t.Errorf("%s: %v; want an InUseError that names the column", name, err)
			}
		}
		refs, err := w.References(ctx, old)
		if err != nil || len(refs) != 1 || refs[0].Rows != 1 {
			t.Errorf("References: %v, %v", refs, err)
		}
		must(t, w.Enable(ctx, old))
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
	})
}

func TestDestroyIsUndoneByARollback(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		_, err := w.Rotate(ctx, ref)
		must(t, err)
		old := ids(t, w.Manager, ref)[0]
		must(t, w.Disable(ctx, old))
		tx, _, rollback := w.kind.begin(t, w.store)
		must(t, w.DestroyTx(ctx, tx, old))
		must(t, rollback())
		if got := states(t, w.Manager, ref); got != "1:disabled 2:active" {
			t.Error(got)
		}
		tx, commit, _ := w.kind.begin(t, w.store)
		must(t, w.DestroyTx(ctx, tx, old))
		must(t, commit())
		if got := states(t, w.Manager, ref); got != "1:destroyed 2:active" {
			t.Error(got)
		}
	})
}

func TestRotateAndRewrapInTheApplicationsTransaction(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		root := key.Ref{Scope: tenant}
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		for _, end := range []string{"rollback", "commit"} {
			tx, commit, rollback := w.kind.begin(t, w.store)
			n, err := w.RotateTx(ctx, tx, root)
			must(t, err)
			m, err := w.RotateTx(ctx, tx, ref)
			must(t, err)
			rewrapped, err := w.RewrapTx(ctx, tx, tenant)
			must(t, err)
			if n != 2 || m != 2 || rewrapped != 4 {
				t.Errorf("versions %d and %d, %d rewrapped; want 2, 2, 4", n, m, rewrapped)
			}
			id, inside, err := w.SealDetachedTx(ctx, tx, ref, []byte("inside"), keyhold.AAD{})
			must(t, err)
			if end == "rollback" {
				must(t, rollback())
				if got := states(t, w.Manager, ref); got != "1:active" {
					t.Error(got)
				}
				_, err = w.OpenDetached(ctx, ref, id, inside, keyhold.AAD{})
				fails(t, err, keyhold.ErrOpen)
			} else {
				must(t, commit())
				if got := states(t, w.Manager, ref); got != "1:retired 2:active" {
					t.Error(got)
				}
				pt, err := w.OpenDetached(ctx, ref, id, inside, keyhold.AAD{})
				if err != nil || string(pt) != "inside" {
					t.Errorf("%q, %v", pt, err)
				}
				must(t, w.Disable(ctx, ids(t, w.Manager, root)[0]))
			}
			opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
		}
	})
}

// Every call of a change of state fails in turn, before and after it was done; then it is done or not, and again ends
// it.
func TestChangesOfStateSurviveEveryFault(t *testing.T) {
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for n := 0; ; n++ {
			faults := faultstore.New(memstore.New())
			m := newManager(t, faults, newRoot(t))
			must(t, m.CreateScope(t.Context(), tenant))
			_, err := m.Rotate(t.Context(), ref)
			must(t, err)
			old := ids(t, m, ref)[0]
			life := func() error {
				return errors.Join(m.Disable(t.Context(), old), m.Enable(t.Context(), old), m.Disable(t.Context(), old), m.Destroy(t.Context(), old))
			}
			faults.Fail(n, mode)
			_ = life()
			if !faults.Fired() {
				if n < 8 {
					t.Errorf("only %d calls: nothing was tested", n)
				}
				break
			}
			checked(t, m)
			if err := errors.Join(m.Disable(t.Context(), old), m.Destroy(t.Context(), old)); err != nil && states(t, m, ref) != "1:destroyed 2:active" {
				t.Errorf("mode %v, call %d: %v: %s", mode, n, err, states(t, m, ref))
			}
			checked(t, m)
		}
	}
}

// Somebody who has read the root key, and is about to wrap under its head, is overtaken by all that it takes to disable
// that version. What he wraps opens, and his call knows nothing of it.
func TestNothingIsLeftUnderARootKeysVersionThatIsDisabledMeanwhile(t *testing.T) {
	root := key.Ref{Scope: tenant}
	for call, c := range map[string]struct {
		do   func(t *testing.T, m *keyhold.Manager) error
		want string // of the key for secrets
	}{
		"Update": {func(t *testing.T, m *keyhold.Manager) error { _, err := m.Rotate(t.Context(), ref); return err }, "1:retired 2:active"},
		"Rewrap": {func(t *testing.T, m *keyhold.Manager) error { _, err := m.Rewrap(t.Context(), tenant); return err }, "1:active"},
		"Create": {func(t *testing.T, m *keyhold.Manager) error { _, err := m.Reconcile(t.Context()); return err }, "1:active"},
	} {
		t.Run(call, func(t *testing.T) {
			each(t, func(t *testing.T, w world) {
				ctx := t.Context()
				ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
				if call == "Rewrap" {
					_, err := w.Rotate(ctx, root)
					must(t, err)
				}
				faults := faultstore.New(w.store)
				overtaken := newManager(t, faults, w.root)
				if call == "Create" {
					later := config(w.root)
					later.Purposes = append(later.Purposes, "later")
					var err error
					overtaken, err = keyhold.New(ctx, faults, later)
					must(t, err)
					t.Cleanup(func() { must(t, overtaken.Close()) })
				}
				old := ids(t, w.Manager, root)
				var once sync.Once
				faults.Hook(func(name string) {
					if name != call {
						return
					}
					once.Do(func() {
						_, err := w.Rotate(ctx, root)
						must(t, err)
						_, err = w.Rewrap(ctx, tenant)
						must(t, err)
						must(t, w.Disable(ctx, old[len(old)-1]))
						old = nil
					})
				})
				if err := c.do(t, overtaken); err != nil || old != nil {
					t.Errorf("%v; overtaken: %v", err, old == nil)
				}
				if got := states(t, w.Manager, ref); got != c.want {
					t.Errorf("%s, want %s", got, c.want)
				}
				opens(t, newManager(t, w.store, w.root), ref, ct, keyhold.AAD{}, "x")
				sealed(t, newManager(t, w.store, w.root), ref, "x", keyhold.AAD{})
			})
		})
	}
}
