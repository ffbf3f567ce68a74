package keyhold_test

import (
	"bytes"
	"errors"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/storetest"
)

var modes = map[string]faultstore.Mode{"before": faultstore.Before, "after": faultstore.After}

// Each operation, with each of its database calls failing in turn, before and after it did its work: what is stored
// passes every check, what was ever sealed opens, and doing it again ends what was begun.
func TestEveryOperationSurvivesEveryFault(t *testing.T) {
	operations := map[string]func(t *testing.T, m *keyhold.Manager) error{
		"create scope": func(t *testing.T, m *keyhold.Manager) error { return m.CreateScope(t.Context(), "new") },
		"add purposes": func(t *testing.T, m *keyhold.Manager) error { return m.CreateScope(t.Context(), "bare") },
		"seal": func(t *testing.T, m *keyhold.Manager) error {
			ct, err := m.Seal(t.Context(), ref, []byte("x"), keyhold.AAD{})
			if err == nil {
				_, err = m.Open(t.Context(), ref, ct, keyhold.AAD{})
			}
			return err
		},
		"rotate": func(t *testing.T, m *keyhold.Manager) error { _, err := m.Rotate(t.Context(), ref); return err },
		"rotate root": func(t *testing.T, m *keyhold.Manager) error {
			_, err := m.Rotate(t.Context(), key.Ref{Scope: tenant})
			return err
		},
		"rotate if": func(t *testing.T, m *keyhold.Manager) error { _, err := m.RotateIf(t.Context(), ref, 1); return err },
		"rewrap":    func(t *testing.T, m *keyhold.Manager) error { _, err := m.Rewrap(t.Context(), "behind"); return err },
		"keys":      func(t *testing.T, m *keyhold.Manager) error { _, err := m.Keys(t.Context(), tenant); return err },
		"installation": func(t *testing.T, m *keyhold.Manager) error {
			_, err := m.Installation(t.Context())
			return err
		},
		"scopes": func(t *testing.T, m *keyhold.Manager) error {
			for _, err := range m.Scopes(t.Context()) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"check": func(t *testing.T, m *keyhold.Manager) error {
			findings, err := m.Check(t.Context())
			if len(findings) > 0 {
				t.Errorf("check under faults: %v", findings)
			}
			return err
		},
	}
	for kindName, kind := range stores {
		for name, operation := range operations {
			for modeName, mode := range modes {
				t.Run(kindName+"/"+name+"/"+modeName, func(t *testing.T) {
					t.Parallel()
					sweep(t, kind, mode, operation)
				})
			}
		}
	}
}

func sweep(t *testing.T, kind kind, mode faultstore.Mode, operation func(*testing.T, *keyhold.Manager) error) {
	for n := 0; ; n++ {
		s, root := kind.open(t), newRoot(t)
		bare, err := keyhold.New(t.Context(), s, keyhold.Config{Root: root, Initialize: true})
		must(t, err)
		must(t, bare.CreateScope(t.Context(), "bare"))
		clean := newManager(t, s, root)
		must(t, clean.CreateScope(t.Context(), tenant))
		must(t, clean.CreateScope(t.Context(), "behind"))
		_, err = clean.Rotate(t.Context(), key.Ref{Scope: "behind"})
		must(t, err)
		before := sealed(t, clean, ref, "before", keyhold.AAD{})

		faulty := faultstore.New(s)
		m := newManager(t, faulty, root)
		faulty.Fail(n, mode)
		err = operation(t, m)
		fired := faulty.Fired()
		if !fired {
			if n == 0 {
				t.Fatal("no call was made: the sweep tested nothing")
			}
			if err != nil {
				t.Errorf("without a fault: %v", err)
			}
			return
		}
		// A write that was done although its answer was lost is found done; every other fault is reported.
		if err != nil && !errors.Is(err, keyhold.ErrUnavailable) {
			t.Errorf("call %d: %v, want ErrUnavailable", n, err)
		}
		if err == nil && mode == faultstore.Before {
			t.Errorf("call %d was not made, and nobody said so", n)
		}
		checked(t, clean)
		storetest.Check(t, s)
		opens(t, clean, ref, before, keyhold.AAD{}, "before")
		if err := operation(t, m); err != nil {
			t.Errorf("again after call %d: %v", n, err)
		}
		checked(t, clean)
		opens(t, m, ref, before, keyhold.AAD{}, "before")
	}
}

// Making an installation survives every fault as well: there is none or a whole one, and whoever tries again gets it.
func TestInitializeSurvivesEveryFault(t *testing.T) {
	for kindName, kind := range stores {
		for modeName, mode := range modes {
			t.Run(kindName+"/"+modeName, func(t *testing.T) {
				for n := 0; ; n++ {
					s, root := kind.open(t), newRoot(t)
					faulty := faultstore.New(s)
					faulty.Fail(n, mode)
					m, err := keyhold.New(t.Context(), faulty, config(root))
					if !faulty.Fired() {
						if n == 0 || err != nil {
							t.Fatalf("after %d calls: %v", n, err)
						}
						return
					}
					again := newManager(t, s, root)
					if err == nil && m.Pin() != again.Pin() {
						t.Errorf("call %d: two installations", n)
					}
					must(t, again.CreateScope(t.Context(), tenant))
					checked(t, again)
				}
			})
		}
	}
}

// The errors that faults lead to, and every other error that this file provokes, hold no key: the bytes that an
// attacker with the log could use are looked for in plain and as numbers.
func TestErrorsHoldNoSecrets(t *testing.T) {
	s := stores["memstore"].open(t)
	root := &countingRoot{Wrapper: newRoot(t)}
	var payload []byte
	root.decrypt = func(pt []byte, err error) ([]byte, error) {
		payload = bytes.Clone(pt)
		return pt, err
	}
	m := newManager(t, s, root)
	if len(payload) != 65 {
		t.Fatalf("slot payload of %d bytes", len(payload))
	}
	root.decrypt = func(pt []byte, _ error) ([]byte, error) { return pt[:64], nil }
	_, err := keyhold.New(t.Context(), s, config(root))
	fails(t, err, keyhold.ErrRoot)
	noSecret(t, payload[33:], err, m, struct{ M *keyhold.Manager }{m})
}
