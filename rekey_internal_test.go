package keyhold

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// The pins that are configured when a rekey comes: a process at work follows the link, whatever they are; one that
// starts needs the key's that the database is read by.
func TestRekeyAndPins(t *testing.T) {
	for name, c := range map[string]struct {
		old, next      bool // configured
		during, afterw bool // whether a process starts
	}{
		"none": {during: true, afterw: true},
		"old":  {old: true, during: true},
		"both": {old: true, next: true, during: true, afterw: true},
		"new":  {next: true, afterw: true},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				first := w.Pin()
				running := openedBy(t, w.store, w.root, func(c *Config) { c.Pins = []string{first} })
				rekeyer := begun(t, w.store, w.root)
				var pins []string
				if c.old {
					pins = append(pins, first)
				}
				if c.next {
					pins = append(pins, rekeyer.Pin())
				}
				starts := func(want bool) {
					t.Helper()
					m, err := New(t.Context(), w.store, Config{Root: w.root, Pins: pins})
					if err == nil {
						check(t, usable(t, m))
						check(t, m.Close())
					}
					if !want {
						wants(t, err, ErrPin)
						if err == nil || !strings.Contains(err.Error(), rekeyer.Pin()) {
							t.Errorf("%v; want it to say the pin %s", err, rekeyer.Pin())
						}
					} else if err != nil {
						t.Error(err)
					}
				}
				starts(c.during)
				check(t, usable(t, running))
				rekeyed(t, rekeyer)
				starts(c.afterw)
				check(t, usable(t, running))
				if running.Pin() == first || running.Pin() != rekeyer.Pin() {
					t.Error("the pin is not the new key's")
				}
				clean(t, w.store, w.root)
			})
		})
	}
}

// resign makes the manifest of the slots fit, by a key.
func resign(t *testing.T, in *store.Installation, by *seal.IK) {
	t.Helper()
	kid := by.KID()
	in.IKKID, in.Seq = kid[:], in.Seq+1
	manifest, err := slotsManifest(*in)
	check(t, err)
	mac := by.MAC(manifest.Append(nil))
	in.MAC = mac[:]
}

// Whoever can write to the database, and seal for the root, can have no process take a key for the next installation
// key that the one before did not make, while a rekey lasts or by a feigned one.
func TestRekeyByWhoDoesNotHaveTheInstallationKey(t *testing.T) {
	for name, c := range map[string]struct {
		begun bool
		edit  func(f *forged, in *store.Installation)
	}{
		"wrong link":      {true, func(_ *forged, in *store.Installation) { in.Keys[1].Link[7] ^= 1 }},
		"no link":         {true, func(_ *forged, in *store.Installation) { in.Keys[1].Link = nil }},
		"follows another": {true, func(f *forged, in *store.Installation) { in.Keys[1].Previous = f.kid[:] }},
		"follows none": {true, func(_ *forged, in *store.Installation) {
			in.Keys[1].Previous, in.Keys[1].Link = nil, nil
		}},
		"the new key is first": {true, func(_ *forged, in *store.Installation) {
			in.Keys[0], in.Keys[1] = in.Keys[1], in.Keys[0]
		}},
		"slots' blobs swapped": {true, func(_ *forged, in *store.Installation) {
			in.Slots[0].Blob, in.Slots[1].Blob = in.Slots[1].Blob, in.Slots[0].Blob
		}},
		"a slot's key swapped": {true, func(_ *forged, in *store.Installation) { in.Slots[0].IKKID = in.Keys[1].KID }},
		"another key's blob in the slot": {true, func(f *forged, in *store.Installation) {
			payload := f.evil.SlotPayload(in.Slots[1].ID, in.Slots[1].WrapperType)
			blob, err := f.root.Encrypt(f.t.Context(), payload.Reveal())
			check(f.t, err)
			in.Slots[1].Blob, err = proto.Marshal(blob)
			check(f.t, err)
		}},
		"another key in the place of the new one": {true, func(f *forged, in *store.Installation) {
			in.Keys[1] = f.byEvil(in.Keys[0].KID)[0]
			in.Slots[1] = f.slot
		}},
		"another key, signed by itself": {false, func(f *forged, in *store.Installation) {
			in.Keys, in.Slots, in.ActiveSlot = f.byEvil(in.Keys[0].KID), append(in.Slots, f.slot), f.slot.ID
			resign(f.t, in, f.evil)
		}},
		"another key that follows an unknown one": {false, func(f *forged, in *store.Installation) {
			in.Keys = f.byEvil(bytes.Repeat([]byte{1}, 16))
			in.Slots, in.ActiveSlot = append(in.Slots, f.slot), f.slot.ID
			resign(f.t, in, f.evil)
		}},
		"another key beside, signed by itself": {false, func(f *forged, in *store.Installation) {
			in.Keys, in.Slots = append(in.Keys, f.byEvil(in.Keys[0].KID)[0]), append(in.Slots, f.slot)
			resign(f.t, in, f.evil)
		}},
		"three keys": {true, func(f *forged, in *store.Installation) {
			in.Keys = append(in.Keys, f.byEvil(in.Keys[1].KID)[0])
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				f := forge(t, w)
				defer f.evil.Close()
				from := backup(t, w.store)
				if c.begun {
					check(t, begun(t, from, w.root).CreateScope(t.Context(), "new"))
				}
				data := stored(from)
				w.store.Edit(func(d *memstore.Data) {
					*d = data
					c.edit(f, d.Installation)
				})
				f.refused(t, w, c.begun)
			})
		})
	}
}

