package keyhold

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
)

func rekeyed(t *testing.T, m *Manager) Rekeyed {
	t.Helper()
	done, err := m.Rekey(t.Context(), NoEscrow)
	check(t, err)
	return done
}

// A process whose keys are hot goes on sealing and opening while another makes a new installation key, and moves
// everything under it, also where it learns of that by another key before it asks whether these have changed.
func TestFollowHotKeysGoOnThroughARekey(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		check(t, w.other.CreateScope(t.Context(), "cold"))
		ct := sealing(t, w.Manager, inner, "x")
		rekeyed(t, w.other)
		_, err := w.Keys(t.Context(), "cold")
		check(t, err)
		for range 12 {
			reads(t, w.Manager, sealing(t, w.Manager, inner, "y"), "y")
			reads(t, w.Manager, ct, "x")
			pass(time.Second)
		}
		clean(t, w.store, w.root)
	})
}

// Of a key that is kept, what was not opened before opens, too.
func TestFollowHotKeysOfWhichNotAllWasOpened(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		check(t, w.other.CreateScope(t.Context(), "cold"))
		ct := sealing(t, w.other, inner, "x")
		for _, r := range []Ref{{Scope: inner.Scope}, inner} {
			_, err := w.other.Rotate(t.Context(), r)
			check(t, err)
		}
		m := openedBy(t, w.store, w.root, nil)
		sealing(t, m, inner, "y") // with the head, and by the root key's
		rekeyed(t, w.other)
		_, err := m.Keys(t.Context(), "cold")
		check(t, err)
		reads(t, m, ct, "x")
	})
}

// So does the process that does it.
func TestFollowHotKeysOfTheRekeyerGoOn(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ct := sealing(t, w.Manager, inner, "x")
		rekeyed(t, w.Manager)
		reads(t, w.Manager, sealing(t, w.Manager, inner, "y"), "y")
		reads(t, w.Manager, ct, "x")
		clean(t, w.store, w.root)
	})
}

// Hot keys last through an outage of the database that began right after the rekey, as through any.
func TestFollowHotKeysLastWithoutTheDatabase(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		check(t, w.other.CreateScope(t.Context(), "cold"))
		ct := sealing(t, w.Manager, inner, "x")
		rekeyed(t, w.other)
		_, err := w.Keys(t.Context(), "cold")
		check(t, err)
		w.calls.Away(true)
		for range 10 {
			pass(time.Minute)
			reads(t, w.Manager, sealing(t, w.Manager, inner, "y"), "y")
			reads(t, w.Manager, ct, "x")
		}
		w.calls.Away(false)
		clean(t, w.store, w.root)
	})
}

// Whatever a process reads first of a new installation key, and at whatever moment of the rekey, it opens that with one
// call to its root, and what it reads.
func TestFollowOneCallToTheRootForANewInstallationKey(t *testing.T) {
	for name, what := range map[string]func(t *testing.T, w *two, m *Manager) error{
		"open": func(t *testing.T, w *two, m *Manager) error {
			_, err := m.Open(t.Context(), inner, sealing(t, w.other, inner, "x"), AAD{})
			return err
		},
		"seal": func(t *testing.T, _ *two, m *Manager) error {
			_, err := m.Seal(t.Context(), inner, nil, AAD{})
			return err
		},
		"keys": func(t *testing.T, _ *two, m *Manager) error {
			_, err := m.Keys(t.Context(), inner.Scope)
			return err
		},
		"rotate": func(t *testing.T, _ *two, m *Manager) error { _, err := m.Rotate(t.Context(), inner); return err },
		"create": func(t *testing.T, _ *two, m *Manager) error { return m.CreateScope(t.Context(), "new") },
		"rename": func(t *testing.T, w *two, m *Manager) error {
			check(t, w.store.RenameScope(t.Context(), inner.Scope, "renamed"))
			err := m.RenameScope(t.Context(), inner.Scope, "renamed")
			check(t, w.store.RenameScope(t.Context(), "renamed", inner.Scope))
			return errors.Join(err, m.RenameScope(t.Context(), "renamed", inner.Scope))
		},
		"inside a transaction": func(t *testing.T, w *two, m *Manager) error {
			tx := w.store.Begin()
			defer func() { check(t, tx.Commit()) }()
			_, err := m.SealTx(t.Context(), w.store.InTx(tx), inner, nil, AAD{})
			return errors.Join(err, m.CreateScopeTx(t.Context(), w.store.InTx(tx), "inside"))
		},
	} {
		for _, strict := range []bool{false, true} {
			for stop, until := range map[string]string{"begun": "Rekey", "moved": "ChangeRoots", "over": ""} {
				t.Run(fmt.Sprintf("%s/strict %v/%s", name, strict, stop), func(t *testing.T) {
					inTwo(t, func(t *testing.T, w *two) {
						root := &stubRoot{Wrapper: w.root}
						m := openedBy(t, w.store, root, func(c *Config) { c.Strict = strict })
						if until == "" {
							rekeyed(t, w.other)
						} else {
							stopped(t, w.store, w.root, until, map[string]int{"Rekey": 0, "ChangeRoots": 1}[until])
						}
						check(t, what(t, w, m))
						check(t, usable(t, m))
						calls := root.called()
						if len(calls) > 2 || until == "" && name != "create" && len(calls) != 2 {
							t.Errorf("the root was called: %v; want it once for each key", calls)
						}
						if until != "" {
							rekeyed(t, w.other)
						}
						check(t, usable(t, m))
						if calls := root.called(); len(calls) != 2 {
							t.Errorf("afterwards, the root was called: %v; want it once for each key", calls)
						}
						clean(t, w.store, w.root)
					})
				})
			}
		}
	}
}

