package keyhold

import (
	"context"
	"slices"
	"testing"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

func count(calls []string, name string) (n int) {
	for _, call := range calls {
		if call == name {
			n++
		}
	}
	return n
}

// What is to be done each hour is done each hour by one of all, however often they are restarted.
func TestShortLivedProcessesMaintain(t *testing.T) {
	for _, lives := range []time.Duration{5 * time.Minute, 47 * time.Minute, 24 * time.Hour} {
		inTwo(t, func(t *testing.T, w *two) {
			const days = 3
			before := w.calls.Calls()
			for began := time.Now(); time.Since(began) < days*24*time.Hour; {
				var all []*Manager
				for range 3 {
					all = append(all, w.open(t, w.calls))
				}
				stop := running(t, all...)
				pass(lives)
				stop()
				for _, m := range all {
					check(t, m.Close())
				}
			}
			calls := w.since(before)
			if got := count(calls, "Lagging"); got < days*22 || got > days*24+1 {
				t.Errorf("processes that live for %v maintained %d times in %d days", lives, got, days)
			}
			if got := count(calls, "Tidy"); got < days*24*12*3/4 || got > days*24*12+1 {
				t.Errorf("processes that live for %v tidied %d times in %d days", lives, got, days)
			}
		})
	}
}

// What failed is not tried again all the time, and not only after an hour either.
func TestMaintenanceThatFailedIsTriedAgain(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		w.calls.Hook(func(call string) {
			if call == "Lagging" {
				w.calls.Fail(0, faultstore.Before)
			}
		})
		before := w.calls.Calls()
		stop := running(t, w.Manager)
		pass(2 * time.Hour)
		stop()
		if got := count(w.since(before), "Lagging"); got < 8 || got > 13 {
			t.Errorf("it was tried %d times in two hours", got)
		}
	})
}

// lockedKeys are keys that somebody's transaction has locked.
type lockedKeys struct {
	store.Store
	locked map[key.ID]bool
}

func (s *lockedKeys) Update(ctx context.Context, u store.Update) error {
	if s.locked[u.KeyID] {
		<-ctx.Done()
		return store.ContextError(ctx)
	}
	return s.Store.Update(ctx, u)
}

// UpdateAll waits for nobody.
func (s *lockedKeys) UpdateAll(ctx context.Context, updates []store.Update) ([]bool, error) {
	free := slices.DeleteFunc(slices.Clone(updates), func(u store.Update) bool { return s.locked[u.KeyID] })
	changed, err := s.Store.UpdateAll(ctx, free)
	if err != nil {
		return nil, err
	}
	made := make([]bool, len(updates))
	for i, u := range updates {
		n := slices.IndexFunc(free, func(f store.Update) bool { return f.KeyID == u.KeyID })
		made[i] = n >= 0 && changed[n]
	}
	return made, nil
}

// A key that somebody has locked holds up the others for a moment only.
func TestALockedKeyHoldsUpTheOthersForAMoment(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}}, func(t *testing.T, w *two) {
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		for _, scope := range []Scope{"b", "c", "d", "e", "f"} {
			check(t, w.other.CreateScope(t.Context(), scope))
		}
		pass(time.Hour + time.Minute)
		m := w.open(t, &lockedKeys{Store: w.store, locked: map[key.ID]bool{fam.Data[0].ID: true}})
		began := time.Now()
		swept, err := m.Sweep(t.Context())
		check(t, err)
		if took := time.Since(began); took > workLimit || swept.Failed != 1 || swept.Rotated != 5 {
			t.Errorf("%+v after %v", swept, took)
		}
	})
}

