package keyholdtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/internal/pgserver"
)

// variable is the environment variable with the address of the server to test on.
const variable = "KEYHOLD_TEST_POSTGRES"

// Postgres returns the address, as a URL, of a fresh, empty database on a PostgreSQL server, for its owner. It is
// dropped when the test is over, whoever is still connected.
//
// The server is the one that the environment variable KEYHOLD_TEST_POSTGRES has the address of, also as a URL, whose
// user may make databases. Where it is not set, one is started at the first call, and ends with the test process,
// however that ends. It is the first of these that there is: the binaries in PATH, where pg_config says, or in
// /usr/lib/postgresql; Debian's package, if this is root and KEYHOLD_TEST_INSTALL or CI is set; what
// github.com/fergusstrange/embedded-postgres downloads. The test's log says which. Where there is none the test
// fails, and says what can be done. Servers are started on Unix only.
//
// For a server of its own it takes all PG* variables out of the process's environment, which would change what the
// address means, for the test's own connections too.
//
// It may be called by any number of tests at once. Starting a server takes about a second, a database some
// milliseconds.
func Postgres(t testing.TB) string {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	s := server()
	if s.err != nil {
		t.Fatalf("start PostgreSQL: %v", s.err)
	}
	t.Logf("PostgreSQL is %s", s.origin)

	// Random, as the server may serve other processes' tests as well.
	name := fmt.Sprintf("keyhold_test_%016x", rand.Uint64())
	dsn, err := withDatabase(s.address, name)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	if err := execute(ctx, s.address, "create database "+name+s.how); err != nil {
		t.Fatalf("make a database on %s: %v", s.origin, err)
	}
	t.Cleanup(func() {
		if err := execute(ctx, s.address, "drop database "+name+" with (force)"); err != nil {
			t.Errorf("drop a database on %s: %v", s.origin, err)
		}
	})
	return dsn
}

// server starts the server of this process, once.
var server = sync.OnceValue(func() (s struct {
	address, origin string
	how             string // databases are made
	err             error
},
) {
	if s.address = os.Getenv(variable); s.address != "" {
		s.origin = "the server that " + variable + " names"
		return s
	}
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			if s.err = os.Unsetenv(name); s.err != nil {
				return s
			}
		}
	}
	ctx := context.Background() //nolint:forbidigo // the server is every test's, so no test's context ends it
	b, err := pgserver.Find(ctx)
	if err != nil {
		s.err = err
		return s
	}
	started, err := pgserver.Start(ctx, b, pgserver.Options{})
	if err != nil {
		s.err = err
		return s
	}
	s.address, s.origin = started.DSN("postgres"), b.Version+" from "+b.Origin
	// Where nothing is synced, copying files takes a sixth of the time of logging what is copied, as newer servers
	// do.
	s.how = " strategy file_copy"
	if started.Version < 150000 {
		s.how = ""
	}
	return s
})

// withDatabase is the address of another database on the same server.
func withDatabase(address, name string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		// What url.Parse says would show the password.
		return "", errors.New("it has to be a URL such as postgres://user:password@host/postgres?sslmode=disable")
	}
	u.Path = "/" + name
	return u.String(), nil
}

func execute(ctx context.Context, address, statement string) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}
