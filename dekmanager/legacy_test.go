package dekmanager_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
	"keyhold.example/keyhold/localroot"
)

// oldTable makes an empty table as go-pg-dek-manager has it.
func (w *world) oldTable(name string) {
	w.t.Helper()
	w.exec("create table " + name + " (id serial primary key, version integer not null, key_name text not null, " +
		"encrypted_dek text not null, mek_id integer not null, created_at timestamp not null default current_timestamp)")
}

// oldKey puts a version under both MEKs, as a transition leaves it.
func (w *world) oldKey(table, name string, version int) {
	w.t.Helper()
	w.exec("insert into "+table+" (version, key_name, encrypted_dek, mek_id) select $1::int, $2::text, 'x', n from generate_series(1, 2) n",
		version, name)
}

// imports brings a key as the command line does.
func imports(t *testing.T, d *dekmanager.DEKManager, name string, numbers ...int) {
	t.Helper()
	var versions []keyhold.ImportedVersion
	for _, n := range numbers {
		versions = append(versions, keyhold.ImportedVersion{Number: keyhold.Version(n), Created: time.Now(), Key: make([]byte, 32)})
	}
	_, err := d.Manager().ImportRaw(t.Context(), keyhold.Ref{Scope: scope, Purpose: keyhold.Purpose(name)}, keyhold.RawKey{}, versions)
	must(t, err)
}

const keyholdTables = "select count(*) from pg_class where relname like 'kms%'"

// As long as nothing is there of keyhold's, names would begin again at version 1. Then nothing is made.
func TestKeysThatWereNotImportedAreFoundEverywhere(t *testing.T) {
	w := newWorld(t, "postgres")
	w.oldTable("dek_store_dek")
	w.oldKey("dek_store_dek", "user_data", 1)
	refused(t, w.fails(mek), dekmanager.ErrLegacy, `table public.dek_store_dek has keys of go-pg-dek-manager that were not imported: `)
	refused(t, w.fails(mek, dekmanager.WithSchemaName("public")), dekmanager.ErrLegacy, `run "keyhold import dek" first, or drop`)

	w.exec("create schema old")
	w.exec("alter table dek_store_dek set schema old")
	refused(t, w.fails(mek), dekmanager.ErrLegacy, `table old.dek_store_dek has`)
	w.exec(`do $$ begin execute format('alter database %I set search_path = old', current_database()); end $$`)
	refused(t, w.fails(mek), dekmanager.ErrLegacy, "first, or drop or rename that table")
	w.exec(`do $$ begin execute format('alter database %I reset search_path', current_database()); end $$`)
	w.exec(`alter table old.dek_store_dek rename to "my ""old""_dek"`)
	mine := w.fails(mek)
	refused(t, mine, dekmanager.ErrLegacy, `table old.my "old"_dek has`)
	refused(t, mine, nil, `if they are another program's, make the scope by "keyhold scope create dek-manager --raw-purpose NAME"`)
	w.exec(`alter table old."my ""old""_dek" rename to my_dek`)
	w.exec("alter table old.my_dek set schema public")
	refused(t, w.fails(mek), dekmanager.ErrLegacy, `table public.my_dek has`)
	refused(t, w.fails(mek, dekmanager.WithTablePrefix("my")), dekmanager.ErrLegacy, "first, or drop or rename that table")
	if n := w.count(keyholdTables); n != 0 {
		t.Errorf("the starts that were refused made %d tables and indexes", n)
	}

	// The scope is there: they are another program's.
	root, err := localroot.FromBytes(mek)
	must(t, err)
	m, err := keyhold.New(t.Context(), w.store(), keyhold.Config{Root: root, Initialize: true})
	must(t, err)
	defer func() { must(t, m.Close()) }()
	refused(t, w.fails(mek), dekmanager.ErrLegacy, `table public.my_dek has`)
	must(t, m.CreateScope(t.Context(), scope))
	get(t, w.open(mek), "user_data", 1)
	refused(t, w.fails(mek, dekmanager.WithScope("another")), dekmanager.ErrLegacy, `keyhold scope create another `)
}

// Tables that have no keys, or are something else, are in nobody's way; nor are those that nobody may read.
func TestTablesOfOthersAreNoLegacy(t *testing.T) {
	w := newWorld(t, "postgres")
	w.oldTable("dek_store_dek")
	w.exec("create table a_dek (id int)")
	w.exec("insert into a_dek values (1)")
	w.exec("create table b_dek (version text, key_name text, encrypted_dek text, mek_id int)")
	w.exec("insert into b_dek values ('1', 'a', 'x', 1)")
	get(t, w.open(mek), "a", 1)

	hidden := newWorld(t, "postgres")
	u, err := url.Parse(hidden.dsn)
	must(t, err)
	user := strings.TrimPrefix(u.Path, "/") + "_app"
	hidden.exec("create role " + user + " login")
	t.Cleanup(func() { hidden.exec("drop owned by " + user); hidden.exec("drop role " + user) })
	hidden.exec("create schema hers authorization " + user)
	hidden.oldTable("dek_store_dek")
	hidden.oldKey("dek_store_dek", "user_data", 1)
	owner := hidden.dsn
	u.User = url.User(user)
	query := u.Query()
	if query.Has("user") {
		query.Set("user", user)
		u.RawQuery = query.Encode()
	}
	hidden.dsn = u.String()
	for range 2 { // before the scope is there, and after
		d, err := dekmanager.NewDEKManager(hidden.db(), mek, dekmanager.WithSchemaName("hers"), dekmanager.WithLogger(quiet))
		must(t, err)
		d.Shutdown()
	}
	hidden.dsn = owner
}

