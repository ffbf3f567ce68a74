package keyhold_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store/pgstore"
)

// A scope that the application has locked is named, and neither ends nor holds up what is done with the others; when it
// is free again, it is done.
func TestBulkWorkLeavesOutWhatIsLocked(t *testing.T) {
	const scopes = 60
	create := func(ctx context.Context, m *keyhold.Manager) (int, error) {
		return m.CreateScopes(ctx, scopesNamed("s", scopes))
	}
	for name, c := range map[string]struct {
		there  bool // whether the scopes are there, and not only the one that is locked
		others int  // what is done of the others
		locked int  // what is done of the one
		do     func(ctx context.Context, m *keyhold.Manager) (int, error)
	}{
		"create": {false, scopes - 1, 1, create},
		"reconcile": {true, scopes - 1, 1, func(ctx context.Context, m *keyhold.Manager) (int, error) {
			done, err := m.Reconcile(ctx)
			return done.Created, err
		}},
		"rewrap": {true, 4 * (scopes - 1), 4, func(ctx context.Context, m *keyhold.Manager) (int, error) {
			return m.RewrapAll(ctx, nil)
		}},
		"rekey": {true, 5 * (scopes - 1), 5, func(ctx context.Context, m *keyhold.Manager) (int, error) {
			done, err := m.Rekey(ctx, keyhold.NoEscrow)
			return done.Keys, err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, err := pgstore.Open(ctx, keyholdtest.Postgres(t))
			must(t, err)
			defer func() { must(t, s.Close()) }()
			must(t, s.Migrate(ctx))
			cfg := config(newRoot(t))
			cfg.Timeout = 20 * time.Second
			m, err := keyhold.New(ctx, s, cfg)
			must(t, err)
			defer m.Close()
			if c.there {
				_, err := create(ctx, m)
				must(t, err)
			}
			if name == "rewrap" {
				for _, scope := range scopesNamed("s", scopes) {
					_, err := m.Rotate(ctx, key.Ref{Scope: scope})
					must(t, err)
				}
			}
			if name == "reconcile" {
				cfg.Purposes = append(cfg.Purposes, "added")
			}
			cfg.Timeout, cfg.Initialize = 2*time.Second, false
			m, err = keyhold.New(ctx, s, cfg)
			must(t, err)
			defer m.Close()
			tx, err := s.Pool().Begin(ctx)
			must(t, err)
			defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
			if c.there {
				_, err = tx.Exec(ctx, "select 1 from kms_root_key where scope_id = 's000010' for update")
			} else {
				err = m.CreateScopeTx(ctx, s.InTx(tx), "s000010")
			}
			must(t, err)
			n, err := c.do(ctx, m)
			fails(t, err, keyhold.ErrUnavailable)
			if n != c.others || !strings.Contains(err.Error(), `"s000010"`) || strings.Count(err.Error(), `scope "`) != 1 {
				t.Errorf("%d, %v; want %d, and the one named", n, err, c.others)
			}
			must(t, tx.Rollback(ctx))
			if n, err := c.do(ctx, m); err != nil || n != c.locked {
				t.Errorf("afterwards: %d, %v; want %d", n, err, c.locked)
			}
		})
	}
}
