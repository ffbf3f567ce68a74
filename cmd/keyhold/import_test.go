package main

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"
)

// oldFixtures is databases that go-kms-wrapping's extras/kms wrote.
const oldFixtures = "internal/kmsimport/testdata/kms_"

// oldDatabases gives a script the command "oldkms VARIABLE": it makes a database of extras/kms, sets the variable to
// its address and VARIABLE_ROOT to the external root, whose key is in old.key, and writes for each secret ID.blob,
// which is sealed, and ID.txt.
func oldDatabases(kind string, address func(t testing.TB, name string) string) func(*testscript.TestScript, bool, []string) {
	fixtures, err := filepath.Abs(oldFixtures + kind)
	return func(ts *testscript.TestScript, neg bool, args []string) {
		ts.Check(err)
		if neg || len(args) != 1 {
			ts.Fatalf("usage: oldkms VARIABLE")
		}
		where := address(ts.Value(theTest{}).(testing.TB), strings.ToLower(args[0]))
		if kind == "sqlite" {
			db, err := os.ReadFile(fixtures + ".db")
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(strings.TrimPrefix(where, "sqlite:")), db, 0o600))
		} else {
			ts.Check(loadPostgres(ts.Value(theTest{}).(testing.TB), where, fixtures+".sql"))
		}
		var known struct {
			RootKeyID, RootKeyB64 string
			Secrets               []struct{ ID, Plaintext, CiphertextB64 string }
		}
		text, err := os.ReadFile(fixtures + ".json")
		ts.Check(err)
		ts.Check(json.Unmarshal(text, &known))
		ts.Check(os.WriteFile(ts.MkAbs("old.key"), []byte(known.RootKeyB64), 0o600))
		for _, s := range known.Secrets {
			blob, err := base64.StdEncoding.DecodeString(s.CiphertextB64)
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(s.ID+".blob"), blob, 0o600))
			ts.Check(os.WriteFile(ts.MkAbs(s.ID+".txt"), []byte(s.Plaintext), 0o600))
		}
		ts.Setenv(args[0], where)
		ts.Setenv(args[0]+"_ROOT", "aead:old.key#"+known.RootKeyID)
	}
}

// loadPostgres runs a file on a connection of its own, whose settings it changes.
func loadPostgres(t testing.TB, dsn, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(t.Context()) }()
	_, err = conn.Exec(t.Context(), string(text))
	return err
}
