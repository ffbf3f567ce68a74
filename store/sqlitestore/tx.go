package sqlitestore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"keyhold.example/keyhold/store"
)

// view is where statements run: a [Store], each call on its own, or the application's transaction.
type view interface {
	query(ctx context.Context, q query, args ...any) (*sql.Rows, error)
	// write calls f, whose changes stay only if it returns nil. Whatever happens, no transaction or savepoint is left
	// open.
	write(ctx context.Context, f func(*writer) error) error
	// look calls f, which only reads, in several statements.
	look(ctx context.Context, f func(*writer) error) error
	// checkpoint empties the log of what was deleted, and says what remains, for people; empty if nothing does.
	checkpoint(ctx context.Context) string
}

// connection is what a [*sql.Conn] and a [*sql.Tx] have in common.
type connection interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// errForeignKeys says that a connection would let anybody delete keys that are in use.
var errForeignKeys = errors.New("foreign keys are off on this connection, so keys in use would not be protected: " +
	"turn them on for every connection, with _pragma=foreign_keys(1) or _foreign_keys=1 in the data source name")

// steady is what a statement inside a transaction runs with: a context that ends does not interrupt it. SQLite answers
// an interrupted write by rolling back the whole transaction; and an interrupted read, while another one of the
// application's is open, by interrupting the next write, too. The error is that of a context that has ended already. A
// wait for a lock ends with the connection's busy_timeout.
func steady(ctx context.Context) (context.Context, error) {
	return context.WithoutCancel(ctx), ctx.Err()
}

func checkForeignKeys(ctx context.Context, c connection) error {
	on := false
	if err := c.QueryRowContext(ctx, "pragma foreign_keys").Scan(&on); err != nil {
		return err
	}
	if !on {
		return errForeignKeys
	}
	return nil
}

// write is one BEGIN IMMEDIATE transaction on a connection of its own.
func (s *Store) write(ctx context.Context, f func(*writer) error) (err error) {
	db, err := s.pool()
	if err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // an error says only that rollback gave the connection up
	// Before the transaction: inside one the setting could not change any more.
	if err := checkForeignKeys(ctx, conn); err != nil {
		return err
	}
	open := true
	defer func() {
		if open {
			rollback(ctx, conn)
		}
	}()
	if _, err := conn.ExecContext(ctx, "begin immediate"); err != nil {
		return err
	}
	if err := run(ctx, s.tables, conn, f); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// A commit does not wait for other processes, and one that was begun is not interrupted, so that its outcome is
	// known.
	_, err = conn.ExecContext(context.WithoutCancel(ctx), "commit")
	if err == nil {
		open = false
		return nil
	}
	switch classify(err) {
	case classForeignKey, classUnique, classLocked:
		return err // still open, and rolled back
	default:
		return fmt.Errorf("%w: %w", store.ErrUnknownOutcome, err)
	}
}

