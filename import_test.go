package keyhold_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

const oldTenant = key.Scope("org_old")

var (
	oldRef  = key.Ref{Scope: oldTenant, Purpose: secrets}
	madeOld = time.Date(2023, 5, 6, 7, 8, 9, 0, time.UTC)
)

// material is a key of 32 bytes.
func material(fill byte) []byte { return bytes.Repeat([]byte{fill}, 32) }

// oldKeys is a scope of another system's, in which version 2 of the data key was revoked.
func oldKeys() []keyhold.ImportedKey {
	return []keyhold.ImportedKey{
		{ID: "krk_tfiUswsFQX", Versions: []keyhold.ImportedVersion{
			{ID: "krkv_ZSzrItxCPd", Number: 1, Created: madeOld, Key: material(1)},
			{ID: "krkv_DlmoTkzEfu", Number: 2, Created: madeOld.Add(time.Hour), Key: material(2)},
		}},
		{ID: "kdk_qtojwIfD1d", Purpose: secrets, Versions: []keyhold.ImportedVersion{
			{ID: "kdkv_uSaQKi03GM", Number: 1, Created: madeOld, Key: material(3)},
			{ID: "kdkv_pX946bDdGX", Number: 3, Key: material(4)},
		}},
		{ID: "kdk_6Xpu9UXvbb", Purpose: session},
	}
}

// oldBlob is what go-kms-wrapping's AES-GCM seals with a version.
func oldBlob(t testing.TB, v keyhold.ImportedVersion, plaintext, aad string) *wrapping.BlobInfo {
	t.Helper()
	block, err := aes.NewCipher(v.Key)
	must(t, err)
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	must(t, err)
	return &wrapping.BlobInfo{
		Ciphertext: gcm.Seal(nil, nil, []byte(plaintext), []byte(aad)), KeyInfo: &wrapping.KeyInfo{KeyId: string(v.ID)},
	}
}

// imports calls ImportScope for oldKeys, which has to do what made says.
func imports(t testing.TB, m *keyhold.Manager, made bool) {
	t.Helper()
	did, err := m.ImportScope(t.Context(), oldTenant, oldKeys())
	if err != nil || did != made {
		t.Fatalf("imported: %v, %v", did, err)
	}
}

// opensOld asserts that what was sealed before opens, all of it.
func opensOld(t testing.TB, m *keyhold.Manager) {
	t.Helper()
	for _, k := range oldKeys() {
		w, err := m.Wrapper(t.Context(), key.Ref{Scope: oldTenant, Purpose: k.Purpose})
		must(t, err)
		for _, v := range k.Versions {
			pt, err := w.Decrypt(t.Context(), oldBlob(t, v, "sealed before", "row 7"), wrapping.WithAad([]byte("row 7")))
			if err != nil || string(pt) != "sealed before" {
				t.Errorf("%v: %q, %v", v, pt, err)
			}
		}
	}
}

func TestAnImportedScopeOpensWhatWasSealedBefore(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		imports(t, w.Manager, true)
		opensOld(t, w.Manager)
		opens(t, w.Manager, oldRef, sealed(t, w.Manager, oldRef, "x", keyhold.Context("row 7")), keyhold.Context("row 7"), "x")

		for _, ref := range []key.Ref{{Scope: oldTenant}, oldRef} {
			_, err := w.Rotate(ctx, ref)
			must(t, err)
		}
		if n, err := w.Rewrap(ctx, oldTenant); err != nil || n != 4 {
			t.Errorf("rewrapped %d, %v", n, err)
		}
		opensOld(t, w.Manager)
	})
}

