package pgstore

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/storetest"
)

// A transaction of the application's that still sees a version which was destroyed meanwhile cannot insert another one
// of its number, neither of a root key nor of a data key.
func TestNumberOfAVersionDestroyedMeanwhileIsNotUsedAgain(t *testing.T) {
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		for n, again := range []string{
			`insert into kms_root_key_version (private_id, root_key_id, version, state, alg, commitment, key, ik_kid, created)
				select 'krkv_again', root_key_id, 2, 1, alg, sha256('x'), 'y', ik_kid, created
				from kms_root_key_version where version = 1`,
			`insert into kms_data_key_version
					(private_id, data_key_id, root_key_version_id, version, state, alg, commitment, key, created)
				select 'kdkv_again', data_key_id, root_key_version_id, 2, 1, alg, sha256('x'), 'y', created
				from kms_data_key_version where version = 1`,
		} {
			t.Run(string(level)+" "+[]string{"root key", "data key"}[n], func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				s, m := migrated(t, Config{}), storetest.NewMaker(1)
				must(t, s.Initialize(ctx, m.Installation()))
				keys := m.Scope("a", "one")
				_, err := s.Create(ctx, m.Inst(), keys)
				must(t, err)
				must(t, s.Update(ctx, m.Add(&keys[n], &keys[0])))
				tx, err := s.Pool().BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
				must(t, err)
				defer func() { _ = tx.Rollback(ctx) }()
				_, err = tx.Exec(ctx, "select count(*) from kms_data_key_version") // its snapshot, from the second level on
				must(t, err)
				f, err := s.Key(ctx, key.Ref{Scope: "a", Purpose: "one"})
				must(t, err)
				destroyed := &f.Root
				if n == 1 {
					destroyed = &f.Data[0]
				}
				must(t, s.Update(ctx, m.Destroy(destroyed, 2)))
				if _, err = tx.Exec(ctx, again); err == nil {
					err = tx.Commit(ctx)
				}
				if err == nil {
					t.Error("it was inserted")
				}
			})
		}
	}
}
