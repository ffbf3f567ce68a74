package bubble_test

import (
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/bubble"
)

// Many ask for random bytes at once, more than any generator that was made before the bubble could give, and the clock
// is the bubble's.
func TestRandomBytesInABubble(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		began := time.Now()
		var wg sync.WaitGroup
		var seen sync.Map
		for range 100 {
			wg.Go(func() {
				var b [16]byte
				if _, err := rand.Read(b[:]); err != nil {
					t.Error(err)
				}
				if _, twice := seen.LoadOrStore(b, true); twice {
					t.Error("the same bytes twice")
				}
				<-time.After(time.Hour)
			})
		}
		wg.Wait()
		if took := time.Since(began); took != time.Hour {
			t.Errorf("%v passed, want an hour", took)
		}
	})
}