// forged is an installation key that somebody made who can write to the database and encrypt for the root, as anybody
// can with a public key, and its slot.
type forged struct {
	t    *testing.T
	root wrapping.Wrapper
	pin  string // of the right one
	evil *seal.IK
	kid  key.KID
	slot store.Slot
}

func forge(t *testing.T, w *two) *forged {
	t.Helper()
	iks := w.ring.clones()
	defer closeAll(iks)
	f := &forged{t: t, root: w.root, pin: w.Pin(), evil: iks[0].Next()}
	f.kid = f.evil.KID()
	var err error
	f.slot, err = w.sealSlot(t.Context(), w.root, f.evil)
	check(t, err)
	return f
}

func (f *forged) byEvil(previous []byte) []store.InstallationKey {
	link := f.evil.NextMAC(f.evil.Pin())
	return []store.InstallationKey{{KID: f.kid[:], Previous: previous, Link: link[:]}}
}

// refused asserts that no process takes what is stored for the installation's.
func (f *forged) refused(t *testing.T, w *two, begun bool) {
	t.Helper()
	for what, do := range map[string]func() error{
		"read": func() error {
			if begun { // what is under the key before goes on
				_, err := w.Keys(t.Context(), "new")
				return err
			}
			_, err := w.Rotate(t.Context(), inner)
			return err
		},
		"add root": func() error { _, err := w.AddRoot(t.Context(), newStub(t)); return err },
		"rekey":    func() error { _, err := w.Rekey(t.Context(), NoEscrow); return err },
	} {
		err := do()
		if _, tampered := errors.AsType[*IntegrityError](err); !tampered && !errors.Is(err, ErrRoot) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if kids := ringOf(w.Manager); len(kids) != 1 || w.Pin() != f.pin {
		t.Errorf("the process has %d keys, and the pin %s", len(kids), w.Pin())
	}
	_, err := New(t.Context(), w.store, Config{Root: w.root, Pins: []string{f.pin}})
	_, tampered := errors.AsType[*IntegrityError](err)
	if !tampered && !errors.Is(err, ErrPin) && !errors.Is(err, ErrRoot) {
		t.Errorf("a new process: %v", err)
	}
	if !begun { // without a pin, who can write to the database can put another installation there
		return
	}
	_, err = New(t.Context(), w.store, Config{Root: w.root})
	if _, tampered := errors.AsType[*IntegrityError](err); !tampered && !errors.Is(err, ErrRoot) {
		t.Errorf("a new process without a pin: %v", err)
	}
}

// A key whose row names an installation key that nobody has is refused by itself.
func TestRekeyARowUnderAnUnknownInstallationKey(t *testing.T) {
	for name, edit := range map[string]func(d *memstore.Data, kid []byte){
		"manifest of the root key": func(d *memstore.Data, kid []byte) { d.Key(Ref{Scope: inner.Scope}).IKKID = kid },
		"manifest of a data key":   func(d *memstore.Data, kid []byte) { d.Key(inner).IKKID = kid },
		"version of the root key": func(d *memstore.Data, kid []byte) {
			d.Key(Ref{Scope: inner.Scope}).Versions[0].IKKID = kid
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				check(t, w.CreateScope(t.Context(), "other"))
				w.store.Edit(func(d *memstore.Data) { edit(d, bytes.Repeat([]byte{7}, 16)) })
				root := &stubRoot{Wrapper: w.root}
				m := openedBy(t, w.store, root, nil)
				for range 3 {
					_, err := m.Seal(t.Context(), inner, nil, AAD{})
					wantsIntegrity(t, err)
				}
				_, err := m.Seal(t.Context(), Ref{Scope: "other", Purpose: inner.Purpose}, nil, AAD{})
				check(t, err)
				_, err = m.Rotate(t.Context(), Ref{Scope: "other"})
				check(t, err)
				if calls := root.called(); len(calls) != 1 {
					t.Errorf("the root was called: %v", calls)
				}
			})
		})
	}
}

