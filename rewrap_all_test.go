package keyhold_test

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// behindAll makes n scopes, and rotates their root keys, so that four versions of each are behind.
func behindAll(t *testing.T, m *keyhold.Manager, n int) []key.Scope {
	t.Helper()
	scopes := scopesNamed("s", n)
	if made, err := m.CreateScopes(t.Context(), scopes); err != nil || made != n {
		t.Fatalf("created %d of %d: %v", made, n, err)
	}
	for _, scope := range scopes {
		_, err := m.Rotate(t.Context(), key.Ref{Scope: scope})
		must(t, err)
	}
	return scopes
}

func TestRewrapAll(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		scopes := behindAll(t, w.Manager, 30)
		done := map[key.Scope]int{}
		n, err := w.RewrapAll(t.Context(), func(scope key.Scope, n int, err error) {
			must(t, err)
			done[scope] += n
		})
		if err != nil || n != 120 || len(done) != 30 || done[scopes[7]] != 4 {
			t.Errorf("rewrapped %d of %v, %v; want 120, 4 of each of 30", n, done, err)
		}
		if n, err := w.RewrapAll(t.Context(), nil); err != nil || n != 0 {
			t.Errorf("once more: %d, %v", n, err)
		}
		for _, scope := range scopes {
			if n, err := w.Rewrap(t.Context(), scope); err != nil || n != 0 {
				t.Errorf("scope %q: %d were left, %v", scope, n, err)
			}
		}
	})
}

// However many are at it, each version is rewrapped once, and counted once.
func TestRaceRewrapAll(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		behindAll(t, w.Manager, 40)
		var total atomic.Int64
		var all sync.WaitGroup
		for range 4 {
			m := newManager(t, w.store, w.root)
			all.Go(func() {
				n, err := m.RewrapAll(t.Context(), nil)
				total.Add(int64(n))
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if total.Load() != 160 {
			t.Errorf("rewrapped %d versions in all, want 160", total.Load())
		}
	})
}

// What is replaced is counted also if the answer was lost. What failed in one transaction is done scope by scope.
func TestRewrapAllWhateverBecomesOfATransaction(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
			faulty := faultstore.New(w.store)
			m := newManager(t, faulty, w.root)
			scopes := scopesNamed("s", 10)
			_, err := m.CreateScopes(t.Context(), scopes)
			must(t, err)
			for _, scope := range scopes {
				_, err := m.Rotate(t.Context(), key.Ref{Scope: scope})
				must(t, err)
			}
			var once sync.Once
			faulty.Hook(func(call string) {
				if call == "Rewrap" {
					once.Do(func() { faulty.Fail(0, mode) })
				}
			})
			if n, err := m.RewrapAll(t.Context(), nil); err != nil || n != 40 {
				t.Errorf("%v: rewrapped %d, %v; want 40", mode, n, err)
			}
		}
	})
}

// A version that does not open is named, and does not keep others from being rewrapped.
func TestRewrapAllNamesWhatDoesNotOpen(t *testing.T) {
	s := memstore.New()
	m := newManager(t, s, newRoot(t))
	scopes := behindAll(t, m, 10)
	s.Edit(func(d *memstore.Data) {
		d.Key(key.Ref{Scope: scopes[3], Purpose: secrets}).Versions[0].Blob[30] ^= 1
		d.Key(key.Ref{Scope: scopes[5]}).MAC[0] ^= 1
	})
	var broken []key.Scope
	n, err := m.RewrapAll(t.Context(), func(scope key.Scope, _ int, err error) {
		if err != nil {
			broken = append(broken, scope)
			integrity(t, err)
		}
	})
	integrity(t, err)
	slices.Sort(broken)
	if n != 35 || !slices.Equal(broken, []key.Scope{scopes[3], scopes[5]}) {
		t.Errorf("rewrapped %d, broken are %v; want 35, %v and %v", n, broken, scopes[3], scopes[5])
	}
}

// A database that is away ends it, however many scopes there are.
func TestRewrapAllEndsWhenTheDatabaseIsAway(t *testing.T) {
	s := memstore.New()
	faulty := faultstore.New(s)
	m := newManager(t, faulty, newRoot(t))
	behindAll(t, m, 100)
	faulty.Hook(func(call string) {
		if call == "Rewrap" {
			faulty.Away(true)
		}
	})
	before := faulty.Calls()
	n, err := m.RewrapAll(t.Context(), nil)
	if calls := faulty.Calls() - before; n != 0 || !errors.Is(err, store.ErrUnavailable) || calls > 20 {
		t.Errorf("rewrapped %d, %v, with %d calls", n, err, calls)
	}
	faulty.Hook(nil)
	faulty.Away(false)
	if n, err := m.RewrapAll(t.Context(), nil); err != nil || n != 400 {
		t.Errorf("afterwards: %d, %v; want 400", n, err)
	}
}