// look holds up nobody: it is no transaction.
func (s *Store) look(ctx context.Context, f func(*writer) error) error {
	db, err := s.pool()
	if err != nil {
		return err
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	return errors.Join(run(ctx, s.tables, conn, f), conn.Close())
}

func (v *inTx) look(ctx context.Context, f func(*writer) error) error {
	return run(ctx, v.tables, v.tx, f)
}

// rollback ends the transaction, or makes sure that nobody gets the connection again.
func rollback(ctx context.Context, conn *sql.Conn) {
	_, err := conn.ExecContext(context.WithoutCancel(ctx), "rollback")
	if err == nil || strings.Contains(err.Error(), "no transaction is active") {
		return
	}
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

// inTx is the application's transaction.
type inTx struct {
	tables *tables
	tx     *sql.Tx
}

// query does not keep statements prepared: preparing one on the pool would need a second connection.
func (v *inTx) query(ctx context.Context, q query, args ...any) (*sql.Rows, error) {
	ctx, err := steady(ctx)
	if err != nil {
		return nil, err
	}
	return v.tx.QueryContext(ctx, v.tables.text[q], args...)
}

func (v *inTx) write(ctx context.Context, f func(*writer) error) (err error) {
	uninterrupted, err := steady(ctx)
	if err != nil {
		return err
	}
	if err := checkForeignKeys(uninterrupted, v.tx); err != nil {
		return err
	}
	if _, err := v.tx.ExecContext(uninterrupted, "savepoint keyhold"); err != nil {
		return err
	}
	released, done := false, false
	defer func() {
		if !done {
			err = v.undo(uninterrupted, err, released)
		}
	}()
	if err := run(ctx, v.tables, v.tx, f); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	released = true
	if _, err := v.tx.ExecContext(uninterrupted, "release keyhold"); err != nil {
		return err
	}
	done = true
	return nil
}

// undo takes back what the call did until it ended with cause, and returns the call's error. released says that its end
// was tried, so that a savepoint that is gone may have left all of it.
func (v *inTx) undo(ctx context.Context, cause error, released bool) error {
	_, err := v.tx.ExecContext(ctx, "rollback to keyhold")
	if err == nil {
		_, err = v.tx.ExecContext(ctx, "release keyhold")
	}
	gone := err != nil && strings.Contains(err.Error(), "no such savepoint")
	// Below, cause is told and not wrapped: who could decide on it, such as on a conflict, would go on in this
	// transaction.
	because := fmt.Sprint(cause)
	switch {
	case err == nil, errors.Is(err, sql.ErrTxDone):
		return cause
	case gone && released:
		return fmt.Errorf("%w: roll back the whole transaction (%s)", store.ErrUnknownOutcome, because)
	case gone:
		return fmt.Errorf("%w: SQLite rolled back the whole transaction, with all that the application did in it: "+
			"roll it back there, too, and begin anew (%s)", store.ErrUnavailable, because)
	}
	return fmt.Errorf("%w: undo the call: roll back the whole transaction: %w (%s)", store.ErrUnavailable, err, because)
}

// writer runs the statements of one write, each prepared once.
type writer struct {
	tables *tables
	conn   connection
	stmts  map[query]*sql.Stmt
}

func run(ctx context.Context, t *tables, c connection, f func(*writer) error) (err error) {
	w := &writer{tables: t, conn: c, stmts: map[query]*sql.Stmt{}}
	defer func() {
		for _, stmt := range w.stmts {
			// A statement that cannot be closed says what was wrong when it ran.
			_ = stmt.Close()
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	return f(w)
}

func (w *writer) prepare(ctx context.Context, q query) (*sql.Stmt, error) {
	stmt := w.stmts[q]
	if stmt != nil {
		return stmt, nil
	}
	stmt, err := w.conn.PrepareContext(ctx, w.tables.text[q])
	if err != nil {
		return nil, err
	}
	w.stmts[q] = stmt
	return stmt, nil
}

// exec says how many rows the statement changed.
func (w *writer) exec(ctx context.Context, q query, args ...any) (int64, error) {
	ctx, err := steady(ctx)
	if err != nil {
		return 0, err
	}
	stmt, err := w.prepare(ctx, q)
	if err != nil {
		return 0, err
	}
	result, err := stmt.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// is asks a question whose answer is one number, and says whether that is not zero.
func (w *writer) is(ctx context.Context, q query, args ...any) (bool, error) {
	ctx, err := steady(ctx)
	if err != nil {
		return false, err
	}
	stmt, err := w.prepare(ctx, q)
	if err != nil {
		return false, err
	}
	yes := false
	err = stmt.QueryRowContext(ctx, args...).Scan(&yes)
	return yes, err
}

// each asks a question, and calls f for every row of the answer.
func (w *writer) each(ctx context.Context, q query, f func(*sql.Rows) error, args ...any) (err error) {
	ctx, err = steady(ctx)
	if err != nil {
		return err
	}
	stmt, err := w.prepare(ctx, q)
	if err != nil {
		return err
	}
	found, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	for found.Next() {
		if err := f(found); err != nil {
			return err
		}
	}
	return found.Err()
}
