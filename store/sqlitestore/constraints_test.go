package sqlitestore

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store/internal/sqltest"
)

type row = sqltest.Row

func insert(table string, r row) string { return sqltest.Insert(table, r) }

func zeroblob(n int) string { return fmt.Sprintf("zeroblob(%d)", n) }

var (
	one = sqltest.NewRows(zeroblob, zeroblob, "x'01'")

	keyRow, slotRow, installationRow = one.InstallationKey, one.Slot, one.Installation
	tombstoneRow                     = one.Tombstone
	rootKeyRow, rootVersionRow       = one.RootKey, one.RootVersion
	dataKeyRow, dataVersionRow       = one.DataKey, one.DataVersion

	base = one.Base("x''") // what every case begins with
)

// breaking is SQL that a named constraint, index or trigger has to refuse.
type breaking struct {
	name string // without prefix
	sql  string
	text string // expected in the error; empty is the check's or trigger's own name
}

func unique(columns string) string { return "UNIQUE constraint failed: " + columns }

const foreignKey = "FOREIGN KEY constraint failed"

// checks are values that the check of one column refuses.
func checks(table string, r row, column string, values ...string) []breaking {
	var list []breaking
	for _, v := range values {
		list = append(list, breaking{table + "_" + column, insert(table, r.With(column, v)), ""})
	}
	return list
}

var (
	badInteger = []string{"'one'", "1.5", "x'01'"}
	badBlob16  = []string{"zeroblob(15)", "zeroblob(17)", "'0123456789abcdef'"}
	badBlob32  = []string{"zeroblob(31)", "zeroblob(33)", "'0123456789abcdef0123456789abcdef'"}
	with       = func(more []string, values ...string) []string { return append(values, more...) }
	badID      = func(prefix string) []string {
		return []string{
			"''", "'" + prefix + "'", "'x'", "'" + prefix + "é'", "'" + prefix + "a' || char(0)",
			"'" + prefix + strings.Repeat("a", 65-len(prefix)) + "'", "cast('" + prefix + "a' as blob)",
		}
	}
	dropTrigger = func(names ...string) string {
		text := ""
		for _, n := range names {
			text += "drop trigger {prefix}_" + n + "; "
		}
		return text
	}
)

