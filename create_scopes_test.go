package keyhold_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
)

func TestCreateScopesMakesWhatIsMissing(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		scopes := append(scopesNamed("s", 300), tenant, "s000007")
		n, err := w.CreateScopes(ctx, scopes)
		if err != nil || n != 300 {
			t.Fatalf("created %d, %v; want 300", n, err)
		}
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
		for _, scope := range []key.Scope{"s000000", "s000299"} {
			sealed(t, w.Manager, key.Ref{Scope: scope, Purpose: session}, "y", keyhold.AAD{})
		}
		if n, err := w.CreateScopes(ctx, scopes); err != nil || n != 0 {
			t.Errorf("once more: created %d, %v; want none", n, err)
		}

		cfg := config(w.root)
		cfg.Purposes = append(cfg.Purposes, "added")
		more, err := keyhold.New(ctx, w.store, cfg)
		must(t, err)
		defer more.Close()
		if n, err := more.CreateScopes(ctx, append(scopes, "new")); err != nil || n != 1 {
			t.Errorf("with another purpose: created %d, %v; want 1", n, err)
		}
		sealed(t, w.Manager, key.Ref{Scope: "s000299", Purpose: "added"}, "y", keyhold.AAD{})
	})
}

// What is wrong with one scope keeps no other from being created, and each that is wrong is named.
func TestCreateScopesLeavesOutWhatIsWrong(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		cfg := config(w.root)
		cfg.Purposes, cfg.RawPurposes = []key.Purpose{token}, nil
		other, err := keyhold.New(ctx, w.store, cfg)
		must(t, err)
		defer other.Close()
		n, err := other.CreateScopes(ctx, []key.Scope{"a", tenant, "", "b", "line\nbreak", "c"})
		fails(t, err, keyhold.ErrPurpose)
		for _, what := range []string{string(tenant), `""`, `line\nbreak`} {
			if !strings.Contains(err.Error(), what) {
				t.Errorf("%q does not name %s", err, what)
			}
		}
		if n != 3 {
			t.Errorf("created %d, want 3", n)
		}
		for _, scope := range []key.Scope{"a", "b", "c"} {
			sealed(t, other, key.Ref{Scope: scope, Purpose: token}, "x", keyhold.AAD{})
		}
	})
}

// However often writes fail, or are not answered, it can be repeated, and what it says it created is what is there.
func TestCreateScopesWhateverBecomesOfTheWrites(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		faulty := faultstore.New(w.store)
		m := newManager(t, faulty, w.root)
		for i, when := range []faultstore.Mode{faultstore.Before, faultstore.After} {
			creates := 0
			faulty.Hook(func(call string) {
				if call == "Create" {
					if creates++; creates == 2 {
						faulty.Fail(0, when)
					}
				}
			})
			scopes := scopesNamed(fmt.Sprint("s", i), 600)
			n, err := m.CreateScopes(ctx, scopes)
			there := 0
			for _, scope := range scopes {
				if has, err := w.HasScope(ctx, scope); err != nil {
					t.Fatal(err)
				} else if has {
					there++
				}
			}
			if n != there {
				t.Errorf("%v: says %d were created, and %d are there (%v)", when, n, there, err)
			}
			faulty.Hook(nil)
			again, err := m.CreateScopes(ctx, scopes)
			if err != nil || n+again != len(scopes) {
				t.Errorf("%v: %d, then %d: %v", when, n, again, err)
			}
		}
	})
}

func TestRaceCreateScopes(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		scopes := scopesNamed("s", 400)
		var made atomic.Int64
		var all sync.WaitGroup
		for i := range 4 {
			m := newManager(t, w.store, w.root)
			all.Go(func() {
				n, err := m.CreateScopes(t.Context(), append(scopes[100*i:], scopes[:100*i]...))
				made.Add(int64(n))
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if made.Load() != 400 {
			t.Errorf("%d were created, want 400", made.Load())
		}
		for _, scope := range []key.Scope{"s000000", "s000150", "s000399"} {
			sealed(t, w.Manager, key.Ref{Scope: scope, Purpose: secrets}, "x", keyhold.AAD{})
		}
	})
}

// A Manager that is closed meanwhile ends it, and says so once.
func TestCreateScopesEndsOnceWhenClosed(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		faulty := faultstore.New(w.store)
		m := newManager(t, faulty, w.root)
		var once sync.Once
		closing := make(chan struct{})
		faulty.Hook(func(call string) {
			if call == "Create" {
				once.Do(func() {
					go func() { _ = m.Close(); close(closing) }()
				})
			}
		})
		_, err := m.CreateScopes(t.Context(), scopesNamed("s", 2000))
		<-closing
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v; want one error", err)
		}
	})
}
