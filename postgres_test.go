package keyhold_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
)

// application is one with tenants and their secrets in tables of its own, and keyhold's tables among them.
type application struct {
	*keyhold.Manager

	dsn   string
	root  *countingRoot
	begin func(t *testing.T) appTx
	trips tracer
}

// appTx is the application's transaction, by whatever driver.
type appTx struct {
	store.Tx

	exec             func(text string, args ...any) error
	commit, rollback func() error
}

// tracer sees each statement, or batch of them, before it is sent, which is a round trip to the server.
type tracer struct {
	count atomic.Int64
	left  atomic.Int64 // until the connection is cut: 1 means before the next statement; 0 means never
	cut   func(pid uint32)
}

func (tr *tracer) trip(conn *pgx.Conn, text string) {
	if text != "begin" && text != "commit" {
		tr.count.Add(1)
	}
	if tr.left.Load() > 0 && tr.left.Add(-1) == 0 {
		tr.cut(conn.PgConn().PID())
	}
}

func (tr *tracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	tr.trip(conn, data.SQL)
	return ctx
}

func (tr *tracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	tr.trip(conn, "")
	return ctx
}

func (*tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData)     {}
func (*tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*tracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// applications runs f with an application on pgx, and with one on database/sql.
func applications(t *testing.T, f func(t *testing.T, a *application)) {
	t.Helper()
	for _, driver := range []string{"pgx", "database/sql"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			a := newApplication(t, driver, keyholdtest.Postgres(t), func(*pgx.ConnConfig) {})
			f(t, a)
			checked(t, a.Manager)
		})
	}
}

// newApplication makes the tables in a database, and connects as change says.
func newApplication(t *testing.T, driver, dsn string, change func(*pgx.ConnConfig)) *application {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	a := &application{dsn: dsn, root: &countingRoot{Wrapper: newRoot(t)}}
	setUp := newManager(t, openPostgres(t, dsn), a.root)
	must(t, setUp.CreateScope(ctx, tenant))
	a.sql(t, `
create table tenant (id text primary key, name text);
insert into tenant (id) values ('org_42');
alter table kms_root_key add foreign key (scope_id) references tenant (id) on delete cascade on update cascade;
create table secret (
	tenant text references tenant (id),
	key_id text references kms_data_key_version (private_id) on delete restrict,
	sealed bytea)`)

	admin, err := pgx.Connect(ctx, dsn)
	must(t, err)
	t.Cleanup(func() { must(t, admin.Close(ctx)) })
	a.trips.cut = func(pid uint32) {
		var gone bool
		if err := admin.QueryRow(ctx, "select pg_terminate_backend($1, 10000)", int32(pid)).Scan(&gone); err != nil || !gone {
			t.Errorf("cut the connection: %v, %v", gone, err)
		}
	}

	config, err := pgxpool.ParseConfig(dsn)
	must(t, err)
	change(config.ConnConfig)
	config.ConnConfig.Tracer = &a.trips
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	var s *pgstore.Store
	if driver == "pgx" {
		pool, err := pgxpool.NewWithConfig(ctx, config)
		must(t, err)
		t.Cleanup(pool.Close)
		s, err = pgstore.New(pool)
		must(t, err)
		a.begin = func(t *testing.T) appTx {
			t.Helper()
			tx, err := pool.Begin(ctx)
			must(t, err)
			return appTx{
				s.InTx(tx),
				func(text string, args ...any) error { _, err := tx.Exec(ctx, text, args...); return err },
				func() error { return tx.Commit(ctx) },
				func() error { return tx.Rollback(ctx) },
			}
		}
	} else {
		db := stdlib.OpenDB(*config.ConnConfig)
		t.Cleanup(func() { must(t, db.Close()) })
		s, err = pgstore.FromSQL(db)
		must(t, err)
		a.begin = func(t *testing.T) appTx {
			t.Helper()
			tx, err := db.BeginTx(ctx, nil)
			must(t, err)
			return appTx{
				s.InSQLTx(tx),
				func(text string, args ...any) error { _, err := tx.ExecContext(ctx, text, args...); return err },
				tx.Commit, tx.Rollback,
			}
		}
	}
	a.Manager = newManager(t, s, a.root)
	return a
}

// sql runs statements of the application's past everything that is tested.
func (a *application) sql(t *testing.T, text string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, a.dsn)
	must(t, err)
	_, err = conn.Exec(ctx, text)
	must(t, errors.Join(err, conn.Close(ctx)))
}

// rows asks how many there are.
func (a *application) rows(t *testing.T, of string) (n int) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, a.dsn)
	must(t, err)
	err = conn.QueryRow(ctx, "select count(*) from "+of).Scan(&n)
	must(t, errors.Join(err, conn.Close(ctx)))
	return n
}

