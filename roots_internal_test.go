package keyhold

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// stubRoot counts its calls, and does something before each.
type stubRoot struct {
	wrapping.Wrapper
	noID bool // until it has encrypted, as transit's

	mu    sync.Mutex
	calls []string
	first func(ctx context.Context, call string) error
}

func newStub(t *testing.T) *stubRoot {
	t.Helper()
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	return &stubRoot{Wrapper: root}
}

func (r *stubRoot) call(ctx context.Context, name string) error {
	r.mu.Lock()
	r.calls = append(r.calls, name)
	first := r.first
	r.mu.Unlock()
	if first == nil {
		return nil
	}
	return first(ctx, name)
}

// does sets what it does before each call, nil being nothing.
func (r *stubRoot) does(first func(ctx context.Context, call string) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.first = first
}

func (r *stubRoot) called() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

func (r *stubRoot) KeyId(ctx context.Context) (string, error) { //nolint:revive // the interface's spelling
	if r.noID && !slices.Contains(r.called(), "Encrypt") {
		return "", nil
	}
	return r.Wrapper.KeyId(ctx)
}

func (r *stubRoot) Encrypt(ctx context.Context, pt []byte, o ...wrapping.Option) (*wrapping.BlobInfo, error) {
	if err := r.call(ctx, "Encrypt"); err != nil {
		return nil, err
	}
	return r.Wrapper.Encrypt(ctx, pt, o...)
}

func (r *stubRoot) Decrypt(ctx context.Context, in *wrapping.BlobInfo, o ...wrapping.Option) ([]byte, error) {
	if err := r.call(ctx, "Decrypt"); err != nil {
		return nil, err
	}
	return r.Wrapper.Decrypt(ctx, in, o...)
}

var errRootAway = errors.New("the root is away")

func away(context.Context, string) error { return errRootAway }

func deafForAMinute(context.Context, string) error {
	pass(time.Minute)
	return nil
}

// openedBy opens s with a root, and closes that at the end of the test.
func openedBy(t *testing.T, s store.Store, root wrapping.Wrapper, with func(*Config)) *Manager {
	t.Helper()
	cfg := Config{Root: root, Purposes: []Purpose{inner.Purpose}, Initialize: true}
	if with != nil {
		with(&cfg)
	}
	m, err := New(t.Context(), s, cfg)
	check(t, err)
	t.Cleanup(func() { check(t, m.Close()) })
	return m
}

// clean asserts that nothing is wrong with what is stored, as a fresh process with the root sees it.
func clean(t *testing.T, s store.Store, root wrapping.Wrapper) {
	t.Helper()
	m := openedBy(t, s, root, nil)
	findings, err := m.Check(t.Context())
	check(t, err)
	for _, f := range findings {
		t.Errorf("check: %v", f)
	}
}

// stopped has a process with root rekey until the n-th call of that name, 0 being the first, before which the database
// goes away until that has ended.
func stopped(t *testing.T, s store.Store, root wrapping.Wrapper, call string, n int) *Manager {
	t.Helper()
	faulty := faultstore.New(s)
	m := openedBy(t, faulty, root, nil)
	faulty.Hook(func(now string) {
		if now == call {
			if n == 0 {
				faulty.Away(true)
			}
			n--
		}
	})
	_, err := m.Rekey(t.Context(), NoEscrow)
	wants(t, err, ErrUnavailable)
	faulty.Hook(nil)
	faulty.Away(false)
	return m
}

// begun has a rekey begin, and move nothing.
func begun(t *testing.T, s store.Store, root wrapping.Wrapper) *Manager {
	t.Helper()
	return stopped(t, s, root, "Rekey", 0)
}

// ring is the installation keys that a process has.
func ringOf(m *Manager) (kids []key.KID) {
	iks := m.ring.clones()
	defer closeAll(iks)
	for _, ik := range iks {
		kids = append(kids, ik.KID())
	}
	return kids
}

