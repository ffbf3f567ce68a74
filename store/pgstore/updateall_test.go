package pgstore

import (
	"context"
	"fmt"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// While keys are changed together, no row is waited for: neither a scope that somebody is about to delete, nor a
// version that a row of the application's refers to, which is not committed. The others are changed.
func TestChangesTogetherWaitForNobody(t *testing.T) {
	for name, lock := range map[string]string{
		"a scope":                   "select 1 from kms_root_key where scope_id = 'b' for update",
		"a scope, for its deletion": "delete from kms_root_key where scope_id = 'b'",
		"a version that is in use": `select 1 from kms_data_key_version v join kms_data_key k on k.private_id = v.data_key_id
			join kms_root_key r on r.private_id = k.root_key_id where r.scope_id = 'b' for key share of v`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			s, m := migrated(t, Config{}), storetest.NewMaker(1)
			must(t, s.Initialize(ctx, m.Installation()))
			var updates []store.Update
			for _, scope := range []key.Scope{"a", "b", "c"} {
				keys := m.Scope(scope, "one")
				_, err := s.Create(ctx, m.Inst(), keys)
				must(t, err)
				must(t, s.Update(ctx, m.Add(&keys[1], &keys[0])))
				f, err := s.Key(ctx, key.Ref{Scope: scope, Purpose: "one"})
				must(t, err)
				updates = append(updates, m.Activate(&f.Data[0], 2))
			}
			tx, err := s.Pool().Begin(ctx)
			must(t, err)
			_, err = tx.Exec(ctx, lock)
			must(t, err)
			made, err := s.UpdateAll(ctx, updates)
			if err != nil || fmt.Sprint(made) != "[true false true]" {
				t.Errorf("%v, %v; want the second left out", made, err)
			}
			must(t, tx.Rollback(ctx))
			made, err = s.UpdateAll(ctx, updates)
			if err != nil || fmt.Sprint(made) != "[false true false]" {
				t.Errorf("afterwards: %v, %v; want the second", made, err)
			}
			storetest.Check(t, s)
		})
	}
}
