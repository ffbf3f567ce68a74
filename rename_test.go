package keyhold_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
	"keyhold.example/keyhold/store/storetest"
)

// cascade changes the scope of a root key as the application's update does.
func cascade(t testing.TB, s store.Store, old, renamed key.Scope) {
	t.Helper()
	switch s := s.(type) {
	case *memstore.Store:
		must(t, s.RenameScope(t.Context(), old, renamed))
	case *sqlitestore.Store:
		_, err := s.DB().ExecContext(t.Context(), "update kms_root_key set scope_id = ? where scope_id = ?", string(renamed), string(old))
		must(t, err)
	case *pgstore.Store:
		_, err := s.Pool().Exec(t.Context(), "update kms_root_key set scope_id = $1 where scope_id = $2", string(renamed), string(old))
		must(t, err)
	default:
		t.Fatalf("no cascade in %T", s)
	}
}

func in(scope key.Scope) key.Ref { return key.Ref{Scope: scope, Purpose: secrets} }

// fresh is a manager that has seen nothing yet.
func (w world) fresh(t testing.TB) *keyhold.Manager {
	t.Helper()
	return newManager(t, w.store, w.root)
}

// refused asserts that a scope's keys are refused because of their manifest.
func refused(t testing.TB, w world, scope key.Scope) {
	t.Helper()
	_, err := w.fresh(t).Seal(t.Context(), in(scope), nil, keyhold.AAD{})
	integrity(t, err)
}

// manifestOf is the number of the manifest of a scope's root key.
func manifestOf(t testing.TB, s store.Store, scope key.Scope) uint64 {
	t.Helper()
	fam, err := s.Key(t.Context(), key.Ref{Scope: scope})
	must(t, err)
	return fam.Root.Seq
}

func TestRenamedScopeIsRefusedUntilItIsConfirmed(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		before := sealed(t, w.Manager, ref, "x", keyhold.Context("row", string(tenant)))
		was, err := w.Keys(ctx, tenant)
		must(t, err)
		cascade(t, w.store, tenant, "new")
		refused(t, w, "new")
		_, err = w.Keys(ctx, "new")
		if err == nil || !strings.Contains(err.Error(), "keyhold scope rename") || !strings.Contains(err.Error(), "Manager.RenameScope") {
			t.Errorf("it is not said what confirms: %v", err)
		}

		must(t, w.RenameScope(ctx, tenant, "new"))
		_, err = w.fresh(t).Seal(ctx, ref, nil, keyhold.AAD{})
		fails(t, err, keyhold.ErrNotFound)
		for _, m := range []*keyhold.Manager{w.Manager, w.fresh(t)} {
			opens(t, m, in("new"), before, keyhold.Context("row", string(tenant)), "x")
			sealed(t, m, in("new"), "y", keyhold.AAD{})
			_, whose, err := m.OpenAny(ctx, before, keyhold.Context("row", string(tenant)))
			if err != nil || whose != in("new") {
				t.Errorf("OpenAny: %v, %v", whose, err)
			}
		}

		// The same keys, and they go on living.
		is, err := w.Keys(ctx, "new")
		must(t, err)
		for i := range is {
			if is[i].ID != was[i].ID || is[i].Versions[0].ID != was[i].Versions[0].ID || is[i].RotateAt != was[i].RotateAt {
				t.Errorf("%v was %v", is[i], was[i])
			}
			n, err := w.Rotate(ctx, is[i].Ref)
			if err != nil || n != 2 {
				t.Errorf("rotate %v: %d, %v", is[i].Ref, n, err)
			}
		}
		n, err := w.Rewrap(ctx, "new")
		if err != nil || n == 0 {
			t.Errorf("rewrap: %d, %v", n, err)
		}
	})
}

func TestConfirmingAgainChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		cascade(t, w.store, tenant, "new")
		must(t, w.RenameScope(ctx, tenant, "new"))
		manifest := manifestOf(t, w.store, "new")
		must(t, w.RenameScope(ctx, tenant, "new"))

		// Also when there is a scope of the old name again, which has nothing of what was there before.
		ct := sealed(t, w.Manager, in("new"), "x", keyhold.AAD{})
		must(t, w.CreateScope(ctx, tenant))
		must(t, w.RenameScope(ctx, tenant, "new"))
		if got := manifestOf(t, w.store, "new"); got != manifest {
			t.Errorf("manifest %d, was %d", got, manifest)
		}
		_, err := w.fresh(t).Open(ctx, ref, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
		opens(t, w.Manager, in("new"), ct, keyhold.AAD{}, "x")
	})
}

// A tenant of the old name is made before the renamed one is confirmed.
func TestOldNameIsUsedAgainBeforeTheConfirmation(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		cascade(t, w.store, tenant, "new")
		must(t, w.CreateScope(t.Context(), tenant))
		must(t, w.RenameScope(t.Context(), tenant, "new"))
		opens(t, w.Manager, in("new"), ct, keyhold.AAD{}, "x")
		_, err := w.fresh(t).Open(t.Context(), ref, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
	})
}

func TestRenameIsRefused(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "other"))
		for _, names := range [][2]key.Scope{{tenant, tenant}, {"", tenant}, {tenant, ""}, {"a\n", tenant}, {tenant, "a\n"}} {
			err := w.RenameScope(ctx, names[0], names[1])
			if _, ok := errors.AsType[*keyhold.InvalidError](err); !ok {
				t.Errorf("%q to %q: %v, want an InvalidError", names[0], names[1], err)
			}
		}

		// The application has not renamed it, or there was never one.
		err := w.RenameScope(ctx, tenant, "new")
		fails(t, err, keyhold.ErrNotFound)
		if err == nil || !strings.Contains(err.Error(), `scope "org_42" still has its old name`) {
			t.Errorf("it is not said what to do: %v", err)
		}
		err = w.RenameScope(ctx, "nobody", "new")
		fails(t, err, keyhold.ErrNotFound)
		if err == nil || strings.Contains(err.Error(), "still") {
			t.Errorf("it is said that there is one: %v", err)
		}

		// It had another name: neither one that is another's, nor one that nobody has, nor one that looks alike.
		cascade(t, w.store, tenant, "new")
		for _, wrong := range []key.Scope{"other", "nobody", "ORG_42", "org_42 "} {
			err := w.RenameScope(ctx, wrong, "new")
			integrity(t, err)
			if err == nil || !strings.Contains(err.Error(), `fits neither this name nor "`+string(wrong)+`"`) {
				t.Errorf("it is not said that the name is wrong: %v", err)
			}
		}
		refused(t, w, "new")
		must(t, w.RenameScope(ctx, tenant, "new"))
	})
}

// Whoever can write to the database can exchange two tenants' names, as can an application that means it. Each of them
// is refused until somebody says what its name was.
func TestExchangedNamesAreConfirmedOneByOne(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "other"))
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		cascade(t, w.store, tenant, "aside")
		cascade(t, w.store, "other", tenant)
		cascade(t, w.store, "aside", "other")
		refused(t, w, tenant)
		refused(t, w, "other")
		integrity(t, w.RenameScope(ctx, "aside", "other"))

		must(t, w.RenameScope(ctx, tenant, "other"))
		opens(t, w.fresh(t), in("other"), ct, keyhold.AAD{}, "x")
		refused(t, w, tenant)
		must(t, w.RenameScope(ctx, "other", tenant))
		_, err := w.fresh(t).Open(ctx, ref, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
	})
}

