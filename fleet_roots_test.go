package keyhold_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
)

func median(of []time.Duration) time.Duration {
	slices.Sort(of)
	return of[len(of)/2]
}

// moved is how long the steps of moving to another root took.
type moved struct{ open, add, activate, remove []time.Duration }

func (m *moved) all() [][]time.Duration {
	return [][]time.Duration{m.open, m.add, m.activate, m.remove}
}

// move moves the installation from one root to another, asserts what that takes of the roots, and returns the calls of
// the database that it took.
func (w *fleetWorld) move(t *testing.T, from, to string, took *moved) []string {
	t.Helper()
	timed := func(in *[]time.Duration, do func() error) {
		t.Helper()
		began := time.Now()
		must(t, do())
		*in = append(*in, time.Since(began))
	}
	counted := faultstore.New(w.store)
	open := func(file string) (m *keyhold.Manager, root *countingRoot) {
		t.Helper()
		root = &countingRoot{Wrapper: w.root(t, file)}
		timed(&took.open, func() (err error) { m, err = keyhold.New(t.Context(), counted, config(root)); return err })
		return m, root
	}
	was := w.installation(t).ActiveSlot
	m, old := open(from)
	next := &countingRoot{Wrapper: w.newRoot(t, to)}
	proofs := 0
	next.decrypt = func(pt []byte, err error) ([]byte, error) {
		if err == nil {
			proofs++
		}
		return pt, err
	}
	var info keyhold.RootInfo
	timed(&took.add, func() (err error) { info, err = m.AddRoot(t.Context(), next); return err })
	timed(&took.activate, func() error { return m.ActivateRoot(t.Context(), info.ID) })
	// It may be tried on the slot that is there, as that might be its own: before it wrapped, and after.
	if n := next.decrypts.Load(); next.encrypts.Load() != 1 || proofs != 1 || n > 3 {
		t.Errorf("the new root wrapped %d times, unwrapped %d times and was tried %d times, want 1, 1 and at most 3",
			next.encrypts.Load(), proofs, n)
	}
	unwraps := func(who string, root *countingRoot) {
		t.Helper()
		if root.encrypts.Load() != 0 || root.decrypts.Load() != 1 {
			t.Errorf("the %s root wrapped %d times and unwrapped %d times, want 0 and 1",
				who, root.encrypts.Load(), root.decrypts.Load())
		}
	}
	unwraps("old", old)
	must(t, m.Close())
	m, next = open(to)
	timed(&took.remove, func() error { return m.RemoveRoot(t.Context(), was) })
	must(t, m.Close())
	unwraps("new", next)
	return counted.Log()
}

// Moving to a new root takes the same calls of the database, and the same time, whether there are few scopes or many,
// and one call of each root. Processes that seal and open all through it are not disturbed, whichever of the roots they
// have; the old root's slot is not removed before none of them depends on it.
func TestFleetMovesToANewRootHoweverManyScopesThereAre(t *testing.T) {
	scopes, rounds := 1000, 9
	if fleetThorough() {
		scopes, rounds = 100_000, 51
	}
	fleetAlone(t, func(t *testing.T, many *fleetWorld) {
		began := time.Now()
		messages := many.fill(t, scopes, scopes/50, secrets)
		t.Logf("made %d scopes in %v", scopes, time.Since(began))
		root := firstRoot
		fleetOn(t, many.kind, func(t *testing.T, few *fleetWorld) {
			few.fill(t, 10, 1, secrets)
			var at [2]moved
			for i := range rounds {
				next := fmt.Sprint("root-", i)
				calls := few.move(t, root, next, &at[0])
				if got := many.move(t, root, next, &at[1]); !slices.Equal(got, calls) {
					t.Errorf("with %d scopes: %q; with 10: %q", scopes, got, calls)
				}
				root = next
			}
			for i, step := range []string{"New", "AddRoot", "ActivateRoot", "RemoveRoot"} {
				few, many := median(at[0].all()[i]), median(at[1].all()[i])
				t.Logf("%s: %v with 10 scopes, %v with %d", step, few, many, scopes)
				// They take turns, so that whatever else the machine does meets both. What grew with the number of
				// scopes would take hundreds of times as long.
				if many > 2*few+5*time.Millisecond {
					t.Errorf("%s takes %v with %d scopes, and %v with 10", step, many, scopes, few)
				}
			}
		})
		many.moveUnderUse(t, root, messages)
		began = time.Now()
		m, _ := many.with(t, "next")
		checked(t, m)
		t.Logf("checked %d scopes in %v", scopes, time.Since(began))
	})
}

