package keyhold_test

import (
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/v2/extras/multi"
	"github.com/hashicorp/go-kms-wrapping/v2/extras/structwrapping"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func encrypted(t testing.TB, w wrapping.Wrapper, text string) *wrapping.BlobInfo {
	t.Helper()
	blob, err := w.Encrypt(t.Context(), []byte(text), wrapping.WithAad([]byte("row 7")))
	must(t, err)
	return blob
}

func decrypts(t testing.TB, w wrapping.Wrapper, blob *wrapping.BlobInfo, want string) {
	t.Helper()
	pt, err := w.Decrypt(t.Context(), blob, wrapping.WithAad([]byte("row 7")))
	if err != nil || string(pt) != want {
		t.Errorf("decrypt: %q, %v; want %q", pt, err, want)
	}
}

func TestVersionWrapperIsOneVersion(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		for _, r := range []key.Ref{ref, {Scope: tenant}} {
			whole, err := w.Wrapper(ctx, r)
			must(t, err)
			first := ids(t, w.Manager, r)[0]
			one, err := w.VersionWrapper(ctx, r, first)
			must(t, err)
			old := encrypted(t, one, "old")
			decrypts(t, whole, old, "old")

			_, err = w.Rotate(ctx, r)
			must(t, err)
			id, err := one.KeyId(ctx)
			if err != nil || id != string(first) {
				t.Errorf("KeyId: %s, %v; want %s", id, err, first)
			}
			_, err = one.Encrypt(ctx, nil)
			fails(t, err, keyhold.ErrState)
			now := encrypted(t, whole, "now")
			decrypts(t, one, old, "old")
			_, err = one.Decrypt(ctx, now, wrapping.WithAad([]byte("row 7")))
			fails(t, err, keyhold.ErrOpen)

			other, err := w.VersionWrapper(ctx, r, ids(t, w.Manager, r)[1])
			must(t, err)
			decrypts(t, other, now, "now")
			_, err = w.VersionWrapper(ctx, r, ids(t, w.Manager, key.Ref{Scope: tenant, Purpose: session})[0])
			fails(t, err, keyhold.ErrNotFound)
		}
	})
}

// A root key as a Wrapper wraps keys of the application's; what it sealed opens with no data key, nor the other way.
func TestRootKeyAsAWrapper(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "other"))
		root, err := w.Wrapper(ctx, key.Ref{Scope: tenant})
		must(t, err)
		data, err := w.Wrapper(ctx, ref)
		must(t, err)
		theirs, err := w.Wrapper(ctx, key.Ref{Scope: "other"})
		must(t, err)
		blob := encrypted(t, root, "a key")
		for range 2 {
			decrypts(t, root, blob, "a key")
			for _, wrong := range []wrapping.Wrapper{data, theirs} {
				_, err := wrong.Decrypt(ctx, blob, wrapping.WithAad([]byte("row 7")))
				fails(t, err, keyhold.ErrOpen)
			}
			_, err := root.Decrypt(ctx, encrypted(t, data, "x"), wrapping.WithAad([]byte("row 7")))
			fails(t, err, keyhold.ErrOpen)
			_, err = root.Decrypt(ctx, blob)
			fails(t, err, keyhold.ErrOpen)
			_, err = w.Rotate(ctx, key.Ref{Scope: tenant})
			must(t, err)
		}
		_, err = w.Rewrap(ctx, tenant)
		must(t, err)
		must(t, w.Disable(ctx, key.ID(blob.GetKeyInfo().GetKeyId())))
		_, err = root.Decrypt(ctx, blob, wrapping.WithAad([]byte("row 7")))
		fails(t, err, keyhold.ErrDisabled)
		_, err = w.Wrapper(ctx, key.Ref{Scope: "nobody"})
		fails(t, err, keyhold.ErrNotFound)
	})
}

func TestWrappersInAPool(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		var blobs []*wrapping.BlobInfo
		var pool *multi.PooledWrapper
		for range 3 {
			versions := ids(t, w.Manager, ref)
			one, err := w.VersionWrapper(ctx, ref, versions[len(versions)-1])
			must(t, err)
			if pool == nil {
				pool, err = multi.NewPooledWrapper(ctx, one)
				must(t, err)
			} else if ok, err := pool.SetEncryptingWrapper(ctx, one); err != nil || !ok {
				t.Fatalf("%v, %v", ok, err)
			}
			blobs = append(blobs, encrypted(t, pool, "x"))
			_, err = w.Rotate(ctx, ref)
			must(t, err)
		}
		for _, blob := range blobs {
			decrypts(t, pool, blob, "x")
		}
	})
}

func TestStructWrapping(t *testing.T) {
	type row struct {
		Secret []byte             `wrapping:"pt,secret"`
		Sealed *wrapping.BlobInfo `wrapping:"ct,secret"`
	}
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		wrapper, err := w.Wrapper(ctx, ref)
		must(t, err)
		r := row{Secret: []byte("x")}
		must(t, structwrapping.WrapStruct(ctx, wrapper, &r, wrapping.WithAad([]byte("row 7"))))
		_, err = w.Rotate(ctx, ref)
		must(t, err)
		back := row{Sealed: r.Sealed}
		must(t, structwrapping.UnwrapStruct(ctx, wrapper, &back, wrapping.WithAad([]byte("row 7"))))
		if string(back.Secret) != "x" {
			t.Errorf("%q", back.Secret)
		}
	})
}