// Numbers, ids, states and times: what was there keeps them, and each key gets one version more.
func TestImportedVersionsAreRetiredUnderNewHeads(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		imports(t, w.Manager, true)
		infos, err := w.Keys(t.Context(), oldTenant)
		must(t, err)
		if len(infos) != 3 {
			t.Fatalf("%d keys", len(infos))
		}
		byID := map[key.ID]keyhold.KeyInfo{}
		for _, k := range infos {
			byID[k.ID] = k
		}
		made, err := w.Keys(t.Context(), tenant)
		must(t, err)
		for _, k := range infos {
			if of := made[min(len(k.Ref.Purpose), 1)]; k.RotateEvery != of.RotateEvery || k.RotateEvery == 0 {
				t.Errorf("%v is rotated every %v, others every %v", k.Ref, k.RotateEvery, of.RotateEvery)
			}
		}
		rootHead := infos[0].Versions[len(infos[0].Versions)-1].ID
		for _, old := range oldKeys() {
			k := byID[old.ID]
			head := k.Versions[len(k.Versions)-1]
			if k.Ref.Purpose != old.Purpose || head.Number != k.Head || head.State != key.Active || head.Alg != key.Message || k.Due {
				t.Errorf("%+v", k)
			}
			at := map[key.Version]keyhold.ImportedVersion{}
			for _, v := range old.Versions {
				at[v.Number] = v
			}
			for _, v := range k.Versions[:len(k.Versions)-1] {
				from, there := at[v.Number]
				switch {
				case !there && (v.State != key.Destroyed || v.ID != ""):
					t.Errorf("a number that was missing is %+v", v)
				case there && (v.ID != from.ID || v.State != key.Retired || v.Alg != key.Imported):
					t.Errorf("%v is %+v", from, v)
				case there && !from.Created.IsZero() && !v.Created.Equal(from.Created):
					t.Errorf("%v was made at %v", from, v.Created)
				case there && from.Created.IsZero() && v.Created.Before(madeOld):
					t.Errorf("%v was made at %v", from, v.Created)
				}
				delete(at, v.Number)
			}
			if len(at) > 0 {
				t.Errorf("key %s lacks %v", old.ID, at)
			}
			for _, v := range k.Versions {
				if old.Purpose != "" && v.State != key.Destroyed && v.Parent != rootHead {
					t.Errorf("%s is wrapped under %s", v.ID, v.Parent)
				}
			}
		}
	})
}

// renamedKeys is oldKeys with other ids, which end in the suffix.
func renamedKeys(suffix key.ID) []keyhold.ImportedKey {
	keys := oldKeys()
	for i := range keys {
		keys[i].ID += suffix
		for j := range keys[i].Versions {
			keys[i].Versions[j].ID += suffix
		}
	}
	return keys
}

func TestAScopeIsImportedWhateverOfItsRootKeyWasRevoked(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		for i, left := range [][]key.Version{{2, 3, 4}, {1, 3, 4}, {2, 4}, {1, 2, 4}, {4}} {
			scope, suffix := key.Scope(fmt.Sprint("only versions ", left)), key.ID(fmt.Sprint("x", i))
			keys := renamedKeys(suffix)
			keys[0].Versions = nil
			for _, n := range left {
				id := key.ID(fmt.Sprint("krkv_old", n)) + suffix
				keys[0].Versions = append(keys[0].Versions, keyhold.ImportedVersion{ID: id, Number: n, Key: material(byte(n))})
			}
			if made, err := w.ImportScope(t.Context(), scope, keys); err != nil || !made {
				t.Errorf("%s: %v, %v", scope, made, err)
				continue
			}
			wrapper, err := w.Wrapper(t.Context(), key.Ref{Scope: scope, Purpose: secrets})
			must(t, err)
			pt, err := wrapper.Decrypt(t.Context(), oldBlob(t, keys[1].Versions[0], "sealed before", ""))
			if err != nil || string(pt) != "sealed before" {
				t.Errorf("%s: %q, %v", scope, pt, err)
			}
			if made, err := w.ImportScope(t.Context(), scope, keys); err != nil || made {
				t.Errorf("%s again: %v, %v", scope, made, err)
			}
		}
	})
}

func TestImportingAgainChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		imports(t, w.Manager, true)
		imports(t, w.Manager, false)
		_, err := w.Rotate(ctx, key.Ref{Scope: oldTenant})
		must(t, err)
		_, err = w.Rewrap(ctx, oldTenant)
		must(t, err)
		must(t, w.CreateScope(ctx, oldTenant)) // the purposes that it lacks
		must(t, w.Disable(ctx, "kdkv_pX946bDdGX"))
		must(t, w.Disable(ctx, "krkv_ZSzrItxCPd"))
		must(t, w.Destroy(ctx, "krkv_ZSzrItxCPd"))
		before, err := w.store.Scope(ctx, oldTenant)
		must(t, err)
		imports(t, w.Manager, false)
		after, err := w.store.Scope(ctx, oldTenant)
		must(t, err)
		if before.Root.Seq != after.Root.Seq || len(before.Data) != len(after.Data) || before.Data[0].Seq != after.Data[0].Seq {
			t.Error("something changed")
		}
	})
}

