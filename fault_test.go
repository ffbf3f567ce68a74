package keyhold_test

import (
	"bytes"
	"errors"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/storetest"
)

var modes = map[string]faultstore.Mode{"before": faultstore.Before, "after": faultstore.After}

// Each operation, with each of its database calls failing in turn, before and after it did its work: what is stored
// passes every check, what was ever sealed opens, and doing it again ends what was begun.
func TestEveryOperationSurvivesEveryFault(t *testing.T) {
	operations := map[string]func(f *faultWorld) error{
		"create scope": func(f *faultWorld) error { return f.m.CreateScope(f.Context(), "new") },
		"add purposes": func(f *faultWorld) error { return f.m.CreateScope(f.Context(), "bare") },
		"seal and open": func(f *faultWorld) error {
			ct, err := f.m.Seal(f.Context(), ref, []byte("x"), keyhold.AAD{})
			if err != nil {
				return err
			}
			f.sealed = append(f.sealed, ct)
			_, err = f.m.Open(f.Context(), ref, ct, keyhold.AAD{})
			return err
		},
		"seal and open detached": func(f *faultWorld) error {
			id, ct, err := f.m.SealDetached(f.Context(), ref, []byte("x"), keyhold.AAD{})
			if err != nil {
				return err
			}
			_, err = f.m.OpenDetached(f.Context(), ref, id, ct, keyhold.AAD{})
			return err
		},
		"open any": func(f *faultWorld) error { _, _, err := f.m.OpenAny(f.Context(), f.before, keyhold.AAD{}); return err },
		"blind index": func(f *faultWorld) error {
			_, err := f.m.BlindIndex(f.Context(), key.Ref{Scope: tenant, Purpose: search}, "email", nil, 16)
			return err
		},
		"wrapper": func(f *faultWorld) error {
			w, err := f.m.Wrapper(f.Context(), ref)
			if err != nil {
				return err
			}
			blob, err := w.Encrypt(f.Context(), nil)
			if err != nil {
				return err
			}
			_, err = w.Decrypt(f.Context(), blob)
			return err
		},
		"create, seal and open in a transaction": func(f *faultWorld) error {
			return f.inTx(func(tx store.Tx) error {
				r := key.Ref{Scope: "new", Purpose: secrets}
				if err := f.m.CreateScopeTx(f.Context(), tx, r.Scope); err != nil {
					return err
				}
				ct, err := f.m.SealTx(f.Context(), tx, r, []byte("x"), keyhold.AAD{})
				if err != nil {
					return err
				}
				_, err = f.m.OpenTx(f.Context(), tx, r, ct, keyhold.AAD{})
				return err
			})
		},
		"rotate":       func(f *faultWorld) error { _, err := f.m.Rotate(f.Context(), ref); return err },
		"rotate root":  func(f *faultWorld) error { _, err := f.m.Rotate(f.Context(), key.Ref{Scope: tenant}); return err },
		"rotate if":    func(f *faultWorld) error { _, err := f.m.RotateIf(f.Context(), ref, 1); return err },
		"rewrap":       func(f *faultWorld) error { _, err := f.m.Rewrap(f.Context(), "behind"); return err },
		"keys":         func(f *faultWorld) error { _, err := f.m.Keys(f.Context(), tenant); return err },
		"installation": func(f *faultWorld) error { _, err := f.m.Installation(f.Context()); return err },
		"scopes": func(f *faultWorld) error {
			for _, err := range f.m.Scopes(f.Context()) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"check": func(f *faultWorld) error {
			findings, err := f.m.Check(f.Context())
			if len(findings) > 0 {
				f.Errorf("check under faults: %v", findings)
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

// faultWorld is a manager whose database calls are made to fail, and what it has sealed.
type faultWorld struct {
	*testing.T
	kind   kind
	store  store.Store
	faulty *faultstore.Store
	m      *keyhold.Manager
	before []byte   // sealed before any fault
	sealed [][]byte // sealed under faults, with ref
}

// inTx does something in a transaction of the application's, which ends well or not at all.
func (f *faultWorld) inTx(do func(tx store.Tx) error) error {
	tx, commit, rollback := f.kind.begin(f, f.store)
	if err := do(f.faulty.InTx(tx)); err != nil {
		must(f, rollback())
		return err
	}
	return commit()
}

func sweep(t *testing.T, kind kind, mode faultstore.Mode, operation func(*faultWorld) error) {
	t.Helper()
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

		faulty := faultstore.New(s)
		f := &faultWorld{
			T: t, kind: kind, store: s, faulty: faulty, m: newManager(t, faulty, root),
			before: sealed(t, clean, ref, "before", keyhold.AAD{}),
		}
		from := faulty.Calls()
		faulty.Fail(n, mode)
		err = operation(f)
		faulty.Disarm()
		if !faulty.Fired() {
			if n == 0 {
				t.Fatal("no call was made: the sweep tested nothing")
			}
			if err != nil {
				t.Errorf("without a fault: %v", err)
			}
			return
		}
		// A write that was done although its answer was lost is found done, and a sign is written once more; every
		// other fault is reported.
		if err != nil && !errors.Is(err, keyhold.ErrUnavailable) && !errors.Is(err, keyhold.ErrUnknownOutcome) {
			t.Errorf("call %d: %v, want ErrUnavailable", n, err)
		}
		if err == nil && mode == faultstore.Before && faulty.Log()[from+n] != "Sign" {
			t.Errorf("call %d was not made, and nobody said so", n)
		}
		intact := func() {
			checked(t, clean)
			storetest.Check(t, s)
			opens(t, clean, ref, f.before, keyhold.AAD{}, "before")
			for _, ct := range f.sealed {
				opens(t, clean, ref, ct, keyhold.AAD{}, "x")
			}
		}
		intact()
		if err := operation(f); err != nil {
			t.Errorf("again after call %d: %v", n, err)
		}
		intact()
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

// What a root answers with is in no error, and what holds it prints nothing of it.
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
