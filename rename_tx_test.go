package keyhold_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// What a transaction confirmed is confirmed if it is committed, and known nowhere if it is not.
func TestConfirmationInATransaction(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		cascade(t, w.store, tenant, "new")
		for _, commits := range []bool{false, true} {
			tx, commit, rollback := w.kind.begin(t, w.store)
			must(t, w.RenameScopeTx(ctx, tx, tenant, "new"))
			must(t, w.RenameScopeTx(ctx, tx, tenant, "new"))
			pt, err := w.OpenTx(ctx, tx, in("new"), ct, keyhold.AAD{})
			if err != nil || string(pt) != "x" {
				t.Errorf("inside: %q, %v", pt, err)
			}
			_, err = w.SealTx(ctx, tx, in("new"), nil, keyhold.AAD{})
			must(t, err)
			if commits {
				must(t, commit())
				break
			}
			must(t, rollback())
			refused(t, w, "new")
			cascade(t, w.store, "new", tenant)
			// Had the manifest that was rolled back been kept, this one would be older.
			_, err = w.Rotate(ctx, key.Ref{Scope: tenant})
			must(t, err)
			cascade(t, w.store, tenant, "new")
		}
		opens(t, w.Manager, in("new"), ct, keyhold.AAD{}, "x")
	})
}

// What is unknown inside the application's transaction is told, as the application has to roll it back.
func TestUnknownConfirmationInATransactionIsTold(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		cascade(t, w.store, tenant, "new")
		faulty := faultstore.New(w.store)
		m := newManager(t, faulty, w.root)
		tx, _, rollback := w.kind.begin(t, w.store)
		faulty.Fail(1, faultstore.After) // the read, then the write
		fails(t, m.RenameScopeTx(t.Context(), faulty.InTx(tx), tenant, "new"), keyhold.ErrUnknownOutcome)
		must(t, rollback())
		refused(t, w, "new")
		must(t, w.RenameScope(t.Context(), tenant, "new"))
	})
}

// moveTenant renames a tenant and confirms it, in one transaction.
func (a *application) moveTenant(t *testing.T, old, renamed key.Scope) error {
	t.Helper()
	tx := a.begin(t)
	err := func() error {
		if err := tx.exec("update tenant set id = $1 where id = $2", string(renamed), string(old)); err != nil {
			return err
		}
		if err := a.RenameScopeTx(t.Context(), tx.Tx, old, renamed); err != nil {
			return err
		}
		return tx.commit()
	}()
	if err != nil {
		_ = tx.rollback() // its error says that the transaction is over already
	}
	return err
}

// The connection is lost before each statement in turn, the commit among them: the tenant has its old name and its
// keys, and the next attempt succeeds.
func TestTenantIsRenamedWithItsKeysOrNotAtAll(t *testing.T) {
	applications(t, func(t *testing.T, a *application) {
		a.sql(t, "alter table secret drop constraint secret_tenant_fkey, "+
			"add foreign key (tenant) references tenant (id) on update cascade")
		must(t, a.signUp(t, "old"))
		// A transaction that a lost connection kept from beginning is not what this is about.
		for n := int64(2); ; n++ {
			a.trips.left.Store(n)
			err := a.moveTenant(t, "old", "new")
			if a.trips.left.Swap(0) > 0 {
				must(t, err)
				if n < 6 {
					t.Errorf("only %d statements: the sweep tested nothing", n)
				}
				break
			}
			if err == nil {
				t.Fatalf("statement %d was not made, and nobody said so", n)
			}
			a.signedUp(t, "old", true)
			a.signedUp(t, "new", false)
		}
		a.signedUp(t, "new", true)
		a.Manager = newManager(t, openPostgres(t, a.dsn), a.root) // the other one has the old name at hand
		a.signedUp(t, "old", false)
		sealed(t, a.Manager, in("new"), "x", keyhold.AAD{})
	})
}

// The commit is done and its answer lost: the application gets an error, and the tenant has its new name.
func TestRenameSurvivesALostAnswerToCommit(t *testing.T) {
	dsn := keyholdtest.Postgres(t)
	proxy := newProxy(t, dsn)
	a := newApplication(t, "pgx", dsn, func(c *pgx.ConnConfig) { c.DialFunc = proxy.dial })
	proxy.loseCommit.Store(true)
	if err := a.moveTenant(t, tenant, "new"); err == nil {
		t.Error("no error, although the answer was lost")
	}
	if proxy.loseCommit.Load() {
		t.Fatal("no commit was seen")
	}
	sealed(t, a.Manager, in("new"), "x", keyhold.AAD{})

	// A call of keyhold's own reads again, and finds that it is done.
	a.sql(t, "update tenant set id = 'newer' where id = 'new'")
	proxy.loseCommit.Store(true)
	must(t, a.RenameScope(t.Context(), "new", "newer"))
	if proxy.loseCommit.Load() {
		t.Fatal("no commit was seen")
	}
	sealed(t, a.Manager, in("newer"), "x", keyhold.AAD{})
	checked(t, a.Manager)
}

// On SQLite, too, a tenant is renamed and confirmed in one transaction.
func TestSQLiteTenantIsRenamedWithItsKeysOrNotAtAll(t *testing.T) {
	ctx := t.Context()
	s, err := sqlitestore.Config{ScopeTable: "tenant", ScopeColumn: "id"}.Create(filepath.Join(t.TempDir(), "app.db"))
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	_, err = s.DB().ExecContext(ctx, "create table tenant (id text primary key); insert into tenant values ('org_42')")
	must(t, err)
	m := newManager(t, s, newRoot(t))
	must(t, m.CreateScope(ctx, tenant))
	ct := sealed(t, m, ref, "x", keyhold.AAD{})
	for _, end := range []func(*sql.Tx) error{(*sql.Tx).Rollback, (*sql.Tx).Commit} {
		opens(t, m, ref, ct, keyhold.AAD{}, "x")
		tx, err := s.DB().BeginTx(ctx, nil)
		must(t, err)
		_, err = tx.ExecContext(ctx, "update tenant set id = 'new'")
		must(t, err)
		must(t, m.RenameScopeTx(ctx, s.InTx(tx), tenant, "new"))
		must(t, end(tx))
	}
	opens(t, m, in("new"), ct, keyhold.AAD{}, "x")
	checked(t, m)
}

// An application that renames while others use the tenant is never answered with anything but that it is there under
// the one name or the other.
func TestUseBesideRename(t *testing.T) {
	ctx := t.Context()
	a := newApplication(t, "pgx", keyholdtest.Postgres(t), func(*pgx.ConnConfig) {})
	ct := sealed(t, a.Manager, ref, "x", keyhold.AAD{})
	readers, stop := context.WithCancel(ctx)
	var found atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for readers.Err() == nil {
				for _, scope := range []key.Scope{tenant, "new"} {
					switch pt, err := a.Open(ctx, in(scope), ct, keyhold.AAD{}); {
					case err == nil && string(pt) == "x":
						found.Add(1)
					case !errors.Is(err, keyhold.ErrNotFound):
						t.Errorf("open in %q: %q, %v", scope, pt, err)
					}
				}
			}
		})
	}
	for range 20 {
		must(t, a.moveTenant(t, tenant, "new"))
		must(t, a.moveTenant(t, "new", tenant))
	}
	stop()
	wg.Wait()
	if found.Load() == 0 {
		t.Error("it was never found")
	}
}
