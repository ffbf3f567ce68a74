package pgstore

import (
	"errors"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
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
				`create table numbered (d text, "N" bigint, foreign key ("N", d) references {schema}{prefix}_data_key_version (version, data_key_id))`,
				`insert into numbered select data_key_id, version from {schema}{prefix}_data_key_version where version = 1`,
				`insert into numbered values (null, 1), ('` + string(k.ID) + `', null), ('` + string(k.ID) + `', 2)`,
			} {
				mustExec(t, s, text)
			}
			must(t, s.Register(t.Context(), store.Column{Table: "plain", Column: "keys"}))
			must(t, s.Register(t.Context(), store.Column{Schema: "public", Table: "plain", Column: "keys"}))
			mustExec(t, s, "insert into plain values (1, '"+id+"')")
			want := []store.Reference{
				{Column: store.Column{Schema: "An app", Table: `Se"cret`, Column: "Key id"}, ForeignKey: true, Rows: 2},
				{Column: store.Column{Schema: "public", Table: "numbered", Column: "(N, d)"}, ForeignKey: true, Rows: 1},
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
			if got, err := s.References(t.Context(), ""); err != nil || len(got) != 4 || got[1].Rows != 2 {
				t.Errorf("unregistered: %+v, %v", got, err)
			}
		})
	}
}

