package keyhold_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
)

// Of many processes that make a key at once, one does, and all have the same.
func TestManyMakeOneRawKey(t *testing.T) {
	fleets(t, func(t *testing.T, _ string, open func() *keyhold.Manager) {
		managers := opened(t, open, 8)
		for round := range 4 {
			r := key.Ref{Scope: tenant, Purpose: key.Purpose(fmt.Sprint("n", round))}
			var mu sync.Mutex
			count, found := 0, map[string]bool{}
			atOnce(managers, func(m *keyhold.Manager) {
				made, err := m.MakeRaw(t.Context(), r, keyhold.RawKey{})
				if err != nil {
					t.Error(err)
					return
				}
				b, v, err := m.Raw(t.Context(), r)
				if err != nil || v != 1 {
					t.Errorf("version %d, %v", v, err)
				}
				mu.Lock()
				defer mu.Unlock()
				found[string(b)] = true
				if made {
					count++
				}
			})
			if count != 1 || len(found) != 1 {
				t.Errorf("%d made it, and there are %d keys", count, len(found))
			}
		}
		checked(t, managers[0])
	})
}

func opened(t testing.TB, open func() *keyhold.Manager, n int) (managers []*keyhold.Manager) {
	t.Helper()
	for range n {
		managers = append(managers, open())
	}
	must(t, managers[0].CreateScope(t.Context(), tenant))
	return managers
}

func atOnce(managers []*keyhold.Manager, do func(m *keyhold.Manager)) {
	var wg sync.WaitGroup
	for _, m := range managers {
		wg.Go(func() { do(m) })
	}
	wg.Wait()
}

// Many rotate a raw key at once, and every call makes a version of its own.
func TestManyRotateOneRawKey(t *testing.T) {
	fleets(t, func(t *testing.T, _ string, open func() *keyhold.Manager) {
		managers := opened(t, open, 8)
		makes(t, managers[0], named, keyhold.RawKey{})
		var mu sync.Mutex
		made := map[key.Version]int{}
		atOnce(managers, func(m *keyhold.Manager) {
			for range 5 {
				v, err := m.Rotate(t.Context(), named)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				made[v]++
				mu.Unlock()
			}
		})
		found := map[string]bool{}
		for n := key.Version(1); n <= 41; n++ {
			b, err := managers[1].RawVersion(t.Context(), named, n)
			must(t, err)
			found[string(b)] = true
			if n > 1 && made[n] != 1 {
				t.Errorf("version %d was made %d times", n, made[n])
			}
		}
		if len(found) != 41 {
			t.Errorf("%d keys, want 41", len(found))
		}
		checked(t, managers[0])
	})
}

// numbers is which key every number of a name was seen to be.
type numbers struct {
	mu   sync.Mutex
	keys map[key.Version][]byte
}

func (n *numbers) saw(t testing.TB, v key.Version, material []byte) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if was, ok := n.keys[v]; ok && !bytes.Equal(was, material) {
		t.Errorf("version %d is two keys", v)
	}
	n.keys[v] = material
}

// While a key is made, rotated and removed by many at once, no number ever means two keys.
func TestNoNumberMeansTwoRawKeys(t *testing.T) {
	fleets(t, func(t *testing.T, _ string, open func() *keyhold.Manager) {
		managers := opened(t, open, 4)
		seen := numbers{keys: map[key.Version][]byte{}}
		expected := func(what string, err error) {
			if err != nil && !errors.Is(err, keyhold.ErrNotFound) {
				t.Errorf("%s: %v", what, err)
			}
		}
		removed := 0
		var mu sync.Mutex
		atOnce(managers, func(m *keyhold.Manager) {
			ctx := t.Context()
			for i := range 15 {
				expected("register", m.RegisterRaw(ctx, named, ""))
				_, err := m.MakeRaw(ctx, named, keyhold.RawKey{})
				expected("make", err)
				_, err = m.Rotate(ctx, named)
				expected("rotate", err)
				b, v, err := m.Raw(ctx, named)
				expected("raw", err)
				if err == nil {
					seen.saw(t, v, b)
				}
				if i%3 == 2 {
					err := m.RemoveRaw(ctx, named)
					expected("remove", err)
					if err == nil {
						mu.Lock()
						removed++
						mu.Unlock()
					}
				}
			}
		})
		if removed == 0 || len(seen.keys) < 4 {
			t.Errorf("%d were removed, and %d numbers seen", removed, len(seen.keys))
		}
		m := open()
		must(t, m.RegisterRaw(t.Context(), named, ""))
		_, err := m.MakeRaw(t.Context(), named, keyhold.RawKey{})
		must(t, err)
		b, v := rawHead(t, m, named)
		for n := range seen.keys {
			if n > v {
				t.Errorf("the head is %d, and %d was seen", v, n)
			}
		}
		seen.saw(t, v, b)
		checked(t, m)
	})
}

