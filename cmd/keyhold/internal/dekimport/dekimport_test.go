package dekimport_test

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"

	"keyhold.example/keyhold/cmd/keyhold/internal/dekimport"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
)

// fixture is what is known of a database that go-pg-dek-manager wrote.
type fixture struct {
	MEKB64, OldMEKB64 string
	Keys              map[string]map[string]string
	GenFunc           map[string]string
}

// old is a fresh copy of such a database.
type old struct {
	fixture

	dsn    string
	tables dekimport.Tables
}

func open(t *testing.T) *old {
	t.Helper()
	o := &old{dsn: keyholdtest.Postgres(t)}
	text, err := os.ReadFile("testdata/dek_store.json")
	must(t, err)
	must(t, json.Unmarshal(text, &o.fixture))
	statements, err := os.ReadFile("testdata/dek_store.sql")
	must(t, err)
	conn, err := pgx.Connect(t.Context(), o.dsn) // of its own, as the file changes its search_path
	must(t, err)
	_, err = conn.Exec(t.Context(), string(statements))
	must(t, err)
	must(t, conn.Close(t.Context()))
	o.tables = dekimport.Tables{DB: o.connect(t, o.dsn), Schema: dekimport.DefaultSchema, Prefix: dekimport.DefaultPrefix}
	return o
}

func (*old) connect(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	return db
}

// exec changes the database by hand.
func (o *old) exec(t *testing.T, statements ...string) {
	t.Helper()
	for _, s := range statements {
		_, err := o.tables.DB.ExecContext(t.Context(), s)
		must(t, err)
	}
}

func mek(t *testing.T, text string) dekimport.MEK {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	must(t, err)
	return dekimport.MEK{Shown: "the MEK of the test", Key: secret.New(b)}
}

// open reads all, and opens it with both MEKs.
func (o *old) open(t *testing.T) (*dekimport.Keys, error) {
	t.Helper()
	sealed, err := o.tables.Read(t.Context())
	must(t, err)
	return sealed.Open(t.Context(), mek(t, o.MEKB64), mek(t, o.OldMEKB64))
}

