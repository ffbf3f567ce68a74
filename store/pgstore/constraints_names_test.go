package pgstore

import (
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/store/internal/sqltest"
)

// nameRow is a name of which there is no key.
var nameRow = row{
	"root_key_id": "'krk_a'", "purpose": "'x'", "seq": "5", "generator": "''", "last_version": "7", "removed": "1", "ik_kid": bytesOf(16),
	"mac": bytesOf(32),
}

// removedName removes the name of the data key that there is.
var removedName = insert("data_key_name", nameRow.With("purpose", "'a'"))

var badGenerators = []string{
	"'" + strings.Repeat("é", 127) + "aa'", "chr(1)", "'a' || chr(31)", "chr(127) || 'a'", "'a' || chr(128) || 'a'", "chr(159)",
}

func badPurposes() []string {
	purposes := []string{"''", "'" + strings.Repeat("é", 127) + "aa'"}
	// U+0001 to U+001F, U+007F to U+009F, and Unicode's White_Space at either end.
	for _, c := range []int{1, 9, 10, 13, 31, 127, 128, 133, 159} {
		purposes = append(purposes, fmt.Sprintf("'a' || chr(%d) || 'a'", c))
	}
	for _, c := range sqltest.WhiteSpace {
		purposes = append(purposes, fmt.Sprintf("chr(%d) || 'a'", c), fmt.Sprintf("'a' || chr(%d)", c))
	}
	return purposes
}

// namesBreaking are the rules of names, and those that a data key's generator has.
func namesBreaking() []breaking {
	name := insert("data_key_name", nameRow)
	set := func(changes string) string { return name + "update {prefix}_data_key_name set " + changes }
	// A key with a version: nothing else refuses it.
	newKey := func(purpose string, head int) string {
		n := fmt.Sprint(head)
		text := insert("data_key", dataKeyRow.With("purpose", purpose, "head_version", n))
		for i := 1; i < head; i++ {
			text += insert("tombstone", tombstoneRow.With("key_id", "'kdk_x'", "version", fmt.Sprint(i), "private_id", "''", "kind", "'dek'"))
		}
		return text + insert("data_key_version", dataVersionRow.With("version", n))
	}
	registered := func(last string) string {
		return insert("data_key_name", nameRow.With("removed", "0", "last_version", last))
	}
	return slices.Concat(
		[]breaking{
			{"data_key_seq_grows", "update {prefix}_data_key set generator = 'aes128-random'"},

			{"data_key_name_pkey", name + name},
			{"data_key_name_root_key_fkey", insert("data_key_name", nameRow.With("root_key_id", "'krk_none'"))},
			{"data_key_name_ik_kid_fkey", insert("data_key_name", nameRow.With("ik_kid", zeros(16)))},
			{"data_key_name_ik_kid_fkey", name + keyGoes("installation", "root_key", "root_key_version", "data_key")},
			{"data_key_name_no_truncate", "truncate {prefix}_data_key_name"},
			{"data_key_name_kept", name + "delete from {prefix}_data_key_name"},
			{"data_key_name_last_grows", set("seq = 6, last_version = 6")},
			{"data_key_name_seq_grows", set("seq = 5")},
			{"data_key_name_seq_grows", set("generator = 'other'")},
			{"data_key_name_seq_grows", set("last_version = 8")},
			{"data_key_name_seq_grows", set("removed = 0")},
			{"data_key_name_seq_grows", set("ik_kid = " + zeros(16))},
			{"data_key_name_seq_grows", set("mac = " + zeros(32))},
			{"data_key_name_immutable", set("seq = 6, root_key_id = 'krk_b'")},
			{"data_key_name_immutable", set("seq = 6, purpose = 'y'")},
			{"data_key_name_free", removedName},
			{"data_key_name_free", insert("data_key_name", nameRow.With("purpose", "'a'", "removed", "0")) +
				"update {prefix}_data_key_name set seq = 6, removed = 1"},

			{"data_key_named", name + newKey("'x'", 8)},
			{"data_key_named", registered("7") + newKey("'x'", 7)},
			{"data_key_named", registered("1") + newKey("'x'", 1)},
			{"data_key_leaves_name", "delete from {prefix}_data_key"},
			{"data_key_leaves_name", name + "delete from {prefix}_data_key"},
			{"data_key_leaves_name", insert("data_key_name", nameRow.With("purpose", "'a'", "removed", "0")) + "delete from {prefix}_data_key"},
			{"data_key_leaves_name", insert("data_key_name", nameRow.With("purpose", "'a'", "last_version", "2")) + "delete from {prefix}_data_key"},
			{"data_key_leaves_name", "delete from {prefix}_data_key_version where version = 3; " +
				insert("data_key_name", nameRow.With("purpose", "'a'", "last_version", "2")) + "delete from {prefix}_data_key"},
			{"data_key_leaves_name", insert("data_key_name", nameRow.With("purpose", "'a'", "root_key_id", "'krk_b'")) +
				"delete from {prefix}_data_key"},
		},
		checks("data_key_name", nameRow, "purpose", badPurposes()...),
		checks("data_key_name", nameRow, "generator", badGenerators...),
		checks("data_key_name", nameRow, "seq", "0"),
		checks("data_key_name", nameRow, "last_version", "-1", "65536"),
		checks("data_key_name", nameRow, "removed", "-1", "2"),
		checks("data_key_name", nameRow, "ik_kid", badBytes16...),
		checks("data_key_name", nameRow, "mac", badBytes32...),
	)
}

// nameEffects is what the rules of names let through.
var nameEffects = []effect{
	{
		"data_key_leaves_name", insert("data_key_name", nameRow.With("purpose", "'a'", "last_version", "3")) +
			"delete from {prefix}_data_key; set constraints all immediate",
		"select count(*) from {prefix}_data_key", "0",
	},
	{
		"data_key_name_kept", insert("data_key_name", nameRow) + "delete from {prefix}_root_key where private_id = 'krk_a'",
		"select (select count(*) from {prefix}_data_key) + (select count(*) from {prefix}_data_key_name)", "0",
	},
	{
		"data_key_named", insert("data_key_name", nameRow.With("removed", "0", "last_version", "0")) + insert("data_key", dataKeyRow),
		"select count(*) from {prefix}_data_key", "2",
	},
	{
		// The rule is about a name that becomes removed: a new MAC of one that is costs nobody a wait.
		"data_key_name_free", insert("data_key_name", nameRow) + "set constraints all immediate; create table before as select ctid as at " +
			"from {prefix}_root_key; update {prefix}_data_key_name set seq = 6, mac = " + zeros(32) + "; set constraints all immediate",
		"select count(*) from {prefix}_root_key r join before b on r.ctid = b.at", "2",
	},
}
