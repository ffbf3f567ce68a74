package keyholdtest

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestDatabasesAreEmptyAndDropped(t *testing.T) {
	var dsns []string
	t.Run("use", func(t *testing.T) {
		for range 3 {
			dsn := Postgres(t)
			dsns = append(dsns, dsn)
			// Left open: a test that forgets a connection does not keep its database.
			conn, err := pgx.Connect(t.Context(), dsn)
			if err != nil {
				t.Fatal(err)
			}
			var tables int
			if err := conn.QueryRow(t.Context(), "select count(*) from pg_tables where schemaname = 'public'").Scan(&tables); err != nil {
				t.Fatal(err)
			}
			if tables != 0 {
				t.Errorf("%d tables", tables)
			}
			if _, err := conn.Exec(t.Context(), "create table only_here (a int)"); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, dsn := range dsns {
		if conn, err := pgx.Connect(context.Background(), dsn); err == nil {
			conn.Close(context.Background())
			t.Errorf("%s is still there", dsn)
		}
	}
}

func TestAddressesOfOtherDatabases(t *testing.T) {
	for address, want := range map[string]string{
		"postgres://u:p@h:1/a?sslmode=disable": "postgres://u:p@h:1/b?sslmode=disable",
		"postgresql://h":                       "postgresql://h/b",
	} {
		if got, err := withDatabase(address, "b"); err != nil || got != want {
			t.Errorf("withDatabase(%q): %q, %v; want %q", address, got, err, want)
		}
	}
	for _, address := range []string{"postgres://u:se%cret@h/a", "host=h password=secret"} {
		if got, err := withDatabase(address, "b"); err == nil || strings.Contains(err.Error(), "cret") {
			t.Errorf("withDatabase of no URL: %q, %v", got, err)
		}
	}
}
