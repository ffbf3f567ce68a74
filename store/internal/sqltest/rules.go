package sqltest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Row is a row of a table, as SQL expressions by column.
type Row map[string]string

// With is the row with other values of some columns: names and expressions in turn.
func (r Row) With(changes ...string) Row {
	r = maps.Clone(r)
	for pair := range slices.Chunk(changes, 2) {
		r[pair[0]] = pair[1]
	}
	return r
}

// Insert is the statement that inserts a row, with {prefix} before the name of the table.
func Insert(table string, r Row) string {
	columns := slices.Sorted(maps.Keys(r))
	var values []string
	for _, c := range columns {
		values = append(values, r[c])
	}
	return fmt.Sprintf("insert into {prefix}_%s (%s) values (%s);", table, strings.Join(columns, ", "), strings.Join(values, ", "))
}

// Rows are one of each table that no rule refuses, if the rows that they refer to are there.
type Rows struct {
	InstallationKey, Slot, Installation, Tombstone, RootKey, RootVersion, DataKey, DataVersion Row
}

// NewRows makes rows in the words of a database: SQL for n bytes, for n bytes of zeros, and for one byte.
func NewRows(bytes, zeros func(n int) string, one string) Rows {
	key := Row{
		"seq": "5", "head_version": "1", "rotate_every": "60", "max_messages": "0", "rotate_at": "100", "ik_kid": bytes(16),
		"mac": bytes(32),
	}
	version := Row{"version": "1", "state": "2", "alg": "1", "commitment": zeros(32), "key": one, "created": "7"}
	return Rows{
		InstallationKey: Row{"ik_kid": bytes(16)},
		Slot: Row{
			"private_id": "'kr_x'", "number": "9", "wrapper_type": "'local'", "wrapper_key_id": "''", "ik_kid": bytes(16), "state": "3", "blob": one,
			"activated": "null", "retired": "7",
		},
		Installation: Row{"only_row": "1", "inst": bytes(16), "ik_kid": bytes(16), "seq": "5", "active_slot": "'kr_a'", "mac": bytes(32)},
		Tombstone: Row{
			"key_id": "'krk_other'", "version": "1", "private_id": "'krkv_other'", "kind": "'kek'", "alg": "1", "commitment": zeros(32),
		},
		RootKey:     key.With("private_id", "'krk_x'", "scope_id", "'x'"),
		RootVersion: version.With("private_id", "'krkv_x'", "root_key_id", "'krk_x'", "ik_kid", bytes(16)),
		DataKey:     key.With("private_id", "'kdk_x'", "root_key_id", "'krk_a'", "purpose", "'x'"),
		DataVersion: version.With("private_id", "'kdkv_x'", "data_key_id", "'kdk_x'", "root_key_version_id", "'krkv_a2'"),
	}
}

// Base is what a test of a rule begins with: two root keys, of which a has a retired, an active and a pending version,
// and a data key of a's with the same; an installation with its key, an active and a removed slot; a tombstone.
func (r Rows) Base(empty string) string {
	return strings.Join([]string{
		Insert("installation_key", r.InstallationKey),
		Insert("root_slot", r.Slot.With("private_id", "'kr_a'", "number", "1", "state", "2", "activated", "7", "retired", "null")),
		Insert("root_slot", r.Slot.With("private_id", "'kr_gone'", "number", "2", "state", "5", "blob", empty, "removed", "9")),
		Insert("installation", r.Installation),
		Insert("root_key", r.RootKey.With("private_id", "'krk_a'", "scope_id", "'a'", "head_version", "2")),
		Insert("root_key_version", r.RootVersion.With("private_id", "'krkv_a1'", "root_key_id", "'krk_a'", "state", "3")),
		Insert("root_key_version", r.RootVersion.With("private_id", "'krkv_a2'", "root_key_id", "'krk_a'", "version", "2")),
		Insert("root_key_version", r.RootVersion.With("private_id", "'krkv_a3'", "root_key_id", "'krk_a'", "version", "3", "state", "1")),
		Insert("root_key", r.RootKey.With("private_id", "'krk_b'", "scope_id", "'b'")),
		Insert("root_key_version", r.RootVersion.With("private_id", "'krkv_b1'", "root_key_id", "'krk_b'")),
		Insert("data_key", r.DataKey.With("private_id", "'kdk_a'", "purpose", "'a'", "head_version", "2")),
		Insert("data_key_version", r.DataVersion.With("private_id", "'kdkv_a1'", "data_key_id", "'kdk_a'", "state", "3")),
		Insert("data_key_version", r.DataVersion.With("private_id", "'kdkv_a2'", "data_key_id", "'kdk_a'", "version", "2")),
		Insert("data_key_version", r.DataVersion.With("private_id", "'kdkv_a3'", "data_key_id", "'kdk_a'", "version", "3", "state", "1")),
		Insert("tombstone", r.Tombstone),
	}, "\n")
}

// WhiteSpace is Unicode's White_Space, as an SQL list of code points is to have it.
var WhiteSpace = []int{
	0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x20, 0x85, 0xa0, 0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006, 0x2007, 0x2008,
	0x2009, 0x200a, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000,
}
