package pgstore

import (
	"strings"
	"testing"
)

// TestIntegrityFindsWhatWasDoneByHand takes the rules away first, as whoever owns the tables can.
func TestIntegrityFindsWhatWasDoneByHand(t *testing.T) {
	t.Parallel()
	const off, on = "set session_replication_role = replica; ", "; set session_replication_role = default"
	for name, c := range map[string]struct{ sql, says string }{
		"a root key that is gone": {
			off + "delete from kms_root_key where private_id = 'krk_b'" + on, "key krk_b of version krkv_b1 is not there",
		},
		"a head that is not active": {
			off + "update kms_data_key_version set state = 3 where version = 2" + on, "the active head of key kdk_a is not there",
		},
		"a slot that is gone": {
			off + "delete from kms_root_slot where private_id = 'kr_a'" + on, "root slot kr_a, which the installation names, is not there",
		},
		"an installation key that is gone": {
			off + "delete from kms_installation_key" + on, "installation key " + strings.Repeat("5a", 16) + ", which key krk_a names, is not there",
		},
		"an installation key that a slot holds is gone": {
			"insert into kms_root_slot select 'kr_b', 3, wrapper_type, wrapper_key_id, decode(repeat('00', 16), 'hex'), state, blob, created, " +
				"activated, retired, removed from kms_root_slot where number = 1",
			"installation key " + strings.Repeat("00", 16) + ", which root slot kr_b names, is not there",
		},
		"a version that is skipped": {
			off + "update kms_data_key_version set version = 9 where version = 3" + on, "versions of key kdk_a are not numbered",
		},
		"a parent of another scope": {
			off + "update kms_data_key_version set root_key_version_id = 'krkv_b1' where version = 1" + on, "version kdkv_a1 is wrapped under",
		},
		"a usage of nothing": {
			off + "insert into kms_usage (private_id, taken) values ('kdkv_none', 1)" + on,
			"version kdkv_none, of which messages were taken, is not there",
		},
		"an installation key that a name is under is gone": {
			off + strings.ReplaceAll(insert("data_key_name", nameRow.With("ik_kid", zeros(16))), "{prefix}", "kms") + on,
			"installation key " + strings.Repeat("00", 16) + ", which name x of root key krk_a names, is not there",
		},
		"a root key of a name that is gone": {
			off + strings.ReplaceAll(insert("data_key_name", nameRow.With("root_key_id", "'krk_none'")), "{prefix}", "kms") + on,
			"root key krk_none of name x is not there",
		},
		"a key of a removed name": {
			off + strings.ReplaceAll(removedName, "{prefix}", "kms") + on, "key kdk_a is there, and its name says that it was removed",
		},
		"a trigger that is off": {
			"alter table kms_tombstone disable trigger kms_tombstone_kept", "trigger kms_tombstone_kept of table kms_tombstone is turned off",
		},
		"all triggers off": {
			"alter table kms_data_key disable trigger all", "a foreign key of table kms_data_key is turned off",
		},
		"a value that a check refuses": {
			"alter table kms_root_key_version drop constraint kms_root_key_version_key; update kms_root_key_version set key = ''; " +
				"alter table kms_root_key_version add constraint kms_root_key_version_key check (octet_length(key) > 0) not valid",
			"rows that break the constraint kms_root_key_version_key: 4",
		},
		"a value that a check of the application's refuses": {
			`alter table kms_root_key add constraint "tenant's %s" check (seq < 5) not valid`, "rows that break the constraint tenant's %s: 2",
		},
		"a name of a check that is a call": {
			`create function hit() returns text language plpgsql as $$ begin raise 'called'; end $$;
			alter table kms_root_key add constraint "'||hit()||'" check (seq < 5) not valid`, "rows that break the constraint '||hit()||': 2",
		},
		"row security": {
			"alter table kms_root_key enable row level security",
			`table kms_root_key has row security: "alter table kms_root_key disable row level security, no force row level security" turns it off`,
		},
		"row security for the owner": {
			"alter table kms_epoch force row level security", "table kms_epoch has row security",
		},
		"a rule": {
			`create rule "No thing" as on insert to kms_tombstone do instead nothing`,
			`table kms_tombstone has the rule "No thing": "drop rule "No thing" on kms_tombstone" takes it away`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := migrated(t, Config{})
			mustExec(t, s, base)
			if found, err := s.Integrity(t.Context()); err != nil || len(found) > 0 {
				t.Fatalf("Integrity before: %q, %v", found, err)
			}
			mustExec(t, s, c.sql)
			found, err := s.Integrity(t.Context())
			if err != nil || !strings.Contains(strings.Join(found, "\n"), c.says) {
				t.Errorf("Integrity: %q, %v; want %q", found, err, c.says)
			}
		})
	}
}
