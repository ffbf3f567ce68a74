package kmsimport_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/kmsimport"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// inTheField gives the old tables what the fixtures leave out: on SQLite the foreign key to the application's scopes,
// which PostgreSQL's have; triggers, functions, and on PostgreSQL a second foreign key from another schema.
func (o *old) inTheField(t *testing.T) {
	t.Helper()
	if o.tables.Postgres {
		o.exec(t, "create function kms_immutable_columns() returns trigger language plpgsql as 'begin return new; end'",
			"create function kms_version_column() returns trigger language plpgsql as 'begin return new; end'",
			"create function audit() returns trigger language plpgsql as 'begin return new; end'",
			"create trigger kms_immutable_columns before update on kms_root_key for each row execute function kms_immutable_columns('scope_id')",
			"create trigger kms_version_column before insert on kms_data_key_version for each row execute function kms_version_column('x')",
			"create trigger audit before insert on kms_data_key for each row execute function audit()",
			"create trigger reuse before insert on oidc for each row execute function kms_version_column()",
			`create schema "Other App"`,
			`create table "Other App".token (key_id text constraint "the key" references kms_data_key_version (private_id) deferrable initially deferred)`,
		)
		return
	}
	o.exec(t, `create table new_root_key (private_id text not null primary key,
			scope_id text not null unique references scope (private_id) on delete cascade on update cascade,
			create_time timestamp not null default current_timestamp)`,
		"insert into new_root_key select * from kms_root_key", "drop table kms_root_key", "alter table new_root_key rename to kms_root_key",
		"create trigger kms_immutable_columns_kms_root_key before update on kms_root_key begin select raise(abort, 'immutable column'); end",
		`create trigger version_column_kms_data_key_version after insert on kms_data_key_version
			begin update kms_data_key_version set version = 1 where rowid = new.rowid; end`)
}

// openStore opens keyhold's tables in the database, with foreign keys on.
func (o *old) openStore(t *testing.T) (store.Store, *sql.DB) {
	t.Helper()
	if !o.tables.Postgres {
		s, err := sqlitestore.Open(strings.TrimPrefix(o.source, "file:"))
		must(t, err)
		t.Cleanup(func() { must(t, s.Close()) })
		return s, s.DB()
	}
	pool, err := pgxpool.New(t.Context(), o.source)
	must(t, err)
	t.Cleanup(pool.Close)
	s, err := pgstore.New(pool)
	must(t, err)
	return s, o.tables.DB
}

// replaced puts keyhold's tables in the place of the old ones, and opens them.
func (o *old) replaced(t *testing.T) (*keyhold.Manager, *sql.DB) {
	t.Helper()
	scopes := o.read(t)
	stage, root := o.stage(t, scopes)
	must(t, o.tables.Replace(t.Context(), scopes, stage, time.Minute))
	s, db := o.openStore(t)
	m, err := keyhold.New(t.Context(), s, keyhold.Config{Root: root, Grace: -1})
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	if m.Pin() != stage.Pin() {
		t.Error("it is another installation")
	}
	return m, db
}

func TestTheNewTablesHaveEverythingAndGoOn(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		o.inTheField(t)
		m, db := o.replaced(t)
		o.hasEverything(t, m)
		o.goesOn(t, m)
		o.hasEverything(t, m)

		// What the application has in its own table.
		rows, err := db.QueryContext(t.Context(), "select private_id, client_secret from oidc")
		must(t, err)
		stored := map[string][]byte{}
		for rows.Next() {
			var id string
			var blob []byte
			must(t, rows.Scan(&id, &blob))
			stored[id] = blob
		}
		must(t, errors.Join(rows.Err(), rows.Close()))
		for _, s := range o.Secrets {
			decrypts(t, m, key.Ref{Scope: s.Scope, Purpose: s.Purpose}, stored[s.ID], s.AAD, s.Plaintext)
		}
	})
}

