package keyhold

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// A caller with less time than the database needs goes on with what is known, and the answer comes to those after it.
func TestAShortDeadlineTakesNoAnswerFromOthers(t *testing.T) {
	inSlow(t, func(t *testing.T, w *two, s *slowStore) {
		s.takes.Store(int64(60 * time.Millisecond))
		first := headID(t, w.Manager)
		rotated(t, w, inner)
		committed := time.Now()
		for time.Since(committed) < 20*time.Second {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			id, _, err := w.SealDetached(ctx, inner, nil, AAD{})
			cancel()
			check(t, err)
			if id == first && time.Since(committed) > 7*time.Second {
				t.Fatalf("sealed with the retired version %v after the commit", time.Since(committed))
			}
			pass(20 * time.Millisecond)
		}
	})
}

// A database that takes a while for each commit, as with a distant standby, can be sealed with.
func TestASlowCommitDoesNotKeepAProcessFromSealing(t *testing.T) {
	inSlow(t, func(t *testing.T, w *two, s *slowStore) {
		s.takes.Store(int64(1200 * time.Millisecond))
		late := w.open(t, s)
		sealing(t, late, inner, "x")
		stop := running(t, late)
		for range 120 { // longer than it may seal after its first sign
			pass(10 * time.Second)
			sealing(t, late, inner, "x")
		}
		stop()
	})
}

// While the database is silent one call a second waits for it, and the others go on.
func TestWhileTheDatabaseIsSilentOneCallWaits(t *testing.T) {
	inSlow(t, func(t *testing.T, w *two, s *slowStore) {
		s.takes.Store(int64(time.Hour))
		pass(5 * time.Second)
		_, err := w.Seal(t.Context(), inner, nil, AAD{}) // by now it is known
		check(t, err)
		var mu sync.Mutex
		var wg sync.WaitGroup
		waited := 0
		end := time.Now().Add(30 * time.Second)
		for range 50 {
			wg.Go(func() {
				for time.Now().Before(end) {
					began := time.Now()
					_, err := w.Seal(t.Context(), inner, nil, AAD{})
					check(t, err)
					if time.Since(began) > 100*time.Millisecond {
						mu.Lock()
						waited++
						mu.Unlock()
					}
					pass(10 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		if waited > 15 {
			t.Errorf("%d calls waited in 30 s", waited)
		}
		s.takes.Store(0)
	})
}

// Whoever asks for what is not there has nobody else wait for the database.
func TestMadeUpVersionsHoldUpNoHotCall(t *testing.T) {
	inSlow(t, func(t *testing.T, w *two, s *slowStore) {
		s.takes.Store(int64(60 * time.Millisecond))
		ct := sealing(t, w.Manager, inner, "x")
		ct[5] ^= 1 // in the version's id
		stop := running(t, w.Manager)
		pass(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		asked := 0
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := w.Open(ctx, inner, ct, AAD{}); err == nil {
					t.Error("it opened")
				}
				asked++
			}
		})
		for range 1000 {
			began := time.Now()
			sealing(t, w.Manager, inner, "x")
			if took := time.Since(began); took != 0 {
				t.Fatalf("a hot call took %v", took)
			}
			pass(10 * time.Millisecond)
		}
		cancel()
		wg.Wait()
		stop()
		if asked < 50 {
			t.Errorf("asked %d times", asked)
		}
	})
}

// askingStore does something between what a sign reads and its commit.
type askingStore struct {
	store.Store
	during func()
}

func (s *askingStore) Sign(ctx context.Context, in store.Instance) (store.Epochs, error) {
	e, err := s.Store.Sign(ctx, store.Instance{ID: "ki_nobody", Life: in.Life})
	check := s.Store.Leave(ctx, "ki_nobody")
	if during := s.during; during != nil {
		s.during = nil
		during()
	}
	if err == nil && check == nil {
		_, err = s.Store.Sign(ctx, in)
	}
	return e, err
}

// What is retired and destroyed while a process registers, when nobody waits for it yet, it does not seal with.
func TestAVersionThatIsDestroyedWhileAProcessRegistersSealsNoMore(t *testing.T) {
	inTwoWith(t, Config{Grace: -1}, func(t *testing.T, w *two) {
		check(t, w.Manager.Close())
		ct := sealing(t, w.other, inner, "x")
		first := headID(t, w.other)
		s := &askingStore{Store: w.store}
		late := w.open(t, s)
		reads(t, late, ct, "x") // it knows the key
		s.during = func() {
			rotated(t, w, inner)
			check(t, w.other.Disable(t.Context(), first))
			check(t, w.other.Destroy(t.Context(), first))
		}
		for range 10 {
			if id := headID(t, late); id == first {
				t.Errorf("sealed with a destroyed version")
			}
			pass(time.Second)
		}
		w.sound(t)
	})
}

// Made-up ids have their senders wait or refused, and nobody else.
func TestMadeUpIDsKeepNobodyFromOtherKeys(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		slow := &slowReads{Store: w.calls, takes: 5 * time.Millisecond}
		m := w.open(t, slow)
		ct := sealing(t, m, inner, "x")
		check(t, w.other.CreateScope(t.Context(), "other"))
		began, before := time.Now(), w.calls.Calls()
		var wg sync.WaitGroup
		for i := range 5000 {
			wg.Go(func() {
				made := append([]byte(nil), ct...)
				made[2], made[3], made[4] = byte(i), byte(i>>8), 0x77
				if _, _, err := m.OpenAny(t.Context(), made, AAD{}); err == nil {
					t.Error("it opened")
				}
			})
		}
		synctest.Wait()
		sealing(t, m, Ref{Scope: "other", Purpose: inner.Purpose}, "x")
		if took := time.Since(began); took > time.Second {
			t.Errorf("another scope's first seal took %v", took)
		}
		wg.Wait()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("their senders waited for %v", took)
		}
		if asked, most := w.calls.Calls()-before, unknownBurst+unknownAtOnce+unknownRate*int(time.Since(began)/time.Second+1); asked > most {
			t.Errorf("%d calls for 5000 made-up ids, want at most %d", asked, most)
		}
		pass(time.Second)
		if _, r, err := m.OpenAny(t.Context(), sealing(t, w.other, Ref{Scope: "other", Purpose: "another"}, "y"), AAD{}); err != nil || r.Scope != "other" {
			t.Errorf("a second later: %v, %v", r, err)
		}
	})
}

