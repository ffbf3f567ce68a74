package seal

import (
	"fmt"
	"testing"
)

// BenchmarkSeal compares sealing with the bare cipher that it is made of; the benchmarks of both run one after the
// other, so compare medians of several runs (-count).
func BenchmarkSeal(b *testing.B) {
	m := testMessageKey(b)
	const context = "users/42/email"
	for _, size := range []int{64, 1024} {
		plaintext := make([]byte, size)
		dst := make([]byte, 0, size+64)
		gcm := randomNonceGCM(make([]byte, 32))
		aad := make([]byte, 64)
		b.Run(fmt.Sprintf("gcm/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				gcm.Seal(dst, nil, plaintext, aad)
			}
		})
		b.Run(fmt.Sprintf("message/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.SealDetached(dst, plaintext, context); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	const context = "users/42/email"
	for _, size := range []int{64, 1024} {
		m := testMessageKey(b)
		sealed, err := m.SealDetached(nil, make([]byte, size), context)
		if err != nil {
			b.Fatal(err)
		}
		dst := make([]byte, 0, size)
		gcm := randomNonceGCM(make([]byte, 32))
		aad := make([]byte, 64)
		bare := gcm.Seal(nil, nil, make([]byte, size), aad)
		open := func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.OpenDetached(dst, sealed, context); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.Run(fmt.Sprintf("gcm/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := gcm.Open(dst, nil, bare, aad); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("own prefix/%d", size), open)
		m.sealing.Store(nil)
		b.Run(fmt.Sprintf("cached prefix/%d", size), open)
	}
}
