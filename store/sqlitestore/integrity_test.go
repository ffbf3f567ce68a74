package sqlitestore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// TestIntegrityFindsWhatWasDoneByHand takes the rules away first, as whoever can write to the file can.
func TestIntegrityFindsWhatWasDoneByHand(t *testing.T) {
	for name, c := range map[string]struct{ sql, says string }{
		"a reference to nothing": {
			"pragma foreign_keys = off; delete from kms_root_key where private_id = 'krk_b'",
			"refers to a row of kms_root_key that is not there",
		},
		"an installation key that is gone": {
			"pragma foreign_keys = off; delete from kms_installation_key",
			"refers to a row of kms_installation_key that is not there",
		},
		"a head that is not active": {
			"drop trigger kms_data_key_version_state_change; pragma foreign_keys = off; update kms_data_key_version set state = 3 where version = 2",
			"refers to a row of kms_data_key_version that is not there",
		},
		"a version that is skipped": {
			"drop trigger kms_data_key_version_immutable; update kms_data_key_version set version = 9 where version = 3",
			"versions of key kdk_a are not numbered",
		},
		"a tombstone that is gone": {
			dropTrigger("tombstone_kept") + "delete from kms_data_key_version where version = 3;" + insert("data_key_version",
				dataVersionRow.With("data_key_id", "'kdk_a'", "version", "4", "state", "1")) + "delete from kms_tombstone where key_id = 'kdk_a'",
			"versions of key kdk_a are not numbered",
		},
		"a parent of another scope": {
			dropTrigger("data_key_version_parent_update") + "update kms_data_key_version set root_key_version_id = 'krkv_b1' where version = 1",
			"version kdkv_a1 is wrapped under",
		},
		"a key of a removed name": {
			dropTrigger("data_key_name_free") + insert("data_key_name",
				dataKeyNameRow.With("purpose", "'a'", "last_version", "0", "removed", "1")),
			"the name of key kdk_a says",
		},
		"a number that comes twice": {
			insert("data_key_name", dataKeyNameRow.With("purpose", "'a'", "last_version", "1")),
			"the name of key kdk_a says",
		},
		"a usage of nothing": {
			dropTrigger("usage_of_version") + insert("usage", usageRow.With("private_id", "'kdkv_none'")),
			"messages were taken of version kdkv_none",
		},
		"a value that a check refuses": {
			"pragma ignore_check_constraints = on; update kms_root_key_version set key = x''; pragma ignore_check_constraints = off",
			"kms_root_key_version",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
			s.DB().SetMaxOpenConns(1)
			mustExec(t, s, "begin;"+base+"commit")
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

func TestIntegrityFindsDamagedPages(t *testing.T) {
	var page, size int
	file := prepared(t, func(t testing.TB, s store.Store, m *storetest.Maker) {
		sqltest.Initialized(t, s, m)
		must(t, s.(*Store).DB().QueryRow("select rootpage, page_size from sqlite_master, pragma_page_size where name = 'kms_root_key'").Scan(&page, &size))
	}, storetest.NewMaker(1))
	path := filepath.Join(t.TempDir(), "keys.db")
	for i := (page - 1) * size; i < page*size; i += 64 {
		file[i] ^= 0xff
	}
	must(t, os.WriteFile(path, file, 0o600))
	s := open(t, Config{}, path)
	if found, err := s.Integrity(t.Context()); err == nil && len(found) == 0 {
		t.Error("Integrity found nothing in a damaged file")
	}
}

func BenchmarkKey(b *testing.B) {
	m := storetest.NewMaker(1)
	s := open(b, Config{}, filepath.Join(b.TempDir(), "keys.db"))
	sqltest.WithLife(b, s, m)
	ref := key.Ref{Scope: "a", Purpose: "one"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Key(b.Context(), ref); err != nil {
			b.Fatal(err)
		}
	}
}