func installationBreaking() []breaking {
	text := func(n int) string { return "'" + strings.Repeat("a", n) + "'" }
	newTombstone := tombstoneRow.With("key_id", "'krk_new'", "private_id", "'krkv_new'")
	return slices.Concat(
		[]breaking{
			{
				"schema_version_pkey", dropTrigger("schema_version_no_replace") + "insert into {prefix}_schema_version (only_row, version) values (1, 2)",
				unique("{prefix}_schema_version.only_row"),
			},
			{"schema_version_one", "insert into {prefix}_schema_version (only_row, version) values (2, 2)", ""},
			{"schema_version_version", "update {prefix}_schema_version set version = 0", ""},
			{"schema_version_version", "update {prefix}_schema_version set version = 'v0.0.2'", ""},

			{
				"root_slot_pkey", dropTrigger("root_slot_no_replace") + insert("root_slot", slotRow.With("private_id", "'kr_a'")),
				unique("{prefix}_root_slot.private_id"),
			},
			{
				"root_slot_number_key", dropTrigger("root_slot_no_replace") + insert("root_slot", slotRow.With("number", "1")),
				unique("{prefix}_root_slot.number"),
			},
			{
				"root_slot_one_active", dropTrigger("root_slot_no_replace") + insert("root_slot", activeSlotRow),
				unique("{prefix}_root_slot.ik_kid"),
			},
			{"root_slot_blob", insert("root_slot", slotRow.With("blob", "x''")), ""},
			{"root_slot_removed", insert("root_slot", slotRow.With("removed", "1")), ""},
			{"root_slot_removed", insert("root_slot", slotRow.With("state", "5", "blob", "x''")), ""},
			{"root_slot_removed", insert("root_slot", slotRow.With("state", "5", "blob", "x''", "removed", "'now'")), ""},
			{"root_slot_kept", "delete from {prefix}_root_slot where private_id = 'kr_gone'", ""},
			{"root_slot_removed_stays", "update {prefix}_root_slot set state = 3, blob = x'01', retired = 7, removed = null where private_id = 'kr_gone'", ""},

			{
				"installation_pkey", dropTrigger("installation_no_replace") + insert("installation", installationRow),
				unique("{prefix}_installation.only_row"),
			},
			{"installation_one", insert("installation", installationRow.With("only_row", "2")), ""},
			{"installation_active_slot_fkey", "update {prefix}_installation set seq = 6, active_slot = 'kr_none'", foreignKey},
			{"installation_seq_grows", "update {prefix}_installation set seq = 5, mac = randomblob(32)", ""},
			{"installation_seq_grows", "update {prefix}_installation set mac = randomblob(32)", ""},
			{"installation_kept", "delete from {prefix}_installation", ""},

			{
				"tombstone_pkey", dropTrigger("tombstone_no_replace") + insert("tombstone", tombstoneRow.With("private_id", "'krkv_y'")),
				unique("{prefix}_tombstone.key_id, {prefix}_tombstone.version"),
			},
			{
				"tombstone_private_id_key", dropTrigger("tombstone_no_replace") + insert("tombstone", tombstoneRow.With("version", "2")),
				unique("{prefix}_tombstone.private_id"),
			},
			{"tombstone_commitment", insert("tombstone", tombstoneRow.With("version", "2", "private_id", "''", "commitment", "randomblob(32)")), ""},
			{"tombstone_immutable", "update {prefix}_tombstone set destroyed = 1", ""},
			{"tombstone_kept", "delete from {prefix}_tombstone", ""},
			{"tombstone_not_live", insert("tombstone", tombstoneRow.With("key_id", "'krk_a'", "private_id", "'krkv_y'")), ""},
			{"tombstone_not_live", insert("tombstone", tombstoneRow.With("key_id", "'kdk_a'", "private_id", "'kdkv_y'", "kind", "'dek'")), ""},
			{"tombstone_not_live", insert("tombstone", tombstoneRow.With("version", "2", "private_id", "'krkv_a1'")), ""},
			{"tombstone_not_live", insert("tombstone", tombstoneRow.With("version", "2", "private_id", "'kdkv_a1'")), ""},
			{"tombstone_dense", insert("tombstone", tombstoneRow.With("version", "3", "private_id", "'krkv_y'")), ""},
			{"tombstone_dense", insert("tombstone", tombstoneRow.With("key_id", "'kdk_a'", "version", "5", "private_id", "'krkv_y'")), ""},

			{
				"purpose_pkey",
				"drop trigger {prefix}_purpose_no_replace; insert into {prefix}_purpose (purpose, alg) values ('p', 1), ('p', 1)",
				unique("{prefix}_purpose.purpose"),
			},
			{"purpose_purpose", "insert into {prefix}_purpose (purpose, alg) values ('', 1)", ""},
			{"purpose_purpose", "insert into {prefix}_purpose (purpose, alg) values (x'70', 1)", ""},
			{"purpose_alg", "insert into {prefix}_purpose (purpose, alg) values ('p', 0)", ""},
			{"purpose_alg", "insert into {prefix}_purpose (purpose, alg) values ('p', 4)", ""},
			{"purpose_alg", "insert into {prefix}_purpose (purpose, alg) values ('p', 'x')", ""},
			{"purpose_created", "insert into {prefix}_purpose (purpose, alg, created) values ('p', 1, 0)", ""},
			{
				"purpose_no_replace",
				"insert into {prefix}_purpose (purpose, alg) values ('p', 1); insert or replace into {prefix}_purpose (purpose, alg) values ('p', 2)", "",
			},
			{
				"purpose_no_replace_update",
				"insert into {prefix}_purpose (purpose, alg) values ('p', 1), ('q', 2); update or replace {prefix}_purpose set purpose = 'p' where alg = 2", "",
			},
			{
				"reference_pkey", "insert into {prefix}_reference (table_name, column_name) values ('t', 'c'), ('t', 'c')",
				unique("{prefix}_reference.table_name, {prefix}_reference.column_name"),
			},
			{"reference_names", "insert into {prefix}_reference (table_name, column_name) values ('', 'c')", ""},
			{"reference_names", "insert into {prefix}_reference (table_name, column_name) values ('t', '')", ""},

			{"epoch_pkey", "insert into {prefix}_epoch (id, bucket, n) values (1, 1, 1), (1, 1, 1)", unique("{prefix}_epoch.id")},
			{"epoch_bucket", "insert into {prefix}_epoch (bucket, n) values (32, 1)", ""},
			{"epoch_bucket", "insert into {prefix}_epoch (bucket, n) values (-1, 1)", ""},
			{"epoch_n", "insert into {prefix}_epoch (bucket, n) values (1, 0)", ""},
		},
		updates("root_slot", "immutable", "private_id", "'kr_y'", "number", "7",
			"wrapper_type", "'y'", "wrapper_key_id", "'y'", "ik_kid", "randomblob(16)", "created", "1"),
		updates("installation", "immutable", "only_row", "2", "inst", "randomblob(16)", "created", "1"),
		checks("root_slot", slotRow, "private_id", "''", text(65), "'é'", "x'6b'"),
		checks("root_slot", slotRow, "number", with(badInteger, "0", "-1")...),
		checks("root_slot", slotRow, "wrapper_type", "''", "x'01'"),
		checks("root_slot", slotRow, "wrapper_key_id", "x'01'"),
		checks("root_slot", slotRow, "ik_kid", badBlob16...),
		checks("root_slot", slotRow, "state", with(badInteger, "1", "4", "6")...),
		checks("root_slot", slotRow, "blob", "'text'"),
		checks("root_slot", slotRow, "created", with(badInteger, "0", "datetime('now')")...),
		onlyCheck(checks("installation", installationRow, "inst", badBlob16...), "installation_no_replace"),
		onlyCheck(checks("installation", installationRow, "ik_kid", badBlob16...), "installation_no_replace"),
		onlyCheck(checks("installation", installationRow, "seq", with(badInteger, "0")...), "installation_no_replace"),
		onlyCheck(checks("installation", installationRow, "mac", badBlob32...), "installation_no_replace"),
		onlyCheck(checks("installation", installationRow, "created", with(badInteger, "0")...), "installation_no_replace"),
		checks("tombstone", newTombstone, "key_id", "''", text(65), "'é'", "x'6b'"),
		onlyCheck(checks("tombstone", newTombstone, "version", with(badInteger, "0", "65536")...), "tombstone_dense"),
		checks("tombstone", newTombstone, "private_id", text(65), "'é'", "x'6b'"),
		checks("tombstone", newTombstone, "kind", "'ik'", "''"),
		checks("tombstone", newTombstone, "alg", with(badInteger, "-1", "4")...),
		checks("tombstone", newTombstone, "commitment", badBlob32...),
		checks("tombstone", newTombstone, "destroyed", with(badInteger, "0")...),
	)
}

