package sqltest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// Operation is a write of a store's.
type Operation struct {
	Name    string
	Prepare func(t testing.TB, s store.Store, m *storetest.Maker) // what it begins with
	Run     func(ctx context.Context, s store.Store, q store.Queries, m *storetest.Maker) error
}

// Operations are all writes: those of the store itself, and then InTx.
var Operations = append([]Operation{
	{
		Name:    "Migrate",
		Prepare: func(testing.TB, store.Store, *storetest.Maker) {},
		Run: func(ctx context.Context, s store.Store, _ store.Queries, _ *storetest.Maker) error {
			return s.Migrate(ctx)
		},
	},
	{
		Name: "Initialize",
		Prepare: func(t testing.TB, s store.Store, _ *storetest.Maker) {
			t.Helper()
			must(t, s.Migrate(context.WithoutCancel(t.Context())))
		},
		Run: func(ctx context.Context, s store.Store, _ store.Queries, m *storetest.Maker) error {
			return s.Initialize(ctx, m.Installation())
		},
	},
	{
		Name:    "Rekey",
		Prepare: withTwoKeys,
		Run: func(ctx context.Context, s store.Store, _ store.Queries, m *storetest.Maker) error {
			return rekey(ctx, s, m)
		},
	},
	{
		Name: "ChangeRoots",
		Prepare: func(t testing.TB, s store.Store, m *storetest.Maker) {
			t.Helper()
			withTwoKeys(t, s, m)
			must(t, rekey(context.WithoutCancel(t.Context()), s, m))
		},
		Run: func(ctx context.Context, s store.Store, _ store.Queries, m *storetest.Maker) error {
			in, err := s.Installation(ctx)
			if err != nil {
				return err
			}
			slot := m.Slot(in.IKKID, key.Retired) // first, so that its id is none that is there
			c := m.DropKey(&in, in.Keys[0].KID)
			c.Add = []store.Slot{slot}
			return s.ChangeRoots(ctx, c)
		},
	},
	{
		Name: "PutName",
		Prepare: func(t testing.TB, s store.Store, m *storetest.Maker) {
			t.Helper()
			Initialized(t, s, m)
			must(t, putName(context.WithoutCancel(t.Context()), s, m))
		},
		Run: func(ctx context.Context, s store.Store, _ store.Queries, m *storetest.Maker) error {
			return putName(ctx, s, m)
		},
	},
	{
		Name:    "RemoveKey",
		Prepare: WithLife,
		Run: func(ctx context.Context, s store.Store, _ store.Queries, m *storetest.Maker) error {
			f, err := s.Key(ctx, shared)
			if err != nil {
				return err
			}
			if len(f.Data) == 0 {
				return store.ErrConflict // it was done
			}
			k := &f.Data[0]
			return s.RemoveKey(ctx, m.Inst(), k.ID, k.Seq, 0, m.Removed(k, store.Name{}))
		},
	},
	{
		Name:    "AddEscrow",
		Prepare: Initialized,
		Run: func(ctx context.Context, s store.Store, _ store.Queries, m *storetest.Maker) error {
			return s.AddEscrow(ctx, m.Inst(), store.Escrow{IKKID: m.IKKID(), Event: "written", Detail: "to two custodians"})
		},
	},
}, InTx...)

// putName stores a name of which nothing was known, or changes what is known of it.
func putName(ctx context.Context, s store.Store, m *storetest.Maker) error {
	ref := key.Ref{Scope: shared.Scope, Purpose: "named"}
	f, n, err := s.Name(ctx, ref)
	if err != nil {
		return err
	}
	from := n.Seq
	if n = m.NextName(n); from == 0 {
		n = m.Name(f.Root.ID, ref.Purpose)
	}
	n.Last++
	return s.PutName(ctx, m.Inst(), from, n)
}

// withTwoKeys leaves, besides what WithLife does, a second installation key, which only the slots' manifest is under.
func withTwoKeys(t testing.TB, s store.Store, m *storetest.Maker) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	WithLife(t, s, m)
	in, err := s.Installation(ctx)
	must(t, err)
	must(t, s.ChangeRoots(ctx, m.AddKey(&in)))
}

