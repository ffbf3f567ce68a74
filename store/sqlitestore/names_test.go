package sqlitestore

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// dataKeyNameRow is that of a name without a key; that of the data key of base is a.
var dataKeyNameRow = row{
	"root_key_id": "'krk_a'", "purpose": "'x'", "seq": "5", "generator": "''", "last_version": "3", "removed": "0",
	"ik_kid": zeroblob(16), "mac": zeroblob(32),
}

// removedBase is that the data key of base, whose highest number is 3, was removed.
var removedBase = insert("data_key_name", dataKeyNameRow.With("purpose", "'a'", "removed", "1")) +
	"delete from {prefix}_data_key where private_id = 'kdk_a';"

// namesBreaking are the rules about names, and about how keys are made and deleted by them.
func namesBreaking() []breaking {
	name := func(changes ...string) string { return insert("data_key_name", dataKeyNameRow.With(changes...)) }
	ofKey := func(changes ...string) string { return name(append(changes, "purpose", "'a'")...) }
	add, key := name(), insert("data_key", dataKeyRow)
	set := func(changes string) string { return "update {prefix}_data_key_name set " + changes + ";" }
	long := "'" + strings.Repeat("é", 127) + "aa'"
	generators := []string{"x'61'", long, "'a' || char(0)"}
	purposes := []string{"''", "x'61'", long, "'a' || char(0) || 'a'"}
	for _, c := range []int{1, 9, 10, 13, 31, 127, 128, 133, 159} {
		text := fmt.Sprintf("'a' || char(%d) || 'a'", c)
		generators, purposes = append(generators, text), append(purposes, text)
	}
	for _, c := range sqltest.WhiteSpace {
		purposes = append(purposes, fmt.Sprintf("char(%d) || 'a'", c), fmt.Sprintf("'a' || char(%d)", c))
	}
	changed := updates("data_key_name", "immutable", "root_key_id", "'krk_b'", "purpose", "'y'", "rowid", "9")
	for i := range changed {
		changed[i].sql = add + changed[i].sql
	}
	return slices.Concat(changed,
		[]breaking{
			{
				"data_key_name_pkey", dropTrigger("data_key_name_no_replace") + add + add,
				unique("{prefix}_data_key_name.root_key_id, {prefix}_data_key_name.purpose"),
			},
			{"data_key_name_no_replace", orReplace(add + add), ""},
			{"data_key_name_no_replace", orReplace(add + name("purpose", "'y'", "rowid", "1")), ""},
			{"data_key_name_root_key_fkey", name("root_key_id", "'krk_none'"), foreignKey},
			{"data_key_name_seq_grows", add + set("seq = 5"), ""},
			{"data_key_name_seq_grows", add + set("seq = 4"), ""},
			{"data_key_name_seq_grows", add + set("generator = 'y'"), ""},
			{"data_key_name_seq_grows", add + set("last_version = 4"), ""},
			{"data_key_name_seq_grows", add + set("removed = 1"), ""},
			{"data_key_name_seq_grows", add + set("mac = randomblob(32)"), ""},
			{"data_key_name_last_grows", add + set("seq = 6, last_version = 2"), ""},
			{"data_key_name_kept", add + "delete from {prefix}_data_key_name", ""},
			{"data_key_name_kept", removedBase + "delete from {prefix}_data_key_name", ""},

			{"data_key_name_free", ofKey("removed", "1"), foreignKey},
			{"data_key_name_free_update", ofKey() + set("seq = 6, removed = 1"), foreignKey},
			{"data_key_leaving_fkey", ofKey("removed", "1") + set("seq = 6, removed = 0"), foreignKey},
			{"data_key_stays_leaving", ofKey("removed", "1") + "update {prefix}_data_key set leaving = null", ""},
			{"data_key_seq_grows", "update {prefix}_data_key set generator = 'y'", ""},
			{"data_key_named", name("last_version", "0", "removed", "1") + key, ""},
			{"data_key_named", name("last_version", "1") + key, ""},
			{
				"data_key_named", removedBase + set("seq = 6, removed = 0") +
					insert("data_key", dataKeyRow.With("purpose", "'a'", "head_version", "3")), "",
			},
			{"data_key_leaves_name", "delete from {prefix}_data_key", ""},
			{"data_key_leaves_name", ofKey() + "delete from {prefix}_data_key", ""},
			{"data_key_leaves_name", ofKey("removed", "1", "last_version", "2") + "delete from {prefix}_data_key", ""},
			{
				"data_key_leaves_name", "delete from {prefix}_data_key_version where private_id = 'kdkv_a3';" +
					ofKey("removed", "1", "last_version", "2") + "delete from {prefix}_data_key", "",
			},
		},
		checks("data_key", dataKeyRow, "generator", generators...),
		checks("data_key", dataKeyRow, "leaving", with(badInteger, "1", "-1")...),
		checks("data_key_name", dataKeyNameRow, "purpose", purposes...),
		checks("data_key_name", dataKeyNameRow, "seq", with(badInteger, "0")...),
		checks("data_key_name", dataKeyNameRow, "generator", generators...),
		checks("data_key_name", dataKeyNameRow, "last_version", with(badInteger, "-1", "65536")...),
		checks("data_key_name", dataKeyNameRow, "removed", with(badInteger, "-1", "2")...),
		checks("data_key_name", dataKeyNameRow, "ik_kid", badBlob16...),
		checks("data_key_name", dataKeyNameRow, "mac", badBlob32...),
	)
}

