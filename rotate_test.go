package keyhold_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// states lists what m says of ref's versions, as "1:retired 2:active".
func states(t testing.TB, m *keyhold.Manager, r key.Ref) string {
	t.Helper()
	keys, err := m.Keys(t.Context(), r.Scope)
	must(t, err)
	for _, k := range keys {
		if k.Ref != r {
			continue
		}
		var s string
		for _, v := range k.Versions {
			if s != "" {
				s += " "
			}
			s += fmt.Sprintf("%d:%v", v.Number, v.State)
		}
		return s
	}
	t.Fatalf("no %v", r)
	return ""
}

func TestRotateMakesANewHeadAndOldVersionsOpen(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		var cts [][]byte
		for want := key.Version(2); want <= 5; want++ {
			cts = append(cts, sealed(t, w.Manager, ref, fmt.Sprint(want), keyhold.AAD{}))
			if n, err := w.Rotate(ctx, ref); err != nil || n != want {
				t.Fatalf("got version %d, %v, want %d", n, err, want)
			}
		}
		if got := states(t, w.Manager, ref); got != "1:retired 2:retired 3:retired 4:retired 5:active" {
			t.Error(got)
		}
		for i, ct := range cts {
			opens(t, w.Manager, ref, ct, keyhold.AAD{}, fmt.Sprint(i+2))
		}
		id, _, err := w.SealDetached(ctx, ref, nil, keyhold.AAD{})
		must(t, err)
		keys, err := w.Keys(ctx, tenant)
		must(t, err)
		if head := keys[1].Versions[4]; head.ID != id {
			t.Errorf("sealed with %s, the head is %s", id, head.ID)
		}
	})
}

func TestEveryUseOfAKeyRotates(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		for _, p := range []key.Purpose{"", secrets, search, token} {
			r := key.Ref{Scope: tenant, Purpose: p}
			n, err := w.Rotate(t.Context(), r)
			if err != nil || n != 2 {
				t.Errorf("%v: version %d, %v", r, n, err)
			}
		}
		keys, err := w.Keys(t.Context(), tenant)
		must(t, err)
		for _, k := range keys {
			if first, last := k.Versions[0], k.Versions[len(k.Versions)-1]; first.Alg != last.Alg {
				t.Errorf("%v: from %v to %v", k.Ref, first.Alg, last.Alg)
			}
		}
	})
}