// What was destroyed here does not come back, and that is told from other errors, so that an import can go on.
func TestAScopeThatWasShreddedIsNotImportedAgain(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		imports(t, w.Manager, true)
		_, err := w.Shred(ctx, oldTenant)
		must(t, err)
		for _, scope := range []key.Scope{oldTenant, "another name"} {
			if made, err := w.ImportScope(ctx, scope, oldKeys()); made || !errors.Is(err, keyhold.ErrState) {
				t.Errorf("%s: %v, %v", scope, made, err)
			}
		}
		// The name is free for other keys, and an error for another reason stays what it is.
		made, err := w.ImportScope(ctx, oldTenant, renamedKeys("x"))
		if err != nil || !made {
			t.Errorf("other keys: %v, %v", made, err)
		}
		if _, err := w.ImportScope(ctx, "another name", renamedKeys("x")); err == nil || errors.Is(err, keyhold.ErrState) {
			t.Errorf("the keys of another scope: %v", err)
		}
	})
}

// Keys that are here under another name are not imported a second time, and that is told.
func TestAScopeThatWasRenamedIsNotImportedAgain(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		imports(t, w.Manager, true)
		cascade(t, w.store, oldTenant, "renamed")
		for range 2 {
			made, err := w.ImportScope(ctx, oldTenant, oldKeys())
			if made || !errors.Is(err, keyhold.ErrExists) || !strings.Contains(err.Error(), `"renamed"`) {
				t.Errorf("%v, %v", made, err)
			}
			must(t, w.RenameScope(ctx, oldTenant, "renamed"))
		}
	})
}

// Without the application's row the scope is refused, whatever became of its keys.
func TestAScopeThatWentWithItsTenantIsNotImportedAgain(t *testing.T) {
	s := memstore.New()
	m := newManager(t, s, newRoot(t))
	must(t, s.RequireScopes(t.Context(), oldTenant))
	imports(t, m, true)
	must(t, s.DeleteScope(t.Context(), oldTenant))
	if _, err := m.ImportScope(t.Context(), oldTenant, oldKeys()); !errors.Is(err, keyhold.ErrState) || errors.Is(err, keyhold.ErrForeignKey) {
		t.Errorf("its keys are gone: %v", err)
	}
	if _, err := m.ImportScope(t.Context(), oldTenant, renamedKeys("x")); !errors.Is(err, keyhold.ErrForeignKey) {
		t.Errorf("its row is gone: %v", err)
	}
}

func TestAScopeWithOtherKeysIsLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		imports(t, w.Manager, true)
		for name, edit := range map[string]func(keys []keyhold.ImportedKey) []keyhold.ImportedKey{
			"another root key": func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[0].ID = "krk_x"; return k },
			"another key":      func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[0].Key = material(9); return k },
			"a key more": func(k []keyhold.ImportedKey) []keyhold.ImportedKey {
				return append(k, keyhold.ImportedKey{ID: "kdk_x", Purpose: "more"})
			},
			"a key less":      func(k []keyhold.ImportedKey) []keyhold.ImportedKey { return append(k[:1:1], k[2]) },
			"another purpose": func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Purpose = "other"; return k },
			"a version more": func(k []keyhold.ImportedKey) []keyhold.ImportedKey {
				k[1].Versions = append(k[1].Versions, keyhold.ImportedVersion{ID: "kdkv_x", Number: 4, Key: material(5)})
				return k
			},
			"a version less": func(k []keyhold.ImportedKey) []keyhold.ImportedKey {
				k[0].Versions = k[0].Versions[1:]
				return k
			},
			"another id":     func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[1].ID = "kdkv_x"; return k },
			"another number": func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[1].Number = 2; return k },
		} {
			made, err := w.ImportScope(ctx, oldTenant, edit(oldKeys()))
			if made || !errors.Is(err, keyhold.ErrExists) {
				t.Errorf("%s: %v, %v", name, made, err)
			}
		}
		if made, err := w.ImportScope(ctx, tenant, oldKeys()); made || !errors.Is(err, keyhold.ErrExists) {
			t.Errorf("a scope that was made here: %v, %v", made, err)
		}
		imports(t, w.Manager, false)
	})
}

