package benchmarks_test

import (
	"bytes"
	"crypto/fips140"
	"fmt"
	"slices"
	"testing"
	"time"
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

// BenchmarkRatio says how many times as long one system takes as another, as a metric named after both. The systems
// take turns of a third of a millisecond, hundreds of them, and the ratio is that of their first deciles: what else
// happens on the machine makes turns longer, and none shorter. An iteration is a round.
func BenchmarkRatio(b *testing.B) {
	systems := systems(b)
	for _, op := range []string{"seal", "open"} {
		for _, size := range sizes {
			b.Run(fmt.Sprintf("op=%s/size=%d", op, size), func(b *testing.B) {
				turns := make([]turn, len(systems))
				for i, s := range systems {
					w, err := s.worker(make([]byte, size))
					must(b, err)
					turns[i] = turn{name: s.name, do: w.do(op)}
					must(b, turns[i].calibrate(time.Millisecond/3))
				}
				for first := 0; b.Loop(); first++ {
					for i := range turns {
						must(b, turns[(first+i)%len(turns)].take())
					}
				}
				report(b, turns)
			})
		}
	}
}

// compared are the pairs of which BenchmarkRatio says the ratio.
var compared = [][2]string{
	{"keyhold", "gcm"}, {"keyhold", "tink"}, {"keyhold", "kms-aead"}, {"keyhold", "xchacha"}, {"keyhold-append", "gcm-append"},
}

func report(b *testing.B, turns []turn) {
	b.Helper()
	for _, pair := range compared {
		over, under := find(b, turns, pair[0]), find(b, turns, pair[1])
		b.ReportMetric(quantile(over.perCall, 0.1)/quantile(under.perCall, 0.1), pair[0]+"/"+pair[1])
	}
	b.ReportMetric(0, "ns/op") // of a round, which says nothing
}

func find(b *testing.B, turns []turn, name string) turn {
	b.Helper()
	i := slices.IndexFunc(turns, func(t turn) bool { return t.name == name })
	if i < 0 {
		b.Fatalf("there is no system %q", name)
	}
	return turns[i]
}

// A turn is so many calls of one system in a row.
type turn struct {
	name    string
	do      func() ([]byte, error)
	calls   int
	perCall []float64 // nanoseconds, of each turn taken
}

// calibrate finds out how many calls take so long.
func (t *turn) calibrate(long time.Duration) error {
	for t.calls = 1; ; t.calls *= 2 {
		t.perCall = t.perCall[:0]
		for range 3 {
			if err := t.take(); err != nil {
				return err
			}
		}
		if one := quantile(t.perCall, 0.5); one*float64(t.calls) >= float64(long)/2 {
			t.calls = max(1, int(float64(long)/one))
			t.perCall = nil
			return nil
		}
	}
}

func (t *turn) take() error {
	from := time.Now()
	for range t.calls {
		if _, err := t.do(); err != nil {
			return err
		}
	}
	t.perCall = append(t.perCall, float64(time.Since(from))/float64(t.calls))
	return nil
}

// quantile is the least value that such a part of them is not above.
func quantile(of []float64, part float64) float64 {
	return slices.Sorted(slices.Values(of))[int(part*float64(len(of)))]
}
