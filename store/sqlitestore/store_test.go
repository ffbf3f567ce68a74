package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

func TestAnyPathIsAFile(t *testing.T) {
	for _, name := range []string{
		"plain.db", "with space.db", "what?mode=memory", "#1.db", "100%.db", "%41.db", "schlüssel-鍵.db", ":memory:", "a&b=c;d.db", "file:x.db", "'\"`.db",
	} {
		path := filepath.Join(t.TempDir(), name)
		s := migrated(t, Config{}, path)
		must(t, s.CheckSchema(t.Context()))
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v; want 0600", name, info.Mode())
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) > 3 {
			t.Errorf("%s: %v, %v; want the file and its two companions", name, entries, err)
		}
	}
	if _, err := Create("a\x00b"); err == nil {
		t.Error("a path with a zero byte was opened")
	}
}

func TestARelativePathIsOne(t *testing.T) {
	t.Chdir(t.TempDir())
	open(t, Config{}, "keys.db")
	if _, err := os.Stat("keys.db"); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoDatabaseIsSaidClearly(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	must(t, os.WriteFile(text, []byte(strings.Repeat("this is not a database\n", 500)), 0o600))
	for path, c := range map[string]struct {
		is   error
		says string
	}{
		filepath.Join(dir, "none.db"):           {fs.ErrNotExist, "there is no such file"},
		filepath.Join(dir, "none", "none.db"):   {fs.ErrNotExist, "there is no such file"},
		filepath.Join(dir, "text", "in-a-file"): {store.ErrUnavailable, "not a directory"},
		dir:                                     {store.ErrUnavailable, "it is a folder"},
		text:                                    {store.ErrUnavailable, "not an SQLite database"},
	} {
		s, err := Open(path)
		if err == nil {
			t.Errorf("%s was opened: %v", path, s.Close())
			continue
		}
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v; want %v, saying %q", path, err, c.is, c.says)
		}
	}
	if _, err := Create(filepath.Join(dir, "none", "none.db")); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Create in a folder that is not there: %v; want %v", err, store.ErrUnavailable)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("refusing left files: %v", entries)
	}
}

func TestForeignKeysAreOnForEachConnection(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	on := map[string]string{"foreign_keys": "1", "secure_delete": "1", "synchronous": "2", "busy_timeout": "10000", "journal_mode": "wal"}
	for i := range 100 {
		conn, err := s.DB().Conn(t.Context())
		must(t, err)
		defer conn.Close()
		for pragma, want := range on {
			var got string
			must(t, conn.QueryRowContext(t.Context(), "pragma "+pragma).Scan(&got))
			if got != want {
				t.Errorf("connection %d: %s is %s; want %s", i, pragma, got, want)
			}
		}
	}
}

func TestWritesAreRefusedWhereForeignKeysAreOff(t *testing.T) {
	m := storetest.NewMaker(1)
	path := filepath.Join(t.TempDir(), "keys.db")
	sqltest.Initialized(t, open(t, Config{}, path), m)
	db, err := sql.Open("sqlite", path)
	must(t, err)
	defer db.Close()
	s, err := New(db)
	must(t, err)
	if _, err := s.Key(t.Context(), key.Ref{Scope: "a"}); err != nil {
		t.Errorf("a read: %v", err)
	}
	if n, err := s.Create(t.Context(), m.Inst(), m.Scope("b")); n != 0 || err == nil || !strings.Contains(err.Error(), "_pragma=foreign_keys(1)") {
		t.Errorf("Create: %d, %v; want an error that says how to turn foreign keys on", n, err)
	}
	tx := begin(t, s)
	if n, err := s.InTx(tx).Create(t.Context(), m.Inst(), m.Scope("b")); n != 0 || err == nil || !strings.Contains(err.Error(), "_pragma=foreign_keys(1)") {
		t.Errorf("Create in a transaction: %d, %v; want an error that says how to turn foreign keys on", n, err)
	}
	must(t, tx.Rollback())
}

// TestATransactionNeedsNoSecondConnection deadlocks if one of the calls asks the pool for one, and then fails by the
// context.
func TestATransactionNeedsNoSecondConnection(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	m := storetest.NewMaker(1)
	s := faulty(t, prepared(t, sqltest.WithLife, m), &faults{})
	for _, op := range sqltest.InTx {
		tx, err := s.DB().BeginTx(ctx, nil)
		must(t, err)
		in := s.InTx(tx)
		if err := op.Run(ctx, s, in, m); err != nil {
			t.Errorf("%s: %v", op.Name, err)
		}
		_, err = in.Installation(ctx)
		must(t, err)
		_, err = in.Scopes(ctx, "", 10)
		must(t, err)
		must(t, tx.Commit())
	}
}

