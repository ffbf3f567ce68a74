package pgstore

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold/store"
)

func TestAnErrorIsOneLine(t *testing.T) {
	const to = "connect to `user=u database=d`:"
	for _, c := range []struct{ text, want string }{
		{"ERROR: it is so\nand so (SQLSTATE P0001)\n", "ERROR: it is so; and so (SQLSTATE P0001)"},
		{
			to + " 127.0.0.1:1 (127.0.0.1): dial error: dial tcp 127.0.0.1:1: connect: connection refused",
			to + " dial tcp 127.0.0.1:1: connect: connection refused",
		},
		{
			to + "\n\t[::1]:1 (localhost): dial error: dial tcp [::1]:1: connect: connection refused" +
				"\n\t127.0.0.1:1 (localhost): dial error: dial tcp 127.0.0.1:1: connect: connection refused",
			to + " localhost: dial tcp [::1]:1: connect: connection refused; dial tcp 127.0.0.1:1: connect: connection refused",
		},
		{
			to + "\n\t10.1.2.3:1 (db.example): tls error: no\n\t10.1.2.3:1 (db.example): server error: FATAL: not you (SQLSTATE 28000)",
			to + " db.example (10.1.2.3:1): tls error: no; server error: FATAL: not you (SQLSTATE 28000)",
		},
		{
			to + "\n\t/run/.s.PGSQL.1 (/run): server error: FATAL: no\n\t/run/.s.PGSQL.1 (/run): server error: FATAL: no\n\t[::1]:1 (::1): timeout",
			to + " /run/.s.PGSQL.1: server error: FATAL: no; [::1]:1: timeout",
		},
		{
			to + " hostname resolving error: lookup a: no such host\nlookup b: no such host",
			to + " hostname resolving error: lookup a: no such host; lookup b: no such host",
		},
	} {
		if got := oneLine("failed to " + c.text); got != c.want {
			t.Errorf("%q:\n%s; want\n%s", c.text, got, c.want)
		}
	}
}

// What the driver has a line each for is one, with each server named once, and can be told as what it is.
func TestAConnectionThatIsNotMadeIsOneLine(t *testing.T) {
	t.Parallel()
	for dsn, times := range map[string]int{
		"postgres://u@127.0.0.1:1/d?sslmode=prefer":                     1,
		"postgres://u@127.0.0.1:1,127.0.0.1:2/d?sslmode=disable":        1,
		"host=127.0.0.1,/nowhere port=1 user=u dbname=d sslmode=prefer": 1,
	} {
		s, err := Open(t.Context(), dsn)
		if err == nil {
			t.Fatal(s.Close())
		}
		if text := err.Error(); strings.ContainsAny(text, "\n\t") || strings.Count(text, "127.0.0.1:1") != times {
			t.Errorf("%s: %s", dsn, text)
		}
		_, connect := errors.AsType[*pgconn.ConnectError](err)
		if !connect || !errors.Is(err, syscall.ECONNREFUSED) || !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v is not told as what it is", dsn, err)
		}
	}
}
