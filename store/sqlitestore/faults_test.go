package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// dump is everything in the tables but times, and the schema itself.
func dump(t testing.TB, s *Store) []string {
	t.Helper()
	list := func(text string, args ...any) []string {
		rows, err := s.DB().Query(text, args...)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		defer rows.Close()
		var out []string
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			out = append(out, line)
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := list("select type || ' ' || name || coalesce(sql, '') from sqlite_master order by 1")
	for _, table := range list("select name from sqlite_master where type = 'table' order by name") {
		columns := slices.DeleteFunc(list("select name from pragma_table_info(?)", table), func(c string) bool {
			times := []string{"created", "activated", "retired", "removed", "destroyed", "at"}
			isFlag := c == "removed" && strings.HasSuffix(table, "_data_key_name")
			return slices.Contains(times, c) && !isFlag || c == "n" // of epochs: random
		})
		all = append(all, list(fmt.Sprintf("select '%s: ' || quote(%s) from %[1]s order by 1",
			table, strings.Join(columns, ") || ' ' || quote(")))...)
	}
	return all
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// faulty is a store on a copy of the file, with a pool of one connection.
func faulty(t testing.TB, file []byte, f *faults) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.db")
	must(t, os.WriteFile(path, file, 0o600))
	db := sql.OpenDB(newConnector(t, path, f))
	db.SetMaxOpenConns(1)
	s, err := New(db)
	must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func prepared(t testing.TB, prepare func(t testing.TB, s store.Store, m *storetest.Maker), m *storetest.Maker) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.db")
	s, err := Create(path)
	must(t, err)
	prepare(t, s, m)
	must(t, s.Close())
	file, err := os.ReadFile(path)
	must(t, err)
	return file
}

// TestAnyStatementMayFail fails the n-th statement of each operation, for every n: before it ran, after it ran, and
// with it all that follow. Everything is there afterwards, or nothing, as the error says, and the pool's only
// connection can be used.
func TestAnyStatementMayFail(t *testing.T) {
	for _, op := range sqltest.Operations {
		t.Run(op.Name, func(t *testing.T) {
			t.Parallel()
			file := prepared(t, op.Prepare, storetest.NewMaker(1))
			clean := faulty(t, file, &faults{})
			before := dump(t, clean)
			must(t, op.Run(t.Context(), clean, clean, storetest.NewMaker(1)))
			done := dump(t, clean)
			for _, after := range []bool{false, true} {
				for _, on := range []bool{false, true} {
					for n := 1; ; n++ {
						f := &faults{}
						s := faulty(t, file, f)
						dump(t, s) // so that the connection is open
						f.Reset(n, after, on)
						err := op.Run(t.Context(), s, s, storetest.NewMaker(1))
						fired := f.Fired()
						f.Reset(0, false, false)
						sqltest.CheckOutcome(t, err, before, done, dump(t, s))
						again(t, s, op.Run)
						if !fired {
							if n < 5 {
								t.Errorf("only %d statements", n-1)
							}
							break
						}
					}
				}
			}
		})
	}
}

// again shows that the store works: the same once more does its work, or is refused because it was done.
func again(t *testing.T, s *Store, run func(context.Context, store.Store, store.Queries, *storetest.Maker) error) {
	t.Helper()
	err := run(t.Context(), s, s, storetest.NewMaker(7))
	if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome) || errors.Is(err, context.Canceled) {
		t.Errorf("once more: %v", err)
	}
	if found, err := s.Integrity(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("Integrity: %q, %v", found, err)
	}
}

// TestAnyStatementInATransactionMayFail does the same inside the application's transaction, which is then committed:
// what the application did itself stays, and of the call nothing.
func TestAnyStatementInATransactionMayFail(t *testing.T) {
	for _, op := range sqltest.InTx {
		t.Run(op.Name, func(t *testing.T) {
			t.Parallel()
			file := prepared(t, func(t testing.TB, s store.Store, m *storetest.Maker) {
				op.Prepare(t, s, m)
				mustExec(t, s.(*Store), "create table own (id integer)")
			}, storetest.NewMaker(1))
			for _, after := range []bool{false, true} {
				for n := 1; ; n++ {
					f := &faults{}
					s := faulty(t, file, f)
					before := dump(t, s)
					tx := begin(t, s)
					_, err := tx.Exec("insert into own (id) values (1)")
					must(t, err)
					f.Reset(n, after, false)
					err = op.Run(t.Context(), s, s.InTx(tx), storetest.NewMaker(1))
					fired := f.Fired()
					f.Reset(0, false, false)
					must(t, tx.Commit())
					got := dump(t, s)
					own := slices.Index(got, "own: 1")
					if own < 0 {
						t.Fatalf("statement %d: the application's own row is gone", n)
					}
					got = slices.Delete(got, own, own+1)
					if !fired {
						must(t, err)
						if cmp.Equal(before, got) || n < 5 {
							t.Errorf("nothing was done, or in only %d statements", n-1)
						}
						break
					}
					if errors.Is(err, store.ErrUnknownOutcome) {
						continue // the application has to roll back, and knows
					}
					if !errors.Is(err, store.ErrUnavailable) {
						t.Errorf("statement %d, after it ran %v: %v; want %v", n, after, err, store.ErrUnavailable)
					}
					if d := cmp.Diff(before, got); d != "" {
						t.Errorf("statement %d, after it ran %v: (-before +there):\n%s", n, after, d)
					}
				}
			}
		})
	}
}

func TestAPanicLeavesNoTransactionOpen(t *testing.T) {
	file := prepared(t, sqltest.Initialized, storetest.NewMaker(1))
	s := faulty(t, file, &faults{})
	before := dump(t, s)
	for _, view := range []view{s, &inTx{tables: s.tables, tx: nil}} {
		var tx *sql.Tx
		if v, ok := view.(*inTx); ok {
			tx = begin(t, s)
			v.tx = tx
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = view.write(t.Context(), func(w *writer) error {
				if _, err := w.exec(t.Context(), insertTombstone, "krk_x", 1, "krkv_x", "kek", 1, make([]byte, 32)); err != nil {
					t.Error(err)
				}
				panic("a bug")
			})
		}()
		if tx != nil {
			must(t, tx.Commit())
		}
		if d := cmp.Diff(before, dump(t, s)); d != "" {
			t.Errorf("(-before +there):\n%s", d)
		}
	}
}
