package pgstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

func TestTLSIsRequiredOfOtherMachines(t *testing.T) {
	t.Setenv("PGSSLMODE", "")
	os.Unsetenv("PGSSLMODE")
	plain := func(c *pgxpool.Config) bool {
		possible := c.ConnConfig.TLSConfig == nil
		for _, f := range c.ConnConfig.Fallbacks {
			possible = possible || f.TLSConfig == nil
		}
		return possible
	}
	for dsn, want := range map[string]bool{
		"postgres://u@db.example/x":                                   false,
		"postgres://u@db.example/x?application_name=a":                false,
		"host=db.example user=u dbname=x":                             false,
		"postgres://u@192.0.2.1/x":                                    false,
		"postgres://u@[2001:db8::1]/x":                                false,
		"postgres://u@localhost,db.example/x":                         false,
		"postgres://u@db.example/x?sslmode=prefer":                    true,
		"postgres://u@db.example/x?sslmode=disable":                   true,
		"host=db.example sslmode = disable":                           true,
		"postgres://u@db.example/x?sslmode=verify-full":               false,
		"postgres://u@localhost/x":                                    true,
		"postgres://u@127.0.0.1/x":                                    true,
		"postgres://u@[::1]/x":                                        true,
		"host=/var/run/postgresql user=u":                             true,
		"postgres://u@db.example/sslmode=disable":                     false,
		"postgres://u:sslmode=disable@db.example/x?connect_timeout=5": false,
	} {
		c, err := parseDSN(dsn)
		if err != nil || plain(c) != want {
			t.Errorf("%s: %v; a plain connection is possible: %v, want %v", dsn, err, err == nil && plain(c), want)
		}
	}
	t.Setenv("PGSSLMODE", "prefer")
	if c, err := parseDSN("postgres://u@db.example/x"); err != nil || !plain(c) {
		t.Errorf("with PGSSLMODE=prefer: %v; want a plain connection to be possible", err)
	}
}

func TestTheAddressComesFromTheEnvironmentToo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "services")
	must(t, os.WriteFile(file, []byte("[keys]\nhost=service.example\nport=7654\nuser=operator\ndbname=vault\n"), 0o600))
	t.Setenv("PGSERVICEFILE", file)
	t.Setenv("PGUSER", "from_the_environment")
	t.Setenv("PGPASSWORD", "secret")
	for dsn, want := range map[string]string{
		"service=keys":              "operator@service.example:7654/vault",
		"postgres://h.example:1/db": "from_the_environment@h.example:1/db",
		"host=h.example dbname=x":   "from_the_environment@h.example:5432/x",
	} {
		c, err := parseDSN(dsn)
		must(t, err)
		if got := fmt.Sprintf("%s@%s:%d/%s", c.ConnConfig.User, c.ConnConfig.Host, c.ConnConfig.Port, c.ConnConfig.Database); got != want {
			t.Errorf("%s: %s; want %s", dsn, got, want)
		}
		if c.ConnConfig.DefaultQueryExecMode != pgx.QueryExecModeExec {
			t.Errorf("%s: the mode is %v; want exec", dsn, c.ConnConfig.DefaultQueryExecMode)
		}
	}
	c, err := parseDSN("host=h default_query_exec_mode=cache_describe")
	if err != nil || c.ConnConfig.DefaultQueryExecMode != pgx.QueryExecModeCacheDescribe {
		t.Errorf("%v; want the mode of the address", err)
	}
}

func TestNoErrorHasThePassword(t *testing.T) {
	t.Parallel()
	const password = "hunter2"
	for _, dsn := range []string{
		"postgres://u:" + password + "@127.0.0.1:1/x",
		"postgres://u:" + password + "%zz@127.0.0.1:1/x",
		"postgres://u:a/" + password + "@127.0.0.1:1/x",
		"postgres://u:a:" + password + "@127.0.0.1/x",
		"postgres://u:" + password + "@127.0.0.1:port/x",
		"postgres://u:" + password + "@127.0.0.1:1/x?sslmode=never",
		"postgres://u:" + password + "@127.0.0.1:1/x?connect_timeout=long",
		"postgres://u:" + password + "@127.0.0.1:1/x?pool_max_conns=many",
		"postgres://u@127.0.0.1:1/x?password=" + password,
		"host=127.0.0.1 port=1 password=" + password,
		"host=127.0.0.1 port=1 password='" + password,
		"host=127.0.0.1 port=one password='it''s " + password + "'",
		"postgresql:/u:" + password + "@127.0.0.1",
		"postgres://u:a@" + password + "@127.0.0.1:1/x",
		"postgres://u:a@b@" + password + "/x",
		password,
	} {
		s, err := Open(t.Context(), dsn)
		if err == nil {
			t.Errorf("%s was opened: %v", dsn, s.Close())
			continue
		}
		if text := fmt.Sprintf("%v %+v", err, err); strings.Contains(text, password) {
			t.Errorf("%s: %s", dsn, text)
		}
	}
}