// What was once opened with the old key, its recovery line, opens nothing afterwards that is stored: no wrapped key, no
// slot, no manifest. No wrapped key of a root key is the same, whatever its version's state; those of data keys
// are.
func TestRekeyTheOldKeyOpensNothing(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ctx := t.Context()
		root := Ref{Scope: inner.Scope}
		for range 5 {
			for _, r := range []Ref{root, inner} {
				_, err := w.Rotate(ctx, r)
				check(t, err)
			}
		}
		_, err := w.Rewrap(ctx, inner.Scope)
		check(t, err)
		for _, r := range []Ref{root, inner} {
			step(t, w.Manager, r, 2, key.Disabled)
			step(t, w.Manager, r, 3, key.Disabled)
			step(t, w.Manager, r, 3, key.Destroyed)
		}
		bare := openedBy(t, w.store, w.root, func(c *Config) { c.Purposes = nil })
		check(t, bare.CreateScope(ctx, "no data keys"))
		faultyAtActivation(t, w, inner)
		faultyAtActivation(t, w, root)
		ct := sealing(t, w.Manager, inner, "x")

		iks := w.ring.clones()
		defer closeAll(iks)
		line := iks[0].Recovery()
		before := stored(w.store)
		done := rekeyed(t, w.other)
		after := stored(w.store)
		if done.Keys != len(before.Keys) || done.Pin != w.other.Pin() {
			t.Errorf("%+v, want %d keys and the pin %s", done, len(before.Keys), w.other.Pin())
		}
		old, err := seal.ParseRecovery(line.Reveal())
		check(t, err)
		defer old.Close()
		for i := range after.Keys {
			assertMoved(t, w.other, old, &before.Keys[i], &after.Keys[i])
		}
		for _, slot := range after.Installation.Slots {
			kid := old.KID()
			if bytes.Equal(slot.IKKID, kid[:]) && (len(slot.Blob) > 0 || slot.State != key.Destroyed) {
				t.Errorf("slot %s still has the old key", slot.ID)
			}
		}
		manifest, err := slotsManifest(*after.Installation)
		check(t, err)
		if old.Verify(manifest.Append(nil), after.Installation.MAC) {
			t.Error("the old key verifies the manifest of the slots")
		}
		for _, m := range []*Manager{w.Manager, w.other, openedBy(t, w.store, w.root, nil)} {
			pass(epochLife)
			reads(t, m, ct, "x")
			check(t, usable(t, m))
		}
		clean(t, w.store, w.root)
	})
}

func stored(s *memstore.Store) (data memstore.Data) {
	s.Edit(func(d *memstore.Data) { data = *d })
	return data
}

func assertMoved(t *testing.T, m *Manager, old *seal.IK, before, after *store.Key) {
	t.Helper()
	kid := old.KID()
	manifest, err := m.manifestOf(after)
	check(t, err)
	if before.ID != after.ID || bytes.Equal(after.IKKID, kid[:]) || old.Verify(manifest.Append(nil), after.MAC) {
		t.Errorf("%s: its manifest is under the old key", after.ID)
	}
	if len(before.Versions) != len(after.Versions) || len(before.Tombstones) != len(after.Tombstones) {
		t.Errorf("%s: %d versions and %d tombstones, there were %d and %d", after.ID,
			len(after.Versions), len(after.Tombstones), len(before.Versions), len(before.Tombstones))
		return
	}
	for i := range after.Versions {
		was, v := &before.Versions[i], &after.Versions[i]
		if same := bytes.Equal(was.Blob, v.Blob); same != (after.Kind == key.DEK) {
			t.Errorf("%s, version %d: that its wrapped key is the same is %v", after.ID, v.Number, same)
		}
		if was.State != v.State || was.ID != v.ID || was.Created != v.Created || was.Parent != v.Parent {
			t.Errorf("%s: %+v became %+v", after.ID, was, v)
		}
		id := seal.Identity{
			Kind: after.Kind, Inst: old.Inst(), RootKeyID: rootOf(after), Purpose: after.Purpose, Alg: v.Alg,
		}
		if k, err := old.Parent().Unwrap(id, v.Number, v.Created, [32]byte(v.Commit), v.Blob); err == nil {
			k.Close()
			t.Errorf("%s, version %d: the old key opens it", after.ID, v.Number)
		}
	}
}

// faultyAtActivation leaves a pending version.
func faultyAtActivation(t *testing.T, w *two, r Ref) {
	t.Helper()
	n := 0
	w.calls.Hook(func(call string) {
		if call == "Update" {
			if n++; n == 2 {
				w.calls.Fail(0, 0)
			}
		}
	})
	_, err := w.Rotate(t.Context(), r)
	w.calls.Hook(nil)
	wants(t, err, ErrUnavailable)
}
