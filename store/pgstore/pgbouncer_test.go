package pgstore_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/storetest"
)

// bouncer starts a pgbouncer in transaction mode, and returns what makes a fresh database behind it.
func bouncer(t *testing.T) func(testing.TB) (dsn string) {
	t.Helper()
	b, err := pgserver.StartBouncer(t.Context(), keyholdtest.Postgres(t))
	must(t, err)
	t.Cleanup(func() { must(t, b.Stop()) })
	return func(t testing.TB) string {
		t.Helper()
		direct, err := pgx.ParseConfig(keyholdtest.Postgres(t))
		must(t, err)
		return b.DSN(direct.Database)
	}
}

func TestConformanceThroughPgbouncer(t *testing.T) {
	storetest.Run(t, harnessOf(bouncer(t)))
}

// A manager does its work through pgbouncer, where each transaction may be on another connection than the last, and
// where two managers take turns on the same few.
func TestManagerThroughPgbouncer(t *testing.T) {
	ctx := t.Context()
	dsn := bouncer(t)(t)
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	must(t, err)
	managers := make([]*keyhold.Manager, 2)
	for i := range managers {
		managers[i], err = keyhold.New(ctx, open(t, dsn), keyhold.Config{
			Root: root, Purposes: []key.Purpose{"secrets", "sessions"}, Initialize: true,
		})
		must(t, err)
		t.Cleanup(func() { must(t, managers[i].Close()) })
	}
	for n := range 20 {
		one, other := managers[n%2], managers[1-n%2]
		ref := key.Ref{Scope: key.Scope(fmt.Sprint("s", n)), Purpose: "secrets"}
		must(t, one.CreateScope(ctx, ref.Scope))
		before, err := one.Seal(ctx, ref, []byte("before"), keyhold.AAD{})
		must(t, err)
		_, err = other.Rotate(ctx, ref)
		must(t, err)
		_, err = other.Rotate(ctx, key.Ref{Scope: ref.Scope})
		must(t, err)
		_, err = one.Rewrap(ctx, ref.Scope)
		must(t, err)
		after, err := other.Seal(ctx, ref, []byte("after"), keyhold.AAD{})
		must(t, err)
		for _, m := range managers {
			for want, ct := range map[string][]byte{"before": before, "after": after} {
				if pt, err := m.Open(ctx, ref, ct, keyhold.AAD{}); err != nil || string(pt) != want {
					t.Errorf("open: %q, %v; want %q", pt, err, want)
				}
			}
		}
	}
	findings, err := managers[0].Check(ctx)
	must(t, err)
	for _, f := range findings {
		t.Errorf("check: %v", f)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, dsn string) *pgstore.Store {
	t.Helper()
	s, err := pgstore.Open(context.WithoutCancel(t.Context()), dsn)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// harnessOf holds stores on databases that are reached in some other way than directly to the suite.
func harnessOf(fresh func(testing.TB) (dsn string)) storetest.Harness {
	exec := func(t testing.TB, s store.Store, text string, args ...any) {
		t.Helper()
		_, err := s.(*pgstore.Store).Pool().Exec(context.WithoutCancel(t.Context()), text, args...)
		must(t, err)
	}
	return storetest.Harness{
		Open: func(t testing.TB) store.Store { return open(t, fresh(t)) },
		Reopen: func(t testing.TB, s store.Store) store.Store {
			return open(t, s.(*pgstore.Store).Pool().Config().ConnString())
		},
		Begin: func(t testing.TB, s store.Store) (store.Tx, func() error, func() error) {
			t.Helper()
			ctx := context.WithoutCancel(t.Context())
			tx, err := s.(*pgstore.Store).Pool().Begin(ctx)
			must(t, err)
			t.Cleanup(func() { _ = tx.Rollback(ctx) }) // an error says that it is over already
			return s.(*pgstore.Store).InTx(tx), func() error { return tx.Commit(ctx) }, func() error { return tx.Rollback(ctx) }
		},
		DeleteScope: func(t testing.TB, s store.Store, scope key.Scope) {
			exec(t, s, "delete from kms_root_key where scope_id = $1", string(scope))
		},
		RenameScope: func(t testing.TB, s store.Store, old, renamed key.Scope) {
			exec(t, s, "update kms_root_key set scope_id = $1 where scope_id = $2", string(renamed), string(old))
		},
		RequireScopes: func(t testing.TB, s store.Store, scopes ...key.Scope) {
			exec(t, s, "create table tenant (id text primary key)")
			exec(t, s, "alter table kms_root_key add foreign key (scope_id) references tenant (id) on delete cascade on update cascade")
			for _, scope := range scopes {
				exec(t, s, "insert into tenant (id) values ($1)", string(scope))
			}
		},
		Refer: func(t testing.TB, s store.Store, id key.ID) {
			exec(t, s, "create table secret (key_id text references kms_data_key_version (private_id))")
			exec(t, s, "insert into secret (key_id) values ($1)", string(id))
		},
	}
}
