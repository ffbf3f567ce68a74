package keyhold_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/pgstore"
)

// changes are the calls that change what there is, each in a scope of its own. It makes what each finds to do.
func changes(t *testing.T, s store.Store, m *keyhold.Manager) map[string]func(ctx context.Context, m *keyhold.Manager) error {
	t.Helper()
	for _, scope := range []key.Scope{tenant, "policy", "disabled", "behind", "unused"} {
		must(t, m.CreateScope(t.Context(), scope))
	}
	for _, r := range []key.Ref{{Scope: "behind"}, {Scope: "disabled", Purpose: secrets}} {
		_, err := m.Rotate(t.Context(), r)
		must(t, err)
	}
	f, err := s.Key(t.Context(), key.Ref{Scope: "disabled", Purpose: secrets})
	must(t, err)
	old := f.Data[0].Versions[0].ID
	return map[string]func(ctx context.Context, m *keyhold.Manager) error{
		"create scope": func(ctx context.Context, m *keyhold.Manager) error { return m.CreateScope(ctx, "new") },
		"rotate":       func(ctx context.Context, m *keyhold.Manager) error { _, err := m.Rotate(ctx, ref); return err },
		"set policy": func(ctx context.Context, m *keyhold.Manager) error {
			return m.SetPolicy(ctx, key.Ref{Scope: "policy", Purpose: secrets}, keyhold.Policy{RotateEvery: 24 * time.Hour})
		},
		"disable": func(ctx context.Context, m *keyhold.Manager) error { return m.Disable(ctx, old) },
		"rewrap":  func(ctx context.Context, m *keyhold.Manager) error { _, err := m.Rewrap(ctx, "behind"); return err },
		"shred":   func(ctx context.Context, m *keyhold.Manager) error { _, err := m.Shred(ctx, "unused"); return err },
	}
}

// A call whose commit is not answered, and that cannot look what became of it, says that, and not what kept it from
// looking.
func TestAnOutcomeThatStaysUnknownIsSaid(t *testing.T) {
	for _, name := range []string{"create scope", "rotate", "set policy", "disable", "rewrap", "shred"} {
		t.Run(name, func(t *testing.T) {
			met := false
			for n, fired := 0, true; fired; n++ {
				s, root := memstore.New(), newRoot(t)
				change := changes(t, s, newManager(t, s, root))[name]
				faulty := faultstore.New(s)
				m := newManager(t, faulty, root)
				from := faulty.Calls()
				faulty.Fail(n, faultstore.After)
				faulty.Hook(func(string) { faulty.Away(faulty.Calls() > from+n) })
				err := change(t.Context(), m)
				if fired = faulty.Fired(); !fired {
					break
				}
				switch faulty.Log()[from+n] {
				case "Create", "Update", "Rewrap", "Shred":
					met = true
					if !errors.Is(err, keyhold.ErrUnknownOutcome) || errors.Is(err, keyhold.ErrUnavailable) {
						t.Errorf("call %d: %v, want ErrUnknownOutcome", n, err)
					}
				}
			}
			if !met {
				t.Error("nothing was written")
			}
		})
	}
}

// No standby answers, as there is none: what was asked is done, and not acknowledged before the call's time is over.
func TestACommitThatNobodyAcknowledgesIsSaid(t *testing.T) {
	t.Parallel()
	b, err := pgserver.Find(t.Context())
	must(t, err)
	server, err := pgserver.Start(t.Context(), b, pgserver.Options{
		Settings: map[string]string{"synchronous_standby_names": "nobody", "synchronous_commit": "local"},
	})
	must(t, err)
	t.Cleanup(func() { must(t, server.Stop()) })
	open := func(query string) *pgstore.Store {
		s, err := pgstore.Open(t.Context(), server.DSN("postgres")+query)
		must(t, err)
		t.Cleanup(func() { must(t, s.Close()) })
		return s
	}
	s, root := open(""), newRoot(t)
	all := changes(t, s, newManager(t, s, root))
	before, _, err := s.Families(t.Context(), []key.Scope{tenant, "policy", "disabled", "behind", "unused", "new"})
	must(t, err)
	waits := open("&options=-c%20synchronous_commit%3Don&pool_max_conns=8")
	var calls sync.WaitGroup
	for name, change := range all {
		m, err := keyhold.New(t.Context(), waits, keyhold.Config{Root: root, Purposes: []key.Purpose{secrets, session}, Timeout: time.Second})
		must(t, err)
		calls.Go(func() {
			err := change(t.Context(), m)
			if name == "rewrap" { // each of its steps has the time that other calls have, so that it looks again
				check(t, err)
				return
			}
			if !errors.Is(err, keyhold.ErrUnknownOutcome) || errors.Is(err, keyhold.ErrUnavailable) {
				t.Errorf("%s: %v, want ErrUnknownOutcome", name, err)
			}
		})
	}
	calls.Wait()
	for busy := true; busy; { // the driver's own requests to end the wait may be lost
		must(t, s.Pool().QueryRow(t.Context(), `select exists (select pg_cancel_backend(pid) from pg_stat_activity
			where pid <> pg_backend_pid() and backend_xid is not null)`).Scan(&busy))
	}
	after, _, err := s.Families(t.Context(), []key.Scope{"new", tenant, "policy", "disabled", "behind"})
	must(t, err)
	if len(before) != 5 || len(after) != 5 {
		t.Errorf("%d scopes before, %d afterwards", len(before), len(after))
	}
	if _, err := s.Scope(t.Context(), "unused"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the scope that was to be shredded: %v", err)
	}
}
