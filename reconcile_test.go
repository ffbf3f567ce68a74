package keyhold_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// with opens w's installation with other purposes.
func (w world) with(t testing.TB, purposes ...key.Purpose) *keyhold.Manager {
	t.Helper()
	m, err := keyhold.New(t.Context(), w.store, keyhold.Config{Root: w.root, Purposes: purposes})
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m
}

func TestReconcileGivesEveryScopeTheNewPurposes(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		const scopes = 230 // more than two batches
		old := w.with(t, "one")
		for i := range scopes {
			must(t, old.CreateScope(ctx, key.Scope(fmt.Sprintf("s%03d", i))))
		}
		done, err := old.Reconcile(ctx)
		if err != nil || done.Created != 1 { // the tenant of the world lacks it
			t.Errorf("%+v, %v; want 1", done, err)
		}
		_, err = old.Rotate(ctx, key.Ref{Scope: "s007"}) // new keys are wrapped under the newest version
		must(t, err)

		added := w.with(t, "one", "two")
		done, err = added.Reconcile(ctx)
		if err != nil || done.Created != scopes+1 || len(done.Dropped) != 0 {
			t.Errorf("%+v, %v; want %d", done, err, scopes+1)
		}
		for _, scope := range []key.Scope{"s000", "s007", "s229", tenant} {
			r := key.Ref{Scope: scope, Purpose: "two"}
			opens(t, old, r, sealed(t, added, r, "x", keyhold.AAD{}), keyhold.AAD{}, "x")
		}
		done, err = added.Reconcile(ctx)
		if err != nil || done.Created != 0 {
			t.Errorf("again: %+v, %v", done, err)
		}

		// What is dropped stays as it is, and is told.
		dropped := w.with(t, "two")
		done, err = dropped.Reconcile(ctx)
		if err != nil || done.Created != 0 || !slices.Equal(done.Dropped, []key.Purpose{"one"}) {
			t.Errorf("dropped: %+v, %v", done, err)
		}
		sealed(t, dropped, key.Ref{Scope: "s000", Purpose: "one"}, "x", keyhold.AAD{})
	})
}

func TestReconcileBySeveralAtOnceMakesEachKeyOnce(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		const scopes = 60
		old := w.with(t, "one")
		for i := range scopes {
			must(t, old.CreateScope(t.Context(), key.Scope(fmt.Sprint("s", i))))
		}
		var mu sync.Mutex
		total := 0
		var wg sync.WaitGroup
		for range 8 {
			m := w.with(t, "one", "two")
			wg.Go(func() {
				done, err := m.Reconcile(t.Context())
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				total += done.Created
			})
		}
		wg.Wait()
		if total != scopes+2 { // the tenant lacked both
			t.Errorf("%d keys were made, want %d", total, scopes+2)
		}
	})
}

func TestReconcileRefusesAPurposeOfAnotherUse(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		_, err := w.with(t, "one").Reconcile(t.Context())
		must(t, err)
		m, err := keyhold.New(t.Context(), w.store, keyhold.Config{Root: w.root, Purposes: []key.Purpose{"two"}, RawPurposes: []key.Purpose{"one"}})
		must(t, err)
		done, err := m.Reconcile(t.Context())
		fails(t, err, keyhold.ErrPurpose)
		if done.Created != 0 {
			t.Errorf("%d keys were made", done.Created)
		}
	})
}

// A scope that was tampered with is left alone, told, and holds up no other.
func TestReconcileGoesOnPastABrokenScope(t *testing.T) {
	s := memstore.New()
	root := newRoot(t)
	w := world{store: s, root: root, Manager: newManager(t, s, root)}
	old := w.with(t, "one")
	for _, scope := range []key.Scope{"a", "b", "c"} {
		must(t, old.CreateScope(t.Context(), scope))
	}
	s.Edit(func(d *memstore.Data) { d.Key(key.Ref{Scope: "b"}).MAC = make([]byte, 32) })
	done, err := w.with(t, "one", "two").Reconcile(t.Context())
	if _, ok := errors.AsType[*keyhold.IntegrityError](err); !ok || done.Created != 2 {
		t.Errorf("%+v, %v; want 2 and an IntegrityError", done, err)
	}
}

func TestReconcileSurvivesEveryFault(t *testing.T) {
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for n := 0; ; n++ {
			s := memstore.New()
			root := newRoot(t)
			w := world{store: s, root: root, Manager: newManager(t, s, root)}
			old := w.with(t, "one")
			for _, scope := range []key.Scope{"a", "b", "c"} {
				must(t, old.CreateScope(t.Context(), scope))
			}
			faults := faultstore.New(s)
			m, err := keyhold.New(t.Context(), faults, keyhold.Config{Root: root, Purposes: []key.Purpose{"one", "two"}})
			must(t, err)
			faults.Fail(n, mode)
			_, err = m.Reconcile(t.Context())
			if !faults.Fired() {
				must(t, err)
				if n < 6 {
					t.Errorf("only %d calls: nothing was tested", n)
				}
				break
			}
			_, err = m.Reconcile(t.Context())
			must(t, err)
			for _, scope := range []key.Scope{"a", "b", "c"} {
				sealed(t, m, key.Ref{Scope: scope, Purpose: "two"}, "x", keyhold.AAD{})
			}
			checked(t, m)
		}
	}
}