func TestRotateIfAddsOnlyAfterTheHeadThatWasSeen(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		var wg sync.WaitGroup
		got := make([]key.Version, 16)
		for i := range got {
			m := newManager(t, w.store, w.root)
			wg.Go(func() {
				var err error
				if got[i], err = m.RotateIf(t.Context(), ref, 1); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, n := range got {
			if n != 2 {
				t.Errorf("version %d, want 2", n)
			}
		}
		if got := states(t, w.Manager, ref); got != "1:retired 2:active" {
			t.Error(got)
		}
		if n, err := w.RotateIf(t.Context(), ref, 1); err != nil || n != 2 {
			t.Errorf("with an old head: %d, %v", n, err)
		}
		if _, err := w.RotateIf(t.Context(), ref, 0); err == nil {
			t.Error("no head: accepted")
		}
	})
}

func TestEveryRotateAddsAVersionHoweverManyRace(t *testing.T) {
	t.Run("one manager each", func(t *testing.T) { rotateRace(t, false) })
	t.Run("one manager", func(t *testing.T) { rotateRace(t, true) })
}

func rotateRace(t *testing.T, shared bool) {
	t.Helper()
	each(t, func(t *testing.T, w world) {
		const managers, times = 8, 10
		var mu sync.Mutex
		seen := map[key.Version]bool{}
		var wg sync.WaitGroup
		for range managers {
			m := w.Manager
			if !shared {
				m = newManager(t, w.store, w.root)
			}
			wg.Go(func() {
				for range times {
					n, err := m.Rotate(t.Context(), ref)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					if seen[n] {
						t.Errorf("version %d was given out twice", n)
					}
					seen[n] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		keys, err := w.Keys(t.Context(), tenant)
		must(t, err)
		if head := keys[1].Head; head != managers*times+1 {
			t.Errorf("head is %d, want %d", head, managers*times+1)
		}
	})
}

// A process that dies between adding a version and making it the head leaves it pending. It does not seal, and the next
// rotation ends what was begun.
func TestPendingVersionIsEndedByTheNextRotation(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		faulty := faultstore.New(w.store)
		dying := newManager(t, faulty, w.root)
		updates := 0
		faulty.Hook(func(call string) {
			if call == "Update" {
				if updates++; updates == 2 {
					faulty.Fail(0, faultstore.Before)
				}
			}
		})
		_, err := dying.Rotate(t.Context(), ref)
		fails(t, err, keyhold.ErrUnavailable)
		if got := states(t, w.Manager, ref); got != "1:active 2:pending" {
			t.Fatal(got)
		}
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		if n, err := w.RotateIf(t.Context(), ref, 1); err != nil || n != 2 {
			t.Errorf("version %d, %v", n, err)
		}
		if got := states(t, w.Manager, ref); got != "1:retired 2:active" {
			t.Error(got)
		}
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
	})
}

func TestRewrapMovesEverythingUnderTheNewRootKeyVersion(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		for range 3 {
			_, err := w.Rotate(ctx, ref)
			must(t, err)
		}
		if n, err := w.Rewrap(ctx, tenant); n != 0 || err != nil {
			t.Errorf("nothing to do: rewrapped %d, %v", n, err)
		}
		_, err := w.Rotate(ctx, key.Ref{Scope: tenant})
		must(t, err)
		behind := 0
		keys, err := w.Keys(ctx, tenant)
		must(t, err)
		for _, k := range keys {
			for _, v := range k.Versions {
				if v.Behind {
					behind++
				}
			}
		}
		if behind != 7 {
			t.Errorf("%d versions are behind, want 7", behind)
		}
		if n, err := w.Rewrap(ctx, tenant); n != 7 || err != nil {
			t.Errorf("rewrapped %d, %v, want 7", n, err)
		}
		if n, err := w.Rewrap(ctx, tenant); n != 0 || err != nil {
			t.Errorf("again: rewrapped %d, %v", n, err)
		}
		opens(t, newManager(t, w.store, w.root), ref, ct, keyhold.AAD{}, "x")
	})
}

func TestRewrapBySeveralAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		for range 150 {
			_, err := w.Rotate(ctx, ref)
			must(t, err)
		}
		_, err := w.Rotate(ctx, key.Ref{Scope: tenant})
		must(t, err)
		var wg sync.WaitGroup
		total := make([]int, 8)
		for i := range total {
			m := newManager(t, w.store, w.root)
			wg.Go(func() {
				var err error
				if total[i], err = m.Rewrap(ctx, tenant); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		sum := 0
		for _, n := range total {
			sum += n
		}
		if sum != 154 {
			t.Errorf("rewrapped %d versions in all, want 154", sum)
		}
	})
}

// A version that does not open is named, and does not keep the others from being rewrapped.
func TestRewrapNamesWhatDoesNotOpen(t *testing.T) {
	s := memstore.New()
	m := newManager(t, s, newRoot(t))
	must(t, m.CreateScope(t.Context(), tenant))
	_, err := m.Rotate(t.Context(), key.Ref{Scope: tenant})
	must(t, err)
	s.Edit(func(d *memstore.Data) { d.Key(ref).Versions[0].Blob[30] ^= 1 })
	n, err := m.Rewrap(t.Context(), tenant)
	integrity(t, err)
	if n != 3 {
		t.Errorf("rewrapped %d, want 3", n)
	}
	findings, err := m.Check(t.Context())
	if err != nil || len(findings) != 1 {
		t.Errorf("check: %v, %v, want the one", findings, err)
	}
}

// A key that is older in the database than this process has seen it, with a right MAC, is what a failover leaves.
func TestRolledBackKeyOpensButDoesNotSeal(t *testing.T) {
	bubble.Test(t, rolledBackKeyOpensButDoesNotSeal)
}

func rolledBackKeyOpensButDoesNotSeal(t *testing.T) {
	s := memstore.New()
	root := newRoot(t)
	m := newManager(t, s, root)
	must(t, m.CreateScope(t.Context(), tenant))
	var before store.Key
	s.Edit(func(d *memstore.Data) {
		before = *d.Key(ref)
		before.Versions = append([]store.Version(nil), before.Versions...)
	})
	ct := sealed(t, m, ref, "x", keyhold.AAD{})
	_, err := m.Rotate(t.Context(), ref)
	must(t, err)
	sealed(t, m, ref, "y", keyhold.AAD{})

	s.Edit(func(d *memstore.Data) { *d.Key(ref) = before })
	pass(5 * time.Second)
	_, err = m.Seal(t.Context(), ref, nil, keyhold.AAD{})
	fails(t, err, keyhold.ErrRolledBack)
	_, err = m.Rotate(t.Context(), ref)
	fails(t, err, keyhold.ErrRolledBack)
	_, err = m.Rewrap(t.Context(), tenant)
	fails(t, err, keyhold.ErrRolledBack)
	opens(t, m, ref, ct, keyhold.AAD{}, "x")
	_, err = m.BlindIndex(t.Context(), key.Ref{Scope: tenant, Purpose: search}, "email", nil, 16)
	if err != nil {
		t.Errorf("another key of the scope: %v", err)
	}
	// Another key of the scope is not touched by it.
	sealed(t, m, key.Ref{Scope: tenant, Purpose: session}, "z", keyhold.AAD{})
}

// Sealing beside a rotation by the same process is never mistaken for a database that was rolled back.
func TestSealBesideRotate(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		done := make(chan struct{})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					if _, err := w.Seal(t.Context(), ref, nil, keyhold.AAD{}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for range 40 {
			if _, err := w.Rotate(t.Context(), ref); err != nil {
				t.Error(err)
			}
		}
		close(done)
		wg.Wait()
	})
}

