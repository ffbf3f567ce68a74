package keyhold_test

import (
	"errors"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func TestWrapperSealsWithTheHeadAndOpensEveryVersion(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		wrapper, err := w.Wrapper(ctx, ref)
		must(t, err)
		var blobs []*wrapping.BlobInfo
		for range 3 {
			blob, err := wrapper.Encrypt(ctx, []byte("x"), wrapping.WithAad([]byte("row 7")))
			must(t, err)
			id, err := wrapper.KeyId(ctx)
			must(t, err)
			if blob.GetKeyInfo().GetKeyId() != id || blob.GetKeyInfo().GetMechanism() != 0x6b6831 {
				t.Errorf("key info %v, head %s", blob.GetKeyInfo(), id)
			}
			blobs = append(blobs, blob)
			_, err = w.Rotate(ctx, ref)
			must(t, err)
		}
		for _, blob := range blobs {
			raw, err := proto.Marshal(blob)
			must(t, err)
			var back wrapping.BlobInfo
			must(t, proto.Unmarshal(raw, &back))
			pt, err := wrapper.Decrypt(ctx, &back, wrapping.WithAad([]byte("row 7")))
			if err != nil || string(pt) != "x" {
				t.Errorf("%q, %v", pt, err)
			}
			_, err = wrapper.Decrypt(ctx, &back)
			fails(t, err, keyhold.ErrOpen)
			// What the wrapper seals is the detached form, and its AAD the context.
			pt, err = w.OpenDetached(ctx, ref, key.ID(back.GetKeyInfo().GetKeyId()), back.GetCiphertext(), keyhold.Context("row 7"))
			if err != nil || string(pt) != "x" {
				t.Errorf("%q, %v", pt, err)
			}
		}
		kind, err := wrapper.Type(ctx)
		if err != nil || kind != "keyhold" {
			t.Errorf("%v, %v", kind, err)
		}
	})
}

func TestWrapperRefusesWhatItCannotDo(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "other"))
		wrapper, err := w.Wrapper(ctx, ref)
		must(t, err)
		theirs, err := w.Wrapper(ctx, key.Ref{Scope: "other", Purpose: secrets})
		must(t, err)
		good, err := wrapper.Encrypt(ctx, []byte("x"))
		must(t, err)
		their, err := theirs.Encrypt(ctx, []byte("x"))
		must(t, err)

		edited := func(f func(*wrapping.BlobInfo)) *wrapping.BlobInfo {
			blob := proto.Clone(good).(*wrapping.BlobInfo) //nolint:forcetypeassert // of this type
			f(blob)
			return blob
		}
		for name, blob := range map[string]*wrapping.BlobInfo{
			"no blob":                  nil,
			"empty blob":               {},
			"no key info":              edited(func(b *wrapping.BlobInfo) { b.KeyInfo = nil }),
			"no key id":                edited(func(b *wrapping.BlobInfo) { b.KeyInfo.KeyId = "" }),
			"another scope's blob":     their,
			"another scope's key id":   edited(func(b *wrapping.BlobInfo) { b.KeyInfo.KeyId = their.GetKeyInfo().GetKeyId() }),
			"another mechanism":        edited(func(b *wrapping.BlobInfo) { b.KeyInfo.Mechanism = 1 }),
			"two bytes":                edited(func(b *wrapping.BlobInfo) { b.Ciphertext = b.Ciphertext[:2] }),
			"no ciphertext":            edited(func(b *wrapping.BlobInfo) { b.Ciphertext = nil }),
			"a nonce of its own":       edited(func(b *wrapping.BlobInfo) { b.Iv = make([]byte, 12) }),
			"a wrapped key of its own": edited(func(b *wrapping.BlobInfo) { b.KeyInfo.WrappedKey = []byte("x") }),
		} {
			_, err := wrapper.Decrypt(ctx, blob)
			if !errors.Is(err, keyhold.ErrOpen) {
				t.Errorf("%s: got %v, want ErrOpen", name, err)
			}
		}
		for name, option := range map[string]wrapping.Option{
			"key id":       wrapping.WithKeyId("x"),
			"config":       wrapping.WithConfigMap(map[string]string{"a": "b"}),
			"nonce":        wrapping.WithIV(make([]byte, 12)),
			"purposes":     wrapping.WithKeyPurposes(wrapping.KeyPurpose_Encrypt),
			"key type":     wrapping.WithKeyType(wrapping.KeyType_Aes256),
			"random bytes": wrapping.WithRandomBytes([]byte("x")),
			"encoding":     wrapping.WithKeyEncoding(wrapping.KeyEncoding_Pkix),
			"wrapped":      wrapping.WithWrappedKeyEncoding(wrapping.KeyEncoding_Pkix),
			"environment":  wrapping.WithDisallowEnvVars(true),
			"no HMAC":      wrapping.WithoutHMAC(),
		} {
			if _, err := wrapper.Encrypt(ctx, nil, option); !errors.Is(err, keyhold.ErrUnsupported) {
				t.Errorf("encrypt with %s: %v", name, err)
			}
			if _, err := wrapper.Decrypt(ctx, good, option); !errors.Is(err, keyhold.ErrUnsupported) {
				t.Errorf("decrypt with %s: %v", name, err)
			}
		}
		_, err = wrapper.SetConfig(ctx)
		fails(t, err, keyhold.ErrUnsupported)
	})
}
