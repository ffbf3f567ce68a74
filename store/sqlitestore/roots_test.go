package sqlitestore

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

var (
	activeSlotRow = slotRow.With("state", "2", "activated", "7", "retired", "null")
	nextKeyRow    = keyRow.With("ik_kid", nextKey, "previous", zeroblob(16), "link", zeroblob(32))
	escrowRow     = row{"id": "1", "ik_kid": zeroblob(16), "event": "'written'", "detail": "''", "at": "1"}
)

const nextKey = "x'000102030405060708090a0b0c0d0e0f'"

// rootsBreaking are the rules about installation keys, about the times of slots, and about escrow.
func rootsBreaking() []breaking {
	addKey := insert("installation_key", nextKeyRow)
	addName := insert("data_key_name", dataKeyNameRow)
	// What names the first installation key, and what makes it name the next.
	named := []struct{ table, move string }{
		{"installation", "update {prefix}_installation set seq = 6, ik_kid = " + nextKey + ";"},
		{"root_key", "update {prefix}_root_key set seq = 6, ik_kid = " + nextKey + ";"},
		{"root_key_version", "update {prefix}_root_key_version set ik_kid = " + nextKey + ";"},
		{"data_key", "update {prefix}_data_key set seq = 6, ik_kid = " + nextKey + ";"},
		{"data_key_name", "update {prefix}_data_key_name set seq = 6, ik_kid = " + nextKey + ";"},
	}
	var list []breaking
	for i := range named {
		others := ""
		for j := range named {
			if i != j {
				others += named[j].move
			}
		}
		name := named[i].table + "_ik_kid_fkey"
		list = append(list,
			breaking{name, addName + named[i].move, foreignKey},
			breaking{name, addName + addKey + others + "delete from {prefix}_installation_key where ik_kid = zeroblob(16)", foreignKey},
		)
	}
	return slices.Concat(list,
		[]breaking{
			{
				"installation_key_pkey", dropTrigger("installation_key_no_replace") + insert("installation_key", keyRow),
				unique("{prefix}_installation_key.ik_kid"),
			},
			{
				"installation_key_previous_key",
				dropTrigger("installation_key_no_replace") + addKey + insert("installation_key", nextKeyRow.With("ik_kid", "randomblob(16)")),
				unique("{prefix}_installation_key.previous"),
			},
			{"installation_key_link", insert("installation_key", nextKeyRow.With("previous", "null")), ""},
			{"installation_key_link", insert("installation_key", nextKeyRow.With("link", "null")), ""},
			{"installation_key_previous", insert("installation_key", nextKeyRow.With("previous", nextKey)), ""},
			{"installation_key_immutable", addKey + "update {prefix}_installation_key set link = zeroblob(32)", ""},
			{"installation_key_immutable", "update {prefix}_installation_key set created = 1", ""},

			{"root_slot_activated", insert("root_slot", activeSlotRow.With("ik_kid", nextKey, "activated", "null")), ""},
			{"root_slot_retired", insert("root_slot", activeSlotRow.With("ik_kid", nextKey, "retired", "7")), ""},
			{"root_slot_retired", insert("root_slot", slotRow.With("retired", "null")), ""},
			{"root_slot_retired", insert("root_slot", slotRow.With("state", "5", "blob", "x''", "retired", "null", "removed", "7")), ""},

			{"escrow_pkey", dropTrigger("escrow_no_replace") + insert("escrow", escrowRow) + insert("escrow", escrowRow), unique("{prefix}_escrow.id")},
			{"escrow_kept", insert("escrow", escrowRow) + "delete from {prefix}_escrow", ""},
		},
		checks("installation_key", nextKeyRow, "ik_kid", badBlob16...),
		checks("installation_key", nextKeyRow, "previous", badBlob16...),
		checks("installation_key", nextKeyRow, "link", badBlob32...),
		checks("installation_key", nextKeyRow, "created", with(badInteger, "0")...),
		checks("root_slot", slotRow, "activated", with(badInteger, "0")...),
		checks("root_slot", slotRow, "retired", with(badInteger, "0")...),
		checks("escrow", escrowRow, "id", "0", "-1"),
		checks("escrow", escrowRow, "ik_kid", badBlob16...),
		checks("escrow", escrowRow, "event", "''", "'lost'", "x'01'"),
		checks("escrow", escrowRow, "detail", "'"+strings.Repeat("é", 2048)+"a'", "x'6b'", "'a' || char(0)"),
		checks("escrow", escrowRow, "at", with(badInteger, "0")...),
	)
}

