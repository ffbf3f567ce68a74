package keyhold_test

import (
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// BenchmarkWarm makes the keys of 10 000 scopes ready, 3 each, in a process that has none; 1 000 scopes with -short.
func BenchmarkWarm(b *testing.B) {
	n := 10_000
	if testing.Short() {
		n = 1000
	}
	for _, kind := range []string{"postgres", "sqlite"} {
		s, cfg := stores[kind].open(b), keyhold.Config{
			Root: newRoot(b), Purposes: []key.Purpose{"a", "b", "c"}, Initialize: true, CacheKeys: 4 * n,
		}
		maker, err := keyhold.New(b.Context(), s, cfg)
		must(b, err)
		in, err := s.Installation(b.Context())
		must(b, err)
		for from := 0; from < n; from += 1000 {
			var scopes []key.Scope
			for i := range 1000 {
				scopes = append(scopes, manyName(from+i))
			}
			keys, err := keyhold.FamiliesOf(maker, time.Now().Unix(), scopes)
			must(b, err)
			_, err = s.Create(b.Context(), [16]byte(in.Inst), keys)
			must(b, err)
		}
		must(b, maker.Close())
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				m, err := keyhold.New(b.Context(), s, cfg)
				must(b, err)
				b.StartTimer()
				warm, err := m.Warm(b.Context())
				must(b, err)
				b.StopTimer()
				if warm != 3*n {
					b.Fatalf("%d keys are warm, want %d", warm, 3*n)
				}
				must(b, m.Close())
				b.StartTimer()
			}
			b.ReportMetric(float64(b.N*3*n)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}
