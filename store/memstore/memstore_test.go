package memstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, harness)
}

var harness = storetest.Harness{
	Open:   func(testing.TB) store.Store { return memstore.New() },
	Reopen: func(_ testing.TB, s store.Store) store.Store { return s.(*memstore.Store).Reopen() },
	Begin: func(t testing.TB, s store.Store) (tx store.Tx, commit, rollback func() error) {
		mem := s.(*memstore.Store)
		memTx := mem.Begin()
		t.Cleanup(func() { _ = memTx.Rollback() })
		return mem.InTx(memTx), memTx.Commit, memTx.Rollback
	},
	DeleteScope: func(t testing.TB, s store.Store, scope key.Scope) {
		must(t, s.(*memstore.Store).DeleteScope(t.Context(), scope))
	},
	RenameScope: func(t testing.TB, s store.Store, old, renamed key.Scope) {
		must(t, s.(*memstore.Store).RenameScope(t.Context(), old, renamed))
	},
	RequireScopes: func(t testing.TB, s store.Store, scopes ...key.Scope) {
		must(t, s.(*memstore.Store).RequireScopes(t.Context(), scopes...))
	},
	Refer: func(t testing.TB, s store.Store, id key.ID) {
		must(t, s.(*memstore.Store).Refer(t.Context(), id))
	},
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newInstalled has one scope, "a", with one data key, "sessions".
func newInstalled(t *testing.T) (*memstore.Store, *storetest.Maker) {
	t.Helper()
	s, m := memstore.New(), storetest.NewMaker(1)
	must(t, s.Migrate(t.Context()))
	must(t, s.Initialize(t.Context(), m.Installation()))
	n, err := s.Create(t.Context(), m.Inst(), m.Scope("a", "sessions"))
	must(t, err)
	if n != 2 {
		t.Fatalf("Create: %d keys, want 2", n)
	}
	t.Cleanup(func() { storetest.Check(t, s) })
	return s, m
}

func TestSchemaOfAnotherVersionOrSystemIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		data memstore.Data
		want store.SchemaError
	}{
		"newer":          {memstore.Data{Schema: 2}, store.SchemaError{Prefix: "kms", Have: 2, Want: 1}},
		"another system": {memstore.Data{Foreign: "v0.0.2"}, store.SchemaError{Prefix: "kms", Want: 1, Foreign: "v0.0.2"}},
	} {
		s := memstore.New()
		s.Edit(func(d *memstore.Data) { d.Schema, d.Foreign = c.data.Schema, c.data.Foreign })
		_, readErr := s.Installation(t.Context())
		for what, err := range map[string]error{
			"CheckSchema": s.CheckSchema(t.Context()), "Migrate": s.Migrate(t.Context()), "Installation": readErr,
		} {
			var got *store.SchemaError
			if !errors.As(err, &got) || *got != c.want {
				t.Errorf("%s, %s: %v; want %v", name, what, err, &c.want)
			}
		}
	}
}

func TestTimesAreTheClocks(t *testing.T) {
	s, m := newInstalled(t)
	now := time.Unix(2_000_000_000, 999)
	s.Clock = func() time.Time { return now }
	ref := key.Ref{Scope: "a", Purpose: "sessions"}
	f, err := s.Reopen().Key(t.Context(), ref)
	if must(t, err); f.Now != 2_000_000_000 {
		t.Errorf("Now %d, want the clock's", f.Now)
	}
	must(t, s.Update(t.Context(), m.Add(&f.Data[0], &f.Root)))
	f, err = s.Key(t.Context(), ref)
	must(t, err)
	now = now.Add(time.Hour)
	must(t, s.Update(t.Context(), m.Destroy(&f.Data[0], 2)))
	f, err = s.Key(t.Context(), ref)
	if must(t, err); f.Data[0].Tombstones[0].Destroyed != 2_000_003_600 {
		t.Errorf("Destroyed %d, want the clock's", f.Data[0].Tombstones[0].Destroyed)
	}
}

func TestEditSeesAndChangesEverything(t *testing.T) {
	s, m := newInstalled(t)
	ref := key.Ref{Scope: "a", Purpose: "sessions"}
	var kept *memstore.Data
	var id key.ID
	s.Edit(func(d *memstore.Data) {
		kept = d
		id = d.Key(ref).Versions[0].ID
		d.Version(id).Blob[10] ^= 1
		d.Installation.Slots[0].WrapperKeyID = "edited"
		if d.Key(key.Ref{Scope: "b"}) != nil || d.Key(key.Ref{Scope: "a", Purpose: "x"}) != nil || d.Version("x") != nil {
			t.Error("Key or Version found what is not there")
		}
	})
	edited := kept.Version(id).Blob[10]
	kept.Version(id).Blob[10] ^= 0xff // too late
	f, err := s.Key(t.Context(), ref)
	must(t, err)
	in, err := s.Installation(t.Context())
	must(t, err)
	if f.Data[0].Versions[0].Blob[10] != edited || in.Slots[0].WrapperKeyID != "edited" {
		t.Error("what Edit left is not what is read")
	}
	// The indexes follow, and the rules hold again.
	s.Edit(func(d *memstore.Data) { d.Key(key.Ref{Scope: "a"}).Scope = "moved" })
	if _, err := s.Scope(t.Context(), "moved"); err != nil {
		t.Errorf("Scope under the edited name: %v", err)
	}
	must(t, s.Update(t.Context(), m.Add(&f.Data[0], &f.Root)))
}

