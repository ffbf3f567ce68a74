package sqlitestore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"modernc.org/sqlite"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// endContext is called by the SQL function test_end_context, once.
var endContext atomic.Pointer[func()]

// slow is SQL that ends the context and then takes so long that an interrupt arrives.
const slow = `select max(n) from (
	with recursive c (n) as (select test_end_context() union all select n + 1 from c where n < 400000) select n from c)`

var slowRead = defineSlow()

func defineSlow() query {
	sqlite.MustRegisterScalarFunction("test_end_context", 0, func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
		if end := endContext.Swap(nil); end != nil {
			(*end)()
		}
		return int64(0), nil
	})
	return define(slow)
}

var errReason = errors.New("the operator pulled the plug")

// endingContext is one that the next slow SQL ends.
func endingContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	end := func() { cancel(errReason) }
	endContext.Store(&end)
	t.Cleanup(func() {
		if endContext.Swap(nil) != nil {
			t.Error("the context was never ended")
		}
		cancel(nil)
	})
	return ctx
}

// writesOf says, for each of the operations that a transaction has, which of its writes is to be met by a trigger.
var writesOf = map[string]string{
	"Create": "insert on kms_root_key",
	"Update": "update on kms_data_key",
	"Rewrap": "update on kms_data_key_version",
	"Take":   "insert on kms_usage",
}

// inTheWay is a store with a table of the application's, on whose only connection each of the operations meets the
// given SQL in the middle of a write.
func inTheWay(t *testing.T, write, text string) (*Store, []string) {
	t.Helper()
	s := faulty(t, prepared(t, func(t testing.TB, s store.Store, m *storetest.Maker) {
		sqltest.WithLife(t, s, m)
		mustExec(t, s.(*Store), "create table own (id integer)")
	}, storetest.NewMaker(1)), &faults{})
	before := dump(t, s)
	mustExec(t, s, "create temp trigger in_the_way after "+strings.Replace(write, " on ", " on main.", 1)+" begin "+text+"; end")
	return s, before
}

func TestAContextThatEndsDuringAWriteLeavesTheApplicationsTransaction(t *testing.T) {
	for _, op := range sqltest.InTx {
		t.Run(op.Name, func(t *testing.T) {
			s, before := inTheWay(t, writesOf[op.Name], slow)
			tx := begin(t, s)
			own := func(n int) {
				if _, err := tx.Exec("insert into own (id) values (?)", n); err != nil {
					t.Errorf("the application's own statement %d: %v", n, err)
				}
			}
			own(1)
			err := op.Run(endingContext(t), s, s.InTx(tx), storetest.NewMaker(1))
			if !errors.Is(err, context.Canceled) || !errors.Is(err, errReason) || errors.Is(err, store.ErrUnavailable) {
				t.Errorf("%v; want %v because of %q", err, context.Canceled, errReason)
			}
			own(2)
			if err := tx.Commit(); err != nil {
				t.Errorf("commit: %v", err)
			}
			if d := cmp.Diff(append(before, "own: 1", "own: 2"), dump(t, s), inOrder); d != "" {
				t.Errorf("(-before, with what the application did +there):\n%s", d)
			}
		})
	}
}

var inOrder = cmp.Transformer("sorted", func(lines []string) map[string]int {
	count := map[string]int{}
	for _, l := range lines {
		count[l]++
	}
	return count
})

func TestAContextThatEndsDuringAWriteLeavesNothing(t *testing.T) {
	for _, op := range sqltest.InTx {
		t.Run(op.Name, func(t *testing.T) {
			s, before := inTheWay(t, writesOf[op.Name], slow)
			err := op.Run(endingContext(t), s, s, storetest.NewMaker(1))
			if !errors.Is(err, context.Canceled) || !errors.Is(err, errReason) {
				t.Errorf("%v; want %v because of %q", err, context.Canceled, errReason)
			}
			if d := cmp.Diff(before, dump(t, s)); d != "" {
				t.Errorf("(-before +there):\n%s", d)
			}
			must(t, op.Run(t.Context(), s, s, storetest.NewMaker(1)))
		})
	}
}

// TestAContextThatEndsDuringTheCommit has whoever ends it think that nothing was done in its time.
func TestAContextThatEndsDuringTheCommit(t *testing.T) {
	for _, op := range sqltest.Operations {
		t.Run(op.Name, func(t *testing.T) {
			file := prepared(t, op.Prepare, storetest.NewMaker(1))
			clean := faulty(t, file, &faults{})
			before := dump(t, clean)
			must(t, op.Run(t.Context(), clean, clean, storetest.NewMaker(1)))
			done := dump(t, clean)
			for how, commit := range map[string]func(run func() (driver.Result, error)) error{
				"answered":           func(run func() (driver.Result, error)) error { _, err := run(); return err },
				"not answered":       func(run func() (driver.Result, error)) error { _, err := run(); return errors.Join(ioError{}, err) },
				"failed, and unsaid": func(func() (driver.Result, error)) error { return ioError{} },
			} {
				ctx, cancel := context.WithCancelCause(t.Context())
				s := faulty(t, file, &faults{commit: func(run func() (driver.Result, error)) (driver.Result, error) {
					cancel(store.ErrUnavailable)
					return nil, commit(run)
				}})
				err := op.Run(ctx, s, s, storetest.NewMaker(1))
				if ctx.Err() == nil {
					t.Fatal("there was no commit")
				}
				want := before
				if how != "failed, and unsaid" {
					want = done
				}
				if d := cmp.Diff(want, dump(t, s)); d != "" {
					t.Errorf("%s: (-want +there):\n%s", how, d)
				}
				switch {
				case how == "answered":
					must(t, err)
				case !errors.Is(err, store.ErrUnknownOutcome) || errors.Is(err, store.ErrUnavailable):
					t.Errorf("%s: %v; want %v, and not that nothing was done", how, err, store.ErrUnknownOutcome)
				}
			}
		})
	}
}