func TestWhatIsNoOldKeyIsNotImported(t *testing.T) {
	s := memstore.New()
	m := newManager(t, s, newRoot(t))
	made := sealedID(t, m)
	for name, edit := range map[string]func(keys []keyhold.ImportedKey) []keyhold.ImportedKey{
		"nothing":           func([]keyhold.ImportedKey) []keyhold.ImportedKey { return nil },
		"no root key":       func(k []keyhold.ImportedKey) []keyhold.ImportedKey { return k[1:] },
		"an empty root key": func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[0].Versions = nil; return k },
		"two root keys":     func(k []keyhold.ImportedKey) []keyhold.ImportedKey { return append(k, k[0]) },
		"a purpose twice":   func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[2].Purpose = secrets; return k },
		"a bad purpose":     func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[2].Purpose = " x"; return k },
		"a key's id twice":  func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[2].ID = k[1].ID; return k },
		"a bad key id":      func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].ID = "kdk_a b"; return k },
		"a key id of the other kind": func(k []keyhold.ImportedKey) []keyhold.ImportedKey {
			k[1].ID = "krk_x"
			return k
		},
		"a bad id": func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[0].ID = "kdkv_"; return k },
		"an id twice": func(k []keyhold.ImportedKey) []keyhold.ImportedKey {
			k[1].Versions[0].ID = k[1].Versions[1].ID
			return k
		},
		"an id of the other":   func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[0].ID = "krkv_x"; return k },
		"an id made here":      func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[0].ID = made; return k },
		"numbers that go down": func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[0].Number = 7; return k },
		"number zero":          func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[0].Number = 0; return k },
		"no number for the head": func(k []keyhold.ImportedKey) []keyhold.ImportedKey {
			k[1].Versions[1].Number = key.MaxVersion
			return k
		},
		"a number far too great": func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[1].Number = 1 << 31; return k },
		"an empty key":           func(k []keyhold.ImportedKey) []keyhold.ImportedKey { k[1].Versions[0].Key = nil; return k },
		"too long a key": func(k []keyhold.ImportedKey) []keyhold.ImportedKey {
			k[0].Versions[0].Key = make([]byte, 1025)
			return k
		},
	} {
		imported, err := m.ImportScope(t.Context(), oldTenant, edit(oldKeys()))
		if invalid := (*keyhold.InvalidError)(nil); imported || !errors.As(err, &invalid) {
			t.Errorf("%s: %v, %v", name, imported, err)
		}
	}
	if _, err := m.ImportScope(t.Context(), "a\x00", oldKeys()); err == nil {
		t.Error("a bad scope was imported")
	}
	if _, err := s.Scope(t.Context(), oldTenant); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("something was imported: %v", err)
	}
}

// sealedID is the id of a version that was made here.
func sealedID(t testing.TB, m *keyhold.Manager) key.ID {
	t.Helper()
	must(t, m.CreateScope(t.Context(), tenant))
	id, _, err := m.SealDetached(t.Context(), ref, nil, keyhold.AAD{})
	must(t, err)
	return id
}

// Whichever call fails, and however, the whole scope is there or nothing of it, and importing it again ends it.
func TestAnImportThatFailsIsWholeOrNothing(t *testing.T) {
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for n := 0; ; n++ {
			inner := memstore.New()
			faults := faultstore.New(inner)
			m := newManager(t, faults, newRoot(t))
			faults.Fail(n, mode)
			made, err := m.ImportScope(t.Context(), oldTenant, oldKeys())
			fired := faults.Fired()
			faults.Disarm()
			fam, readErr := inner.Scope(t.Context(), oldTenant)
			switch whole := readErr == nil && len(fam.Data) == 2; {
			case err == nil && !(made && whole):
				t.Errorf("call %d, mode %d: done, but %v, %v", n, mode, made, readErr)
			case err != nil && !whole && !errors.Is(readErr, store.ErrNotFound):
				t.Errorf("call %d, mode %d: a part is there: %v", n, mode, readErr)
			}
			_, err = m.ImportScope(t.Context(), oldTenant, oldKeys())
			must(t, err)
			opensOld(t, m)
			storetest.Check(t, inner)
			if !fired {
				break
			}
		}
	}
}

func TestOfManyImportsOneMakesTheScope(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		made := make(chan bool, 8)
		var all sync.WaitGroup
		for range cap(made) {
			all.Go(func() {
				did, err := w.ImportScope(t.Context(), oldTenant, oldKeys())
				if err != nil {
					t.Error(err)
				}
				made <- did
			})
		}
		all.Wait()
		close(made)
		n := 0
		for did := range made {
			if did {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d made the scope", n)
		}
		opensOld(t, w.Manager)
	})
}

func TestAnImportedKeyIsNeverPrinted(t *testing.T) {
	v := keyhold.ImportedVersion{ID: "kdkv_x", Number: 1, Key: []byte("0123456789abcdefghijklmnopqrstuv")}
	k := keyhold.ImportedKey{ID: "kdk_x", Purpose: secrets, Versions: []keyhold.ImportedVersion{v}}
	noSecret(t, v.Key, v, &v, k, &k, []keyhold.ImportedKey{k})
	m := newManager(t, memstore.New(), newRoot(t))
	_, err := m.ImportScope(t.Context(), oldTenant, []keyhold.ImportedKey{k})
	noSecret(t, v.Key, err)
}
