package pgstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store/internal/sqltest"
)

type row = sqltest.Row

func insert(table string, r row) string { return sqltest.Insert(table, r) }

// bytesOf is n equal bytes.
func bytesOf(n int) string { return fmt.Sprintf("decode(repeat('5a', %d), 'hex')", n) }

func zeros(n int) string { return fmt.Sprintf("decode(repeat('00', %d), 'hex')", n) }

var (
	one = sqltest.NewRows(bytesOf, zeros, `'\x01'`)

	slotRow, installationRow, tombstoneRow = one.Slot, one.Installation, one.Tombstone
	rootKeyRow, rootVersionRow             = one.RootKey, one.RootVersion
	dataKeyRow, dataVersionRow             = one.DataKey, one.DataVersion

	instanceRow = row{"private_id": "'ki_x'", "name": "''", "seen": bytesOf(256), "life": "60", "slot": "''", "since": "1", "signed": "1"}
	leaseRow    = row{"name": "'x'", "owner": "'ki_x'", "fence": "7", "until": "1"}
	usageRow    = row{"private_id": "'kdkv_a1'", "taken": "7", "used_at": "1"}

	base = one.Base(`''`) // what every case begins with
)

// breaking is SQL that a named constraint, index or trigger has to refuse.
type breaking struct {
	name string // without prefix
	sql  string
}

// checks are values that the check of one column refuses.
func checks(table string, r row, column string, values ...string) []breaking {
	var list []breaking
	for _, v := range values {
		list = append(list, breaking{table + "_" + column, insert(table, r.With(column, v))})
	}
	return list
}

var (
	badBytes16 = []string{bytesOf(15), bytesOf(17), `''`}
	badBytes32 = []string{bytesOf(31), bytesOf(33), `''`}
	badID      = func(prefix string) []string {
		return []string{
			"''", "'" + prefix + "'", "'x'", "'" + prefix + "é'", "upper('" + prefix + "a')",
			"'" + prefix + strings.Repeat("a", 65-len(prefix)) + "'",
		}
	}
	dropTrigger = func(names ...string) string {
		text := ""
		for _, n := range names {
			table := n[:strings.LastIndex(n, "_version")+len("_version")]
			if strings.HasPrefix(n, "tombstone") {
				table = "tombstone"
			}
			text += "drop trigger {prefix}_" + n + " on {prefix}_" + table + "; "
		}
		return text
	}
	dropIndex = func(table, name string) string {
		return "alter table {prefix}_" + table + " drop constraint {prefix}_" + name + " cascade; "
	}
)