// The server repeats settings that it does not know.
func TestTheServerDoesNotRepeatThePassword(t *testing.T) {
	c := must2(pgx.ParseConfig(keyholdtest.Postgres(t)))
	dsn := fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable password=hun tersecret2=x", c.Host, c.Port, c.User, c.Database)
	s, err := Open(t.Context(), dsn)
	if err == nil {
		must(t, s.Close())
	}
	if !errors.Is(err, store.ErrUnavailable) || strings.Contains(err.Error(), "tersecret2") {
		t.Errorf("%v; want %v without the setting", err, store.ErrUnavailable)
	}
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestOfSeveralServersThePrimaryIsTaken(t *testing.T) {
	t.Setenv("PGTARGETSESSIONATTRS", "")
	for dsn, want := range map[string]bool{
		"postgres://u@a.example,b.example/x":                                  true,
		"host=a.example,b.example user=u":                                     true,
		"postgres://u@a.example,b.example/x?target_session_attrs=any":         false,
		"postgres://u@a.example,b.example/x?target_session_attrs=read-only":   true, // its own
		"postgres://u@a.example/x":                                            false,
		"postgres://u@a.example/x?sslmode=prefer":                             false,
		"postgres://u@a.example:1,a.example:2/x?target_session_attrs=standby": true, // its own
		"postgres://u@a.example:1,a.example:2/x":                              true,
	} {
		c, err := parseDSN(dsn)
		if err != nil || (c.ConnConfig.ValidateConnect != nil) != want {
			t.Errorf("%s: %v; checked: %v, want %v", dsn, err, err == nil && c.ConnConfig.ValidateConnect != nil, want)
		}
	}
}

// A server that was restarted leaves many idle connections that are dead; the first call gets past all of them.
func TestDeadIdleConnectionsCostNoCall(t *testing.T) {
	for name, connect := range map[string]connect{"pgxpool": byNew, "database/sql": bySQL("pgx"), "lib/pq": bySQL("postgres")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := keyholdtest.Postgres(t)
			more := ""
			if name == "pgxpool" {
				more = "&pool_max_conns=40"
			}
			s := connect(t, Config{}, dsn+more)
			must(t, s.Migrate(t.Context()))
			m := storetest.NewMaker(1)
			must(t, s.Initialize(t.Context(), m.Installation()))
			if db, ok := s.source.(sqlSource); ok {
				db.db.SetMaxIdleConns(40)
			}
			var releases []func(bool)
			for range 40 {
				_, release, err := s.acquire(t.Context())
				must(t, err)
				releases = append(releases, release)
			}
			for _, release := range releases {
				release(false)
			}
			admin, err := pgx.Connect(t.Context(), dsn)
			must(t, err)
			var gone int
			must(t, admin.QueryRow(t.Context(), `select count(*) from (
				select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()) x`).Scan(&gone))
			must(t, admin.Close(t.Context()))
			if gone < 40 {
				t.Fatalf("only %d connections were there", gone)
			}
			if n, err := s.Create(t.Context(), m.Inst(), m.Scope("a", "one")); n != 2 || err != nil {
				t.Errorf("Create: %d, %v", n, err)
			}
		})
	}
}

// Epochs that a standby has may be long out of date.
func TestEpochsAreNotReadFromAStandby(t *testing.T) {
	t.Parallel()
	dsn := keyholdtest.Postgres(t)
	s := byOpen(t, Config{}, dsn)
	must(t, s.Migrate(t.Context()))
	must(t, s.Initialize(t.Context(), storetest.NewMaker(1).Installation()))
	_, err := s.Epochs(t.Context())
	must(t, err)
	mustExec(t, s, "create schema fake")
	mustExec(t, s, "create function fake.pg_is_in_recovery() returns boolean language sql as 'select true'")
	standby := byOpen(t, Config{}, dsn+"&search_path=fake,public,pg_catalog")
	if _, err := standby.Epochs(t.Context()); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "standby") {
		t.Errorf("%v; want %v, saying that it is a standby", err, store.ErrUnavailable)
	}
}

