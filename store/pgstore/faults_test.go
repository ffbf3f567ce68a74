package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// dump is everything in the tables but times and numbers that only have to differ.
func dump(t testing.TB, s *Store) (all []string) {
	t.Helper()
	list := func(text string, args ...any) []string {
		rows, err := s.Pool().Query(context.WithoutCancel(t.Context()), text, args...)
		must(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		return lines
	}
	tables := list("select relname from pg_class where relname like 'kms\\_%' and relkind = 'r' order by 1")
	for _, table := range tables {
		all = append(all, table)
		all = append(all, list("select (to_jsonb(t) - 'created' - 'destroyed' - 'removed' - 'id')::text from "+table+" t order by 1")...)
	}
	return all
}

// operations are the writes. Each begins with the tables that prepare leaves.
var operations = []struct {
	name    string
	prepare func(t testing.TB, s *Store, m *storetest.Maker)
	run     func(ctx context.Context, s *Store, q store.Queries, m *storetest.Maker) error
}{
	{
		name:    "Migrate",
		prepare: func(testing.TB, *Store, *storetest.Maker) {},
		run:     func(ctx context.Context, s *Store, _ store.Queries, _ *storetest.Maker) error { return s.Migrate(ctx) },
	},
	{
		name:    "Initialize",
		prepare: func(t testing.TB, s *Store, _ *storetest.Maker) { must(t, s.Migrate(context.Background())) },
		run: func(ctx context.Context, s *Store, _ store.Queries, m *storetest.Maker) error {
			return s.Initialize(ctx, m.Installation())
		},
	},
	{
		name:    "Create",
		prepare: initialized,
		run: func(ctx context.Context, _ *Store, q store.Queries, m *storetest.Maker) error {
			_, err := q.Create(ctx, m.Inst(), m.Scope("b", "one", "two"))
			return err
		},
	},
	{
		name:    "Update",
		prepare: withLife,
		run: func(ctx context.Context, _ *Store, q store.Queries, m *storetest.Maker) error {
			f, err := q.Key(ctx, key.Ref{Scope: "a", Purpose: "one"})
			if err != nil {
				return err
			}
			u := m.Add(&f.Data[0], &f.Root)
			u.Manifest.Head = 3
			u.States = []store.StateChange{
				{Number: 3, From: key.Pending, To: key.Active}, {Number: 2, From: key.Active, To: key.Retired},
			}
			u.Destroy = []key.Version{1}
			return q.Update(ctx, u)
		},
	},
	{
		name:    "Rewrap",
		prepare: withLife,
		run: func(ctx context.Context, _ *Store, q store.Queries, m *storetest.Maker) error {
			f, err := q.Scope(ctx, "a")
			if err != nil {
				return err
			}
			var rows []store.Rewrap
			for _, v := range f.Data[0].Versions {
				rows = append(rows, m.Rewrap(&v, f.Root.Versions[0].ID))
			}
			_, err = q.Rewrap(ctx, m.Inst(), append(rows, m.Rewrap(&f.Root.Versions[0], "")))
			return err
		},
	},
}

func initialized(t testing.TB, s *Store, m *storetest.Maker) {
	t.Helper()
	must(t, s.Migrate(context.Background()))
	must(t, s.Initialize(context.Background(), m.Installation()))
	_, err := s.Create(context.Background(), m.Inst(), m.Scope("a", "one"))
	must(t, err)
}

// withLife leaves a data key with a disabled, an active and a pending version.
func withLife(t testing.TB, s *Store, m *storetest.Maker) {
	t.Helper()
	initialized(t, s, m)
	ref := key.Ref{Scope: "a", Purpose: "one"}
	for _, next := range []func(f store.Family) store.Update{
		func(f store.Family) store.Update { return m.Add(&f.Data[0], &f.Root) },
		func(f store.Family) store.Update { return m.Activate(&f.Data[0], 2) },
		func(f store.Family) store.Update { return m.Step(&f.Data[0], 1, key.Disabled) },
		func(f store.Family) store.Update { return m.Add(&f.Data[0], &f.Root) },
	} {
		f, err := s.Key(context.Background(), ref)
		must(t, err)
		must(t, s.Update(context.Background(), next(f)))
	}
}

// faults decides at which message to the server a connection is lost, and whether the server still gets it. The zero
// value lets everything pass.
type faults struct {
	mu    sync.Mutex
	count int
	at    int  // the number of the message that is the last, from 1; 0: none
	after bool // the server gets it and answers, and the answer is lost
	on    bool // no connection can be made afterwards
	fired bool
}

func (f *faults) reset(at int, after, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count, f.at, f.after, f.on, f.fired = 0, at, after, on, false
}

func (f *faults) hasFired() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

// next says whether the connection is lost before or after the message that comes now.
func (f *faults) next() (before, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count++
	if f.at == 0 || f.count < f.at || f.count > f.at && !f.on {
		return false, false
	}
	f.fired = true
	if f.count > f.at {
		return true, false
	}
	return !f.after, f.after
}

var errCut = errors.New("cut")

// wire is a connection that faults may cut.
type wire struct {
	net.Conn

	faults *faults
	deaf   bool // the next answer is lost
}

func (w *wire) Write(b []byte) (int, error) {
	before, after := w.faults.next()
	if before {
		return 0, errors.Join(errCut, w.Close())
	}
	w.deaf = after
	return w.Conn.Write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.deaf && err == nil {
		return 0, errors.Join(errCut, w.Close())
	}
	return n, err
}

// faulty is a store over a pool of one connection.
func faulty(t testing.TB, dsn string, f *faults) *Store {
	t.Helper()
	config, err := parseDSN(dsn)
	must(t, err)
	config.MaxConns = 1
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &wire{Conn: conn, faults: f}, nil
	}
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config)
	must(t, err)
	t.Cleanup(pool.Close)
	s, err := New(pool)
	must(t, err)
	s.wait = time.Microsecond
	return s
}