// slowReads takes a while to read keys.
type slowReads struct {
	store.Store
	takes time.Duration
}

func (s *slowReads) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	pass(s.takes)
	return s.Store.Key(ctx, ref)
}

func (s *slowReads) KeyOfVersion(ctx context.Context, id key.ID) (store.Family, error) {
	pass(s.takes)
	return s.Store.KeyOfVersion(ctx, id)
}

// However many need a key that is not kept, one reads it.
func TestOneReadsAColdKeyForAll(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		m := w.open(t, &slowReads{Store: w.calls, takes: 5 * time.Millisecond})
		before := w.calls.Calls()
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() { sealing(t, m, inner, fmt.Sprint(i)) })
		}
		wg.Wait()
		keys := 0
		for _, call := range w.since(before) {
			if call == "Key" {
				keys++
			}
		}
		if keys != 1 {
			t.Errorf("%d reads for 1000 callers", keys)
		}
	})
}

// Sealing that is refused for want of messages is no load, either.
func TestRefusingWhatIsUsedUpIsNoLoad(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {MaxMessages: 1}}}, func(t *testing.T, w *two) {
		before, began := w.calls.Calls(), time.Now()
		for range 1000 {
			_, err := w.Seal(t.Context(), inner, nil, AAD{})
			wants(t, err, ErrUsedUp)
			pass(10 * time.Millisecond)
		}
		takes := 0
		for _, call := range w.since(before) {
			if call == "Take" {
				takes++
			}
		}
		if took := time.Since(began); takes > int(took/time.Second)+1 {
			t.Errorf("%d questions for messages in %v", takes, took)
		}
	})
}
