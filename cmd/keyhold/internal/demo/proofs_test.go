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

// harm is a trigger as PostgreSQL has it, which does what body says.
func harm(when, body string) string {
	return "create function harm() returns trigger language plpgsql as $$ begin " + body + " end $$;" +
		"create trigger harm " + when + " execute function harm()"
}

// TestEachProofFailsWhereItDoesNotHold changes the database from outside, after one step, and sees in which step and
// by which sentence that comes out.
func TestEachProofFailsWhereItDoesNotHold(t *testing.T) {
	for _, test := range []struct {
		name             string
		after            string
		sqlite, postgres string
		want             string
	}{
		{
			"a row vanishes", "seal",
			`delete from record where id = 2`,
			`delete from keyhold_demo.record where id = 2`,
			"demo, step open: 4 rows are stored, not 5",
		},
		{
			"a new row holds another's ciphertext", "open",
			`create trigger harm after insert on record begin
				update record set sealed = (select sealed from record where id = 1), key_version_id =
					(select key_version_id from record where id = 1) where id = new.id;
			end`,
			harm("before insert on keyhold_demo.record for each row",
				`select sealed, key_version_id into new.sealed, new.key_version_id from keyhold_demo.record where id = 1; return new;`),
			"demo, step rotate: row 6: ",
		},
		{
			"rewrapping changes rows", "rotate",
			`create trigger harm after update of key on kms_data_key_version begin
				update record set sealed = sealed || x'00';
			end`,
			harm("after update of key on keyhold_demo.kms_data_key_version for each row",
				`update keyhold_demo.record set sealed = sealed || decode('00', 'hex'); return null;`),
			"demo, step rewrap: rewrapping changed rows",
		},
		{
			"somebody repairs the row that was tampered with", "rewrap",
			`create trigger harm after update on record begin
				update record set sealed = old.sealed, key_version_id = old.key_version_id where id = old.id;
			end`,
			harm("before update on keyhold_demo.record for each row", `return old;`),
			"demo, step tamper: a flipped bit: it was accepted",
		},
		{
			"somebody repairs the row that was exchanged", "rewrap",
			`create trigger harm after update on record when old.key_version_id <> new.key_version_id begin
				update record set sealed = old.sealed, key_version_id = old.key_version_id where id = old.id;
			end`,
			harm("before update on keyhold_demo.record for each row when (old.key_version_id <> new.key_version_id)", `return old;`),
			"was accepted",
		},
		{
			"nothing ties keys to rows", "tamper",
			`alter table record rename to tied; create table record as select * from tied; drop table tied`,
			`alter table keyhold_demo.record drop constraint record_key_version_id_fkey`,
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
			`alter table keyhold_demo.record drop constraint record_tenant_id_fkey;` +
				harm("before delete on keyhold_demo.tenant for each row", `insert into keyhold_demo.tenant (id) values ('kept');
				update keyhold_demo.kms_root_key set scope_id = 'kept' where scope_id = old.id; return old;`),
			"demo, step delete: 3 rows and 0 key versions are left",
		},
		{
			"keys outlive their tenant", "tamper",
			`create trigger harm before delete on tenant begin select raise(ignore); end`,
			`alter table keyhold_demo.kms_root_key drop constraint kms_root_key_scope_id_fkey`,
			" rows and 2 key versions are left",
		},
		{
			"a key is changed", "delete",
			`update kms_data_key_version set key = zeroblob(length(key)) where rowid = (select max(rowid) from kms_data_key_version)`,
			`update keyhold_demo.kms_data_key_version set key = decode(repeat('00', octet_length(key)), 'hex')
				where private_id = (select max(private_id) from keyhold_demo.kms_data_key_version)`,
			"demo, step check: check found ",
		},
	} {
		for kind, config := range databases {
			t.Run(test.name+"/"+kind, func(t *testing.T) {
				cfg := config(t)
				cfg.Dir, cfg.Data = t.TempDir(), &Table{SealColumn: "secret", Rows: rows}
				driver, address, statements := "sqlite", filepath.Join(cfg.Dir, File), test.sqlite
				if cfg.Postgres != "" {
					driver, address, statements = "pgx", cfg.Postgres, test.postgres
				}
				cfg.Step = func(s Step) {
					if s.Name != test.after {
						return
					}
					db, err := sql.Open(driver, address)
					if err != nil {
						t.Fatal(err)
					}
					defer db.Close()
					if _, err := db.Exec(statements); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("error %v; want one with %q", err, test.want)
				}
			})
		}
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
	for kind, config := range databases {
		for _, step := range []string{"tenants", "delete"} {
			t.Run(step+"/"+kind, func(t *testing.T) {
				cfg := config(t)
				cfg.Dir, cfg.Data = t.TempDir(), &Table{SealColumn: "secret", Rows: rows}
				w := newWalk(cfg)
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
			})
		}
	}
}

func TestTheBundledDataTakesSeconds(t *testing.T) {
	for kind, config := range databases {
		t.Run(kind, func(t *testing.T) {
			cfg := config(t)
			var err error
			if cfg.Data, err = Bundled(); err != nil {
				t.Fatal(err)
			}
			cfg.Dir = t.TempDir()
			account, err := Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if account.Milliseconds <= 0 || account.Milliseconds >= 20_000*slower {
				t.Errorf("it took %.0f ms", account.Milliseconds)
			}
		})
	}
}