// A version in use cannot be deleted, a row cannot refer to one that is not there, and with a scope go its keys.
func TestTheApplicationsForeignKeysHold(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		o.inTheField(t)
		m, db := o.replaced(t)
		ctx := t.Context()
		used := o.Secrets[0]
		refused := func(statement string) {
			t.Helper()
			_, err := db.ExecContext(ctx, statement)
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), "foreign key") {
				t.Errorf("%s: %v", statement, err)
			}
		}
		must(t, m.Disable(ctx, used.KeyVersionID))
		if _, inUse := errors.AsType[*keyhold.InUseError](m.Destroy(ctx, used.KeyVersionID)); !inUse {
			t.Error("a version in use was destroyed")
		}
		refused(fmt.Sprintf("delete from kms_data_key_version where private_id = '%s'", used.KeyVersionID))
		refused("insert into oidc (private_id, scope_id, client_id, client_secret, key_version_id) values ('x', 'global', 'x', '', 'kdkv_none')")
		refused(`insert into kms_root_key (private_id, scope_id, seq, head_version, rotate_every, max_messages, ik_kid, mac)
			select 'krk_x', 'nobody', 1, 1, 0, 0, ik_kid, mac from kms_root_key limit 1`)

		w, err := m.Wrapper(ctx, key.Ref{Scope: used.Scope, Purpose: used.Purpose})
		must(t, err)
		blob, err := w.Encrypt(ctx, []byte("new"))
		must(t, err)
		raw, err := proto.Marshal(blob)
		must(t, err)
		_, err = db.ExecContext(ctx, "insert into oidc (private_id, scope_id, client_id, client_secret, key_version_id) values ('x', 'global', 'x', $1, $2)",
			raw, blob.GetKeyInfo().GetKeyId())
		must(t, err)

		_, err = db.ExecContext(ctx, "delete from oidc where scope_id = 'global'")
		must(t, err)
		_, err = db.ExecContext(ctx, "delete from scope where private_id = 'global'")
		must(t, err)
		_, err = m.Keys(ctx, "global")
		if !errors.Is(err, keyhold.ErrNotFound) {
			t.Errorf("the keys of a deleted scope: %v", err)
		}
	})
}

// objects is everything of the schema that has to do with the tables, by name: what it is.
func objects(t *testing.T, db *sql.DB, postgres bool) map[string]string {
	t.Helper()
	query := "select type || ' ' || name, coalesce(sql, '') from sqlite_master where name like 'kms%' or tbl_name like 'kms%'"
	if postgres {
		query = `
with t as (select oid, relname, relkind from pg_class where relname like 'kms%' and relkind in ('r', 'i', 'S', 'v', 'm', 'p'))
select 'relation ' || relname, relkind::text || coalesce(pg_get_indexdef(case when relkind = 'i' then oid end), '') from t
union all
select 'column ' || relname || '.' || attname,
    attnum || format_type(atttypid, atttypmod) || attcollation || attnotnull || coalesce(pg_get_expr(adbin, adrelid), '')
from pg_attribute a join t on t.oid = attrelid left join pg_attrdef d on adrelid = attrelid and adnum = attnum where attnum > 0 and not attisdropped
union all
select 'constraint ' || relname || '.' || conname, pg_get_constraintdef(c.oid) || convalidated
from pg_constraint c join t on t.oid = conrelid or t.oid = confrelid
union all
select 'trigger ' || relname || '.' || tgname, pg_get_triggerdef(g.oid) || tgenabled::text from pg_trigger g join t on t.oid = tgrelid where not tgisinternal
union all
select 'function ' || proname, pg_get_functiondef(oid) from pg_proc where pronamespace = 'public'::regnamespace
union all
select 'type ' || typname, typtype::text from pg_type where typnamespace = 'public'::regnamespace and typtype = 'd'`
	}
	rows, err := db.QueryContext(t.Context(), query)
	must(t, err)
	all := map[string]string{}
	for rows.Next() {
		var name, definition string
		must(t, rows.Scan(&name, &definition))
		all[name] = definition
	}
	must(t, errors.Join(rows.Err(), rows.Close()))
	if len(all) < 10 {
		t.Fatalf("only %d objects", len(all))
	}
	return all
}

func TestTheNewTablesAreAsFreshOnes(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		o.inTheField(t)
		app := map[string]string{}
		for name, definition := range objects(t, o.tables.DB, o.tables.Postgres) {
			if strings.Contains(name, "oidc") || strings.Contains(name, "the key") {
				app[name] = definition
			}
		}
		_, db := o.replaced(t)
		got := objects(t, db, o.tables.Postgres)

		fresh := o.fresh(t)
		maps.Copy(fresh, app)                                                            // what refers to the tables stays
		for _, name := range []string{"function audit", "function kms_version_column"} { // the application's, and one that it uses
			if o.tables.Postgres && got[name] == "" {
				t.Errorf("%s is gone", name)
			}
			delete(got, name)
		}
		if diff := cmp.Diff(fresh, got); diff != "" {
			t.Errorf("fresh tables (-) and these (+):\n%s", diff)
		}
	})
}

