package keyhold_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// shop is an application with a table of tenants, whose keys go with them by a cascade.
type shop struct {
	*keyhold.Manager

	db   *sql.DB
	inTx func(*sql.Tx) store.Tx
	// other is a manager with connections of its own, as another process has.
	other func() *keyhold.Manager
	// restrict is what a foreign key says to refuse a delete. lock locks a tenant's row against it, where a transaction
	// does not lock everything. waiting says whether somebody waits for a lock, where the database tells.
	restrict, lock, waiting string
}

// shops runs f with a shop on each kind of database.
func shops(t *testing.T, f func(t *testing.T, s *shop)) {
	t.Helper()
	root := newRoot(t)
	run := func(name string, make func(t *testing.T) (*shop, func() (store.Store, error))) {
		t.Run(name, func(t *testing.T) {
			s, open := make(t)
			s.other = func() *keyhold.Manager {
				other, err := open()
				must(t, err)
				t.Cleanup(func() { must(t, other.Close()) })
				// Strict, as whoever keeps what it reads would have to be waited for before a version is destroyed.
				cfg := config(root)
				cfg.Strict = true
				m, err := keyhold.New(t.Context(), other, cfg)
				must(t, err)
				t.Cleanup(func() { must(t, m.Close()) })
				return m
			}
			s.Manager = s.other()
			f(t, s)
			checked(t, s.Manager)
		})
	}
	const tenants = "create table tenant (id text primary key)"
	run("sqlite", func(t *testing.T) (*shop, func() (store.Store, error)) {
		path := filepath.Join(t.TempDir(), "app.db")
		c := sqlitestore.Config{ScopeTable: "tenant", ScopeColumn: "id"}
		mine, err := c.Create(path)
		must(t, err)
		t.Cleanup(func() { must(t, mine.Close()) })
		s := &shop{db: mine.DB(), inTx: mine.InTx, restrict: "no action"}
		s.exec(t, tenants)
		return s, func() (store.Store, error) { return c.Open(path) }
	})
	run("postgres", func(t *testing.T) (*shop, func() (store.Store, error)) {
		dsn := keyholdtest.Postgres(t)
		db, err := sql.Open("pgx", dsn)
		must(t, err)
		t.Cleanup(func() { must(t, db.Close()) })
		c := pgstore.Config{ScopeTable: "tenant", ScopeColumn: "id"}
		mine, err := c.FromSQL(db)
		must(t, err)
		s := &shop{
			db: db, inTx: mine.InSQLTx, restrict: "restrict",
			lock:    "select 1 from tenant where id = $1 for key share",
			waiting: "select count(*) > 0 from pg_locks where not granted and pid in (select pid from pg_stat_activity where datname = current_database())",
		}
		s.exec(t, tenants)
		return s, func() (store.Store, error) { return c.Open(t.Context(), dsn) }
	})
}

func (s *shop) exec(t testing.TB, text string, args ...any) {
	t.Helper()
	_, err := s.db.ExecContext(t.Context(), text, args...)
	must(t, err)
}

func (s *shop) count(t testing.TB, of string, args ...any) (n int) {
	t.Helper()
	must(t, s.db.QueryRowContext(t.Context(), "select count(*) from "+of, args...).Scan(&n))
	return n
}

// transaction runs f in a transaction, which it commits unless f returns an error.
func (s *shop) transaction(ctx context.Context, f func(tx *sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// signUp makes a tenant with its keys.
func (s *shop) signUp(t testing.TB, scope key.Scope) {
	t.Helper()
	must(t, s.transaction(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(t.Context(), "insert into tenant values ($1)", string(scope)); err != nil {
			return err
		}
		return s.CreateScopeTx(t.Context(), s.inTx(tx), scope)
	}))
}

// untilWaiting returns when somebody waits for a lock. SQLite does not say; there, whoever waits asks again and again,
// and what comes of it is the same whether it began to.
func (s *shop) untilWaiting(t testing.TB) {
	t.Helper()
	for waits := s.waiting == ""; !waits; {
		must(t, s.db.QueryRowContext(t.Context(), s.waiting).Scan(&waits))
	}
}

// disabled makes n disabled versions of a scope's key for secrets, and returns their ids and what each of them sealed.
func (s *shop) disabled(t testing.TB, scope key.Scope, n int) (list []key.ID, sealed [][]byte) {
	t.Helper()
	for range n {
		id, ct, err := s.SealDetached(t.Context(), in(scope), []byte("x"), keyhold.AAD{})
		must(t, err)
		_, err = s.Rotate(t.Context(), in(scope))
		must(t, err)
		must(t, s.Disable(t.Context(), id))
		list, sealed = append(list, id), append(sealed, ct)
	}
	return list, sealed
}

// refusedByForeignKey says whether the database refused an insert because the row that it refers to is not there.
func refusedByForeignKey(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code == "23503"
	}
	return err != nil && strings.Contains(err.Error(), "FOREIGN KEY constraint failed")
}