func TestDeletedScopeLeavesATombstoneForEachVersion(t *testing.T) {
	s, m := newInstalled(t)
	f, err := s.Scope(t.Context(), "a")
	must(t, err)
	must(t, s.Update(t.Context(), m.Add(&f.Data[0], &f.Root)))
	f, err = s.Scope(t.Context(), "a")
	must(t, err)
	must(t, s.Update(t.Context(), m.Destroy(&f.Data[0], 2)))
	must(t, s.DeleteScope(t.Context(), "none"))
	must(t, s.DeleteScope(t.Context(), "a"))
	if n, err := s.Create(t.Context(), m.Inst(), []store.Key{f.Root}); err == nil {
		t.Errorf("Create of a buried version: %d, no error", n)
	}
	graves := map[key.ID]bool{}
	s.Edit(func(d *memstore.Data) {
		if len(d.Keys) != 0 {
			t.Errorf("%d keys are left", len(d.Keys))
		}
		for _, g := range d.Graves {
			graves[g.ID] = true
		}
	})
	for _, id := range []key.ID{f.Root.Versions[0].ID, f.Data[0].Versions[0].ID, f.Data[0].Versions[1].ID} {
		if !graves[id] {
			t.Errorf("version %s left no tombstone", id)
		}
	}
	if len(graves) != 3 {
		t.Errorf("%d tombstones, want 3", len(graves))
	}
	// Also after an edit, what has a tombstone is never inserted again.
	if n, err := s.Create(t.Context(), m.Inst(), []store.Key{f.Root}); err == nil {
		t.Errorf("Create of a buried version after an edit: %d, no error", n)
	}
}

func TestRenameRefusesATakenOrMalformedName(t *testing.T) {
	s, m := newInstalled(t)
	_, err := s.Create(t.Context(), m.Inst(), m.Scope("b"))
	must(t, err)
	if err := s.RenameScope(t.Context(), "a", "b"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("RenameScope to a taken name: %v", err)
	}
	var invalid *key.InvalidError
	if err := s.RenameScope(t.Context(), "a", "a\n"); !errors.As(err, &invalid) {
		t.Errorf("RenameScope to a malformed name: %v", err)
	}
	must(t, s.RenameScope(t.Context(), "none", "c"))
	if _, err := s.Scope(t.Context(), "c"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Scope: %v; want nothing", err)
	}
}

func TestRenameCarriesTheApplicationsRowAlong(t *testing.T) {
	s, m := newInstalled(t)
	must(t, s.RequireScopes(t.Context(), "a"))
	must(t, s.RenameScope(t.Context(), "a", "b"))
	if _, err := s.Create(t.Context(), m.Inst(), m.Scope("a")); !errors.Is(err, store.ErrForeignKey) {
		t.Errorf("Create under the old name: %v; want %v", err, store.ErrForeignKey)
	}
}

func TestReferRefusesWhatIsNoLiveVersion(t *testing.T) {
	s, _ := newInstalled(t)
	if err := s.Refer(t.Context(), "kdkv_none"); !errors.Is(err, store.ErrForeignKey) {
		t.Errorf("Refer: %v; want %v", err, store.ErrForeignKey)
	}
}

func TestWriteBesideATransactionWaitsForItOrItsContext(t *testing.T) {
	s, m := newInstalled(t)
	tx := s.Begin()
	if _, err := s.Scope(t.Context(), "a"); err != nil {
		t.Errorf("a read beside it: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.Create(ctx, m.Inst(), m.Scope("b"))
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Create, cancelled: %v", err)
	}
	go func() {
		_, err := s.Create(t.Context(), m.Inst(), m.Scope("b"))
		done <- err
	}()
	must(t, tx.Rollback())
	if err := <-done; err != nil {
		t.Errorf("Create after the transaction: %v", err)
	}
}

func TestATransactionEndsOnce(t *testing.T) {
	s, m := newInstalled(t)
	tx := s.Begin()
	_, err := s.InTx(tx).Create(t.Context(), m.Inst(), m.Scope("b"))
	must(t, err)
	must(t, tx.Rollback())
	must(t, tx.Rollback())
	if err := tx.Commit(); err == nil {
		t.Error("Commit after Rollback: no error")
	}
	if _, err := s.Scope(t.Context(), "b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Scope: %v; want %v", err, store.ErrNotFound)
	}
	second := s.Begin()
	must(t, second.Commit())
	if err := second.Commit(); err == nil {
		t.Error("Commit after Commit: no error")
	}
}