func TestStatementsFitTheTables(t *testing.T) {
	for _, c := range []Config{{}, {Prefix: "other_1"}} {
		s := migrated(t, c, filepath.Join(t.TempDir(), "keys.db"))
		for _, text := range s.tables.text {
			stmt, err := s.DB().Prepare(text)
			if err != nil {
				t.Errorf("%s\n%v", text, err)
				continue
			}
			must(t, stmt.Close())
		}
	}
}

func TestReadsUseIndexes(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	for _, q := range []query{
		rootKeyQuery, dataKeyQuery, scopeQuery, rootOfVersionQuery, dataOfVersionQuery, rootVersionID, updateDataKey, rewrapDataKeyVersion,
		destroyDataKeyVersion, destroyRootKeyVersion, insertRootKey, insertDataKey,
	} {
		rows, err := s.DB().Query("explain query plan "+s.tables.text[q], make([]any, parameters(s.tables.text[q]))...)
		must(t, err)
		for rows.Next() {
			var id, parent, unused int
			var detail string
			must(t, rows.Scan(&id, &parent, &unused, &detail))
			if strings.HasPrefix(detail, "SCAN") && !strings.HasPrefix(detail, "SCAN r") && !strings.HasPrefix(detail, "SCAN d") &&
				!strings.Contains(detail, "CONSTANT ROW") {
				t.Errorf("%s\n%s", s.tables.text[q], detail)
			}
		}
		must(t, errors.Join(rows.Err(), rows.Close()))
	}
}

// Whatever a trigger has to find, it finds by an index: each insert asks, however many rows there are.
func TestTriggersUseIndexes(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	var triggers []string
	rows, err := s.DB().Query("select sql from sqlite_master where type = 'trigger' and sql like '%when%'")
	must(t, err)
	for rows.Next() {
		var text string
		must(t, rows.Scan(&text))
		triggers = append(triggers, text)
	}
	must(t, errors.Join(rows.Err(), rows.Close()))
	if len(triggers) < 10 {
		t.Fatalf("only %d triggers", len(triggers))
	}
	for _, text := range triggers {
		_, condition, _ := strings.Cut(text, "\nwhen ")
		condition, _, _ = strings.Cut(condition, "\nbegin")
		condition = regexp.MustCompile(`\b(new|old)\.\w+`).ReplaceAllString(condition, "?")
		rows, err := s.DB().Query("explain query plan select "+condition, make([]any, strings.Count(condition, "?"))...)
		must(t, err)
		for rows.Next() {
			var id, parent, unused int
			var detail string
			must(t, rows.Scan(&id, &parent, &unused, &detail))
			if strings.HasPrefix(detail, "SCAN kms") {
				t.Errorf("%s\n%s", text, detail)
			}
		}
		must(t, errors.Join(rows.Err(), rows.Close()))
	}
}

// parameters is how many different ones a statement has.
func parameters(text string) int {
	seen := map[string]bool{}
	for i, p := range regexp.MustCompile(`\?[0-9]*`).FindAllString(text, -1) {
		if p == "?" {
			p = fmt.Sprint(i)
		}
		seen[p] = true
	}
	return len(seen)
}