func TestRenameGoesOnAndBack(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})

		// Two renamings, the first of which nobody confirmed.
		cascade(t, w.store, tenant, "second")
		cascade(t, w.store, "second", "third")
		integrity(t, w.RenameScope(ctx, "second", "third"))
		must(t, w.RenameScope(ctx, tenant, "third"))

		// Back to the first name; what was confirmed last counts, not what the keys were made with.
		cascade(t, w.store, "third", tenant)
		refused(t, w, tenant)
		must(t, w.RenameScope(ctx, "third", tenant))
		opens(t, w.fresh(t), ref, ct, keyhold.AAD{}, "x")

		// One that is undone before it is confirmed needs nothing.
		cascade(t, w.store, tenant, "fourth")
		refused(t, w, "fourth")
		cascade(t, w.store, "fourth", tenant)
		opens(t, w.fresh(t), ref, ct, keyhold.AAD{}, "x")
	})
}

// Confirming a name does not heal anything else.
func TestRenameConfirmsNothingButTheName(t *testing.T) {
	edits := map[string]func(k *store.Key){
		"policy":       func(k *store.Key) { k.RotateEvery++ },
		"next time":    func(k *store.Key) { k.RotateAt++ },
		"manifest":     func(k *store.Key) { k.Seq++ },
		"mac":          func(k *store.Key) { k.MAC[0] ^= 1 },
		"commitment":   func(k *store.Key) { k.Versions[0].Commit[31] ^= 1 },
		"state":        func(k *store.Key) { k.Versions[0].State = key.Retired },
		"installation": func(k *store.Key) { k.IKKID[0] ^= 1 },
	}
	for name, edit := range edits {
		s := memstore.New()
		m := newManager(t, s, newRoot(t))
		must(t, m.CreateScope(t.Context(), tenant))
		cascade(t, s, tenant, "new")
		s.Edit(func(d *memstore.Data) { edit(d.Key(key.Ref{Scope: "new"})) })
		seq := manifestOf(t, s, "new")
		t.Log(name)
		integrity(t, m.RenameScope(t.Context(), tenant, "new"))
		if got := manifestOf(t, s, "new"); got != seq {
			t.Errorf("%s: manifest %d was written after %d", name, got, seq)
		}
	}
}

// An older state of a renamed key is what a failover leaves, and confirming would hide it.
func TestRolledBackKeyIsNotConfirmed(t *testing.T) {
	s := memstore.New()
	m := newManager(t, s, newRoot(t))
	must(t, m.CreateScope(t.Context(), tenant))
	var old store.Key
	s.Edit(func(d *memstore.Data) { old = *d.Key(key.Ref{Scope: tenant}) })
	_, err := m.Rotate(t.Context(), key.Ref{Scope: tenant})
	must(t, err)
	sealed(t, m, ref, "x", keyhold.AAD{})
	cascade(t, s, tenant, "new")
	s.Edit(func(d *memstore.Data) {
		old.Scope = "new"
		*d.Key(key.Ref{Scope: "new"}) = old
	})
	fails(t, m.RenameScope(t.Context(), tenant, "new"), keyhold.ErrRolledBack)
}

// misnaming answers a question about one scope with another.
type misnaming struct {
	store.Store
	scope key.Scope
}

func (s misnaming) Key(ctx context.Context, _ key.Ref) (store.Family, error) {
	return s.Store.Key(ctx, key.Ref{Scope: s.scope})
}

func TestAnotherScopeThanTheRenamedOneIsNotConfirmed(t *testing.T) {
	s, root := memstore.New(), newRoot(t)
	must(t, newManager(t, s, root).CreateScope(t.Context(), tenant))
	m := newManager(t, misnaming{s, tenant}, root)
	for _, old := range []key.Scope{tenant, "nobody"} {
		integrity(t, m.RenameScope(t.Context(), old, "new"))
	}
	if got := manifestOf(t, s, tenant); got != 1 {
		t.Errorf("manifest %d was written", got)
	}
}