func installationBreaking() []breaking {
	text := func(n int) string { return "'" + strings.Repeat("a", n) + "'" }
	return slices.Concat(
		[]breaking{
			{"schema_version_pkey", "insert into {prefix}_schema_version (only_row, version) values (1, 2)"},
			{"schema_version_one", "insert into {prefix}_schema_version (only_row, version) values (2, 2)"},
			{"schema_version_version", "update {prefix}_schema_version set version = 0"},

			{"installation_pkey", insert("installation", installationRow)},
			{"installation_one", insert("installation", installationRow.With("only_row", "2"))},
			{"installation_active_slot_fkey", "update {prefix}_installation set seq = 6, active_slot = 'kr_none'"},
			{"installation_seq_grows", "update {prefix}_installation set seq = 5, mac = " + zeros(32)},
			{"installation_seq_grows", "update {prefix}_installation set mac = " + zeros(32)},
			{"installation_kept", "delete from {prefix}_installation"},

			{"tombstone_pkey", dropTrigger("tombstone_dense") + insert("tombstone", tombstoneRow.With("private_id", "'krkv_y'"))},
			{"tombstone_private_id_key", insert("tombstone", tombstoneRow.With("version", "2"))},
			{"tombstone_commitment", insert("tombstone", tombstoneRow.With("version", "2", "private_id", "''", "commitment", bytesOf(32)))},
			{"tombstone_immutable", "update {prefix}_tombstone set destroyed = 1"},
			{"tombstone_kept", "delete from {prefix}_tombstone"},
			{"tombstone_not_live", insert("tombstone", tombstoneRow.With("key_id", "'krk_a'", "private_id", "'krkv_y'"))},
			{"tombstone_not_live", insert("tombstone", tombstoneRow.With("key_id", "'kdk_a'", "private_id", "'kdkv_y'", "kind", "'dek'"))},
			{"tombstone_not_live", insert("tombstone", tombstoneRow.With("version", "2", "private_id", "'krkv_a1'"))},
			{"tombstone_not_live", insert("tombstone", tombstoneRow.With("version", "2", "private_id", "'kdkv_a1'"))},
			{"tombstone_dense", insert("tombstone", tombstoneRow.With("version", "3", "private_id", "'krkv_y'"))},
			{"tombstone_dense", insert("tombstone", tombstoneRow.With("key_id", "'kdk_a'", "version", "5", "private_id", "'krkv_y'"))},

			{"purpose_pkey", "insert into {prefix}_purpose (purpose, alg) values ('p', 1), ('p', 1)"},
			{"purpose_purpose", "insert into {prefix}_purpose (purpose, alg) values ('', 1)"},
			{"purpose_alg", "insert into {prefix}_purpose (purpose, alg) values ('p', 0)"},
			{"purpose_alg", "insert into {prefix}_purpose (purpose, alg) values ('p', 4)"},
			{"purpose_created", "insert into {prefix}_purpose (purpose, alg, created) values ('p', 1, 0)"},
			{"reference_pkey", "insert into {prefix}_reference values ('s', 't', 'c'), ('s', 't', 'c')"},
			{"reference_names", "insert into {prefix}_reference values ('', 't', 'c')"},
			{"reference_names", "insert into {prefix}_reference values ('s', '', 'c')"},
			{"reference_names", "insert into {prefix}_reference values ('s', 't', '')"},

			{"schema_version_no_truncate", "truncate {prefix}_schema_version"},
			{"root_slot_no_truncate", "truncate {prefix}_root_slot cascade"},
			{"installation_no_truncate", "truncate {prefix}_installation"},
			{"tombstone_no_truncate", "truncate {prefix}_tombstone"},
			{"purpose_no_truncate", "truncate {prefix}_purpose"},
			{"epoch_no_truncate", "truncate {prefix}_epoch"},
			{"root_key_no_truncate", "create table tenant (id text primary key); alter table {prefix}_root_key add constraint to_tenant " +
				"foreign key (scope_id) references tenant (id) not valid; truncate tenant cascade"},
			{"root_key_version_no_truncate", "truncate {prefix}_root_key_version cascade"},
			{"data_key_no_truncate", "truncate {prefix}_data_key cascade"},
			{"data_key_version_no_truncate", "truncate {prefix}_data_key_version cascade"},

			{"instance_pkey", insert("instance", instanceRow) + insert("instance", instanceRow)},
			{"instance_immutable", insert("instance", instanceRow) + "update {prefix}_instance set private_id = 'ki_y'"},
			{"instance_immutable", insert("instance", instanceRow) + "update {prefix}_instance set since = 2"},
			{"instance_no_truncate", "truncate {prefix}_instance"},
			{"lease_pkey", insert("lease", leaseRow) + insert("lease", leaseRow)},
			{"lease_immutable", insert("lease", leaseRow) + "update {prefix}_lease set name = 'y'"},
			{"lease_fence_grows", insert("lease", leaseRow) + "update {prefix}_lease set fence = 6"},
			{"lease_fence_grows", insert("lease", leaseRow) + "update {prefix}_lease set owner = 'ki_y'"},
			{"lease_kept", insert("lease", leaseRow) + "delete from {prefix}_lease"},
			{"lease_no_truncate", "truncate {prefix}_lease"},
			{"usage_pkey", insert("usage", usageRow) + insert("usage", usageRow)},
			{"usage_immutable", insert("usage", usageRow) + "update {prefix}_usage set private_id = 'kdkv_a2'"},
			{"usage_grows", insert("usage", usageRow) + "update {prefix}_usage set taken = 6"},
			{"usage_kept", insert("usage", usageRow) + "delete from {prefix}_usage"},
			{"usage_no_truncate", "truncate {prefix}_usage"},

			{"epoch_pkey", "insert into {prefix}_epoch (id, bucket, n) values (1, 1, 1), (1, 1, 1)"},
			{"epoch_bucket", "insert into {prefix}_epoch (bucket, n) values (32, 1)"},
			{"epoch_bucket", "insert into {prefix}_epoch (bucket, n) values (-1, 1)"},
			{"epoch_n", "insert into {prefix}_epoch (bucket, n) values (1, 0)"},
		},
		checks("instance", instanceRow, "private_id", "''", text(65), "'é'"),
		checks("instance", instanceRow, "name", text(256), "repeat('é', 128)"),
		checks("instance", instanceRow, "seen", bytesOf(255), bytesOf(257)),
		checks("instance", instanceRow, "life", "-1"),
		checks("instance", instanceRow, "slot", text(65), "'é'"),
		checks("instance", instanceRow, "since", "0"),
		checks("instance", instanceRow, "signed", "0"),
		checks("lease", leaseRow, "name", "''", text(65), "'é'"),
		checks("lease", leaseRow, "owner", "''", text(65), "'é'"),
		checks("lease", leaseRow, "fence", "0"),
		checks("lease", leaseRow, "until", "-1"),
		checks("usage", usageRow, "private_id", badID("kdkv_")...),
		checks("usage", usageRow, "taken", "-1"),
		checks("usage", usageRow, "used_at", "0"),
		updates("installation", "immutable", "only_row", "2", "inst", bytesOf(15), "created", "1"),
		checks("installation", installationRow, "inst", badBytes16...),
		checks("installation", installationRow, "ik_kid", badBytes16...),
		checks("installation", installationRow, "seq", "0"),
		checks("installation", installationRow, "mac", badBytes32...),
		checks("installation", installationRow, "created", "0"),
		checks("tombstone", tombstoneRow, "key_id", "''", text(65), "'é'"),
		onlyCheck(checks("tombstone", tombstoneRow, "version", "0", "65536"), "tombstone_dense"),
		checks("tombstone", tombstoneRow, "private_id", text(65), "'é'"),
		checks("tombstone", tombstoneRow, "kind", "'ik'", "''"),
		checks("tombstone", tombstoneRow, "alg", "-1", "4"),
		checks("tombstone", tombstoneRow, "commitment", badBytes32...),
		checks("tombstone", tombstoneRow, "destroyed", "0"),
	)
}

