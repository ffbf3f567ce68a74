package sqlitestore

import (
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/storetest"
)

// orReplace makes SQL delete what is in its way, which SQLite does without the delete triggers.
func orReplace(text string) string {
	return strings.NewReplacer("insert into", "insert or replace into", "update {", "update or replace {").Replace(text)
}

// replaceBreaking is a row that would take the place of another, for everything that tells a table's rows apart: each
// unique key, and the rowid.
func replaceBreaking() []breaking {
	pendingRoot := rootVersionRow.With("root_key_id", "'krk_a'", "version", "4", "state", "1")
	pendingData := dataVersionRow.With("data_key_id", "'kdk_a'", "version", "4", "state", "1")
	otherSlot := insert("root_slot", slotRow.With("private_id", "'kr_b'", "number", "7"))
	moved := func(table string) string { return "update {prefix}_" + table + " set rowid = rowid + 1" }
	list := []breaking{
		{"schema_version_no_replace", "insert into {prefix}_schema_version (only_row, version) values (1, 2)", ""},
		{"schema_version_no_replace", "insert into {prefix}_schema_version (rowid, version) values (1, 2)", ""},

		{"root_slot_no_replace", insert("root_slot", slotRow.With("private_id", "'kr_a'")), ""},
		{"root_slot_no_replace", insert("root_slot", slotRow.With("number", "1")), ""},
		{"root_slot_no_replace", insert("root_slot", activeSlotRow), ""},
		{"root_slot_no_replace", insert("root_slot", slotRow.With("rowid", "1")), ""},
		{"root_slot_no_replace_update", otherSlot + "update {prefix}_root_slot set state = 2, activated = 7, retired = null where private_id = 'kr_b'", ""},
		{"root_slot_no_replace_update", otherSlot + moved("root_slot") + " where private_id = 'kr_a'", ""},

		{"installation_key_no_replace", insert("installation_key", keyRow), ""},
		{"installation_key_no_replace", insert("installation_key", nextKeyRow) + insert("installation_key", nextKeyRow.With("ik_kid", "randomblob(16)")), ""},
		{"installation_key_no_replace", insert("installation_key", nextKeyRow.With("rowid", "1")), ""},
		{"installation_key_immutable", moved("installation_key"), ""},
		{"escrow_no_replace", insert("escrow", escrowRow) + insert("escrow", escrowRow), ""},
		{"escrow_immutable", insert("escrow", escrowRow) + "update {prefix}_escrow set id = id + 1", ""},

		{"installation_no_replace", insert("installation", installationRow.With("inst", "randomblob(16)")), ""},

		{"tombstone_no_replace", insert("tombstone", tombstoneRow.With("private_id", "'krkv_y'")), ""},
		{"tombstone_no_replace", insert("tombstone", tombstoneRow.With("private_id", "''")), ""},
		{"tombstone_no_replace", insert("tombstone", tombstoneRow.With("version", "2")), ""},
		{"tombstone_no_replace", insert("tombstone", tombstoneRow.With("version", "2", "private_id", "'krkv_y'", "rowid", "1")), ""},
		{"tombstone_immutable", moved("tombstone"), ""},

		{"root_key_no_replace", insert("root_key", rootKeyRow.With("private_id", "'krk_a'")), ""},
		{"root_key_no_replace", insert("root_key", rootKeyRow.With("scope_id", "'a'")), ""},
		{"root_key_no_replace", insert("root_key", rootKeyRow.With("rowid", "1")), ""},
		{"root_key_no_replace_update", "update {prefix}_root_key set scope_id = 'b' where scope_id = 'a'", ""},
		{"root_key_no_replace_update", moved("root_key") + " where scope_id = 'a'", ""},

		{"data_key_no_replace", insert("data_key", dataKeyRow.With("private_id", "'kdk_a'")), ""},
		{"data_key_no_replace", insert("data_key", dataKeyRow.With("purpose", "'a'")), ""},
		{"data_key_no_replace", insert("data_key", dataKeyRow.With("rowid", "1")), ""},
		{"data_key_no_replace_update", moved("data_key"), ""},
	}
	for _, c := range []struct {
		key, version string
		pending      row
		key1, id1    string
	}{
		{"root_key", "root_key_version", pendingRoot, "'krk_a'", "'krkv_a1'"},
		{"data_key", "data_key_version", pendingData, "'kdk_a'", "'kdkv_a1'"},
	} {
		headTo := func(n string) string {
			return "update {prefix}_" + c.key + " set seq = 6, head_version = " + n + " where private_id = " + c.key1 + ";"
		}
		list = append(list,
			breaking{c.version + "_no_replace", insert(c.version, c.pending.With("private_id", c.id1)), ""},
			breaking{c.version + "_no_replace", dropTrigger(c.version+"_dense") + insert(c.version, c.pending.With("version", "3")), ""},
			breaking{c.version + "_no_replace", headTo("4") + insert(c.version, c.pending.With("state", "2")), ""},
			breaking{c.version + "_no_replace", insert(c.version, c.pending.With("rowid", "1")), ""},
			breaking{
				c.version + "_no_replace_update",
				headTo("3") + "update {prefix}_" + c.version + " set state = 2 where version = 3 and " + c.key + "_id = " + c.key1, "",
			},
			breaking{c.version + "_no_replace_update", moved(c.version) + " where private_id = " + c.id1, ""},
		)
	}
	list = append(list,
		updates("root_slot", "immutable", "private_id", "'kr_gone'", "number", "2")...)
	list = append(list,
		updates("root_key", "immutable", "private_id", "'krk_b'")...)
	for i := range list {
		list[i].sql = orReplace(list[i].sql)
	}
	return list
}

