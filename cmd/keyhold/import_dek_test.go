package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
	"keyhold.example/keyhold/keyholdtest"
)

// dekStore is what is known of the database that go-pg-dek-manager wrote.
type dekStore struct {
	MEKB64, OldMEKB64 []byte // in the file in base64
	Keys              map[string]map[string][]byte
	GenFunc           map[string]string
	Ciphertexts       []struct {
		Name, Version, Plaintext string
		Sealed                   []byte `json:"nonce_ciphertext_b64"`
	}
}

// loadDEKs makes such a database, which is one of PostgreSQL always. It writes its MEKs to a folder: to mek.key, as
// bytes, and old.key, in base64.
func loadDEKs(t testing.TB, folder string) (where string, known dekStore, err error) {
	where = keyholdtest.Postgres(t)
	file := filepath.Join(here, "internal/dekimport/testdata/dek_store")
	if err := loadPostgres(t, where, file+".sql"); err != nil {
		return "", known, err
	}
	text, err := os.ReadFile(file + ".json")
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "mek.key"), known.MEKB64, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "old.key"), []byte(base64.StdEncoding.EncodeToString(known.OldMEKB64)+"\n"), 0o600)
	}
	return where, known, err
}

// here is the folder of this package; scripts run in others.
var here, _ = os.Getwd()

// oldDEKs gives a script the command "olddek VARIABLE", which sets the variable to the address of such a database.
func oldDEKs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: olddek VARIABLE")
	}
	where, _, err := loadDEKs(ts.Value(theTest{}).(testing.TB), ts.MkAbs("."))
	ts.Check(err)
	ts.Setenv(args[0], where)
}

// dekImported is such a database with an installation beside the old tables, whose root is the MEK.
func dekImported(t *testing.T) (db *sql.DB, known dekStore, importDEK func() *exec.Cmd) {
	t.Helper()
	dir := t.TempDir()
	where, known, err := loadDEKs(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if db, err = sql.Open("pgx", where); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	command := func(args ...string) *exec.Cmd {
		c := exec.CommandContext(t.Context(), "keyhold", args...)
		c.Dir = dir
		c.Env = append(os.Environ(), "KEYHOLD_DB="+where, "KEYHOLD_ROOT=raw:mek.key", "KEYHOLD_PIN=")
		return c
	}
	run(t, command("init"))
	return db, known, func() *exec.Cmd {
		return command("import", "dek", "--from", where, "--mek", "raw:mek.key", "--old-mek", "raw:old.key")
	}
}

func run(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", c.Args, err, out)
	}
}

