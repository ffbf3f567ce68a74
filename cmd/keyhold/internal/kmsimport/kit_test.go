package kmsimport_test

import (
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	"google.golang.org/protobuf/proto"
	_ "modernc.org/sqlite"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/kmsimport"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/localroot"
)

// fixture is what is known of a database that extras/kms wrote.
type fixture struct {
	RootKeyID, RootKeyB64 string
	Scopes                []key.Scope
	Secrets               []struct {
		ID            string
		Scope         key.Scope
		Purpose       key.Purpose
		KeyVersionID  key.ID
		Plaintext     string
		CiphertextB64 string
		AAD           string
	}
	Keys map[key.Scope][]struct {
		ID       key.ID `json:"id"`
		Type     string
		Purpose  key.Purpose `json:"key_purpose"`
		Versions []struct {
			ID      key.ID `json:"id"`
			Version key.Version
		}
	}
}

// old is a fresh copy of such a database.
type old struct {
	fixture

	tables kmsimport.Tables
	source string // for the driver
	root   kmsimport.Root
}

// kinds are the databases that there are of extras/kms.
var kinds = map[string]func(t *testing.T) (driver, source string){
	"sqlite": func(t *testing.T) (string, string) {
		path := filepath.Join(t.TempDir(), "old.db")
		b, err := os.ReadFile("testdata/kms_sqlite.db")
		must(t, err)
		must(t, os.WriteFile(path, b, 0o600))
		return "sqlite", "file:" + path
	},
	"postgres": func(t *testing.T) (string, string) {
		dsn := keyholdtest.Postgres(t)
		text, err := os.ReadFile("testdata/kms_postgres.sql")
		must(t, err)
		conn, err := pgx.Connect(t.Context(), dsn) // of its own, as the file changes its search_path
		must(t, err)
		_, err = conn.Exec(t.Context(), string(text))
		must(t, err)
		must(t, conn.Close(t.Context()))
		return "pgx", dsn
	},
}

func each(t *testing.T, f func(t *testing.T, o *old)) {
	t.Helper()
	for name := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, open(t, name))
		})
	}
}

func open(t *testing.T, kind string) *old {
	t.Helper()
	o := &old{tables: kmsimport.Tables{Postgres: kind == "postgres", Prefix: "kms"}}
	text, err := os.ReadFile("testdata/kms_" + kind + ".json")
	must(t, err)
	must(t, json.Unmarshal(text, &o.fixture))
	driver, source := kinds[kind](t)
	o.source = source
	o.tables.DB, err = sql.Open(driver, source)
	must(t, err)
	t.Cleanup(func() { must(t, o.tables.DB.Close()) })
	o.root = aead(t, o.RootKeyB64)
	return o
}

func aead(t *testing.T, base64 string) kmsimport.Root {
	t.Helper()
	path := filepath.Join(t.TempDir(), "aead.key")
	must(t, os.WriteFile(path, []byte(base64+"\n"), 0o600))
	root, err := kmsimport.AEADRoot(path, "the old root")
	must(t, err)
	return root
}

// exec changes the database by hand.
func (o *old) exec(t *testing.T, statements ...string) {
	t.Helper()
	for _, s := range statements {
		_, err := o.tables.DB.ExecContext(t.Context(), s)
		must(t, err)
	}
}

func (o *old) read(t *testing.T) []kmsimport.Scope {
	t.Helper()
	scopes, err := o.tables.Read(t.Context())
	must(t, err)
	return scopes
}

// openAll opens all keys of the scopes.
func (o *old) openAll(t *testing.T, scopes []kmsimport.Scope) []kmsimport.Keys {
	t.Helper()
	var all []kmsimport.Keys
	for _, s := range scopes {
		k, err := s.Open(t.Context(), o.root)
		must(t, err)
		all = append(all, k)
	}
	return all
}

// stage imports everything into an installation in memory, under a root that is returned.
func (o *old) stage(t *testing.T, scopes []kmsimport.Scope) (*kmsimport.Stage, wrapping.Wrapper) {
	t.Helper()
	root, err := localroot.Generate(filepath.Join(t.TempDir(), "root.key"))
	must(t, err)
	now, err := o.tables.Now(t.Context())
	must(t, err)
	stage, err := kmsimport.NewStage(t.Context(), keyhold.Config{Root: root}, o.tables.Prefix, now)
	must(t, err)
	t.Cleanup(func() { must(t, stage.Close()) })
	must(t, stage.Import(t.Context(), o.openAll(t, scopes)))
	return stage, root
}

// hasEverything asserts that all keys are there as the fixture says, and that all its secrets open.
func (o *old) hasEverything(t *testing.T, m *keyhold.Manager) {
	t.Helper()
	ctx := t.Context()
	if len(o.Scopes) < 4 || len(o.Secrets) < 20 {
		t.Fatalf("the fixture has %d scopes and %d secrets", len(o.Scopes), len(o.Secrets))
	}
	for _, scope := range o.Scopes {
		infos, err := m.Keys(ctx, scope)
		must(t, err)
		have := map[key.ID]keyhold.KeyInfo{}
		for _, k := range infos {
			have[k.ID] = k
		}
		for _, want := range o.Keys[scope] {
			k, ok := have[want.ID]
			if isRoot := want.Type == "kek"; !ok || k.Ref.IsRoot() != isRoot || !isRoot && k.Ref.Purpose != want.Purpose {
				t.Errorf("key %s is %+v", want.ID, k)
				continue
			}
			for _, v := range want.Versions {
				if got := k.Versions[v.Version-1]; got.ID != v.ID || got.Number != v.Version || got.State != key.Retired {
					t.Errorf("version %s is %+v", v.ID, got)
				}
			}
		}
		if len(have) != len(o.Keys[scope]) {
			t.Errorf("scope %s has %d keys", scope, len(have))
		}
	}
	for _, s := range o.Secrets {
		blob, err := base64.StdEncoding.DecodeString(s.CiphertextB64)
		must(t, err)
		decrypts(t, m, key.Ref{Scope: s.Scope, Purpose: s.Purpose}, blob, s.AAD, s.Plaintext)
	}
	findings, err := m.Check(ctx)
	must(t, err)
	for _, f := range findings {
		t.Error(f)
	}
}

func decrypts(t *testing.T, m *keyhold.Manager, ref key.Ref, blob []byte, aad, want string) {
	t.Helper()
	var info wrapping.BlobInfo
	must(t, proto.Unmarshal(blob, &info))
	w, err := m.Wrapper(t.Context(), ref)
	must(t, err)
	var options []wrapping.Option
	if aad != "" {
		options = append(options, wrapping.WithAad([]byte(aad)))
	}
	got, err := w.Decrypt(t.Context(), &info, options...)
	if err != nil || string(got) != want {
		t.Errorf("%v: %q, %v", ref, got, err)
	}
}

// goesOn asserts that all scopes can be rotated, rewrapped and sealed in.
func (o *old) goesOn(t *testing.T, m *keyhold.Manager) {
	t.Helper()
	ctx := t.Context()
	for _, scope := range o.Scopes {
		infos, err := m.Keys(ctx, scope)
		must(t, err)
		for _, k := range infos {
			n, err := m.Rotate(ctx, k.Ref)
			if err != nil || n != k.Head+1 {
				t.Errorf("%v: rotated to %d, %v", k.Ref, n, err)
			}
		}
		if n, err := m.Rewrap(ctx, scope); err != nil || n == 0 {
			t.Errorf("%s: rewrapped %d, %v", scope, n, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