// updates are changes of single columns that a trigger of the table refuses.
func updates(table, trigger string, columnsAndValues ...string) []breaking {
	var list []breaking
	for i := 0; i < len(columnsAndValues); i += 2 {
		list = append(list, breaking{
			table + "_" + trigger, "update {prefix}_" + table + " set " + columnsAndValues[i] + " = " + columnsAndValues[i+1],
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

// severalVersions inserts two versions in one statement.
func severalVersions(table string, v row, prefix, one, other string) string {
	var columns, values []string
	for column, value := range v {
		switch column {
		case "private_id":
			value = "'" + prefix + "_' || n.version"
		case "version":
			value = "n.version"
		}
		columns, values = append(columns, column), append(values, value)
	}
	return fmt.Sprintf("insert into {prefix}_%s (%s) select %s from (values (%s), (%s)) as n (version);",
		table, strings.Join(columns, ", "), strings.Join(values, ", "), one, other)
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
			{key + "_pkey", insert(key, k.With("private_id", "'"+a+"_a'"))},
			{key + "_head_version", insert(key, k.With("head_version", "65536"))},
			{key + "_head_state", insert(key, k.With("head_state", "1"))},
			{key + "_rotate_at", insert(key, k.With("rotate_every", "0"))},
			{key + "_head_fkey", newKey},
			{key + "_head_fkey", newKey + insert(version, v.With("state", "1"))},
			{key + "_head_fkey", set("a", "seq = 6, head_version = 3")},
			{key + "_head_fkey", set("a", "seq = 6, head_version = 3") + setVersion("2", "state = 3")},
			{key + "_seq_grows", set("a", "seq = 5")},
			{key + "_seq_grows", set("a", "seq = 4")},
			{key + "_seq_grows", set("a", "mac = "+zeros(32))},
			{key + "_seq_grows", set("a", "rotate_every = 70")},
			{key + "_seq_grows", set("a", "max_messages = 70")},
			{key + "_head_forward", set("a", "seq = 6, head_version = 1")},

			{version + "_pkey", insert(version, pending.With("private_id", "'"+va+"_a1'"))},
			{version + "_version_key", dropTrigger(version+"_dense") + insert(version, pending.With("version", "3"))},
			// Of two indexes that both refuse, the error names the one that was made first.
			{
				version + "_state_key", dropTrigger(version+"_dense") + dropIndex(version, version+"_version_key") +
					insert(version, pending.With("version", "3")),
			},
			{version + "_one_active", dropTrigger(version+"_state_new") + insert(version, pending.With("state", "2"))},
			{version + "_dense", insert(version, pending.With("version", "5"))},
			// Whole statements are looked at, of one row or of several.
			{version + "_dense", insert(version, pending) + insert(version, pending.With("private_id", "'"+va+"_y'", "version", "6"))},
			{version + "_dense", severalVersions(version, pending, va, "5", "6")},
			{version + "_dense", severalVersions(version, pending, va, "4", "6")},
			{version + "_dense", "delete from {prefix}_" + version + " where version = 3;" + insert(version, pending.With("version", "3"))},
			{
				version + "_not_again", insert("tombstone", tombstoneRow.With("key_id", "'krk_gone'", "version", "1", "private_id", "'"+va+"_gone'")) +
					insert(version, pending.With("private_id", "'"+va+"_gone'")),
			},
			{version + "_state_new", "drop index {prefix}_" + version + "_one_active; " + insert(version, pending.With("state", "2"))},
			{version + "_state_new", insert(version, pending.With("state", "4", "disabled", "1"))},
			{version + "_state_change", setVersion("3", "state = 2")},
			{version + "_state_change", setVersion("3", "state = 3")},
			{version + "_state_change", setVersion("3", "state = 4")},
			{version + "_state_change", setVersion("3", "state = 5")},
			{version + "_state_change", setVersion("2", "state = 3")},
			{version + "_state_change", setVersion("2", "state = 1")},
			{version + "_state_change", setVersion("2", "state = 4")},
			{version + "_state_change", setVersion("1", "state = 2")},
			{version + "_state_change", setVersion("1", "state = 1")},
			{version + "_disabled", insert(version, pending.With("disabled", "1"))},
			{version + "_disabled", setVersion("1", "state = 4") + setVersion("1", "disabled = null")},
			{version + "_disabled", setVersion("1", "state = 4") + setVersion("1", "disabled = 0")},
			{version + "_destroyable", "delete from {prefix}_" + version + " where private_id = '" + va + "_a1'"},
			{version + "_destroyable", "delete from {prefix}_" + version + " where private_id = '" + va + "_a2'"},
		},
		updates(key, "immutable", "private_id", "'"+a+"_y'", "created", "1"),
		updates(version, "immutable", "private_id", "'"+va+"_y'", keyID, "'"+a+"_y'", "version", "9", "alg", "0", "commitment", bytesOf(32),
			"created", "1"),
		checks(key, k, "private_id", badID(a+"_")...),
		checks(key, k, "seq", "0"),
		checks(key, k, "head_version", "0"),
		checks(key, k.With("rotate_at", "null"), "rotate_every", "-1"),
		checks(key, k, "max_messages", "-1"),
		checks(key, k, "rotate_at", "0", "-1"),
		checks(key, k, "ik_kid", badBytes16...),
		checks(key, k, "mac", badBytes32...),
		checks(key, k, "created", "0"),
		checks(version, pending, "private_id", badID(va+"_")...),
		onlyCheck(checks(version, pending, "version", "0", "65536"), version+"_dense"),
		onlyCheck(checks(version, pending, "state", "0", "5"), version+"_state_new"),
		checks(version, pending, "alg", "-1", "4"),
		checks(version, pending, "commitment", badBytes32...),
		checks(version, pending, "key", `''`),
		checks(version, pending, "created", "0"),
	)
}

func allBreaking() []breaking {
	pendingRoot := rootVersionRow.With("root_key_id", "'krk_a'", "version", "4", "state", "1")
	pendingData := dataVersionRow.With("data_key_id", "'kdk_a'", "version", "4", "state", "1")
	const disable = "update {prefix}_root_key_version set state = 4 where private_id = 'krkv_a1'; "
	return slices.Concat(
		installationBreaking(),
		rootsBreaking(),
		namesBreaking(),
		keyBreaking("root_key", "root_key_version", "root_key_id", rootKeyRow, rootVersionRow, "krk", "krkv"),
		keyBreaking("data_key", "data_key_version", "data_key_id", dataKeyRow, dataVersionRow, "kdk", "kdkv"),
		checks("root_key", rootKeyRow, "scope_id", "''", "'"+strings.Repeat("é", 256)+"a'", "'a' || chr(10)", "'a' || chr(31) || 'b'",
			"chr(1)", "chr(127)", "chr(128)", "chr(159)"),
		checks("data_key", dataKeyRow, "purpose", badPurposes()...),
		checks("data_key", dataKeyRow, "generator", badGenerators...),
		checks("root_key_version", pendingRoot, "ik_kid", badBytes16...),
		checks("root_key_version", pendingRoot, "alg", "2", "3"),
		updates("data_key", "immutable", "root_key_id", "'krk_b'", "purpose", "'y'"),
		[]breaking{
			{"root_key_scope_id_key", insert("root_key", rootKeyRow.With("scope_id", "'a'"))},
			{"data_key_purpose_key", insert("data_key", dataKeyRow.With("purpose", "'a'"))},
			{"root_key_version_key_fkey", dropTrigger("root_key_version_state_new") + insert("root_key_version", rootVersionRow)},
			{"data_key_root_key_fkey", insert("data_key", dataKeyRow.With("root_key_id", "'krk_none'"))},
			{"data_key_version_key_fkey", dropTrigger("data_key_version_state_new", "data_key_version_parent_insert") +
				insert("data_key_version", dataVersionRow)},
			{"data_key_version_parent_fkey", dropTrigger("data_key_version_parent_insert") +
				insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_none'"))},
			{"data_key_version_parent_fkey", "update {prefix}_data_key_version set root_key_version_id = 'krkv_a3'; " +
				"delete from {prefix}_root_key_version where private_id = 'krkv_a3'"},
			{"data_key_version_parent_insert", insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_b1'"))},
			{"data_key_version_parent_insert", insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_none'"))},
			{"data_key_version_parent_insert", insert("root_key_version", pendingRoot.With("alg", "0")) +
				insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_x'"))},
			{"data_key_version_parent_update", "update {prefix}_data_key_version set root_key_version_id = 'krkv_b1'"},
			{"data_key_version_parent_usable_insert", disable + insert("data_key_version", pendingData.With("root_key_version_id", "'krkv_a1'"))},
			{"data_key_version_parent_usable_update", disable + "update {prefix}_data_key_version set root_key_version_id = 'krkv_a1'"},
		},
	)
}

// onBase is a transaction with base in it and all foreign keys checked at once, rolled back when the test is over.
func onBase(t *testing.T, s *Store) pgx.Tx {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	tx, err := s.Pool().Begin(ctx)
	must(t, err)
	t.Cleanup(func() { _ = tx.Rollback(ctx) })
	// Events that wait for the commit would be in the way of a later drop of a trigger.
	_, err = tx.Exec(ctx, rendered(s, base+"; set constraints all immediate; set constraints all deferred"))
	must(t, err)
	return tx
}

func TestEveryRuleOfTheTablesRefuses(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{})
	for i, b := range allBreaking() {
		t.Run(fmt.Sprintf("%s/%d", b.name, i), func(t *testing.T) {
			// Setting constraints to immediate is when what is deferred is refused.
			_, err := onBase(t, s).Exec(t.Context(), rendered(s, b.sql+"; set constraints all immediate"))
			var refusal *pgconn.PgError
			if !errors.As(err, &refusal) || refusal.ConstraintName != "kms_"+b.name || refusal.Code[:2] != "23" {
				t.Errorf("%s\n%v; want a violation of %s", b.sql, err, b.name)
			}
		})
	}
}

// effect is what a trigger that refuses nothing does: SQL, and what it leaves.
type effect struct{ name, sql, query, want string }

var effects = []effect{
	{
		"root_key_epoch_update", "update {prefix}_root_key set seq = 9 where private_id = 'krk_a'",
		epochs, "10:1",
	},
	{
		"root_key_epoch_update", "update {prefix}_root_key set scope_id = 'renamed' where private_id = 'krk_b'",
		epochs, "11:1",
	},
	{"data_key_epoch_update", "update {prefix}_data_key set seq = 9", epochs, "10:1"},
	{"root_key_epoch_delete", "delete from {prefix}_root_key where private_id = 'krk_b'", epochs, "11:2"},
	{"data_key_epoch_delete", removedName + "delete from {prefix}_data_key", epochs, "10:2"},
	{
		"root_key_version_bury", "delete from {prefix}_root_key_version where private_id = 'krkv_a3'",
		"select key_id || version || private_id || kind || alg || octet_length(commitment) from {prefix}_tombstone where private_id = 'krkv_a3'",
		"krk_a3krkv_a3kek132",
	},
	{
		"data_key_version_bury", "delete from {prefix}_data_key_version where private_id = 'kdkv_a3'",
		"select key_id || version || private_id || kind || alg || octet_length(commitment) from {prefix}_tombstone where private_id = 'kdkv_a3'",
		"kdk_a3kdkv_a3dek132",
	},
	{
		"root_key_version_bury", "delete from {prefix}_root_key where private_id = 'krk_a'",
		"select string_agg(private_id, ',' order by private_id) from {prefix}_tombstone where key_id like '%_a'",
		"kdkv_a1,kdkv_a2,kdkv_a3,krkv_a1,krkv_a2,krkv_a3",
	},
	{
		// In the order of the numbers, whatever that of the rows on the pages: an update moves a row.
		"data_key_version_bury", `update {prefix}_data_key_version set key = '\x02' where version = 1; ` + removedName + "delete from {prefix}_data_key",
		"select string_agg(version::text, ',' order by ctid) from {prefix}_tombstone where key_id = 'kdk_a'", "1,2,3",
	},
	{
		"data_key_version_bury", insert("usage", usageRow.With("private_id", "'kdkv_a3'")) + insert("usage", usageRow) +
			"delete from {prefix}_data_key_version where private_id = 'kdkv_a3'",
		"select string_agg(private_id, ',') from {prefix}_usage", "kdkv_a1",
	},
	{
		"root_key_version_state_change", "update {prefix}_root_key_version set state = 4 where private_id = 'krkv_a1'",
		"select abs(disabled - extract(epoch from now())) < 60 from {prefix}_root_key_version where private_id = 'krkv_a1'", "true",
	},
	{
		"data_key_version_state_change", "update {prefix}_data_key_version set state = 4 where private_id = 'kdkv_a1'",
		"select abs(disabled - extract(epoch from now())) < 60 from {prefix}_data_key_version where private_id = 'kdkv_a1'", "true",
	},
	{
		"data_key_version_state_change", "update {prefix}_data_key_version set state = 4 where private_id = 'kdkv_a1'; " +
			"update {prefix}_data_key_version set state = 3 where private_id = 'kdkv_a1'",
		"select disabled is null from {prefix}_data_key_version where private_id = 'kdkv_a1'", "true",
	},
	{
		"root_key_epoch_update", "update {prefix}_root_key set private_id = private_id, seq = 9 where private_id = 'krk_a'",
		epochs, "10:1",
	},
}

const epochs = "select string_agg(bucket || ':' || n, ',' order by bucket) from (select bucket, count(*) as n from {prefix}_epoch group by 1) e"

func TestTriggersLeaveTombstonesAndEpochs(t *testing.T) {
	t.Parallel()
	s := migrated(t, Config{})
	for i, e := range slices.Concat(effects, rootEffects, nameEffects) {
		t.Run(fmt.Sprintf("%s/%d", e.name, i), func(t *testing.T) {
			tx := onBase(t, s)
			_, err := tx.Exec(t.Context(), rendered(s, e.sql))
			must(t, err)
			var got string
			must(t, tx.QueryRow(t.Context(), "select ("+rendered(s, e.query)+")::text").Scan(&got))
			if got != e.want {
				t.Errorf("%s\nleft %s; want %s", e.sql, got, e.want)
			}
		})
	}
}

func TestEveryRuleOfTheTablesHasItsTest(t *testing.T) {
	t.Parallel()
	s := byOpen(t, Config{ScopeTable: "tenant", ScopeColumn: "id"}, keyholdtest.Postgres(t))
	mustExec(t, s, "create table tenant (id text primary key)")
	must(t, s.Migrate(t.Context()))
	found := map[string]bool{}
	rows, err := s.Pool().Query(t.Context(), `
		select conname from pg_constraint where conname like 'kms\_%' and contype <> 't' and contype <> 'n'
		union all select tgname from pg_trigger where not tgisinternal
		union all select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid where i.indisunique and c.relname like 'kms\_%'
			and not exists (select 1 from pg_constraint where conindid = i.indexrelid)`)
	must(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	for _, name := range names {
		found[strings.TrimPrefix(name, "kms_")] = true
	}
	// Its tests are those of an application's own tables.
	tested := map[string]bool{"root_key_scope_id_fkey": true}
	for _, b := range allBreaking() {
		tested[b.name] = true
	}
	for _, e := range slices.Concat(effects, rootEffects, nameEffects) {
		tested[e.name] = true
	}
	delete(found, "schema_migrations_pkey") // golang-migrate's table
	if len(found) < 100 {
		t.Errorf("only %d rules found", len(found))
	}
	if d := cmp.Diff(slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(tested))); d != "" {
		t.Errorf("rules (-in the tables +tested):\n%s", d)
	}
}

func TestScopesAreOfTheirColumnsForm(t *testing.T) {
	t.Parallel()
	for kind, c := range map[migrate.ScopeType]struct{ good, bad []string }{
		migrate.Text: {
			good: []string{"'a'", "' a '", "'" + strings.Repeat("a", 512) + "'", "'é' || chr(160)", "'[*?]'"},
			bad:  []string{"''", "'" + strings.Repeat("a", 513) + "'", "null"},
		},
		migrate.UUID: {
			good: []string{"'0192f3a4-5b6c-7d8e-9fa0-0123456789ab'"},
			bad:  []string{"''", "'a'", "1", "null"},
		},
		migrate.BigInt: {
			good: []string{"0", "-1", "9223372036854775807"},
			bad:  []string{"'a'", "9223372036854775808", "''", "null"},
		},
	} {
		s := migrated(t, Config{ScopeType: kind})
		try := func(scope string) error {
			tx, err := s.Pool().Begin(t.Context())
			must(t, err)
			_, err = tx.Exec(t.Context(), rendered(s, insert("installation_key", one.InstallationKey)+
				insert("root_key", rootKeyRow.With("scope_id", scope))+
				insert("root_key_version", rootVersionRow)+"set constraints all immediate"))
			must(t, tx.Rollback(t.Context()))
			return err
		}
		for _, scope := range c.good {
			if err := try(scope); err != nil {
				t.Errorf("%s %s: %v", kind, scope, err)
			}
		}
		for _, scope := range c.bad {
			if err := try(scope); err == nil {
				t.Errorf("%s %s was accepted", kind, scope)
			}
		}
	}
}
