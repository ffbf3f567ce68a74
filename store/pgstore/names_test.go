package pgstore

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// named is a scope "a" with a raw data key "k" of one version, of whose name nothing is known, and the root key.
func named(t *testing.T) (*Store, *storetest.Maker, store.Key, store.Key) {
	t.Helper()
	ctx := t.Context()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t)+"&pool_max_conns=8") // some of them wait while others look
	m := storetest.NewMaker(1)
	must(t, s.Migrate(ctx))
	must(t, s.Initialize(ctx, m.Installation()))
	keys := []store.Key{m.RootKey("a")}
	keys = append(keys, m.DataKey(&keys[0], "k", key.Raw))
	_, err := s.Create(ctx, m.Inst(), keys)
	must(t, err)
	return s, m, keys[0], keys[1]
}

// application is a transaction of an application's, rolled back when the test is over.
func application(t *testing.T, s *Store, level pgx.TxIsoLevel) (pgx.Tx, store.Tx) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	tx, err := s.Pool().BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
	must(t, err)
	t.Cleanup(func() { _ = tx.Rollback(ctx) }) // an error says that it was committed
	return tx, s.InTx(tx)
}

// A key that is inserted, in a transaction that is not over, and a name that is removed of which there is no key yet:
// the one that comes first is seen by the other, whether the name was registered or not.
func TestRemovingANameWaitsForKeysOfIt(t *testing.T) {
	for _, registered := range []bool{false, true} {
		for _, commit := range []bool{false, true} {
			t.Run(fmt.Sprintf("registered %v, commit %v", registered, commit), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				s, m, root, _ := named(t)
				gone, from := store.Name{RootKeyID: root.ID, Purpose: "new"}, uint64(0)
				if registered {
					gone, from = m.Name(root.ID, "new"), 1
					must(t, s.PutName(ctx, m.Inst(), 0, gone))
				}
				gone = m.NextName(gone)
				gone.Removed = true
				tx, in := application(t, s, pgx.ReadCommitted)
				_, err := in.Create(ctx, m.Inst(), []store.Key{m.DataKey(&root, "new", key.Raw)})
				must(t, err)
				put := make(chan error, 1)
				go func() { put <- s.PutName(ctx, m.Inst(), from, gone) }()
				untilOneWaits(t, s, put)
				if commit {
					must(t, tx.Commit(ctx))
				} else {
					must(t, tx.Rollback(ctx))
				}
				if err := <-put; commit != errors.Is(err, store.ErrConflict) || !commit && err != nil {
					t.Errorf("PutName after the key was committed, %v: %v", commit, err)
				}
				storetest.Check(t, s)
			})
		}
	}
}

// sqlOf is a name's row as SQL of somebody's own.
func sqlOf(n store.Name) (string, []any) {
	return `insert into kms_data_key_name values ($1, $2, $3, '', $4, 1, $5, $6)`,
		[]any{string(n.RootKeyID), string(n.Purpose), int64(n.Seq), int64(n.Last), n.IKKID, n.MAC}
}

// The other way round: who creates a key waits for the name that is being removed, by keyhold or by hand, and then for
// what became of it.
func TestCreatingAKeyWaitsForItsNameToBeRemoved(t *testing.T) {
	for _, commit := range []bool{false, true} {
		for what, there := range map[string]bool{"with a key": true, "without a key": false} {
			t.Run(fmt.Sprintf("%s, commit %v", what, commit), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				s, m, root, k := named(t)
				gone := m.Removed(&k, store.Name{})
				if !there {
					gone.Purpose = "new"
				}
				tx, _ := application(t, s, pgx.ReadCommitted)
				text, args := sqlOf(gone)
				_, err := tx.Exec(ctx, text, args...)
				must(t, err)
				if there {
					_, err = tx.Exec(ctx, "delete from kms_data_key")
					must(t, err)
				}
				_, err = tx.Exec(ctx, "set constraints all immediate")
				must(t, err)
				created := make(chan error, 1)
				go func() {
					n, err := s.Create(ctx, m.Inst(), []store.Key{m.DataKey(&root, gone.Purpose, key.Raw)})
					if err == nil && n != 1 {
						err = fmt.Errorf("%d keys created", n)
					}
					created <- err
				}()
				untilOneWaits(t, s, created)
				if commit {
					must(t, tx.Commit(ctx))
				} else {
					must(t, tx.Rollback(ctx))
				}
				switch err := <-created; {
				case commit && !errors.Is(err, store.ErrConflict):
					t.Errorf("Create after the name was removed: %v; want %v", err, store.ErrConflict)
				case !commit && there && err.Error() != "0 keys created":
					t.Errorf("Create of a key that stays: %v", err)
				case !commit && !there && err != nil:
					t.Errorf("Create where no name was removed: %v", err)
				}
				storetest.Check(t, s)
			})
		}
	}
}