func TestOneConfirmationHoweverManyConfirm(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		cascade(t, w.store, tenant, "new")
		var wg sync.WaitGroup
		for range 16 {
			m := w.fresh(t)
			wg.Go(func() {
				if err := m.RenameScope(t.Context(), tenant, "new"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := manifestOf(t, w.store, "new"); got != 2 {
			t.Errorf("manifest %d, want 2", got)
		}
		sealed(t, w.Manager, in("new"), "x", keyhold.AAD{})
	})
}

// A rotation that read the key before it was renamed writes its manifest, with the old name, just before the
// confirmation does.
func TestRotationBeforeTheConfirmationWrites(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		slow, confirming := faultstore.New(w.store), faultstore.New(w.store)
		rotator, confirmer := newManager(t, slow, w.root), newManager(t, confirming, w.root)
		read, write, written := make(chan struct{}), make(chan struct{}), make(chan struct{})
		updates := 0
		slow.Hook(func(call string) {
			switch {
			case call == "Update" && updates == 0:
				updates++
				close(read)
				<-write
			case updates == 1:
				updates++
				close(written)
			}
		})
		result := make(chan error)
		go func() {
			_, err := rotator.Rotate(ctx, key.Ref{Scope: tenant})
			result <- err
		}()
		<-read
		cascade(t, w.store, tenant, "new")
		var once sync.Once
		confirming.Hook(func(call string) {
			if call == "Update" {
				once.Do(func() { close(write); <-written })
			}
		})
		must(t, confirmer.RenameScope(ctx, tenant, "new"))
		fails(t, <-result, keyhold.ErrNotFound)
		if got := strings.Join(confirming.Log(), " "); !strings.HasSuffix(got, "Key Update Installation Key Update") {
			t.Errorf("calls: %s", got)
		}

		// Its version is there, and the next rotation makes it the head.
		if got := states(t, w.Manager, key.Ref{Scope: "new"}); got != "1:active 2:pending" {
			t.Error(got)
		}
		n, err := w.Rotate(ctx, key.Ref{Scope: "new"})
		if err != nil || n < 2 {
			t.Errorf("rotate: %d, %v", n, err)
		}
	})
}

// A rotation that read the key before it was renamed does not write over the confirmation.
func TestRotationAfterTheConfirmationFindsNothing(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		faulty := faultstore.New(w.store)
		m := newManager(t, faulty, w.root)
		var once sync.Once
		faulty.Hook(func(call string) {
			if call == "Update" {
				once.Do(func() {
					cascade(t, w.store, tenant, "new")
					must(t, w.RenameScope(t.Context(), tenant, "new"))
				})
			}
		})
		_, err := m.Rotate(t.Context(), key.Ref{Scope: tenant})
		fails(t, err, keyhold.ErrNotFound)
		if got := states(t, w.Manager, key.Ref{Scope: "new"}); got != "1:active" {
			t.Error(got)
		}
	})
}

// Each call fails in turn, before and after it did its work: what was sealed opens under the one name or the other, and
// confirming again ends what was begun.
func TestRenameSurvivesEveryFault(t *testing.T) {
	for kindName, kind := range stores {
		for modeName, mode := range modes {
			t.Run(kindName+"/"+modeName, func(t *testing.T) {
				t.Parallel()
				fired := 0
				for n := 0; ; n++ {
					s, root := kind.open(t), newRoot(t)
					w := world{kind, s, root, newManager(t, s, root)}
					must(t, w.CreateScope(t.Context(), tenant))
					ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
					cascade(t, s, tenant, "new")
					faulty := faultstore.New(s)
					m := newManager(t, faulty, root)
					faulty.Fail(n, mode)
					err := m.RenameScope(t.Context(), tenant, "new")
					survived := faulty.Fired()
					faulty.Disarm()
					if survived {
						fired++
						// A write that was done although its answer was lost is found done.
						if wrote := strings.Contains(strings.Join(faulty.Log(), " "), "Update"); mode == faultstore.After && wrote {
							must(t, err)
						} else {
							fails(t, err, keyhold.ErrUnavailable)
							refused(t, w, "new")
						}
						storetest.Check(t, s)
					}
					must(t, m.RenameScope(t.Context(), tenant, "new"))
					opens(t, w.Manager, in("new"), ct, keyhold.AAD{}, "x")
					checked(t, w.Manager)
					if !survived {
						if err != nil || fired != 2 {
							t.Errorf("without a fault: %v, after %d faults, want 2", err, fired)
						}
						return
					}
				}
			})
		}
	}
}