// What the rules about names let through: SQL that commits, and what it leaves.
func TestKeysGoByTheirNameAndComeBackWithGreaterNumbers(t *testing.T) {
	const names, keys = "select count(*) from {prefix}_data_key_name", "select count(*) from {prefix}_data_key"
	const deleteRoot = "delete from {prefix}_root_key where private_id = 'krk_a'"
	free := "update {prefix}_data_key_name set seq = 6, removed = 0;"
	next := dataKeyRow.With("purpose", "'a'", "head_version", "4")
	again := removedBase + free + insert("data_key", next)
	gone := tombstoneRow.With("key_id", "'kdk_x'", "private_id", "''", "kind", "'dek'", "alg", "2")
	for n := 1; n <= 3; n++ {
		again += insert("tombstone", gone.With("version", fmt.Sprint(n)))
	}
	again += insert("data_key_version", dataVersionRow.With("version", "4"))
	for what, c := range map[string]struct{ sql, query, want string }{
		"a key of a removed name": {removedBase, keys, "0"},
		"its versions": {
			removedBase, `select group_concat(private_id) from (
				select private_id from {prefix}_tombstone where key_id = 'kdk_a' order by version)`,
			"kdkv_a1,kdkv_a2,kdkv_a3",
		},
		"the next one":                                   {again, "select head_version from {prefix}_data_key", "4"},
		"names, with their root key":                     {removedBase + deleteRoot, names, "0"},
		"keys that no name lets go, with their root key": {deleteRoot, keys, "0"},
	} {
		t.Run(what, func(t *testing.T) {
			s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
			s.DB().SetMaxOpenConns(1)
			mustExec(t, s, "begin immediate;"+base+c.sql+";commit")
			var got string
			must(t, s.DB().QueryRow(withPrefix(s, c.query)).Scan(&got))
			if got != c.want {
				t.Errorf("%s\nleft %s; want %s", c.sql, got, c.want)
			}
		})
	}
}

// A scope may have many names, of which nothing reads all.
func TestNamesAreReadInTheOrderOfAnIndex(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	for what, read := range map[string]struct {
		query query
		args  []any
	}{
		"Name":          {nameQuery, []any{"a", "one"}},
		"Named":         {namedQuery, []any{"a", "one", 10}},
		"NamesNotUnder": {namesNotUnderQuery, []any{make([]byte, 16), 10}},
		"RemoveKey":     {keyToRemove, []any{"kdk_a", 5}},
		"PutName":       {updateName, []any{"krk_a", "one", 1, 2, "", 0, 0, nil, nil}},
	} {
		steps := planOf(t, s, read.query, read.args...)
		// What is left then is no more than two pages.
		steps = strings.Replace(steps, "USE TEMP B-TREE FOR GROUP BY", "", 1)
		for _, slow := range []string{"SCAN kms", "SCAN n\n", "SCAN n ", "TEMP B-TREE", "CORRELATED"} {
			if what == "RemoveKey" && slow == "CORRELATED" {
				continue // to the one key that is removed
			}
			if strings.Contains(steps, slow) {
				t.Errorf("%s:\n%s", what, steps)
			}
		}
	}
}

// The tables do not look whether text is UTF-8.
func TestARemovedKeyLeavesNoNameThatBreaksARule(t *testing.T) {
	ctx := t.Context()
	m := storetest.NewMaker(1)
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(ctx, m.Installation()))
	keys := m.Scope("a", "one")
	_, err := s.Create(ctx, m.Inst(), keys)
	must(t, err)
	n := m.Removed(&keys[1], store.Name{})
	n.Generator = "\xff"
	err = s.RemoveKey(ctx, m.Inst(), keys[1].ID, keys[1].Seq, 0, n)
	if err == nil || errors.Is(err, store.ErrConflict) {
		t.Errorf("%v; want a refusal", err)
	}
	if f, err := s.Key(ctx, key.Ref{Scope: "a", Purpose: "one"}); err != nil || len(f.Data) != 1 {
		t.Errorf("%d keys, %v; want the one", len(f.Data), err)
	}
}

func TestANameIsListedThoughAKeyForMessagesHasIt(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	s.DB().SetMaxOpenConns(1)
	registered := dataKeyNameRow.With("purpose", "'a'", "last_version", "0", "generator", "'mine'")
	mustExec(t, s, "begin;"+base+insert("data_key_name", registered)+"commit")
	list, err := s.Named(t.Context(), "a", "", 10)
	if want := (store.Named{Purpose: "a", Generator: "mine"}); err != nil || len(list) != 1 || list[0] != want {
		t.Errorf("Named: %+v, %v; want %+v", list, err, want)
	}
}
