package keyhold_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
)

// rootsTrial is a change of the roots that a process is killed in: from one root, which is the active one, to another.
type rootsTrial struct {
	*testing.T
	w        *fleetWorld
	messages []message
	from, to string
	was      store.Installation
}

// openable opens the installation by each of the two roots, and asserts that by one at least everything opens. It
// returns the manager that has the active one.
func (r *rootsTrial) openable() *keyhold.Manager {
	r.Helper()
	for {
		before := r.w.installation(r.T).Seq
		ways, active := r.ways()
		// The server may still commit what a process had asked for that was killed.
		if r.w.installation(r.T).Seq != before {
			continue
		}
		if ways == 0 || active == nil {
			r.Fatalf("%d of 2 roots open the installation; one of them is the active one: %v", ways, active != nil)
		}
		checked(r, active)
		return active
	}
}

// ways is by how many of the two roots the installation opens, and the manager that has the active one.
func (r *rootsTrial) ways() (n int, active *keyhold.Manager) {
	r.Helper()
	for _, file := range []string{r.from, r.to} {
		m, err := keyhold.New(r.Context(), r.w.store, config(r.w.root(r.T, file)))
		if errors.Is(err, keyhold.ErrRoot) {
			continue
		}
		must(r, err)
		r.Cleanup(func() { must(r, m.Close()) })
		n++
		for i := range r.messages {
			if err := r.messages[i].opens(r.Context(), m); err != nil {
				r.Errorf("with %s: %v", file, err)
			}
		}
		info, err := m.Installation(r.Context())
		must(r, err)
		for _, root := range info.Roots {
			if root.Active && root.Own {
				active = m
			}
		}
	}
	return n, active
}

// slot is the slot that the root in a file has, removed or not; it has one at most.
func (r *rootsTrial) slot(file string) (of store.Slot) {
	r.Helper()
	id, err := r.w.root(r.T, file).KeyId(r.Context())
	must(r, err)
	for _, s := range r.w.installation(r.T).Slots {
		if s.WrapperKeyID == id {
			if of.ID != "" {
				r.Errorf("%s has two slots", file)
			}
			of = s
		}
	}
	return of
}

