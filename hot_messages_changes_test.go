package keyhold

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// useFor seals and opens all the time for so long, whatever comes of it.
func (w *two) useFor(t *testing.T, d time.Duration, letters ...*letter) {
	t.Helper()
	for range int(d / (10 * time.Millisecond)) {
		pass(10 * time.Millisecond)
		for _, way := range sealWays {
			_, _, _ = way.seal(t.Context(), w.Manager, inner, []byte("text"), row())
		}
		for _, way := range openWays {
			for _, l := range letters {
				if pt, err := way.open(t.Context(), w.Manager, inner, l, row()); err == nil && string(pt) != l.text {
					t.Fatalf("%s: %q, want %q", way.name, pt, l.text)
				}
			}
		}
	}
}

// What another process changes is seen 5 s later at the latest, by calls with keys that are in use all the time.
func TestHotMessagesSeeWhatAnotherProcessChanges(t *testing.T) {
	renamed := Ref{Scope: "renamed", Purpose: inner.Purpose}
	for name, c := range map[string]struct {
		change func(t *testing.T, w *two, first *letter)
		then   func(t *testing.T, w *two, first, second *letter)
	}{
		"a rotation": {
			func(t *testing.T, w *two, _ *letter) { rotated(t, w, inner) },
			func(t *testing.T, w *two, first, second *letter) {
				w.sealAll(t, 3)
				w.openAll(t, first)
				w.openAll(t, second)
			},
		},
		"a version is disabled": {
			func(t *testing.T, w *two, first *letter) { check(t, w.other.Disable(t.Context(), first.id)) },
			func(t *testing.T, w *two, first, second *letter) {
				w.sealAll(t, 2)
				w.opensNot(t, first, ErrDisabled)
				w.openAll(t, second)
				check(t, w.other.Enable(t.Context(), first.id)) // which is seen by who needs it
				for range 2 {
					w.openAll(t, first)
				}
			},
		},
		"the scope is deleted": {
			func(t *testing.T, w *two, _ *letter) { check(t, w.store.DeleteScope(t.Context(), inner.Scope)) },
			func(t *testing.T, w *two, first, _ *letter) {
				w.sealsNot(t, ErrNotFound)
				for _, way := range openWays {
					want := ErrNotFound
					if way.name == "OpenAny" {
						want = ErrOpen
					}
					_, err := way.open(t.Context(), w.Manager, inner, first, row())
					wants(t, err, want)
				}
			},
		},
		"the scope is renamed": {
			func(t *testing.T, w *two, _ *letter) {
				check(t, w.store.RenameScope(t.Context(), inner.Scope, renamed.Scope))
				check(t, w.other.RenameScope(t.Context(), inner.Scope, renamed.Scope))
			},
			func(t *testing.T, w *two, first, _ *letter) {
				w.sealsNot(t, ErrNotFound)
				for range 3 { // the last of them with what is in use by then
					for _, way := range openWays {
						pt, err := way.open(t.Context(), w.Manager, renamed, first, row())
						if err != nil || string(pt) != first.text {
							t.Errorf("%s: %q, %v", way.name, pt, err)
						}
						if way.name != "OpenAny" {
							_, err := way.open(t.Context(), w.Manager, inner, first, row())
							wants(t, err, ErrNotFound)
						}
					}
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
				first, second := w.lettered(t)
				c.change(t, w, first)
				w.useFor(t, epochLife, first, second)
				c.then(t, w, first, second)
			})
		})
	}
}

// What this process changes itself holds at once.
func TestHotMessagesSeeAnOwnChangeAtOnce(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		ctx := t.Context()
		first, second := w.lettered(t)
		_, err := w.Rotate(ctx, inner)
		check(t, err)
		w.sealAll(t, 3)
		w.openAll(t, first)
		for range 2 {
			check(t, w.Disable(ctx, first.id))
			w.opensNot(t, first, ErrDisabled)
			w.openAll(t, second)
			check(t, w.Enable(ctx, first.id))
			for range 2 {
				w.openAll(t, first)
			}
		}
		renamed := Ref{Scope: "renamed", Purpose: inner.Purpose}
		w.sealAll(t, 3)
		check(t, w.store.RenameScope(ctx, inner.Scope, renamed.Scope))
		check(t, w.RenameScope(ctx, inner.Scope, renamed.Scope))
		w.sealsNot(t, ErrNotFound)
		_, whose, err := w.OpenAny(ctx, first.attached, row())
		if err != nil || whose != renamed {
			t.Errorf("it is said to be %v's, %v", whose, err)
		}
		for range 2 {
			_, err = w.Open(ctx, renamed, first.attached, row())
			check(t, err)
			_, err = w.Seal(ctx, renamed, nil, row())
			check(t, err)
		}
		_, err = w.Shred(ctx, renamed.Scope)
		check(t, err)
		_, err = w.Seal(ctx, renamed, nil, row())
		wants(t, err, ErrNotFound)
		_, err = w.Open(ctx, renamed, first.attached, row())
		wants(t, err, ErrNotFound)
		if _, _, err = w.OpenAny(ctx, first.attached, row()); err == nil {
			t.Error("what was sealed for a scope that is gone opens")
		}
	})
}

