package pgstore

import (
	"fmt"
	"slices"
	"strings"
)

var (
	activeSlotRow = slotRow.With("state", "2", "activated", "7", "retired", "null")
	nextKeyRow    = row{"ik_kid": zeros(16), "previous": bytesOf(16), "link": zeros(32)}
	escrowRow     = row{"ik_kid": bytesOf(16), "event": "'written'", "detail": "''"}
)

// keyGoes deletes the installation key after some tables have been put under the next one.
func keyGoes(tables ...string) string {
	text := insert("installation_key", nextKeyRow)
	for _, table := range tables {
		seq := ""
		if table != "root_key_version" {
			seq = "seq = seq + 1, "
		}
		text += "update {prefix}_" + table + " set " + seq + "ik_kid = " + zeros(16) + "; "
	}
	return text + "delete from {prefix}_installation_key where previous is null"
}

// rootsBreaking are the rules of root slots, installation keys and what became of their copies.
func rootsBreaking() []breaking {
	return slices.Concat(
		[]breaking{
			{"root_slot_pkey", insert("root_slot", slotRow.With("private_id", "'kr_a'"))},
			{"root_slot_number_key", insert("root_slot", slotRow.With("number", "1"))},
			{"root_slot_one_active", insert("root_slot", activeSlotRow)},
			{"root_slot_activated", insert("root_slot", activeSlotRow.With("activated", "null"))},
			{"root_slot_retired", insert("root_slot", activeSlotRow.With("retired", "1"))},
			{"root_slot_retired", insert("root_slot", slotRow.With("retired", "null"))},
			{"root_slot_blob", insert("root_slot", slotRow.With("blob", `''`))},
			{"root_slot_removed", insert("root_slot", slotRow.With("removed", "1"))},
			{"root_slot_removed", insert("root_slot", slotRow.With("state", "5", "blob", `''`))},
			{"root_slot_removed", insert("root_slot", slotRow.With("state", "5", "blob", `''`, "removed", "0"))},
			{"root_slot_kept", "delete from {prefix}_root_slot where private_id = 'kr_gone'"},
			{"root_slot_removed_stays", `update {prefix}_root_slot set state = 3, blob = '\x01', removed = null where private_id = 'kr_gone'`},
			{"root_slot_state_change", "update {prefix}_root_slot set state = 1 where private_id = 'kr_a'"},
			{"root_slot_state_change", "update {prefix}_root_slot set state = 4 where private_id = 'kr_a'"},
			{"root_slot_state_change", insert("root_slot", slotRow) + "update {prefix}_root_slot set state = 4 where private_id = 'kr_x'"},
			{"root_slot_state_change", "drop trigger {prefix}_root_slot_removed_stays on {prefix}_root_slot; " +
				`update {prefix}_root_slot set state = 3, blob = '\x01' where private_id = 'kr_gone'`},
			{"root_slot_blob", "update {prefix}_root_slot set state = 5 where private_id = 'kr_a'"},

			{"installation_key_pkey", insert("installation_key", row{"ik_kid": bytesOf(16)})},
			{"installation_key_previous_key", insert("installation_key", nextKeyRow) +
				insert("installation_key", nextKeyRow.With("ik_kid", "decode(repeat('5b', 16), 'hex')"))},
			{"installation_key_previous", insert("installation_key", nextKeyRow.With("previous", zeros(16)))},
			{"installation_key_link", insert("installation_key", nextKeyRow.With("previous", "null"))},
			{"installation_key_link", insert("installation_key", nextKeyRow.With("link", "null"))},
			{"installation_key_immutable", insert("installation_key", nextKeyRow) +
				"update {prefix}_installation_key set link = " + bytesOf(32) + " where previous is not null"},
			{"installation_key_no_truncate", "truncate {prefix}_installation_key cascade"},
			{"installation_ik_kid_fkey", "update {prefix}_installation set seq = 6, ik_kid = " + zeros(16)},
			{"root_key_ik_kid_fkey", "update {prefix}_root_key set seq = 6, ik_kid = " + zeros(16) + " where private_id = 'krk_a'"},
			{"root_key_version_ik_kid_fkey", "update {prefix}_root_key_version set ik_kid = " + zeros(16) + " where private_id = 'krkv_a1'"},
			{"data_key_ik_kid_fkey", "update {prefix}_data_key set seq = 6, ik_kid = " + zeros(16)},
			{"installation_ik_kid_fkey", keyGoes()},
			{"root_key_ik_kid_fkey", keyGoes("installation")},
			{"root_key_version_ik_kid_fkey", keyGoes("installation", "root_key")},
			{"data_key_ik_kid_fkey", keyGoes("installation", "root_key", "root_key_version")},

			{"escrow_pkey", insert("escrow", escrowRow.With("id", "1")) + insert("escrow", escrowRow.With("id", "1"))},
			{"escrow_immutable", insert("escrow", escrowRow) + "update {prefix}_escrow set detail = 'x'"},
			{"escrow_kept", insert("escrow", escrowRow) + "delete from {prefix}_escrow"},
			{"escrow_no_truncate", "truncate {prefix}_escrow"},
		},
		updates("root_slot", "immutable", "private_id", "'kr_y'", "number", "7",
			"wrapper_type", "'y'", "wrapper_key_id", "'y'", "ik_kid", bytesOf(15), "created", "1"),
		checks("installation_key", nextKeyRow, "ik_kid", badBytes16...),
		checks("installation_key", nextKeyRow, "previous", badBytes16...),
		checks("installation_key", nextKeyRow, "link", badBytes32...),
		checks("installation_key", nextKeyRow, "created", "0"),
		checks("escrow", escrowRow, "ik_kid", badBytes16...),
		checks("escrow", escrowRow, "event", "''", "'lost'"),
		checks("escrow", escrowRow, "detail", "repeat('a', 4097)", "repeat('é', 2048) || 'a'"),
		checks("escrow", escrowRow, "at", "0"),
		checks("root_slot", activeSlotRow, "activated", "0"),
		checks("root_slot", slotRow, "retired", "0"),
		checks("root_slot", slotRow, "private_id", "''", "'"+strings.Repeat("a", 65)+"'", "'é'"),
		checks("root_slot", slotRow, "number", "0", "-1"),
		checks("root_slot", slotRow, "wrapper_type", "''"),
		checks("root_slot", slotRow, "ik_kid", badBytes16...),
		checks("root_slot", slotRow, "state", "1", "4", "6"),
		checks("root_slot", slotRow, "created", "0"),
	)
}