// backup is a copy of a database, as a backup has it.
func backup(t *testing.T, s *memstore.Store) *memstore.Store {
	t.Helper()
	var data memstore.Data
	s.Edit(func(d *memstore.Data) { data = *d })
	c := memstore.New()
	check(t, c.Migrate(t.Context()))
	c.Edit(func(d *memstore.Data) { *d = data })
	return c
}

func pinOf(t *testing.T, text string) [32]byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	check(t, err)
	return [32]byte(b)
}

// A process that runs with the old root tells once that it has become so, and its Run rotates nothing, cleans up
// nothing, and takes no turn from those that may.
func TestRootsRunWithAnOldRoot(t *testing.T) {
	s, first, second := memstore.New(), newStub(t), newStub(t)
	bubble.Test(t, func(t *testing.T) {
		ctx := t.Context()
		var events told
		daily := func(c *Config) {
			c.Policies = map[Purpose]Policy{inner.Purpose: {RotateEvery: 24 * time.Hour}}
			c.OnEvent = events.hear
		}
		old := openedBy(t, s, first, daily)
		check(t, old.CreateScope(ctx, inner.Scope))
		other := openedBy(t, s, first, nil)
		stop := running(t, old)
		pass(10 * time.Second)
		slot, err := other.AddRoot(ctx, second)
		check(t, err)
		check(t, other.ActivateRoot(ctx, slot.ID))
		pass(6 * time.Second)
		if got := events.kinds(); !slices.Equal(got, []EventKind{NoPin, OldRoot}) {
			t.Errorf("events: %v", got)
		}
		wants(t, old.Health().Root, ErrOldRoot)
		pass(48 * time.Hour)
		fam, err := s.Key(ctx, inner)
		check(t, err)
		if fam.Data[0].Head != 1 {
			t.Errorf("it made version %d the head", fam.Data[0].Head)
		}

		m := openedBy(t, s, second, nil)
		_, err = m.Rotate(ctx, Ref{Scope: inner.Scope}) // which leaves something to rewrap
		check(t, err)
		defer running(t, m)()
		pass(70 * time.Minute)
		fam, err = s.Key(ctx, inner)
		check(t, err)
		head, _ := headOf(&fam.Data[0])
		if head.Number < 2 || fam.Data[0].Versions[0].Parent != fam.Root.Versions[1].ID {
			t.Errorf("beside it, those with the active root have version %d, and the first one is under %s",
				head.Number, fam.Data[0].Versions[0].Parent)
		}
		check(t, m.ActivateRoot(ctx, old.slots.Load().own))
		pass(6 * time.Second)
		check(t, old.Health().Root)
		_, err = m.Rotate(ctx, inner)
		wants(t, err, ErrOldRoot)
		stop()
	})
}

// An old root's slot goes a time after it was replaced: not before, not while an instance uses it, which is looked
// at again and again, and never one that was added for later.
func TestRootsAreRemovedAfterATime(t *testing.T) {
	s, first, second, later := memstore.New(), newStub(t), newStub(t), newStub(t)
	bubble.Test(t, func(t *testing.T) {
		ctx := t.Context()
		var events told
		user := openedBy(t, s, first, nil)
		check(t, user.CreateScope(ctx, inner.Scope))
		m := openedBy(t, s, second, func(c *Config) {
			c.OldRoots, c.RemoveRootsAfter, c.OnEvent = []wrapping.Wrapper{first}, 24*time.Hour, events.hear
		})
		_, err := m.AddRoot(ctx, later)
		check(t, err)
		states := func(want ...key.State) {
			t.Helper()
			in, err := s.Installation(ctx)
			check(t, err)
			var got []key.State
			for _, slot := range in.Slots {
				got = append(got, slot.State)
			}
			if !slices.Equal(got, want) {
				t.Errorf("slots: %v, want %v", got, want)
			}
		}
		stopUser, stop := running(t, user), running(t, m)
		defer stop()
		pass(23 * time.Hour)
		states(key.Retired, key.Active, key.Retired)
		if slices.Contains(events.kinds(), Kept) {
			t.Error("it was to be removed before its time")
		}
		pass(9 * time.Hour)
		states(key.Retired, key.Active, key.Retired)
		if !slices.Contains(events.kinds(), Kept) || m.Health().Sweep != nil {
			t.Errorf("events: %v, health: %v; want that it was kept", events.kinds(), m.Health().Sweep)
		}
		stopUser()
		check(t, user.Close())
		pass(3 * time.Hour)
		states(key.Destroyed, key.Active, key.Retired)
		pass(72 * time.Hour)
		states(key.Destroyed, key.Active, key.Retired)
	})
}

