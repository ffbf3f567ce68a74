package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// write is a call that writes.
type write struct {
	on    *template // a database on which it can be made
	alone bool      // a statement that is a transaction of its own
	inTx  bool      // inside the application's transaction, too
	run   func(ctx context.Context, s *Store, q store.Queries) error
}

// writes are all calls that write. Sessions of the addresses given wait for no standby.
func writes(t *testing.T, databases func(prepare func(dsn string)) *template) map[string]write {
	t.Helper()
	ctx := t.Context()
	m := storetest.NewMaker(1)
	var f store.Family
	var held store.Lease
	var roots store.Installation
	in := m.Instance()
	prepare := func(do func(s *Store)) *template {
		return databases(func(dsn string) {
			s, err := Open(ctx, dsn)
			must(t, err)
			do(s)
			must(t, s.Close())
		})
	}
	empty := prepare(func(*Store) {})
	bare := prepare(func(s *Store) { must(t, s.Migrate(ctx)) })
	life := prepare(func(s *Store) {
		sqltest.WithLife(t, s, m)
		var err error
		f, err = s.Key(ctx, key.Ref{Scope: "a", Purpose: "one"})
		must(t, err)
		mustExec(t, s, "create table note (about text, of text)")
		must(t, s.Register(ctx, store.Column{Table: "note", Column: "of"}))
		roots, err = s.Installation(ctx)
		must(t, err)
		held, _, err = s.Lease(ctx, "held", "ki_a", 3600)
		must(t, err)
		mustExec(t, s, "insert into {prefix}_instance (private_id, name, seen, life, since, signed) "+
			"values ('"+string(in.ID)+"', '', decode(repeat('00', 256), 'hex'), 960, 1, 1)")
	})
	own := func(run func(ctx context.Context, s *Store) error) write {
		return write{on: life, run: func(ctx context.Context, s *Store, _ store.Queries) error { return run(ctx, s) }}
	}
	both := func(run func(ctx context.Context, q store.Queries) error) write {
		return write{on: life, inTx: true, run: func(ctx context.Context, _ *Store, q store.Queries) error { return run(ctx, q) }}
	}
	all := map[string]write{
		"Migrate":     own(func(ctx context.Context, s *Store) error { return s.Migrate(ctx) }),
		"Initialize":  own(func(ctx context.Context, s *Store) error { return s.Initialize(ctx, m.Installation()) }),
		"ChangeRoots": own(func(ctx context.Context, s *Store) error { return s.ChangeRoots(ctx, m.NextRoots(&roots)) }),
		"Rekey": own(func(ctx context.Context, s *Store) error {
			_, err := s.Rekey(ctx, m.Inst(), []store.Rekey{m.Rekey(&f.Root, m.IKKID()), m.Rekey(&f.Data[0], m.IKKID())}, nil)
			return err
		}),
		"PutName": own(func(ctx context.Context, s *Store) error {
			return s.PutName(ctx, m.Inst(), 0, m.Name(f.Root.ID, "new"))
		}),
		"RemoveKey": own(func(ctx context.Context, s *Store) error {
			return s.RemoveKey(ctx, m.Inst(), f.Data[0].ID, f.Data[0].Seq, 0, m.Removed(&f.Data[0], store.Name{}))
		}),
		"AddEscrow": own(func(ctx context.Context, s *Store) error {
			return s.AddEscrow(ctx, m.Inst(), store.Escrow{IKKID: m.IKKID(), Event: "verified"})
		}),
		"AddPurposes": own(func(ctx context.Context, s *Store) error {
			return s.AddPurposes(ctx, []store.Purpose{{Purpose: "one", Alg: key.Message}})
		}),
		"Register": own(func(ctx context.Context, s *Store) error {
			return s.Register(ctx, store.Column{Schema: "public", Table: "note", Column: "about"})
		}),
		"Unregister": own(func(ctx context.Context, s *Store) error {
			return s.Unregister(ctx, store.Column{Schema: "public", Table: "note", Column: "of"})
		}),
		"Sign":    own(func(ctx context.Context, s *Store) error { _, err := s.Sign(ctx, m.Instance()); return err }),
		"Leave":   own(func(ctx context.Context, s *Store) error { return s.Leave(ctx, in.ID) }),
		"Lease":   own(func(ctx context.Context, s *Store) error { _, _, err := s.Lease(ctx, "free", "ki_a", 3600); return err }),
		"Release": own(func(ctx context.Context, s *Store) error { return s.Release(ctx, held) }),
		"Tidy":    own(func(ctx context.Context, s *Store) error { _, err := s.Tidy(ctx); return err }),
		"Create": both(func(ctx context.Context, q store.Queries) error {
			_, err := q.Create(ctx, m.Inst(), m.Scope("b", "one", "two"))
			return err
		}),
		"Update": both(func(ctx context.Context, q store.Queries) error { return q.Update(ctx, m.Activate(&f.Data[0], 3)) }),
		"Shred":  both(func(ctx context.Context, q store.Queries) error { _, err := q.Shred(ctx, m.Inst(), "a"); return err }),
		"Take": both(func(ctx context.Context, q store.Queries) error {
			_, err := q.Take(ctx, f.Data[0].Versions[1].ID, 7, 1000)
			return err
		}),
		"Rewrap": both(func(ctx context.Context, q store.Queries) error {
			r := m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[0].ID)
			_, err := q.Rewrap(ctx, m.Inst(), []store.Rewrap{r}, nil)
			return err
		}),
	}
	for name, on := range map[string]*template{"Migrate": empty, "Initialize": bare} {
		w := all[name]
		w.on = on
		all[name] = w
	}
	for _, name := range []string{"Sign", "Leave"} {
		w := all[name]
		w.alone = true
		all[name] = w
	}
	return all
}

