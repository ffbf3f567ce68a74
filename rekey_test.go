package keyhold_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

func rekeyed(t testing.TB, m *keyhold.Manager) keyhold.Rekeyed {
	t.Helper()
	done, err := m.Rekey(t.Context(), keyhold.NoEscrow)
	must(t, err)
	return done
}

// onlyKey asserts that the installation has one installation key, and returns the slots that have it.
func onlyKey(t testing.TB, m *keyhold.Manager) (slots []keyhold.RootInfo) {
	t.Helper()
	info, err := m.Installation(t.Context())
	must(t, err)
	if info.Rekeyed {
		t.Error("the installation is still being rekeyed")
	}
	kids := map[key.KID]bool{}
	for _, r := range info.Roots {
		if r.State != key.Destroyed {
			slots = append(slots, r)
			kids[r.InstallationKey] = true
		}
	}
	if len(kids) != 1 {
		t.Errorf("the slots are of %d installation keys", len(kids))
	}
	return slots
}

// A rekey moves every key of every scope, in whatever state, and what was sealed before opens, by processes that run
// and by those that start.
func TestRekeyMovesEverything(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		const scopes = 70 // more than one batch
		must(t, newManagerWith(t, w.store, w.root, func(c *keyhold.Config) {
			c.Purposes, c.RawPurposes, c.IndexPurposes = nil, nil, nil
		}).CreateScope(ctx, "no data keys"))
		cts := map[key.Scope][]byte{tenant: sealed(t, w.Manager, ref, "x", keyhold.AAD{})}
		for i := range scopes {
			scope := key.Scope(fmt.Sprintf("s%02d", i))
			must(t, w.CreateScope(ctx, scope))
			cts[scope] = sealed(t, w.Manager, key.Ref{Scope: scope, Purpose: secrets}, "x", keyhold.AAD{})
		}
		_, err := w.ImportScope(ctx, oldTenant, oldKeys())
		must(t, err)
		for range 3 {
			for _, r := range []key.Ref{ref, {Scope: tenant}} {
				_, err := w.Rotate(ctx, r)
				must(t, err)
			}
		}
		_, err = w.Rewrap(ctx, tenant)
		must(t, err)
		keys, err := w.Keys(ctx, tenant)
		must(t, err)
		must(t, w.Disable(ctx, keys[0].Versions[0].ID))
		must(t, w.Destroy(ctx, keys[0].Versions[0].ID))
		must(t, w.Disable(ctx, keys[0].Versions[1].ID))

		pin := w.Pin()
		root := &countingRoot{Wrapper: w.root}
		rekeyer := newManager(t, w.store, root)
		done := rekeyed(t, rekeyer)
		if want := 1 + 5*(scopes+1) + 3; done.Keys != want || done.Pin == pin || done.Pin != rekeyer.Pin() {
			t.Errorf("%+v; want %d keys, and another pin than %s", done, want, pin)
		}
		if e, d := root.encrypts.Load(), root.decrypts.Load(); e != 1 || d > 3 {
			t.Errorf("the root: %d encryptions and %d decryptions; want one, and one for New and two", e, d)
		}
		fresh := newManager(t, w.store, w.root)
		for scope, ct := range cts {
			r := key.Ref{Scope: scope, Purpose: secrets}
			for _, m := range []*keyhold.Manager{w.Manager, rekeyer, fresh} {
				opens(t, m, r, ct, keyhold.AAD{}, "x")
			}
		}
		if got := onlyKey(t, fresh); len(got) != 1 || !got[0].Active || !got[0].Own {
			t.Errorf("slots: %+v", got)
		}
		checked(t, fresh)
		again := rekeyed(t, fresh)
		if again.Keys != done.Keys || again.Pin == done.Pin {
			t.Errorf("once more: %+v, after %+v", again, done)
		}
		opens(t, newManager(t, w.store, w.root), ref, cts[tenant], keyhold.AAD{}, "x")
	})
}

// newManagerWith is newManager with another configuration.
func newManagerWith(t testing.TB, s store.Store, root wrapping.Wrapper, with func(*keyhold.Config)) *keyhold.Manager {
	t.Helper()
	cfg := config(root)
	with(&cfg)
	m, err := keyhold.New(t.Context(), s, cfg)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m
}