// rekey puts all keys of a scope under the installation key of the slots' manifest.
func rekey(ctx context.Context, s store.Store, m *storetest.Maker) error {
	in, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	f, err := s.Scope(ctx, shared.Scope)
	if err != nil {
		return err
	}
	_, err = s.Rekey(ctx, m.Inst(), []store.Rekey{m.Rekey(&f.Root, in.IKKID), m.Rekey(&f.Data[0], in.IKKID)}, nil)
	return err
}

// InTx are the writes that there are inside the application's transaction, too.
var InTx = []Operation{
	{
		Name:    "Create",
		Prepare: Initialized,
		Run: func(ctx context.Context, _ store.Store, q store.Queries, m *storetest.Maker) error {
			_, err := q.Create(ctx, m.Inst(), m.Scope("b", "one", "two"))
			return err
		},
	},
	{
		Name:    "Update",
		Prepare: WithLife,
		Run: func(ctx context.Context, _ store.Store, q store.Queries, m *storetest.Maker) error {
			f, err := q.Key(ctx, shared)
			if err != nil {
				return err
			}
			u := m.Add(&f.Data[0], &f.Root)
			u.Manifest.Head = 3
			u.States = []store.StateChange{
				{Number: 3, From: key.Pending, To: key.Active}, {Number: 2, From: key.Active, To: key.Retired},
			}
			u.Destroy = []key.Version{1}
			return q.Update(ctx, u)
		},
	},
	{
		Name:    "Rewrap",
		Prepare: WithLife,
		Run: func(ctx context.Context, _ store.Store, q store.Queries, m *storetest.Maker) error {
			f, err := q.Scope(ctx, shared.Scope)
			if err != nil {
				return err
			}
			var rows []store.Rewrap
			for _, v := range f.Data[0].Versions {
				rows = append(rows, m.Rewrap(&v, f.Root.Versions[0].ID))
			}
			_, err = q.Rewrap(ctx, m.Inst(), append(rows, m.Rewrap(&f.Root.Versions[0], "")), nil)
			return err
		},
	},
	{
		Name:    "Take",
		Prepare: WithLife,
		Run: func(ctx context.Context, _ store.Store, q store.Queries, _ *storetest.Maker) error {
			f, err := q.Key(ctx, shared)
			if err != nil {
				return err
			}
			_, err = q.Take(ctx, f.Data[0].Versions[1].ID, 7, 1000)
			return err
		},
	},
}

// Faults decides which of the steps that a database takes fails: a statement, or a message. The zero value lets
// everything pass. It is safe for concurrent use.
type Faults struct {
	mu    sync.Mutex
	count int
	at    int
	after bool
	on    bool
	fired bool
}

// Reset counts anew. The step at, from 1, is the one that fails, 0 for none: after it was done, or before, and with it
// all that follow or not.
func (f *Faults) Reset(at int, after, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count, f.at, f.after, f.on, f.fired = 0, at, after, on, false
}

// Fired says whether there was such a step since the last reset.
func (f *Faults) Fired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// Next says whether the step that comes now fails before it is done, or after.
func (f *Faults) Next() (before, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if f.at == 0 || f.count < f.at || f.count > f.at && !f.on {
		return false, false
	}
	f.fired = true
	if f.count > f.at {
		return true, false
	}
	return !f.after, f.after
}

// CheckOutcome fails the test unless all of an operation is there, or nothing, as its error says.
func CheckOutcome(t *testing.T, err error, before, done, there []string) {
	t.Helper()
	switch {
	case err == nil:
		if d := cmp.Diff(done, there); d != "" {
			t.Errorf("no error, and (-all of it +there):\n%s", d)
		}
	case errors.Is(err, store.ErrUnavailable):
		if d := cmp.Diff(before, there); d != "" {
			t.Errorf("%v, and (-before +there):\n%s", err, d)
		}
	case errors.Is(err, store.ErrUnknownOutcome):
		if !cmp.Equal(before, there) && !cmp.Equal(done, there) {
			t.Errorf("%v, and neither all nor nothing (-before +there):\n%s", err, cmp.Diff(before, there))
		}
	default:
		t.Errorf("%v; want one of the contract's errors", err)
	}
}
