package seal

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold/envelope"
)

// beside measures bare and ours in turns of so many calls, and reports what a call of each takes where nothing else
// disturbs it: the time that a tenth of the turns are within. So both meet the same machine, however busy it is.
func beside(b *testing.B, calls int, bare, ours func(calls int)) {
	b.Helper()
	besideTimed(b, calls, bare, ours, func(f func(int)) time.Duration {
		start := time.Now()
		f(calls)
		return time.Since(start)
	})
}

// besideOnTwo is beside for two goroutines that both call at once. The calls of a turn begin when both are running.
func besideOnTwo(b *testing.B, calls int, bare, ours func(calls int)) {
	b.Helper()
	type turn struct {
		f       func(calls int)
		arrived atomic.Int32
	}
	turns, times := make(chan *turn), make(chan time.Duration)
	defer close(turns)
	do := func(t *turn) time.Duration {
		t.arrived.Add(1)
		for t.arrived.Load() < 2 { //nolint:revive // a lock would have one of the two begin late
		}
		start := time.Now()
		t.f(calls)
		return time.Since(start)
	}
	go func() {
		for t := range turns {
			times <- do(t)
		}
	}()
	besideTimed(b, calls, bare, ours, func(f func(int)) time.Duration {
		t := &turn{f: f}
		turns <- t
		return max(do(t), <-times)
	})
}

func besideTimed(b *testing.B, calls int, bare, ours func(calls int), timed func(func(calls int)) time.Duration) {
	b.Helper()
	var times [2][]time.Duration
	for b.Loop() {
		for i, f := range []func(int){bare, ours} {
			times[i] = append(times[i], timed(f))
		}
	}
	var each [2]float64
	for i, all := range times {
		slices.Sort(all)
		each[i] = float64(all[len(all)/10]) / float64(calls)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(each[0], "ns/gcm")
	b.ReportMetric(each[1], "ns/message")
	b.ReportMetric(each[1]-each[0], "ns/more")
}

// benchParts is a context of a usual length.
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
		bare := func(calls int) {
			dst := make([]byte, 0, size+64)
			for range calls {
				gcm.Seal(dst, nil, plaintext, aad)
			}
		}
		message := func(calls int) {
			dst := make([]byte, 0, size+64)
			for range calls {
				if _, err := m.SealDetached(dst, plaintext, c, 0); err != nil {
					b.Error(err)
				}
			}
		}
		b.Run(fmt.Sprintf("%d/one core", size), func(b *testing.B) { beside(b, 500, bare, message) })
		b.Run(fmt.Sprintf("%d/two cores", size), func(b *testing.B) { besideOnTwo(b, 200, bare, message) })
	}
}

func BenchmarkOpen(b *testing.B) {
	c := benchParts(b)
	for _, size := range []int{64, 1024} {
		plaintext, aad := make([]byte, size), make([]byte, 35+c.Len())
		dst := make([]byte, 0, size)
		gcm := randomNonceGCM(make([]byte, 32))
		sealed := gcm.Seal(nil, nil, plaintext, aad)
		bare := func(calls int) {
			for range calls {
				if _, err := gcm.Open(dst, nil, sealed, aad); err != nil {
					b.Error(err)
				}
			}
		}

		m := testMessageKey(b)
		var messages [][]byte
		seal := func(n int) {
			messages = nil
			for range n {
				m.sealing.Store(nil)
				sealed, err := m.SealDetached(nil, plaintext, c, 0)
				if err != nil {
					b.Fatal(err)
				}
				messages = append(messages, sealed)
			}
		}
		next := 0
		message := func(calls int) {
			for range calls {
				if next++; next >= len(messages) {
					next = 0
				}
				if _, err := m.OpenDetached(dst, messages[next], c); err != nil {
					b.Error(err)
				}
			}
		}
		seal(1)
		b.Run(fmt.Sprintf("%d/own prefix", size), func(b *testing.B) { beside(b, 500, bare, message) })
		m.sealing.Store(nil)
		b.Run(fmt.Sprintf("%d/cached prefix", size), func(b *testing.B) { beside(b, 500, bare, message) })
		b.Run(fmt.Sprintf("%d/each its own prefix", size), func(b *testing.B) {
			seal(8 * cacheSets * cacheWays) // by the time that one comes again, it is in the cache no more
			m.sealing.Store(nil)
			b.ReportAllocs()
			beside(b, 50, bare, message)
		})
	}
}
