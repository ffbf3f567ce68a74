package pgstore

import (
	"context"
	"database/sql"
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/golang-migrate/migrate/v4/database"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
)

func TestMain(m *testing.M) {
	kit.Child()
	// Unless the command line says otherwise. More tests at once than usual, as some wait for the server's clock. Fewer
	// sequences of the model, as each way of getting at the database has its own.
	for name, value := range map[string]string{"test.parallel": strconv.Itoa(2 * runtime.GOMAXPROCS(0)), "rapid.checks": "40"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

func TestProcesses(t *testing.T) { kit.TestProcesses(t) }

func TestMigrations(t *testing.T) { kit.TestMigrations(t) }

var kit = sqltest.Database{
	Fresh: keyholdtest.Postgres,
	Connect: func(ctx context.Context, dsn string) (store.Store, error) {
		return Open(ctx, dsn)
	},
	Open: func(t testing.TB, o migrate.Options, dsn string) store.Store {
		c := Config{Prefix: o.Prefix, Schema: o.Schema, ScopeType: o.ScopeType, ScopeTable: o.ScopeTable, ScopeColumn: o.ScopeColumn}
		return byOpen(t, c, dsn)
	},
	Exec: func(t testing.TB, s store.Store, text string) { mustExec(t, s.(*Store), text) },
	Dump: func(t testing.TB, s store.Store) []string { return dump(t, s.(*Store)) },
	Status: func(ctx context.Context, s store.Store) (list []sqltest.Migration, err error) {
		all, err := s.(*Store).MigrationStatus(ctx)
		for _, m := range all {
			list = append(list, sqltest.Migration(m))
		}
		return list, err
	},
	Migrations: Migrations,
	Driver: func(t testing.TB, dsn string) (string, database.Driver) {
		db, err := sql.Open("pgx", dsn)
		must(t, err)
		t.Cleanup(func() { _ = db.Close() }) // golang-migrate closes it, too
		d, err := migratepgx.WithInstance(db, &migratepgx.Config{})
		must(t, err)
		return "pgx5", d
	},
}

// dump is everything in the tables but times and numbers that only have to differ.
func dump(t testing.TB, s *Store) (all []string) {
	t.Helper()
	list := func(text string) []string {
		rows, err := s.Pool().Query(context.WithoutCancel(t.Context()), text)
		must(t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		must(t, err)
		return lines
	}
	for _, table := range list(`select oid::regclass::text from pg_class where relkind in ('r', 'v')
		and relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace) order by 1`) {
		all = append(all, table)
		all = append(all, list("select (to_jsonb(t) - 'created' - 'destroyed' - 'removed' - 'activated' - 'retired' - 'at' - 'id' - 'n')::text "+
			"from "+table+" t order by 1")...)
	}
	return all
}