// updates are changes of single columns that a trigger of the table refuses.
func updates(table, trigger string, columnsAndValues ...string) []breaking {
	var list []breaking
	for i := 0; i < len(columnsAndValues); i += 2 {
		list = append(list, breaking{
			table + "_" + trigger, "update {prefix}_" + table + " set " + columnsAndValues[i] + " = " + columnsAndValues[i+1], "",
		})
	}
	return list
}

// onlyCheck takes a trigger away that would refuse before the check does.
func onlyCheck(list []breaking, triggers ...string) []breaking {
	for i := range list {
		list[i].sql = dropTrigger(triggers...) + list[i].sql
	}
	return list
}

// keyBreaking are the rules that root keys and data keys have in common.
func keyBreaking(key, version, keyID string, k, v row, a, va string) []breaking {
	newKey := insert(key, k)
	pending := v.With(keyID, "'"+a+"_a'", "version", "4", "state", "1")
	set := func(where, changes string) string {
		return fmt.Sprintf("update {prefix}_%s set %s where private_id = '%s_%s';", key, changes, a, where)
	}
	setVersion := func(n, changes string) string {
		return fmt.Sprintf("update {prefix}_%s set %s where private_id = '%s_a%s';", version, changes, va, n)
	}
	return slices.Concat(
		[]breaking{
			{
				key + "_pkey", dropTrigger(key+"_no_replace") + insert(key, k.With("private_id", "'"+a+"_a'")),
				unique("{prefix}_" + key + ".private_id"),
			},
			{key + "_head_version", insert(key, k.With("head_version", "65536")), ""},
			{key + "_head_state", insert(key, k.With("head_state", "1")), ""},
			{key + "_rotate_at", insert(key, k.With("rotate_every", "0")), ""},
			{key + "_head_fkey", newKey, foreignKey},
			{key + "_head_fkey", newKey + insert(version, v.With("state", "1")), foreignKey},
			{key + "_head_fkey", set("a", "seq = 6, head_version = 3"), foreignKey},
			{key + "_head_fkey", set("a", "seq = 6, head_version = 3") + setVersion("2", "state = 3"), foreignKey},
			{key + "_seq_grows", set("a", "seq = 5"), ""},
			{key + "_seq_grows", set("a", "seq = 4"), ""},
			{key + "_seq_grows", set("a", "mac = randomblob(32)"), ""},
			{key + "_seq_grows", set("a", "rotate_every = 70"), ""},
			{key + "_head_forward", set("a", "seq = 6, head_version = 1"), ""},

			{
				version + "_pkey", dropTrigger(version+"_no_replace") + insert(version, pending.With("private_id", "'"+va+"_a1'")),
				unique("{prefix}_" + version + ".private_id"),
			},
			{
				version + "_version_key", dropTrigger(version+"_dense", version+"_no_replace") + insert(version, pending.With("version", "3")),
				unique("{prefix}_" + version + "." + keyID + ", {prefix}_" + version + ".version"),
			},
			{
				version + "_state_key", dropTrigger(version+"_dense", version+"_no_replace") + insert(version, pending.With("version", "3")),
				unique("{prefix}_" + version + "." + keyID + ", {prefix}_" + version + ".version"),
			},
			{
				version + "_one_active", dropTrigger(version+"_state_new", version+"_no_replace") + insert(version, pending.With("state", "2")),
				unique("{prefix}_" + version + "." + keyID),
			},
			{version + "_dense", insert(version, pending.With("version", "5")), ""},
			{version + "_dense", dropTrigger(version+"_no_replace") + insert(version, pending.With("version", "3")), ""},
			{version + "_dense", "delete from {prefix}_" + version + " where version = 3;" + insert(version, pending.With("version", "3")), ""},
			{version + "_not_again", insert(version, pending.With("private_id", "'krkv_other'")), ""},
			{version + "_state_new", dropTrigger(version+"_no_replace") + insert(version, pending.With("state", "2")), ""},
			{version + "_state_new", insert(version, pending.With("state", "4")), ""},
			{version + "_state_new", insert(version, pending.With("state", "5")), ""},
			{version + "_state_change", setVersion("3", "state = 2"), ""},
			{version + "_state_change", setVersion("3", "state = 3"), ""},
			{version + "_state_change", setVersion("3", "state = 4"), ""},
			{version + "_state_change", setVersion("3", "state = 5"), ""},
			{version + "_state_change", setVersion("2", "state = 3"), ""},
			{version + "_state_change", setVersion("2", "state = 1"), ""},
			{version + "_state_change", setVersion("2", "state = 4"), ""},
			{version + "_state_change", setVersion("1", "state = 2"), ""},
			{version + "_state_change", setVersion("1", "state = 1"), ""},
			{version + "_disabled", insert(version, pending.With("disabled", "1")), ""},
			{version + "_disabled", setVersion("1", "state = 4"), ""},
			{version + "_disabled", setVersion("1", "state = 4, disabled = 0"), ""},
			{version + "_disabled", setVersion("1", "state = 4, disabled = 'now'"), ""},
			{version + "_disabled", setVersion("1", "state = 4, disabled = 1") + setVersion("1", "state = 3"), ""},
			{version + "_destroyable", "delete from {prefix}_" + version + " where private_id = '" + va + "_a1'", ""},
			{version + "_destroyable", "delete from {prefix}_" + version + " where private_id = '" + va + "_a2'", ""},
		},
		updates(key, "immutable", "private_id", "'"+a+"_y'", "created", "1"),
		updates(version, "immutable", "private_id", "'"+va+"_y'", keyID, "'"+a+"_y'", "version", "9", "alg", "0", "commitment", "randomblob(32)",
			"created", "1"),
		checks(key, k, "private_id", badID(a+"_")...),
		checks(key, k, "seq", with(badInteger, "0")...),
		checks(key, k, "head_version", with(badInteger, "0")...),
		checks(key, k, "rotate_every", with(badInteger, "-1")...),
		checks(key, k, "max_messages", with(badInteger, "-1")...),
		checks(key, k, "rotate_at", with(badInteger, "0", "-1")...),
		checks(key, k, "ik_kid", badBlob16...),
		checks(key, k, "mac", badBlob32...),
		checks(key, k, "created", with(badInteger, "0")...),
		checks(version, pending, "private_id", badID(va+"_")...),
		onlyCheck(checks(version, pending, "version", with(badInteger, "0", "65536")...), version+"_dense"),
		onlyCheck(checks(version, pending, "state", with(badInteger, "0", "5")...), version+"_state_new"),
		checks(version, pending, "alg", with(badInteger, "-1", "4")...),
		checks(version, pending, "commitment", badBlob32...),
		checks(version, pending, "key", "x''", "'text'"),
		checks(version, pending, "created", with(badInteger, "0")...),
	)
}

