package pgstore

import (
	"errors"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// superseded is a scope with a data key and a second version of the root key, which is the head. It returns the root
// key as it was before, whose only version wraps, and as it is.
func superseded(t *testing.T) (s *Store, m *storetest.Maker, before, root store.Key) {
	t.Helper()
	ctx := t.Context()
	s, m = migrated(t, Config{}), storetest.NewMaker(1)
	must(t, s.Initialize(ctx, m.Installation()))
	keys := m.Scope("a", "one")
	_, err := s.Create(ctx, m.Inst(), keys)
	must(t, err)
	before = keys[0]
	must(t, s.Update(ctx, m.Add(&before, nil)))
	f, err := s.Scope(ctx, "a")
	must(t, err)
	must(t, s.Update(ctx, m.Activate(&f.Root, 2)))
	f, err = s.Scope(ctx, "a")
	must(t, err)
	return s, m, before, f.Root
}

// A version of a root key that is about to wrap a new key, in a transaction that is not over, is not disabled.
func TestDisablingWaitsForWhatIsBeingWrapped(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, m, before, root := superseded(t)
	f, err := s.Scope(ctx, "a")
	must(t, err)
	_, err = s.Rewrap(ctx, m.Inst(), []store.Rewrap{m.Rewrap(&f.Data[0].Versions[0], root.Versions[1].ID)}, nil)
	must(t, err)
	tx, err := s.Pool().Begin(ctx)
	must(t, err)
	defer func() { _ = tx.Rollback(ctx) }() // an error says that it was committed
	_, err = s.InTx(tx).Create(ctx, m.Inst(), []store.Key{m.DataKey(&before, "two", key.Message)})
	must(t, err)
	disabled := make(chan error, 1)
	go func() { disabled <- s.Update(ctx, m.Step(&root, 1, key.Disabled)) }()
	untilOneWaits(t, s, disabled)
	must(t, tx.Commit(ctx))
	err = <-disabled
	if use, ok := errors.AsType[*store.InUseError](err); !ok || use.ID != root.Versions[0].ID || use.References[0].Rows != 1 {
		t.Errorf("%v, want an InUseError about the version that wraps the new key", err)
	}
	storetest.Check(t, s)
}

// Whoever is to wrap under a version of a root key that is being disabled waits, and is told to read again.
func TestWhatIsWrappedWaitsForDisabling(t *testing.T) {
	for name, write := range map[string]func(s *Store, m *storetest.Maker, before, k *store.Key) error{
		"Create": func(s *Store, m *storetest.Maker, before, _ *store.Key) error {
			_, err := s.Create(t.Context(), m.Inst(), []store.Key{m.DataKey(before, "two", key.Message)})
			return err
		},
		"Update": func(s *Store, m *storetest.Maker, before, k *store.Key) error {
			return s.Update(t.Context(), m.Add(k, before))
		},
		"Rewrap": func(s *Store, m *storetest.Maker, before, k *store.Key) error {
			_, err := s.Rewrap(t.Context(), m.Inst(), []store.Rewrap{m.Rewrap(&k.Versions[0], before.Versions[0].ID)}, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, m, before, root := superseded(t)
			f, err := s.Scope(ctx, "a")
			must(t, err)
			rewrap := m.Rewrap(&f.Data[0].Versions[0], root.Versions[1].ID)
			_, err = s.Rewrap(ctx, m.Inst(), []store.Rewrap{rewrap}, nil)
			must(t, err)
			k := f.Data[0]
			k.Versions[0].Blob = rewrap.Blob
			tx, err := s.Pool().Begin(ctx)
			must(t, err)
			defer func() { _ = tx.Rollback(ctx) }() // an error says that it was committed
			must(t, s.InTx(tx).Update(ctx, m.Step(&root, 1, key.Disabled)))
			written := make(chan error, 1)
			go func() { written <- write(s, m, &before, &k) }()
			untilOneWaits(t, s, written)
			must(t, tx.Commit(ctx))
			if err := <-written; !errors.Is(err, store.ErrConflict) {
				t.Errorf("%v, want %v", err, store.ErrConflict)
			}
			storetest.Check(t, s)
		})
	}
}
