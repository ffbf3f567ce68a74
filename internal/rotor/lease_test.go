package rotor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
)

// However long the work in a bucket takes, nobody else gets its lease, which is the same all the time, if no key takes
// more than 39 s.
func TestALeaseIsProlongedWhileTheWorkLasts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.due(t, 3, 20)
		fences := map[int64]int{}
		report, err := w.sweeper().Sweep(t.Context(), alone(func(ctx context.Context, d store.Due, under *store.Lease) error {
			fences[under.Fence]++
			pass(39 * time.Second)
			if w.free(t, 3) {
				t.Error("another got the lease")
			}
			return w.rotate(ctx, d, under)
		}))
		if want := (Report{Done: 20}); err != nil || report != want || len(fences) != 1 {
			t.Errorf("%+v, %v, %d fences; want %+v", report, err, len(fences), want)
		}
		w.tried(t)
	})
}

// Who lost its lease in the middle does not go on with the bucket; who has it by now does the rest.
func TestWhoLostItsLeaseGoesNoFurther(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.due(t, 3, 5)
		one, other := w.sweeper(), w.sweeper()
		tries := 0
		report, err := one.Sweep(t.Context(), alone(func(ctx context.Context, d store.Due, under *store.Lease) error {
			if tries++; tries < 2 {
				return w.rotate(ctx, d, under)
			}
			pass(DefaultLease + time.Second) // as if the process had been stopped
			if _, ok, err := other.Hold(ctx, under.Name); !ok || err != nil {
				t.Errorf("another did not get a lease that is over: %v", err)
			}
			err := w.rotate(ctx, d, under)
			if !errors.Is(err, ErrLater) {
				t.Errorf("a write under a lost lease: %v, want it refused", err)
			}
			return err
		}))
		if want := (Report{Done: 1, Left: 2}); err != nil || report != want || tries != 2 {
			t.Errorf("%+v, %v, %d tries; want %+v and nothing more", report, err, tries, want)
		}
		if w.free(t, 3) {
			t.Error("it gave back what another has")
		}
		report, err = other.Sweep(t.Context(), alone(w.rotate))
		if want := (Report{Done: 4}); err != nil || report != want {
			t.Errorf("the other: %+v, %v; want %+v", report, err, want)
		}
	})
}

// A lease that is new enough takes no question; one that was over is lost, though nobody else had it meanwhile.
func TestProlong(t *testing.T) {
	for name, c := range map[string]struct {
		after time.Duration
		taken bool // by another
		asks  bool
		lost  bool
	}{
		"at once":                  {},
		"soon":                     {after: DefaultLease/3 - 1},
		"in time":                  {after: DefaultLease / 3, asks: true},
		"just in time":             {after: DefaultLease - time.Second, asks: true},
		"too late":                 {after: DefaultLease, asks: true, lost: true},
		"when another has it":      {after: DefaultLease, taken: true, asks: true, lost: true},
		"long after it was taken":  {after: time.Hour, taken: true, asks: true, lost: true},
		"long after it had an end": {after: time.Hour, asks: true, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				held, ok, err := w.sweeper().Hold(t.Context(), "cleanup")
				if check(t, err); !ok {
					t.Fatal("not given")
				}
				pass(c.after)
				if c.taken {
					_, ok, err := w.sweeper().Hold(t.Context(), "cleanup")
					if check(t, err); !ok {
						t.Fatal("not given to another")
					}
				}
				before, until := w.calls.Calls(), held.Lease().Until
				err = held.Prolong(t.Context())
				if errors.Is(err, ErrLost) != c.lost || !c.lost && err != nil {
					t.Errorf("%v, want lost: %v", err, c.lost)
				}
				if asked := w.calls.Calls() - before; (asked == 1) != c.asks {
					t.Errorf("%d questions, want one: %v", asked, c.asks)
				}
				if want := until + int64(c.after/time.Second); c.asks && !c.lost && held.Lease().Until != want {
					t.Errorf("until %d, want %d", held.Lease().Until, want)
				}
				if c.asks && !c.lost { // the time counts from then
					pass(DefaultLease/3 - 1)
					before := w.calls.Calls()
					if check(t, held.Prolong(t.Context())); w.calls.Calls() != before {
						t.Error("it asks again at once")
					}
				}
				if c.lost && !c.taken {
					if held.Release(t.Context()); !w.freeName(t, "cleanup") {
						t.Error("what was lost is not given back")
					}
				}
			})
		})
	}
}

