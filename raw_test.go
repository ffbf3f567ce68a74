package keyhold_test

import (
	"bytes"
	"context"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/store/memstore"
)

// warmRaw is a manager with a raw key that is in use.
func warmRaw(t testing.TB) (*keyhold.Manager, keyhold.Ref, []byte) {
	t.Helper()
	m := newManager(t, memstore.New(), newRoot(t))
	must(t, m.CreateScope(t.Context(), "names"))
	ref := keyhold.Ref{Scope: "names", Purpose: "user_data"}
	made, err := m.MakeRaw(t.Context(), ref, keyhold.RawKey{})
	must(t, err)
	if !made {
		t.Fatal("it was there")
	}
	material, v, err := m.Raw(t.Context(), ref)
	must(t, err)
	if len(material) != 32 || v != 1 {
		t.Fatalf("version %d of %d bytes, want 1 of 32", v, len(material))
	}
	return m, ref, material
}

func TestRawKeysAreCopies(t *testing.T) {
	m, ref, first := warmRaw(t)
	want := bytes.Clone(first)
	clear(first)
	for range 3 {
		got, v, err := m.Raw(t.Context(), ref)
		must(t, err)
		if !bytes.Equal(got, want) || v != 1 {
			t.Fatal("another key after the caller cleared its copy")
		}
		clear(got)
	}
	old, err := m.RawVersion(t.Context(), ref, 1)
	must(t, err)
	if !bytes.Equal(old, want) {
		t.Error("version 1 is another one than the head was")
	}
	_, err = m.Rotate(t.Context(), ref)
	must(t, err)
	next, v, err := m.Raw(t.Context(), ref)
	must(t, err)
	if v != 2 || bytes.Equal(next, want) {
		t.Errorf("after a rotation the head is version %d", v)
	}
	must(t, m.Close())
	_, _, err = m.Raw(t.Context(), ref)
	fails(t, err, keyhold.ErrClosed)
}

func BenchmarkRaw(b *testing.B) {
	m, ref, _ := warmRaw(b)
	ctx := context.Background()
	b.Run("head", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := m.Raw(ctx, ref); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("version", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := m.RawVersion(ctx, ref, 1); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, _, err := m.Raw(ctx, ref); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}