func allBreaking() []breaking {
	pendingRoot := rootVersionRow.With("root_key_id", "'krk_a'", "version", "4", "state", "1")
	pendingData := dataVersionRow.With("data_key_id", "'kdk_a'", "version", "4", "state", "1")
	const disable = "update {prefix}_root_key_version set state = 4, disabled = 1 where private_id = 'krkv_a1'; "
	var purposes []string
	// U+0000 to U+001F, U+007F to U+009F, and Unicode's White_Space at either end.
	for _, c := range []int{0, 1, 9, 10, 13, 31, 127, 128, 133, 159} {
		purposes = append(purposes, fmt.Sprintf("'a' || char(%d) || 'a'", c))
	}
	for _, c := range sqltest.WhiteSpace {
		purposes = append(purposes, fmt.Sprintf("char(%d) || 'a'", c), fmt.Sprintf("'a' || char(%d)", c))
	}
	return slices.Concat(
		installationBreaking(),
		rootsBreaking(),
		replaceBreaking(),
		fleetBreaking(),
		namesBreaking(),
		keyBreaking("root_key", "root_key_version", "root_key_id", rootKeyRow, rootVersionRow, "krk", "krkv"),
		keyBreaking("data_key", "data_key_version", "data_key_id", dataKeyRow, dataVersionRow, "kdk", "kdkv"),
		checks("root_key", rootKeyRow, "scope_id", "''", "x'61'", "'"+strings.Repeat("é", 256)+"a'", "'a' || char(0)", "'a' || char(10)",
			"'a' || char(31) || 'b'", "char(127)", "char(128)", "char(159)"),
		checks("data_key", dataKeyRow, "purpose", append(purposes, "''", "x'61'", "'"+strings.Repeat("é", 127)+"aa'")...),
		checks("root_key_version", pendingRoot, "ik_kid", badBlob16...),
		checks("root_key_version", pendingRoot, "alg", "2", "3"),
		updates("data_key", "immutable", "root_key_id", "'krk_b'", "purpose", "'y'"),
		[]breaking{
			{
				"root_key_scope_id_key", dropTrigger("root_key_no_replace") + insert("root_key", rootKeyRow.With("scope_id", "'a'")),
				unique("{prefix}_root_key.scope_id"),
			},
			{
				"data_key_purpose_key", dropTrigger("data_key_no_replace") + insert("data_key", dataKeyRow.With("purpose", "'a'")),
				unique("{prefix}_data_key.root_key_id, {prefix}_data_key.purpose"),
			},
			{"root_key_version_key_fkey", dropTrigger("root_key_version_state_new") + insert("root_key_version", rootVersionRow), foreignKey},
			{"data_key_root_key_fkey", insert("data_key", dataKeyRow.With("root_key_id", "'krk_none'")), foreignKey},
			{"data_key_version_key_fkey", dropTrigger("data_key_version_state_new", "data_key_version_parent_insert") +
				insert("data_key_version", dataVersionRow), foreignKey},
			{"data_key_version_parent_fkey", dropTrigger("data_key_version_parent_insert") +
				insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_none'")), foreignKey},
			{"data_key_version_parent_fkey", "update {prefix}_data_key_version set root_key_version_id = 'krkv_a3'; " +
				"delete from {prefix}_root_key_version where private_id = 'krkv_a3'", foreignKey},
			{"data_key_version_parent_insert", insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_b1'")), ""},
			{"data_key_version_parent_insert", insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_none'")), ""},
			{"data_key_version_parent_insert", insert("root_key_version", pendingRoot.With("alg", "0")) +
				insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_x'")), ""},
			{"data_key_version_parent_update", "update {prefix}_data_key_version set root_key_version_id = 'krkv_b1'", ""},
			{
				"data_key_version_parent_usable_insert",
				disable + insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_a1'")), "",
			},
			{"data_key_version_parent_usable_update", disable + "update {prefix}_data_key_version set root_key_version_id = 'krkv_a1'", ""},
		},
	)
}

// attempt runs SQL on top of base in a transaction of its own, and returns what refused. The database is left as it
// was.
func attempt(t *testing.T, s *Store, text string) error {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := s.DB().Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, withPrefix(s, "begin immediate; "+base)); err != nil {
		t.Fatalf("the rows to begin with: %v", err)
	}
	defer func() {
		if _, err := conn.ExecContext(ctx, "rollback"); err != nil {
			t.Fatal(err)
		}
	}()
	if _, err := conn.ExecContext(ctx, withPrefix(s, text)); err != nil {
		return err
	}
	_, err = conn.ExecContext(ctx, "commit") // where what is deferred is refused
	if err == nil {
		t.Fatalf("the commit was accepted: %s", text)
	}
	return err
}

func TestEveryRuleOfTheTablesRefuses(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	for i, b := range allBreaking() {
		t.Run(fmt.Sprintf("%s/%d", b.name, i), func(t *testing.T) {
			want := b.text
			if want == "" {
				want = "{prefix}_" + b.name
			}
			want = withPrefix(s, want)
			if err := attempt(t, s, b.sql); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s\n%v; want an error with %q", b.sql, err, want)
			}
		})
	}
}

// effects are the triggers that refuse nothing: SQL, and what it leaves.
var effects = []struct{ name, sql, query, want string }{
	{
		"root_key_epoch_update", "update {prefix}_root_key set seq = 9 where private_id = 'krk_a'",
		"select group_concat(bucket) from {prefix}_epoch", "10",
	},
	{
		"root_key_epoch_update", "update {prefix}_root_key set scope_id = 'renamed' where private_id = 'krk_b'",
		"select group_concat(bucket) from {prefix}_epoch", "11",
	},
	{
		"data_key_epoch_update", "update {prefix}_data_key set seq = 9",
		"select group_concat(bucket) from {prefix}_epoch", "10",
	},
	{
		"root_key_epoch_delete", "delete from {prefix}_root_key where private_id = 'krk_b'",
		"select group_concat(bucket) from {prefix}_epoch", "11,11",
	},
	{
		"data_key_epoch_delete", removedBase,
		"select group_concat(bucket) from {prefix}_epoch", "10,10,10,10",
	},
	{
		"root_key_version_bury", "delete from {prefix}_root_key_version where private_id = 'krkv_a3'",
		"select key_id || version || private_id || kind || alg || length(commitment) from {prefix}_tombstone where private_id = 'krkv_a3'",
		"krk_a3krkv_a3kek132",
	},
	{
		"data_key_version_bury", "delete from {prefix}_data_key_version where private_id = 'kdkv_a3'",
		"select key_id || version || private_id || kind || alg || length(commitment) from {prefix}_tombstone where private_id = 'kdkv_a3'",
		"kdk_a3kdkv_a3dek132",
	},
	{
		"data_key_version_bury", insert("usage", usageRow.With("private_id", "'kdkv_a3'")) + insert("usage", usageRow) +
			"delete from {prefix}_data_key_version where private_id = 'kdkv_a3'",
		"select group_concat(private_id) from {prefix}_usage", "kdkv_a1",
	},
	{
		"data_key_version_retire", insert("usage", usageRow.With("private_id", "'kdkv_a2'")) + insert("usage", usageRow) +
			"update {prefix}_data_key set seq = 9, head_version = 3 where private_id = 'kdk_a';" +
			"update {prefix}_data_key_version set state = 3 where private_id = 'kdkv_a2'",
		"select group_concat(private_id) from {prefix}_usage where used_at is not null", "kdkv_a1",
	},
	{
		"root_key_version_bury", "delete from {prefix}_root_key where private_id = 'krk_a'",
		"select group_concat(private_id) from (select private_id from {prefix}_tombstone where key_id like '%_a' order by private_id)",
		"kdkv_a1,kdkv_a2,kdkv_a3,krkv_a1,krkv_a2,krkv_a3",
	},
	{
		"root_key_epoch_update", "update {prefix}_root_key set private_id = private_id, seq = 9 where private_id = 'krk_a'",
		"select count(*) from {prefix}_epoch", "1",
	},
}

func TestTriggersLeaveTombstonesAndEpochs(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	for i, e := range effects {
		t.Run(fmt.Sprintf("%s/%d", e.name, i), func(t *testing.T) {
			conn := committable(t, s)
			if _, err := conn.ExecContext(t.Context(), withPrefix(s, e.sql)); err != nil {
				t.Fatal(err)
			}
			var got string
			if err := conn.QueryRowContext(t.Context(), withPrefix(s, e.query)).Scan(&got); err != nil {
				t.Fatal(err)
			}
			if got != e.want {
				t.Errorf("%s\nleft %s; want %s", e.sql, got, e.want)
			}
		})
	}
}

// committable is a connection in a transaction with base in it, which is rolled back when the test is over.
func committable(t *testing.T, s *Store) *sql.Conn {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	conn, err := s.DB().Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := conn.ExecContext(ctx, "rollback")
		if closeErr := conn.Close(); err != nil || closeErr != nil {
			t.Error(err, closeErr)
		}
	})
	if _, err := conn.ExecContext(ctx, withPrefix(s, "begin immediate; "+base)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestEveryRuleOfTheTablesHasItsTest(t *testing.T) {
	s := migrated(t, Config{ScopeTable: "tenant", ScopeColumn: "id"}, filepath.Join(t.TempDir(), "keys.db"))
	rows, err := s.DB().Query("select type, name, sql from sqlite_master where sql is not null and name like 'kms_%'")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	found := map[string]bool{}
	constraint := regexp.MustCompile(`\bconstraint kms_(\w+)`)
	for rows.Next() {
		var kind, name, text string
		if err := rows.Scan(&kind, &name, &text); err != nil {
			t.Fatal(err)
		}
		switch {
		case kind == "trigger", kind == "index" && strings.HasPrefix(text, "CREATE UNIQUE"):
			found[strings.TrimPrefix(name, "kms_")] = true
		case kind == "table":
			for _, m := range constraint.FindAllStringSubmatch(text, -1) {
				found[m[1]] = true
			}
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	// Its tests are those of an application's own tables.
	tested := map[string]bool{"root_key_scope_id_fkey": true}
	for _, b := range allBreaking() {
		tested[b.name] = true
	}
	for _, e := range effects {
		tested[e.name] = true
	}
	if len(found) < 100 {
		t.Errorf("only %d rules found", len(found))
	}
	if d := cmp.Diff(slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(tested))); d != "" {
		t.Errorf("rules (-in the tables +tested):\n%s", d)
	}
}

func TestScopesAreOfTheirColumnsForm(t *testing.T) {
	for kind, c := range map[migrate.ScopeType]struct{ good, bad []string }{
		migrate.Text: {
			good: []string{"'a'", "' a '", "'" + strings.Repeat("a", 512) + "'", "'é' || char(160)", "'[*?]'"},
			bad:  []string{"''", "'" + strings.Repeat("a", 513) + "'"},
		},
		migrate.UUID: {
			good: []string{"'0192f3a4-5b6c-7d8e-9fa0-0123456789ab'"},
			bad: []string{
				"'0192F3A4-5B6C-7D8E-9FA0-0123456789AB'", "'0192f3a45b6c7d8e9fa00123456789ab'", "''", "'a'", "1",
				"'0192f3a4-5b6c-7d8e-9fa0-0123456789ab' || char(0)", "'0192f3a45-b6c-7d8e-9fa0-0123456789a-'",
				"'0192f3a4-5b6c-7d8e-9fa0-0123456789ag'", "x'0192f3a45b6c7d8e9fa00123456789ab'",
			},
		},
		migrate.BigInt: {
			good: []string{"0", "-1", "9223372036854775807"},
			bad:  []string{"'a'", "1.5", "x'01'", "''"},
		},
	} {
		s := migrated(t, Config{ScopeType: kind}, filepath.Join(t.TempDir(), "keys.db"))
		try := func(scope string) error {
			_, err := s.DB().Exec(withPrefix(s, "begin immediate; "+insert("installation_key", keyRow)+insert("root_key", rootKeyRow.With("scope_id", scope))+
				insert("root_key_version", rootVersionRow)+"rollback"))
			if err != nil {
				_, _ = s.DB().Exec("rollback")
			}
			return err
		}
		s.DB().SetMaxOpenConns(1)
		for _, scope := range c.good {
			if err := try(scope); err != nil {
				t.Errorf("%s %s: %v", kind, scope, err)
			}
		}
		for _, scope := range c.bad {
			if err := try(scope); err == nil || !strings.Contains(err.Error(), "kms_root_key_scope_id") {
				t.Errorf("%s %s: %v; want the check", kind, scope, err)
			}
		}
	}
}
