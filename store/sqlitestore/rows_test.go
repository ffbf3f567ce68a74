package sqlitestore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// endingRows is a driver whose answers end with an error: the step that fails is the reading of a row, or of their end.
type endingRows struct {
	connector
	faults *sqltest.Faults
}

func (c endingRows) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &endingConn{conn.(*wrappedConn), c.faults}, nil
}

type endingConn struct {
	*wrappedConn
	rows *sqltest.Faults
}

func (c *endingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := c.wrappedConn.QueryContext(ctx, query, args)
	return ending{rows, c.rows}, err
}

func (c *endingConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	stmt, err := c.wrappedConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return &endingStmt{stmt.(*wrappedStmt), c.rows}, nil
}

type endingStmt struct {
	*wrappedStmt
	rows *sqltest.Faults
}

func (s *endingStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := s.wrappedStmt.QueryContext(ctx, args)
	return ending{rows, s.rows}, err
}

type ending struct {
	driver.Rows
	faults *sqltest.Faults
}

func (r ending) Next(into []driver.Value) error {
	if fails, _ := r.faults.Next(); fails {
		return ioError{}
	}
	return r.Rows.Next(into)
}

// onEndingRows is a store on a copy of the file, with a pool of one connection, which is open.
func onEndingRows(t *testing.T, file []byte, f *sqltest.Faults) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.db")
	must(t, os.WriteFile(path, file, 0o600))
	db := sql.OpenDB(endingRows{newConnector(t, path, &faults{}), f})
	db.SetMaxOpenConns(1)
	s, err := New(db)
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(s.Close(), db.Close())) })
	must(t, db.PingContext(t.Context()))
	return s
}

// What every read answers, for one that ends well to be compared with.
var reads = map[string]func(ctx context.Context, s *Store, q store.Queries) (any, error){
	"CheckSchema":  func(ctx context.Context, s *Store, _ store.Queries) (any, error) { return nil, s.CheckSchema(ctx) },
	"Installation": func(ctx context.Context, _ *Store, q store.Queries) (any, error) { return q.Installation(ctx) },
	"Epochs":       func(ctx context.Context, s *Store, _ store.Queries) (any, error) { return s.Epochs(ctx) },
	"Key": func(ctx context.Context, _ *Store, q store.Queries) (any, error) {
		return timeless(q.Key(ctx, key.Ref{Scope: "a", Purpose: "one"}))
	},
	"KeyOfVersion": func(ctx context.Context, _ *Store, q store.Queries) (any, error) {
		f, err := q.Key(ctx, key.Ref{Scope: "a", Purpose: "one"})
		if err != nil {
			return nil, err
		}
		return timeless(q.KeyOfVersion(ctx, f.Data[0].Versions[0].ID))
	},
	"Name": func(ctx context.Context, _ *Store, q store.Queries) (any, error) {
		f, n, err := q.Name(ctx, key.Ref{Scope: "a", Purpose: "named"})
		f.Now = 0
		return []any{f, n}, err
	},
	"Named": func(ctx context.Context, s *Store, _ store.Queries) (any, error) { return s.Named(ctx, "a", "", 10) },
	"NamesNotUnder": func(ctx context.Context, s *Store, _ store.Queries) (any, error) {
		return s.NamesNotUnder(ctx, [16]byte{}, 10)
	},
	"Scope":  func(ctx context.Context, _ *Store, q store.Queries) (any, error) { return timeless(q.Scope(ctx, "a")) },
	"Scopes": func(ctx context.Context, _ *Store, q store.Queries) (any, error) { return q.Scopes(ctx, "", 10) },
	"Families": func(ctx context.Context, s *Store, _ store.Queries) (any, error) {
		all, _, err := s.Families(ctx, []key.Scope{"a", "b"})
		for i := range all {
			all[i].Now = 0
		}
		return all, err
	},
	"Lacking": func(ctx context.Context, s *Store, _ store.Queries) (any, error) {
		return s.Lacking(ctx, "two", "", 10)
	},
	"Escrows": func(ctx context.Context, s *Store, _ store.Queries) (any, error) { return s.Escrows(ctx) },
	"NotUnder": func(ctx context.Context, s *Store, _ store.Queries) (any, error) {
		scopes, _, err := s.NotUnder(ctx, [16]byte{}, "", 10)
		return scopes, err
	},
	"Purposes":   func(ctx context.Context, s *Store, _ store.Queries) (any, error) { return s.Purposes(ctx) },
	"References": func(ctx context.Context, _ *Store, q store.Queries) (any, error) { return q.References(ctx, "") },
	"Integrity":  func(ctx context.Context, s *Store, _ store.Queries) (any, error) { return s.Integrity(ctx) },
}

