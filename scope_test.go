package keyhold_test

import (
	"fmt"
	"sync"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
)

func TestCreateScopeMakesWhatIsMissing(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		must(t, w.CreateScope(ctx, tenant))
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")

		cfg := config(w.root)
		cfg.Purposes = append(cfg.Purposes, "added")
		more, err := keyhold.New(ctx, w.store, cfg)
		must(t, err)
		must(t, more.CreateScope(ctx, tenant))
		sealed(t, w.Manager, key.Ref{Scope: tenant, Purpose: "added"}, "y", keyhold.AAD{})
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")

		cfg.Purposes = []key.Purpose{token}
		cfg.RawPurposes = nil
		other, err := keyhold.New(ctx, w.store, cfg)
		must(t, err)
		fails(t, other.CreateScope(ctx, tenant), keyhold.ErrPurpose)
	})
}

func TestScopesKeepTheirBytes(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		cfg := config(w.root)
		cfg.Strict = true // or each of the many that do not open would wait for others to be asked
		m, err := keyhold.New(ctx, w.store, cfg)
		must(t, err)
		defer m.Close()
		// Names that would collide if they were joined, folded or normalised.
		names := []key.Scope{"a", "A", "a ", "ab", "é", "e\u0301", "a/b", "a'b", `a"b`, "a%", "%", "_", "1", "01", "日本語"}
		cts := map[key.Scope][]byte{}
		for _, name := range names {
			must(t, m.CreateScope(ctx, name))
			cts[name] = sealed(t, m, key.Ref{Scope: name, Purpose: secrets}, string(name), keyhold.AAD{})
		}
		for _, name := range names {
			for _, other := range names {
				pt, err := m.Open(ctx, key.Ref{Scope: name, Purpose: secrets}, cts[other], keyhold.AAD{})
				if name != other {
					fails(t, err, keyhold.ErrOpen)
				} else if err != nil || string(pt) != string(name) {
					t.Errorf("%q: %q, %v", name, pt, err)
				}
			}
		}
		listed := map[key.Scope]int{}
		for scope, err := range m.Scopes(ctx) {
			must(t, err)
			listed[scope]++
		}
		for _, name := range append(names, tenant) {
			if listed[name] != 1 {
				t.Errorf("%q is listed %d times", name, listed[name])
			}
		}
	})
}

func TestOneScopeHoweverManyCreateIt(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		var wg sync.WaitGroup
		for range 32 {
			m := newManager(t, w.store, w.root)
			wg.Go(func() {
				if err := m.CreateScope(t.Context(), "raced"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		keys, err := w.Keys(t.Context(), "raced")
		must(t, err)
		if len(keys) != 5 {
			t.Errorf("%d keys, want 5", len(keys))
		}
		for _, k := range keys {
			if len(k.Versions) != 1 {
				t.Errorf("%v has %d versions", k.Ref, len(k.Versions))
			}
		}
	})
}

// One data key that 32 add at once to a scope that is there.
func TestOneDataKeyHoweverManyCreateIt(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		var wg sync.WaitGroup
		for range 32 {
			cfg := config(w.root)
			cfg.Purposes = append(cfg.Purposes, "raced")
			m, err := keyhold.New(t.Context(), w.store, cfg)
			must(t, err)
			wg.Go(func() {
				if err := m.CreateScope(t.Context(), tenant); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := states(t, w.Manager, key.Ref{Scope: tenant, Purpose: "raced"}); got != "1:active" {
			t.Error(got)
		}
	})
}

// The cost that is promised: two round trips to create a scope, one to seal, to open or to list.
func TestRoundTrips(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		for _, strict := range []bool{false, true} {
			counted := faultstore.New(w.store)
			cfg := config(w.root)
			cfg.Strict = strict
			m, err := keyhold.New(t.Context(), counted, cfg)
			must(t, err)
			defer m.Close()
			scope := key.Scope(fmt.Sprint("strict is ", strict))
			ref, cold := key.Ref{Scope: scope, Purpose: secrets}, key.Ref{Scope: scope, Purpose: session}
			var ct, another []byte
			for _, step := range []struct {
				name         string
				want, strict int
				do           func() error
			}{
				{"create a scope", 2, 2, func() error { return m.CreateScope(t.Context(), scope) }},
				{"create it again", 1, 1, func() error { return m.CreateScope(t.Context(), scope) }},
				{"first seal", 2, 1, func() (err error) { ct, err = m.Seal(t.Context(), ref, nil, keyhold.AAD{}); return err }},
				{"seal", 0, 1, func() (err error) { ct, err = m.Seal(t.Context(), ref, nil, keyhold.AAD{}); return err }},
				{"open", 0, 1, func() error { _, err := m.Open(t.Context(), ref, ct, keyhold.AAD{}); return err }},
				{"open any", 0, 1, func() error { _, _, err := m.OpenAny(t.Context(), ct, keyhold.AAD{}); return err }},
				{"wrapper", 0, 1, func() error { _, err := m.Wrapper(t.Context(), ref); return err }},
				{"cold key", 1, 1, func() (err error) { another, err = m.Seal(t.Context(), cold, nil, keyhold.AAD{}); return err }},
				{"open any that was not opened", 1, 1, func() error { _, _, err := m.OpenAny(t.Context(), another, keyhold.AAD{}); return err }},
				{"open any again", 0, 1, func() error { _, _, err := m.OpenAny(t.Context(), another, keyhold.AAD{}); return err }},
				{"list", 1, 1, func() error { _, err := m.Keys(t.Context(), scope); return err }},
				{"rotate", 4, 4, func() error { _, err := m.Rotate(t.Context(), ref); return err }},
				{"seal after rotating", 2, 1, func() error { _, err := m.Seal(t.Context(), ref, nil, keyhold.AAD{}); return err }},
				{"open after rotating", 0, 1, func() error { _, err := m.Open(t.Context(), ref, ct, keyhold.AAD{}); return err }},
			} {
				before := counted.Calls()
				if err := step.do(); err != nil {
					t.Errorf("%s: %v", step.name, err)
				}
				want := step.want
				if strict {
					want = step.strict
				}
				if got := counted.Calls() - before; got != want {
					t.Errorf("strict %v: %s: %d round trips, want %d", strict, step.name, got, want)
				}
			}
		}
	})
}

func BenchmarkSealOpen(b *testing.B) {
	for name, kind := range stores {
		b.Run(name, func(b *testing.B) {
			s := kind.open(b)
			m := newManager(b, s, newRoot(b))
			must(b, m.CreateScope(b.Context(), tenant))
			plaintext := make([]byte, 1024)
			aad := keyhold.Context("oidc", "7")
			b.SetBytes(int64(len(plaintext)))
			for i := 0; b.Loop(); i++ {
				ct, err := m.Seal(b.Context(), ref, plaintext, aad)
				must(b, err)
				_, err = m.Open(b.Context(), ref, ct, aad)
				must(b, err)
			}
		})
	}
}

func BenchmarkCreateScope(b *testing.B) {
	for name, kind := range stores {
		b.Run(name, func(b *testing.B) {
			m := newManager(b, kind.open(b), newRoot(b))
			for i := 0; b.Loop(); i++ {
				must(b, m.CreateScope(b.Context(), key.Scope(fmt.Sprint("s", i))))
			}
		})
	}
}