// signUp makes a tenant with its keys and a first secret, all in one transaction.
func (a *application) signUp(t *testing.T, scope key.Scope) error {
	t.Helper()
	ctx := t.Context()
	tx := a.begin(t)
	err := func() error {
		if err := tx.exec("insert into tenant (id) values ($1)", string(scope)); err != nil {
			return err
		}
		if err := a.CreateScopeTx(ctx, tx.Tx, scope); err != nil {
			return err
		}
		id, ct, err := a.SealDetachedTx(ctx, tx.Tx, key.Ref{Scope: scope, Purpose: secrets}, []byte("first"), keyhold.AAD{})
		if err != nil {
			return err
		}
		if err := tx.exec("insert into secret (tenant, key_id, sealed) values ($1, $2, $3)", string(scope), string(id), ct); err != nil {
			return err
		}
		return tx.commit()
	}()
	if err != nil {
		_ = tx.rollback() // its error says that the transaction is over already
	}
	return err
}

// signedUp asserts that all of signUp is there, or nothing.
func (a *application) signedUp(t *testing.T, scope key.Scope, want bool) {
	t.Helper()
	ctx := t.Context()
	there := map[string]int{
		"tenant": a.rows(t, "tenant where id = '"+string(scope)+"'"),
		"secret": a.rows(t, "secret where tenant = '"+string(scope)+"'"),
		"key":    a.rows(t, "kms_root_key where scope_id = '"+string(scope)+"'"),
	}
	for what, n := range there {
		if (n == 1) != want || n > 1 {
			t.Errorf("%s of %s: %d, want it: %v", what, scope, n, want)
		}
	}
	if !want {
		_, err := a.Seal(ctx, key.Ref{Scope: scope, Purpose: secrets}, nil, keyhold.AAD{})
		fails(t, err, keyhold.ErrNotFound)
		return
	}
	conn, err := pgx.Connect(ctx, a.dsn)
	must(t, err)
	var id string
	var ct []byte
	must(t, conn.QueryRow(ctx, "select key_id, sealed from secret where tenant = $1", string(scope)).Scan(&id, &ct))
	must(t, conn.Close(ctx))
	pt, err := a.OpenDetached(ctx, key.Ref{Scope: scope, Purpose: secrets}, key.ID(id), ct, keyhold.AAD{})
	if err != nil || string(pt) != "first" {
		t.Errorf("the first secret of %s: %q, %v", scope, pt, err)
	}
}

func TestTenantAndKeysAreMadeTogether(t *testing.T) {
	applications(t, func(t *testing.T, a *application) {
		must(t, a.signUp(t, "new"))
		a.signedUp(t, "new", true)

		tx := a.begin(t)
		must(t, tx.exec("insert into tenant (id) values ('gone')"))
		must(t, a.CreateScopeTx(t.Context(), tx.Tx, "gone"))
		must(t, tx.rollback())
		a.signedUp(t, "gone", false)

		// A scope without a tenant is refused, and the transaction goes on.
		tx = a.begin(t)
		fails(t, a.CreateScopeTx(t.Context(), tx.Tx, "nobody"), keyhold.ErrForeignKey)
		must(t, tx.exec("insert into tenant (id) values ('somebody')"))
		must(t, a.CreateScopeTx(t.Context(), tx.Tx, "somebody"))
		must(t, tx.commit())
		sealed(t, a.Manager, key.Ref{Scope: "somebody", Purpose: secrets}, "x", keyhold.AAD{})
	})
}

// Scopes without a tenant are refused, and named, and keep no other from being created.
func TestCreateScopesLeavesOutWhatHasNoTenant(t *testing.T) {
	applications(t, func(t *testing.T, a *application) {
		var scopes []key.Scope
		for i := range 60 {
			scope := key.Scope(fmt.Sprintf("t%02d", i))
			scopes = append(scopes, scope)
			if i != 7 && i != 44 {
				a.sql(t, "insert into tenant (id) values ('"+string(scope)+"')")
			}
		}
		n, err := a.CreateScopes(t.Context(), scopes)
		fails(t, err, keyhold.ErrForeignKey)
		for _, scope := range []string{"t07", "t44"} {
			if !strings.Contains(err.Error(), scope) {
				t.Errorf("%q does not name %s", err, scope)
			}
		}
		if n != 58 || strings.Count(err.Error(), "\n") != 1 {
			t.Errorf("created %d, want 58: %v", n, err)
		}
		sealed(t, a.Manager, key.Ref{Scope: "t59", Purpose: secrets}, "x", keyhold.AAD{})
	})
}

