package keyhold

import (
	"slices"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
)

// With Acknowledged a key seals only after a commit that began when the key had been read: what another process changed
// during the read may come after any earlier one.
func TestAcknowledgedWaitsForACommitAfterTheRead(t *testing.T) {
	another := Ref{Scope: inner.Scope, Purpose: "another"}
	for name, use := range map[string]struct {
		call func(t *testing.T, w *two)
		read int  // during which it is changed
		own  bool // by the call itself, before it reads
	}{
		"seal": {read: 1, call: func(t *testing.T, w *two) { sealing(t, w.Manager, another, "x") }},
		"seal with what opening has read": {read: 1, call: func(t *testing.T, w *two) {
			_, _, err := w.OpenAny(t.Context(), sealing(t, w.other, another, "y"), AAD{})
			check(t, err)
			sealing(t, w.Manager, another, "x")
		}},
		"rotate": {read: 2, own: true, call: func(t *testing.T, w *two) {
			_, err := w.Manager.Rotate(t.Context(), another)
			check(t, err)
		}},
		"sweep": {read: 2, own: true, call: func(t *testing.T, w *two) {
			check(t, w.other.SetPolicy(t.Context(), another, Policy{RotateEvery: time.Second}))
			check(t, w.other.Close())
			pass(time.Second)
			_, err := w.Sweep(t.Context())
			check(t, err)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inTwoWith(t, Config{Durability: Acknowledged}, func(t *testing.T, w *two) {
				reads := 0
				w.calls.Hook(func(call string) {
					if call != "Key" && call != "KeyOfVersion" {
						return
					}
					if reads++; reads == use.read {
						check(t, w.Manager.epochs.refresh(t.Context())) // somebody else's question, while the read is on its way
						if !use.own {
							rotated(t, w, another)
						}
					}
				})
				before := w.calls.Calls()
				use.call(t, w)
				log := w.since(before)
				// A rotation ends with an update, before which it has to be acknowledged what it read.
				if i := slices.Index(log, "Update"); i >= 0 {
					log = log[:slices.Index(log[i+1:], "Update")+i+1]
				}
				slices.Reverse(log)
				sign := slices.Index(log, "Sign")
				read := slices.IndexFunc(log, func(call string) bool { return call == "Key" || call == "KeyOfVersion" })
				if reads < use.read || sign < 0 || read < sign {
					t.Errorf("no sign came after the last read; backwards: %v", log)
				}
			})
		})
	}
}

// A lost version is written back whatever this process does before it asks whether something was lost.
func TestWhatWasLostIsKeptUntilItIsWrittenBack(t *testing.T) {
	elsewhere, another := Ref{Scope: "elsewhere", Purpose: inner.Purpose}, Ref{Scope: inner.Scope, Purpose: "another"}
	for name, meanwhile := range map[string]func(t *testing.T, w *two){
		"nothing": func(*testing.T, *two) {},
		"another call asks first": func(t *testing.T, w *two) {
			check(t, w.CreateScope(t.Context(), elsewhere.Scope))
			sealing(t, w.Manager, elsewhere, "x")
		},
		"it changes another key of the scope": func(t *testing.T, w *two) {
			_, err := w.Manager.Rotate(t.Context(), another)
			check(t, err)
		},
		"the key cannot be read for a moment": func(t *testing.T, w *two) {
			pass(5 * time.Second)
			w.calls.Fail(1, faultstore.Before)
			_, err := w.Manager.Seal(t.Context(), inner, nil, AAD{})
			wants(t, err, ErrUnavailable)
		},
		"a message is opened by its version": func(t *testing.T, w *two) {
			fresh := w.fresh(t)
			_, err := fresh.Rotate(t.Context(), inner)
			check(t, err)
			_, err = fresh.Rotate(t.Context(), inner) // its sequence number is higher than what was lost
			check(t, err)
			_, _, err = w.OpenAny(t.Context(), sealing(t, fresh, inner, "y"), AAD{})
			check(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				before := copied(w.store)
				rotated(t, w, inner)
				pass(5 * time.Second)
				ct := sealing(t, w.Manager, inner, "x")
				w.failover(before)
				meanwhile(t, w)
				stop := running(t, w.Manager)
				pass(20 * time.Second)
				stop()
				reads(t, w.fresh(t), ct, "x")
				if states := w.states(t, inner); states[len(states)-1] != key.Active || len(states) < 2 {
					t.Errorf("versions are %v", states)
				}
				w.sound(t)
			})
		})
	}
}