// Through package dekmanager, all that the old system had is there: the bytes, what was sealed with them, and the count
// of versions, which goes on.
func TestAnApplicationGoesOnAfterTheImport(t *testing.T) {
	db, known, importDEK := dekImported(t)
	if _, err := db.ExecContext(t.Context(), "insert into dek_store_key_info values ('registered only', 'aes256-random')"); err != nil {
		t.Fatal(err)
	}
	run(t, importDEK())
	m, err := dekmanager.NewDEKManager(db, known.MEKB64)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Shutdown)
	ctx := t.Context()
	names, err := m.ListKeys(ctx)
	if err != nil || len(names) != len(known.Keys)+1 {
		t.Errorf("there are the keys %q, %v", names, err)
	}
	for name, versions := range known.Keys {
		for number, want := range versions {
			if got := dekVersion(t, m, name, number); string(got) != string(want) {
				t.Errorf("version %s of %s has other bytes", number, name)
			}
		}
		if generator, _, err := m.GetKeyInfo(ctx, name); err != nil || generator != known.GenFunc[name] {
			t.Errorf("%s has the generator %q, %v", name, generator, err)
		}
	}
	if len(known.Ciphertexts) == 0 {
		t.Error("there are no ciphertexts")
	}
	for _, c := range known.Ciphertexts {
		block, err := aes.NewCipher(dekVersion(t, m, c.Name, c.Version))
		if err != nil {
			t.Fatal(err)
		}
		aead, err := cipher.NewGCMWithRandomNonce(block) // which opens what has its nonce before it
		if err != nil {
			t.Fatal(err)
		}
		got, err := aead.Open(nil, nil, c.Sealed, nil)
		if err != nil || string(got) != c.Plaintext {
			t.Errorf("what %s, version %s, sealed opens as %q, %v", c.Name, c.Version, got, err)
		}
	}
	for name, last := range map[string]int{"sessions": 3, "aes128": 2, "Ümlaut/key": 1} {
		head, number, err := m.GetDEK(ctx, name)
		if err != nil || number != last {
			t.Errorf("the newest version of %s is %d, %v", name, number, err)
		}
		if err := m.RotateDEK(ctx, name); err != nil {
			t.Fatal(err)
		}
		next, number, err := m.GetDEK(ctx, name)
		if err != nil || number != last+1 || len(next) != len(head) || string(next) == string(head) {
			t.Errorf("after a rotation the newest version of %s is %d, with %d bytes, %v", name, number, len(next), err)
		}
	}
	for _, name := range []string{"user_data", "registered only"} {
		if err := m.RemoveKey(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	again := importDEK()
	said, err := again.CombinedOutput()
	if err != nil || !bytes.Contains(said, []byte("2 keys were left out: they were here and were removed")) {
		t.Errorf("another import: %v: %s", err, said)
	}
	if _, number, err := m.GetDEK(ctx, "sessions"); err != nil || number != 4 {
		t.Errorf("after another import the newest version is %d, %v", number, err)
	}
	for _, name := range []string{"user_data", "registered only"} {
		if _, _, err := m.GetDEK(ctx, name); !errors.Is(err, keyhold.ErrRemoved) {
			t.Errorf("%s was removed, and after another import: %v", name, err)
		}
	}
}

func dekVersion(t *testing.T, m *dekmanager.DEKManager, name, number string) []byte {
	t.Helper()
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.GetDEKByVersion(t.Context(), name, n)
	if err != nil {
		t.Fatalf("version %d of %s: %v", n, name, err)
	}
	return b
}

// An import that is ended or killed has brought some keys whole, and the next one brings the others. Meanwhile no
// program may start, as it would make those that are missing anew.
func TestAKilledImportIsRepeated(t *testing.T) {
	const keys = 2000
	db, known, importDEK := dekImported(t)
	ctx := t.Context()
	_, err := db.ExecContext(ctx, `insert into dek_store_dek (version, key_name, encrypted_dek, mek_id)
		select version, 'bulk ' || n, encrypted_dek, mek_id from dek_store_dek, generate_series(1, $1::int) n where key_name = 'sessions' and mek_id = 2`, keys)
	if err != nil {
		t.Fatal(err)
	}
	there := func() int { return countDEKs(ctx, t, db) }
	n := 0
	for _, signal := range []os.Signal{os.Interrupt, os.Kill} {
		c := importDEK()
		var said bytes.Buffer
		c.Stderr = &said
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for began := n; there() < began+keys/10; {
			if ctx.Err() != nil {
				t.Fatal(ctx.Err())
			}
		}
		if err := c.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait() // it was ended
		if n = there(); n >= keys {
			t.Fatalf("it was ended too late: all %d keys are there", n)
		}
		const stays = "keyhold: hint: what was imported stays: repeat the command to its end before any program starts"
		if signal == os.Interrupt && !strings.Contains(said.String(), stays) {
			t.Errorf("it was ended and said: %s", said.String())
		}
		m, err := dekmanager.NewDEKManager(db, known.MEKB64)
		if err == nil {
			m.Shutdown()
		}
		if !errors.Is(err, dekmanager.ErrLegacy) || !strings.Contains(err.Error(), `run "keyhold import dek" to its end`) {
			t.Errorf("with %d keys a program starts: %v", n, err)
		}
	}
	run(t, importDEK())
	if got := there(); got != keys+len(known.Keys) {
		t.Errorf("there are %d keys, and were %d when it was killed", got, n)
	}
	m, err := dekmanager.NewDEKManager(db, known.MEKB64)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Shutdown)
	for i := 1; i <= keys; i += 97 {
		for number, want := range known.Keys["sessions"] {
			if got := dekVersion(t, m, fmt.Sprint("bulk ", i), number); string(got) != string(want) {
				t.Errorf("version %s of key %d has other bytes", number, i)
			}
		}
	}
}

// Old tables that are another program's are in the way of the first start only: the command that its error names makes
// the scope.
func TestTablesOfAnotherProgramLetStart(t *testing.T) {
	db, known, importDEK := dekImported(t)
	if _, err := db.ExecContext(t.Context(), "alter table dek_store_dek rename to other_dek"); err != nil {
		t.Fatal(err)
	}
	start := func() error {
		m, err := dekmanager.NewDEKManager(db, known.MEKB64)
		if err == nil {
			defer m.Shutdown()
			_, _, err = m.GetDEK(t.Context(), "mine")
		}
		return err
	}
	if err := start(); !errors.Is(err, dekmanager.ErrLegacy) ||
		!strings.Contains(err.Error(), `"keyhold scope create dek-manager --raw-purpose NAME"`) {
		t.Errorf("a program starts: %v", err)
	}
	create := importDEK()
	create.Args = []string{"keyhold", "scope", "create", "dek-manager", "--raw-purpose", "mine"}
	run(t, create)
	if err := start(); err != nil {
		t.Error(err)
	}
}

func countDEKs(ctx context.Context, t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRowContext(ctx, "select count(*) from kms_data_key").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