// A row that refers to a version is inserted while the version is destroyed: the row comes first and the version stays,
// or the version goes first and the row is refused, whatever the foreign key does on delete.
func TestRaceOfDestroyAndInsertHasOneWinner(t *testing.T) {
	shops(t, func(t *testing.T, s *shop) {
		won := map[string]int{}
		for _, action := range []string{"restrict", "cascade"} {
			onDelete := action
			if action == "restrict" {
				onDelete = s.restrict
			}
			s.exec(t, "create table secret_"+action+" (key_id text references kms_data_key_version (private_id) on delete "+onDelete+")")
		}
		destroyer := s.other()
		for i := range repeats(t) {
			scope := key.Scope(fmt.Sprint("s", i))
			s.signUp(t, scope)
			ids, sealed := s.disabled(t, scope, 6)
			for j, id := range ids {
				table := "secret_" + []string{"restrict", "cascade"}[j%2]
				order := []string{"insert first", "destroy first", "at once"}[j/2]
				inserted, destroyed := s.insertAndDestroy(t, destroyer, order, table, id)
				rows := s.count(t, table+" where key_id = $1", string(id))
				versions := s.count(t, "kms_data_key_version where private_id = $1", string(id))
				use, inUse := errors.AsType[*keyhold.InUseError](destroyed)
				var winner string
				switch {
				case inserted == nil && rows == 1 && inUse && use.ID == id && versions == 1:
					winner = "insert first"
					must(t, s.Enable(t.Context(), id))
					pt, err := s.OpenDetached(t.Context(), in(scope), id, sealed[j], keyhold.AAD{})
					if err != nil || string(pt) != "x" {
						t.Errorf("open with the version that stays: %q, %v", pt, err)
					}
				case refusedByForeignKey(inserted) && rows == 0 && destroyed == nil && versions == 0:
					winner = "destroy first"
				default:
					t.Errorf("%s, %s: insert: %v, %d rows; destroy: %v, %d versions", table, order, inserted, rows, destroyed, versions)
				}
				if order != "at once" && winner != order {
					t.Errorf("%s, %s: %s", table, order, winner)
				}
				won[order+": "+winner]++
			}
		}
		t.Logf("who was first: %v", won)
	})
}

// insertAndDestroy inserts a row that has the version's id and destroys the version. The one that is to be first is
// committed when the other is under way.
func (s *shop) insertAndDestroy(t *testing.T, m *keyhold.Manager, order, table string, id key.ID) (inserted, destroyed error) {
	t.Helper()
	ctx := t.Context()
	insert := func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "insert into "+table+" values ($1)", string(id))
		return err
	}
	begun := make(chan struct{})
	var wg sync.WaitGroup
	other := func(f func() error, result *error) {
		wg.Go(func() {
			<-begun
			*result = f()
		})
	}
	underWay := func() {
		close(begun)
		s.untilWaiting(t)
	}
	switch order {
	case "insert first":
		other(func() error { return m.Destroy(ctx, id) }, &destroyed)
		inserted = s.transaction(ctx, func(tx *sql.Tx) error {
			err := insert(tx)
			underWay()
			return err
		})
	case "destroy first":
		other(func() error { return s.transaction(ctx, insert) }, &inserted)
		destroyed = s.transaction(ctx, func(tx *sql.Tx) error {
			err := s.DestroyTx(ctx, s.inTx(tx), id)
			underWay()
			return err
		})
	default:
		other(func() error { return m.Destroy(ctx, id) }, &destroyed)
		other(func() error { return s.transaction(ctx, insert) }, &inserted)
		close(begun)
	}
	wg.Wait()
	return inserted, destroyed
}