// TestAContextThatEndsDuringAReadLeavesTheApplicationsTransaction has a read of the application's open meanwhile: an
// interrupt would last as long as that is, and meet the next write.
func TestAContextThatEndsDuringAReadLeavesTheApplicationsTransaction(t *testing.T) {
	s, _ := inTheWay(t, writesOf["Create"], "select 1")
	mustExec(t, s, "insert into own (id) values (1), (2)")
	tx := begin(t, s)
	_, err := tx.Exec("insert into own (id) values (3)")
	must(t, err)
	rows, err := tx.Query("select id from own")
	must(t, err)
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		if n > 0 {
			continue
		}
		q := s.InTx(tx).Queries.(queries)
		err := q.each(endingContext(t), slowRead, nil, func(*sql.Rows) error { return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the read: %v; want %v", err, context.Canceled)
		}
		if _, err := tx.Exec("update own set id = id + 10"); err != nil {
			t.Errorf("a write after the read: %v", err)
		}
	}
	if err := rows.Err(); err != nil || n != 3 {
		t.Errorf("the application's read: %d rows, %v; want 3", n, err)
	}
	must(t, tx.Commit())
	var sum int
	must(t, s.DB().QueryRow("select sum(id) from own").Scan(&sum))
	if sum != 36 {
		t.Errorf("the sum of what the application wrote is %d; want 36", sum)
	}
}

func TestWaitingForALockInATransactionEndsWithTheBusyTimeout(t *testing.T) {
	m := storetest.NewMaker(1)
	s := faulty(t, prepared(t, sqltest.Initialized, m), &faults{})
	mustExec(t, s, "pragma busy_timeout = 50")
	other, err := Open(fileOf(t, s))
	must(t, err)
	defer other.Close()
	lock := begin(t, other)
	tx, err := s.DB().BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true}) // the way to a transaction that holds no lock yet
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := s.InTx(tx).Create(ctx, m.Inst(), m.Scope("b")); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "locked") {
		t.Errorf("Create: %v; want %v, saying that it is locked", err, store.ErrUnavailable)
	}
	must(t, errors.Join(lock.Rollback(), tx.Rollback()))
}

func TestATransactionThatSQLiteRolledBackIsSaidToBe(t *testing.T) {
	check := func(t *testing.T, s *Store, before []string, err error, tx *sql.Tx) {
		t.Helper()
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "rolled back the whole transaction") {
			t.Errorf("%v; want %v, saying that the whole transaction was rolled back", err, store.ErrUnavailable)
		}
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("%v would have the caller go on in a transaction that is no more", err)
		}
		_ = tx.Rollback() // the driver may say that there is none
		if d := cmp.Diff(before, dump(t, s)); d != "" {
			t.Errorf("(-before +there):\n%s", d)
		}
	}
	for _, op := range sqltest.InTx {
		t.Run(op.Name, func(t *testing.T) {
			s, before := inTheWay(t, writesOf[op.Name], "select raise(rollback, 'the disk has a bad day')")
			tx := begin(t, s)
			_, err := tx.Exec("insert into own (id) values (1)")
			must(t, err)
			err = op.Run(t.Context(), s, s.InTx(tx), storetest.NewMaker(1))
			check(t, s, before, err, tx)
			if !strings.Contains(err.Error(), "a bad day") {
				t.Errorf("%v does not say why", err)
			}
		})
	}
	t.Run("before a conflict", func(t *testing.T) {
		s, before := inTheWay(t, writesOf["Update"], "select 1")
		tx := begin(t, s)
		_, err := tx.Exec("insert into own (id) values (1)")
		must(t, err)
		view := &inTx{tables: s.tables, tx: tx}
		err = view.write(t.Context(), func(w *writer) error {
			_, err := w.conn.ExecContext(t.Context(), "rollback")
			must(t, err)
			return store.ErrConflict
		})
		check(t, s, before, s.tables.explain(t.Context(), "test", err), tx)
	})
}

func TestAnErrorOfTheContextHasItsCause(t *testing.T) {
	s := migrated(t, Config{}, t.TempDir()+"/keys.db")
	withCause, cancel := context.WithCancelCause(t.Context())
	cancel(errReason)
	timeout, cancelTimeout := context.WithTimeoutCause(t.Context(), -1, errReason)
	defer cancelTimeout()
	plain, cancelPlain := context.WithCancel(t.Context())
	cancelPlain()
	for name, c := range map[string]struct {
		ctx   context.Context
		want  []error
		text  string
		never error
	}{
		"a cause":           {withCause, []error{context.Canceled, errReason}, "context canceled: the operator", context.DeadlineExceeded},
		"a timeout's cause": {timeout, []error{context.DeadlineExceeded, errReason}, "deadline exceeded: the operator", context.Canceled},
		"none":              {plain, []error{context.Canceled}, "context canceled", errReason},
	} {
		_, err := s.Key(c.ctx, key.Ref{Scope: "a"})
		for _, want := range c.want {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v; want %v", name, err, want)
			}
		}
		if errors.Is(err, c.never) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want %q, and not %v", name, err, c.text, c.never)
		}
	}
}
