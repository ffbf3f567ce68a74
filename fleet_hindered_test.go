package keyhold_test

import (
	"context"
	"sync"
	"time"

	"keyhold.example/keyhold/store"
)

// What is promised in seconds is promised of processes that run, and that the database answers. On a machine that has
// too much to do neither may be so for a while. So processes ask the database something now and then, by themselves and
// not by what is tested, and a time that was lost in that way counts for nobody.
const (
	fleetBeat = 100 * time.Millisecond

	// fleetHindrance is how long there must have been no answer for the time to be lost.
	fleetHindrance = 500 * time.Millisecond
)

// fleetStall is a time in which a process did not run, or the database did not answer it.
type fleetStall struct{ From, To time.Time }

// fleetLost is how much of the time from one moment to another was lost.
func fleetLost(stalls []fleetStall, from, to time.Time) (lost time.Duration) {
	for _, s := range stalls {
		a, b := s.From, s.To
		if a.Before(from) {
			a = from
		}
		if b.After(to) {
			b = to
		}
		lost += max(0, b.Sub(a))
	}
	return lost
}

// fleetWatch notes when it was hindered.
type fleetWatch struct {
	mu     sync.Mutex
	stalls []fleetStall
}

// run asks the database until ctx ends.
func (w *fleetWatch) run(ctx context.Context, s store.Store) error {
	tick := time.NewTicker(fleetBeat)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if _, err := s.Epochs(ctx); err != nil {
			continue // it is asked again, and the time until then counts
		}
		now := time.Now()
		if now.Sub(last) >= fleetHindrance {
			w.mu.Lock()
			w.stalls = append(w.stalls, fleetStall{last, now})
			w.mu.Unlock()
		}
		last = now
	}
}

// lost is all that was noted.
func (w *fleetWatch) lost() []fleetStall {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]fleetStall(nil), w.stalls...)
}
