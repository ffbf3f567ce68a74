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

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
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
			return c == "created" || c == "destroyed"
		})
		all = append(all, list(fmt.Sprintf("select '%s: ' || quote(%s) from %[1]s order by 1",
			table, strings.Join(columns, ") || ' ' || quote(")))...)
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
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

func prepared(t testing.TB, prepare func(t testing.TB, s *Store, m *storetest.Maker), m *storetest.Maker) []byte {
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
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			file := prepared(t, op.prepare, storetest.NewMaker(1))
			clean := faulty(t, file, &faults{})
			before := dump(t, clean)
			must(t, op.run(t.Context(), clean, clean, storetest.NewMaker(1)))
			done := dump(t, clean)
			for _, after := range []bool{false, true} {
				for _, on := range []bool{false, true} {
					for n := 1; ; n++ {
						f := &faults{}
						s := faulty(t, file, f)
						dump(t, s) // so that the connection is open
						f.reset(n, after, on)
						err := op.run(t.Context(), s, s, storetest.NewMaker(1))
						fired := f.hasFired()
						f.reset(0, false, false)
						checkOutcome(t, fmt.Sprintf("statement %d, after it ran %v, and on %v", n, after, on), err, before, done, dump(t, s))
						again(t, s, op.run)
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

// again shows that the store works: the same once more does its work, or is refused because it was done.
func again(t *testing.T, s *Store, run func(context.Context, *Store, store.Queries, *storetest.Maker) error) {
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
	for _, op := range operations[2:] {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel()
			file := prepared(t, func(t testing.TB, s *Store, m *storetest.Maker) {
				op.prepare(t, s, m)
				mustExec(t, s, "create table own (id integer)")
			}, storetest.NewMaker(1))
			for _, after := range []bool{false, true} {
				for n := 1; ; n++ {
					f := &faults{}
					s := faulty(t, file, f)
					before := dump(t, s)
					tx := begin(t, s)
					_, err := tx.Exec("insert into own (id) values (1)")
					must(t, err)
					f.reset(n, after, false)
					err = op.run(t.Context(), s, s.InTx(tx), storetest.NewMaker(1))
					fired := f.hasFired()
					f.reset(0, false, false)
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
	file := prepared(t, initialized, storetest.NewMaker(1))
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