// Where the scope is there, an import may still go on, or was killed, or the old library goes on making keys.
func TestAnImportThatDidNotEndIsFound(t *testing.T) {
	w := newWorld(t, "postgres")
	w.oldTable("dek_store_dek")
	first := w.open(mek)
	for name, versions := range map[string]int{"user_data": 2, "sessions": 3, "gone": 2} {
		for n := 1; n <= versions; n++ {
			w.oldKey("dek_store_dek", name, n)
		}
	}
	fails := func(words string, options ...dekmanager.DEKManagerOption) {
		t.Helper()
		err := w.fails(mek, options...)
		refused(t, err, dekmanager.ErrLegacy, `table public.dek_store_dek has keys of go-pg-dek-manager that were not imported, such as `)
		refused(t, err, nil, `run "keyhold import dek" to its end`)
		refused(t, err, nil, words)
	}
	fails(`with version `)
	imports(t, first, "gone", 1, 2)
	imports(t, first, "sessions", 1, 3)
	fails(`"user_data" with version 2`)
	fails(`"user_data" with version 2`, dekmanager.WithSchemaName("public"))
	must(t, first.RegisterKey(t.Context(), "user_data"))
	fails(`"user_data" with version 2`)
	imports(t, first, "user_data", 1, 2)
	imports(t, first, "user_data#mek1", 1)
	w.open(mek)

	// What happens here since is no matter.
	must(t, first.RemoveKey(t.Context(), "gone"))
	must(t, first.RotateDEK(t.Context(), "sessions"))
	get(t, first, "new", 1)
	w.open(mek)
	must(t, first.RegisterKey(t.Context(), "gone"))
	get(t, first, "gone", 3)
	w.open(mek)

	// Another scope has none of them.
	must(t, first.Manager().CreateScope(t.Context(), "another"))
	fails(`with version `, dekmanager.WithScope("another"))

	// The old library goes on.
	w.oldKey("dek_store_dek", "user_data", 3)
	fails(`"user_data" with version 3`)
	must(t, first.RotateDEK(t.Context(), "user_data"))
	w.open(mek)
	w.oldKey("dek_store_dek", "late", 1)
	fails(`"late" with version 1`)

	// Tables that nobody configured are not looked at any more.
	w.exec("alter table dek_store_dek rename to my_dek")
	w.open(mek)
	w.exec("alter table my_dek rename to kms_dek")
	refused(t, w.fails(mek, dekmanager.WithTablePrefix("kms")), dekmanager.ErrLegacy, `table public.kms_dek has`)
	w.exec("alter table kms_dek rename to dek_store_dek")
	w.exec("create schema mine")
	w.exec("alter table dek_store_dek set schema mine")
	w.open(mek)

	// The tables may be where the connection looks, and the old ones in their default schema.
	w.exec(`do $$ begin execute format('alter database %I set search_path = mine', current_database()); end $$`)
	w.exec("alter table mine.dek_store_dek rename to other")
	own := w.open(mek)
	w.oldTable("public.dek_store_dek")
	w.oldKey("public.dek_store_dek", "user_data", 1)
	fails(`"user_data" with version 1`)
	get(t, own, "user_data", 1)
	w.open(mek)
}

// A start looks at all old names, and takes no longer for it than people wait.
func TestAStartBesideManyOldKeysIsQuick(t *testing.T) {
	count := 5000
	if full(t) {
		count = 50_000
	}
	w := newWorld(t, "postgres")
	d := w.open(mek)
	atOnce(8, func(part int) {
		for i := part; i < count; i += 8 {
			ref := keyhold.Ref{Scope: scope, Purpose: keyhold.Purpose(fmt.Sprintf("key %05d", i))}
			versions := []keyhold.ImportedVersion{{Number: 1, Key: make([]byte, 32)}}
			if _, err := d.Manager().ImportRaw(t.Context(), ref, keyhold.RawKey{}, versions); err != nil {
				t.Errorf("import: %v", err)
				return
			}
		}
	})
	w.oldTable("dek_store_dek")
	w.exec("insert into dek_store_dek (version, key_name, encrypted_dek, mek_id) "+
		"select 1, 'key ' || to_char(n, 'FM00000'), 'x', m from generate_series(0, $1::int - 1) n, generate_series(1, 2) m", count)
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			w.exec("analyze")
		}
		began := time.Now()
		w.open(mek)
		took := time.Since(began)
		t.Logf("beside %d old keys, analyzed %v, a start took %v", count, analyzed, took)
		if took > time.Second {
			t.Errorf("a start took %v", took)
		}
	}
}
