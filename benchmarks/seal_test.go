package benchmarks_test

import (
	"bytes"
	"crypto/fips140"
	"fmt"
	"slices"
	"testing"
)

var sizes = []int{64, 1 << 10, 64 << 10}

// What is measured is the same thing: every system opens what it sealed, and seals no message twice alike.
func TestEverySystemOpensWhatItSealed(t *testing.T) {
	if fips140.Enforced() {
		t.Skip("the others choose the nonces of GCM themselves, or use another cipher")
	}
	for _, s := range systems(t) {
		plaintext := bytes.Repeat([]byte("secret: "), 8)
		w, err := s.worker(plaintext)
		must(t, err)
		got, err := w.open()
		must(t, err)
		if !bytes.Equal(got, plaintext) {
			t.Errorf("%s opens %q, want %q", s.name, got, plaintext)
		}
		first, err := w.seal()
		must(t, err)
		first = slices.Clone(first)
		second, err := w.seal()
		must(t, err)
		if len(first) < len(plaintext)+16 || bytes.Contains(first, plaintext[:8]) || bytes.Equal(first, second) {
			t.Errorf("%s seals %q, and then %q", s.name, first, second)
		}
	}
}

func BenchmarkSeal(b *testing.B) { all(b, "seal") }

func BenchmarkOpen(b *testing.B) { all(b, "open") }

// all goes through the sizes, and through the systems at each, so that the ones to compare run next to each other.
func all(b *testing.B, op string) {
	b.Helper()
	systems := systems(b)
	for _, size := range sizes {
		for _, s := range systems {
			b.Run(fmt.Sprintf("size=%d/system=%s", size, s.name), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(size))
				b.RunParallel(func(pb *testing.PB) {
					w, err := s.worker(make([]byte, size))
					if err != nil {
						b.Error(err)
						return
					}
					do := w.do(op)
					for pb.Next() {
						if _, err := do(); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}