// Whatever a foreign key does on delete, and where there is none, a version that a row has is not destroyed.
func TestAReferredVersionIsNotDestroyed(t *testing.T) {
	for name, text := range map[string]string{
		"cascade":  "create table secret (key_id text references kms_data_key_version on delete cascade)",
		"set null": "create table secret (key_id text references kms_data_key_version on delete set null)",
		"deferred": "create table secret (key_id text references kms_data_key_version deferrable initially deferred)",
		"restrict": "create table secret (key_id text references kms_data_key_version on delete restrict)",
		"of number": "create table secret (key_id text, d text, n int default 1, " +
			"foreign key (d, n) references kms_data_key_version (data_key_id, version) on delete cascade)",
		"registered": "create table secret (key_id text)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, m, k := destroyable(t, Config{})
			mustExec(t, s, text)
			if name == "registered" {
				must(t, s.Register(t.Context(), store.Column{Table: "secret", Column: "key_id"}))
			}
			if name == "of number" {
				mustExec(t, s, "alter table secret alter d set default '"+string(k.ID)+"'")
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

// A row whose insert is under way when its version is to be destroyed, or its scope shredded, is waited for, and keeps
// the version.
func TestAnInsertUnderWayIsWaitedFor(t *testing.T) {
	for name, destroy := range map[string]func(s *Store, m *storetest.Maker, k *store.Key) error{
		"Update": func(s *Store, m *storetest.Maker, k *store.Key) error { return s.Update(t.Context(), m.Destroy(k, 1)) },
		"Shred": func(s *Store, m *storetest.Maker, _ *store.Key) error {
			_, err := s.Shred(t.Context(), m.Inst(), "a")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, m, k := destroyable(t, Config{})
			mustExec(t, s, "create table secret (key_id text references kms_data_key_version on delete cascade)")
			tx, err := s.Pool().Begin(t.Context())
			must(t, err)
			defer func() { _ = tx.Rollback(t.Context()) }() // an error says that it was committed
			_, err = tx.Exec(t.Context(), "insert into secret values ($1)", string(k.Versions[0].ID))
			must(t, err)
			destroyed := make(chan error, 1)
			go func() { destroyed <- destroy(s, m, &k) }()
			untilOneWaits(t, s, destroyed)
			must(t, tx.Commit(t.Context()))
			use, ok := errors.AsType[*store.InUseError](<-destroyed)
			if !ok || use.ID != k.Versions[0].ID || use.References[0].Rows != 1 {
				t.Errorf("%v, want an InUseError about one row", use)
			}
			rows := 0
			must(t, s.Pool().QueryRow(t.Context(), "select count(*) from secret").Scan(&rows))
			if rows != 1 {
				t.Errorf("%d rows, want the one that was inserted", rows)
			}
		})
	}
}

// untilOneWaits returns when somebody waits for a lock in the store's database, and fails if what is to wait has ended.
func untilOneWaits(t *testing.T, s *Store, ended <-chan error) {
	t.Helper()
	for waits := false; !waits; {
		must(t, s.Pool().QueryRow(t.Context(), "select count(*) > 0 from pg_locks where not granted and pid in "+
			"(select pid from pg_stat_activity where datname = current_database())").Scan(&waits))
		select {
		case err := <-ended:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
	}
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

// A column in which an id would not be found, were it there, is refused; and one that has become such a column keeps
// versions.
func TestOnlyColumnsInWhichAnIDIsFoundAreRegistered(t *testing.T) {
	t.Parallel()
	// With one connection, whose temporary table is found, too.
	s, m := byOpen(t, Config{}, keyholdtest.Postgres(t)+"&pool_max_conns=1"), storetest.NewMaker(1)
	must(t, s.Migrate(t.Context()))
	k := sqltest.Destroyable(t, s, m)
	id := string(k.Versions[0].ID)
	for _, text := range []string{
		"create domain key_id as varchar(64)", "create domain narrow as key_id", "create domain raw as bytea",
		`create table app (t text, v varchar, c char(40), d key_id, n narrow, b bytea, r raw, a text[], j jsonb, u uuid, i int, o "char", m name)`,
		"create view seen as select t from app", "create materialized view kept as select t from app", "create index app_t on app (t)",
		"create temporary table passing (t text)",
	} {
		mustExec(t, s, text)
	}
	for _, name := range []string{"t", "v", "c", "d", "n"} {
		c := store.Column{Schema: "public", Table: "app", Column: name}
		must(t, s.Register(t.Context(), c))
		mustExec(t, s, "insert into app ("+name+") values ($1)", id)
		if err := s.Update(t.Context(), m.Destroy(&k, 1)); !errors.Is(err, store.ErrForeignKey) {
			t.Errorf("%v: %v, want %v", c, err, store.ErrForeignKey)
		}
		mustExec(t, s, "delete from app")
		must(t, s.Unregister(t.Context(), c))
	}
	for c, says := range map[store.Column]string{
		{Table: "app", Column: "b"}:                           "of type bytea",
		{Table: "app", Column: "r"}:                           "of type raw",
		{Table: "app", Column: "a"}:                           "of type text[]",
		{Table: "app", Column: "j"}:                           "of type jsonb",
		{Table: "app", Column: "u"}:                           "of type uuid",
		{Table: "app", Column: "i"}:                           "of type integer",
		{Table: "app", Column: "o"}:                           `of type "char"`,
		{Table: "app", Column: "m"}:                           "of type name",
		{Table: "seen", Column: "t"}:                          "not one of a table",
		{Table: "kept", Column: "t"}:                          "not one of a table",
		{Table: "app_t", Column: "t"}:                         "not one of a table",
		{Table: "kms_data_key_version", Column: "private_id"}: "one of keyhold's own",
		{Table: "kms_tombstone", Column: "private_id"}:        "one of keyhold's own",
		{Table: "passing", Column: "t"}:                       "a temporary one",
	} {
		err := s.Register(t.Context(), c)
		if _, ok := errors.AsType[*key.InvalidError](err); !ok || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v; want an InvalidError that says %q", c, err, says)
		}
	}

	c := store.Column{Schema: "public", Table: "app", Column: "i"}
	mustExec(t, s, "alter table app alter i type text")
	must(t, s.Register(t.Context(), c))
	mustExec(t, s, "alter table app alter i type bytea using null")
	_, refErr := s.References(t.Context(), "")
	for what, err := range map[string]error{"Update": s.Update(t.Context(), m.Destroy(&k, 1)), "References": refErr} {
		if err == nil || !strings.Contains(err.Error(), "public.app.i") || !strings.Contains(err.Error(), "of type bytea") {
			t.Errorf("%s with a column that was of text: %v", what, err)
		}
	}
	must(t, s.Unregister(t.Context(), c))
	must(t, s.Update(t.Context(), m.Destroy(&k, 1)))
}