// fresh is the objects of tables that keyhold made by itself.
func (o *old) fresh(t *testing.T) map[string]string {
	t.Helper()
	if !o.tables.Postgres {
		s, err := sqlitestore.Config{ScopeTable: "scope", ScopeColumn: "private_id"}.Create(filepath.Join(t.TempDir(), "fresh.db"))
		must(t, err)
		must(t, s.Migrate(t.Context()))
		all := objects(t, s.DB(), false)
		must(t, s.Close())
		return all
	}
	dsn := keyholdtest.Postgres(t)
	db, err := sql.Open("pgx", dsn)
	must(t, err)
	_, err = db.ExecContext(t.Context(), "create table scope (private_id text not null primary key)")
	must(t, err)
	pool, err := pgxpool.New(t.Context(), dsn)
	must(t, err)
	s, err := pgstore.Config{ScopeTable: "scope", ScopeColumn: "private_id"}.New(pool)
	must(t, err)
	must(t, s.Migrate(t.Context()))
	all := objects(t, db, true)
	must(t, db.Close())
	pool.Close()
	return all
}

// The store itself finds its tables complete, and its migrations applied.
func TestTheNewTablesCountAsMigrated(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		o.replaced(t)
		s, _ := o.openStore(t)
		must(t, s.CheckSchema(t.Context()))
		must(t, s.Migrate(t.Context()))
	})
}

// unchanged is what has to be as it was after a replacement that failed.
func (o *old) unchanged(t *testing.T, scopes []kmsimport.Scope, catalogue map[string]string) {
	t.Helper()
	if diff := cmp.Diff(catalogue, objects(t, o.tables.DB, o.tables.Postgres)); diff != "" {
		t.Errorf("the catalogue changed:\n%s", diff)
	}
	if diff := cmp.Diff(scopes, o.read(t)); diff != "" {
		t.Errorf("the keys changed:\n%s", diff)
	}
}

func TestTablesThatChangedMeanwhileAreLeftAlone(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		o.inTheField(t)
		scopes := o.read(t)
		stage, _ := o.stage(t, scopes)
		o.exec(t, "insert into scope values ('late')", "insert into kms_root_key (private_id, scope_id) values ('krk_late', 'late')")
		catalogue := objects(t, o.tables.DB, o.tables.Postgres)
		err := o.tables.Replace(t.Context(), scopes, stage, time.Minute)
		if !errors.Is(err, kmsimport.ErrChanged) {
			t.Error(err)
		}
		o.unchanged(t, o.read(t), catalogue)
	})
}

func TestTablesThatCannotBeReplacedAreLeftAlone(t *testing.T) {
	for kind, cases := range map[string]map[string][]string{
		"postgres": {
			"a table of keyhold's name":       {"create table kms_schema_migrations (x int)"},
			"a foreign key of another column": {"alter table kms_data_key add constraint more foreign key (purpose) references scope (private_id) not valid"},
			"tables in two schemas": {
				"create schema more", "alter table kms_collection_version set schema more",
				"do $$ begin execute format('alter database %I set search_path = public, more', current_database()); end $$",
			},
			"a view": {"create view v as select * from kms_root_key"},
		},
		"sqlite": {
			"a table of keyhold's name":    {"create table kms_schema_migrations (x int)"},
			"a row that refers to nothing": {"insert into oidc values ('bad', 'global', 'x', x'00', 'kdkv_none')"},
			"a foreign key without a cascade": {
				"drop table kms_root_key",
				"create table kms_root_key (private_id text not null primary key, scope_id text references scope (private_id), create_time timestamp)",
				"insert into kms_root_key select root_key_id, 'global', null from kms_data_key where purpose = 'sessions' limit 1",
				"delete from kms_data_key where root_key_id not in (select private_id from kms_root_key)",
				"delete from kms_root_key_version where root_key_id not in (select private_id from kms_root_key)",
				"delete from kms_data_key_version where data_key_id not in (select private_id from kms_data_key)",
			},
		},
	} {
		for name, before := range cases {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				o := open(t, kind)
				o.exec(t, before...)
				o.tables.DB.SetMaxIdleConns(0) // a new connection has the database's settings
				scopes := o.read(t)
				stage, _ := o.stage(t, scopes)
				catalogue := objects(t, o.tables.DB, o.tables.Postgres)
				err := o.tables.Replace(t.Context(), scopes, stage, time.Minute)
				if _, told := errors.AsType[*kmsimport.CannotReplaceError](err); !told {
					t.Errorf("got %v", err)
				}
				o.unchanged(t, scopes, catalogue)
			})
		}
	}
}

func TestWhoUsesTheOldTablesIsNotWaitedForForEver(t *testing.T) {
	o := open(t, "postgres")
	scopes := o.read(t)
	stage, _ := o.stage(t, scopes)
	tx, err := o.tables.DB.BeginTx(t.Context(), nil)
	must(t, err)
	_, err = tx.ExecContext(t.Context(), "select 1 from kms_root_key")
	must(t, err)
	if err := o.tables.Replace(t.Context(), scopes, stage, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Error(err)
	}
	must(t, tx.Rollback())
	must(t, o.tables.Replace(context.WithoutCancel(t.Context()), scopes, stage, time.Minute))
}