// Of two installation keys the one that follows the other comes last, though the clock went back, and though SQLite
// may number rows anew.
func TestInstallationKeysComeInTheOrderInWhichTheyFollow(t *testing.T) {
	for _, rows := range [][]row{
		{keyRow.With("created", "7"), nextKeyRow.With("created", "1")},
		{nextKeyRow.With("created", "7"), keyRow.With("created", "7")},
	} {
		s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
		s.DB().SetMaxOpenConns(1)
		mustExec(t, s, "pragma foreign_keys = off;"+base+"delete from {prefix}_installation_key;"+
			insert("installation_key", rows[0])+insert("installation_key", rows[1]))
		in, err := s.Installation(t.Context())
		if err != nil || len(in.Keys) != 2 || len(in.Keys[0].Previous) != 0 ||
			!bytes.Equal(in.Keys[1].Previous, in.Keys[0].KID) {
			t.Errorf("%v, %+v; want the first one, and the one that follows it", err, in.Keys)
		}
	}
}

// SQLite does not say which foreign key refuses: the application's to its scopes, or that to the installation key.
func TestAMissingInstallationKeyIsNoForeignKeyOfTheApplication(t *testing.T) {
	ctx := t.Context()
	m := storetest.NewMaker(1)
	s := migrated(t, Config{ScopeTable: "tenant", ScopeColumn: "id"}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(ctx, m.Installation()))
	mustExec(t, s, "create table tenant (id text primary key); insert into tenant values ('a'), ('b')")
	tx := begin(t, s)
	q := s.InTx(tx)
	_, err := q.Create(ctx, m.Inst(), m.Scope("a", "one"))
	must(t, err)
	other := storetest.NewMaker(2).IKKID()
	for what, c := range map[string]struct {
		change func(keys []store.Key)
		want   error
	}{
		"no such tenant":              {func(keys []store.Key) { keys[0].Scope = "none" }, store.ErrForeignKey},
		"a root key's manifest":       {func(keys []store.Key) { keys[0].IKKID = other }, store.ErrConflict},
		"a root key's version":        {func(keys []store.Key) { keys[0].Versions[0].IKKID = other }, store.ErrConflict},
		"a data key's manifest":       {func(keys []store.Key) { keys[1].IKKID = other }, store.ErrConflict},
		"a manifest that is left out": {func(keys []store.Key) { keys[0].Scope, keys[0].IKKID = "a", other }, nil},
	} {
		keys := m.Scope("b", "one")
		c.change(keys)
		if n, err := q.Create(ctx, m.Inst(), keys); n != 0 || !errors.Is(err, c.want) {
			t.Errorf("%s: %d, %v; want %v", what, n, err, c.want)
		}
	}
	f, err := q.Key(ctx, key.Ref{Scope: "a"})
	must(t, err)
	u := m.Next(&f.Root)
	u.Manifest.IKKID = other
	if err := q.Update(ctx, u); !errors.Is(err, store.ErrConflict) {
		t.Errorf("Update: %v; want %v", err, store.ErrConflict)
	}
	must(t, tx.Commit())
	storetest.Check(t, s)
}

// Done one after the other, each of these would leave rows that no rule refuses.
func TestWhatIsToBeDoneTwiceIsRefused(t *testing.T) {
	ctx := t.Context()
	m := storetest.NewMaker(1)
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(ctx, m.Installation()))
	in, err := s.Installation(ctx)
	must(t, err)
	keys := m.Scope("a", "one")
	_, err = s.Create(ctx, m.Inst(), keys)
	must(t, err)
	must(t, s.Update(ctx, m.Add(&keys[0], &keys[0])))
	f, err := s.Key(ctx, key.Ref{Scope: "a"})
	must(t, err)
	before := dump(t, s)

	slotTwice := m.NextRoots(&in)
	slotTwice.Add = []store.Slot{m.Slot(in.IKKID, key.Active)}
	slotTwice.ActiveSlot = slotTwice.Add[0].ID
	slotTwice.States = []store.SlotChange{
		{ID: in.ActiveSlot, From: key.Active, To: key.Retired},
		{ID: in.ActiveSlot, From: key.Retired, To: key.Destroyed},
	}
	anew := m.AddKey(&in) // as if there had been no key before
	anew.AddKey.Previous, anew.AddKey.Link = nil, nil
	drop := m.DropKey(&in, in.IKKID)
	anew.Drop, anew.States = drop.Drop, drop.States
	once := m.Rekey(&keys[1], in.IKKID)
	twice := once
	twice.From, twice.Seq = once.Seq, once.Seq+1
	_, rekeyErr := s.Rekey(ctx, m.Inst(), []store.Rekey{once, twice}, nil)
	half := m.Rekey(&f.Root, in.IKKID)
	half.Versions[0].Blob = half.Versions[0].Old
	half.Versions[1] = half.Versions[0]
	if n, err := s.Rekey(ctx, m.Inst(), []store.Rekey{half}, nil); n != 0 || !errors.Is(err, store.ErrConflict) {
		t.Errorf("a version in place of the other: %d, %v; want %v", n, err, store.ErrConflict)
	}
	for what, err := range map[string]error{
		"a slot": s.ChangeRoots(ctx, slotTwice), "an installation key": s.ChangeRoots(ctx, anew), "a key": rekeyErr,
	} {
		if err == nil || errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v; want a refusal", what, err)
		}
	}
	if !slices.Equal(before, dump(t, s)) {
		t.Error("something was changed")
	}
}
