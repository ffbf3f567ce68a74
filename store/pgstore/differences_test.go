package pgstore

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	gomigrate "github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/migrate"
)

// harms is every object of the tables, as Integrity calls it, with SQL that takes it away or changes it, and with the
// name of those that can be done together, as they leave everything else as it is.
const harms = `
with ours as (
    select oid, oid::regclass::text as name from pg_class where relkind = 'r' and relname like 'kms\_%' and relname <> 'kms_schema_migrations')

select 'table ' || name, 'drop table ' || name || ' cascade', '' from ours

union all
select 'column ' || attname || ' of table ' || name, 'alter table ' || name || ' drop column ' || attname || ' cascade', ''
from ours join pg_attribute on attrelid = ours.oid and attnum > 0
union all
select 'column ' || attname || ' of table ' || name, 'alter table ' || name || ' alter ' || attname
    || case when attidentity = '' then ' set default cast(''7'' as ' || format_type(atttypid, null) || ')' else ' set generated always' end,
    'another default'
from ours join pg_attribute on attrelid = ours.oid and attnum > 0
union all
select 'column ' || attname || ' of table ' || name, 'alter table ' || name || ' alter ' || attname || ' drop default', 'no default'
from ours join pg_attribute on attrelid = ours.oid and atthasdef
union all
select 'column ' || attname || ' of table ' || name,
    'alter table ' || name || ' alter ' || attname || case when attnotnull then ' drop' else ' set' end || ' not null', 'not null'
from ours join pg_attribute on attrelid = ours.oid and attnum > 0
where not exists (select 1 from pg_index where indrelid = ours.oid and indisprimary and attnum = any (indkey))

union all
select 'constraint ' || conname || ' of table ' || name, 'alter table ' || name || ' drop constraint ' || conname || ' cascade',
    case when contype in ('p', 'u') then '' else 'no constraint' end
from ours join pg_constraint on conrelid = ours.oid and contype not in ('n', 't')
union all
select 'constraint ' || conname || ' of table ' || name, 'alter table ' || name || ' rename constraint ' || conname || ' to x_' || conname,
    'another name'
from ours join pg_constraint on conrelid = ours.oid and contype not in ('n', 't')
union all
select 'constraint ' || conname || ' of table ' || name,
    case contype
        when 'c' then 'alter table ' || name || ' drop constraint ' || conname || ', add constraint ' || conname || ' check (true)'
        when 'f' then 'alter table ' || name || ' alter constraint ' || conname || case when condeferrable then ' not' else '' end || ' deferrable'
        else 'alter table ' || name || ' drop constraint ' || conname || ' cascade, add constraint ' || conname || ' '
            || pg_get_constraintdef(c.oid) || ' deferrable'
    end,
    case when contype in ('p', 'u') then '' else 'another constraint' end
from ours join pg_constraint c on conrelid = ours.oid and contype not in ('n', 't')
union all
select 'constraint ' || conname || ' of table ' || name,
    'alter table ' || name || ' drop constraint ' || conname || ', add constraint ' || conname || ' ' || pg_get_constraintdef(c.oid) || ' not valid',
    'not valid'
from ours join pg_constraint c on conrelid = ours.oid and contype in ('c', 'f')

union all
select 'index ' || relname || ' of table ' || name, 'drop index ' || relname || unnest(array['',
        '; create index ' || relname || ' on ' || name || ' ((1))',
        '; ' || pg_get_indexdef(i.oid) || case when indpred is null then ' where false' else ' and (1 = 2)' end]),
    'index ' || generate_series(1, 3)
from ours join pg_index on indrelid = ours.oid join pg_class i on i.oid = indexrelid
where not exists (select 1 from pg_constraint where conindid = i.oid and contype <> 'f')

union all
select 'trigger ' || tgname || ' of table ' || name, unnest(array[
        'drop trigger ' || tgname || ' on ' || name,
        'alter table ' || name || ' disable trigger ' || tgname,
        'alter table ' || name || ' enable replica trigger ' || tgname,
        'drop trigger ' || tgname || ' on ' || name || '; '
            || case when tgqual is null then replace(pg_get_triggerdef(t.oid), ' EXECUTE ', ' WHEN (false) EXECUTE ')
                else replace(pg_get_triggerdef(t.oid), ' WHEN (', ' WHEN (false and ') end,
        'drop trigger ' || tgname || ' on ' || name || '; '
            || regexp_replace(pg_get_triggerdef(t.oid), 'EXECUTE .*', 'EXECUTE FUNCTION suppress_redundant_updates_trigger()')]),
    'trigger ' || generate_series(1, 5)
from ours join pg_trigger t on tgrelid = ours.oid and not tgisinternal

union all
select 'function ' || proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',  unnest(array[
        'drop function ' || oid::regprocedure || ' cascade',
        'alter function ' || oid::regprocedure || ' security definer',
        regexp_replace(regexp_replace(pg_get_functiondef(p.oid), '\mbegin\M', 'begin perform 1;'), '\mselect (greatest|\()', 'select 1 + \1')]),
    unnest(array['', 'security definer', 'another body'])
from pg_proc p where proname like 'kms\_%'
order by 3, 1, 2`