func (o *old) mustOpen(t *testing.T) map[key.Purpose]dekimport.Key {
	t.Helper()
	keys, err := o.open(t)
	must(t, err)
	byName := map[key.Purpose]dekimport.Key{}
	for _, k := range keys.Keys {
		byName[k.Name] = k
	}
	if len(byName) != len(keys.Keys) {
		t.Errorf("%d keys have %d names", len(keys.Keys), len(byName))
	}
	return byName
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAllBytesAreThoseThatTheOldSystemGave(t *testing.T) {
	o := open(t)
	keys := o.mustOpen(t)
	if len(keys) != len(o.Keys) {
		t.Errorf("there are %d keys, want %d", len(keys), len(o.Keys))
	}
	for name, versions := range o.Keys {
		got := keys[key.Purpose(name)]
		if want := o.GenFunc[name]; got.Generator != want && (got.Generator != "" || want != "aes256-random") {
			t.Errorf("%s has the generator %q, want %q", name, got.Generator, want)
		}
		seen := 0
		for i, v := range got.Versions {
			if v.Number != key.Version(i+1) || v.ID != "" {
				t.Errorf("%s: at %d there is %v", name, i, v)
			}
			if want, ok := versions[strconv.Itoa(int(v.Number))]; ok {
				seen++
				if base64.StdEncoding.EncodeToString(v.Key) != want {
					t.Errorf("%s: %v has other bytes", name, v)
				}
			}
		}
		if seen != len(versions) {
			t.Errorf("%s: %d of the %d versions that are known are there", name, seen, len(versions))
		}
	}
}

// The day of a copy under another MEK is not the day when the version was made.
func TestAVersionIsAsOldAsItsOldestRow(t *testing.T) {
	o := open(t)
	o.exec(t, "update dek_store_dek set created_at = '2024-03-31 02:30:00' where key_name = 'sessions' and mek_id = 1 and version = 2",
		"update dek_store_dek set created_at = '2024-05-01 00:00:00.9' where key_name = 'sessions' and mek_id = 2 and version = 1")
	versions := o.mustOpen(t)["sessions"].Versions
	for i, want := range map[int]string{0: "2024-05-01T00:00:00Z", 1: "2024-03-31T02:30:00Z", 2: "2026-11-22T04:06:27Z"} {
		if got := versions[i].Created.Format(time.RFC3339); got != want {
			t.Errorf("%v is of %s, want %s", versions[i], got, want)
		}
	}
}

// Their times have no zone: they are what a clock said in that of the database.
func TestTimesAreOfTheTimeZoneOfTheSession(t *testing.T) {
	o := open(t)
	separator := "?"
	if strings.Contains(o.dsn, "?") {
		separator = "&"
	}
	o.tables.DB = o.connect(t, o.dsn+separator+"timezone=Asia/Kolkata")
	if got := o.mustOpen(t)["aes128"].Versions[0].Created.Format(time.RFC3339); got != "2026-11-21T22:36:27Z" {
		t.Errorf("04:06:27 in Kolkata is %s", got)
	}
}

func TestNamesOfTablesAreTakenAsTheyAre(t *testing.T) {
	o := open(t)
	o.exec(t, `create schema "My Schema"`)
	for _, table := range []string{"mek", "dek", "key_info"} {
		o.exec(t, fmt.Sprintf(`alter table dek_store_%s rename to "a""b_%[1]s"`, table), fmt.Sprintf(`alter table "a""b_%s" set schema "My Schema"`, table))
	}
	if _, err := o.tables.Read(t.Context()); !errors.Is(err, dekimport.ErrNoTables) {
		t.Errorf("where they were: %v", err)
	}
	o.tables.Schema, o.tables.Prefix = "My Schema", `a"b`
	if got := len(o.mustOpen(t)); got != 5 {
		t.Errorf("there are %d keys", got)
	}
}

func TestOneTableOfTheirsIsNotAll(t *testing.T) {
	o := open(t)
	o.exec(t, "drop table dek_store_dek")
	if _, err := o.tables.Read(t.Context()); !errors.Is(err, dekimport.ErrNoTables) {
		t.Errorf("without the table of versions: %v", err)
	}
}

// What an instance with the old MEK made meanwhile, and nobody carried over, is found with that MEK.
func TestVersionsOfOldInstancesAreFound(t *testing.T) {
	o := open(t)
	o.exec(t, `insert into dek_store_dek (version, key_name, encrypted_dek, mek_id)
		select 7, key_name, encrypted_dek, mek_id from dek_store_dek where id = 1`)
	versions := o.mustOpen(t)["user_data"].Versions
	if last := versions[len(versions)-1]; len(versions) != 3 || last.Number != 7 || base64.StdEncoding.EncodeToString(last.Key) != o.Keys["user_data"]["1"] {
		t.Errorf("the versions are %v", versions)
	}
}

func TestThreeMEKs(t *testing.T) {
	o := open(t)
	third := strings.Repeat("x", 32)
	o.exec(t, `insert into dek_store_mek (id, mek_hash) values (3, encode(sha256('`+third+`'), 'base64'))`)
	current := dekimport.MEK{Shown: "the third", Key: secret.New([]byte(third))}
	sealed, err := o.tables.Read(t.Context())
	must(t, err)
	// Nothing is under it yet, so that the one before is enough.
	if _, err := sealed.Open(t.Context(), mek(t, o.MEKB64)); err != nil {
		t.Errorf("a newer MEK without rows: %v", err)
	}
	var refused *dekimport.RefusedError
	if _, err := sealed.Open(t.Context(), current); !errors.As(err, &refused) || !strings.Contains(err.Error(), "MEK 1 (") || refused.Code != "root" {
		t.Errorf("with the third alone: %v", err)
	}
	keys, err := sealed.Open(t.Context(), current, mek(t, o.OldMEKB64), mek(t, o.MEKB64))
	if err != nil || len(keys.Keys) != 5 || keys.Covered != 0 {
		t.Errorf("with all: %v", err)
	}
	// Of those that are not the current one, the newest counts, in whatever order they are given.
	o.exec(t, "update dek_store_dek set encrypted_dek = (select encrypted_dek from dek_store_dek where id = 1) where id = 2")
	sealed, err = o.tables.Read(t.Context())
	must(t, err)
	for i, older := range [][]dekimport.MEK{{mek(t, o.OldMEKB64), mek(t, o.MEKB64)}, {mek(t, o.MEKB64), mek(t, o.OldMEKB64)}} {
		keys, err := sealed.Open(t.Context(), current, older...)
		must(t, err)
		for _, k := range keys.Keys {
			first := base64.StdEncoding.EncodeToString(k.Versions[0].Key)
			if k.Name == "payment cards" && first != o.Keys["payment cards"]["1"] || k.Name == "payment cards#mek1" && first != o.Keys["user_data"]["1"] {
				t.Errorf("order %d: version 1 of %q has the bytes of the other MEK", i, k.Name)
			}
		}
		if len(keys.Keys) != 6 || len(keys.Beside) != 1 {
			t.Errorf("order %d: there are %d keys, and beside: %q", i, len(keys.Keys), keys.Beside)
		}
	}
}

func TestWhatIsRefusedShowsNoKey(t *testing.T) {
	for name, c := range map[string]struct{ change, says, code string }{
		"a row that is said to be under another MEK": {
			`delete from dek_store_dek where id = 7; update dek_store_dek set mek_id = 1 where id = 15`,
			"row 15, version 2 of \"sessions\": it does not open with MEK 1", "damaged",
		},
		"a long key": {
			`update dek_store_dek set encrypted_dek = repeat('A', 1400) where id = 10`, "does not open with MEK 2", "damaged",
		},
		"the suffix makes a name too long": {
			`update dek_store_dek set key_name = repeat('n', 252) where key_name = 'user_data';
				update dek_store_dek set encrypted_dek = (select encrypted_dek from dek_store_dek where id = 2) where id = 1`, "#mek1", "invalid",
		},
	} {
		o := open(t)
		o.exec(t, c.change)
		keys, err := o.open(t)
		refused, ok := errors.AsType[*dekimport.RefusedError](err)
		if keys != nil || !ok || refused.Code != c.code || !strings.Contains(refused.Text, c.says) || refused.Hint == "" {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, secret := range []string{o.MEKB64, o.OldMEKB64, o.Keys["sessions"]["1"]} {
			if strings.Contains(refused.Text, secret[:12]) {
				t.Errorf("%s: shows a key: %s", name, refused.Text)
			}
		}
	}
}

func TestManyDamagedRowsAreCounted(t *testing.T) {
	o := open(t)
	o.exec(t, `insert into dek_store_dek (version, key_name, encrypted_dek, mek_id) select n, 'many', 'AAAA', 2 from generate_series(1, 80) n`)
	if _, err := o.open(t); err == nil || !strings.Contains(err.Error(), "and 30 more") {
		t.Errorf("80 rows: %v", err)
	}
}

func TestKeysAreClearedAndNotPrinted(t *testing.T) {
	o := open(t)
	keys, err := o.open(t)
	must(t, err)
	printed := fmt.Sprintf("%v %+v", keys, keys.Keys)
	first := keys.Keys[0].Versions[0].Key
	if form := strings.Trim(fmt.Sprint(first[:6]), "[]"); strings.Contains(printed, form) || strings.Contains(printed, fmt.Sprintf("%x", first[:6])) {
		t.Error("printed with their bytes")
	}
	keys.Clear()
	for _, k := range keys.Keys {
		for _, v := range k.Versions {
			for _, b := range v.Key {
				if b != 0 {
					t.Fatalf("%v of %s is not cleared", v, k.Name)
				}
			}
		}
	}
}

func TestOpeningEndsWithItsContext(t *testing.T) {
	o := open(t)
	sealed, err := o.tables.Read(t.Context())
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := sealed.Open(ctx, mek(t, o.MEKB64)); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
}