// Processes that have not heard of the rekey create, rotate, rewrap, rename and delete while it goes on, and those that
// have do, too. Whatever they write, it ends, and nothing is under the old key.
func TestRekeyWhileOthersWork(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		for i := range 55 {
			must(t, w.CreateScope(ctx, key.Scope(fmt.Sprintf("s%02d", i))))
		}
		late := newManager(t, w.store, w.root) // it reads nothing before
		faulty := faultstore.New(w.store)
		rekeyer := newManager(t, faulty, w.root)
		n := 0
		var errs error
		faulty.Hook(func(call string) {
			if call != "Rekey" && call != "NotUnder" && call != "ChangeRoots" || n > 20 {
				return
			}
			n++
			for name, m := range map[string]*keyhold.Manager{"late": late, "hot": w.Manager} {
				scope := key.Scope(fmt.Sprintf("%s%d", name, n))
				r := key.Ref{Scope: scope, Purpose: secrets}
				_, err1 := m.Rotate(ctx, ref)
				_, err2 := m.Rotate(ctx, key.Ref{Scope: tenant})
				_, err3 := m.Rewrap(ctx, tenant)
				_, err5 := m.Seal(ctx, r, nil, keyhold.AAD{})
				errs = errors.Join(errs, err1, err2, err3, m.CreateScope(ctx, scope))
				_, err4 := m.Shred(ctx, key.Scope(fmt.Sprintf("s%02d", n)))
				errs = errors.Join(errs, ignored(err4, keyhold.ErrNotFound), ignored(err5, keyhold.ErrNotFound))
			}
		})
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		rekeyed(t, rekeyer)
		if errs != nil {
			t.Errorf("others: %v", errs)
		}
		onlyKey(t, w.Manager)
		for _, m := range []*keyhold.Manager{w.Manager, late, newManager(t, w.store, w.root)} {
			opens(t, m, ref, ct, keyhold.AAD{}, "x")
		}
	})
}

func ignored(err, which error) error {
	if errors.Is(err, which) {
		return nil
	}
	return err
}

// Of any number of processes that begin to rekey at once one makes the new key; the others say that what they wrote to
// their recovery files opens nothing.
func TestRekeyBegunAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		const processes = 4
		var wg, here sync.WaitGroup
		here.Add(processes)
		var mu sync.Mutex
		good := 0
		for range processes {
			m := newManager(t, w.store, w.root)
			wg.Go(func() {
				var line []byte
				_, err := m.Rekey(t.Context(), func(l []byte) (string, error) {
					line = bytes.Clone(l)
					here.Done()
					here.Wait()
					return "a file", nil
				})
				_, recovery := keyhold.VerifyRecovery(t.Context(), w.store, config(nil), line, "")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					good++
					if recovery != nil {
						t.Errorf("the recovery line: %v", recovery)
					}
					return
				}
				if fails(t, recovery, keyhold.ErrRecovery); !strings.Contains(err.Error(), "destroy") {
					t.Errorf("%v; want it to say what to do with the file", err)
				}
			})
		}
		wg.Wait()
		if onlyKey(t, w.Manager); good != 1 {
			t.Errorf("%d did it", good)
		}
		if list, err := w.Escrows(t.Context()); err != nil || len(list) != 1 || !list[0].Current {
			t.Errorf("%+v, %v; want one file", list, err)
		}
	})
}

// Any number of processes may go on with a rekey at once; all end it.
func TestRekeyGoneOnWithAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		for i := range 60 {
			must(t, w.CreateScope(t.Context(), key.Scope(fmt.Sprintf("s%02d", i))))
		}
		faulty := faultstore.New(w.store)
		faulty.Hook(func(call string) {
			if call == "Rekey" {
				faulty.Fail(0, faultstore.Before)
			}
		})
		_, err := newManager(t, faulty, w.root).Rekey(t.Context(), keyhold.NoEscrow)
		fails(t, err, keyhold.ErrUnavailable)
		const processes = 4
		var wg, here sync.WaitGroup
		here.Add(processes)
		for range processes {
			faulty := faultstore.New(w.store)
			m := newManager(t, faulty, w.root)
			var once sync.Once
			faulty.Hook(func(call string) {
				if call == "NotUnder" {
					once.Do(func() { here.Done(); here.Wait() })
				}
			})
			wg.Go(func() { rekeyed(t, m) })
		}
		wg.Wait()
		onlyKey(t, w.Manager)
	})
}

// A scope that is not as keyhold stored it is left out, and named, and so is one whose name the application changed and
// nobody confirmed; the others are moved. When they are right again, the next call ends it.
func TestRekeyLeavesOutWhatIsBroken(t *testing.T) {
	ctx := t.Context()
	s, root := memstore.New(), newRoot(t)
	m := newManager(t, s, root)
	for _, scope := range []key.Scope{"a", "broken", "c", "renamed"} {
		must(t, m.CreateScope(ctx, scope))
	}
	edit := func() {
		s.Edit(func(d *memstore.Data) { d.Key(key.Ref{Scope: "broken"}).Versions[0].Blob[40] ^= 1 })
	}
	edit()
	must(t, s.RenameScope(ctx, "renamed", "anew"))
	calls := 0
	count := func([]byte) (string, error) { calls++; return "a file", nil }
	for range 2 {
		_, err := m.Rekey(ctx, count)
		integrity(t, err)
		for _, name := range []string{`"broken"`, `"anew"`} {
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%v; want it to name %s", err, name)
			}
		}
	}
	if scopes, _, err := s.NotUnder(ctx, kidOf(t, m), "", 100); err != nil || len(scopes) != 2 {
		t.Errorf("not moved: %v, %v; want the two", scopes, err)
	}
	for _, scope := range []key.Scope{"a", "c"} {
		sealed(t, newManager(t, s, root), key.Ref{Scope: scope, Purpose: secrets}, "x", keyhold.AAD{})
	}
	edit()
	must(t, m.RenameScope(ctx, "renamed", "anew"))
	done, err := m.Rekey(ctx, count)
	if err != nil || done.Keys < 4 || calls != 1 {
		t.Errorf("%+v, %v, and %d recovery files; want the rest moved, and one file", done, err, calls)
	}
	onlyKey(t, m)
	checked(t, newManager(t, s, root))
}

