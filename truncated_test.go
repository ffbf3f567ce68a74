package keyhold_test

import (
	"errors"
	"fmt"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/pgstore"
)

// A ciphertext of too few bytes, down to none, is refused as any other that does not open, whoever is to open it.
// (Nothing is behind the bytes in memory, so that reading on is a panic.)
func TestTruncatedCiphertextsAreRefused(t *testing.T) {
	ctx := t.Context()
	s, root := memstore.New(), newRoot(t)
	cfg := config(root)
	cfg.Strict = true // or what names no version waits for others to be asked
	m, err := keyhold.New(ctx, s, cfg)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	must(t, m.CreateScope(ctx, tenant))
	imports(t, m, true)
	attached := sealed(t, m, ref, "", keyhold.AAD{})
	id, detached, err := m.SealDetached(ctx, ref, nil, keyhold.AAD{})
	must(t, err)
	for n := range attached {
		_, err := m.Open(ctx, ref, attached[:n:n], keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
		_, _, err = m.OpenAny(ctx, attached[:n:n], keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
	}
	for n := range detached {
		_, err := m.OpenDetached(ctx, ref, id, detached[:n:n], keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
	}

	// What is in a BlobInfo is as long as whoever stored it left it.
	version := oldKeys()[1].Versions[0]
	for _, r := range []key.Ref{ref, {Scope: tenant}, oldRef} {
		w, err := m.Wrapper(ctx, r)
		must(t, err)
		blob := encrypted(t, w, "")
		if r == oldRef {
			blob = oldBlob(t, version, "sealed before", "row 7")
			decrypts(t, w, blob, "sealed before")
		}
		for n := range len(blob.GetCiphertext()) {
			short := &wrapping.BlobInfo{Ciphertext: blob.GetCiphertext()[:n:n], KeyInfo: blob.GetKeyInfo()}
			_, err := w.Decrypt(ctx, short, wrapping.WithAad([]byte("row 7")))
			fails(t, err, keyhold.ErrOpen)
		}
	}
}

// A wrapped key that was stored whole and is there in part is an error that names the key. (None at all is refused by
// the tables.)
func TestTruncatedWrappedKeysAreRefused(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		cfg := config(w.root)
		cfg.Strict = true
		m, err := keyhold.New(ctx, w.store, cfg) // which has opened no key yet
		must(t, err)
		t.Cleanup(func() { must(t, m.Close()) })
		for table, r := range map[string]key.Ref{"data_key_version": ref, "root_key_version": {Scope: tenant}} {
			fam, err := w.store.Key(ctx, r)
			must(t, err)
			v := fam.Root.Versions[0]
			if !r.IsRoot() {
				v = fam.Data[0].Versions[0]
			}
			for n := 1; n < len(v.Blob); n++ {
				storeKey(t, w.store, table, r, v.ID, v.Blob[:n:n])
				_, err := m.Seal(ctx, ref, nil, keyhold.AAD{})
				integrity(t, err)
			}
			storeKey(t, w.store, table, r, v.ID, v.Blob)
		}
		sealed(t, m, ref, "x", keyhold.AAD{})
	})
}

// storeKey replaces a wrapped key by hand.
func storeKey(t *testing.T, s store.Store, table string, r key.Ref, id key.ID, blob []byte) {
	t.Helper()
	if mem, ok := s.(*memstore.Store); ok {
		mem.Edit(func(d *memstore.Data) { d.Key(r).Versions[0].Blob = blob })
		return
	}
	text := "update kms_%s set key = x'%x' where private_id = '%s'"
	if _, ok := s.(*pgstore.Store); ok {
		text = `update kms_%s set key = '\x%x' where private_id = '%s'`
	}
	must(t, tryExec(t, s, fmt.Sprintf(text, table, blob, id)))
}

// So is the installation key, as an external root sealed it.
func TestATruncatedRootSlotIsRefused(t *testing.T) {
	s, root := memstore.New(), newRoot(t)
	newManager(t, s, root)
	var whole []byte
	s.Edit(func(d *memstore.Data) { whole = d.Installation.Slots[0].Blob })
	for n := range whole {
		s.Edit(func(d *memstore.Data) { d.Installation.Slots[0].Blob = whole[:n:n] })
		_, err := keyhold.New(t.Context(), s, config(root))
		if _, ok := errors.AsType[*keyhold.IntegrityError](err); !ok && !errors.Is(err, keyhold.ErrRoot) {
			t.Errorf("%d bytes: %v, want an IntegrityError or ErrRoot", n, err)
		}
	}
	s.Edit(func(d *memstore.Data) { d.Installation.Slots[0].Blob = whole })
	newManager(t, s, root)
}