func usable(t *testing.T, m *Manager) error {
	t.Helper()
	ct, err := m.Seal(t.Context(), inner, []byte("x"), AAD{})
	if err != nil {
		return err
	}
	_, err = m.Open(t.Context(), inner, ct, AAD{})
	_, listed := m.Keys(t.Context(), inner.Scope)
	return errors.Join(err, listed)
}

// A process with Run learns of the new installation key before any call needs it, also where a call that does not need
// it has seen before that there is one.
func TestFollowRunLearnsBeforeACallNeedsIt(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		root := &stubRoot{Wrapper: w.root}
		m := openedBy(t, w.store, root, nil)
		defer running(t, m)()
		begun(t, w.store, w.root)
		_, err := m.Keys(t.Context(), inner.Scope)
		check(t, err)
		pass(6 * time.Second)
		if calls := root.called(); len(calls) != 2 || len(ringOf(m)) != 2 {
			t.Errorf("the root was called: %v; want it once by New and once by Run", calls)
		}
		rekeyed(t, w.other)
		pass(6 * time.Second)
		if calls := root.called(); len(calls) != 2 || len(ringOf(m)) != 1 {
			t.Errorf("the root was called: %v, and there are %d keys; want it no more, and 1", calls, len(ringOf(m)))
		}
	})
}

// Where the root is away when there is a new installation key, only what is under that fails, and says so; the root is
// asked again after a second, and not by every call before. Nobody waits for a root that does not answer but who needs
// it.
func TestFollowARootThatIsAway(t *testing.T) {
	for name, fault := range map[string]func(context.Context, string) error{"away": away, "deaf": deafForAMinute} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				root := &stubRoot{Wrapper: w.root}
				m := openedBy(t, w.store, root, func(c *Config) { c.Timeout = 10 * time.Second })
				rekeyer := begun(t, w.store, w.root)
				check(t, rekeyer.CreateScope(t.Context(), "new"))
				fresh := key.Ref{Scope: "new", Purpose: inner.Purpose}
				root.does(fault)
				for range 20 {
					_, err := m.Seal(t.Context(), fresh, nil, AAD{})
					wants(t, err, ErrRootUnavailable)
				}
				if calls := len(root.called()); name == "away" && calls != 2 {
					t.Errorf("the root was called %d times at once, want New's call and one more", calls)
				}
				for range 5 {
					pass(1100 * time.Millisecond)
					go func() { _, _ = m.Keys(t.Context(), fresh.Scope) }()
					began := time.Now()
					reads(t, m, sealing(t, m, inner, "old"), "old")
					_, err := m.Keys(t.Context(), inner.Scope)
					check(t, err)
					if took := time.Since(began); took > 0 {
						t.Errorf("a key under the known installation key took %v", took)
					}
				}
				pass(2 * time.Minute)
				root.does(nil)
				pass(time.Second)
				_, err := m.Seal(t.Context(), fresh, nil, AAD{})
				check(t, err)
				rekeyed(t, rekeyer)
				clean(t, w.store, w.root)
			})
		})
	}
}

// A caller that goes away while the root is asked for the new installation key says nothing to the others.
func TestFollowACallerThatGoesAwayIsNoAnswerForOthers(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		root := &stubRoot{Wrapper: w.root}
		m := openedBy(t, w.store, root, nil)
		rekeyer := begun(t, w.store, w.root)
		check(t, rekeyer.CreateScope(t.Context(), "new"))
		root.does(func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := m.Keys(ctx, "new")
		wants(t, err, context.DeadlineExceeded)
		root.does(nil)
		_, err = m.Keys(t.Context(), "new")
		check(t, err)
		clean(t, w.store, w.root)
	})
}

// A process that asked for nothing during all of a rekey follows by the link that the new key's row still has; one that
// missed two has to be told by a pin that the key is right.
func TestFollowAProcessThatSlept(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		once := openedBy(t, w.store, w.root, nil)
		pinned := openedBy(t, w.store, w.root, nil)
		rekeyed(t, w.other)
		pass(time.Hour)
		check(t, usable(t, once))

		second := rekeyed(t, w.other)
		_, err := w.Seal(t.Context(), inner, nil, AAD{})
		if err == nil {
			_, err = w.Keys(t.Context(), inner.Scope)
		}
		wantsIntegrity(t, err)
		if err == nil || !strings.Contains(err.Error(), second.Pin+", start this process again") {
			t.Errorf("%v; want it to say the pin %s, and to start again", err, second.Pin)
		}
		pinned.pins = append(pinned.pins, pinOf(t, second.Pin))
		check(t, usable(t, pinned))
		check(t, usable(t, once))
		clean(t, w.store, w.root)
	})
}

// A transaction of the application's that began before the rekey, and shows what was then, changes nothing of what the
// process knows; what it reads is refused at worst, and not called tampered with.
func TestFollowATransactionThatShowsTheStateBefore(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		before := backup(t, w.store)
		tx := before.Begin()
		defer func() { check(t, tx.Rollback()) }()
		check(t, usable(t, w.Manager))
		w.pins = append(w.pins, pinOf(t, w.Pin()), pinOf(t, rekeyed(t, w.other).Pin))
		_, err := w.Keys(t.Context(), inner.Scope)
		check(t, err)
		_, err = w.OpenTx(t.Context(), before.InTx(tx), inner, sealing(t, w.other, inner, "x"), AAD{})
		wants(t, err, ErrUnavailable) // and not an IntegrityError: it is to be begun again
		if w.slots.Load().older || len(ringOf(w.Manager)) != 1 {
			t.Error("the process took the transaction's state for the database's")
		}
		_, err = w.Manager.AddRoot(t.Context(), newStub(t))
		check(t, err)
		clean(t, w.store, w.root)
	})
}