// When the caller's time is over, a sweep ends with the caller's reason. What that ended is no failure of the key, and
// the lease is given back.
func TestASweepEndsWithItsContext(t *testing.T) {
	why := errors.New("shut down")
	for name, work := range map[string]func(ctx context.Context, w *world, d store.Due, under *store.Lease) error{
		"the work is ended": func(ctx context.Context, w *world, d store.Due, _ *store.Lease) error {
			w.try(d)
			return context.Cause(ctx)
		},
		"the work is done": func(ctx context.Context, w *world, d store.Due, under *store.Lease) error {
			return w.rotate(context.WithoutCancel(ctx), d, under)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.due(t, 3, 2)
				w.due(t, 4, 2)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				s := w.sweeper()
				var report Report
				for i := range 2 { // the second begins when it is over
					var err error
					report, err = s.Sweep(ctx, alone(func(ctx context.Context, d store.Due, under *store.Lease) error {
						cancel(why)
						return work(ctx, w, d, under)
					}))
					if !errors.Is(err, why) || !errors.Is(err, context.Canceled) {
						t.Errorf("sweep %d: %v", i+1, err)
					}
					if tries := len(w.tries); tries != 1 || report.Failed != 0 || len(s.failing) != 0 {
						t.Errorf("sweep %d: %d tries, %+v, failing %v", i+1, tries, report, s.failing)
					}
				}
				if !w.free(t, 3) || !w.free(t, 4) {
					t.Error("a lease was not given back")
				}
			})
		})
	}
}

// Whichever question to the database fails, the sweep says so, or goes on if nothing depends on it; and another that
// comes when the leases are over does the rest. No key is done twice.
func TestASweepWhoseQuestionsFail(t *testing.T) {
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for n, fired := 0, true; fired; n++ {
			inWorld(t, func(t *testing.T, w *world) {
				w.due(t, 3, 2)
				w.due(t, 4, 2)
				work := func(ctx context.Context, d store.Due, under *store.Lease) error {
					pass(DefaultLease / 3)
					return w.rotate(ctx, d, under)
				}
				w.calls.Fail(n, mode)
				_, err := w.sweeper().Sweep(t.Context(), alone(work))
				if fired = w.calls.Fired(); !fired {
					if check(t, err); n < 9 {
						t.Errorf("only %d questions were asked", n)
					}
					return
				}
				switch asked := w.calls.Log()[n]; {
				case asked != "Due" && asked != "Lease":
					check(t, err)
				case err == nil || !strings.HasPrefix(err.Error(), asked+" was made to fail"),
					!errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnknownOutcome):
					t.Errorf("question %d: %v, want that of %s", n, err, asked)
				}
				pass(DefaultLease + time.Second)
				report, err := w.sweeper().Sweep(t.Context(), alone(work))
				if check(t, err); report.Left+report.Failed != 0 {
					t.Errorf("question %d: the next sweep: %+v", n, report)
				}
				w.tried(t)
			})
		}
	}
}

// deaf never answers to Release.
type deaf struct{ store.Fleet }

func (deaf) Release(ctx context.Context, _ store.Lease) error {
	<-ctx.Done()
	return ctx.Err()
}

// Giving a lease back holds nobody up for long: it ends by itself.
func TestReleaseHasALimit(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.due(t, 3, 1)
		began := time.Now()
		s := &Sweeper{Fleet: deaf{w.db}, Owner: w.maker.ID(key.PrefixInstance)}
		_, err := s.Sweep(t.Context(), alone(w.rotate))
		if took := time.Since(began); err != nil || took != releaseLimit {
			t.Errorf("%v after %v, want none after %v", err, took, releaseLimit)
		}
		if w.free(t, 3) {
			t.Error("it was given back all the same")
		}
		pass(DefaultLease)
		if !w.free(t, 3) {
			t.Error("it does not end")
		}
	})
}

func TestJitterIsAFifth(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 4, 5, time.Second, time.Hour, 1 << 62} {
		least, most := d, d
		for range 10_000 {
			j := Jitter(d)
			least, most = min(least, j), max(most, j)
		}
		if least < d-d/5 || most > d+d/5 {
			t.Errorf("%v: %v to %v", d, least, most)
		}
		if d >= time.Second && (least > d-d/6 || most < d+d/6) {
			t.Errorf("%v: only %v to %v of ten thousand", d, least, most)
		}
	}
}
