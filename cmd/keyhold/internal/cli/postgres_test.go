package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store/pgstore"
)

const password = "hunter2-is-the-password"

// lockedServer is a server that asks the user app for its password, and may hold databases for it.
type lockedServer struct {
	admin, host, port string
}

func newLockedServer(t *testing.T) lockedServer {
	t.Helper()
	b, err := pgserver.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := pgserver.Start(t.Context(), b, pgserver.Options{
		TCP: true, HBA: []string{"local all postgres trust", "host all app,stranger 127.0.0.1/32 scram-sha-256"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	host, port, err := net.SplitHostPort(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	l := lockedServer{s.DSN("postgres"), host, port}
	for _, name := range []string{"app", "stranger"} {
		execute(t, l.admin, fmt.Sprintf("create role %s login password '%s'", name, password))
	}
	return l
}

// url is how a user reaches a database, with a password if it is not empty.
func (l *lockedServer) url(user, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(user), Host: net.JoinHostPort(l.host, l.port), Path: "/" + database}
	if password != "" {
		u.User = url.UserPassword(user, password)
	}
	return u.String()
}

func execute(t *testing.T, dsn, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), statement)
	if err := errors.Join(err, conn.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func newRoot(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root.key")
	if code := Main(t.Context(), []string{"root", "keygen", root}, nil, io.Discard, io.Discard); code != exitDone {
		t.Fatal(code)
	}
	return root
}

// run runs a command, which may take a minute, and says what it printed. No password may be in it.
func run(t *testing.T, stdin []byte, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	code = Main(ctx, args, bytes.NewReader(stdin), &out, &errs)
	if all := out.String() + errs.String(); strings.Contains(all, "hunter") {
		t.Errorf("%v shows the password: %s", args, all)
	}
	return code, out.String(), errs.String()
}

func TestAPasswordIsUsedAndNeverShown(t *testing.T) {
	server := newLockedServer(t)
	root := newRoot(t)
	passfile := func(t *testing.T, password string) {
		t.Helper()
		name := filepath.Join(t.TempDir(), "pgpass")
		if err := os.WriteFile(name, []byte("*:*:*:app:"+password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PGPASSFILE", name)
	}
	for name, address := range map[string]func(t *testing.T, password, database string) string{
		"url": func(_ *testing.T, password, database string) string { return server.url("app", password, database) },
		"keywords": func(_ *testing.T, password, database string) string {
			return fmt.Sprintf("host=%s port=%s user=app password='%s' dbname=%s", server.host, server.port, password, database)
		},
		"environment": func(t *testing.T, password, database string) string {
			t.Setenv("PGPASSWORD", password)
			return server.url("app", "", database)
		},
		"password_file": func(t *testing.T, password, database string) string {
			passfile(t, password)
			return server.url("app", "", database)
		},
	} {
		t.Run(name, func(t *testing.T) {
			execute(t, server.admin, "create database "+name+" owner app")
			execute(t, server.url("app", password, name), "create table note (about text)")
			flags := []string{"--db", address(t, password, name), "--root", "file:" + root}
			sealed := ""
			for _, command := range []string{
				"init", "scope create s --purpose p", "scope list", "key list", "key rotate s", "key rewrap s", "seal --scope s --purpose p", "open",
				"scope reconcile --purpose p", "key references --register note.about",
				"status", "doctor", "migrate up", "migrate status", "migrate print", "init",
			} {
				for _, json := range []string{"", "--json"} {
					input := "text"
					if command == "open" {
						input = sealed
					}
					code, stdout, stderr := run(t, []byte(input), append(strings.Fields(command+" "+json), flags...)...)
					if command != "doctor" && stdout == "" || code != exitDone && !(code == exitFound && command == "status") {
						t.Errorf("%s %s: exit code %d, %q, %q", command, json, code, stdout, stderr)
					}
					if strings.HasPrefix(command, "seal") {
						sealed = stdout
					}
				}
			}
			dir := t.TempDir()
			if code, _, stderr := run(t, nil, "demo", "--dir", dir, "--db", flags[1]); code != exitDone {
				t.Errorf("demo: exit code %d, %q", code, stderr)
			}

			flags[1] = address(t, "hunter3-is-not-the-password", name)
			for _, command := range []string{"init", "status", "doctor", "migrate up", "scope create s --purpose p"} {
				code, stdout, stderr := run(t, nil, append(strings.Fields(command), flags...)...)
				if code != exitFailed || stdout != "" || strings.Count(stderr, "error: ") != 1 ||
					!strings.Contains(stderr, ": the server does not accept the user's password\nkeyhold: hint: PGPASSWORD ") {
					t.Errorf("%s with a wrong password: exit code %d, %q, %q", command, code, stdout, stderr)
				}
			}
		})
	}
}

func TestWhatIsWrongWithAServerIsOneSentence(t *testing.T) {
	server := newLockedServer(t)
	root := newRoot(t)
	for _, statement := range []string{
		"create database app owner app", "create database latin owner app encoding 'LATIN1' template template0",
		"create database closed owner app", "revoke connect on database closed from public",
	} {
		execute(t, server.admin, statement)
	}
	if code, _, stderr := run(t, nil, "init", "--db", server.url("app", password, "app"), "--root", "file:"+root); code != exitDone {
		t.Fatal(stderr)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	at := func(user, database string) string { return server.url(user, "", database) }
	for _, test := range []struct{ name, command, db, want string }{
		{
			"server down", "status", "postgres://app:" + password + "@" + nobody + "/app",
			"cannot use the database postgres://app@" + nobody + "/app: no server listens on " + nobody,
		},
		{
			"database missing", "init", server.url("app", password, "missing"),
			"cannot use the database " + at("app", "missing") + ": there is no such database on the server",
		},
		{
			"not UTF8", "init", server.url("app", password, "latin"),
			"migrate the tables kms_*: the database has the encoding LATIN1, and the tables need UTF8",
		},
		{
			"may not connect", "status", server.url("stranger", password, "closed"),
			"cannot use the database " + at("stranger", "closed") + `: its user may not do that: permission denied for database "closed"`,
		},
		{
			"may not read", "status", server.url("stranger", password, "app"),
			"cannot use the database " + at("stranger", "app") + ": its user may not do that: permission denied for table kms_schema_version",
		},
		{
			"may not make tables", "init --prefix more", server.url("stranger", password, "app"),
			"cannot use the database " + at("stranger", "app") + ": its user may not do that: permission denied for schema public",
		},
		{
			"may not make a schema", "migrate up --schema more", server.url("stranger", password, "app"),
			"cannot use the database " + at("stranger", "app") + ": its user may not do that: permission denied for database app",
		},
		{
			"not let in", "status", server.url("nobody", password, "app"),
			"cannot use the database " + at("nobody", "app") + ": the server does not let this user in from here",
		},
		{
			"no encryption", "status", server.url("app", password, "app") + "?sslmode=require",
			"cannot use the database " + at("app", "app") + "?sslmode=require: the server has no encrypted connections, which sslmode asks for",
		},
		{
			"unknown setting", "status", server.url("app", password, "app") + "?hunter=2",
			"cannot use the database " + at("app", "app") + ": the server does not know a setting in the address, or not its value",
		},
	} {
		code, stdout, stderr := run(t, nil, append(strings.Fields(test.command), "--db", test.db, "--root", "file:"+root)...)
		sentence, _, _ := strings.Cut(stderr, "\n")
		if code != exitFailed || stdout != "" || sentence != "keyhold: error: "+test.want {
			t.Errorf("%s: exit code %d, %q, %q, want %q", test.name, code, stdout, stderr, test.want)
		}
	}

	// A demo that may not make its tables leaves nothing.
	dir := filepath.Join(t.TempDir(), "demo")
	code, stdout, stderr := run(t, nil, "demo", "--dir", dir, "--db", server.url("stranger", password, "app"))
	if _, err := os.Stat(dir); code != exitFailed || stdout != "" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("demo: exit code %d, %q, %q; its folder: %v", code, stdout, stderr, err)
	}
}

func TestAServerThatNeverAnswersIsWaitedForAsLongAsTimeoutSays(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent := "postgres://app:" + password + "@" + l.Addr().String() + "/app"
	root := newRoot(t)
	start := time.Now()
	for _, command := range []string{
		"init", "scope list", "scope reconcile --purpose p", "key list", "key rotate s", "key disable kdkv_0", "key enable kdkv_0",
		"key destroy kdkv_0", "key references", "seal --scope s --purpose p", "open", "status", "doctor", "migrate up", "migrate status",
	} {
		code, stdout, stderr := run(t, nil, append(strings.Fields(command), "--db", silent, "--root", "file:"+root, "--timeout", "50ms")...)
		if code != exitFailed || stdout != "" || !strings.HasPrefix(stderr, "keyhold: error: no answer within 50ms\n") {
			t.Errorf("%s: exit code %d, %q, %q", command, code, stdout, stderr)
		}
	}
	dir := filepath.Join(t.TempDir(), "demo")
	if code, _, stderr := run(t, nil, "demo", "--dir", dir, "--db", silent, "--timeout", "50ms"); code != exitFailed ||
		!strings.HasPrefix(stderr, "keyhold: error: no answer within 50ms\n") {
		t.Errorf("demo: exit code %d, %q", code, stderr)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}

	// Without a limit, the user ends it.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := l.Accept()
		cancel()
		if err == nil {
			defer conn.Close()
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
	var stderr bytes.Buffer
	code := Main(ctx, []string{"status", "--db", silent, "--root", "file:" + root, "--timeout", "-1s"}, nil, io.Discard, &stderr)
	if code != exitFailed || stderr.String() != "keyhold: error: interrupted\n" {
		t.Errorf("interrupted: exit code %d, %q", code, &stderr)
	}
}

func TestALockThatSomebodyHoldsIsWaitedForAsLongAsTimeoutSays(t *testing.T) {
	dsn := keyholdtest.Postgres(t)
	flags := []string{"--db", dsn, "--root", "file:" + newRoot(t)}
	if code, _, stderr := run(t, nil, append([]string{"init"}, flags...)...); code != exitDone {
		t.Fatal(stderr)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if _, err := conn.Exec(t.Context(), "begin; lock table kms_schema_version, kms_root_key, kms_installation"); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"init", "status", "scope list", "migrate status", "migrate up"} {
		code, stdout, stderr := run(t, nil, append(append(strings.Fields(command), flags...), "--timeout", "100ms")...)
		if code != exitFailed || stdout != "" || !strings.HasPrefix(stderr, "keyhold: error: no answer within 100ms\n") {
			t.Errorf("%s: exit code %d, %q, %q", command, code, stdout, stderr)
		}
	}
}

// Of a rewrap that did not get to the end, only what was done is shown: the scope that is locked is named, and c, which
// may lack something or not, is not said to lack nothing.
func TestARewrapThatALockHoldsUpShowsWhatItDid(t *testing.T) {
	dsn := keyholdtest.Postgres(t)
	flags := []string{"--db", dsn, "--root", "file:" + newRoot(t)}
	for _, command := range []string{
		"init", "scope create a --purpose p", "scope create b --purpose p", "scope create c --purpose p", "key rotate a", "key rotate b",
	} {
		if code, _, stderr := run(t, nil, append(strings.Fields(command), flags...)...); code != exitDone {
			t.Fatal(stderr)
		}
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	if _, err := conn.Exec(t.Context(), "begin; select 1 from kms_root_key where scope_id = 'b' for update"); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := run(t, nil, append([]string{"key", "rewrap", "--all", "--timeout", "5s", "--json"}, flags...)...)
	if code != exitFailed || stdout != "[\n{\"scope\":\"a\",\"rewrapped\":1}\n]\n" || !strings.Contains(stderr, "no answer within 5s") {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestATypeOfScopesThatNobodyGaveIsFoundAndNoConnectionIsLeft(t *testing.T) {
	dsn := keyholdtest.Postgres(t)
	if code, _, stderr := run(t, nil, "migrate", "up", "--db", dsn, "--scope-type", "uuid"); code != exitDone {
		t.Fatal(stderr)
	}
	a := &app{db: dsn, prefix: "kms", timeout: time.Minute}
	s, err := a.openStore(t.Context(), tableFlags{}, false)
	if err != nil {
		t.Fatal(err)
	}
	pool := s.(*postgresDatabase).Pool()
	if err := errors.Join(s.CheckSchema(t.Context()), pool.Ping(t.Context())); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := pool.Ping(t.Context()); err == nil {
		t.Error("there are connections after Close")
	}
}

func TestOfManyThatMigrateAtOnceAllSucceedAndAllTablesAreThere(t *testing.T) {
	dsn := keyholdtest.Postgres(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			var out, stderr bytes.Buffer
			code := Main(t.Context(), []string{"migrate", "up", "--db", dsn, "--schema", "keys"}, nil, &out, &stderr)
			if code != exitDone || strings.Contains(out.String(), "false") ||
				!strings.HasPrefix(stderr.String(), "keyhold: the tables have 4 migrations, ") {
				t.Errorf("exit code %d, %q, %q", code, &out, &stderr)
			}
		})
	}
	all.Wait()
	if code, stdout, stderr := run(t, nil, "migrate", "status", "--db", dsn, "--schema", "keys"); code != exitDone {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestWhatStandsBeforeAServerIsNamedWhereItRefuses(t *testing.T) {
	t.Setenv("KEYHOLD_DB", "postgres://app:"+password+"@host/db")
	a := &app{prefix: "kms"}
	err := fmt.Errorf("open database: %w: lost (%w)", keyhold.ErrUnavailable,
		&pgconn.PgError{Code: "08P01", Message: "unsupported startup parameter: " + password})
	p := a.explain(t.Context(), err)
	want := "cannot use the database postgres://app@host/db: what is before the server, such as pgbouncer, " +
		"refuses the user, the password, the database or a setting"
	if p.Code != "unavailable" || p.Message != want || p.exit != exitFailed || strings.Contains(p.Hint, password) {
		t.Errorf("code %s, exit code %d, %q, %q", p.Code, p.exit, p.Message, p.Hint)
	}
}

func TestEverythingGoesThroughPgbouncer(t *testing.T) {
	dsn := keyholdtest.Postgres(t)
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	b, err := pgserver.StartBouncer(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	})
	execute(t, dsn, "create table note (about text)")
	flags := []string{"--db", b.DSN(config.Database), "--root", "file:" + newRoot(t)}
	sealed := ""
	for _, command := range []string{
		"migrate up --schema keys", "init --schema keys", "scope create s --purpose p --schema keys", "seal --scope s --purpose p --schema keys",
		"key rotate s --schema keys", "key rewrap s --schema keys", "scope reconcile --purpose p --purpose q --schema keys",
		"key references --register public.note.about --schema keys", "open --schema keys", "status --schema keys", "doctor --schema keys",
		"demo --dir " + t.TempDir(),
	} {
		args := append(strings.Fields(command), flags...)
		if strings.HasPrefix(command, "demo") {
			args = append(strings.Fields(command), flags[:2]...)
		}
		code, stdout, stderr := run(t, []byte(sealed), args...)
		if code != exitDone {
			t.Errorf("%s: exit code %d, %q", command, code, stderr)
		}
		if strings.HasPrefix(command, "seal") {
			sealed = stdout
		}
	}
}

func TestWhyThereIsNoConnection(t *testing.T) {
	for want, err := range map[string]error{
		"the server's certificate is not accepted: signed by nobody":          &tls.CertificateVerificationError{Err: errors.New("signed by nobody")},
		"the server does not know a setting in the address, or not its value": pgstore.ErrSetting,
		"the server has no encrypted connections, which sslmode asks for":     errors.New("server refused TLS connection"),
		"": errors.New("whatever else"),
	} {
		if got := noConnection(fmt.Errorf("open: %w: %w", keyhold.ErrUnavailable, err)); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