// The connection is lost before each statement in turn, the commit among them: nothing is there afterwards, and the
// next attempt succeeds.
func TestTenantAndKeysSurviveALostConnection(t *testing.T) {
	applications(t, func(t *testing.T, a *application) {
		// A transaction that a lost connection kept from beginning is not what this is about.
		for n := int64(2); ; n++ {
			a.trips.left.Store(n)
			err := a.signUp(t, "new")
			if a.trips.left.Swap(0) > 0 {
				must(t, err)
				if n < 6 {
					t.Errorf("only %d statements: the sweep tested nothing", n)
				}
				a.signedUp(t, "new", true)
				return
			}
			if err == nil {
				t.Fatalf("statement %d was not made, and nobody said so", n)
			}
			a.signedUp(t, "new", false)
		}
	})
}

// The commit is done and its answer lost: the application gets an error, and all is there.
func TestTenantAndKeysSurviveALostAnswerToCommit(t *testing.T) {
	for _, driver := range []string{"pgx", "database/sql"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			dsn := keyholdtest.Postgres(t)
			proxy := newProxy(t, dsn)
			a := newApplication(t, driver, dsn, func(c *pgx.ConnConfig) { c.DialFunc = proxy.dial })
			proxy.loseCommit.Store(true)
			if err := a.signUp(t, "new"); err == nil {
				t.Error("no error, although the answer was lost")
			}
			if proxy.loseCommit.Load() {
				t.Fatal("no commit was seen")
			}
			a.signedUp(t, "new", true)

			// A call of keyhold's own reads again, and finds that it is done.
			a.sql(t, "insert into tenant (id) values ('alone')")
			proxy.loseCommit.Store(true)
			must(t, a.CreateScope(t.Context(), "alone"))
			if proxy.loseCommit.Load() {
				t.Fatal("no commit was seen")
			}
			sealed(t, a.Manager, key.Ref{Scope: "alone", Purpose: secrets}, "x", keyhold.AAD{})
			checked(t, a.Manager)
		})
	}
}

// proxy passes on what a client and the server say to each other.
type proxy struct {
	dial       func(ctx context.Context, network, address string) (net.Conn, error)
	loseCommit atomic.Bool // the next answer to a commit is lost with its connection
}

func newProxy(t *testing.T, dsn string) *proxy {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	must(t, err)
	p := &proxy{}
	p.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		server, err := config.DialFunc(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &watched{Conn: server, proxy: p}, nil
	}
	return p
}

// watched is a connection on which the answer to a commit is lost when the proxy says so. A driver sends a commit by
// itself.
type watched struct {
	net.Conn

	proxy *proxy
	lost  atomic.Bool
}

func (w *watched) Write(b []byte) (int, error) {
	if bytes.Contains(bytes.ToLower(b), []byte("commit\x00")) && w.proxy.loseCommit.CompareAndSwap(true, false) {
		w.lost.Store(true)
	}
	return w.Conn.Write(b)
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if w.lost.Load() {
		// The server answers a commit when it is done.
		return 0, errors.Join(io.ErrUnexpectedEOF, w.Conn.Close())
	}
	return n, err
}

func TestDeletingTheTenantDeletesItsKeys(t *testing.T) {
	applications(t, func(t *testing.T, a *application) {
		must(t, a.signUp(t, "new"))
		versions := a.rows(t, "kms_data_key_version v join kms_data_key k on k.private_id = v.data_key_id "+
			"join kms_root_key r on r.private_id = k.root_key_id where r.scope_id = 'new'") + 1

		// The tenant's secret would be lost with its key, and refuses that.
		tx := a.begin(t)
		if err := tx.exec("delete from tenant where id = 'new'"); err == nil || !strings.Contains(err.Error(), "secret") {
			t.Errorf("delete a tenant with secrets: %v, want it refused", err)
		}
		must(t, tx.rollback())
		a.signedUp(t, "new", true)

		tx = a.begin(t)
		must(t, tx.exec("delete from secret where tenant = 'new'"))
		must(t, tx.exec("delete from tenant where id = 'new'"))
		must(t, tx.commit())
		if n := a.rows(t, "kms_tombstone"); n != versions {
			t.Errorf("%d tombstones, want %d", n, versions)
		}
		m := newManager(t, openPostgres(t, a.dsn), a.root)
		_, err := m.Seal(t.Context(), key.Ref{Scope: "new", Purpose: secrets}, nil, keyhold.AAD{})
		fails(t, err, keyhold.ErrNotFound)

		// A tenant of the same name has nothing of the old one.
		must(t, a.signUp(t, "new"))
	})
}

