//go:build unix

package benchmarks_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"
)

// BenchmarkRatio says how many times as long one system takes as another, as a metric named after both: in processor
// time, that of the garbage collector with it. The systems take turns of 5 ms, in another order each time. So what else
// happens on the machine meets all of them alike, and its time counts for none. An iteration is a round.
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
					must(b, turns[i].calibrate(5*time.Millisecond))
				}
				for b.Loop() {
					for _, i := range rand.Perm(len(turns)) {
						must(b, turns[i].take())
					}
				}
				report(b, turns)
			})
		}
	}
}

// compared are the pairs of which BenchmarkRatio says the ratio.
var compared = [][2]string{
	{"keyhold", "gcm"},
	{"keyhold", "gcm-less"},
	{"keyhold", "tink"},
	{"keyhold", "kms-aead"},
	{"keyhold", "xchacha"},
	{"keyhold-append", "gcm-append"},
	{"keyhold-append", "gcm-less-append"},
	{"gcm-less", "tink"},
	{"gcm-less", "kms-aead"},
}

func report(b *testing.B, turns []turn) {
	b.Helper()
	for _, pair := range compared {
		over, under := find(b, turns, pair[0]), find(b, turns, pair[1])
		b.ReportMetric(over.perCall()/under.perCall(), pair[0]+"/"+pair[1])
	}
	b.ReportMetric(0, "ns/op") // of a round, which says nothing
}

func find(b *testing.B, turns []turn, name string) *turn {
	b.Helper()
	i := slices.IndexFunc(turns, func(t turn) bool { return t.name == name })
	if i < 0 {
		b.Fatalf("there is no system %q", name)
	}
	return &turns[i]
}

// A turn is so many calls of one system in a row.
type turn struct {
	name  string
	do    func() ([]byte, error)
	calls int

	taken int
	spent time.Duration
}

// calibrate finds out how many calls take so long.
func (t *turn) calibrate(long time.Duration) error {
	for t.calls = 1; t.spent < long; t.calls *= 2 {
		t.taken, t.spent = 0, 0
		if err := t.take(); err != nil {
			return err
		}
	}
	t.calls = max(1, int(float64(long)/t.perCall()))
	t.taken, t.spent = 0, 0
	return nil
}

func (t *turn) take() error {
	from, err := processorTime()
	if err != nil {
		return err
	}
	for range t.calls {
		if _, err := t.do(); err != nil {
			return err
		}
	}
	to, err := processorTime()
	t.taken += t.calls
	t.spent += to - from
	return err
}

// perCall is in nanoseconds.
func (t *turn) perCall() float64 { return float64(t.spent) / float64(t.taken) }

// processorTime is what this process has had of all cores.
func processorTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read the processor time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