// An application's transaction that sees the database as it was before a key was removed does not create one with the
// same numbers.
func TestAnOldSnapshotDoesNotRepeatNumbers(t *testing.T) {
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, name known %v", level, known), func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				s, m, root, k := named(t)
				var n store.Name
				if known {
					n = m.Name(root.ID, k.Purpose)
					must(t, s.PutName(ctx, m.Inst(), 0, n))
				}
				tx, in := application(t, s, level)
				_, err := in.Installation(ctx)
				must(t, err)
				must(t, s.RemoveKey(ctx, m.Inst(), k.ID, k.Seq, n.Seq, m.Removed(&k, n)))
				created, err := in.Create(ctx, m.Inst(), []store.Key{m.DataKey(&root, k.Purpose, key.Raw)})
				if err == nil {
					err = tx.Commit(ctx)
				}
				if err == nil && created != 0 || err != nil && !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrConflict) {
					t.Errorf("%d created, %v; want none", created, err)
				}
				storetest.Check(t, s)
			})
		}
	}
}

// What an application's row refers to stays, also if its transaction is not over when the key is removed.
func TestRemovingAKeyWaitsForWhatRefersToIt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, m, _, k := named(t)
	mustExec(t, s, "create table oidc (k text references kms_data_key_version (private_id) on delete cascade)")
	tx, _ := application(t, s, pgx.ReadCommitted)
	_, err := tx.Exec(ctx, "insert into oidc values ($1)", string(k.Versions[0].ID))
	must(t, err)
	removed := make(chan error, 1)
	go func() { removed <- s.RemoveKey(ctx, m.Inst(), k.ID, k.Seq, 0, m.Removed(&k, store.Name{})) }()
	untilOneWaits(t, s, removed)
	must(t, tx.Commit(ctx))
	err = <-removed
	if use, ok := errors.AsType[*store.InUseError](err); !ok || use.ID != k.Versions[0].ID || use.References[0].Table != "oidc" {
		t.Errorf("RemoveKey: %v; want an InUseError about a row of oidc", err)
	}
	f, err := s.Key(ctx, key.Ref{Scope: "a", Purpose: "k"})
	if must(t, err); len(f.Data) != 1 {
		t.Error("the key is gone")
	}
}

// Pages of a scope with many keys and names are read from indexes, a page at a time.
func TestAPageOfNamesReadsNoMoreThanAPage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, m, root, _ := named(t)
	for part := range slices.Chunk(make([]int, 2000), 500) {
		var keys []store.Key
		for range part {
			keys = append(keys, m.DataKey(&root, key.Purpose("k"+string(m.ID(""))), key.Raw))
		}
		_, err := s.Create(ctx, m.Inst(), keys)
		must(t, err)
	}
	mustExec(t, s, `insert into kms_data_key_name select root_key_id, purpose, 1, '', 0, 0, ik_kid, mac from kms_data_key;
		analyze kms_data_key, kms_data_key_name, kms_data_key_version, kms_root_key`)
	var plan string
	must(t, s.Pool().QueryRow(ctx, "explain (analyze, format json) "+s.tables.text[namedQuery], "a", "", 10).Scan(&plan))
	rows := 0.0
	for _, field := range regexp.MustCompile(`"Actual Rows": ([0-9.]+),\s+"Actual Loops": ([0-9]+)`).FindAllStringSubmatch(plan, -1) {
		n, err := strconv.ParseFloat(field[1], 64)
		must(t, err)
		loops, err := strconv.ParseFloat(field[2], 64)
		must(t, err)
		rows += n * loops
	}
	if rows < 20 || rows > 300 {
		t.Errorf("the parts of the plan return %v rows in all, for a page of 10 of 2001:\n%s", rows, plan)
	}
	first, err := s.Named(ctx, "a", "", 10)
	must(t, err)
	next, err := s.Named(ctx, "a", first[9].Purpose, 10)
	must(t, err)
	if len(first) != 10 || len(next) != 10 || first[9].Purpose >= next[0].Purpose {
		t.Errorf("pages %v and %v", first, next)
	}
}