func TestRenamingTheTenantIsNoticed(t *testing.T) {
	ctx := t.Context()
	a := newApplication(t, "pgx", keyholdtest.Postgres(t), func(*pgx.ConnConfig) {})
	must(t, a.signUp(t, "old"))
	a.sql(t, "alter table secret drop constraint secret_tenant_fkey; update tenant set id = 'renamed' where id = 'old'")
	m := newManager(t, openPostgres(t, a.dsn), a.root)
	_, err := m.Seal(ctx, key.Ref{Scope: "renamed", Purpose: secrets}, nil, keyhold.AAD{})
	integrity(t, err)
	_, err = m.Seal(ctx, key.Ref{Scope: "old", Purpose: secrets}, nil, keyhold.AAD{})
	fails(t, err, keyhold.ErrNotFound)
	a.sql(t, "update tenant set id = 'old' where id = 'renamed'")
	sealed(t, m, key.Ref{Scope: "old", Purpose: secrets}, "x", keyhold.AAD{})
}

// What calls cost in round trips to the server, besides begin and commit.
func TestRoundTripsToPostgres(t *testing.T) {
	ctx := t.Context()
	a := newApplication(t, "pgx", keyholdtest.Postgres(t), func(*pgx.ConnConfig) {})
	a.sql(t, "insert into tenant (id) values ('new'), ('other')")
	three, err := keyhold.New(ctx, openTraced(t, a), keyhold.Config{Root: a.root, Purposes: []key.Purpose{"a", "b", "c"}})
	must(t, err)
	defer three.Close()
	ref := key.Ref{Scope: "new", Purpose: "a"}
	var ct []byte
	for _, step := range []struct {
		name string
		most int64
		do   func() error
	}{
		{"create a scope with 3 purposes", 2, func() error { return three.CreateScope(ctx, "new") }},
		{"seal with a cold key", 2, func() (err error) { ct, err = three.Seal(ctx, ref, nil, keyhold.AAD{}); return err }},
		{"seal with a hot key", 0, func() error { _, err := three.Seal(ctx, ref, nil, keyhold.AAD{}); return err }},
		{"open with a hot key", 0, func() error { _, err := three.Open(ctx, ref, ct, keyhold.AAD{}); return err }},
		{"create a scope with 3 purposes in a transaction", 2, func() error {
			tx := a.begin(t)
			return errors.Join(three.CreateScopeTx(ctx, tx.Tx, "other"), tx.commit())
		}},
	} {
		before := a.trips.count.Load()
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got := a.trips.count.Load() - before; got > step.most || got == 0 && step.most > 0 {
			t.Errorf("%s: %d round trips, want at most %d", step.name, got, step.most)
		}
	}
}

// As many as the documentation says, besides commit; and where a version is in use, which its tenant's secret has, not
// more than what finds out which rows those are, and a rollback.
func TestRoundTripsOfGivingUpVersions(t *testing.T) {
	ctx := t.Context()
	a := newApplication(t, "pgx", keyholdtest.Postgres(t), func(*pgx.ConnConfig) {})
	must(t, a.signUp(t, "new"))
	m := newManager(t, openTraced(t, a), a.root)
	root, data := key.Ref{Scope: "new"}, key.Ref{Scope: "new", Purpose: secrets}
	for range 20 {
		_, err := m.Rotate(ctx, data)
		must(t, err)
	}
	_, err := m.Rotate(ctx, root)
	must(t, err)
	_, err = m.Rewrap(ctx, "new")
	must(t, err)
	k, d := ids(t, m, root)[0], ids(t, m, data)
	for _, step := range []struct {
		name  string
		most  int64
		inUse bool
		do    func() error
	}{
		{"references", 2, false, func() error { _, err := m.References(ctx, d[0]); return err }},
		{"disable a data key's version", 2, false, func() error { return m.Disable(ctx, d[1]) }},
		{"disable one in use", 2, false, func() error { return m.Disable(ctx, d[0]) }},
		{"disable a root key's version", 4, false, func() error { return m.Disable(ctx, k) }},
		{"destroy a data key's version", 6, false, func() error { return m.Destroy(ctx, d[1]) }},
		{"destroy one in use", 6, true, func() error { return m.Destroy(ctx, d[0]) }},
		{"shred a scope in use", 6, true, func() error { _, err := m.Shred(ctx, "new"); return err }},
		{"shred a scope", 4, false, func() error {
			a.sql(t, "delete from secret")
			a.trips.count.Store(0)
			_, err := m.Shred(ctx, "new")
			return err
		}},
	} {
		a.trips.count.Store(0)
		err := step.do()
		if use, ok := errors.AsType[*keyhold.InUseError](err); ok != step.inUse || ok && use.ID != d[0] || !ok && err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if got := a.trips.count.Load(); got != step.most {
			t.Errorf("%s: %d round trips, want %d", step.name, got, step.most)
		}
	}
}

func openTraced(t *testing.T, a *application) store.Store {
	t.Helper()
	config, err := pgxpool.ParseConfig(a.dsn)
	must(t, err)
	config.ConnConfig.Tracer = &a.trips
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	must(t, err)
	t.Cleanup(pool.Close)
	s, err := pgstore.New(pool)
	must(t, err)
	return s
}