// A change of the roots whose process is killed before any of its calls of the database has been made or not: at every
// moment everything opens by a root that is configured, and doing it again ends it.
func TestFleetKilledInAChangeOfRootsLosesNothing(t *testing.T) {
	add := func(r *rootsTrial) {
		m, _ := r.w.with(r.T, r.from)
		info, err := m.AddRoot(r.Context(), r.w.root(r.T, r.to))
		must(r, err)
		if info.ID != r.slot(r.to).ID {
			r.Errorf("slot %s, and it has %s", info.ID, r.slot(r.to).ID)
		}
	}
	activate := func(r *rootsTrial) {
		id := r.slot(r.to).ID
		m, _ := r.w.with(r.T, r.from)
		// Its own root is not the active one any more, if it was done.
		err := m.ActivateRoot(r.Context(), id)
		if done := r.w.installation(r.T).ActiveSlot == id; !done || err != nil && !errors.Is(err, keyhold.ErrOldRoot) {
			r.Errorf("activated: %v, %v", done, err)
		}
	}
	remove := func(r *rootsTrial) {
		m, _ := r.w.with(r.T, r.to)
		must(r, m.RemoveRoot(r.Context(), r.slot(r.from).ID))
	}
	begin := func(r *rootsTrial, n int, file string, o fleetRootsOrder, do string) *fleetProcess {
		p := r.w.start(r.T, fleetSettings{fleetRoots: fleetRoots{Root: file, fleetDeath: mortal}})[0]
		o.Die = n
		p.say(r.T, fleetOrder{Do: do, fleetRootsOrder: o})
		return p
	}
	takesOver := func(r *rootsTrial, d fleetDeath) fleetSettings {
		return fleetSettings{fleetRoots: fleetRoots{Root: r.to, OldRoots: []string{r.from}, fleetDeath: d}}
	}
	for _, op := range []struct {
		name    string
		prepare []func(*rootsTrial)
		begin   func(r *rootsTrial, n int) *fleetProcess
		again   func(*rootsTrial)
		ends    [2]key.State // of the two slots
	}{
		{"add", nil, func(r *rootsTrial, n int) *fleetProcess {
			return begin(r, n, r.from, fleetRootsOrder{Root: r.to}, "add")
		}, add, [2]key.State{key.Active, key.Retired}},
		{"activate", []func(*rootsTrial){add}, func(r *rootsTrial, n int) *fleetProcess {
			return begin(r, n, r.from, fleetRootsOrder{ID: r.slot(r.to).ID}, "activate")
		}, activate, [2]key.State{key.Retired, key.Active}},
		{"remove", []func(*rootsTrial){add, activate}, func(r *rootsTrial, n int) *fleetProcess {
			return begin(r, n, r.to, fleetRootsOrder{ID: r.slot(r.from).ID}, "remove")
		}, remove, [2]key.State{key.Destroyed, key.Active}},
		{"take over", nil, func(r *rootsTrial, n int) *fleetProcess {
			return r.w.launch(r.T, takesOver(r, fleetDeath{Die: n}))
		}, func(r *rootsTrial) {
			r.w.start(r.T, takesOver(r, fleetDeath{}))[0].end(r.T)
		}, [2]key.State{key.Retired, key.Active}},
	} {
		t.Run(op.name, func(t *testing.T) {
			fleetEach(t, func(t *testing.T, w *fleetWorld) {
				r := &rootsTrial{T: t, w: w, messages: w.fill(t, 3, 1, secrets, session), from: firstRoot}
				done := map[bool]int{}
				for n := 1; ; n++ {
					r.to = fmt.Sprint("root-", n)
					w.newRoot(t, r.to)
					for _, prepare := range op.prepare {
						r.was = w.installation(t)
						prepare(r)
					}
					r.was = w.installation(t)
					_, died := op.begin(r, n).died(t)
					done[w.installation(t).Seq == r.was.Seq+1]++
					r.openable()
					op.again(r)
					if now := w.installation(t); now.Seq != r.was.Seq+1 {
						t.Errorf("killed before call %d: %d changes in all, want 1", n, now.Seq-r.was.Seq)
					}
					for i, file := range []string{r.from, r.to} {
						if got := r.slot(file).State; got != op.ends[i] {
							t.Errorf("killed before call %d: slot of %s is %v, want %v", n, file, got, op.ends[i])
						}
					}
					w.sound(t, r.openable())
					if op.ends[1] == key.Active {
						r.from = r.to
					}
					if !died {
						break
					}
				}
				t.Logf("killed at the call: %d times it was not done yet, %d times it was", done[false], done[true])
				if done[false] < 2 || done[true] < 2 {
					t.Error("it was not killed on both sides of the change")
				}
			})
		})
	}
}

// launch starts a process, and does not wait until it is ready.
func (w *fleetWorld) launch(t *testing.T, set fleetSettings) *fleetProcess {
	t.Helper()
	set.Hold = true
	p := w.start(t, set)[0]
	p.say(t, fleetOrder{})
	return p
}

// roundAbout changes the roots all the time: from one of two to the other and back, by each of the ways that there are.
func (c *fleetMember) roundAbout(ctx context.Context, files [2]string) error {
	roots, err := openRoots(files[0], files[1])
	if err != nil {
		return err
	}
	for i := 0; ctx.Err() == nil; i++ {
		cfg := config(roots[i%2])
		cfg.OldRoots = roots[1-i%2 : 2-i%2]
		if err := c.round(ctx, cfg, i%4 < 2); err != nil {
			return ignoreEnd(ctx, err)
		}
	}
	return nil
}

