package pgstore

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// destroyable is a store with a data key whose first version may be destroyed.
func destroyable(t *testing.T, c Config) (*Store, *storetest.Maker, store.Key) {
	t.Helper()
	m := storetest.NewMaker(1)
	s := migrated(t, c)
	return s, m, sqltest.Destroyable(t, s, m)
}

// What refers to versions is found in every schema, of every table with its own prefix, whatever the columns are
// called.
func TestReferencesAreFoundInEverySchema(t *testing.T) {
	for name, c := range map[string]Config{"defaults": {}, "other": {Prefix: "other", Schema: `the "keys"`}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _, k := destroyable(t, c)
			id := string(k.Versions[0].ID)
			for _, text := range []string{
				`create schema "An app"`,
				`create table "An app"."Se""cret" ("Key id" varchar(64) references {schema}{prefix}_data_key_version (private_id) on delete cascade)`,
				`insert into "An app"."Se""cret" values ('` + id + `'), ('` + id + `'), (null)`,
				`create table parted (at int, key_id text references {schema}{prefix}_data_key_version on delete set null) partition by list (at)`,
				`create table parted_1 partition of parted for values in (1)`,
				`insert into parted values (1, '` + id + `')`,
				`create table plain (id int, keys text)`,
				`create table wide (a text, b text, foreign key (b) references {schema}{prefix}_data_key_version (private_id))`,
				`create table elsewhere (key_id text references {schema}{prefix}_data_key (private_id))`,
			} {
				mustExec(t, s, text)
			}
			must(t, s.Register(t.Context(), store.Column{Table: "plain", Column: "keys"}))
			must(t, s.Register(t.Context(), store.Column{Schema: "public", Table: "plain", Column: "keys"}))
			mustExec(t, s, "insert into plain values (1, '"+id+"')")
			want := []store.Reference{
				{Column: store.Column{Schema: "An app", Table: `Se"cret`, Column: "Key id"}, ForeignKey: true, Rows: 2},
				{Column: store.Column{Schema: "public", Table: "parted", Column: "key_id"}, ForeignKey: true, Rows: 1},
				{Column: store.Column{Schema: "public", Table: "plain", Column: "keys"}, Rows: 1},
				{Column: store.Column{Schema: "public", Table: "wide", Column: "b"}, ForeignKey: true},
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
			if got, err := s.References(t.Context(), ""); err != nil || len(got) != 3 {
				t.Errorf("unregistered: %+v, %v", got, err)
			}
		})
	}
}

// Whatever a foreign key does on delete, and where there is none, a version that a row has is not destroyed.
func TestAReferredVersionIsNotDestroyed(t *testing.T) {
	for name, text := range map[string]string{
		"cascade":    "create table secret (key_id text references kms_data_key_version on delete cascade)",
		"set null":   "create table secret (key_id text references kms_data_key_version on delete set null)",
		"deferred":   "create table secret (key_id text references kms_data_key_version deferrable initially deferred)",
		"restrict":   "create table secret (key_id text references kms_data_key_version on delete restrict)",
		"registered": "create table secret (key_id text)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, m, k := destroyable(t, Config{})
			mustExec(t, s, text)
			if name == "registered" {
				must(t, s.Register(t.Context(), store.Column{Table: "secret", Column: "key_id"}))
			}
			mustExec(t, s, "insert into secret values ($1)", string(k.Versions[0].ID))
			if err := s.Update(t.Context(), m.Destroy(&k, 1)); !errors.Is(err, store.ErrForeignKey) {
				t.Errorf("%v, want %v", err, store.ErrForeignKey)
			}
			mustExec(t, s, "delete from secret")
			must(t, s.Update(t.Context(), m.Destroy(&k, 1)))
		})
	}
}

// A row that is inserted while the version is destroyed keeps it, or is refused; it never stays without its key.
func TestDestroyAgainstAConcurrentInsert(t *testing.T) {
	won := map[string]int{}
	for range 20 {
		s, m, k := destroyable(t, Config{})
		mustExec(t, s, "create table secret (key_id text references kms_data_key_version on delete cascade)")
		var inserted, destroyed error
		var wg sync.WaitGroup
		wg.Go(func() {
			_, inserted = s.Pool().Exec(t.Context(), "insert into secret values ($1)", string(k.Versions[0].ID))
		})
		wg.Go(func() { destroyed = s.Update(t.Context(), m.Destroy(&k, 1)) })
		wg.Wait()
		rows := 0
		must(t, s.Pool().QueryRow(t.Context(), "select count(*) from secret").Scan(&rows))
		switch {
		case inserted == nil && errors.Is(destroyed, store.ErrForeignKey) && rows == 1:
			won["insert"]++
		case inserted != nil && strings.Contains(inserted.Error(), "secret_key_id_fkey") && destroyed == nil && rows == 0:
			won["destroy"]++
		default:
			t.Errorf("insert: %v; destroy: %v; %d rows", inserted, destroyed, rows)
		}
	}
	t.Logf("who was first: %v", won)
}

// Rows that row security hides from whoever destroys are not taken for none.
func TestHiddenRowsAreNotTakenForNone(t *testing.T) {
	s, m, k := destroyable(t, Config{})
	for _, text := range []string{
		"create table secret (key_id text references kms_data_key_version on delete cascade)",
		"insert into secret values ('" + string(k.Versions[0].ID) + "')",
		"alter table secret enable row level security, force row level security",
		"drop role if exists keyhold_test_hidden",
		"create role keyhold_test_hidden login",
		"grant all on all tables in schema public to keyhold_test_hidden",
	} {
		mustExec(t, s, text)
	}
	t.Cleanup(func() {
		mustExec(t, s, "drop owned by keyhold_test_hidden")
		mustExec(t, s, "drop role keyhold_test_hidden")
	})
	tx, err := s.Pool().Begin(t.Context())
	must(t, err)
	defer func() { must(t, tx.Rollback(t.Context())) }()
	_, err = tx.Exec(t.Context(), "set local role keyhold_test_hidden")
	must(t, err)
	err = s.InTx(tx).Update(t.Context(), m.Destroy(&k, 1))
	if err == nil || !strings.Contains(err.Error(), "row-level security") {
		t.Errorf("%v, want it refused", err)
	}
	var setting string
	must(t, tx.QueryRow(t.Context(), "select current_setting('row_security')").Scan(&setting))
	if setting != "on" {
		t.Errorf("row_security is %s afterwards", setting)
	}
}

func TestARegisteredColumnThatIsGoneKeepsVersions(t *testing.T) {
	s, m, k := destroyable(t, Config{})
	mustExec(t, s, "create table secret (key_id text)")
	c := store.Column{Schema: "public", Table: "secret", Column: "key_id"}
	must(t, s.Register(t.Context(), c))
	mustExec(t, s, "alter table secret rename to moved")
	for what, err := range map[string]error{
		"Update": s.Update(t.Context(), m.Destroy(&k, 1)),
		"References": func() error {
			_, err := s.References(t.Context(), "")
			return err
		}(),
	} {
		if err == nil || !strings.Contains(err.Error(), "public.secret.key_id") || !strings.Contains(err.Error(), "unregister") {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, s.Unregister(t.Context(), c))
	must(t, s.Update(t.Context(), m.Destroy(&k, 1)))
}