// What was read before an own change, and comes afterwards, is not kept.
func TestAMessageKeyIsNotKeptOverAnOwnChange(t *testing.T) {
	type act func(t *testing.T, w *two, first *letter)
	seals := act(func(t *testing.T, w *two, _ *letter) {
		_, err := w.Seal(t.Context(), inner, nil, AAD{})
		check(t, err)
	})
	opens := act(func(t *testing.T, w *two, first *letter) {
		if _, err := w.Open(t.Context(), inner, first.attached, row()); err != nil { // it may be disabled by then
			wants(t, err, ErrDisabled)
		}
	})
	rotates := act(func(t *testing.T, w *two, _ *letter) {
		_, err := w.Rotate(t.Context(), inner)
		check(t, err)
	})
	disables := act(func(t *testing.T, w *two, first *letter) { check(t, w.Disable(t.Context(), first.id)) })
	asked := func(call string, _ bool) bool { return call == "Epochs" || call == "Sign" }
	read := func(call string, _ bool) bool { return call == "Key" }
	acknowledged := func(call string, read bool) bool { return call == "Sign" && read }
	fourth := act(func(t *testing.T, w *two, _ *letter) { w.sealAll(t, 4) })
	refused := act(func(t *testing.T, w *two, first *letter) { w.opensNot(t, first, ErrDisabled) })
	for name, c := range map[string]struct {
		held               func(call string, read bool) bool // which call, and whether the key was read before
		durability         Durability
		call, change, then act
	}{
		"seal, while it is asked":        {asked, SameDatabase, seals, rotates, fourth},
		"seal, while the key is read":    {read, SameDatabase, seals, rotates, fourth},
		"seal, while it is acknowledged": {acknowledged, Acknowledged, seals, rotates, fourth},
		"open, while it is asked":        {asked, SameDatabase, opens, disables, refused},
		"open, while the key is read":    {read, SameDatabase, opens, disables, refused},
	} {
		t.Run(name, func(t *testing.T) {
			inTwoWith(t, Config{Durability: c.durability}, func(t *testing.T, w *two) {
				first, _ := w.lettered(t)
				pass(epochLife)
				rotated(t, w, inner) // so that the next call reads the key
				out := make(chan struct{})
				var held, wasRead atomic.Bool
				w.calls.Hook(func(call string) {
					if c.held(call, wasRead.Load()) && held.CompareAndSwap(false, true) {
						<-out
					}
					if call == "Key" {
						wasRead.Store(true)
					}
				})
				var wg sync.WaitGroup
				wg.Go(func() { c.call(t, w, first) })
				synctest.Wait()
				if !held.Load() {
					t.Error("there was no such call")
				}
				wg.Go(func() { c.change(t, w, first) })
				synctest.Wait()
				close(out)
				wg.Wait()
				w.calls.Hook(nil)
				for range 2 {
					c.then(t, w, first)
				}
			})
		})
	}
}