// The application may call the Manager from an event, also while it is being closed.
func TestAnEventMayCallTheManager(t *testing.T) {
	db := memstore.New()
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	closed := make(chan error, 1)
	var m *Manager
	called := false
	m, err = New(t.Context(), db, Config{Root: root, Purposes: []Purpose{inner.Purpose}, Initialize: true, OnEvent: func(ctx context.Context, _ Event) {
		if called {
			return
		}
		called = true
		_, err := m.Keys(ctx, inner.Scope)
		check(t, err)
		go func() { closed <- m.Close() }()
		for err == nil {
			_, err = m.Keys(ctx, inner.Scope)
		}
		wants(t, err, ErrClosed)
	}})
	check(t, err)
	check(t, m.CreateScope(t.Context(), inner.Scope))
	db.Edit(func(d *memstore.Data) {
		for i := range d.Keys {
			d.Keys[i].RotateAt = 1
		}
	})
	_, _ = m.Sweep(t.Context())
	check(t, <-closed)
	if !called {
		t.Error("nothing was told")
	}
}

// A version that was once acknowledged seals on when the key is read again and nothing can be acknowledged.
func TestAnAcknowledgedVersionSealsWhileNothingIsAcknowledged(t *testing.T) {
	inLocked(t, Config{Durability: Acknowledged}, func(t *testing.T, w *two, s *lockedStore) {
		sealing(t, w.Manager, inner, "x")
		s.lock.Store(refused)
		check(t, w.other.SetPolicy(t.Context(), inner, Policy{RotateEvery: 17 * time.Hour})) // it has to be read again
		pass(5 * time.Second)
		sealing(t, w.Manager, inner, "x")
		if n := count(w.calls.Log(), "Key"); n < 2 {
			t.Errorf("it was read %d times", n)
		}
		rotated(t, w, inner)
		pass(5 * time.Second)
		_, err := w.Seal(t.Context(), inner, nil, AAD{}) // with what nobody has acknowledged
		wants(t, err, ErrUnavailable)
		s.lock.Store(written)
		pass(restFor)
		w.sealsWith(t, 2)
	})
}

// What was disabled when a failover lost it is disabled again when it is written back, whatever others did meanwhile.
func TestADisabledVersionDoesNotComeBackEnabled(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		before := copied(w.store)
		rotated(t, w, inner)
		rotated(t, w, inner)
		step(t, w.other, inner, 2, key.Disabled)
		given := func() key.ID {
			fam, err := w.store.Key(t.Context(), inner)
			check(t, err)
			return fam.Data[0].Versions[1].ID
		}()
		pass(5 * time.Second)
		ct := sealing(t, w.Manager, inner, "x")
		w.failover(before)
		fresh := w.fresh(t)
		for range 3 {
			_, err := fresh.Rotate(t.Context(), inner)
			check(t, err)
		}
		stop := running(t, w.Manager)
		pass(30 * time.Second)
		stop()
		reads(t, w.fresh(t), ct, "x")
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		i := slices.IndexFunc(fam.Data[0].Versions, func(v store.Version) bool { return v.ID == given })
		if i < 0 || fam.Data[0].Versions[i].State != key.Disabled {
			t.Errorf("the disabled version is not there as it was: %v", w.states(t, inner))
		}
		w.sound(t)
	})
}

// Who destroys a version after a failover is not told that an instance has seen it which knows only what was lost.
func TestWhoHasSeenWhatWasLostHasNotSeenWhatCameAfter(t *testing.T) {
	seen := store.Instance{}
	seen.Seen[3] = 100
	committed := [store.Buckets]uint64{3: 90}
	if hasSeen(&seen, store.AllBuckets, committed, committed) {
		t.Error("100 of 90 is not seen")
	}
	later := [store.Buckets]uint64{3: 110}
	if !hasSeen(&seen, store.AllBuckets, committed, later) {
		t.Error("100 of 110 is more than 90")
	}
	if hasSeen(&seen, store.AllBuckets, later, later) {
		t.Error("100 is less than 110")
	}
}

