package pgstore

import (
	"database/sql"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/storetest"
)

// bouncer starts a pgbouncer in transaction mode, and returns what a database's address is behind it.
func bouncer(t *testing.T) func(t testing.TB, dsn string) string {
	t.Helper()
	b, err := pgserver.StartBouncer(t.Context(), keyholdtest.Postgres(t))
	must(t, err)
	t.Cleanup(func() { must(t, b.Stop()) })
	return func(t testing.TB, dsn string) string {
		t.Helper()
		direct, err := pgx.ParseConfig(dsn)
		must(t, err)
		return b.DSN(direct.Database)
	}
}

// A manager does its work through pgbouncer, where each transaction may be on another connection than the last, and
// where two managers take turns on the same few.
func TestManagerThroughPgbouncer(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := bouncer(t)(t, keyholdtest.Postgres(t))
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	must(t, err)
	managers := make([]*keyhold.Manager, 2)
	for i := range managers {
		managers[i], err = keyhold.New(ctx, byOpen(t, Config{}, dsn), keyhold.Config{
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

// Each driver, set as docs/operations.md says, gets its own answers where it shares few connections with others: no
// read of the store runs a statement of the application's, nor the other way.
func TestManyClientsOfEachDriverThroughPgbouncer(t *testing.T) {
	behind := bouncer(t)
	for driver, setting := range map[string]string{"pgx": "default_query_exec_mode=exec", "postgres": "binary_parameters=yes"} {
		t.Run(driver, func(t *testing.T) {
			dsn := behind(t, keyholdtest.Postgres(t)) + "&" + setting
			s := bySQL(driver)(t, Config{}, dsn)
			must(t, s.Migrate(t.Context()))
			m := storetest.NewMaker(1)
			must(t, s.Initialize(t.Context(), m.Installation()))
			app, err := sql.Open(driver, dsn)
			must(t, err)
			defer func() { must(t, app.Close()) }()
			_, err = app.ExecContext(t.Context(), "create table victim (id text primary key, n int not null default 0)")
			must(t, err)
			for i := range 4 {
				scope := fmt.Sprint("s", i)
				_, err := s.Create(t.Context(), m.Inst(), m.Scope(key.Scope(scope), "one"))
				must(t, err)
				_, err = app.ExecContext(t.Context(), "insert into victim (id) values ($1)", scope)
				must(t, err)
			}
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					scope := key.Scope(fmt.Sprint("s", g%4))
					for range 300 {
						if g%2 == 0 {
							if f, err := s.Scope(t.Context(), scope); err != nil || f.Root.Scope != scope {
								t.Errorf("Scope(%s): %s, %v", scope, f.Root.Scope, err)
							}
						} else if _, err := app.ExecContext(t.Context(), "update victim set n = n + 1 where id = $1", "none"); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			changed := 0
			must(t, app.QueryRowContext(t.Context(), "select sum(n) from victim").Scan(&changed))
			if changed != 0 {
				t.Errorf("rows of the application's were changed %d times", changed)
			}
		})
	}
}
