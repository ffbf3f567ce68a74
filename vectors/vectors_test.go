package vectors_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/vectors"
)

// file is the vectors to check: those of the format, or the file that KEYHOLD_VECTORS names.
func file(t *testing.T) *vectors.File {
	t.Helper()
	b := vectors.Format
	if path := os.Getenv("KEYHOLD_VECTORS"); path != "" {
		var err error
		if b, err = os.ReadFile(path); errors.Is(err, os.ErrNotExist) && !filepath.IsAbs(path) {
			// Tests run in the folder of their package; the path is likely meant from the top of the module.
			b, err = os.ReadFile(filepath.Join("..", path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f, err := vectors.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %x, want %x", what, got, want)
	}
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// clone is b as a secret, which may be overwritten.
func clone(b []byte) secret.Bytes { return secret.New(bytes.Clone(b)) }

func commitOf(id seal.Identity, material []byte) [32]byte {
	info := envelope.Tuple("kh1/commit",
		[]byte(id.Kind), id.Inst[:], []byte(id.RootKeyID), []byte(id.Purpose), envelope.U8(uint8(id.Alg)))
	return [32]byte(seal.Expand(clone(material), info).Reveal())
}

// openIK opens an installation key of known bytes by way of a slot made for it here.
func openIK(t *testing.T, inst [16]byte, material []byte) *seal.IK {
	t.Helper()
	commit := commitOf(seal.Identity{Kind: key.IK, Inst: inst, Alg: key.Message}, material)
	kid := key.KID(commit[:])
	binding := sha256.Sum256(envelope.Tuple("kh1/root-slot", inst[:], []byte("kr_x"), []byte("test"), kid[:]))
	payload := secret.New(envelope.AppendSlotPayload(nil, binding, material))
	return must[*seal.IK](t)(seal.OpenSlotPayload(inst, "kr_x", "test", kid, payload))
}

// openKey opens a key of known bytes, not of a raw algorithm, by wrapping it here under a parent of known bytes.
func openKey(t *testing.T, id seal.Identity, material []byte) *seal.Key {
	t.Helper()
	var parent *seal.Parent
	var parentBytes []byte
	if id.Kind == key.KEK {
		parentBytes = bytes.Repeat([]byte{7}, 32)
		parent = openIK(t, id.Inst, parentBytes).Parent()
	} else {
		kek := must[*seal.Key](t)(seal.Generate(seal.Identity{Kind: key.KEK, Inst: id.Inst, RootKeyID: id.RootKeyID, Alg: key.Message}))
		parentBytes = kek.Bytes().Reveal()
		parent = must[*seal.Parent](t)(kek.Parent())
	}
	commit, kid := commitOf(id, material), parent.KID()
	aad := envelope.Tuple("kh1/wrap", id.Inst[:], []byte(id.Kind), []byte(id.RootKeyID), []byte(id.Purpose),
		envelope.U8(uint8(id.Alg)), envelope.U64(1), envelope.U64(1), commit[:], kid[:])
	wrapKey := seal.Expand(clone(parentBytes), envelope.Tuple("kh1/wrap-key"))
	blob := seal.NewXAES(wrapKey).Seal([]byte{1}, material, aad)
	return must[*seal.Key](t)(parent.Unwrap(id, 1, 1, commit, blob))
}

func TestTuplesAndContexts(t *testing.T) {
	f := file(t)
	for i, v := range f.Enc {
		var fields [][]byte
		for _, field := range v.Fields {
			fields = append(fields, field)
		}
		equal(t, fmt.Sprintf("enc %d", i), envelope.Tuple(v.Label, fields...), v.Enc)
	}
	for i, v := range f.Context {
		var parts []string
		for _, p := range v.Parts {
			parts = append(parts, string(p))
		}
		equal(t, fmt.Sprintf("context %d", i), []byte(must[string](t)(envelope.Context(parts...))), v.Context)
	}
}

func TestInstallationKeyAndSlots(t *testing.T) {
	f := file(t)
	inst := [16]byte(f.Inst)
	ik := openIK(t, inst, f.IK)
	kid, pin := ik.KID(), ik.Pin()
	equal(t, "ik_kid", kid[:], f.IKKID)
	equal(t, "pin", pin[:], f.Pin)

	newPin := openIK(t, inst, f.IKNext.NewIK).Pin()
	equal(t, "pin of the next installation key", newPin[:], f.IKNext.NewPin)
	next := ik.NextMAC(newPin)
	equal(t, "ik_next", next[:], f.IKNext.MAC)

	manifest := envelope.SlotsManifest{Inst: inst, Seq: f.SlotsManifest.Seq, Active: key.ID(f.SlotsManifest.Active)}
	for _, v := range f.RootSlot {
		id := key.ID(v.SlotID)
		opened, err := seal.OpenSlotPayload(inst, id, v.WrapperType, key.KID(v.IKKID), clone(v.Payload))
		if err != nil {
			t.Fatalf("slot %s: %v", id, err)
		}
		equal(t, v.SlotID, opened.SlotPayload(id, v.WrapperType).Reveal(), v.Payload)
		manifest.Slots = append(manifest.Slots, envelope.Slot{
			ID: id, WrapperType: v.WrapperType, IKKID: key.KID(v.IKKID), State: key.State(v.State), BlobHash: seal.BlobHash(v.Blob),
		})
	}
	if !ik.Verify(manifest.Append(nil), f.SlotsManifest.MAC) {
		t.Error("the MAC of the slots' manifest is wrong")
	}
	manifest.Seq++
	if ik.Verify(manifest.Append(nil), f.SlotsManifest.MAC) {
		t.Error("the MAC of the slots' manifest is right for another seq")
	}
}

func TestWrappedKeys(t *testing.T) {
	f := file(t)
	inst := [16]byte(f.Inst)
	for i, v := range f.Wrap {
		t.Run(fmt.Sprintf("%d %s", i, v.Note), func(t *testing.T) {
			var parent *seal.Parent
			if key.Kind(v.Kind) == key.KEK {
				parent = openIK(t, inst, v.Parent).Parent()
			} else {
				id := seal.Identity{Kind: key.KEK, Inst: inst, RootKeyID: key.ID(v.RootKeyID), Alg: key.Message}
				parent = must[*seal.Parent](t)(openKey(t, id, v.Parent).Parent())
			}
			id := seal.Identity{
				Kind: key.Kind(v.Kind), Inst: inst, RootKeyID: key.ID(v.RootKeyID), Purpose: key.Purpose(v.Purpose), Alg: key.Alg(v.Alg),
			}
			k, err := parent.Unwrap(id, key.Version(v.Version), v.Created, [32]byte(v.Commit), v.Blob)
			if !v.Valid {
				// A reader looks a parent up by the kid that the row has, so another kid is a refusal too.
				if err == nil && bytes.Equal(v.ParentKID, kidOf(parent)) {
					t.Error("opens")
				}
				if err != nil && !errors.Is(err, seal.ErrOpen) {
					t.Errorf("is refused with %v, want ErrOpen", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "key", k.Bytes().Reveal(), v.Key)
			equal(t, "kid of the parent", kidOf(parent), v.ParentKID)
			if string(k.ID()) != v.ID {
				t.Errorf("id is %s, want %s", k.ID(), v.ID)
			}
		})
	}
}

func kidOf(p *seal.Parent) []byte {
	kid := p.KID()
	return kid[:]
}

func TestMessages(t *testing.T) {
	f := file(t)
	for i, v := range f.Message {
		t.Run(fmt.Sprintf("%d %s", i, v.Note), func(t *testing.T) {
			k := openKey(t, seal.Identity{
				Kind: key.DEK, Inst: [16]byte(f.Inst), RootKeyID: key.ID(v.RootKeyID), Purpose: key.Purpose(v.Purpose), Alg: key.Message,
			}, v.DEK)
			m := must[*seal.MessageKey](t)(k.Messages())
			open := m.OpenDetached
			if len(v.Ciphertext) > 0 && v.Ciphertext[0] == 0xE1 {
				open = m.Open
			}
			c := envelope.WholeContext(string(v.Context))
			plaintext, err := open(nil, v.Ciphertext, &c)
			if !v.Valid {
				if !errors.Is(err, seal.ErrOpen) {
					t.Errorf("error is %v, want ErrOpen", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "plaintext", plaintext, *v.Plaintext)
		})
	}
}

func TestBlindIndexes(t *testing.T) {
	f := file(t)
	id := seal.Identity{Kind: key.DEK, Inst: [16]byte(f.Inst), RootKeyID: "krk_x", Purpose: "index", Alg: key.BlindIndex}
	for i, v := range f.BlindIndex {
		if key.Alg(v.Alg) != key.BlindIndex {
			t.Errorf("blind_index %d has algorithm %v", i, key.Alg(v.Alg))
		}
		out := must[[]byte](t)(openKey(t, id, v.DEK).BlindIndex(v.Index, v.Value, v.Size))
		equal(t, fmt.Sprintf("blind_index %d", i), out, v.Out)
	}
}

func TestImportedBlobs(t *testing.T) {
	f := file(t)
	id := seal.Identity{Kind: key.DEK, Inst: [16]byte(f.Inst), RootKeyID: "krk_x", Purpose: "old", Alg: key.Imported}
	for i, v := range f.Legacy {
		k := must[*seal.Key](t)(seal.FromBytes(id, clone(v.Key)))
		plaintext, err := k.OpenImported(v.Ciphertext, v.AAD)
		if err != nil {
			t.Fatalf("legacy %d: %v", i, err)
		}
		equal(t, fmt.Sprintf("legacy %d", i), plaintext, v.Plaintext)
	}
}

func TestManifests(t *testing.T) {
	f := file(t)
	for i, v := range f.Manifest {
		m := envelope.Manifest{
			Inst: [16]byte(f.Inst), Kind: key.Kind(v.Kind), Owner: v.Owner, Purpose: key.Purpose(v.Purpose), KeyID: key.ID(v.KeyID),
			Seq: v.Seq, Head: key.Version(v.Head),
			Policy: envelope.Policy{RotateEvery: v.RotateEvery, MaxMessages: v.MaxMessages, Generator: v.Generator},
		}
		for _, mv := range v.Versions {
			m.Versions = append(m.Versions, envelope.ManifestVersion{
				Version: key.Version(mv.Version), State: key.State(mv.State), Alg: key.Alg(mv.Alg), Commit: [32]byte(mv.Commit),
				ID: key.ID(mv.ID),
			})
		}
		if got := openIK(t, m.Inst, v.IK).Verify(m.Append(nil), v.MAC); got != v.Valid {
			t.Errorf("manifest %d, %s: verifies is %v, want %v", i, v.Note, got, v.Valid)
		}
	}
}

func TestLocalRoot(t *testing.T) {
	v := file(t).LocalRoot
	root := must[*localroot.Root](t)(localroot.Parse(v.File))
	id := must[string](t)(root.KeyId(t.Context()))
	if id != v.WrapperKeyID {
		t.Errorf("key id is %s, want %s", id, v.WrapperKeyID)
	}
	b, _ := key.ParseBase32(strings.TrimPrefix(v.File, "khr1_"))
	equal(t, "key id and key in the line", b[:40], append(bytes.Clone(v.KeyID), v.Key...))
	equal(t, "nonce", v.Ciphertext[:24], v.Nonce)
	blob := &wrapping.BlobInfo{Ciphertext: v.Ciphertext, KeyInfo: &wrapping.KeyInfo{KeyId: id}}
	plaintext := must[[]byte](t)(root.Decrypt(context.Background(), blob, wrapping.WithAad(v.AAD)))
	equal(t, "plaintext", plaintext, v.Plaintext)
}

func TestParseRefusesFilesThatWouldGoUnchecked(t *testing.T) {
	edit := func(change func(map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(vectors.Format, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, b := range map[string][]byte{
		"no entries of a class": edit(func(m map[string]any) { m["wrap"] = []any{} }),
		"a class is missing":    edit(func(m map[string]any) { delete(m, "message") }),
		"an unknown class":      edit(func(m map[string]any) { m["streams"] = []any{1} }),
		"another format":        edit(func(m map[string]any) { m["format"] = "keyhold v2" }),
		"not JSON":              []byte("{"),
	} {
		if _, err := vectors.Parse(b); err == nil {
			t.Errorf("%s: parses", name)
		}
	}
}
