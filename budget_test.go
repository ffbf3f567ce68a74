package keyhold

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
)

// Who seals little takes little: programs that are started again and again do not use up what they do not seal.
func TestAnInstanceTakesNoMoreThanItSeals(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {MaxMessages: 100_000}}}, func(t *testing.T, w *two) {
		id := headID(t, w.Manager)
		taken := uint64(2) // by inTwo, and just now
		for _, n := range []uint64{1, 1, 2, 3, 100, 3000} {
			m := w.fresh(t)
			for range n {
				sealing(t, m, inner, "x")
			}
			check(t, m.Close())
			left, err := w.store.Take(t.Context(), id, 100_000, 100_000)
			check(t, err)
			if now := 100_000 - left; now < taken+n || now > taken+2*n {
				t.Errorf("for %d messages %d were taken", n, now-taken)
			}
			rotated(t, w, inner)
			id, taken = headID(t, w.other), 1
		}
	})
}

// A limit of messages holds over all instances, and the next version comes before it is reached.
func TestABudgetIsNeverExceeded(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: -1, MaxMessages: 1000}}}, func(t *testing.T, w *two) {
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		count := map[key.ID]int{fam.Data[0].Versions[0].ID: 1} // that of inTwo
		var mu sync.Mutex
		seal := func(m *Manager, n int) (err error) {
			for range n {
				id, _, err := m.SealDetached(t.Context(), inner, nil, AAD{})
				if err != nil {
					return err
				}
				mu.Lock()
				count[id]++
				mu.Unlock()
			}
			return nil
		}
		check(t, seal(w.Manager, 100))
		check(t, seal(w.other, 100))
		var wg sync.WaitGroup
		for range 4 {
			for _, m := range []*Manager{w.Manager, w.other} {
				wg.Go(func() {
					if err := seal(m, 1000); !errors.Is(err, ErrUsedUp) {
						t.Errorf("got %v, want ErrUsedUp", err)
					}
				})
			}
		}
		wg.Wait()
		for id, n := range count {
			if n != 1000 {
				t.Errorf("%s sealed %d messages", id, n)
			}
		}

		// The sweep makes another version, though the key is never due by its age.
		swept, err := w.other.Sweep(t.Context())
		check(t, err)
		if swept.Rotated != 1 {
			t.Errorf("%+v, want one rotated", swept)
		}
		check(t, seal(w.Manager, 10))
		w.hasStates(t, inner, key.Retired, key.Active)

		// At four fifths it is due.
		check(t, seal(w.Manager, 770))
		swept, err = w.other.Sweep(t.Context())
		check(t, err)
		if swept.Rotated != 0 {
			t.Errorf("%+v before four fifths", swept)
		}
		check(t, seal(w.Manager, 30))
		swept, err = w.other.Sweep(t.Context())
		check(t, err)
		if swept.Rotated != 1 {
			t.Errorf("%+v at four fifths", swept)
		}

		// With the database away, what this process has is what it may still seal.
		check(t, seal(w.Manager, 1))
		pass(5 * time.Second)
		check(t, seal(w.Manager, 1))
		w.away(true)
		err = seal(w.Manager, 1000)
		wants(t, err, ErrUsedUp)
		wants(t, err, ErrUnavailable)
		isOwnPart(t, err)
		w.away(false)
		w.sound(t)
	})
}

// isOwnPart asserts that an error says that this process has nothing left, and not that the version has sealed all.
func isOwnPart(t *testing.T, err error) {
	t.Helper()
	if text := err.Error(); !strings.Contains(text, "this process has used up its part") || strings.Contains(text, ErrUsedUp.Error()) {
		t.Errorf("it says %q", text)
	}
}

// Whether the database is away or its answer is lost, the caller may try again.
func TestOnesOwnPartIsUsedUp(t *testing.T) {
	for _, away := range []error{ErrUnavailable, ErrUnknownOutcome} {
		err := noneLeft(away)
		isOwnPart(t, err)
		for _, want := range []error{ErrUsedUp, ErrUnavailable, away} {
			wants(t, err, want)
		}
	}
	if other := errors.New("other"); noneLeft(other) != other {
		t.Error("another error is taken for one of these")
	}
}

func headID(t *testing.T, m *Manager) key.ID {
	t.Helper()
	id, _, err := m.SealDetached(t.Context(), inner, nil, AAD{})
	check(t, err)
	return id
}

// Who seals much is told by what it takes that a version may be used up, and does not wait for its next sweep.
func TestAUsedUpKeyIsRotatedWithinSeconds(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: -1, MaxMessages: 1000}}}, func(t *testing.T, w *two) {
		stop := running(t, w.Manager)
		pass(10 * time.Second) // its first sweep is over
		for range 900 {
			sealing(t, w.Manager, inner, "x")
		}
		pass(5 * time.Second)
		w.hasStates(t, inner, key.Retired, key.Active)
		sweeps := 0
		for _, call := range w.calls.Log() {
			if call == "Due" {
				sweeps++
			}
		}
		if sweeps > 8 {
			t.Errorf("%d lists of due keys in 15 s", sweeps)
		}
		stop()
		w.sound(t)
	})
}
