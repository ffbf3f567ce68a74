package pgstore

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// TestNumbersOutOfRangeAreNotReadAsOthers takes the rules away first, as whoever owns the tables can. Cut to their
// fields' sizes, most of these numbers would be sensible ones.
func TestNumbersOutOfRangeAreNotReadAsOthers(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{})
	mustExec(t, s, base+`; set session_replication_role = replica;
		insert into kms_tombstone (key_id, version, private_id, kind, alg, commitment)
		select 'kdk_a', 4, 'kdkv_a4', 'dek', 1, commitment from kms_tombstone where key_id = 'krk_other'; set session_replication_role = default`)
	rows, err := s.Pool().Query(t.Context(), `select format('alter table %s drop constraint %I', conrelid::regclass, conname)
		from pg_constraint where contype = 'c' and conname like 'kms\_%'`)
	must(t, err)
	drops, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	mustExec(t, s, strings.Join(drops, "; "))

	family := func(q store.Queries) error {
		_, err := q.Key(t.Context(), key.Ref{Scope: "a", Purpose: "a"})
		return err
	}
	installation := func(q store.Queries) error {
		_, err := q.Installation(t.Context())
		return err
	}
	must(t, errors.Join(family(s), installation(s)))
	for _, c := range []struct {
		change, row string
		read        func(store.Queries) error
	}{
		{"data_key_version set state = state + 256 where private_id = 'kdkv_a1'", "kdkv_a1", family},
		{"data_key_version set state = state - 256 where private_id = 'kdkv_a1'", "kdkv_a1", family},
		{"data_key_version set alg = alg + 256 where private_id = 'kdkv_a1'", "kdkv_a1", family},
		{"data_key_version set version = -1 where private_id = 'kdkv_a1'", "kdkv_a1", family},
		{"root_key_version set state = state + 256 where private_id = 'krkv_a1'", "krkv_a1", family},
		{"root_key_version set alg = alg + 256 where private_id = 'krkv_a1'", "krkv_a1", family},
		{"root_key_version set version = -1 where private_id = 'krkv_a1'", "krkv_a1", family},
		{"tombstone set alg = alg + 256 where private_id = 'kdkv_a4'", "kdkv_a4", family},
		{"tombstone set version = -1 where private_id = 'kdkv_a4'", "kdkv_a4", family},
		{"data_key set seq = -1 where private_id = 'kdk_a'", "kdk_a", family},
		{"data_key set head_version = -1 where private_id = 'kdk_a'", "kdk_a", family},
		{"data_key set rotate_every = -1 where private_id = 'kdk_a'", "kdk_a", family},
		{"data_key set max_messages = -1 where private_id = 'kdk_a'", "kdk_a", family},
		{"root_key set seq = -1 where private_id = 'krk_a'", "krk_a", family},
		{"root_slot set state = state + 256 where private_id = 'kr_a'", "kr_a", installation},
		{"installation set seq = -1", `row "installation"`, installation},
	} {
		t.Run(c.change, func(t *testing.T) {
			tx, err := s.Pool().Begin(t.Context())
			must(t, err)
			defer tx.Rollback(t.Context()) //nolint:errcheck // nothing was to stay
			_, err = tx.Exec(t.Context(), "set local session_replication_role = replica; update kms_"+c.change)
			must(t, err)
			err = c.read(s.InTx(tx))
			if err == nil || !strings.Contains(err.Error(), c.row) {
				t.Fatalf("%v; want an error that names %s", err, c.row)
			}
			for _, sentinel := range []error{store.ErrNotFound, store.ErrConflict, store.ErrForeignKey, store.ErrUnavailable, store.ErrUnknownOutcome} {
				if errors.Is(err, sentinel) {
					t.Errorf("%v is %v", err, sentinel)
				}
			}
		})
	}
}