// round moves from the root of cfg, if that is the active one, to the old one of cfg, and removes its slot.
func (c *fleetMember) round(ctx context.Context, cfg keyhold.Config, takesOver bool) error {
	m, err := keyhold.New(ctx, c.s, cfg)
	if errors.Is(err, keyhold.ErrRoot) && !errors.Is(err, keyhold.ErrRootUnavailable) {
		return nil // its slot was removed, and the other root is the active one
	}
	if err != nil {
		return err
	}
	defer m.Close()
	info, err := m.Installation(ctx)
	if err != nil {
		return err
	}
	var own keyhold.RootInfo
	for _, root := range info.Roots {
		if root.Own {
			own = root
		}
	}
	if !own.Active {
		return nil
	}
	other := cfg
	other.Root, other.OldRoots = cfg.OldRoots[0], nil
	id, err := other.Root.KeyId(ctx)
	if err != nil {
		return err
	}
	// One whose slot was removed comes back by AddRoot alone.
	takesOver = takesOver && !slices.ContainsFunc(info.Roots, func(r keyhold.RootInfo) bool { return r.KeyID == id })
	if takesOver {
		other.OldRoots = append(other.OldRoots, cfg.Root)
	} else {
		added, err := m.AddRoot(ctx, other.Root)
		if err != nil {
			return err
		}
		if err := m.ActivateRoot(ctx, added.ID); err != nil {
			return err
		}
	}
	next, err := keyhold.New(ctx, c.s, other)
	if err != nil {
		return err
	}
	defer next.Close()
	if takesOver {
		// It may have had a slot that is not the active one, which a process that was killed has left.
		in, err := next.Installation(ctx)
		if err != nil || !slices.ContainsFunc(in.Roots, func(r keyhold.RootInfo) bool { return r.Own && r.Active }) {
			return err
		}
	}
	if err := next.RemoveRoot(ctx, own.ID); err != nil && !errors.Is(err, keyhold.ErrOldRoot) {
		return err
	}
	return nil
}

// Processes that change the roots all the time are killed at any moment, inside a statement also. Whatever was under
// way, everything opens by one of the roots, and the next process, which has both, goes on.
func TestFleetKilledAtAnyMomentOfChangesOfRootsLosesNothing(t *testing.T) {
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		r := &rootsTrial{T: t, w: w, messages: w.fill(t, 3, 1, secrets, session), from: firstRoot, to: "other.key"}
		w.newRoot(t, r.to)
		kills := 2 * repeats(t)
		for range kills {
			from, to := r.from, r.to
			if !w.isActive(t, from) {
				from, to = to, from
			}
			p := w.start(t, fleetSettings{fleetRoots: fleetRoots{Root: from, OldRoots: []string{to}}})[0]
			before := w.installation(t).Seq
			p.say(t, fleetOrder{Do: "round about", fleetRootsOrder: fleetRootsOrder{Root: r.from, File: r.to}})
			p.answer(t)
			fleetUntil(t, "the roots change", func() bool { return w.installation(t).Seq > before+2 })
			fleetPass(time.Duration(rand.Int64N(int64(30 * time.Millisecond))))
			p.kill(t)
			w.sound(t, r.openable())
		}
		t.Logf("killed %d times in %d changes", kills, w.installation(t).Seq)
	})
}

// isActive says whether the root in a file is the active one.
func (w *fleetWorld) isActive(t *testing.T, file string) bool {
	t.Helper()
	root, err := localroot.Open(filepath.Join(w.dir, file))
	must(t, err)
	id, err := root.KeyId(t.Context())
	must(t, err)
	in := w.installation(t)
	return slices.ContainsFunc(in.Slots, func(s store.Slot) bool { return s.ID == in.ActiveSlot && s.WrapperKeyID == id })
}

// stored is everything that is stored of keys and roots.
func (w *fleetWorld) stored(t *testing.T) (in store.Installation, families []store.Family) {
	t.Helper()
	scopes, err := w.store.Scopes(t.Context(), "", 1000)
	must(t, err)
	families, _, err = w.store.Families(t.Context(), scopes)
	must(t, err)
	for i := range families {
		families[i].Now = 0
	}
	return w.installation(t), families
}

