package keyhold_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/memstore"
)

// roots describes the slots in one word each; a star stands at the active one.
func roots(t testing.TB, m *keyhold.Manager) string {
	t.Helper()
	info, err := m.Installation(t.Context())
	must(t, err)
	var words []string
	for _, r := range info.Roots {
		word := fmt.Sprint(r.State)
		if r.Active {
			word += "*"
		}
		words = append(words, word)
	}
	return strings.Join(words, "/")
}

func slotsAre(t testing.TB, m *keyhold.Manager, want string) {
	t.Helper()
	if got := roots(t, m); got != want {
		t.Errorf("slots: %s, want %s", got, want)
	}
}

// added gives root a slot, and makes it the active one.
func added(t testing.TB, m *keyhold.Manager, root wrapping.Wrapper) key.ID {
	t.Helper()
	slot, err := m.AddRoot(t.Context(), root)
	must(t, err)
	must(t, m.ActivateRoot(t.Context(), slot.ID))
	return slot.ID
}

// A change of roots took a transaction over every key. Here it is one slot, whatever there is; the process's own
// root is not called, the new one to seal once and to prove itself. Whatever is done twice is done once.
func TestRootsAreChangedInTwoCalls(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		sealer := newManager(t, w.store, w.root)
		ct := sealed(t, sealer, ref, "x", keyhold.AAD{})
		must(t, sealer.Close())
		own, next := &countingRoot{Wrapper: w.root}, &countingRoot{Wrapper: aeadRoot(t, "next", 7)}
		m := newManager(t, w.store, own)
		var slot keyhold.RootInfo
		for range 2 {
			again, err := m.AddRoot(ctx, next)
			must(t, err)
			if slot.ID != "" && again != slot {
				t.Errorf("again: %+v, not %+v", again, slot)
			}
			slot = again
			slotsAre(t, m, "active*/retired")
		}
		if slot.KeyID != "next" || slot.Active || slot.Own || !slot.Activated.IsZero() || slot.Created.IsZero() {
			t.Errorf("%+v", slot)
		}
		if e, d := next.encrypts.Load(), next.decrypts.Load(); e != 1 || d != 2 {
			t.Errorf("the new root: %d encryptions and %d decryptions; want 1, and 1 for each call", e, d)
		}
		for range 2 {
			must(t, m.ActivateRoot(ctx, slot.ID))
			slotsAre(t, m, "retired/active*")
		}
		_, err := m.Rotate(ctx, ref)
		fails(t, err, keyhold.ErrOldRoot)

		successor := newManager(t, w.store, next)
		opens(t, successor, ref, ct, keyhold.AAD{}, "x")
		_, err = successor.Rotate(ctx, ref)
		must(t, err)
		if next.decrypts.Load() != 3 || own.encrypts.Load() != 0 || own.decrypts.Load() != 1 {
			t.Errorf("calls: %d of the new root, %d and %d of the old one",
				next.decrypts.Load(), own.encrypts.Load(), own.decrypts.Load())
		}
		info, err := successor.Installation(ctx)
		must(t, err)
		first := info.Roots[0].ID
		for range 2 {
			must(t, successor.RemoveRoot(ctx, first))
			slotsAre(t, successor, "destroyed/active*")
		}
		_, err = keyhold.New(ctx, w.store, config(w.root))
		fails(t, err, keyhold.ErrRoot)
		if !strings.Contains(err.Error(), "removed") || !strings.Contains(err.Error(), "next") {
			t.Errorf("%v; want it to say that the slot was removed, and which root is active", err)
		}
		fails(t, successor.ActivateRoot(ctx, first), keyhold.ErrState)
		fails(t, successor.RemoveRoot(ctx, slot.ID), keyhold.ErrState)
		fails(t, successor.RemoveRoot(ctx, "kr_unknown"), keyhold.ErrNotFound)
		fails(t, successor.ActivateRoot(ctx, "kr_unknown"), keyhold.ErrNotFound)
		info, err = successor.Installation(ctx)
		if err != nil || info.Roots[0].Removed.IsZero() || info.Roots[0].Type != "keyhold-local" {
			t.Errorf("%+v, %v; want the record of what was removed", info.Roots, err)
		}
	})
}