var rootEffects = []effect{
	{
		"root_slot_state_change", "update {prefix}_root_slot set state = 3 where private_id = 'kr_a'", slotTimes("kr_a"), "was,now,never",
	},
	{
		"root_slot_state_change", "update {prefix}_root_slot set state = 3 where private_id = 'kr_a'; " +
			"update {prefix}_root_slot set state = 2 where private_id = 'kr_a'", slotTimes("kr_a"), "now,never,never",
	},
	{
		"root_slot_state_change", "update {prefix}_root_slot set state = 5, blob = '' where private_id = 'kr_a'", slotTimes("kr_a"), "was,now,now",
	},
	{
		"root_slot_state_change", insert("root_slot", slotRow) + "update {prefix}_root_slot set state = 5, blob = '' where private_id = 'kr_x'",
		slotTimes("kr_x"), "never,was,now",
	},
}

// slotTimes is when a slot was activated, retired and removed.
func slotTimes(id string) string {
	var words []string
	for _, column := range []string{"activated", "retired", "removed"} {
		words = append(words, fmt.Sprintf("case when %[1]s = 7 then 'was' when abs(%[1]s - extract(epoch from now())) < 60 then 'now' "+
			"when %[1]s is null then 'never' end", column))
	}
	return "select concat_ws(',', " + strings.Join(words, ", ") + ") from {prefix}_root_slot where private_id = '" + id + "'"
}
