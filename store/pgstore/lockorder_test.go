package pgstore

import (
	"errors"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// The application's deletion of a tenant locks the root key, then what is below it. Whatever is done with data keys
// meanwhile waits for it before it locks a row of its own, so that the two never wait for each other.
func TestWritesWaitForADeletionWithoutLockingWhatItNeeds(t *testing.T) {
	for name, write := range map[string]func(s *Store, m *storetest.Maker, k, root *store.Key) error{
		"add a version": func(s *Store, m *storetest.Maker, k, root *store.Key) error {
			return s.Update(t.Context(), m.Add(k, root))
		},
		"change a state": func(s *Store, m *storetest.Maker, k, _ *store.Key) error {
			return s.Update(t.Context(), m.Step(k, 1, key.Retired))
		},
		"destroy a version": func(s *Store, m *storetest.Maker, k, _ *store.Key) error {
			return s.Update(t.Context(), m.Destroy(k, 1))
		},
		"rewrap": func(s *Store, m *storetest.Maker, k, root *store.Key) error {
			n, err := s.Rewrap(t.Context(), m.Inst(), []store.Rewrap{m.Rewrap(&k.Versions[0], root.Versions[0].ID)})
			if err == nil && n == 0 {
				return store.ErrConflict
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, m, k := destroyable(t, Config{})
			f, err := s.Scope(ctx, "a")
			must(t, err)
			tx, err := s.Pool().Begin(ctx)
			must(t, err)
			defer func() { _ = tx.Rollback(ctx) }() // an error says that it was committed
			_, err = tx.Exec(ctx, "select 1 from kms_root_key for update")
			must(t, err)

			written := make(chan error, 1)
			go func() { written <- write(s, m, &k, &f.Root) }()
			for waits := false; !waits; {
				must(t, s.Pool().QueryRow(ctx, "select count(*) > 0 from pg_locks where not granted and pid in "+
					"(select pid from pg_stat_activity where datname = current_database())").Scan(&waits))
				select {
				case err := <-written:
					t.Fatalf("it did not wait: %v", err)
				default:
				}
			}
			for _, table := range []string{"kms_root_key_version", "kms_data_key", "kms_data_key_version"} {
				if _, err := tx.Exec(ctx, "select 1 from "+table+" for update nowait"); err != nil {
					t.Fatalf("rows of %s are locked: %v", table, err)
				}
			}
			_, err = tx.Exec(ctx, "delete from kms_root_key")
			must(t, errors.Join(err, tx.Commit(ctx)))
			if err := <-written; !errors.Is(err, store.ErrConflict) {
				t.Errorf("%v, when all is gone; want %v", err, store.ErrConflict)
			}
		})
	}
}
