package demo

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold"
)

// Each proof of the demo's has to fail where what it is about does not hold. These tests make it not hold.

// rows are those of two tenants.
var rows = []Row{
	{Scope: "a", Secret: "1", Rest: "{}"},
	{Scope: "a", Secret: "2", Rest: "{}"},
	{Scope: "b", Secret: "3", Rest: "{}"},
	{Scope: "b", Secret: "4", Rest: "{}"},
	{Scope: "b", Secret: "5", Rest: "{}"},
}

func TestRefusedTakesNothingButTheRightError(t *testing.T) {
	wrong := errors.New("the disk is full")
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"accepted", nil, "it was accepted"},
		{"refused for another reason", wrong, "it: the disk is full"},
		{"refused", fmt.Errorf("open: %w", keyhold.ErrOpen), ""},
	} {
		got := ""
		if err := refused("it", test.err, keyhold.ErrOpen); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: %q, not %q", test.name, got, test.want)
		}
	}
	if err := refused("it", wrong, keyhold.ErrOpen); !errors.Is(err, wrong) {
		t.Errorf("%v does not wrap what happened", err)
	}
}

// TestEachProofFailsWhereItDoesNotHold changes the database from outside, after one step, and sees in which step and
// by which sentence that comes out.
func TestEachProofFailsWhereItDoesNotHold(t *testing.T) {
	for _, test := range []struct {
		name       string
		after      string
		statements string
		want       string
	}{
		{
			"a row vanishes", "seal",
			`delete from record where id = 2`,
			"demo, step open: 4 rows are stored, not 5",
		},
		{
			"a new row holds another's ciphertext", "open",
			`create trigger harm after insert on record begin
				update record set sealed = (select sealed from record where id = 1), key_version_id =
					(select key_version_id from record where id = 1) where id = new.id;
			end`,
			"demo, step rotate: row 6: ",
		},
		{
			"rewrapping changes rows", "rotate",
			`create trigger harm after update of key on kms_data_key_version begin
				update record set sealed = sealed || x'00';
			end`,
			"demo, step rewrap: rewrapping changed rows",
		},
		{
			"somebody repairs the row that was tampered with", "rewrap",
			`create trigger harm after update on record begin
				update record set sealed = old.sealed, key_version_id = old.key_version_id where id = old.id;
			end`,
			"demo, step tamper: a flipped bit: it was accepted",
		},
		{
			"somebody repairs the row that was exchanged", "rewrap",
			`create trigger harm after update on record when old.key_version_id <> new.key_version_id begin
				update record set sealed = old.sealed, key_version_id = old.key_version_id where id = old.id;
			end`,
			"was accepted",
		},
		{
			"nothing ties keys to rows", "tamper",
			`alter table record rename to tied; create table record as select * from tied; drop table tied`,
			"demo, step delete: keys that rows refer to could be deleted",
		},
		{
			"rows outlive their tenant", "tamper",
			`alter table record rename to tied;
			create table record (id integer, tenant_id text, fields text, sealed blob,
				key_version_id text references kms_data_key_version (private_id));
			insert into record select * from tied;
			drop table tied;
			create trigger harm before delete on tenant begin
				insert into tenant (id) values ('kept');
				update kms_root_key set scope_id = 'kept' where scope_id = old.id;
			end`,
			"demo, step delete: 3 rows and 0 key versions are left",
		},
		{
			"a key is changed", "delete",
			`update kms_data_key_version set key = zeroblob(length(key)) where rowid = (select max(rowid) from kms_data_key_version)`,
			"demo, step check: check found ",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			cfg := Config{Dir: dir, Data: &Table{SealColumn: "secret", Rows: rows}}
			cfg.Step = func(s Step) {
				if s.Name != test.after {
					return
				}
				db, err := sql.Open("sqlite", filepath.Join(dir, File))
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				if _, err := db.Exec(test.statements); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want one with %q", err, test.want)
			}
		})
	}
}

func TestWhatOpensToSomethingElseIsAnError(t *testing.T) {
	w := newWalk(Config{Dir: t.TempDir(), Data: &Table{SealColumn: "secret", Rows: rows}})
	w.Step = func(s Step) {
		if s.Name == "seal" {
			w.secrets[2] = "another"
		}
	}
	_, err := w.all(t.Context())
	if err == nil || err.Error() != "demo, step open: row 2 opens to something else than was sealed" {
		t.Errorf("error %v", err)
	}
}

// TestATenantThatIsKeptThoughRolledBackIsAnError commits what is to be rolled back: from the beginning, or only
// after the tenants were created.
func TestATenantThatIsKeptThoughRolledBackIsAnError(t *testing.T) {
	for _, step := range []string{"tenants", "delete"} {
		w := newWalk(Config{Dir: t.TempDir(), Data: &Table{SealColumn: "secret", Rows: rows}})
		keep := func() { w.rollback = (*sql.Tx).Commit }
		if step == "tenants" {
			keep()
		} else {
			w.Step = func(s Step) {
				if s.Name == "tamper" {
					keep()
				}
			}
		}
		_, err := w.all(t.Context())
		want := "demo, step " + step + ": listing the keys of a tenant that was rolled back was accepted"
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestTheBundledDataTakesSeconds(t *testing.T) {
	data, err := Bundled()
	if err != nil {
		t.Fatal(err)
	}
	account, err := Run(t.Context(), Config{Dir: t.TempDir(), Data: data})
	if err != nil {
		t.Fatal(err)
	}
	if account.Milliseconds <= 0 || account.Milliseconds >= 5000*slower {
		t.Errorf("it took %.0f ms", account.Milliseconds)
	}
}
