package sqlitestore

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// destroyable is a store with a data key whose first version may be destroyed.
func destroyable(t *testing.T, c Config) (*Store, *storetest.Maker, store.Key) {
	t.Helper()
	m := storetest.NewMaker(1)
	s := migrated(t, c, filepath.Join(t.TempDir(), "keys.db"))
	return s, m, sqltest.Destroyable(t, s, m)
}

// What refers to versions is found however the foreign key is written, with any prefix.
func TestReferencesAreFound(t *testing.T) {
	for _, prefix := range []string{"kms", "other"} {
		s, _, k := destroyable(t, Config{Prefix: prefix})
		id := string(k.Versions[0].ID)
		mustExec(t, s, strings.NewReplacer("P_", prefix+"_", "'ID'", "'"+id+"'").Replace(`
			create table "Se""cret" ("Key id" text references P_data_key_version (private_id) on delete cascade);
			insert into "Se""cret" values ('ID'), ('ID'), (null);
			create table implied (key_id text references P_DATA_KEY_VERSION on delete set null);
			insert into implied values ('ID');
			create table plain (id int, keys text);
			create table wide (a text, b text, foreign key (b) references P_data_key_version (Private_ID));
			create table elsewhere (key_id text references P_data_key (private_id));
			create table numbered (d text, "N" bigint, foreign key ("N", d) references P_data_key_version (VERSION, data_key_id));
			insert into numbered select data_key_id, version from P_data_key_version;
			insert into numbered select data_key_id, null from P_data_key_version`))
		must(t, s.Register(t.Context(), store.Column{Table: "PLAIN", Column: "Keys"}))
		must(t, s.Register(t.Context(), store.Column{Schema: "main", Table: "plain", Column: "keys"}))
		mustExec(t, s, "insert into plain values (1, '"+id+"')")
		want := []store.Reference{
			{Column: store.Column{Table: `Se"cret`, Column: "Key id"}, ForeignKey: true, Rows: 2},
			{Column: store.Column{Table: "implied", Column: "key_id"}, ForeignKey: true, Rows: 1},
			{Column: store.Column{Table: "numbered", Column: "(N, d)"}, ForeignKey: true, Rows: 1},
			{Column: store.Column{Table: "plain", Column: "keys"}, Rows: 1},
			{Column: store.Column{Table: "wide", Column: "b"}, ForeignKey: true},
		}
		got, err := s.References(t.Context(), k.Versions[0].ID)
		must(t, err)
		if len(got) != len(want) {
			t.Fatalf("%+v, want %+v", got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%+v, want %+v", got[i], want[i])
			}
		}
		must(t, s.Unregister(t.Context(), store.Column{Table: "plain", Column: "keys"}))
		if got, err := s.References(t.Context(), ""); err != nil || len(got) != 4 || got[2].Rows != 2 {
			t.Errorf("unregistered: %+v, %v", got, err)
		}
	}
}

// Whatever a foreign key does on delete, and where there is none, a version that a row has is not destroyed.
func TestAReferredVersionIsNotDestroyed(t *testing.T) {
	for name, text := range map[string]string{
		"cascade":   "create table secret (key_id text references kms_data_key_version on delete cascade)",
		"set null":  "create table secret (key_id text references kms_data_key_version on delete set null)",
		"no action": "create table secret (key_id text references kms_data_key_version)",
		"of number": "create table secret (key_id text, d text default 'KEY', n integer default 1, " +
			"foreign key (d, n) references kms_data_key_version (data_key_id, version) on delete cascade)",
		"registered": "create table secret (key_id text)",
		"a blob":     "create table secret (key_id text)",
		"generated":  "create table secret (id blob, key_id text generated always as (cast(id as text)) virtual)",
	} {
		s, m, k := destroyable(t, Config{})
		mustExec(t, s, strings.ReplaceAll(text, "KEY", string(k.ID)))
		if !strings.Contains(text, "references") {
			must(t, s.Register(t.Context(), store.Column{Table: "secret", Column: "key_id"}))
		}
		id := "'" + string(k.Versions[0].ID) + "'"
		if name == "a blob" {
			id = "cast(" + id + " as blob)"
		}
		insert := "insert into secret (key_id) values (" + id + ")"
		if name == "generated" {
			insert = "insert into secret (id) values (" + id + ")"
		}
		mustExec(t, s, insert)
		if err := s.Update(t.Context(), m.Destroy(&k, 1)); !errors.Is(err, store.ErrForeignKey) {
			t.Errorf("%s: %v, want %v", name, err, store.ErrForeignKey)
		}
		mustExec(t, s, "delete from secret")
		must(t, s.Update(t.Context(), m.Destroy(&k, 1)))
	}
}

func TestARegisteredColumnThatIsGoneKeepsVersions(t *testing.T) {
	s, m, k := destroyable(t, Config{})
	mustExec(t, s, "create table secret (key_id text)")
	c := store.Column{Table: "secret", Column: "key_id"}
	must(t, s.Register(t.Context(), c))
	mustExec(t, s, "alter table secret rename to moved")
	_, refErr := s.References(t.Context(), "")
	for what, err := range map[string]error{"Update": s.Update(t.Context(), m.Destroy(&k, 1)), "References": refErr} {
		if err == nil || !strings.Contains(err.Error(), "secret.key_id") || !strings.Contains(err.Error(), "unregister") {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, s.Unregister(t.Context(), c))
	must(t, s.Update(t.Context(), m.Destroy(&k, 1)))
}

func TestOnlyColumnsOfTheApplicationsTablesAreRegistered(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	mustExec(t, s, "create table app (t text); create view seen as select t from app")
	refused := map[store.Column]string{
		{Table: "Seen", Column: "t"}:                   "not one of a table",
		{Table: "KMS_tombstone", Column: "private_id"}: "one of keyhold's own",
	}
	rows, err := s.DB().Query(`select name, (select name from pragma_table_info(m.name) limit 1)
		from sqlite_master m where type = 'table' and name glob 'kms_*' and name <> 'kms_schema_migrations'`)
	must(t, err)
	for rows.Next() {
		var c store.Column
		must(t, rows.Scan(&c.Table, &c.Column))
		refused[c] = "one of keyhold's own"
	}
	must(t, errors.Join(rows.Err(), rows.Close()))
	if len(refused) < 16 {
		t.Errorf("only %d columns found", len(refused))
	}
	for c, says := range refused {
		err := s.Register(t.Context(), c)
		if _, ok := errors.AsType[*key.InvalidError](err); !ok || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), c.String()) {
			t.Errorf("%v: %v; want an InvalidError that says %q", c, err, says)
		}
	}
}
