package keyhold

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/store/faultstore"
)

// A database that answers, and takes no sign: sealing goes on for as long as others know that this process does it, and
// opening all the time.
func TestHotMessagesWhileNoSignIsTaken(t *testing.T) {
	const life = 62 * time.Second
	withAndWithoutRun(t, Config{SealFor: life}, func(t *testing.T, w *two) {
		first, second := w.lettered(t)
		w.calls.Hook(func(call string) {
			if call == "Sign" {
				w.calls.Fail(0, faultstore.Before)
			}
		})
		over := func() time.Duration { return life - (w.epochs.mono() - w.epochs.signed.Load().at.mono) }
		for over() > time.Second {
			pass(time.Second)
			w.sealAll(t, 2)
			w.openAll(t, first)
		}
		pass(over() - time.Millisecond)
		for range 2 { // it is in use by then
			w.sealAll(t, 2)
		}
		pass(time.Millisecond)
		for range 2 {
			w.sealsNot(t, ErrStale)
			w.openAll(t, first)
			w.openAll(t, second)
		}
		w.calls.Hook(nil)
		pass(signRetry + time.Second)
		for range 2 {
			w.sealAll(t, 2)
		}
	})
}

// A machine that was suspended has missed what happened meanwhile: a moment later nothing that was in use goes on.
func TestHotMessagesAfterASuspension(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		var asleep atomic.Int64
		synctest.Wait()
		told := w.epochs.clock
		w.epochs.clock = func() instant {
			now := told()
			now.wall = now.wall.Add(time.Duration(asleep.Load()))
			return now
		}
		first, second := w.lettered(t)
		for i := range Version(3) {
			w.openAll(t, first)
			w.sealAll(t, 2+i)
			rotated(t, w, inner)
			check(t, w.other.Disable(t.Context(), first.id))
			w.sealAll(t, 2+i)
			w.openAll(t, first)
			asleep.Add(int64(time.Hour))
			pass(recheck)
			w.sealAll(t, 3+i)
			w.opensNot(t, first, ErrDisabled)
			w.openAll(t, second)
			check(t, w.other.Enable(t.Context(), first.id))
		}
		w.openAll(t, first)
		w.sealAll(t, 5)
		w.away(true)
		asleep.Add(int64(DefaultSealFor))
		pass(recheck)
		w.sealsNot(t, ErrStale)
		w.openAll(t, first)
		asleep.Add(int64(DefaultOpenFor))
		pass(recheck)
		w.opensNot(t, first, ErrStale)
		w.away(false)
		pass(2 * time.Second)
		w.sealAll(t, 5)
	})
}

// A process that was stopped goes on with whatever it was about to do, and what looks at clocks in the background may
// come last: the first call finds that time has passed.
func TestNothingHotGoesOnInAProcessThatWasStopped(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		var stopped atomic.Int64
		synctest.Wait()
		clock, mono := w.epochs.clock, w.epochs.mono
		w.epochs.clock = func() instant {
			now := clock()
			now.mono += time.Duration(stopped.Load())
			now.wall = now.wall.Add(time.Duration(stopped.Load()))
			return now
		}
		w.epochs.mono = func() time.Duration { return mono() + time.Duration(stopped.Load()) }
		first, _ := w.lettered(t)
		w.rawKeyed(t)
		w.hasRaw(t, 2)
		w.openAll(t, first)
		w.sealAll(t, 2)
		rotated(t, w, innerRaw)
		rotated(t, w, inner)
		check(t, w.other.Disable(t.Context(), first.id))
		stopped.Add(int64(epochLife))
		w.hasRaw(t, 3)
		w.sealAll(t, 3)
		w.opensNot(t, first, ErrDisabled)
	})
}

// Without the database sealing goes on for SealFor, and opening for OpenFor.
func TestHotMessagesWhileTheDatabaseIsAway(t *testing.T) {
	withAndWithoutRun(t, Config{SealFor: time.Minute, OpenFor: 2 * time.Minute}, func(t *testing.T, w *two) {
		first, second := w.lettered(t)
		w.away(true)
		// With Run at work the last answer may be as old as the time between two of its questions.
		for range 54 {
			pass(time.Second)
			w.sealAll(t, 2)
			w.openAll(t, first)
		}
		pass(6 * time.Second)
		w.sealsNot(t, ErrStale)
		w.sealsNot(t, ErrUnavailable)
		for range 54 {
			pass(time.Second)
			w.openAll(t, first)
			w.openAll(t, second)
		}
		pass(6 * time.Second)
		w.opensNot(t, first, ErrStale)
		w.away(false)
		pass(3 * time.Second)
		for range 2 {
			w.sealAll(t, 2)
			w.openAll(t, first)
		}
	})
}
