package vectors_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
)

func TestNames(t *testing.T) {
	f := file(t)
	for i, v := range f.Name {
		m := envelope.NameManifest{
			Inst: [16]byte(f.Inst), RootKeyID: key.ID(v.RootKeyID), Purpose: key.Purpose(v.Purpose), Seq: v.Seq,
			Generator: v.Generator, Last: key.Version(v.Last), Removed: v.State == uint8(key.Destroyed),
		}
		if !m.Removed && v.State != uint8(key.Active) {
			t.Errorf("name %d, %s: state %d", i, v.Note, v.State)
		}
		if got := openIK(t, m.Inst, v.IK).Verify(m.Append(nil), v.MAC); got != v.Valid {
			t.Errorf("name %d, %s: verifies is %v, want %v", i, v.Note, got, v.Valid)
		}
	}
}

func TestRawRoots(t *testing.T) {
	for i, v := range file(t).RawRoot {
		t.Run(fmt.Sprintf("%d %s", i, v.Note), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "raw")
			if err := os.WriteFile(path, v.File, 0o600); err != nil {
				t.Fatal(err)
			}
			fromFile, err := localroot.FromRawFile(path)
			if v.Key == nil {
				if v.Valid || !errors.Is(err, localroot.ErrNotLocalRoot) {
					t.Errorf("valid is %v, error is %v, want ErrNotLocalRoot", v.Valid, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, root := range []*localroot.RawRoot{fromFile, must[*localroot.RawRoot](t)(localroot.FromBytes(v.Key))} {
				blob := &wrapping.BlobInfo{Ciphertext: v.Ciphertext, KeyInfo: &wrapping.KeyInfo{KeyId: v.WrapperKeyID}}
				plaintext, err := root.Decrypt(t.Context(), blob, wrapping.WithAad(v.AAD))
				switch {
				case !v.Valid && !errors.Is(err, localroot.ErrOpen):
					t.Errorf("error is %v, want ErrOpen", err)
				case v.Valid && err != nil:
					t.Error(err)
				case v.Valid:
					equal(t, "plaintext", plaintext, v.Plaintext)
					equal(t, "nonce", v.Ciphertext[:24], v.Nonce)
				}
			}
		})
	}
}