// Whoever may not use the schema is not told that there are no tables.
func TestASchemaThatCannotBeUsedIsNotAnEmptyOne(t *testing.T) {
	t.Parallel()
	dsn := keyholdtest.Postgres(t)
	must(t, byOpen(t, Config{}, dsn).Migrate(t.Context()))
	s := byOpen(t, Config{}, dsn+"&search_path=nowhere")
	_, statusErr := s.MigrationStatus(t.Context())
	for what, err := range map[string]error{"CheckSchema": s.CheckSchema(t.Context()), "MigrationStatus": statusErr, "Migrate": s.Migrate(t.Context())} {
		var schema *store.SchemaError
		if err == nil || errors.As(err, &schema) || !strings.Contains(err.Error(), "search_path") {
			t.Errorf("%s: %v; want an error about the search_path", what, err)
		}
	}
}

func TestATableOfScopesThatDoesNotFit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config Config
		says   string
	}{
		"no such table":    {Config{ScopeTable: "nobody", ScopeColumn: "id"}, "search_path"},
		"no such column":   {Config{ScopeTable: "tenant", ScopeColumn: "nothing"}, "nothing"},
		"not unique":       {Config{ScopeTable: "tenant", ScopeColumn: "name"}, "unique"},
		"of another type":  {Config{ScopeType: migrate.BigInt, ScopeTable: "tenant", ScopeColumn: "id"}, "type"},
		"with its schema":  {Config{ScopeTable: "public.tenant", ScopeColumn: "id"}, "search_path"},
		"one that it fits": {Config{ScopeTable: "tenant", ScopeColumn: "id"}, ""},
	} {
		dsn := keyholdtest.Postgres(t)
		s := byOpen(t, c.config, dsn)
		mustExec(t, s, "create table tenant (id text primary key, name text)")
		err := s.Migrate(t.Context())
		if c.says == "" {
			must(t, err)
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "table of scopes "+c.config.ScopeTable) {
			t.Errorf("%s: %v; want it to say %q", name, err, c.says)
		}
	}
}

func TestWhoCannotGetInIsToldSo(t *testing.T) {
	t.Parallel()
	config, err := pgxpool.ParseConfig(keyholdtest.Postgres(t))
	must(t, err)
	dsn := func(host string, port uint16, database string) string {
		return fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=%s sslmode=disable", host, port,
			config.ConnConfig.User, config.ConnConfig.Password, database)
	}
	here := config.ConnConfig
	for name, c := range map[string]struct{ dsn, says string }{
		"nobody listens":   {dsn("127.0.0.1", 1, "x"), "the connection cannot be made"},
		"no such database": {dsn(here.Host, here.Port, "not_there"), "does not let this user in"},
	} {
		if _, err := Open(t.Context(), c.dsn); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %v, saying %q", name, err, store.ErrUnavailable, c.says)
		}
	}
}

// failing gives the table of root keys a trigger that fails the first times that a row is inserted, whatever becomes
// of the transaction.
func failing(t *testing.T, s *Store, state string, times int) (count func() int) {
	t.Helper()
	mustExec(t, s, "create sequence failures")
	mustExec(t, s, fmt.Sprintf(`create function fail() returns trigger language plpgsql as $$ begin
		if nextval('failures') <= %d then raise exception 'injected' using errcode = '%s'; end if; return new; end $$`, times, state))
	mustExec(t, s, "create trigger fail before insert on {prefix}_root_key for each row execute function fail()")
	return func() int {
		n := 0
		must(t, s.Pool().QueryRow(t.Context(), "select last_value from failures").Scan(&n))
		return n
	}
}

func TestAWholeTransactionIsTriedAgain(t *testing.T) {
	t.Parallel()
	for state, c := range map[string]struct {
		times, want int
		is          error
	}{
		"40001": {2, 3, nil},
		"40P01": {2, 3, nil},
		"57P01": {1, 2, nil},
		"25006": {2, 3, nil},
		"53300": {1, 2, nil},
		"XX001": {1, 1, store.ErrUnavailable},
		"53100": {1, 1, store.ErrUnavailable},
		"55P03": {1, 1, store.ErrUnavailable},
	} {
		t.Run(state, func(t *testing.T) {
			m := storetest.NewMaker(1)
			s := migrated(t, Config{})
			must(t, s.Initialize(t.Context(), m.Installation()))
			count := failing(t, s, state, c.times)
			n, err := s.Create(t.Context(), m.Inst(), m.Scope("a", "one"))
			if !errors.Is(err, c.is) || (err == nil) != (n == 2) || count() != c.want {
				t.Errorf("Create: %d, %v after %d attempts; want %v after %d", n, err, count(), c.is, c.want)
			}
		})
	}
}

