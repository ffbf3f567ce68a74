package keyhold

import "testing"

// openedByBoth is a letter that Open opened first, and OpenAny then with what was in use by that.
func (w *two) openedByBoth(t *testing.T) *letter {
	t.Helper()
	l := letterOf(t, w.other, inner, "text")
	for range 2 {
		_, err := w.Open(t.Context(), inner, l.attached, row())
		check(t, err)
	}
	for range 2 {
		_, _, err := w.OpenAny(t.Context(), l.attached, row())
		check(t, err)
	}
	return &l
}

// What OpenAny opened with a key in use it opens without the database too, whichever call used the key first.
func TestOpenAnyOfAKeyInUseWhileTheDatabaseIsAway(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		l := w.openedByBoth(t)
		w.away(true)
		pass(2 * epochLife)
		for range 2 {
			w.openAll(t, l)
		}
		w.away(false)
		pass(2 * restFor)
	})
}

// What does not open is found out with the key in use, and costs no question.
func TestWhatDoesNotOpenAsksNobody(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		l := w.openedByBoth(t)
		for _, way := range openWays {
			before := w.calls.Calls()
			_, err := way.open(t.Context(), w.Manager, inner, l, Context("elsewhere"))
			wants(t, err, ErrOpen)
			if asked := w.since(before); len(asked) != 0 {
				t.Errorf("%s asked %v", way.name, asked)
			}
		}
	})
}

// A place in the cache that another key has by now says nothing of whose a version is.
func TestOpenAnyOfAKeyThatHadAnotherPlace(t *testing.T) {
	withAndWithoutRun(t, Config{CacheKeys: 2}, func(t *testing.T, w *two) {
		others := []Ref{{Scope: "bb", Purpose: inner.Purpose}, {Scope: "cc", Purpose: inner.Purpose}}
		for _, r := range others {
			check(t, w.other.CreateScope(t.Context(), r.Scope))
		}
		pass(epochLife)
		l := letterOf(t, w.other, inner, "text")
		_, _, err := w.OpenAny(t.Context(), l.attached, row())
		check(t, err)
		for _, r := range others {
			sealing(t, w.Manager, r, "x")
		}
		for range 3 {
			_, err = w.Open(t.Context(), inner, l.attached, row())
			check(t, err)
		}
		w.away(true)
		pass(2 * epochLife)
		_, _, err = w.OpenAny(t.Context(), l.attached, row())
		check(t, err)
		w.away(false)
		pass(2 * restFor)
	})
}
