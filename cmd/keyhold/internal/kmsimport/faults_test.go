package kmsimport_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/kmsimport"
	"keyhold.example/keyhold/store"
)

// fault is what happens at the n-th statement of a connection.
type fault int

const (
	refused fault = iota // it is not done
	lost                 // the connection is lost instead
	after                // it is done, and the connection is lost
)

// theCommit is the number of that statement, whatever it is.
const theCommit = -1

var errFault = errors.New("the fault of this test")

// faultyDB counts the statements, and lets one of them fail.
type faultyDB struct {
	driver driver.Driver
	source string
	n, at  int
	how    fault
}

func (f *faultyDB) Connect(context.Context) (driver.Conn, error) {
	c, err := f.driver.Open(f.source)
	return &faultyConn{Conn: c, f: f}, err
}

func (f *faultyDB) Driver() driver.Driver { return f.driver }

type faultyConn struct {
	driver.Conn

	f      *faultyDB
	closed bool
}

func (c *faultyConn) Close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	return c.Conn.Close()
}

func (c *faultyConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return fails(c, query, func() (driver.Result, error) { return c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args) })
}

func (c *faultyConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return fails(c, query, func() (driver.Rows, error) { return c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args) })
}

func fails[T any](c *faultyConn, query string, do func() (T, error)) (result T, err error) {
	if c.closed {
		return result, driver.ErrBadConn
	}
	now := c.f.n == c.f.at || c.f.at == theCommit && query == "commit"
	c.f.n++
	switch {
	case !now:
		return do()
	case c.f.how == lost:
		return result, errors.Join(errFault, c.Close())
	case c.f.how == after:
		if r, err := do(); err == nil {
			if rows, ok := any(r).(driver.Rows); ok {
				_ = rows.Close()
			}
		}
		return result, errors.Join(errFault, c.Close())
	}
	return result, errFault
}

// Whichever statement fails, and however, everything is as it was, or, after the commit, everything is done.
func TestAReplacementThatFailsChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		o.inTheField(t)
		scopes := o.read(t)
		stage, root := o.stage(t, scopes)
		catalogue := objects(t, o.tables.DB, o.tables.Postgres)
		fail := func(how fault, at int) (statements int) {
			t.Helper()
			f := &faultyDB{driver: o.tables.DB.Driver(), source: o.source, at: at, how: how}
			tables := o.tables
			tables.DB = sql.OpenDB(f)
			err := tables.Replace(t.Context(), scopes, stage, time.Minute)
			_ = tables.DB.Close() // the connection may be lost
			if !errors.Is(err, errFault) {
				t.Fatalf("fault %d at statement %d: %v", how, at, err)
			}
			if at == theCommit && how == after && o.tables.Postgres && !errors.Is(err, store.ErrUnknownOutcome) {
				t.Errorf("the commit's answer was lost: %v", err)
			}
			if how == after && at == theCommit {
				o.isReplaced(t, root, stage)
			} else {
				o.unchanged(t, scopes, catalogue)
			}
			return f.n
		}
		all := fail(refused, theCommit)
		if all < 30 {
			t.Errorf("only %d statements", all)
		}
		// The commit, which a rollback followed, is below.
		for n := range all - 2 {
			fail(refused, n)
			if n%5 == 1 {
				fail(lost, n)
				fail(after, n)
			}
		}
		fail(lost, theCommit)
		fail(after, theCommit)
	})
}

// isReplaced asserts that the tables are keyhold's.
func (o *old) isReplaced(t *testing.T, root wrapping.Wrapper, stage *kmsimport.Stage) {
	t.Helper()
	s, _ := o.openStore(t)
	m, err := keyhold.New(t.Context(), s, keyhold.Config{Root: root})
	must(t, err)
	if m.Pin() != stage.Pin() {
		t.Error("it is another installation")
	}
	o.hasEverything(t, m)
	must(t, m.Close())
}