// TestAnyMessageMayBeTheLast loses the connection at the n-th message of each operation, for every n: before the
// server gets it, after it did, and with no other connection to be had. Everything is there afterwards, or nothing,
// as the error says, and the pool's only connection can be used.
func TestAnyMessageMayBeTheLast(t *testing.T) {
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			prepared := func() (string, *Store) {
				dsn := keyholdtest.Postgres(t)
				s := byOpen(t, Config{}, dsn)
				op.prepare(t, s, storetest.NewMaker(1))
				return dsn, s
			}
			_, clean := prepared()
			before := dump(t, clean)
			must(t, op.run(t.Context(), clean, clean, storetest.NewMaker(1)))
			done := dump(t, clean)
			for _, after := range []bool{false, true} {
				for _, on := range []bool{false, true} {
					for n := 1; ; n++ {
						f := &faults{}
						dsn, look := prepared()
						s := faulty(t, dsn, f)
						must(t, s.Pool().Ping(t.Context())) // so that the connection is open
						f.reset(n, after, on)
						err := op.run(t.Context(), s, s, storetest.NewMaker(1))
						fired := f.hasFired()
						f.reset(0, false, false)
						what := fmt.Sprintf("message %d, after it arrived %v, and on %v", n, after, on)
						checkOutcome(t, what, err, before, done, dump(t, look))
						if fired && !on && err != nil && !errors.Is(err, store.ErrUnknownOutcome) {
							t.Errorf("%s: %v; it was worth trying again", what, err)
						}
						if _, err := s.MigrationStatus(t.Context()); err != nil {
							t.Errorf("%s: the pool afterwards: %v", what, err)
						}
						must(t, look.Close())
						if !fired {
							if n < 3 {
								t.Errorf("only %d messages", n-1)
							}
							break
						}
					}
				}
			}
		})
	}
}

func checkOutcome(t *testing.T, what string, err error, before, done, got []string) {
	t.Helper()
	switch {
	case err == nil:
		if d := cmp.Diff(done, got); d != "" {
			t.Errorf("%s: no error, and (-all of it +there):\n%s", what, d)
		}
	case errors.Is(err, store.ErrUnavailable):
		if d := cmp.Diff(before, got); d != "" {
			t.Errorf("%s: %v, and (-before +there):\n%s", what, err, d)
		}
	case errors.Is(err, store.ErrUnknownOutcome):
		if !cmp.Equal(before, got) && !cmp.Equal(done, got) {
			t.Errorf("%s: %v, and neither all nor nothing (-before +there):\n%s", what, err, cmp.Diff(before, got))
		}
	default:
		t.Errorf("%s: %v; want one of the contract's errors", what, err)
	}
}

// TestALostConnectionEndsTheApplicationsTransaction does the same inside the application's transaction.
func TestALostConnectionEndsTheApplicationsTransaction(t *testing.T) {
	for _, op := range operations[2:] {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			dsn := keyholdtest.Postgres(t)
			look := byOpen(t, Config{}, dsn)
			op.prepare(t, look, storetest.NewMaker(1))
			before := dump(t, look)
			for _, after := range []bool{false, true} {
				for n := 1; ; n++ {
					f := &faults{}
					s := faulty(t, dsn, f)
					tx, err := s.Pool().Begin(t.Context())
					must(t, err)
					f.reset(n, after, false)
					err = op.run(t.Context(), s, s.InTx(tx), storetest.NewMaker(1))
					fired := f.hasFired()
					f.reset(0, false, false)
					if !fired {
						must(t, err)
						must(t, tx.Rollback(t.Context()))
						break
					}
					if !errors.Is(err, store.ErrUnavailable) {
						t.Errorf("message %d, after it arrived %v: %v; want %v", n, after, err, store.ErrUnavailable)
					}
					if err := tx.Commit(t.Context()); err == nil {
						t.Errorf("message %d, after it arrived %v: the transaction was committed", n, after)
					}
					if d := cmp.Diff(before, dump(t, look)); d != "" {
						t.Errorf("message %d, after it arrived %v: (-before +there):\n%s", n, after, d)
					}
				}
			}
		})
	}
}
