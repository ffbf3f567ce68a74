package pgstore

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/localroot"
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
