package sqlitestore

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"modernc.org/sqlite"

	"keyhold.example/keyhold/store/internal/sqltest"
)

// faults decides which statement of a wrapped driver fails, and how.
type faults struct {
	sqltest.Faults

	plain bool // errors are mere text, as of a driver that shows no codes

	commit func(run func() (driver.Result, error)) (driver.Result, error) // in place of what runs a commit, unless it is nil
}

// ioError is what SQLite says of a disk that does not answer.
type ioError struct{}

func (ioError) Error() string { return "disk I/O error: injected" }
func (ioError) Code() int     { return 10 }

func (f *faults) hide(err error) error {
	if err == nil || !f.plain || errors.Is(err, driver.ErrSkip) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, context.Canceled) {
		return err
	}
	return errors.New(err.Error())
}

func statement[T any](f *faults, run func() (T, error), drop func(T)) (T, error) {
	var none T
	before, after := f.Next()
	if before {
		return none, ioError{}
	}
	v, err := run()
	if err != nil {
		return v, f.hide(err)
	}
	if after {
		drop(v)
		return none, ioError{}
	}
	return v, nil
}

// connector wraps the driver. It opens the file as dataSource says.
type connector struct {
	driver.Connector
	faults *faults
}

func newConnector(t testing.TB, path string, f *faults) connector {
	t.Helper()
	dsn, err := dataSource(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := sqlite.NewConnector(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return connector{c, f}
}

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &wrappedConn{conn.(fullConn), c.faults}, nil
}

type fullConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type wrappedConn struct {
	fullConn
	faults *faults
}

func closeRows(rows driver.Rows) { _ = rows.Close() }

func (c *wrappedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	run := func() (driver.Result, error) { return c.fullConn.ExecContext(ctx, query, args) }
	if c.faults.commit != nil && query == "commit" {
		return c.faults.commit(run)
	}
	return statement(c.faults, run, func(driver.Result) {})
}

func (c *wrappedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return statement(c.faults, func() (driver.Rows, error) { return c.fullConn.QueryContext(ctx, query, args) }, closeRows)
}

func (c *wrappedConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	stmt, err := statement(c.faults, func() (driver.Stmt, error) { return c.fullConn.PrepareContext(ctx, query) },
		func(s driver.Stmt) { _ = s.Close() })
	if err != nil {
		return nil, err
	}
	return &wrappedStmt{stmt.(fullStmt), c.faults}, nil
}

func (c *wrappedConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	tx, err := c.fullConn.BeginTx(ctx, o)
	return wrappedTx{tx, c.faults}, c.faults.hide(err)
}

type wrappedTx struct {
	driver.Tx
	faults *faults
}

func (t wrappedTx) Commit() error { return t.faults.hide(t.Tx.Commit()) }

type fullStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type wrappedStmt struct {
	fullStmt
	faults *faults
}

func (s *wrappedStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return statement(s.faults, func() (driver.Result, error) { return s.fullStmt.ExecContext(ctx, args) }, func(driver.Result) {})
}

func (s *wrappedStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return statement(s.faults, func() (driver.Rows, error) { return s.fullStmt.QueryContext(ctx, args) }, closeRows)
}