// While many seal and open, and the same process rotates a key and disables its versions, nobody gets what was over
// when the call began.
func TestNoHotMessageKeyIsOlderThanAnOwnChange(t *testing.T) {
	for _, runs := range []bool{false, true} {
		m := innerManager(t, memstore.New())
		if runs {
			stop := running(t, m)
			defer stop()
		}
		var numbers, letters sync.Map // by id, by number
		var head, disabled, end atomic.Uint64
		made := func(n Version) {
			l := letterOf(t, m, inner, "text")
			numbers.Store(l.id, uint64(n))
			letters.Store(uint64(n), &l)
			head.Store(uint64(n))
		}
		made(1)
		var wg sync.WaitGroup
		for g := range 6 {
			wg.Go(func() {
				for i := 0; end.Load() == 0; i++ {
					if g%2 == 0 {
						least, way := head.Load(), sealWays[i%len(sealWays)]
						id, _, err := way.seal(t.Context(), m, inner, nil, row())
						n := uint64(1 << 32) // one that is not known is newer than those that are
						if known, ok := numbers.Load(id); ok {
							n = known.(uint64) //nolint:forcetypeassert // they are
						}
						if err != nil || n < least {
							t.Errorf("%s: version %v, %v; %d was the head before", way.name, n, err, least)
							return
						}
						continue
					}
					way := openWays[i%len(openWays)]
					open := func(n uint64) error {
						found, _ := letters.Load(n)
						l := found.(*letter) //nolint:forcetypeassert // they are
						_, err := way.open(t.Context(), m, inner, l, row())
						return err
					}
					if n := disabled.Load(); n > 0 {
						if err := open(n); !errors.Is(err, ErrDisabled) {
							t.Errorf("%s: version %d: %v; it was disabled before", way.name, n, err)
							return
						}
					}
					if err := open(head.Load()); err != nil && !errors.Is(err, ErrDisabled) { // which it may be by now
						t.Errorf("%s: %v", way.name, err)
					}
				}
			})
		}
		for range 40 {
			n, err := m.Rotate(t.Context(), inner)
			check(t, err)
			made(n)
			if n > 3 {
				l, _ := letters.Load(uint64(n - 3))
				check(t, m.Disable(t.Context(), l.(*letter).id)) //nolint:forcetypeassert // they are
				disabled.Store(uint64(n - 3))
			}
		}
		end.Store(1)
		wg.Wait()
	}
}

// A key that the database has in an older state seals nothing, nor does what was lost of it, and it goes on opening.
func TestAMessageKeyThatWasRolledBack(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		first, second := w.lettered(t)
		before := stored(w.store)
		rotated(t, w, inner)
		pass(epochLife)
		for range 2 {
			w.sealAll(t, 3)
		}
		w.failover(before)
		w.store.Edit(func(d *memstore.Data) {
			for i := range d.Epochs {
				d.Epochs[i] += 10
			}
		})
		w.useFor(t, epochLife, first, second)
		for range 2 {
			w.sealsNot(t, ErrRolledBack)
			w.openAll(t, first)
			w.openAll(t, second)
		}
	})
}

// With Acknowledged, when something was lost, a key that was read again since the last sign waits for the next one
// before it seals, though it has sealed before and is in use.
func TestAfterALossKeysInUseAreAcknowledgedOnceMore(t *testing.T) {
	another := Ref{Scope: inner.Scope, Purpose: "another"}
	inTwoWith(t, Config{Durability: Acknowledged}, func(t *testing.T, w *two) {
		before := stored(w.store)
		rotated(t, w, inner)
		pass(epochLife)
		for range 2 {
			sealing(t, w.Manager, another, "x")
			w.sealAll(t, 2)
		}
		w.calls.Hook(func(call string) {
			if call == "Sign" {
				w.calls.Fail(0, faultstore.Before)
			}
		})
		check(t, w.other.SetPolicy(t.Context(), another, Policy{RotateEvery: 100 * time.Hour}))
		pass(epochLife)
		for range 2 {
			sealing(t, w.Manager, another, "x") // it was read, and no sign came after
		}
		inUseOnly(w.Manager, func() { sealing(t, w.Manager, another, "x") })

		// One version is lost, and nothing of the other key.
		w.store.Edit(func(d *memstore.Data) {
			lost := d.Key(inner)
			was := slices.IndexFunc(before.Keys, func(k store.Key) bool { return k.ID == lost.ID })
			d.Epochs[store.Bucket(lost.ID)] += 10
			*lost = before.Keys[was]
		})
		pass(epochLife)
		w.sealsNot(t, ErrRolledBack)
		_, err := w.Seal(t.Context(), another, nil, AAD{})
		wants(t, err, ErrUnavailable)
		w.calls.Hook(nil)
		pass(signRetry)
		for range 2 {
			sealing(t, w.Manager, another, "x")
		}
		inUseOnly(w.Manager, func() { sealing(t, w.Manager, another, "x") })
	})
}
