package keyhold_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
)

// fleetBound is how long after a commit an instance whose questions are answered may still use what was before.
const fleetBound = 7 * time.Second

// fleetChange is when a change of a key was made: at the earliest, and at the latest.
type fleetChange struct{ from, to time.Time }

// refused asserts that calls were refused only where there was no answer for as long as a question may take.
func (a *fleetAnswer) refused(t *testing.T) {
	t.Helper()
	for _, r := range a.Refusals {
		if lost := fleetLost(a.Stalls, r.Began, r.Ended); lost < 2*time.Second {
			t.Errorf("a process was refused after %v, of which it was hindered for %v: %s", r.Ended.Sub(r.Began), lost, r.Error)
		}
	}
}

// After keys are rotated and their old versions disabled, no process uses an old version for longer than the bound, but
// for the time in which it was hindered, and one that is strict does not use it at all.
func TestFleetUsesNothingOldForLong(t *testing.T) {
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		const keys = 200
		writers := map[string]int{"postgres": 4, "sqlite": 1}[w.kind]
		m := w.open(t, w.store)
		refs := make([]key.Ref, keys)
		for i := range refs {
			refs[i] = key.Ref{Scope: key.Scope(fmt.Sprint("s", i)), Purpose: secrets}
			must(t, m.CreateScope(t.Context(), refs[i].Scope))
		}
		// The first ones ask when they are used, the next ones also in between, the last one each time.
		all := w.start(t, fleetSettings{}, fleetSettings{}, fleetSettings{}, fleetSettings{},
			fleetSettings{Run: true}, fleetSettings{Run: true}, fleetSettings{Run: true}, fleetSettings{Strict: true})
		hot, strict := all[:len(all)-1], all[len(all)-1:]
		// One after the other, so that they do not all ask at the same time.
		for i := range all {
			o := fleetOrder{Do: "use", Keys: refs, Every: 200 * time.Millisecond}
			if i == len(hot) {
				o.Every = time.Second
			}
			fleetObey(t, all[i:i+1], o)
			fleetUntil(t, "a process uses all keys", func() bool {
				return fleetObey(t, all[i:i+1], fleetOrder{Do: "count"})[0].Count == keys
			})
		}

		old := make([]key.ID, keys)
		rotated, disabled := make([]fleetChange, keys), make([]fleetChange, keys)
		var wg sync.WaitGroup
		for n := range writers {
			// What a change says is written at once is written after its last call to the store began.
			calls := faultstore.New(w.store)
			writer := w.open(t, calls)
			var from time.Time
			calls.Hook(func(call string) {
				if call == "Update" {
					from = time.Now()
				}
			})
			wg.Go(func() {
				for i := n; i < keys; i += writers {
					infos, err := writer.Keys(t.Context(), refs[i].Scope)
					if err == nil {
						_, err = writer.Rotate(t.Context(), refs[i])
						rotated[i] = fleetChange{from, time.Now()}
					}
					if err == nil {
						for _, k := range infos {
							if k.Ref == refs[i] {
								old[i] = k.Versions[0].ID
							}
						}
						err = writer.Disable(t.Context(), old[i])
						disabled[i] = fleetChange{from, time.Now()}
					}
					if err != nil {
						t.Errorf("%v: %v", refs[i], err)
					}
				}
			})
		}
		wg.Wait()
		fleetPass(fleetBound + time.Second)
		fleetUntil(t, "all processes use all new versions", func() bool {
			return !slices.ContainsFunc(fleetObey(t, all, fleetOrder{Do: "count"}), func(a fleetAnswer) bool { return a.Count < 2*keys })
		})

		var lastSeal, lastOpen, lost time.Duration
		late, seen := 0, 0
		for _, a := range fleetObey(t, hot, fleetOrder{Do: "stop"}) {
			a.refused(t)
			for _, s := range a.Stalls {
				lost = max(lost, s.To.Sub(s.From))
			}
			for i, id := range old {
				u := a.Uses[id]
				seals, opens := u.SealEnded.Sub(rotated[i].from), u.OpenEnded.Sub(disabled[i].from)
				if seals-fleetLost(a.Stalls, rotated[i].from, u.SealEnded) > fleetBound ||
					opens-fleetLost(a.Stalls, disabled[i].from, u.OpenEnded) > fleetBound {
					late++
					t.Errorf("a process used the old version of %v: sealed %v after the rotation, opened %v after it was disabled",
						refs[i], seals, opens)
				}
				if !u.SealEnded.IsZero() {
					seen++
				}
				lastSeal, lastOpen = max(lastSeal, seals), max(lastOpen, opens)
			}
			if len(a.Uses) != 2*keys {
				t.Errorf("a process used %d versions, want %d", len(a.Uses), 2*keys)
			}
		}
		for _, a := range fleetObey(t, strict, fleetOrder{Do: "stop"}) {
			a.refused(t)
			for i, id := range old {
				if u := a.Uses[id]; u.SealBegan.After(rotated[i].to) || u.OpenBegan.After(disabled[i].to) {
					t.Errorf("the strict process used the old version of %v in a call that began after the change", refs[i])
				}
			}
			if len(a.Uses) != 2*keys {
				t.Errorf("the strict process used %d versions, want %d", len(a.Uses), 2*keys)
			}
		}
		t.Logf("%d keys in %d processes: last sealed with an old version %v after the rotation, last opened %v after it was disabled; "+
			"%d late; hindered for %v at most", keys, len(hot), lastSeal, lastOpen, late, lost)
		if seen != keys*len(hot) {
			t.Errorf("%d versions were in use before, want %d: the test shows nothing of the others", seen, keys*len(hot))
		}
		w.sound(t, m)
	})
}
