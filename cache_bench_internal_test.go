package keyhold

import (
	"testing"

	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/memstore"
)

// BenchmarkKept is what it takes to find a key that is kept and was opened.
func BenchmarkKept(b *testing.B) {
	root, err := localroot.Generate(b.TempDir() + "/root.key")
	if err != nil {
		b.Fatal(err)
	}
	m, err := New(b.Context(), memstore.New(), Config{Root: root, Purposes: []Purpose{inner.Purpose}, Initialize: true})
	if err != nil {
		b.Fatal(err)
	}
	if err := m.CreateScope(b.Context(), inner.Scope); err != nil {
		b.Fatal(err)
	}
	id, _, err := m.SealDetached(b.Context(), inner, nil, AAD{})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r := m.hot(seals)
			fam, head, err := r.sealingKey(b.Context(), inner)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := r.messages(&fam.Family, &fam.Data[0], head); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r := m.hot(opens)
			fam, v, err := r.dataKeyWith(b.Context(), inner, id)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := r.messages(&fam.Family, &fam.Data[0], v); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("row", func(b *testing.B) {
		fam, err := m.committed().key(b.Context(), inner)
		if err != nil {
			b.Fatal(err)
		}
		k, err := m.hot(seals).open(&fam.Family, &fam.Data[0], &fam.Data[0].Versions[0])
		if err != nil || !k.kept {
			b.Fatal(err)
		}
		for b.Loop() {
			_, _ = m.hot(seals).open(&fam.Family, &fam.Data[0], &fam.Data[0].Versions[0])
		}
	})
}