// A key that is removed and made again while it is rotated: who rotates the old one is told, or rotates the new one.
func TestARotationThatIsOvertakenByANewKey(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		makes(t, w.Manager, named, keyhold.RawKey{})
		faulty := faultstore.New(w.store)
		m := newManager(t, faulty, w.root)
		updates := 0
		faulty.Hook(func(call string) {
			if call != "Update" {
				return
			}
			if updates++; updates != 2 { // its version is there, and not the head yet
				return
			}
			must(t, w.RemoveRaw(ctx, named))
			must(t, w.RegisterRaw(ctx, named, ""))
			makes(t, w.Manager, named, keyhold.RawKey{})
		})
		v, err := m.Rotate(ctx, named)
		faulty.Hook(nil)
		if err == nil && v != 4 {
			t.Errorf("rotated to %d, want 4", v)
		}
		if err != nil && !errors.Is(err, keyhold.ErrNotFound) {
			t.Error(err)
		}
	})
}

// A removal whose answer was lost is found done, also where another key has the name since: that one is left alone.
func TestARemovalWhoseAnswerWasLostRemovesNoOtherKey(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		makes(t, w.Manager, named, keyhold.RawKey{})
		faulty := faultstore.New(w.store)
		m := newManager(t, faulty, w.root)
		removed := false
		faulty.Hook(func(call string) {
			switch {
			case call == "RemoveKey" && !removed:
				removed = true
				faulty.Fail(0, faultstore.After)
			case call == "Key" && removed:
				faulty.Hook(nil)
				must(t, w.RegisterRaw(ctx, named, ""))
				makes(t, w.Manager, named, keyhold.RawKey{})
			}
		})
		must(t, m.RemoveRaw(ctx, named))
		if !removed || !faulty.Fired() {
			t.Error("no answer was lost")
		}
		if _, v, err := w.Raw(ctx, named); err != nil || v != 2 {
			t.Errorf("the key that was made meanwhile: version %d, %v; want 2", v, err)
		}
	})
}

// The policy of a raw key changes, and its generator stays.
func TestThePolicyOfARawKey(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		makes(t, w.Manager, named, keyhold.RawKey{Generator: "aes128-random", Policy: keyhold.Policy{RotateEvery: -1}})
		must(t, w.SetPolicy(ctx, named, keyhold.Policy{RotateEvery: 48 * time.Hour}))
		want := keyhold.RawInfo{Name: named.Purpose, Generator: "aes128-random", Version: 1, RotateEvery: 48 * time.Hour}
		if info, err := w.RawInfo(ctx, named); err != nil || info != want {
			t.Errorf("%+v, %v; want %+v", info, err, want)
		}
		_, err := w.Rotate(ctx, named)
		must(t, err)
		if b, v := rawHead(t, w.Manager, named); v != 2 || len(b) != 16 {
			t.Errorf("version %d of %d bytes, want 2 of 16", v, len(b))
		}
		if _, err := w.MakeRaw(ctx, named, keyhold.RawKey{Policy: keyhold.Policy{MaxMessages: 5}}); err == nil {
			t.Error("a raw key counts no messages")
		}
	})
}