// errNoAnswer is what a caller's limit says who thinks that nothing was done in it.
var errNoAnswer = fmt.Errorf("no answer within 1 s: %w", store.ErrUnavailable)

// waiting waits until a session of the database waits for such a thing.
func waiting(t *testing.T, look *Store, event string) {
	t.Helper()
	for n := 0; n == 0; {
		must(t, look.Pool().QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where datname = current_database() and $1::text in (wait_event, wait_event_type)`, event).Scan(&n))
	}
}

// Where nobody answers to a commit it is done, and is seen when it is waited for no longer. Whoever gave up before does
// not hear that nothing was done.
func TestACommitThatNobodyAcknowledges(t *testing.T) {
	t.Parallel()
	b, err := pgserver.Find(t.Context())
	must(t, err)
	server, err := pgserver.Start(t.Context(), b, pgserver.Options{
		Settings: map[string]string{"synchronous_standby_names": "nobody", "synchronous_commit": "local"},
	})
	must(t, err)
	t.Cleanup(func() { must(t, server.Stop()) })
	n := 0
	all := writes(t, func(prepare func(string)) *template {
		n++
		name := fmt.Sprintf("prepared_%d", n)
		execAs(t, server.DSN("postgres"), "create database "+name)
		return newTemplateOf(t, server.DSN(name), server.DSN("postgres"), prepare)
	})
	var calls sync.WaitGroup
	defer calls.Wait()
	call := func(name string, how connect) {
		w := all[name]
		dsn := w.on.fresh(t)
		look := byOpen(t, Config{}, dsn)
		before := dump(t, look)
		s := how(t, Config{}, dsn+"&options=-c%20synchronous_commit%3Don")
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		calls.Go(func() { ended <- w.run(ctx, s, s) })
		waiting(t, look, "SyncRep")
		cancel(errNoAnswer)
		began := time.Now()
		calls.Go(func() {
			err := <-ended
			if !errors.Is(err, store.ErrUnknownOutcome) || errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: %v; want %v, and not that nothing was done", name, err, store.ErrUnknownOutcome)
			}
			if took := time.Since(began); w.alone && took > commitTimeout/2 || took > 2*commitTimeout {
				t.Errorf("%s took %v after the end of its context", name, took)
			}
			// As an administrator would, if the driver's own request is lost.
			for open := true; open; {
				err := look.Pool().QueryRow(t.Context(), `
					select exists (select pg_cancel_backend(pid) from pg_stat_activity
						where datname = current_database() and pid <> pg_backend_pid() and backend_xid is not null)`).Scan(&open)
				if err != nil {
					t.Error(err)
					return
				}
			}
			if cmp.Equal(before, dump(t, look)) {
				t.Errorf("%s: nothing was done, so this test shows nothing", name)
			}
			if found, err := look.Integrity(t.Context()); err != nil || len(found) > 0 {
				t.Errorf("%s: %q, %v", name, found, err)
			}
		})
	}
	for name := range all {
		call(name, byOpen)
	}
	for _, name := range []string{"Update", "Take", "Sign", "Leave"} {
		call(name, bySQL("pgx"))
		call(name, bySQL("postgres"))
	}
}

var drivers = map[string]connect{"pgxpool": byOpen, "sql.DB of pgx": bySQL("pgx"), "sql.DB of pq": bySQL("postgres")}

// A context that ends while a statement runs before the commit leaves nothing, and the error is the context's.
func TestAContextThatEndsBeforeTheCommit(t *testing.T) {
	t.Parallel()
	all := writes(t, func(prepare func(string)) *template { return newTemplate(t, prepare) })
	for by := range drivers {
		for name, w := range all {
			t.Run(name+" by "+by, func(t *testing.T) {
				t.Parallel()
				interrupt(t, name, by, w, false)
			})
			if w.inTx {
				t.Run(name+" in a transaction by "+by, func(t *testing.T) {
					t.Parallel()
					interrupt(t, name, by, w, true)
				})
			}
		}
	}
}

func interrupt(t *testing.T, name, by string, w write, inside bool) {
	t.Helper()
	dsn := w.on.fresh(t)
	look := byOpen(t, Config{}, dsn)
	before := dump(t, look)
	s := drivers[by](t, Config{}, dsn)
	q, commit := store.Queries(s), func() error { return nil }
	if inside {
		var tx store.Tx
		tx, commit, _ = begin(t, s)
		q = tx
	}

	lock, err := look.Pool().Begin(t.Context())
	must(t, err)
	text := "create table kms_installation (id int)" // whoever makes another of that name waits
	if name != "Migrate" {
		var tables []string
		for _, line := range before {
			if strings.HasPrefix(line, "kms_") {
				tables = append(tables, line)
			}
		}
		text = "lock table " + strings.Join(tables, ", ") + " in exclusive mode"
	}
	_, err = lock.Exec(t.Context(), text)
	must(t, err)

	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx, s, q) }()
	waiting(t, look, "Lock")
	cancel(errNoAnswer)
	err = <-ended
	must(t, lock.Rollback(t.Context()))
	switch {
	case w.alone && errors.Is(err, store.ErrUnknownOutcome) && !errors.Is(err, store.ErrUnavailable):
		return
	case w.alone && by != "sql.DB of pq": // which alone hears that the server has given up
		t.Errorf("%v; want %v", err, store.ErrUnknownOutcome)
	case !errors.Is(err, context.Canceled) || !errors.Is(err, errNoAnswer) || errors.Is(err, store.ErrUnknownOutcome):
		t.Errorf("%v; want %v because of %q", err, context.Canceled, errNoAnswer)
	}
	if err := commit(); inside && err == nil {
		t.Error("the transaction was committed")
	}
	if d := cmp.Diff(before, dump(t, look)); d != "" {
		t.Errorf("(-before +there):\n%s", d)
	}
}

// A statement that is a transaction of its own is sent again when its answer is lost. Where that is not possible, the
// error that is met then, which alone would mean that nothing was done, does not hide the first.
func TestALostAnswerToATransactionOfOneStatement(t *testing.T) {
	t.Parallel()
	all := writes(t, func(prepare func(string)) *template { return newTemplate(t, prepare) })
	for by, open := range faulty {
		for name, w := range all {
			if !w.alone {
				continue
			}
			for _, on := range []bool{false, true} {
				done := false
				for n, more := 1, true; more; n++ {
					dsn := w.on.fresh(t)
					look := byOpen(t, Config{}, dsn)
					before := dump(t, look)
					f := &sqltest.Faults{}
					s := open(t, dsn, f)
					f.Reset(n, true, on)
					err := w.run(t.Context(), s, s)
					more = f.Fired()
					there := !cmp.Equal(before, dump(t, look))
					switch {
					case !on || !more:
						must(t, err)
					case !errors.Is(err, store.ErrUnknownOutcome) && (there || !errors.Is(err, store.ErrUnavailable)):
						t.Errorf("%s by %s, message %d: %v; it was done: %v", name, by, n, err, there)
					case errors.Is(err, store.ErrUnknownOutcome) && errors.Is(err, store.ErrUnavailable):
						t.Errorf("%s by %s, message %d: %v says both", name, by, n, err)
					}
					done = done || more && there
				}
				if !done {
					t.Errorf("%s by %s: nothing was done before its answer was lost", name, by)
				}
			}
		}
	}
}