// TestIntegrityFindsEveryRuleThatIsGone asks the catalogue which rules there are, so that none is left out.
func TestIntegrityFindsEveryRuleThatIsGone(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{Schema: "public"})
	rows, err := s.Pool().Query(t.Context(), harms)
	must(t, err)
	type harm struct{ Object, SQL, Together string }
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[harm])
	must(t, err)
	if len(list) < 800 {
		t.Errorf("there are only %d ways to harm the tables", len(list))
	}
	list = append(
		list,
		harm{"table kms_tombstone", "alter table kms_tombstone rename to other", ""},
		harm{"table kms_epoch", "alter table kms_epoch set unlogged", ""},
		harm{"column seq of table kms_data_key", "alter table kms_data_key rename seq to other", ""},
		harm{"column table_name of table kms_reference", "alter table kms_reference alter table_name type varchar(100)", ""},
		harm{"column table_name of table kms_reference", `alter table kms_reference alter table_name type text collate "default"`, ""},
		harm{"column n of table kms_epoch", "alter table kms_epoch alter n type numeric", ""},
		harm{"trigger kms_tombstone_kept of table kms_tombstone", `drop trigger kms_tombstone_kept on kms_tombstone;
			create trigger kms_tombstone_kept before delete on kms_tombstone for each row execute function kms_refuse('another text')`, ""},
		harm{"trigger kms_data_key_head_forward of table kms_data_key", `create schema elsewhere;
			create function elsewhere.kms_refuse() returns trigger language plpgsql as 'begin return new; end';
			drop trigger kms_data_key_head_forward on kms_data_key; set local search_path = elsewhere, public;
			create trigger kms_data_key_head_forward before update of head_version on kms_data_key for each row
				when (new.head_version < old.head_version) execute function kms_refuse('the head never goes back')`, ""},
		harm{"constraint kms_root_key_version_key_fkey of table kms_root_key_version", `
			create schema elsewhere; create table elsewhere.kms_root_key (private_id text primary key);
			alter table kms_root_key_version drop constraint kms_root_key_version_key_fkey, add constraint kms_root_key_version_key_fkey
				foreign key (root_key_id) references elsewhere.kms_root_key (private_id) on delete cascade;
			set local search_path = elsewhere, public`, ""},
		harm{"index kms_epoch_bucket_idx of table kms_epoch", "update pg_index set indisvalid = false where indexrelid = 'kms_epoch_bucket_idx'::regclass", ""},
		harm{"a foreign key of table kms_root_key", "alter table kms_root_key disable trigger all", ""},
	)
	if v := 0; s.Pool().QueryRow(t.Context(), "select current_setting('server_version_num')::int").Scan(&v) == nil && v >= 180000 {
		const foreignKey = "kms_data_key_version_key_fkey"
		list = append(
			list,
			harm{
				"constraint " + foreignKey + " of table kms_data_key_version",
				"alter table kms_data_key_version alter constraint " + foreignKey + " not enforced", "",
			},
			harm{"constraint mine of table kms_data_key", `alter table kms_data_key alter seq drop not null;
				alter table kms_data_key add constraint mine not null seq not valid`, ""},
		)
	}
	// Those that can be done together are found, and nothing else is.
	texts, objects := map[string]string{}, map[string][]string{}
	for _, h := range list {
		if h.Together != "" {
			texts[h.Together] += h.SQL + ";\n"
			objects[h.Together] = append(objects[h.Together], h.Object)
			continue
		}
		if found := afterHarm(t, s, h.SQL); !tells(found, h.Object) {
			t.Errorf("%s\nfound %q; want a sentence about %s", h.SQL, found, h.Object)
		}
	}
	for name, text := range texts {
		found := afterHarm(t, s, text)
		for _, o := range objects[name] {
			if !tells(found, o) {
				t.Errorf("%s: found nothing about %s", name, o)
			}
		}
		says := map[string]string{"not valid": "validate constraint", "trigger 2": "enable trigger", "trigger 3": "enable trigger"}[name]
		if strings.Count(strings.Join(found, "\n"), says) < len(found) {
			t.Errorf("%s: found %q; want %q in each", name, found, says)
		}
		if len(found) != len(objects[name]) {
			t.Errorf("%s: found %q; want one sentence about each of %q", name, found, objects[name])
		}
	}
}