// The process that confirms uses the new name at once, and no other uses the old one for longer than any change takes
// to be seen.
func TestConfirmationIsSeenByAllInTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s, root := memstore.New(), newRoot(t)
		confirming, other := newManager(t, s, root), newManager(t, s, root)
		must(t, confirming.CreateScope(ctx, tenant))
		for _, m := range []*keyhold.Manager{confirming, other} {
			sealed(t, m, ref, "x", keyhold.AAD{})
		}
		cascade(t, s, tenant, "new")
		must(t, confirming.RenameScope(ctx, tenant, "new"))
		for _, m := range []*keyhold.Manager{confirming, other} {
			_, err := m.Seal(ctx, ref, nil, keyhold.AAD{})
			fails(t, err, keyhold.ErrNotFound)
			sealed(t, m, in("new"), "y", keyhold.AAD{})
			pass(7 * time.Second)
		}
	})
}

func TestRoundTripsToConfirm(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		cascade(t, w.store, tenant, "new")
		counted := faultstore.New(w.store)
		m := newManager(t, counted, w.root)
		for _, want := range []int{2, 1} {
			before := counted.Calls()
			must(t, m.RenameScope(t.Context(), tenant, "new"))
			if got := counted.Calls() - before; got != want {
				t.Errorf("%d round trips, want %d", got, want)
			}
		}
	})
}

func TestScopesOfOtherTypesAreRenamed(t *testing.T) {
	names := map[migrate.ScopeType][2]key.Scope{
		migrate.UUID:   {"7d444840-9dc0-11d1-b245-5ffdce74fad2", "7d444840-9dc0-11d1-b245-5ffdce74fad3"},
		migrate.BigInt: {"42", "-7"},
	}
	for scopeType, name := range names {
		lite, err := sqlitestore.Config{ScopeType: scopeType}.Create(filepath.Join(t.TempDir(), "keys.db"))
		must(t, err)
		t.Cleanup(func() { must(t, lite.Close()) })
		pg, err := pgstore.Config{ScopeType: scopeType}.Open(t.Context(), keyholdtest.Postgres(t))
		must(t, err)
		t.Cleanup(func() { must(t, pg.Close()) })
		for kind, s := range map[string]store.Store{"sqlite": lite, "postgres": pg} {
			t.Run(kind+"/"+string(scopeType), func(t *testing.T) {
				m := newManager(t, s, newRoot(t))
				must(t, m.CreateScope(t.Context(), name[0]))
				ct := sealed(t, m, in(name[0]), "x", keyhold.AAD{})
				fails(t, m.RenameScope(t.Context(), name[0], name[1]), keyhold.ErrNotFound)
				cascade(t, s, name[0], name[1])
				_, err := m.Seal(t.Context(), in(name[1]), nil, keyhold.AAD{})
				integrity(t, err)
				must(t, m.RenameScope(t.Context(), name[0], name[1]))
				opens(t, m, in(name[1]), ct, keyhold.AAD{}, "x")
				checked(t, m)
				storetest.Check(t, s)

				// Names that cannot be in these tables.
				err = m.RenameScope(t.Context(), name[1], "new")
				if _, ok := errors.AsType[*keyhold.InvalidError](err); !ok {
					t.Errorf("to a name that cannot be: %v, want an InvalidError", err)
				}
				fails(t, m.RenameScope(t.Context(), "new", name[0]), keyhold.ErrNotFound)
				integrity(t, func() error {
					cascade(t, s, name[1], name[0])
					defer cascade(t, s, name[0], name[1])
					return m.RenameScope(t.Context(), "new", name[0])
				}())
			})
		}
	}
}