// The rules below are the specification's own: they hold a program to what no store can tell from what it should do.
func TestRefusesWhatAProgramMustNotDo(t *testing.T) {
	s, m := newInstalled(t)
	f, err := s.Scope(t.Context(), "a")
	must(t, err)
	for name, spoil := range map[string]func(k *store.Key){
		"no kind":                       func(k *store.Key) { k.Kind = key.IK },
		"id of the other kind":          func(k *store.Key) { k.ID = m.ID(key.PrefixDataKey) },
		"root key with a purpose":       func(k *store.Key) { k.Purpose = "x" },
		"root key with a root key":      func(k *store.Key) { k.RootKeyID = f.Root.ID },
		"root key version with alg raw": func(k *store.Key) { k.Versions[0].Alg = key.Raw },
		"root key version with parent":  func(k *store.Key) { k.Versions[0].Parent = f.Root.Versions[0].ID },
		"version id of the other kind":  func(k *store.Key) { k.Versions[0].ID = "kdkv_1" },
		"version without a time":        func(k *store.Key) { k.Versions[0].Created = 0 },
		"one id for two versions": func(k *store.Key) {
			v := m.Version(key.KEK, 2, key.Pending, key.Message, "")
			v.ID = k.Versions[0].ID
			k.Versions = append(k.Versions, v)
		},
		"inserted as disabled": func(k *store.Key) {
			k.Versions = append(k.Versions, m.Version(key.KEK, 2, key.Disabled, key.Message, ""))
		},
		"tombstone with the id of a version": func(k *store.Key) {
			k.Tombstones = []store.Tombstone{{ID: k.Versions[0].ID, Number: 2, Commit: make([]byte, 32)}}
		},
		"tombstone with another's id": func(k *store.Key) {
			k.Tombstones = []store.Tombstone{{ID: f.Root.Versions[0].ID, Number: 2, Commit: make([]byte, 32)}}
		},
		"tombstone with a commitment and no id": func(k *store.Key) {
			k.Tombstones = []store.Tombstone{{Number: 2, Commit: m.Bytes(32)}}
		},
		"tombstone with an id that is too long": func(k *store.Key) {
			k.Tombstones = []store.Tombstone{{ID: key.ID(strings.Repeat("x", 65)), Number: 2, Commit: m.Bytes(32)}}
		},
		"tombstone of no alg": func(k *store.Key) {
			k.Tombstones = []store.Tombstone{{Number: 2, Alg: 9, Commit: make([]byte, 32)}}
		},
	} {
		k := m.RootKey("b")
		spoil(&k)
		if n, err := s.Create(t.Context(), m.Inst(), []store.Key{k}); err == nil {
			t.Errorf("Create, %s: %d, no error", name, n)
		}
	}
	for name, spoil := range map[string]func(k *store.Key){
		"scope of its own": func(k *store.Key) { k.Scope = "a" },
		"version's ik_kid": func(k *store.Key) { k.Versions[0].IKKID = f.Root.IKKID },
	} {
		k := m.DataKey(&f.Root, "other", key.Message)
		spoil(&k)
		if n, err := s.Create(t.Context(), m.Inst(), []store.Key{k}); err == nil {
			t.Errorf("Create of a data key, %s: %d, no error", name, n)
		}
	}
	k := f.Data[0]
	for _, next := range []func() store.Update{
		func() store.Update { return m.Add(&k, &f.Root) },
		func() store.Update { return m.Add(&k, &f.Root) },
		func() store.Update { return m.Activate(&k, 3) },
	} {
		must(t, s.Update(t.Context(), next()))
		f, err := s.Key(t.Context(), key.Ref{Scope: "a", Purpose: "sessions"})
		must(t, err)
		k = f.Data[0]
	}
	if err := s.Update(t.Context(), m.Activate(&k, 2)); err == nil {
		t.Error("Update that takes the head back: no error")
	}
	twice := m.Step(&k, 1, key.Disabled)
	twice.Destroy = []key.Version{1}
	if err := s.Update(t.Context(), twice); err == nil {
		t.Error("Update that names a version twice: no error")
	}
	for name, spoil := range map[string]func(in *store.Installation){
		"a time of removal": func(in *store.Installation) { in.Slots[0].Removed = 1 },
		"a removed slot":    func(in *store.Installation) { in.Slots[1].State, in.Slots[1].Blob = key.Destroyed, nil },
	} {
		fresh, in := memstore.New(), m.Installation()
		must(t, fresh.Migrate(t.Context()))
		spoil(&in)
		if err := fresh.Initialize(t.Context(), in); err == nil {
			t.Errorf("Initialize with %s: no error", name)
		}
	}
}
