package rotor

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"keyhold.example/keyhold/store"
)

// Keys are worked at together, as many as fit into the time; what became of one says nothing of the others.
func TestKeysAreWorkedAtTogether(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.due(t, 3, 9)
		var calls []int
		report, err := w.sweeper().Sweep(t.Context(), func(ctx context.Context, due []store.Due, under *store.Lease) []error {
			calls = append(calls, len(due))
			errs := make([]error, len(due))
			for i, d := range due {
				switch d.KeyID {
				case w.order[1]:
					errs[i] = ErrLater
				case w.order[2]:
					errs[i] = errors.New("it does not open")
				case w.order[3]:
					if len(due) > 1 {
						errs[i] = ErrAlone
						continue
					}
					fallthrough
				default:
					errs[i] = w.rotate(ctx, d, under)
				}
			}
			return errs
		})
		if want := (Report{Done: 7, Left: 1, Failed: 1}); err != nil || report != want {
			t.Errorf("%+v, %v; want %+v", report, err, want)
		}
		if want := []int{9, 1}; !slices.Equal(calls, want) {
			t.Errorf("in %v, want %v", calls, want)
		}
	})
}

// How many fit into the time is learnt from what the last took.
func TestSlowKeysAreWorkedAtFewerAtATime(t *testing.T) {
	for name, c := range map[string]struct {
		each        time.Duration
		least, most int // in the end
	}{
		"very fast": {time.Microsecond, page, page},
		"fast":      {3 * time.Millisecond, 80, 100},
		"slow":      {60 * time.Millisecond, 4, 5},
		"very slow": {time.Second, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.due(t, 3, 3*page)
				s := w.sweeper()
				for range 4 {
					report, err := s.Sweep(t.Context(), func(_ context.Context, due []store.Due, _ *store.Lease) []error {
						pass(c.each * time.Duration(len(due)))
						return slices.Repeat([]error{ErrLater}, len(due))
					})
					if want := (Report{Left: 3 * page}); err != nil || report != want {
						t.Errorf("%+v, %v; want %+v", report, err, want)
					}
				}
				if s.size < c.least || s.size > c.most {
					t.Errorf("%d at a time, want %d to %d", s.size, c.least, c.most)
				}
			})
		})
	}
}

// A key that is put off is not among those that are worked at.
func TestAKeyThatFailedIsNotWorkedAtWithOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.due(t, 3, 3)
		s := w.sweeper()
		for i, want := range []Report{{Left: 2, Failed: 1}, {Left: 2, Failed: 1}} {
			report, err := s.Sweep(t.Context(), func(_ context.Context, due []store.Due, _ *store.Lease) []error {
				if got := 3 - i; len(due) != got {
					t.Errorf("sweep %d: %d keys, want %d", i+1, len(due), got)
				}
				errs := slices.Repeat([]error{ErrLater}, len(due))
				for n, d := range due {
					if d.KeyID == w.order[1] {
						errs[n] = errors.New("it does not open")
					}
				}
				return errs
			})
			if err != nil || report != want {
				t.Errorf("sweep %d: %+v, %v; want %+v", i+1, report, err, want)
			}
		}
	})
}
