package seal

import (
	"fmt"
	"testing"

	"keyhold.example/keyhold/envelope"
)

// The benchmarks of the bare cipher and of messages run one after the other, so compare medians of several runs
// (-count). The context has two parts, and with it the AAD about the usual length.
func benchParts(b *testing.B) *envelope.Parts {
	b.Helper()
	c, err := envelope.PartsOf("users.email", "42")
	if err != nil {
		b.Fatal(err)
	}
	return &c
}

func BenchmarkSeal(b *testing.B) {
	c := benchParts(b)
	for _, size := range []int{64, 1024} {
		m := testMessageKey(b)
		gcm := randomNonceGCM(make([]byte, 32))
		plaintext, aad := make([]byte, size), make([]byte, 35+c.Len())
		bare := func(dst []byte) {
			gcm.Seal(dst, nil, plaintext, aad)
		}
		message := func(dst []byte) {
			if _, err := m.SealDetached(dst, plaintext, c, 0); err != nil {
				b.Fatal(err)
			}
		}
		for _, cores := range []string{"", " all cores"} {
			for name, seal := range map[string]func([]byte){"gcm": bare, "message": message} {
				b.Run(fmt.Sprintf("%s/%d%s", name, size, cores), func(b *testing.B) {
					b.ReportAllocs()
					if cores == "" {
						dst := make([]byte, 0, size+64)
						for b.Loop() {
							seal(dst)
						}
						return
					}
					b.RunParallel(func(p *testing.PB) {
						dst := make([]byte, 0, size+64)
						for p.Next() {
							seal(dst)
						}
					})
				})
			}
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	c := benchParts(b)
	for _, size := range []int{64, 1024} {
		plaintext, aad := make([]byte, size), make([]byte, 35+c.Len())
		dst := make([]byte, 0, size)
		gcm := randomNonceGCM(make([]byte, 32))
		bare := gcm.Seal(nil, nil, plaintext, aad)
		b.Run(fmt.Sprintf("gcm/%d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := gcm.Open(dst, nil, bare, aad); err != nil {
					b.Fatal(err)
				}
			}
		})

		m := testMessageKey(b)
		sealed, err := m.SealDetached(nil, plaintext, c, 0)
		if err != nil {
			b.Fatal(err)
		}
		open := func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.OpenDetached(dst, sealed, c); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.Run(fmt.Sprintf("own prefix/%d", size), open)
		m.sealing.Store(nil)
		b.Run(fmt.Sprintf("cached prefix/%d", size), open)
		b.Run(fmt.Sprintf("prefixes that differ/%d", size), func(b *testing.B) {
			var messages [][]byte
			for range 2 * cacheSets * cacheWays { // by the time that one comes again, it is in the cache no more
				m.sealing.Store(nil)
				sealed, err := m.SealDetached(nil, plaintext, c, 0)
				if err != nil {
					b.Fatal(err)
				}
				messages = append(messages, sealed)
			}
			m.sealing.Store(nil)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if _, err := m.OpenDetached(dst, messages[n%len(messages)], c); err != nil {
					b.Fatal(err)
				}
				n++
			}
		})
	}
}