// Cleanup by an instance that was started with an old root deleted all keys that were newer than that, and rotations by
// such an instance went on under it, so that others could not read what it made. A deployment that is rolled back is
// enough for that, and one that is started again and again. Here it changes nothing, and seals and opens.
func TestFleetWithAnOldRootChangesNothing(t *testing.T) {
	restarts := repeats(t)
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		m := w.open(t, w.store)
		messages := staleKeys(t, m)
		w.newRoot(t, "new.key")
		old := fleetSettings{fleetRoots: fleetRoots{Cleanup: true, OldRoots: []string{"new.key"}}}
		// Those have not heard that their root has become an old one, when they first sweep.
		unaware := w.start(t, old, old)
		next := w.start(t, fleetSettings{fleetRoots: fleetRoots{Root: "new.key", OldRoots: []string{firstRoot}}})
		var wantIn store.Installation
		var want []store.Family
		unchanged := func(who string) {
			t.Helper()
			in, got := w.stored(t)
			if diff := cmp.Diff(wantIn, in); diff != "" {
				t.Errorf("%s changed the roots: %s", who, diff)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s changed keys: %s", who, diff)
			}
		}
		idle := func(who string, all []*fleetProcess) {
			t.Helper()
			for _, a := range fleetObey(t, all, fleetOrder{Do: "sweep"}) {
				// What is due is left to others, and may be said to be.
				if a.Swept.Rotated+a.Swept.Rewrapped+a.Swept.Disabled+a.Swept.Destroyed > 0 {
					t.Errorf("%s swept: %+v", who, a.Swept)
				}
			}
			unchanged(who)
		}
		wantIn, want = w.stored(t)
		idle("one whose root became an old one, with nothing to rotate", unaware[:1])
		w.exec(t, "update kms_data_key set rotate_at = 1000000000")
		wantIn, want = w.stored(t)
		idle("one whose root became an old one", unaware[1:])
		w.write(t, "messages", messages)
		for range restarts {
			running := old
			running.Run = true
			all := w.start(t, old, running)
			fleetObey(t, all, fleetOrder{Do: "use", Keys: []key.Ref{ref}, Every: 10 * time.Millisecond})
			idle("one that was started with an old root", all)
			fleetObey(t, all, fleetOrder{Do: "change", fleetRootsOrder: fleetRootsOrder{Root: "new.key"}})
			fleetObey(t, append(all, next...), openOrder("messages"))
			fleetPass(50 * time.Millisecond)
			undisturbed(t, all)
			for _, p := range all {
				p.end(t)
			}
			unchanged("one that was started again")
		}
		fleetObey(t, unaware, fleetOrder{Do: "change", fleetRootsOrder: fleetRootsOrder{Root: "new.key"}})
		unchanged("one whose root became an old one")

		cleaning := w.start(t, fleetSettings{fleetRoots: fleetRoots{Root: "new.key", Cleanup: true}})
		if a := fleetObey(t, cleaning, fleetOrder{Do: "sweep"})[0]; a.Swept.Rotated == 0 || a.Swept.Disabled == 0 {
			t.Errorf("the one with the active root swept %+v: there was nothing to do", a.Swept)
		}
		m, _ = w.with(t, "new.key")
		w.sound(t, m)
	})
}

// staleKeys makes a scope in which there is something to clean up, and seals a message there.
func staleKeys(t *testing.T, m *keyhold.Manager) []message {
	t.Helper()
	must(t, m.CreateScope(t.Context(), tenant))
	_, err := m.Rotate(t.Context(), ref)
	must(t, err)
	msg := message{Ref: ref, Text: "before", CT: sealed(t, m, ref, "before", keyhold.AAD{})}
	must(t, m.Close())
	return []message{msg}
}