// Keys that nobody uses do not stay open for ever, and open again when somebody does.
func TestKeysThatNobodyUsesAreClosed(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		open := func() int {
			w.Manager.cache.mu.Lock()
			defer w.Manager.cache.mu.Unlock()
			return w.Manager.cache.opened.len() + w.Manager.cache.parents.len()
		}
		ct := sealing(t, w.Manager, inner, "x")
		w.Manager.cache.mu.Lock()
		kid, _ := headIDIn(t, w).KID()
		o, _ := w.Manager.cache.opened.get(kid)
		w.Manager.cache.mu.Unlock()
		prefix := func() string { // stays while the key keeps what it seals with
			ct, err := o.messages.SealDetached(nil, nil, &envelope.Parts{}, w.epochs.mono())
			check(t, err)
			return string(ct[:12])
		}
		first := prefix()
		if prefix() != first {
			t.Fatal("a key in use seals under another prefix each time")
		}
		stop := running(t, w.Manager)
		for range 5 {
			pass(50 * time.Minute)
			reads(t, w.Manager, ct, "x")
		}
		if open() == 0 {
			t.Error("a key in use was closed")
		}
		pass(2*idleFor + time.Minute)
		if n := open(); n != 0 {
			t.Errorf("%d keys are open that nobody has used for two hours", n)
		}
		if !o.messages.Closed() {
			t.Error("what is dropped is not forgotten")
		}
		w.away(true) // it takes no database to open them again
		reads(t, w.Manager, ct, "x")
		w.away(false)
		stop()
	})
}

// A key that cannot be read again is used no longer than the database could be away.
func TestAKeyThatCannotBeReadIsNotUsedForEver(t *testing.T) {
	inTwoWith(t, Config{SealFor: time.Hour, OpenFor: 2 * time.Hour}, func(t *testing.T, w *two) {
		m := w.open(t, &unreadable{Store: w.store})
		ct := sealing(t, m, inner, "x")
		m.store.(*unreadable).away = true //nolint:forcetypeassert // of this kind
		began := time.Now()
		for time.Since(began) < 50*time.Minute {
			sealing(t, m, inner, "x")
			reads(t, m, ct, "x")
			pass(time.Minute)
		}
		pass(time.Hour - time.Since(began))
		_, err := m.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrUnavailable)
		reads(t, m, ct, "x")
		pass(time.Hour)
		_, err = m.Open(t.Context(), inner, ct, AAD{})
		wants(t, err, ErrUnavailable)
	})
}

// unreadable answers everything but for keys.
type unreadable struct {
	store.Store
	away bool
}

func (s *unreadable) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	if s.away {
		return store.Family{}, store.ErrUnavailable
	}
	return s.Store.Key(ctx, ref)
}

// What was destroyed when a failover lost that is disabled again: nothing that it sealed opens.
func TestADestroyedVersionDoesNotComeBackEnabled(t *testing.T) {
	inTwoWith(t, Config{Grace: -1}, func(t *testing.T, w *two) {
		ct := sealing(t, w.Manager, inner, "x")
		rotated(t, w, inner)
		before := copied(w.store)
		step(t, w.other, inner, 1, key.Disabled)
		pass(10 * time.Second)
		sealing(t, w.Manager, inner, "y")
		check(t, w.Manager.epochs.acknowledged(t.Context())) // it says what it has seen
		pass(5 * time.Second)
		sealing(t, w.Manager, inner, "y")
		check(t, w.Manager.epochs.acknowledged(t.Context()))
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		check(t, w.other.Destroy(t.Context(), fam.Data[0].Versions[0].ID))
		pass(5 * time.Second)
		sealing(t, w.Manager, inner, "y")
		w.failover(before)
		stop := running(t, w.Manager)
		pass(30 * time.Second)
		stop()
		w.hasStates(t, inner, key.Disabled, key.Active)
		_, err = w.fresh(t).Open(t.Context(), inner, ct, AAD{})
		wants(t, err, ErrDisabled)
		sealing(t, w.Manager, inner, "y")
		w.sound(t)
	})
}

func headIDIn(t *testing.T, w *two) key.ID {
	t.Helper()
	fam, err := w.store.Key(t.Context(), inner)
	check(t, err)
	return fam.Data[0].Versions[len(fam.Data[0].Versions)-1].ID
}