func TestAScopeIsNeverAnotherOnesRow(t *testing.T) {
	for kind, c := range map[migrate.ScopeType]struct {
		there key.Scope
		not   []key.Scope
	}{
		migrate.BigInt: {"42", []key.Scope{"042", "+42", "42.0", " 42", "42 ", "4.2e1", "0x2a", "９", "", "42a", "9223372036854775808", "-0"}},
		migrate.UUID: {"0192f3a4-5b6c-7d8e-9fa0-0123456789ab", []key.Scope{
			"0192F3A4-5B6C-7D8E-9FA0-0123456789AB", "0192f3a45b6c7d8e9fa00123456789ab",
			"{0192f3a4-5b6c-7d8e-9fa0-0123456789ab}", "", "0192f3a4-5b6c-7d8e-9fa0-0123456789a", "0192f3a4-5b6c-7d8e-9fa0-0123456789ab\x00",
		}},
	} {
		m := storetest.NewMaker(1)
		s := migrated(t, Config{ScopeType: kind}, filepath.Join(t.TempDir(), "keys.db"))
		must(t, s.Initialize(t.Context(), m.Installation()))
		if n, err := s.Create(t.Context(), m.Inst(), m.Scope(c.there, "p")); n != 2 || err != nil {
			t.Fatalf("%s: Create: %d, %v", kind, n, err)
		}
		f, err := s.Key(t.Context(), key.Ref{Scope: c.there, Purpose: "p"})
		if err != nil || f.Root.Scope != c.there {
			t.Errorf("%s: Key: %q, %v", kind, f.Root.Scope, err)
		}
		var invalid *key.InvalidError
		for _, scope := range c.not {
			_, err := s.Key(t.Context(), key.Ref{Scope: scope, Purpose: "p"})
			if !errors.As(err, &invalid) {
				t.Errorf("%s: Key of scope %q: %v; want a %T", kind, scope, err, invalid)
			}
			if _, err := s.Scope(t.Context(), scope); !errors.As(err, &invalid) {
				t.Errorf("%s: Scope %q: %v; want a %T", kind, scope, err, invalid)
			}
			if n, err := s.Create(t.Context(), m.Inst(), m.Scope(scope)); n != 0 || !errors.As(err, &invalid) {
				t.Errorf("%s: Create of scope %q: %d, %v; want a %T", kind, scope, n, err, invalid)
			}
		}
	}
}

func TestScopesAreInTheOrderOfTheirType(t *testing.T) {
	m := storetest.NewMaker(1)
	s := migrated(t, Config{ScopeType: migrate.BigInt}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(t.Context(), m.Installation()))
	for _, scope := range []key.Scope{"10", "9", "-5", "100"} {
		_, err := s.Create(t.Context(), m.Inst(), m.Scope(scope))
		must(t, err)
	}
	var all []string
	for after := key.Scope(""); ; {
		page, err := s.Scopes(t.Context(), after, 1)
		must(t, err)
		if len(page) == 0 {
			break
		}
		after = page[0]
		all = append(all, string(after))
	}
	if got := strings.Join(all, " "); got != "-5 9 10 100" {
		t.Errorf("Scopes: %s", got)
	}
}

func TestAReadOnlyDatabaseIsRead(t *testing.T) {
	m := storetest.NewMaker(1)
	path := filepath.Join(t.TempDir(), "keys.db")
	sqltest.Initialized(t, open(t, Config{}, path), m)
	dsn, err := dataSource(path)
	must(t, err)
	db, err := sql.Open("sqlite", strings.Replace(dsn, "mode=rw", "mode=ro", 1))
	must(t, err)
	defer db.Close()
	s, err := New(db)
	must(t, err)
	if _, err := s.Key(t.Context(), key.Ref{Scope: "a", Purpose: "one"}); err != nil {
		t.Errorf("Key: %v", err)
	}
	if _, err := s.Create(t.Context(), m.Inst(), m.Scope("b")); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("Create: %v; want %v, saying that it is read-only", err, store.ErrUnavailable)
	}
}

func TestALockedDatabaseIsUnavailable(t *testing.T) {
	m := storetest.NewMaker(1)
	path := filepath.Join(t.TempDir(), "keys.db")
	s := open(t, Config{}, path)
	sqltest.Initialized(t, s, m)
	tx := begin(t, s)
	db, err := sql.Open("sqlite", path+"?_pragma=foreign_keys(1)&_pragma=busy_timeout(1)")
	must(t, err)
	defer db.Close()
	other, err := New(db)
	must(t, err)
	if _, err := other.Create(t.Context(), m.Inst(), m.Scope("b")); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "locked") {
		t.Errorf("Create: %v; want %v, saying that it is locked", err, store.ErrUnavailable)
	}
	must(t, tx.Rollback())
	if n, err := other.Create(t.Context(), m.Inst(), m.Scope("b")); n != 1 || err != nil {
		t.Errorf("Create, unlocked: %d, %v", n, err)
	}
}