func TestTryingAgainEnds(t *testing.T) {
	t.Parallel()
	m := storetest.NewMaker(1)
	s := migrated(t, Config{})
	must(t, s.Initialize(t.Context(), m.Installation()))
	count := failing(t, s, "40001", 1000)
	_, err := s.Create(t.Context(), m.Inst(), m.Scope("a"))
	var refusal *pgconn.PgError
	if !errors.Is(err, store.ErrUnavailable) || !errors.As(err, &refusal) || count() != attempts {
		t.Errorf("Create: %v after %d attempts; want %v after %d", err, count(), store.ErrUnavailable, attempts)
	}
	tx, commit, _ := begin(t, s)
	if _, err = tx.Create(t.Context(), m.Inst(), m.Scope("a")); !errors.Is(err, store.ErrUnavailable) || !errors.As(err, &refusal) || count() != attempts+1 {
		t.Errorf("Create in a transaction: %v after %d attempts; want one more", err, count()-attempts)
	}
	must(t, commit())
}

// TestADeadlockIsTriedAgain makes one: the application's transaction holds the name that the call waits for, and
// then waits for the name that the call holds.
func TestADeadlockIsTriedAgain(t *testing.T) {
	t.Parallel()
	m := storetest.NewMaker(1)
	dsn := keyholdtest.Postgres(t)
	s := byOpen(t, Config{}, dsn)
	must(t, s.Migrate(t.Context()))
	must(t, s.Initialize(t.Context(), m.Installation()))
	for range 3 {
		first, second := m.Scope("first"), m.Scope("second")
		tx, err := s.Pool().Begin(t.Context())
		must(t, err)
		_, err = tx.Exec(t.Context(), "set local deadlock_timeout = '1h'") // the other one is given up
		must(t, err)
		_, err = s.InTx(tx).Create(t.Context(), m.Inst(), second)
		must(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			if n, err := s.Create(t.Context(), m.Inst(), append(first, second...)); err != nil || n > 2 {
				t.Errorf("Create: %d, %v", n, err)
			}
		})
		waiting := 0
		for waiting == 0 {
			must(t, s.Pool().QueryRow(t.Context(), "select count(*) from pg_locks where not granted").Scan(&waiting))
		}
		_, err = s.InTx(tx).Create(t.Context(), m.Inst(), m.Scope("first"))
		must(t, err)
		must(t, tx.Commit(t.Context()))
		wg.Wait()
		mustExec(t, s, "delete from {prefix}_root_key")
	}
}

func TestTerminatedBackendsLeaveNothingByHalf(t *testing.T) {
	t.Parallel()
	m := storetest.NewMaker(1)
	dsn := keyholdtest.Postgres(t)
	s, killer := byOpen(t, Config{}, dsn), byOpen(t, Config{}, dsn)
	must(t, s.Migrate(t.Context()))
	must(t, s.Initialize(t.Context(), m.Installation()))
	killed := 0
	done := make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			n := 0
			if err := killer.Pool().QueryRow(context.Background(), `select count(pg_terminate_backend(pid)) from pg_stat_activity
				where datname = current_database() and pid <> pg_backend_pid() and state = 'active' and random() < 0.1`).Scan(&n); err == nil {
				killed += n
			}
		}
	})
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 40 {
				scope := key.Scope(fmt.Sprintf("%d-%d", w, i))
				n, err := s.Create(t.Context(), m.Inst(), m.Scope(scope, "one"))
				if err != nil && !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnknownOutcome) {
					t.Errorf("Create: %d, %v", n, err)
				}
				_, readErr := killer.Scope(t.Context(), scope)
				if err == nil && readErr != nil || errors.Is(err, store.ErrUnavailable) && !errors.Is(readErr, store.ErrNotFound) {
					t.Errorf("Create: %d, %v, and then Scope: %v", n, err, readErr)
				}
			}
		})
	}
	writers.Wait()
	close(done)
	killing.Wait()
	if killed == 0 {
		t.Error("no backend was terminated")
	}
	storetest.Check(t, s)
}

func TestTwoInstallationsLiveSideBySide(t *testing.T) {
	t.Parallel()
	dsn := keyholdtest.Postgres(t)
	one, two, three := byOpen(t, Config{}, dsn), byOpen(t, Config{Prefix: "kms_root"}, dsn), byOpen(t, Config{Schema: "elsewhere"}, dsn)
	sqltest.Initialized(t, one, storetest.NewMaker(1))
	var schema *store.SchemaError
	for _, s := range []*Store{two, three} {
		if err := s.CheckSchema(t.Context()); !errors.As(err, &schema) || schema.Have != 0 {
			t.Errorf("CheckSchema of another: %v; want no tables", err)
		}
		sqltest.Initialized(t, s, storetest.NewMaker(2))
	}
	mustExec(t, one, "delete from {prefix}_root_key")
	for _, s := range []*Store{two, three} {
		if _, err := s.Key(t.Context(), key.Ref{Scope: "a", Purpose: "one"}); err != nil {
			t.Errorf("Key of another after the first one's keys are deleted: %v", err)
		}
	}
	for _, s := range []*Store{one, two, three} {
		storetest.Check(t, s)
	}
}