// The next rotation is due a period after this one, by the database's clock.
func TestRotationMovesTheTimeOfTheNext(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s := memstore.New()
	s.Clock = func() time.Time { return now }
	m := newManager(t, s, newRoot(t))
	must(t, m.CreateScope(t.Context(), tenant))
	due := func() (time.Time, bool) {
		keys, err := m.Keys(t.Context(), tenant)
		must(t, err)
		return keys[1].RotateAt, keys[1].Due
	}
	if at, is := due(); !at.Equal(now.Add(90*24*time.Hour)) || is {
		t.Errorf("due at %v: %v", at, is)
	}
	now = now.Add(90 * 24 * time.Hour)
	if _, is := due(); !is {
		t.Error("not due after the period")
	}
	_, err := m.Rotate(t.Context(), ref)
	must(t, err)
	if at, is := due(); !at.Equal(now.Add(90*24*time.Hour)) || is {
		t.Errorf("after the rotation due at %v: %v", at, is)
	}
}

// No new key is wrapped under a root key that was rolled back.
func TestRolledBackRootKeyGetsNoNewKeys(t *testing.T) {
	s := memstore.New()
	root := newRoot(t)
	newManager(t, s, root)
	cfg := config(root)
	cfg.Purposes = append(cfg.Purposes, "more")
	must(t, newManager(t, s, root).CreateScope(t.Context(), tenant))
	m, err := keyhold.New(t.Context(), s, cfg)
	must(t, err)
	rootRef := key.Ref{Scope: tenant}
	var before store.Key
	s.Edit(func(d *memstore.Data) {
		before = *d.Key(rootRef)
		before.Versions = append([]store.Version(nil), before.Versions...)
	})
	_, err = m.Rotate(t.Context(), rootRef)
	must(t, err)
	_, err = m.Keys(t.Context(), tenant)
	must(t, err)
	s.Edit(func(d *memstore.Data) { *d.Key(rootRef) = before })
	fails(t, m.CreateScope(t.Context(), tenant), keyhold.ErrRolledBack)
}

// pass lets time pass in a bubble of synctest.
func pass(d time.Duration) { <-time.After(d) }
