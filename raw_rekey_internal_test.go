package keyhold

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// nameStates makes a name of each kind: registered, removed, registered again, and with a key.
func nameStates(t *testing.T, m *Manager) {
	t.Helper()
	ctx := t.Context()
	for _, p := range []Purpose{"registered", "removed", "again", "made"} {
		ref := Ref{Scope: inner.Scope, Purpose: p}
		check(t, m.RegisterRaw(ctx, ref, "aes128-random"))
		if p == "registered" {
			continue
		}
		_, err := m.MakeRaw(ctx, ref, RawKey{})
		check(t, err)
		if p == "made" {
			continue
		}
		check(t, m.RemoveRaw(ctx, ref))
		if p == "again" {
			check(t, m.RegisterRaw(ctx, ref, "aes192-random"))
		}
	}
}

// hasNameStates asserts that m sees all of them as they were made.
func hasNameStates(t *testing.T, m *Manager) {
	t.Helper()
	for p, want := range map[Purpose]RawInfo{
		"registered": {Generator: "aes128-random"},
		"again":      {Generator: "aes192-random"},
		"made":       {Generator: "aes128-random", Version: 1, RotateEvery: dataKeyPeriod},
	} {
		want.Name = p
		got, err := m.RawInfo(t.Context(), Ref{Scope: inner.Scope, Purpose: p})
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", p, got, err, want)
		}
	}
	_, err := m.RawInfo(t.Context(), Ref{Scope: inner.Scope, Purpose: "removed"})
	wants(t, err, ErrRemoved)
}

// A rekey makes what is known of names anew under the new key, and the old key opens nothing of it any more.
func TestRekeyMovesNames(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		nameStates(t, w.other)
		before := stored(w.store).Names
		iks := w.other.ring.clones()
		defer closeAll(iks)
		rekeyed(t, w.other)
		after := stored(w.store).Names
		if len(after) != len(before) || len(after) != 4 {
			t.Fatalf("%d names, there were %d", len(after), len(before))
		}
		for i := range after {
			assertNameMoved(t, w.other, iks[0], &before[i], &after[i])
		}
		hasNameStates(t, w.Manager)
		hasNameStates(t, w.fresh(t))
		w.sound(t)
	})
}

func assertNameMoved(t *testing.T, m *Manager, old *seal.IK, before, after *store.Name) {
	t.Helper()
	kid := old.KID()
	if bytes.Equal(after.IKKID, kid[:]) || old.Verify(nameManifest(m.ring.inst, after), after.MAC) || after.Seq <= before.Seq {
		t.Errorf("%q is under the old key", after.Purpose)
	}
	if !old.Verify(nameManifest(m.ring.inst, before), before.MAC) {
		t.Errorf("%q was not under the old key", before.Purpose)
	}
	same := *after
	same.Seq, same.IKKID, same.MAC = before.Seq, before.IKKID, before.MAC
	if !reflect.DeepEqual(&same, before) {
		t.Errorf("%+v became %+v", before, after)
	}
}

// A rekey that is stopped at any of its calls is ended by another process, while others register and remove names.
func TestRekeyOfNamesIsStoppedAnywhere(t *testing.T) {
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for n, fired := 0, true; fired; n++ {
			inTwo(t, func(t *testing.T, w *two) {
				nameStates(t, w.other)
				faulty := faultstore.New(w.store)
				rekeyer := w.open(t, faulty)
				calls := 0
				faulty.Hook(func(call string) {
					if call == "PutName" || call == "NamesNotUnder" {
						calls++
						ref := Ref{Scope: inner.Scope, Purpose: Purpose(fmt.Sprint("n", calls))}
						check(t, w.other.RegisterRaw(t.Context(), ref, ""))
						check(t, w.Manager.RegisterRaw(t.Context(), Ref{Scope: inner.Scope, Purpose: ref.Purpose + "w"}, ""))
						if calls%2 == 0 {
							check(t, w.other.RemoveRaw(t.Context(), ref))
						}
					}
				})
				faulty.Fail(n, mode)
				_, err := rekeyer.Rekey(t.Context(), NoEscrow)
				fired = faulty.Fired()
				faulty.Hook(nil)
				if !fired {
					check(t, err)
					if calls < 6 {
						t.Errorf("%d calls for names", calls)
					}
				}
				hasNameStates(t, w.Manager)
				hasNameStates(t, w.fresh(t))
				info, err := w.other.Installation(t.Context())
				check(t, err)
				if info.Rekeyed || n == 0 {
					rekeyed(t, w.other)
				}
				info, err = w.other.Installation(t.Context())
				check(t, err)
				if info.Rekeyed {
					t.Errorf("call %d: it is not over", n)
				}
				hasNameStates(t, w.Manager)
				hasNameStates(t, w.fresh(t))
				_, err = w.Manager.MakeRaw(t.Context(), Ref{Scope: inner.Scope, Purpose: "again"}, RawKey{})
				check(t, err)
				w.sound(t)
			})
			if t.Failed() {
				t.Fatalf("call %d", n)
			}
		}
	}
}

// A process learns of a new installation key by a name that is under it, whatever it wants of it.
func TestANewInstallationKeyIsLearntByAName(t *testing.T) {
	ref := Ref{Scope: inner.Scope, Purpose: "learnt"}
	for name, do := range map[string]func(t *testing.T, m *Manager) error{
		"info":     func(t *testing.T, m *Manager) error { _, err := m.RawInfo(t.Context(), ref); return err },
		"register": func(t *testing.T, m *Manager) error { return m.RegisterRaw(t.Context(), ref, "") },
		"make":     func(t *testing.T, m *Manager) error { _, err := m.MakeRaw(t.Context(), ref, RawKey{}); return err },
		"remove":   func(t *testing.T, m *Manager) error { return m.RemoveRaw(t.Context(), ref) },
		"import": func(t *testing.T, m *Manager) error {
			_, err := m.ImportRaw(t.Context(), ref, RawKey{}, []ImportedVersion{{Number: 1, Key: make([]byte, 9)}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				rekeyer := begun(t, w.store, w.root)
				check(t, rekeyer.RegisterRaw(t.Context(), ref, ""))
				if err := do(t, w.Manager); err != nil {
					t.Error(err)
				}
				rekeyed(t, rekeyer)
				w.sound(t)
			})
		})
	}
	t.Run("the key is there, and its name alone is moved", func(t *testing.T) {
		inTwo(t, func(t *testing.T, w *two) {
			check(t, w.RegisterRaw(t.Context(), ref, ""))
			_, err := w.MakeRaw(t.Context(), ref, RawKey{})
			check(t, err)
			rekeyer := begun(t, w.store, w.root)
			kid := rekeyer.ring.parent().KID()
			check(t, rekeyer.moveNames(t.Context(), kid))
			check(t, w.RemoveRaw(t.Context(), ref))
			rekeyed(t, rekeyer)
			w.sound(t)
		})
	})
}

// A name that does not fit keeps a rekey from its end, which says which it is.
func TestRekeyOfANameThatDoesNotFit(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		nameStates(t, w.other)
		w.store.Edit(func(d *memstore.Data) { d.Names[0].Last++ })
		_, err := w.other.Rekey(t.Context(), NoEscrow)
		wantsIntegrity(t, err)
		w.store.Edit(func(d *memstore.Data) { d.Names[0].Last-- })
		rekeyed(t, w.other)
		hasNameStates(t, w.Manager)
		pass(time.Second)
		w.sound(t)
	})
}