// TestTriggersFindTheirTables deletes and changes from a session that looks for tables elsewhere.
func TestTriggersFindTheirTables(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Config{"a schema": {Schema: "keys"}, "none": {}} {
		m := storetest.NewMaker(1)
		s := migrated(t, c)
		must(t, s.Initialize(t.Context(), m.Installation()))
		_, err := s.Create(t.Context(), m.Inst(), m.Scope("a", "one"))
		must(t, err)
		schema := c.Schema
		if schema == "" {
			schema = "public"
		}
		tx, err := s.Pool().Begin(t.Context())
		must(t, err)
		_, err = tx.Exec(t.Context(), "set local search_path = pg_catalog; create temp table kms_tombstone (like "+schema+".kms_tombstone); "+
			"delete from "+schema+".kms_root_key")
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n := 0
		must(t, tx.QueryRow(t.Context(), "select count(*) from "+schema+".kms_tombstone").Scan(&n))
		if n != 2 {
			t.Errorf("%s: %d tombstones; want 2", name, n)
		}
		must(t, tx.Commit(t.Context()))
	}
}

func TestAScopeIsNeverAnotherOnesRow(t *testing.T) {
	t.Parallel()
	for kind, c := range map[migrate.ScopeType]struct {
		there key.Scope
		not   []key.Scope
	}{
		migrate.BigInt: {"42", []key.Scope{"042", "+42", "42.0", " 42", "42 ", "4.2e1", "0x2a", "", "42a", "9223372036854775808", "-0"}},
		migrate.UUID: {"0192f3a4-5b6c-7d8e-9fa0-0123456789ab", []key.Scope{
			"0192F3A4-5B6C-7D8E-9FA0-0123456789AB", "0192f3a45b6c7d8e9fa00123456789ab",
			"{0192f3a4-5b6c-7d8e-9fa0-0123456789ab}", "", "0192f3a4-5b6c-7d8e-9fa0-0123456789a", "0192f3a4-5b6c-7d8e-9fa0-0123456789ab\n",
		}},
	} {
		m := storetest.NewMaker(1)
		s := migrated(t, Config{ScopeType: kind})
		must(t, s.Initialize(t.Context(), m.Installation()))
		_, err := s.Create(t.Context(), m.Inst(), m.Scope(c.there, "p"))
		must(t, err)
		f, err := s.Key(t.Context(), key.Ref{Scope: c.there, Purpose: "p"})
		if err != nil || f.Root.Scope != c.there {
			t.Errorf("%s: Key: %q, %v", kind, f.Root.Scope, err)
		}
		var invalid *key.InvalidError
		for _, scope := range c.not {
			if _, err := s.Scope(t.Context(), scope); !errors.As(err, &invalid) {
				t.Errorf("%s: Scope %q: %v; want a %T", kind, scope, err, invalid)
			}
			if n, err := s.Create(t.Context(), m.Inst(), m.Scope(scope)); n != 0 || !errors.As(err, &invalid) {
				t.Errorf("%s: Create of scope %q: %d, %v; want a %T", kind, scope, n, err, invalid)
			}
		}
	}
}

// TestTextThatPostgreSQLCannotHoldIsNotThere also shows that the transaction goes on.
func TestTextThatPostgreSQLCannotHoldIsNotThere(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{})
	sqltest.Initialized(t, s, storetest.NewMaker(2))
	tx, commit, _ := begin(t, s)
	for _, q := range []store.Queries{s, tx} {
		for _, text := range []string{"a\x00", "\xff", "a\xc3"} {
			if _, err := q.Scope(t.Context(), key.Scope(text)); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("Scope %q: %v; want %v", text, err, store.ErrNotFound)
			}
			if _, err := q.KeyOfVersion(t.Context(), key.ID("kdkv_"+text)); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("KeyOfVersion %q: %v; want %v", text, err, store.ErrNotFound)
			}
			if f, err := q.Key(t.Context(), key.Ref{Scope: "a", Purpose: key.Purpose(text)}); err != nil || len(f.Data) != 0 {
				t.Errorf("Key for purpose %q: %v, %v; want the root key alone", text, f.Data, err)
			}
		}
	}
	must(t, commit())
}
