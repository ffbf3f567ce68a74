package cli

import (
	"errors"
	"strings"
	"testing"
)

func TestAnAddressIsShownWithoutWhatMayBeSecret(t *testing.T) {
	for given, want := range map[string]string{
		"sqlite:keys.db":    "sqlite:keys.db",
		"postgres://":       "postgres://",
		"postgresql:///app": "postgresql:///app",
		"postgres://app@host:5433/db?sslmode=verify-full":      "postgres://app@host:5433/db?sslmode=verify-full",
		"postgres://app:hunter2@host/db":                       "postgres://app@host/db",
		"postgres://:hunter2@host/db":                          "postgres://host/db",
		"postgres://app:hunter%2F2%40@host/db":                 "postgres://app@host/db",
		"postgres://app%40corp:hunter2@a:1,b:2/db":             "postgres://app%40corp@a:1,b:2/db",
		"postgres://host/db?password=hunter2&user=a@b":         "postgres://host/db?user=a@b",
		"postgres://host/db?user=a&passwrd=hunter2":            "postgres://host/db?user=a",
		"postgres://host/db?pass%77ord=hunter2":                "postgres://host/db",
		"postgres:///db?host=/run/postgresql&sslpassword=hunt": "postgres:///db?host=/run/postgresql",
		"host=a password=hunter2 user=app":                     "host=a user=app",
		`host = 'a b' password = 'hunter\'2 x=y' port=1`:       "host='a b' port=1",
		`password=hunter\ 2 user=app`:                          "user=app",
		"service=app":                                          "service=app",
		"options='-c x.secret=hunter2' dbname=app":             "dbname=app",
	} {
		got, err := parseAddress(given)
		if err != nil || got.shown != want || got.whole != (given == want) {
			t.Errorf("%s: %q, %v, %v; want %q", given, got.shown, got.whole, err, want)
		}
		if got.isPostgres() != !strings.HasPrefix(given, "sqlite:") || got.isPostgres() && got.dsn != given {
			t.Errorf("%s: path %q, address %q", given, got.path, got.dsn)
		}
	}
}

func TestAnAddressInWhichAPasswordMayStandElsewhereIsWrongUse(t *testing.T) {
	for _, given := range []string{
		"", "hunter2", "sqlite:", "keys.db", "mysql://app:hunter2@host/db", "postgres:app:hunter2@host",
		"postgres://app:hunter/2@host/db", "postgres://app:12/hunter2@host/db", "postgres://app:12?hunter2@host/db",
		"postgres://app:12?sslmode=hunter2@host/db", "postgres://app:12#hunter2@host/db", "postgres://app:hunter#2@host/db",
		"postgres://app:hunter@2@host/db", "postgres://app:hunter%2@host/db", "postgres://app:hunter 2@host/db", "postgres://app:h@12/hunter2@host/db",
		"host=x password=hunter 2 port=1", "host=x password='hunter2", "host=x password='hunter'2", "host=x hunter2", "host=x 2=1 password=hunter2",
	} {
		_, err := parseAddress(given)
		wrong := (*problem)(nil)
		if !errors.As(err, &wrong) || wrong.exit != exitUsage {
			t.Errorf("%s: %v, want wrong use", given, err)
			continue
		}
		if said := wrong.Message + wrong.Hint; strings.Contains(said, "hunter") || strings.Contains(said, "12") {
			t.Errorf("%s: %q repeats it", given, said)
		}
	}
}