// moveUnderUse moves from a root to one in the file "next" while 8 processes use keys.
func (w *fleetWorld) moveUnderUse(t *testing.T, from string, messages []message) {
	t.Helper()
	const half = 4
	use := fleetOrder{Do: "use", Keys: refsOf(messages, 8), Every: 50 * time.Millisecond}
	startUsing := func(root string) []*fleetProcess {
		t.Helper()
		set := fleetSettings{Run: true, fleetRoots: fleetRoots{Root: root}}
		all := w.start(t, slices.Repeat([]fleetSettings{set}, half)...)
		fleetObey(t, all, use)
		return all
	}
	restart := func(all []*fleetProcess) []*fleetProcess {
		t.Helper()
		undisturbed(t, all)
		for _, p := range all {
			p.end(t)
		}
		return startUsing("next")
	}
	first, second := startUsing(from), startUsing(from)
	was := w.installation(t).ActiveSlot
	m, _ := w.with(t, from)
	info, err := m.AddRoot(t.Context(), w.newRoot(t, "next"))
	must(t, err)
	fleetPass(200 * time.Millisecond)
	must(t, m.ActivateRoot(t.Context(), info.ID))
	fleetPass(200 * time.Millisecond)
	must(t, m.Close())

	first = restart(first)
	m, _ = w.with(t, "next")
	inUse, ok := errors.AsType[*keyhold.InUseRootError](m.RemoveRoot(t.Context(), was))
	if !ok || len(inUse.Instances) != half {
		t.Errorf("%v; want an error that names the %d instances which have the old root", inUse, half)
	}
	second = restart(second)
	must(t, m.RemoveRoot(t.Context(), was))
	fleetPass(200 * time.Millisecond)
	undisturbed(t, first)
	undisturbed(t, second)

	w.write(t, "messages", messages)
	fresh := w.start(t, fleetSettings{fleetRoots: fleetRoots{Root: "next"}})
	if a := fleetObey(t, fresh, openOrder("messages"))[0]; a.Count != len(messages) {
		t.Errorf("a fresh process opened %d messages of %d", a.Count, len(messages))
	}
	_, err = keyhold.New(t.Context(), w.store, config(w.root(t, from)))
	fails(t, err, keyhold.ErrRoot)
}

// However many processes are started at once with a new root beside the old one, the new one gets one slot, and becomes
// the active one once. The same holds for those that add and activate a root at once.
func TestFleetMovesToANewRootOnce(t *testing.T) {
	const processes = 16
	rounds := min(repeats(t), 30)
	fleetAlone(t, func(t *testing.T, w *fleetWorld) {
		messages := w.fill(t, 3, 1, secrets, session)
		root := firstRoot
		for i := range rounds {
			was := w.installation(t)
			next := fmt.Sprint("root-", i)
			w.newRoot(t, next)
			set := fleetSettings{fleetRoots: fleetRoots{Root: next, OldRoots: []string{root}, Hold: true}}
			all := w.start(t, slices.Repeat([]fleetSettings{set}, processes)...)
			fleetObey(t, all, fleetOrder{}) // to begin
			now := w.oneMore(t, was, 1)
			for i, a := range fleetObey(t, all, fleetOrder{Do: "own"}) {
				if a.ID != now.ActiveSlot {
					t.Errorf("process %d has slot %s, and %s is the active one", i, a.ID, now.ActiveSlot)
				}
			}

			root, was = next+"-moved", now
			w.newRoot(t, root)
			moved := 0
			for _, a := range fleetObey(t, all, fleetOrder{Do: "move", fleetRootsOrder: fleetRootsOrder{Root: root}}) {
				if a.Old == "" {
					moved++
				}
			}
			w.oneMore(t, was, 2)
			if moved == 0 {
				t.Error("each of the processes was told that another was first")
			}
			t.Logf("%d of %d processes were told that they have moved, the others that theirs is an old root by now",
				moved, processes)
			for _, p := range all {
				p.end(t)
			}
		}
		m, _ := w.with(t, root)
		for i := range messages {
			must(t, messages[i].opens(t.Context(), m))
		}
		w.sound(t, m)
	})
}

// oneMore asserts that there is one slot more than there was, that it is the active one, and that so many changes made
// it that.
func (w *fleetWorld) oneMore(t *testing.T, was store.Installation, changes uint64) store.Installation {
	t.Helper()
	now, n := w.installation(t), len(was.Slots)
	if len(now.Slots) != n+1 || now.Seq != was.Seq+changes || now.Slots[n].ID != now.ActiveSlot {
		t.Errorf("%d slots and %d changes more, want 1 and %d", len(now.Slots)-n, now.Seq-was.Seq, changes)
	}
	return now
}
