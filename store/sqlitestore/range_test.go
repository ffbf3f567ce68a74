package sqlitestore

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// TestNumbersOutOfRangeAreNotReadAsOthers takes the rules away first. Cut to their fields' sizes, most of these numbers
// would be sensible ones.
func TestNumbersOutOfRangeAreNotReadAsOthers(t *testing.T) {
	const byte2, word2 = "256", "4294967296"
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	s.DB().SetMaxOpenConns(1)
	mustExec(t, s, "pragma foreign_keys = off; pragma ignore_check_constraints = on;"+base+insert("data_key_name", dataKeyNameRow)+
		"insert into kms_tombstone select 'kdk_a', 4, 'kdkv_a4', 'dek', 1, commitment, 7 from kms_tombstone where key_id = 'krk_other'")
	rows, err := s.DB().Query("select name from sqlite_master where type = 'trigger' and name not like '%epoch%'")
	must(t, err)
	var drop []string
	for rows.Next() {
		var name string
		must(t, rows.Scan(&name))
		drop = append(drop, "drop trigger "+name)
	}
	must(t, errors.Join(rows.Err(), rows.Close()))
	mustExec(t, s, strings.Join(drop, ";")+"; update kms_data_key_version set alg = 2 where data_key_id = 'kdk_a'")

	read := map[string]func() error{
		"family": func() error {
			_, err := s.Key(t.Context(), key.Ref{Scope: "a", Purpose: "a"})
			return err
		},
		"name": func() error {
			_, _, err := s.Name(t.Context(), key.Ref{Scope: "a", Purpose: "x"})
			return err
		},
		"names": func() error {
			_, err := s.NamesNotUnder(t.Context(), [16]byte{1}, 10)
			return err
		},
		"named": func() error {
			_, err := s.Named(t.Context(), "a", "", 10)
			return err
		},
		"installation": func() error {
			_, err := s.Installation(t.Context())
			return err
		},
	}
	for what, f := range read {
		if err := f(); err != nil {
			t.Fatalf("%s, untouched: %v", what, err)
		}
	}
	for _, c := range []struct{ table, column, value, where, row, read string }{
		{"data_key_version", "state", "state + " + byte2, "private_id = 'kdkv_a1'", "kdkv_a1", "family"},
		{"data_key_version", "state", "state - " + byte2, "private_id = 'kdkv_a1'", "kdkv_a1", "family"},
		{"data_key_version", "alg", "alg + " + byte2, "private_id = 'kdkv_a1'", "kdkv_a1", "family"},
		{"data_key_version", "version", "version + " + word2, "private_id = 'kdkv_a1'", "kdkv_a1", "family"},
		{"data_key_version", "version", "'x'", "private_id = 'kdkv_a1'", "kdkv_a1", "family"},
		{"root_key_version", "state", "state + " + byte2, "private_id = 'krkv_a1'", "krkv_a1", "family"},
		{"root_key_version", "alg", "alg + " + byte2, "private_id = 'krkv_a1'", "krkv_a1", "family"},
		{"root_key_version", "version", "version + " + word2, "private_id = 'krkv_a1'", "krkv_a1", "family"},
		{"tombstone", "alg", "alg + " + byte2, "private_id = 'kdkv_a4'", "kdkv_a4", "family"},
		{"tombstone", "version", "version + " + word2, "private_id = 'kdkv_a4'", "kdkv_a4", "family"},
		{"data_key", "seq", "-1", "private_id = 'kdk_a'", "kdk_a", "family"},
		{"data_key", "head_version", "head_version + " + word2, "private_id = 'kdk_a'", "kdk_a", "family"},
		{"data_key", "rotate_every", "-1", "private_id = 'kdk_a'", "kdk_a", "family"},
		{"data_key", "max_messages", "-1", "private_id = 'kdk_a'", "kdk_a", "family"},
		{"data_key", "rotate_every", "-1", "private_id = 'kdk_a'", `row "a"`, "named"},
		{"data_key_name", "seq", "-1", "true", `row "x"`, "name"},
		{"data_key_name", "last_version", "last_version + " + word2, "true", `row "x"`, "name"},
		{"data_key_name", "seq", "-1", "true", `row "x"`, "names"},
		{"data_key_name", "removed", "'x'", "true", `row "x"`, "names"},
		{"root_key", "seq", "-1", "private_id = 'krk_a'", "krk_a", "family"},
		{"root_slot", "state", "state + " + byte2, "private_id = 'kr_a'", "kr_a", "installation"},
		{"root_slot", "private_id", "'database is locked', state = 300", "private_id = 'kr_a'", "database is locked", "installation"},
		{"root_slot", "retired", "'x'", "private_id = 'kr_a'", "kr_a", "installation"},
		{"installation_key", "created", "'x'", "true", "installation_key", "installation"},
		{"installation", "seq", "-1", "only_row = 1", `row ""`, "family"},
		{"installation", "seq", "-1", "only_row = 1", `row "installation"`, "installation"},
	} {
		t.Run(c.table+" "+c.column+" "+c.value, func(t *testing.T) {
			mustExec(t, s, "begin")
			defer mustExec(t, s, "rollback")
			mustExec(t, s, "update kms_"+c.table+" set "+c.column+" = "+c.value+" where "+c.where)
			err := read[c.read]()
			if err == nil || !strings.Contains(err.Error(), c.row) {
				t.Fatalf("%v; want an error that names %s", err, c.row)
			}
			for _, sentinel := range []error{store.ErrNotFound, store.ErrConflict, store.ErrForeignKey, store.ErrUnavailable, store.ErrUnknownOutcome} {
				if errors.Is(err, sentinel) {
					t.Errorf("%v is %v", err, sentinel)
				}
			}
		})
	}
}

// coded is an error of a driver that shows SQLite's code.
type coded int

func (coded) Error() string { return "SQL logic error" }
func (c coded) Code() int   { return int(c) }

func TestAnErrorSaysWhatIsWrongWithTheDatabase(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	for _, c := range []struct {
		err  error
		says string
	}{
		{coded(7), "memory"},
		{coded(13), "the disk is full"},
		{coded(10 | 3<<8), "reading or writing"},
		{errors.New("out of memory"), "memory"},
		{errors.New("database or disk is full"), "the disk is full"},
	} {
		err := s.tables.explain(t.Context(), "test", c.err)
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "unavailable: ") || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v; want %v, saying %q", err, store.ErrUnavailable, c.says)
		}
	}
}