// A tenant is deleted, or its scope shredded, while others rotate and rewrap its keys, by themselves and in the
// application's transactions. All of them succeed until it is gone, and then find nothing; no transaction is given up
// in favour of another.
func TestRaceOfRotationAndDeletedTenantLeavesTombstonesAlone(t *testing.T) {
	shops(t, func(t *testing.T, s *shop) {
		others := []*keyhold.Manager{s.other(), s.other(), s.other(), s.other()}
		for i := range repeats(t) {
			for _, deletion := range []string{"delete", "shred"} {
				scope := key.Scope(fmt.Sprint(deletion, i))
				s.signUp(t, scope)
				s.deleteWhileRotated(t, others, scope, i, func(ctx context.Context) error {
					if deletion == "shred" {
						_, err := s.Shred(ctx, scope)
						return err
					}
					return s.transaction(ctx, func(tx *sql.Tx) error {
						_, err := tx.ExecContext(ctx, "delete from tenant where id = $1", string(scope))
						return err
					})
				})
				if t.Failed() {
					t.Fatalf("repetition %d, %s", i, deletion)
				}
			}
		}
	})
}

// detail is what PostgreSQL says of an error besides: of a deadlock, who waited for whom.
func detail(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return ": " + pg.Detail
	}
	return ""
}

func (s *shop) deleteWhileRotated(t *testing.T, others []*keyhold.Manager, scope key.Scope, i int, del func(context.Context) error) {
	t.Helper()
	ctx := t.Context()
	root := key.Ref{Scope: scope}
	keys, err := s.Keys(ctx, scope)
	must(t, err)

	var mu sync.Mutex
	newest := map[key.Ref]key.Version{} // that somebody was told of
	made := func(r key.Ref, n key.Version) {
		mu.Lock()
		newest[r] = max(newest[r], n)
		mu.Unlock()
	}
	rotate := func(m *keyhold.Manager, r key.Ref) func() error {
		return func() error {
			n, err := m.Rotate(ctx, r)
			if err == nil {
				made(r, n)
			}
			return err
		}
	}
	rotateTx := func() error {
		var versions [2]key.Version
		err := s.transaction(ctx, func(tx *sql.Tx) (err error) {
			if s.lock != "" {
				if _, err := tx.ExecContext(ctx, s.lock, string(scope)); err != nil {
					return err
				}
			}
			if versions[0], err = s.RotateTx(ctx, s.inTx(tx), root); err != nil {
				return err
			}
			if versions[1], err = s.RotateTx(ctx, s.inTx(tx), in(scope)); err != nil {
				return err
			}
			_, err = s.RewrapTx(ctx, s.inTx(tx), scope)
			return err
		})
		if err == nil {
			made(root, versions[0])
			made(in(scope), versions[1])
		}
		return err
	}
	rewrap := func() error {
		_, err := others[3].Rewrap(ctx, scope)
		return err
	}

	work := []func() error{rotate(others[0], in(scope)), rotate(others[1], in(scope)), rotate(others[2], root), rotateTx, rotateTx, rewrap}
	enough := make(chan struct{}) // each sends when it is to be deleted at any moment
	gone := make(chan struct{})
	var wg sync.WaitGroup
	for j, f := range work {
		wg.Go(func() {
			before := 1 + (i+j)%3
			for n := range before + 3 {
				if n == before {
					enough <- struct{}{}
				}
				err := f()
				if err != nil && n < before {
					t.Errorf("work %d: %v, before it is deleted", j, err)
					enough <- struct{}{}
					return
				}
				if errors.Is(err, keyhold.ErrNotFound) {
					return
				}
				if err != nil {
					t.Errorf("work %d: %v%s", j, err, detail(err))
				}
			}
			<-gone
			if err := f(); !errors.Is(err, keyhold.ErrNotFound) {
				t.Errorf("work %d, when it is deleted: %v; want %v", j, err, keyhold.ErrNotFound)
			}
		})
	}
	for range work {
		<-enough
	}
	if err := del(ctx); err != nil {
		t.Errorf("delete: %v%s", err, detail(err))
	}
	close(gone)
	wg.Wait()

	for _, table := range []string{"root_key", "root_key_version", "data_key", "data_key_version"} {
		if n := s.count(t, "kms_"+table); n != 0 {
			t.Errorf("%d rows of %s are left", n, table)
		}
	}
	for _, k := range keys {
		dead := s.count(t, "kms_tombstone where key_id = $1", string(k.ID))
		last := s.count(t, "kms_tombstone where key_id = $1 and version <= $2", string(k.ID), int64(newest[k.Ref]))
		// A version whose maker was not told of it any more has a tombstone, too.
		if n := int(newest[k.Ref]); last != n || dead < max(n, 1) || dead > n+len(work) {
			t.Errorf("%v: %d tombstones, %d of them up to version %d, which was made", k.Ref, dead, last, n)
		}
	}
}