// kidOf is the newest installation key.
func kidOf(t testing.TB, m *keyhold.Manager) (kid [16]byte) {
	t.Helper()
	info, err := m.Installation(t.Context())
	must(t, err)
	return info.Roots[len(info.Roots)-1].InstallationKey
}

// Every root that has a slot gets the new key, so that each has to be there, or its slot removed first; m's own has to
// be the active one. While it lasts, roots are added and taken over to, and none is activated or removed.
func TestRekeyAndTheRoots(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		second, third, fourth := newRoot(t), newRoot(t), newRoot(t)
		slot, err := w.AddRoot(ctx, second)
		must(t, err)
		never := func([]byte) (string, error) {
			t.Error("a recovery file was to be written of a key that will not be")
			return "", nil
		}
		_, err = w.Rekey(ctx, never)
		fails(t, err, keyhold.ErrState)
		if !strings.Contains(err.Error(), string(slot.ID)) {
			t.Errorf("%v; want it to name the slot", err)
		}
		_, err = newManagerWith(t, w.store, w.root, func(c *keyhold.Config) {
			c.OldRoots = []wrapping.Wrapper{&trialRoot{Wrapper: second, first: at("Decrypt", denies)}}
		}).Rekey(ctx, never)
		fails(t, err, keyhold.ErrState)
		slotsAre(t, w.Manager, "active*/retired")

		faulty := faultstore.New(w.store)
		rekeyer := newManagerWith(t, faulty, w.root, func(c *keyhold.Config) {
			c.OldRoots = []wrapping.Wrapper{third, second}
		})
		faulty.Hook(func(call string) {
			if call == "Rekey" {
				faulty.Fail(0, faultstore.Before)
			}
		})
		_, err = rekeyer.Rekey(ctx, keyhold.NoEscrow)
		fails(t, err, keyhold.ErrUnavailable)
		faulty.Hook(nil)
		slotsAre(t, w.Manager, "active*/retired/active/retired")
		fails(t, w.ActivateRoot(ctx, slot.ID), keyhold.ErrState)
		fails(t, w.RemoveRoot(ctx, slot.ID), keyhold.ErrState)
		for range 2 {
			_, err := w.AddRoot(ctx, third)
			must(t, err)
			slotsAre(t, w.Manager, "active*/retired/active/retired/retired/retired")
		}
		over := config(fourth)
		over.OldRoots = []wrapping.Wrapper{second}
		_, err = keyhold.New(ctx, w.store, over)
		fails(t, err, keyhold.ErrOldRoot)
		for range 2 {
			m := newManagerWith(t, w.store, fourth, func(c *keyhold.Config) { c.OldRoots = []wrapping.Wrapper{w.root} })
			slotsAre(t, m, "retired/retired/retired/retired/retired/retired/active*/active")
			sealed(t, m, ref, "x", keyhold.AAD{})
		}
		_, err = rekeyer.Rekey(ctx, keyhold.NoEscrow)
		fails(t, err, keyhold.ErrOldRoot) // it is the fourth's by now
		m := newManager(t, w.store, fourth)
		rekeyed(t, m)
		slotsAre(t, m, "destroyed/destroyed/retired/retired/destroyed/retired/destroyed/active*")
		for _, root := range []wrapping.Wrapper{w.root, second, third, fourth} {
			sealed(t, newManager(t, w.store, root), ref, "x", keyhold.AAD{})
		}
	})
}

// The application's transaction made a scope under the old key, and is committed when the rekey believes to be at its
// end: that moves it, too.
func TestRekeyWaitsForATransaction(t *testing.T) {
	ctx := t.Context()
	kind := stores["postgres"]
	s, root := kind.open(t), newRoot(t)
	m := newManager(t, s, root)
	must(t, m.CreateScope(ctx, tenant))
	tx, commit, _ := kind.begin(t, s)
	must(t, m.CreateScopeTx(ctx, tx, "late"))
	faulty := faultstore.New(s)
	rekeyer := newManager(t, faulty, root)
	atTheEnd := make(chan struct{})
	n := 0
	faulty.Hook(func(call string) {
		if call == "ChangeRoots" {
			if n++; n == 2 {
				close(atTheEnd)
			}
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := rekeyer.Rekey(ctx, keyhold.NoEscrow)
		done <- err
	}()
	<-atTheEnd
	must(t, commit())
	must(t, <-done)
	onlyKey(t, rekeyer)
	for _, m := range []*keyhold.Manager{m, newManager(t, s, root)} {
		sealed(t, m, key.Ref{Scope: "late", Purpose: secrets}, "x", keyhold.AAD{})
	}
	checked(t, rekeyer)
}
