package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// fewAtOnce reads so many scopes in the time of a call, and one of them never.
type fewAtOnce struct {
	store.Store
	most  int // 0 is any number
	never key.Scope
	read  []int // how many, of each question that was answered
}

func (s *fewAtOnce) Families(ctx context.Context, scopes []key.Scope) ([]store.Family, store.Epochs, error) {
	if s.most > 0 && len(scopes) > s.most || slices.Contains(scopes, s.never) {
		return nil, store.Epochs{}, fmt.Errorf("read %d scopes: %w", len(scopes), store.ErrUnavailable)
	}
	if len(scopes) > 0 {
		s.read = append(s.read, len(scopes))
	}
	return s.Store.Families(ctx, scopes)
}

// What is done for many scopes reads few first, more as long as they are small, and fewer where they take too long. One
// that cannot be read holds up no other.
func TestHowManyScopesAreReadAtOnce(t *testing.T) {
	const scopes, unreadable = 100, "s040"
	for name, do := range map[string]func(ctx context.Context, m *Manager) (int, error){
		"RewrapAll": func(ctx context.Context, m *Manager) (int, error) { return m.RewrapAll(ctx, nil) },
		"Rekey": func(ctx context.Context, m *Manager) (int, error) {
			done, err := m.Rekey(ctx, NoEscrow)
			return done.Keys / 2, err
		},
		"Reconcile": func(ctx context.Context, m *Manager) (int, error) {
			done, err := m.Reconcile(ctx)
			return done.Created, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				slow fewAtOnce
				read []int // nil is that none was of more than most
			}{
				{fewAtOnce{}, []int{16, 32, 52}},
				{fewAtOnce{most: 3}, nil},
				{fewAtOnce{never: unreadable}, nil},
			} {
				s, m := lagging(t, scopes, name == "Reconcile")
				*s = fewAtOnce{Store: s.Store, most: c.slow.most, never: c.slow.never}
				n, err := do(t.Context(), m)
				want := scopes
				if c.slow.never == "" {
					check(t, err)
				} else {
					want--
					if err == nil || !strings.Contains(err.Error(), unreadable) {
						t.Errorf("%v; want an error that names the scope that cannot be read", err)
					}
				}
				if n != want {
					t.Errorf("%+v: done for %d scopes, want %d; %v", c.slow, n, want, err)
				}
				if c.read != nil && !slices.Equal(s.read, c.read) {
					t.Errorf("read %v scopes at once, want %v", s.read, c.read)
				}
			}
		})
	}
	t.Run("without the database", func(t *testing.T) {
		s, m := lagging(t, 2, false)
		gone := &askedInVain{Store: s.Store}
		m.store = gone
		if _, _, err := m.readScopes(t.Context(), []key.Scope{"s000", "s001"}); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%v, want %v", err, store.ErrUnavailable)
		}
		if gone.asked != 2 {
			t.Errorf("asked %d times, want once, and once whether it is there", gone.asked)
		}
	})
}

type askedInVain struct {
	store.Store
	asked int
}

func (s *askedInVain) Families(context.Context, []key.Scope) ([]store.Family, store.Epochs, error) {
	s.asked++
	return nil, store.Epochs{}, store.ErrUnavailable
}

// lagging is so many scopes with a data key each, whose version is under a root key version that is not the head; or
// that lack a purpose.
func lagging(t *testing.T, scopes int, lacks bool) (*fewAtOnce, *Manager) {
	t.Helper()
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	s := &fewAtOnce{Store: memstore.New()}
	cfg := Config{Root: root, Initialize: true, Purposes: []Purpose{"p"}}
	m, err := New(t.Context(), s, cfg)
	check(t, err)
	t.Cleanup(func() { check(t, m.Close()) })
	for i := range scopes {
		scope := Scope(fmt.Sprintf("s%03d", i))
		check(t, m.CreateScope(t.Context(), scope))
		if !lacks {
			_, err := m.Rotate(t.Context(), Ref{Scope: scope})
			check(t, err)
		}
	}
	if lacks {
		cfg.Purposes = append(cfg.Purposes, "q")
		if m, err = New(t.Context(), s, cfg); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { check(t, m.Close()) })
	}
	return s, m
}