// Two instances made two of what there is one of. Of sixteen that add a root at once one does, and of sixteen that
// start with a new root and an old one: one slot, one switch.
func TestRootsSixteenAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		const processes = 16
		at := func(do func(i int) error) {
			t.Helper()
			var wg sync.WaitGroup
			for i := range processes {
				wg.Go(func() {
					if err := do(i); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		second, third := newRoot(t), newRoot(t)
		managers := make([]*keyhold.Manager, processes)
		for i := range managers {
			managers[i] = newManager(t, w.store, w.root)
		}
		slots := make([]key.ID, processes)
		at(func(i int) error {
			slot, err := managers[i].AddRoot(ctx, second)
			slots[i] = slot.ID
			return err
		})
		for _, id := range slots {
			if id != slots[0] {
				t.Errorf("slots %s and %s", slots[0], id)
			}
		}
		slotsAre(t, w.Manager, "active*/retired")

		calls := make([]*countingRoot, processes)
		at(func(i int) error {
			calls[i] = &countingRoot{Wrapper: third}
			m, err := keyhold.New(ctx, w.store, withRoots(calls[i], second, w.root))
			if err != nil {
				return err
			}
			_, err = m.Rotate(ctx, ref)
			return errors.Join(err, m.Close())
		})
		slotsAre(t, w.Manager, "retired/retired/active*")
		old := &countingRoot{Wrapper: second}
		root := &countingRoot{Wrapper: third}
		m, err := keyhold.New(ctx, w.store, withRoots(root, old))
		must(t, err)
		must(t, m.Close())
		if old.decrypts.Load() != 0 || root.encrypts.Load() != 0 || root.decrypts.Load() != 1 {
			t.Errorf("the second start calls the old root %d times, and the new one %d and %d",
				old.decrypts.Load(), root.encrypts.Load(), root.decrypts.Load())
		}
	})
}

// An instance that was started with the old root, before the change or after it, took it for the current one,
// and worked against the others. Here it reads and seals, and refuses whatever is a decision, also where it has not
// heard of the change yet; also one that has the newer root among its old ones. When its root is active
// again, so is it.
func TestAnOldRootDecidesNothing(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		second := aeadRoot(t, "second", 9)
		changer := newManager(t, w.store, w.root)
		id := added(t, changer, second)
		ct := sealed(t, newManager(t, w.store, second), ref, "x", keyhold.AAD{})
		restarted, err := keyhold.New(ctx, w.store, withRoots(w.root, second))
		must(t, err)
		defer func() { must(t, restarted.Close()) }()
		slotsAre(t, restarted, "retired/active*")
		info, err := restarted.Installation(ctx)
		must(t, err)
		first := info.Roots[0].ID
		refusals := func(m *keyhold.Manager) map[string]error {
			tx, _, rollback := w.kind.begin(t, w.store)
			_, inTx := m.RotateTx(ctx, tx, ref)
			must(t, rollback())
			_, rotate := m.Rotate(ctx, ref)
			_, root := m.Rotate(ctx, key.Ref{Scope: tenant})
			_, only := m.RotateIf(ctx, ref, 1)
			_, add := m.AddRoot(ctx, newRoot(t))
			_, rekey := m.Rekey(ctx, keyhold.NoEscrow)
			return map[string]error{
				"RotateTx": inTx, "Rotate": rotate, "Rotate of the root key": root, "RotateIf": only,
				"AddRoot": add, "Rekey": rekey, "ActivateRoot": m.ActivateRoot(ctx, first),
				"RemoveRoot": m.RemoveRoot(ctx, id),
			}
		}
		for name, m := range map[string]*keyhold.Manager{
			"has not heard": w.Manager, "restarted": restarted, "changer": changer,
		} {
			for call, err := range refusals(m) {
				if !errors.Is(err, keyhold.ErrOldRoot) {
					t.Errorf("%s: %s: %v", name, call, err)
				}
				if err != nil && !strings.Contains(err.Error(), "second, slot "+string(id)) {
					t.Errorf("%s: %s: %v; want it to say which is active", name, call, err)
				}
			}
			opens(t, m, ref, ct, keyhold.AAD{}, "x")
			opens(t, m, ref, sealed(t, m, ref, "y", keyhold.AAD{}), keyhold.AAD{}, "y")
			must(t, m.CreateScope(ctx, key.Scope("by "+name)))
			fails(t, m.Health().Root, keyhold.ErrOldRoot)
			must(t, m.Health().Err())
		}
		slotsAre(t, restarted, "retired/active*")
		keys, err := w.Keys(ctx, tenant)
		must(t, err)
		for _, k := range keys {
			if k.Head != 1 {
				t.Errorf("%v was rotated", k.Ref)
			}
		}

		must(t, newManager(t, w.store, second).ActivateRoot(ctx, first))
		_, err = w.Rotate(ctx, ref)
		must(t, err)
		must(t, w.Health().Root)
	})
}

// What New logs of an old root, and of no pin.
func TestAnOldRootIsWarnedOfWhenItStarts(t *testing.T) {
	s, root := memstore.New(), newRoot(t)
	id := added(t, newManager(t, s, root), newRoot(t))
	var log bytes.Buffer
	cfg := config(root)
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	m, err := keyhold.New(t.Context(), s, cfg)
	must(t, err)
	must(t, m.Close())
	for _, want := range []string{"level=WARN", "old root", string(id), "no pin"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s: it does not say %q", log.String(), want)
		}
	}
}

