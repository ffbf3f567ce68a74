package pgstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// statement is one SQL statement, and what is done with what comes back. Arguments are string, int64, bool, []byte,
// and slices of string, int64, []byte, in which a nil []byte is null. In the text each parameter is cast to just
// that type: text, bigint, boolean, bytea, or an array of one. So no driver has to know more about it.
type statement struct {
	text  string
	args  []any
	start func()                                   // before the first row, also when it is run again; may be nil
	row   func(scan func(into ...any) error) error // for each row; nil if there are none to look at
	done  func(rows int) error                     // after the last row; nil if that decides nothing
}

// session is where statements run: a connection, or the application's transaction.
type session interface {
	// run runs the statements one after the other and stops at the first error, of the database's or of a function
	// in a statement. It is one round trip where the driver can send several statements at once.
	run(ctx context.Context, batch ...statement) error
}

// source is a pool of connections.
type source interface {
	// acquire takes a connection, which release gives back, or, if broken, closes.
	acquire(ctx context.Context) (c session, release func(broken bool), err error)
}

// result is what a statement returned, by any driver.
type result interface {
	Next() bool
	Scan(into ...any) error
	Err() error
}

// each calls the statement's functions for its rows. How many there are is known only when the statement is known to
// have ended well.
func (st *statement) each(r result) error {
	if st.start != nil {
		st.start()
	}
	n := 0
	for ; r.Next(); n++ {
		if st.row == nil {
			continue
		}
		if err := st.row(r.Scan); err != nil {
			return err
		}
	}
	if err := r.Err(); err != nil {
		return databaseError(err)
	}
	if st.done != nil {
		return st.done(n)
	}
	return nil
}

// returnsRows says whether anybody looks at what the statement returns.
func (st *statement) returnsRows() bool { return st.row != nil || st.done != nil }

// pgxSource is pgx's own pool.
type pgxSource struct{ pool *pgxpool.Pool }

func (s pgxSource) acquire(ctx context.Context) (session, func(bool), error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, connectError(err)
	}
	return pgxSession{conn}, func(broken bool) {
		if broken {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = conn.Conn().Close(ctx) // whatever comes of it, the pool does not keep a connection that was closed
		}
		conn.Release()
	}, nil
}

// pgxSession is a connection of pgx's pool, or a transaction of pgx's.
type pgxSession struct {
	on interface {
		Exec(ctx context.Context, text string, args ...any) (pgconn.CommandTag, error)
		Query(ctx context.Context, text string, args ...any) (pgx.Rows, error)
		SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	}
}

func (s pgxSession) run(ctx context.Context, batch ...statement) (err error) {
	if len(batch) == 1 {
		return s.one(ctx, &batch[0])
	}
	var b pgx.Batch
	for _, st := range batch {
		b.Queue(st.text, st.args...)
	}
	results := s.on.SendBatch(ctx, &b)
	defer func() {
		// After an error this gives it once more. Otherwise it says what came after the last result.
		if closeErr := results.Close(); err == nil {
			err = databaseError(closeErr)
		}
	}()
	for i := range batch {
		r, err := results.Query()
		if err != nil {
			return databaseError(err)
		}
		err = batch[i].each(r)
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s pgxSession) one(ctx context.Context, st *statement) error {
	if !st.returnsRows() {
		// Without arguments this may be several statements in one text.
		_, err := s.on.Exec(ctx, st.text, st.args...)
		return databaseError(err)
	}
	r, err := s.on.Query(ctx, st.text, st.args...)
	if err != nil {
		return databaseError(err)
	}
	defer r.Close()
	return st.each(r)
}

// sqlSource is a pool of database/sql.
type sqlSource struct{ db *sql.DB }

func (s sqlSource) acquire(ctx context.Context) (session, func(bool), error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return nil, nil, connectError(err)
	}
	return sqlSession{conn}, func(broken bool) {
		if broken {
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // so that nobody gets it again
		}
		_ = conn.Close() // an error says only that the connection was given up
	}, nil
}

// sqlSession is a connection, or a transaction, of database/sql.
type sqlSession struct {
	on interface {
		ExecContext(ctx context.Context, text string, args ...any) (sql.Result, error)
		QueryContext(ctx context.Context, text string, args ...any) (*sql.Rows, error)
	}
}

func (s sqlSession) run(ctx context.Context, batch ...statement) error {
	for i := range batch {
		if err := s.one(ctx, &batch[i]); err != nil {
			return err
		}
	}
	return nil
}

func (s sqlSession) one(ctx context.Context, st *statement) error {
	args := make([]any, len(st.args))
	for i, a := range st.args {
		args[i] = portable(a)
	}
	if !st.returnsRows() {
		_, err := s.on.ExecContext(ctx, st.text, args...)
		return databaseError(err)
	}
	r, err := s.on.QueryContext(ctx, st.text, args...) //nolint:rowserrcheck // each does
	if err != nil {
		return databaseError(err)
	}
	defer r.Close()
	return st.each(r)
}

// portable is an argument as any driver takes it: arrays as text in PostgreSQL's own form.
func portable(arg any) any {
	switch list := arg.(type) {
	case []string:
		return array(list, func(b []byte, s string) []byte {
			b = append(b, '"')
			b = append(b, escaper.Replace(s)...)
			return append(b, '"')
		})
	case []int64:
		return array(list, func(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) })
	case [][]byte:
		return array(list, func(b, value []byte) []byte {
			if value == nil {
				return append(b, "NULL"...)
			}
			b = append(b, `"\\x`...)
			b = hex.AppendEncode(b, value)
			return append(b, '"')
		})
	}
	return arg
}

var escaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func array[T any](list []T, appendValue func([]byte, T) []byte) string {
	b := []byte{'{'}
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendValue(b, v)
	}
	return string(append(b, '}'))
}
