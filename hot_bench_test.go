package keyhold

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/memstore"
)

// inUse is a Manager with Run at work, and so many keys for messages that were sealed with.
func inUse(tb testing.TB, n int) (*Manager, []Ref) {
	tb.Helper()
	const perScope = 100
	ctx := context.Background()
	root, err := localroot.Generate(tb.TempDir() + "/root.key")
	check(tb, err)
	cfg := Config{Root: root, Initialize: true, CacheKeys: 2*n + 1000}
	for i := range min(n, perScope) {
		cfg.Purposes = append(cfg.Purposes, Purpose(fmt.Sprint("purpose", i)))
	}
	m, err := New(ctx, memstore.New(), cfg)
	check(tb, err)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = m.Run(ctx)
	}()
	tb.Cleanup(func() {
		cancel()
		<-ended
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	var refs []Ref
	for s := 0; len(refs) < n; s++ {
		scope := Scope(fmt.Sprint("scope", s))
		check(tb, m.CreateScope(ctx, scope))
		for _, p := range cfg.Purposes[:min(n-len(refs), len(cfg.Purposes))] {
			refs = append(refs, Ref{Scope: scope, Purpose: p})
		}
	}
	for range 2 {
		for _, r := range refs {
			_, err := m.Seal(ctx, r, nil, AAD{})
			check(tb, err)
		}
	}
	return m, refs
}

// BenchmarkHotLookup is finding a key that is in use, and nothing else: what a call costs besides sealing. The keys are
// 10 and 100 000, or 1 000 with -short. Which of many is wanted is in the processor's caches, as it is where a caller
// has just read it, and what is kept of the key is not.
func BenchmarkHotLookup(b *testing.B) {
	many := 100_000
	if testing.Short() {
		many = 1000
	}
	for _, n := range []int{10, many} {
		m, refs := inUse(b, n)
		find := func(name *hotName) {
			if h, _ := m.hotKey(name); h == nil {
				_, err := m.Seal(context.Background(), name.ref, nil, AAD{}) // as a caller would
				check(b, err)
			}
		}
		found := func(i int) { find(&hotName{what: headOfRef, ref: refs[i]}) }
		b.Run(fmt.Sprintf("keys=%d/same", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				found(3)
			}
		})
		b.Run(fmt.Sprintf("keys=%d/same/parallel", n), func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					found(3)
				}
			})
		})
		order := rand.Perm(n)
		b.Run(fmt.Sprintf("keys=%d/random", n), func(b *testing.B) {
			b.ReportAllocs()
			var names [64]hotName
			var calls int
			var spent time.Duration
			for i := 0; b.Loop(); i++ {
				for j := range names {
					names[j] = hotName{what: headOfRef, ref: refs[order[(i*len(names)+j)%n]]}
					names[j].hash() // reads its texts
				}
				began := time.Now()
				for j := range names {
					find(&names[j])
				}
				spent += time.Since(began)
				calls += len(names)
			}
			b.ReportMetric(float64(spent)/float64(calls), "ns/op")
		})
		b.Run(fmt.Sprintf("keys=%d/random/names-too", n), func(b *testing.B) { // which are in no cache, either
			for i := 0; b.Loop(); i++ {
				found(order[i%n])
			}
		})
		b.Run(fmt.Sprintf("keys=%d/random/parallel", n), func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for i := rand.IntN(n); pb.Next(); i++ {
					found(order[i%n])
				}
			})
		})
	}
}

// BenchmarkMessages is sealing and opening with a key in use.
func BenchmarkMessages(b *testing.B) {
	m, refs := inUse(b, 10)
	ctx, ref := context.Background(), refs[3]
	for _, size := range []int{64, 1024} {
		plaintext := make([]byte, size)
		buf := make([]byte, 0, size+100)
		ct, err := m.Seal(ctx, ref, plaintext, Context("table", "column", "42"))
		check(b, err)
		for name, f := range map[string]func() error{
			"Seal": func() error {
				_, err := m.Seal(ctx, ref, plaintext, Context("table", "column", "42"))
				return err
			},
			"AppendSeal": func() error {
				_, err := m.AppendSeal(ctx, buf, ref, plaintext, Context("table", "column", "42"))
				return err
			},
			"AppendOpen": func() error {
				_, err := m.AppendOpen(ctx, buf, ref, ct, Context("table", "column", "42"))
				return err
			},
		} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := f(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