// Several roots of one type, with equal key ids or none, are several roots.
func TestRootsWithEqualNames(t *testing.T) {
	for _, id := range []string{"same", ""} {
		t.Run("id "+id, func(t *testing.T) {
			ctx := t.Context()
			s := memstore.New()
			all := []wrapping.Wrapper{aeadRoot(t, id, 1), aeadRoot(t, id, 2), aeadRoot(t, id, 3)}
			m := newManager(t, s, all[0])
			must(t, m.CreateScope(ctx, tenant))
			ct := sealed(t, m, ref, "x", keyhold.AAD{})
			for range 2 {
				for _, root := range all {
					_, err := m.AddRoot(ctx, root)
					must(t, err)
				}
				slotsAre(t, m, "active*/retired/retired")
			}
			for i, root := range all {
				m := newManager(t, s, root)
				opens(t, m, ref, ct, keyhold.AAD{}, "x")
				info, err := m.Installation(ctx)
				if err != nil || !info.Roots[i].Own {
					t.Errorf("root %d: %+v, %v", i, info.Roots, err)
				}
			}
			_, err := keyhold.New(ctx, s, config(aeadRoot(t, id, 4)))
			fails(t, err, keyhold.ErrRoot)
			checked(t, m)
		})
	}
}

// What goes wrong with a new root leaves everything as it was, and ends in time.
func TestARootThatIsNoGoodIsNotAdded(t *testing.T) {
	for name, c := range map[string]struct {
		root  func(right wrapping.Wrapper) wrapping.Wrapper
		again bool // whether trying again may help
	}{
		"denies":        {trialOf(at("Encrypt", denies)), true},
		"only encrypts": {trialOf(at("Decrypt", denies)), true},
		"slow":          {trialOf(at("Encrypt", slow)), true},
		"deaf":          {trialOf(at("Encrypt", deaf)), true},
		"deaf to open":  {trialOf(at("Decrypt", deaf)), true},
		"has no type":   {trialOf(at("Type", denies)), true},
		"panics":        {trialOf(at("Encrypt", panics)), true},
		"does not seal": {func(r wrapping.Wrapper) wrapping.Wrapper { return &plainRoot{r} }, false},
		"opens to other": {func(r wrapping.Wrapper) wrapping.Wrapper {
			return &countingRoot{Wrapper: r, decrypt: other}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s, own := memstore.New(), aeadRoot(t, "own", 5)
				cfg := config(own)
				cfg.Timeout = time.Second
				m, err := keyhold.New(t.Context(), s, cfg)
				must(t, err)
				bad := c.root(newRoot(t))
				for call, do := range map[string]func() error{
					"AddRoot": func() error { _, err := m.AddRoot(t.Context(), bad); return err },
					"New": func() error {
						cfg := withRoots(bad, own)
						cfg.Timeout = time.Second
						_, err := keyhold.New(t.Context(), s, cfg)
						return err
					},
				} {
					began := time.Now()
					err := do()
					fails(t, err, keyhold.ErrRoot)
					if errors.Is(err, keyhold.ErrRootUnavailable) != c.again || time.Since(began) > time.Second {
						t.Errorf("%s: %v, after %v; want that trying again may help: %v",
							call, err, time.Since(began), c.again)
					}
				}
				passed(time.Minute)
				slotsAre(t, m, "active*")
				must(t, m.Close())
			})
		})
	}
}

func trialOf(first func(context.Context, string) error) func(wrapping.Wrapper) wrapping.Wrapper {
	return func(r wrapping.Wrapper) wrapping.Wrapper { return &trialRoot{Wrapper: r, first: first} }
}

func panics(context.Context) error { panic("no") }

func other(pt []byte, err error) ([]byte, error) {
	if len(pt) > 0 {
		pt[len(pt)-1] ^= 1
	}
	return pt, err
}

// plainRoot returns what it was to seal.
type plainRoot struct{ wrapping.Wrapper }

func (*plainRoot) Encrypt(_ context.Context, pt []byte, _ ...wrapping.Option) (*wrapping.BlobInfo, error) {
	return &wrapping.BlobInfo{Ciphertext: bytes.Clone(pt)}, nil
}

func (*plainRoot) Decrypt(_ context.Context, in *wrapping.BlobInfo, _ ...wrapping.Option) ([]byte, error) {
	return bytes.Clone(in.GetCiphertext()), nil
}

// A slot that a live instance depends on is not removed; the error says whose it is. When that is gone, it is.
func TestARootInUseIsNotRemoved(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		user := newManager(t, w.store, w.root)
		sealed(t, user, ref, "x", keyhold.AAD{}) // so it has registered
		second := newRoot(t)
		added(t, w.Manager, second)
		m := newManager(t, w.store, second)
		info, err := m.Installation(ctx)
		must(t, err)
		err = m.RemoveRoot(ctx, info.Roots[0].ID)
		inUse, ok := errors.AsType[*keyhold.InUseRootError](err)
		if !ok || len(inUse.Instances) != 1 || inUse.Slot != info.Roots[0].ID ||
			!strings.Contains(err.Error(), inUse.Instances[0].Name) {
			t.Errorf("%v; want the instance that uses it", err)
		}
		slotsAre(t, m, "retired/active*")
		must(t, user.Close())
		must(t, m.RemoveRoot(ctx, info.Roots[0].ID))
		slotsAre(t, m, "destroyed/active*")
	})
}
