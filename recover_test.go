package keyhold

import (
	"slices"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/memstore"
)

// copied is the rows of a database as they are now.
func copied(s *memstore.Store) memstore.Data {
	var rows memstore.Data
	s.Edit(func(d *memstore.Data) {
		rows = *d
		rows.Keys = slices.Clone(d.Keys)
		for i := range rows.Keys {
			rows.Keys[i].Versions = slices.Clone(d.Keys[i].Versions)
			rows.Keys[i].Tombstones = slices.Clone(d.Keys[i].Tombstones)
		}
	})
	return rows
}

func (w *two) failover(to memstore.Data) { w.store.Edit(func(d *memstore.Data) { *d = to }) }

// What a failover lost of a key, and an instance still has, is written back soon by that instance, and everything that
// was sealed opens again everywhere.
func TestWhatAFailoverLostIsWrittenBack(t *testing.T) {
	for name, c := range map[string]struct {
		lost  func(t *testing.T, w *two) // what the failover loses
		after func(t *testing.T, w *two) // what others do before it is written back
		want  []key.State                // of inner's versions, in the end
		opens bool                       // what was sealed with the lost version
	}{
		"a rotation": {
			lost: func(t *testing.T, w *two) { rotated(t, w, inner) },
			want: []key.State{key.Retired, key.Active}, opens: true,
		},
		"two rotations, and one of the root key between them, with a rewrap": {
			lost: func(t *testing.T, w *two) {
				rotated(t, w, inner)
				rotated(t, w, innerRoot)
				_, err := w.other.Rewrap(t.Context(), inner.Scope)
				check(t, err)
				rotated(t, w, inner)
			},
			want: []key.State{key.Retired, key.Retired, key.Active}, opens: true,
		},
		"a rotation, whose number another version has by now": {
			lost:  func(t *testing.T, w *two) { rotated(t, w, inner) },
			after: func(t *testing.T, w *two) { _, err := w.fresh(t).Rotate(t.Context(), inner); check(t, err) },
			want:  []key.State{key.Retired, key.Retired, key.Active}, opens: true,
		},
		"a disabled version and a policy": {
			lost: func(t *testing.T, w *two) {
				rotated(t, w, inner)
				step(t, w.other, inner, 1, key.Disabled)
				check(t, w.other.SetPolicy(t.Context(), inner, Policy{RotateEvery: 17 * time.Hour}))
			},
			want: []key.State{key.Disabled, key.Active}, opens: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				first := sealing(t, w.Manager, inner, "first")
				before := copied(w.store)
				c.lost(t, w)
				pass(5 * time.Second)
				ct := sealing(t, w.Manager, inner, "x") // kept outside the database
				fam, err := w.store.Key(t.Context(), inner)
				check(t, err)
				wantPolicy := fam.Data[0].RotateEvery

				w.failover(before)
				if c.after != nil {
					c.after(t, w)
				}
				stop := running(t, w.Manager)
				pass(6 * time.Second)
				_, _ = w.Manager.Open(t.Context(), inner, ct, AAD{}) // somebody needs it, and may be the first to see
				pass(14 * time.Second)
				stop()
				w.hasStates(t, inner, c.want...)
				fresh := w.fresh(t)
				reads(t, fresh, ct, "x")
				if c.want[0] != key.Disabled {
					reads(t, fresh, first, "first")
				}
				fam, err = w.store.Key(t.Context(), inner)
				check(t, err)
				if fam.Data[0].RotateEvery != wantPolicy {
					t.Errorf("the period is %d s, want %d", fam.Data[0].RotateEvery, wantPolicy)
				}
				sealing(t, w.Manager, inner, "y")
				sealing(t, fresh, inner, "y")
				w.sound(t)
			})
		})
	}
}

func rotated(t *testing.T, w *two, r Ref) {
	t.Helper()
	_, err := w.other.Rotate(t.Context(), r)
	check(t, err)
}

// fresh is an instance that knows nothing of what was before.
func (w *two) fresh(t *testing.T) *Manager { return w.open(t, w.store) }

// A key that is not there any more, or a version that was destroyed, is not brought back.
func TestWhatWasGivenUpIsNotWrittenBack(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		before := copied(w.store)
		rotated(t, w, inner)
		pass(5 * time.Second)
		ct := sealing(t, w.Manager, inner, "x")
		w.failover(before)
		check(t, w.store.DeleteScope(t.Context(), inner.Scope))
		check(t, w.fresh(t).CreateScope(t.Context(), inner.Scope))
		stop := running(t, w.Manager)
		pass(time.Minute)
		stop()
		w.hasStates(t, inner, key.Active)
		_, err := w.fresh(t).Open(t.Context(), inner, ct, AAD{})
		wants(t, err, ErrOpen)
		sealing(t, w.Manager, inner, "x")
		w.sound(t)
	})
}

// Nothing is written back that the database may still have: a key that is as new as it was seen, or newer.
func TestNothingIsWrittenBackWithoutALoss(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		stop := running(t, w.Manager)
		for range 3 {
			rotated(t, w, inner)
			pass(10 * time.Second)
			sealing(t, w.Manager, inner, "x")
		}
		before := w.states(t, inner)
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		pass(10 * time.Minute)
		again, err := w.store.Key(t.Context(), inner)
		check(t, err)
		if fam.Data[0].Seq != again.Data[0].Seq || !slices.Equal(before, w.states(t, inner)) {
			t.Errorf("it was written: %v", w.states(t, inner))
		}
		stop()
	})
}

// A rotation that is committed between a question and the read of the key, and lost before the next question, leaves
// the epochs as they were: the instance that read it has to notice all the same.
func TestALossThatNoEpochShowsIsNoticed(t *testing.T) {
	another := Ref{Scope: inner.Scope, Purpose: "another"}
	inTwo(t, func(t *testing.T, w *two) {
		before := copied(w.store)
		stop := running(t, w.Manager)
		done := false
		w.calls.Hook(func(call string) {
			if call == "Key" && !done {
				done = true
				rotated(t, w, another)
			}
		})
		sealing(t, w.Manager, another, "x")
		w.failover(before)
		pass(20 * time.Second) // four questions
		ct, err := w.Manager.Seal(t.Context(), another, []byte("sealed after the failover"), AAD{})
		stop()
		if err == nil {
			if _, err := w.fresh(t).Open(t.Context(), another, ct, AAD{}); err != nil {
				t.Errorf("what is sealed 20 s after the failover opens nowhere else: %v", err)
			}
		}
	})
}