// A function that is told of an event may call the manager.
func TestRootsAnEventMayCallTheManager(t *testing.T) {
	s, first, second := memstore.New(), newStub(t), newStub(t)
	bubble.Test(t, func(t *testing.T) {
		var m *Manager
		var heard []error
		m = openedBy(t, s, first, func(c *Config) {
			c.OnEvent = func(ctx context.Context, _ Event) {
				_, err := m.Installation(ctx)
				_, err2 := m.AddRoot(ctx, second)
				heard = append(heard, err, err2)
			}
		})
		check(t, m.CreateScope(t.Context(), inner.Scope))
		other := openedBy(t, s, first, nil)
		slot, err := other.AddRoot(t.Context(), second)
		check(t, err)
		check(t, other.ActivateRoot(t.Context(), slot.ID))
		began := time.Now()
		_, err = m.Rotate(t.Context(), inner)
		wants(t, err, ErrOldRoot)
		if len(heard) != 2 || heard[0] != nil || !errors.Is(heard[1], ErrOldRoot) || time.Since(began) != 0 {
			t.Errorf("it was told: %v, after %v", heard, time.Since(began))
		}
	})
}

// A deployment that is over, and one whose root fails once, change nothing: the first has the slot of an old root,
// or has an old root take it in, the other has one and does not get a second.
func TestRootsTakeNoSecondSlot(t *testing.T) {
	for _, noID := range []bool{false, true} {
		ctx := t.Context()
		s, first, second := memstore.New(), newStub(t), newStub(t)
		m := openedBy(t, s, first, nil)
		check(t, takeOver(ctx, s, first, second))
		check(t, takeOver(ctx, s, second, first))
		again := &stubRoot{Wrapper: second.Wrapper, noID: noID}
		glitch := 0
		again.does(func(_ context.Context, call string) error {
			if call != "Decrypt" {
				return nil
			}
			// The slot of the other root, which does not open, is tried before where nothing says whose it is.
			if glitch++; glitch == 1 && !noID || glitch == 2 && noID {
				return errRootAway
			}
			return nil
		})
		slotsStay := func(active int) {
			t.Helper()
			info, err := m.Installation(ctx)
			check(t, err)
			if len(info.Roots) != 2 || !info.Roots[active].Active || glitch == 0 {
				t.Errorf("does not know its key's id: %v: slots %+v", noID, info.Roots)
			}
		}
		wants(t, takeOver(ctx, s, first, again), ErrRoot)
		slotsStay(1)
		third := newStub(t)
		wants(t, takeOver(ctx, s, first, third), ErrOldRoot)
		slotsStay(1)
		back := openedBy(t, s, second, nil)
		check(t, back.ActivateRoot(ctx, back.slots.Load().Slots[0].ID))
		glitch = 0
		check(t, takeOver(ctx, s, first, again))
		slotsStay(0)

		first.does(away)
		wants(t, takeOver(ctx, s, first, third), ErrRoot)
		if calls := third.called(); slices.Contains(calls, "Encrypt") {
			t.Errorf("the new root was called: %v", calls)
		}
		first.does(nil)
	}
}
