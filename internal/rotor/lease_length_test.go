package rotor

import (
	"context"
	"testing"
	"time"

	"keyhold.example/keyhold/store"
)

// A lease of another length ends after that, is prolonged after a third of it, and nobody else gets it while the work
// at each key takes less than two thirds.
func TestALeaseOfAnotherLength(t *testing.T) {
	for _, lasts := range []time.Duration{10 * time.Second, 5 * time.Minute} {
		inWorld(t, func(t *testing.T, w *world) {
			sweeper := w.sweeper()
			sweeper.Lease = lasts
			w.due(t, 3, 10)
			report, err := sweeper.Sweep(t.Context(), alone(func(ctx context.Context, d store.Due, under *store.Lease) error {
				pass(lasts*2/3 - time.Second)
				if w.free(t, 3) {
					t.Error("another got the lease")
				}
				return w.rotate(ctx, d, under)
			}))
			if want := (Report{Done: 10}); err != nil || report != want {
				t.Errorf("%+v, %v; want %+v", report, err, want)
			}

			held, ok, err := sweeper.Hold(t.Context(), "cleanup")
			if check(t, err); !ok {
				t.Fatal("not given")
			}
			pass(lasts/3 - time.Second)
			before := w.calls.Calls()
			if check(t, held.Prolong(t.Context())); w.calls.Calls() != before {
				t.Error("it is prolonged before its third is over")
			}
			pass(time.Second)
			if check(t, held.Prolong(t.Context())); w.calls.Calls() != before+1 {
				t.Error("it is not prolonged")
			}
			pass(lasts - time.Second)
			if w.freeName(t, "cleanup") {
				t.Error("it is over before its time")
			}
			pass(2 * time.Second)
			if !w.freeName(t, "cleanup") {
				t.Error("it does not end")
			}
		})
	}
}