func TestWaitingForALockEndsWithTheContext(t *testing.T) {
	m := storetest.NewMaker(1)
	s := open(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	sqltest.Initialized(t, s, m)
	tx := begin(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := s.Create(ctx, m.Inst(), m.Scope("b")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Create: %v; want %v", err, context.DeadlineExceeded)
	}
	if waited := time.Since(start); waited > busyTimeout/2 {
		t.Errorf("it waited for %v", waited)
	}
	must(t, tx.Rollback())
}

func TestTheApplicationsDeletesAndRenamesCascade(t *testing.T) {
	m := storetest.NewMaker(1)
	c := Config{ScopeTable: `my "tenants"`, ScopeColumn: "tenant id"}
	s := migrated(t, c, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(t.Context(), m.Installation()))
	mustExec(t, s, `create table "my ""tenants""" ("tenant id" text primary key)`)
	if n, err := s.Create(t.Context(), m.Inst(), m.Scope("a", "one")); n != 0 || !errors.Is(err, store.ErrForeignKey) {
		t.Errorf("Create without a tenant: %d, %v; want %v", n, err, store.ErrForeignKey)
	}
	mustExec(t, s, `insert into "my ""tenants""" values ('a')`)
	keys := m.Scope("a", "one", "two")
	if n, err := s.Create(t.Context(), m.Inst(), keys); n != 3 || err != nil {
		t.Fatalf("Create: %d, %v", n, err)
	}
	mustExec(t, s, `update "my ""tenants""" set "tenant id" = 'renamed'`)
	f, err := s.Scope(t.Context(), "renamed")
	if err != nil || len(f.Data) != 2 {
		t.Fatalf("Scope, renamed: %d data keys, %v", len(f.Data), err)
	}
	mustExec(t, s, "create table secret (id integer, tenant text, key_id text references kms_data_key_version (private_id))")
	mustExec(t, s, "insert into secret values (1, 'renamed', ?)", string(keys[1].Versions[0].ID))
	if _, err := s.DB().Exec(`delete from "my ""tenants"""`); err == nil || !strings.Contains(err.Error(), foreignKey) {
		t.Errorf("delete of a tenant whose secrets stay: %v; want a refusal", err)
	}
	mustExec(t, s, "delete from secret")
	mustExec(t, s, `delete from "my ""tenants"""`)
	if _, err := s.Scope(t.Context(), "renamed"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Scope, deleted: %v; want %v", err, store.ErrNotFound)
	}
	var left, tombstones int
	must(t, s.DB().QueryRow(`select (select count(*) from kms_data_key_version) + (select count(*) from kms_root_key_version)
		+ (select count(*) from kms_data_key), (select count(*) from kms_tombstone)`).Scan(&left, &tombstones))
	if left != 0 || tombstones != 3 {
		t.Errorf("%d rows are left, and %d tombstones; want 0 and 3", left, tombstones)
	}
	storetest.Check(t, s)
}

func TestAnUnsuitableConfigIsRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"prefix in upper case":         {Prefix: "Kms"},
		"prefix that begins wrong":     {Prefix: "_kms"},
		"prefix with SQL":              {Prefix: `kms"; drop table x; --`},
		"prefix too long":              {Prefix: strings.Repeat("a", migrate.MaxPrefixLen+1)},
		"prefix with a line's end":     {Prefix: "kms\n"},
		"unknown type":                 {ScopeType: "integer"},
		"table without column":         {ScopeTable: "tenant"},
		"table with a zero byte in it": {ScopeTable: "ten\x00ant", ScopeColumn: "id"},
	} {
		path := filepath.Join(t.TempDir(), "keys.db")
		var option *migrate.OptionError
		if s, err := c.Create(path); !errors.As(err, &option) {
			t.Errorf("%s: %v, %v; want a %T", name, s, err, option)
		}
	}
}

func TestTwoInstallationsLiveSideBySide(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.db")
	one, two := open(t, Config{}, path), open(t, Config{Prefix: "kms_root"}, path)
	m1, m2 := storetest.NewMaker(1), storetest.NewMaker(2)
	sqltest.Initialized(t, one, m1)
	var schema *store.SchemaError
	if err := two.CheckSchema(t.Context()); !errors.As(err, &schema) || schema.Have != 0 || schema.Prefix != "kms_root" {
		t.Errorf("CheckSchema of the second: %v; want no tables", err)
	}
	sqltest.Initialized(t, two, m2)
	mustExec(t, one, "delete from {prefix}_root_key")
	if _, err := two.Key(t.Context(), key.Ref{Scope: "a", Purpose: "one"}); err != nil {
		t.Errorf("Key of the second after the first one's keys are deleted: %v", err)
	}
	storetest.Check(t, one)
	storetest.Check(t, two)
}
