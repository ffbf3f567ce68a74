package pgstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

var errCut = errors.New("cut")

// wire is a connection that faults may cut.
type wire struct {
	net.Conn

	faults *sqltest.Faults
	deaf   atomic.Bool // the next answer is lost; pgx reads and writes at once
}

func (w *wire) Write(b []byte) (int, error) {
	before, after := w.faults.Next()
	if before {
		return 0, errors.Join(errCut, w.Close())
	}
	w.deaf.Store(after)
	return w.Conn.Write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.deaf.Load() && err == nil {
		return 0, errors.Join(errCut, w.Close())
	}
	return n, err
}

// dial is how drivers connect.
func dial(f *sqltest.Faults) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &wire{Conn: conn, faults: f}, nil
	}
}

// pqDialer is what lib/pq connects with.
type pqDialer struct{ faults *sqltest.Faults }

func (d pqDialer) Dial(network, addr string) (net.Conn, error) {
	return dial(d.faults)(context.Background(), network, addr)
}

func (d pqDialer) DialTimeout(network, addr string, _ time.Duration) (net.Conn, error) {
	return d.Dial(network, addr)
}

type faultyOpen func(t testing.TB, dsn string, f *sqltest.Faults) *Store

// faulty opens stores over a pool of one connection, which is open.
var faulty = map[string]faultyOpen{
	"pgxpool": func(t testing.TB, dsn string, f *sqltest.Faults) *Store {
		t.Helper()
		config, err := parseDSN(dsn)
		must(t, err)
		config.MaxConns = 1
		config.ConnConfig.DialFunc = dial(f)
		pool, err := pgxpool.NewWithConfig(context.WithoutCancel(t.Context()), config)
		must(t, err)
		t.Cleanup(pool.Close)
		s, err := New(pool)
		must(t, err)
		return impatient(t, s)
	},
	"sql.DB of pgx": func(t testing.TB, dsn string, f *sqltest.Faults) *Store {
		t.Helper()
		config, err := pgx.ParseConfig(dsn)
		must(t, err)
		config.DialFunc = dial(f)
		return onlyOne(t, stdlib.GetConnector(*config))
	},
	"sql.DB of pq": func(t testing.TB, dsn string, f *sqltest.Faults) *Store {
		t.Helper()
		connector, err := pq.NewConnector(dsn)
		must(t, err)
		connector.Dialer(pqDialer{f})
		return onlyOne(t, connector)
	},
}

func onlyOne(t testing.TB, c driver.Connector) *Store {
	t.Helper()
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { must(t, db.Close()) })
	s, err := FromSQL(db)
	must(t, err)
	return impatient(t, s)
}

func impatient(t testing.TB, s *Store) *Store {
	t.Helper()
	s.wait = time.Microsecond
	must(t, s.read(t.Context(), statement{text: "select 1"}))
	return s
}

// TestAnyMessageMayBeTheLast loses the connection at the n-th message of each operation, for every n: before the
// server gets it, after it did, and with no other connection to be had. Everything is there afterwards, or nothing,
// as the error says, and the pool's only connection can be used.
func TestAnyMessageMayBeTheLast(t *testing.T) {
	for _, op := range sqltest.Operations {
		t.Run(op.Name, func(t *testing.T) {
			t.Parallel()
			databases := newTemplate(t, func(dsn string) {
				s, err := Open(t.Context(), dsn)
				must(t, err)
				op.Prepare(t, s, storetest.NewMaker(1))
				must(t, s.Close())
			})
			look := byOpen(t, Config{}, databases.fresh(t))
			before := dump(t, look)
			must(t, op.Run(t.Context(), look, look, storetest.NewMaker(1)))
			done := dump(t, look)
			used := true
			for by, open := range faulty {
				for mode := range 4 {
					after, on := mode&1 != 0, mode&2 != 0
					// Those of database/sql take more messages, and the same becomes of them: each is lost in one mode.
					// So are those of Migrate, which take longest.
					first, step := 1, 1
					if by != "pgxpool" || op.Name == "Migrate" {
						first, step = 1+mode, 4
					}
					for n, more := first, true; more; n += step {
						if used {
							look = byOpen(t, Config{}, databases.fresh(t))
						}
						what := fmt.Sprintf("%s, message %d, after it arrived %v, and on %v", by, n, after, on)
						t.Run(what, func(t *testing.T) { more, used = cutOff(t, &op, open, look, n, after, on, before, done) })
					}
				}
			}
		})
	}
}

// cutOff loses the connection at one message, and says whether there were so many, and whether anything was done.
func cutOff(t *testing.T, op *sqltest.Operation, open faultyOpen, look *Store, n int, after, on bool, before, done []string) (more, used bool) {
	t.Helper()
	f := &sqltest.Faults{}
	s := open(t, dsnOf(t, look), f)
	f.Reset(n, after, on)
	err := op.Run(t.Context(), s, s, storetest.NewMaker(1))
	more = f.Fired()
	f.Reset(0, false, false)
	there := dump(t, look)
	sqltest.CheckOutcome(t, err, before, done, there)
	if more && !on && err != nil && !errors.Is(err, store.ErrUnknownOutcome) {
		t.Errorf("%v; it was worth trying again", err)
	}
	if _, err := s.MigrationStatus(t.Context()); err != nil {
		t.Errorf("the pool afterwards: %v", err)
	}
	if !more && n < 3 {
		t.Errorf("only %d messages", n-1)
	}
	return more, !cmp.Equal(before, there)
}

// TestALostConnectionEndsTheApplicationsTransaction does the same inside the application's transaction.
func TestALostConnectionEndsTheApplicationsTransaction(t *testing.T) {
	for _, op := range sqltest.InTx {
		t.Run(op.Name, func(t *testing.T) {
			t.Parallel()
			dsn := keyholdtest.Postgres(t)
			look := byOpen(t, Config{}, dsn)
			op.Prepare(t, look, storetest.NewMaker(1))
			before := dump(t, look)
			for by, open := range faulty {
				for _, after := range []bool{false, true} {
					for n, more := 1, true; more; n++ {
						t.Run(fmt.Sprintf("%s, message %d, after it arrived %v", by, n, after), func(t *testing.T) {
							f := &sqltest.Faults{}
							s := open(t, dsn, f)
							tx, commit, rollback := begin(t, s)
							f.Reset(n, after, false)
							err := op.Run(t.Context(), s, tx, storetest.NewMaker(1))
							more = f.Fired()
							f.Reset(0, false, false)
							if !more {
								must(t, err)
								must(t, rollback())
								return
							}
							if !errors.Is(err, store.ErrUnavailable) {
								t.Errorf("%v; want %v", err, store.ErrUnavailable)
							}
							if err := commit(); err == nil {
								t.Error("the transaction was committed")
							}
							if d := cmp.Diff(before, dump(t, look)); d != "" {
								t.Errorf("(-before +there):\n%s", d)
							}
						})
					}
				}
			}
		})
	}
}
