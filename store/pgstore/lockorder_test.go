package pgstore

import (
	"errors"
	"fmt"
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
			n, err := s.Rewrap(t.Context(), m.Inst(), []store.Rewrap{m.Rewrap(&k.Versions[0], root.Versions[0].ID)}, nil)
			if err == nil && n == 0 {
				return store.ErrConflict
			}
			return err
		},
		"rekey": func(s *Store, m *storetest.Maker, k, root *store.Key) error {
			n, err := s.Rekey(t.Context(), m.Inst(), []store.Rekey{m.Rekey(k, k.IKKID), m.Rekey(root, root.IKKID)}, nil)
			if err == nil && n == 0 {
				return store.ErrConflict
			}
			return err
		},
		"rekey a data key": func(s *Store, m *storetest.Maker, k, _ *store.Key) error {
			n, err := s.Rekey(t.Context(), m.Inst(), []store.Rekey{m.Rekey(k, k.IKKID)}, nil)
			if err == nil && n == 0 {
				return store.ErrConflict
			}
			return err
		},
		"remove the key": func(s *Store, m *storetest.Maker, k, _ *store.Key) error {
			return s.RemoveKey(t.Context(), m.Inst(), k.ID, k.Seq, 0, m.Removed(k, store.Name{}))
		},
		"register a name": func(s *Store, m *storetest.Maker, _, root *store.Key) error {
			return s.PutName(t.Context(), m.Inst(), 0, m.Name(root.ID, "new"))
		},
		"change a name": func(s *Store, m *storetest.Maker, _, root *store.Key) error {
			return s.PutName(t.Context(), m.Inst(), 1, m.NextName(m.Name(root.ID, "two")))
		},
		"take messages": func(s *Store, _ *storetest.Maker, k, _ *store.Key) error {
			_, err := s.Take(t.Context(), k.Versions[1].ID, 1, 100)
			if errors.Is(err, store.ErrNotFound) {
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
			_, err = s.Take(ctx, k.Versions[1].ID, 1, 100)
			must(t, err)
			must(t, s.PutName(ctx, m.Inst(), 0, m.Name(f.Root.ID, "two")))
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
			for _, table := range []string{"kms_root_key_version", "kms_data_key", "kms_data_key_version", "kms_data_key_name", "kms_usage"} {
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

// After it has taken messages, a transaction has all that a deletion would wait for: it may change the key, and insert
// what was sealed, and the deletion waits.
func TestWhoTookMessagesGoesOnBesideADeletion(t *testing.T) {
	for _, before := range []int{0, 1} { // times that others took of it
		t.Run(fmt.Sprint(before), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, m, k := destroyable(t, Config{})
			f, err := s.Scope(ctx, "a")
			must(t, err)
			mustExec(t, s, "create table secret (key_id text references {prefix}_data_key_version (private_id))")
			id := k.Versions[1].ID
			for range before {
				_, err := s.Take(ctx, id, 1, 100)
				must(t, err)
			}
			tx, err := s.Pool().Begin(ctx)
			must(t, err)
			defer func() { _ = tx.Rollback(ctx) }() // an error says that it was committed
			_, err = s.InTx(tx).Take(ctx, id, 1, 100)
			must(t, err)

			deleted := make(chan error, 1)
			go func() { deleted <- try(t, dsnOf(t, s), "delete from kms_root_key") }()
			blocked(t, s, 1)
			_, err = tx.Exec(ctx, "insert into secret values ($1)", string(id))
			must(t, errors.Join(err, s.InTx(tx).Update(ctx, m.Add(&k, &f.Root)), tx.Commit(ctx)))
			if err := <-deleted; stateOf(databaseError(err)) != "23503" {
				t.Errorf("the deletion: %v; want it refused by what was inserted", err)
			}
			storetest.Check(t, s)
		})
	}
}

// Whoever asks for a version that is used up, again and again, leaves nothing behind.
func TestTakingNothingWritesNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, _, k := destroyable(t, Config{})
	used, fresh := k.Versions[1].ID, k.Versions[0].ID
	_, err := s.Take(ctx, used, 10, 10)
	must(t, err)
	state := func(columns string) (rows string) {
		must(t, s.Pool().QueryRow(ctx, "select string_agg(concat_ws(' ', "+columns+"), ', ') from kms_usage").Scan(&rows))
		return rows
	}
	const row, locks = "ctid, xmin, taken, used_at", ", xmax"
	before := state(row + locks)
	for _, c := range []struct {
		id       key.ID
		n, limit uint64
	}{{used, 1, 10}, {used, 0, 10}, {used, 5, 3}, {fresh, 0, 10}} {
		if n, err := s.Take(ctx, c.id, c.n, c.limit); n != 0 || err != nil {
			t.Errorf("Take of %d of %d: %d, %v; want nothing", c.n, c.limit, n, err)
		}
		if after := state(row + locks); after != before {
			t.Errorf("Take of %d of %d: rows %q, before that %q", c.n, c.limit, after, before)
		}
	}
	// With another limit the key is not due any more; that is written once.
	for i := range 2 {
		before := state(row)
		n, err := s.Take(ctx, used, 0, 1000)
		if must(t, err); n != 0 || (state(row) != before) != (i == 0) {
			t.Errorf("Take of nothing, time %d: %d; rows %q, before that %q", i+1, n, state(row), before)
		}
	}
}