func rootOf(t testing.TB, s store.Store, scope key.Scope) key.ID {
	t.Helper()
	f, err := s.Key(t.Context(), key.Ref{Scope: scope})
	must(t, err)
	return f.Root.ID
}

func timeless(f store.Family, err error) (store.Family, error) {
	f.Now = 0
	return f, err
}

// An answer that ends with an error is never taken for a shorter one, nor for none, wherever it ends; and the pool's
// only connection can be used afterwards.
func TestAnAnswerThatEndsWithAnErrorIsNoAnswer(t *testing.T) {
	file := prepared(t, func(t testing.TB, s store.Store, m *storetest.Maker) {
		sqltest.WithLife(t, s, m)
		must(t, s.AddEscrow(t.Context(), m.Inst(), store.Escrow{IKKID: m.IKKID(), Event: "written"}))
		must(t, s.PutName(t.Context(), m.Inst(), 0, m.Name(rootOf(t, s, "a"), "named")))
		must(t, s.AddPurposes(t.Context(), []store.Purpose{{Purpose: "one", Alg: key.Message}, {Purpose: "two", Alg: key.Raw}}))
		mustExec(t, s.(*Store), "create table secret (a text references kms_data_key_version, b text references kms_data_key_version)")
	}, storetest.NewMaker(1))
	for name, read := range reads {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &sqltest.Faults{}
			s := onEndingRows(t, file, f)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			want, err := read(ctx, s, s)
			must(t, err)
			for n := 1; ; n++ {
				f.Reset(n, false, false)
				got, err := read(ctx, s, s)
				if !f.Fired() {
					if d := cmp.Diff(want, got); d != "" || err != nil || n < 2 {
						t.Errorf("after %d rows that failed: %v (-first +last):\n%s", n-1, err, d)
					}
					return
				}
				if !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("row %d: %v; want %v", n, err, store.ErrUnavailable)
				}
			}
		})
	}
}

// So it is where a write depends on what it reads first: then nothing is written.
func TestAWriteWhoseReadEndsWithAnErrorIsNotMade(t *testing.T) {
	for _, op := range sqltest.Operations {
		t.Run(op.Name, func(t *testing.T) {
			t.Parallel()
			file := prepared(t, op.Prepare, storetest.NewMaker(1))
			clean := onEndingRows(t, file, &sqltest.Faults{})
			before := dump(t, clean)
			must(t, op.Run(t.Context(), clean, clean, storetest.NewMaker(1)))
			done := dump(t, clean)
			for n := 1; ; n++ {
				f := &sqltest.Faults{}
				s := onEndingRows(t, file, f)
				f.Reset(n, false, false)
				err := op.Run(t.Context(), s, s, storetest.NewMaker(1))
				fired := f.Fired()
				f.Reset(0, false, false)
				sqltest.CheckOutcome(t, err, before, done, dump(t, s))
				if !fired {
					must(t, err)
					if n < 2 {
						t.Error("it reads nothing")
					}
					return
				}
				if err == nil {
					t.Errorf("row %d: no error", n)
				}
			}
		})
	}
}