func tells(sentences []string, object string) bool {
	return slices.ContainsFunc(sentences, func(text string) bool {
		return strings.HasPrefix(text, object+" is ") || strings.HasPrefix(text, object+" was never checked: ")
	})
}

// afterHarm is what is found in a transaction that begins with the SQL, and is rolled back.
func afterHarm(t *testing.T, s *Store, text string) []string {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	tx, err := s.Pool().Begin(ctx)
	must(t, err)
	defer func() { must(t, tx.Rollback(ctx)) }()
	if _, err := tx.Exec(ctx, text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	found, _, err := queries{s.tables, &inTx{s.tables, pgxSession{tx}}}.differences(ctx)
	if err != nil {
		t.Fatalf("differences after %s: %v", text, err)
	}
	return found
}

func TestIntegrityFindsThatScopesDoNotReferToTheirTable(t *testing.T) {
	t.Parallel()
	s := byOpen(t, Config{ScopeTable: "tenant", ScopeColumn: "id"}, keyholdtest.Postgres(t))
	mustExec(t, s, "create table tenant (id text primary key, name text unique)")
	must(t, s.Migrate(t.Context()))
	const drop = "alter table kms_root_key drop constraint kms_root_key_scope_id_fkey"
	for text, well := range map[string]bool{
		"select": true,
		drop:     false,
		drop + ", add foreign key (scope_id) references tenant (id) on delete cascade on update cascade":                                      true,
		drop + ", add constraint mine foreign key (scope_id) references tenant on delete cascade on update cascade deferrable":                true,
		drop + ", add foreign key (scope_id) references tenant (id) on delete cascade":                                                        false,
		drop + ", add foreign key (scope_id) references tenant (id) on update cascade":                                                        false,
		drop + ", add foreign key (scope_id) references tenant (name) on delete cascade on update cascade":                                    false,
		drop + ", add foreign key (scope_id) references tenant (id) on delete cascade on update cascade not valid":                            false,
		"create table x (id text primary key);" + drop + ", add foreign key (scope_id) references x (id) on delete cascade on update cascade": false,
	} {
		found := afterHarm(t, s, text)
		if says := strings.Contains(strings.Join(found, "\n"), "from scope_id to column id of table tenant"); says == well {
			t.Errorf("%s\nfound %q; is that well: %v", text, found, well)
		}
	}
}

func TestIntegrityFindsNothingInFreshTables(t *testing.T) {
	t.Parallel()
	byMigrate := func(t *testing.T, c Config, dsn string) { must(t, byOpen(t, c, dsn).Migrate(t.Context())) }
	in := func(schema, dsn string) string {
		u, err := url.Parse(dsn)
		must(t, err)
		q := u.Query()
		q.Set("search_path", schema)
		u.RawQuery = q.Encode()
		return u.String()
	}
	type tables struct {
		made, used Config
		make       func(*testing.T, Config, string)
		path       string // search_path
	}
	both := func(c Config) tables { return tables{made: c, used: c, make: byMigrate} }
	for name, c := range map[string]tables{
		"defaults":                  {make: byMigrate},
		"another prefix, uuid":      both(Config{Prefix: "other_1", ScopeType: migrate.UUID}),
		"another schema, bigint":    both(Config{Schema: `The "keys"`, ScopeType: migrate.BigInt}),
		"a scope table":             both(Config{ScopeTable: "tenant", ScopeColumn: "id"}),
		"a scope table, not named":  {Config{ScopeTable: "tenant", ScopeColumn: "id"}, Config{}, byMigrate, ""},
		"a schema named new":        both(Config{Schema: "new"}),
		"a schema, found by path":   {Config{Schema: "keys"}, Config{}, byMigrate, "public,keys"},
		"golang-migrate":            {make: golangMigrate},
		"golang-migrate, a schema":  {Config{Schema: "public"}, Config{}, golangMigrate, ""},
		"golang-migrate, by a path": {Config{}, Config{Schema: "public"}, golangMigrate, "nowhere,public"},
	} {
		t.Run(name, func(t *testing.T) {
			dsn := keyholdtest.Postgres(t)
			execAs(t, dsn, "create table tenant (id text primary key, n int)")
			if c.path != "" {
				dsn = in(c.path, dsn)
			}
			c.make(t, c.made, dsn)
			s := byOpen(t, c.used, dsn)
			if found, err := s.Integrity(t.Context()); err != nil || len(found) > 0 {
				t.Errorf("Integrity: %q, %v; want nothing", found, err)
			}
		})
	}
}

func golangMigrate(t *testing.T, c Config, dsn string) {
	t.Helper()
	ours, err := Migrations(c.options())
	must(t, err)
	files, err := iofs.New(ours, ".")
	must(t, err)
	name, driver := kit.Driver(t, dsn)
	m, err := gomigrate.NewWithInstance("iofs", files, name, driver)
	must(t, err)
	must(t, m.Up())
	must(t, errors.Join(m.Close()))
}

// TestIntegrityFindsFunctionsThatLookElsewhere is about tables that were made without the name of their schema.
func TestIntegrityFindsFunctionsThatLookElsewhere(t *testing.T) {
	t.Parallel()
	dsn := keyholdtest.Postgres(t)
	golangMigrate(t, Config{}, dsn)
	s := byOpen(t, Config{}, dsn)
	for setting, well := range map[string]bool{
		"set search_path = public, pg_temp": true, `set search_path = "$user", public`: true,
		"set search_path = elsewhere": false, "set search_path = 'public, pg_temp'": false, "reset search_path": false,
	} {
		found := afterHarm(t, s, "alter function kms_data_key_epoch_update() "+setting)
		if tells(found, "function kms_data_key_epoch_update()") == well || well && len(found) > 0 {
			t.Errorf("%s: found %q; is that well: %v", setting, found, well)
		}
	}
}

func TestIntegrityNeedsNoRightButToRead(t *testing.T) {
	t.Parallel()
	r := newRoles(t)
	dsn := keyholdtest.Postgres(t)
	r.admit(t, dsn)
	must(t, r.migrate(t.Context(), byOpen(t, Config{}, r.as(t, "migration", dsn))))
	execAs(t, dsn, "alter table kms_epoch disable trigger kms_epoch_no_truncate")
	found, err := byOpen(t, Config{}, r.as(t, "application", dsn)).Integrity(t.Context())
	if err != nil || len(found) != 1 || !tells(found, "trigger kms_epoch_no_truncate of table kms_epoch") {
		t.Errorf("Integrity: %q, %v; want one sentence about the trigger that is off", found, err)
	}
}

func TestIntegrityLeavesTheApplicationsOwnAlone(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{})
	for _, text := range []string{
		"create index on kms_root_key (created)",
		"create unique index kms_mine on kms_root_key (created, private_id)",
		"create table tenant (id text primary key); alter table kms_root_key add foreign key (scope_id) references tenant (id) not valid",
		"create table oidc (k text references kms_data_key_version (private_id))",
		"create table kms_sessions (k text check (k <> ''))",
		"alter table kms_root_key add note text not null default 'none', add constraint mine check (seq > 0) not valid",
		`create function kms_root_key_epoch_update(text) returns text language sql as 'select $1';
			create aggregate kms_sum(int) (sfunc = int4pl, stype = int)`,
		`create function mine() returns trigger language plpgsql as 'begin return new; end';
			create trigger kms_mine before insert on kms_root_key for each row execute function mine();
			alter table kms_root_key disable trigger kms_mine`,
		"comment on table kms_root_key is 'keys'; alter table kms_root_key set (fillfactor = 80); cluster kms_root_key using kms_root_key_pkey",
		"alter table kms_root_key alter seq set statistics 10, alter mac set storage main",
		// As it is after a dump and a restore: the same, in other words.
		`alter table kms_root_slot drop constraint kms_root_slot_state,
			add constraint kms_root_slot_state check (((state) = any (array[2, 3, 5])))`,
		"alter table kms_root_key alter head_state set default (2)",
	} {
		if found := afterHarm(t, s, text); len(found) > 0 {
			t.Errorf("%s\nfound %q", text, found)
		}
	}
}
