package keyhold_test

import (
	"bytes"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// What a call gets and returns is the caller's: who wipes or changes it changes nothing for later calls, whose keys are
// in memory by then.
func TestWhatACallReturnsBelongsToTheCaller(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		index := key.Ref{Scope: tenant, Purpose: search}
		kept, err := w.Seal(ctx, ref, []byte("kept"), keyhold.Context("a"))
		must(t, err)
		id, detached, err := w.SealDetached(ctx, ref, []byte("detached"), keyhold.Context("a"))
		must(t, err)
		found, err := w.BlindIndex(ctx, index, "email", []byte("x"), 16)
		must(t, err)
		found = bytes.Clone(found)
		wipe := func(b []byte) {
			for i := range b {
				b[i] ^= 0xff
			}
		}
		for range 3 {
			plaintext := []byte("wiped afterwards")
			ct, err := w.Seal(ctx, ref, plaintext, keyhold.Context("a"))
			must(t, err)
			wipe(plaintext)
			opens(t, w.Manager, ref, ct, keyhold.Context("a"), "wiped afterwards")
			pt, err := w.Open(ctx, ref, ct, keyhold.Context("a"))
			must(t, err)
			wipe(pt)
			opens(t, w.Manager, ref, ct, keyhold.Context("a"), "wiped afterwards")
			wipe(ct)
			opens(t, w.Manager, ref, kept, keyhold.Context("a"), "kept")
			if pt, err := w.OpenDetached(ctx, ref, id, detached, keyhold.Context("a")); err != nil || string(pt) != "detached" {
				t.Errorf("opens as %q, %v", pt, err)
			}
			again, err := w.BlindIndex(ctx, index, "email", []byte("x"), 16)
			if err != nil || !bytes.Equal(again, found) {
				t.Errorf("found %x, %v; want %x", again, err, found)
			}
			wipe(again)
			infos, err := w.Keys(ctx, tenant)
			must(t, err)
			for i := range infos {
				clear(infos[i].Versions)
				infos[i] = keyhold.KeyInfo{}
			}
		}
		other := newManager(t, w.store, w.root)
		opens(t, other, ref, sealed(t, w.Manager, ref, "y", keyhold.AAD{}), keyhold.AAD{}, "y")
	})
}