// TestEveryTableRefusesToReplace is about tables to come, too. Rows of the epochs and of references may be deleted, so
// also replaced.
func TestEveryTableRefusesToReplace(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	rows, err := s.DB().Query(`select name, exists (select 1 from sqlite_master where type = 'trigger' and name = t.name || '_no_replace')
		from sqlite_master t where type = 'table' and name glob 'kms_*' and name not in ('kms_epoch', 'kms_reference', 'kms_schema_migrations')`)
	must(t, err)
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		var name string
		var refuses bool
		must(t, rows.Scan(&name, &refuses))
		if !refuses {
			t.Errorf("%s has no trigger that refuses to replace its rows", name)
		}
	}
	must(t, rows.Err())
	if n < 8 {
		t.Errorf("only %d tables found", n)
	}
}

func TestAReplacedTenantTakesItsKeysAlong(t *testing.T) {
	m := storetest.NewMaker(1)
	s := migrated(t, Config{ScopeTable: "tenant", ScopeColumn: "id"}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(t.Context(), m.Installation()))
	mustExec(t, s, "create table tenant (id text primary key, name text)")
	mustExec(t, s, "insert into tenant (id, name) values ('a', 'old'), ('b', 'old')")
	for _, scope := range []string{"a", "b"} {
		_, err := s.Create(t.Context(), m.Inst(), m.Scope(key.Scope(scope), "one"))
		must(t, err)
		must(t, s.PutName(t.Context(), m.Inst(), 0, m.Name(rootOf(t, s, key.Scope(scope)), "named")))
	}
	mustExec(t, s, "insert into tenant (id, name) values ('a', 'new') on conflict (id) do update set name = excluded.name")
	mustExec(t, s, "insert or replace into tenant (id, name) values ('b', 'new')")
	if scopes, err := s.Scopes(t.Context(), "", 10); err != nil || len(scopes) != 1 || scopes[0] != "a" {
		t.Errorf("Scopes: %q, %v; want that of the tenant that was not replaced", scopes, err)
	}
	names, err := s.NamesNotUnder(t.Context(), [16]byte{}, 10)
	if err != nil || len(names) != 1 || names[0].RootKeyID != rootOf(t, s, "a") {
		t.Errorf("NamesNotUnder: %+v, %v; want the name of that tenant", names, err)
	}
	storetest.Check(t, s)
}
