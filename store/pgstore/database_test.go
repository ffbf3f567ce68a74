package pgstore

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyhold.example/keyhold/keyholdtest"
)

// template is a database that others are copied from, which takes a third of the time of making the tables in each.
type template struct {
	dsn    string
	admin  *pgxpool.Pool // of another database: nobody may be connected to one that is copied
	how    string        // databases are copied
	copies atomic.Int64
}

// newTemplate makes a template, which is there until the test is over, and with it the copies. No connection that
// prepare opens may be left.
func newTemplate(t testing.TB, prepare func(dsn string)) *template {
	t.Helper()
	return newTemplateOf(t, keyholdtest.Postgres(t), keyholdtest.Postgres(t), prepare)
}

// newTemplateOf makes it of the first of two empty databases of a server.
func newTemplateOf(t testing.TB, dsn, admin string, prepare func(dsn string)) *template {
	t.Helper()
	tmpl := &template{dsn: dsn}
	prepare(tmpl.dsn)
	ctx := context.WithoutCancel(t.Context())
	var err error
	tmpl.admin, err = pgxpool.New(ctx, admin)
	must(t, err)
	t.Cleanup(tmpl.admin.Close)
	version := 0
	must(t, tmpl.admin.QueryRow(ctx, "select current_setting('server_version_num')::int").Scan(&version))
	if version >= 150000 {
		tmpl.how = " strategy file_copy"
	}
	return tmpl
}

// fresh is the address of a new copy.
func (tmpl *template) fresh(t testing.TB) (dsn string) {
	t.Helper()
	u, err := url.Parse(tmpl.dsn)
	must(t, err)
	from := u.Path[1:]
	name := fmt.Sprintf("%s_%d", from, tmpl.copies.Add(1))
	ctx := context.WithoutCancel(t.Context())
	_, err = tmpl.admin.Exec(ctx, "create database "+name+" template "+from+tmpl.how)
	must(t, err)
	t.Cleanup(func() {
		_, err := tmpl.admin.Exec(ctx, "drop database "+name+" with (force)")
		must(t, err)
	})
	u.Path = "/" + name
	return u.String()
}

// migrated is a store on a database with its tables.
func migrated(t testing.TB, c Config) *Store {
	t.Helper()
	s := byOpen(t, c, keyholdtest.Postgres(t))
	must(t, s.Migrate(context.WithoutCancel(t.Context())))
	return s
}

// dsns are the addresses that the tests' stores were made with.
var dsns sync.Map

func remember(t testing.TB, s *Store, dsn string) *Store {
	t.Helper()
	dsns.Store(s, dsn)
	t.Cleanup(func() {
		dsns.Delete(s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func dsnOf(t testing.TB, s *Store) string {
	t.Helper()
	dsn, ok := dsns.Load(s)
	if !ok {
		t.Fatal("a store that was not made here")
	}
	return dsn.(string)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// execAs runs SQL on a connection of its own.
func execAs(t testing.TB, dsn, text string, args ...any) {
	t.Helper()
	if err := try(t, dsn, text, args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func try(t testing.TB, dsn, text string, args ...any) error {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, dsn)
	must(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, text, args...)
	return err
}
