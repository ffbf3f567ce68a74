package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/memstore"
)

// hotMessageKeys are the keys for messages in the table of those in use.
func (m *Manager) hotMessageKeys() (keys []*seal.MessageKey) {
	slots := m.hotKeys.slots.Load()
	if slots == nil {
		return nil
	}
	for i := range *slots {
		if h := (*slots)[i].Load(); h != nil && h.messages != nil {
			keys = append(keys, h.messages)
		}
	}
	return keys
}

// While many seal and open, a Manager is closed: each call ends as it would have, or is told so.
func TestCloseWhileMessagesAreSealedAndOpened(t *testing.T) {
	for round := range 10 {
		s := memstore.New()
		first := innerManager(t, s)
		m, err := New(t.Context(), s, Config{Root: first.root, Purposes: []Purpose{inner.Purpose}})
		check(t, err)
		stop := func() {}
		if round%2 == 1 {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = m.Run(ctx)
			}()
			stop = func() { cancel(); <-ended }
		}
		// Each of them has a prefix of its own, which selects a cipher that is made from the key when it is opened.
		letters := make([]letter, 8)
		for i := range letters {
			other, err := New(t.Context(), s, Config{Root: first.root, Purposes: []Purpose{inner.Purpose}})
			check(t, err)
			letters[i] = letterOf(t, other, inner, "text")
			check(t, other.Close())
		}
		var wg sync.WaitGroup
		begun := make(chan struct{}, 16)
		for g := range 8 {
			wg.Go(func() {
				defer func() { begun <- struct{}{} }()
				for n := 0; ; n++ {
					var id key.ID
					var result []byte
					var err error
					var name string
					l := &letters[(g+n/100)%len(letters)]
					if g%2 == 0 {
						way := sealWays[n%len(sealWays)]
						name = way.name
						id, result, err = way.seal(t.Context(), m, inner, []byte("text"), row())
					} else {
						way := openWays[n%len(openWays)]
						name = way.name
						result, err = way.open(t.Context(), m, inner, l, row())
					}
					switch {
					case err != nil && errors.Is(err, ErrClosed) && result == nil:
						return
					case err != nil:
						t.Errorf("%s: %v", name, err)
						return
					case g%2 == 1 && string(result) != "text":
						t.Errorf("%s: %q", name, result)
						return
					case g%2 == 0 && n%10 < 3:
						var pt []byte
						if name == "SealDetached" {
							pt, err = first.OpenDetached(t.Context(), inner, id, result, row())
						} else {
							pt, err = first.Open(t.Context(), inner, result, row())
						}
						if err != nil || string(pt) != "text" {
							t.Errorf("what %s sealed opens as %q, %v", name, pt, err)
							return
						}
					}
					if n == 100 {
						begun <- struct{}{}
					}
				}
			})
		}
		for range 8 { // are at it
			<-begun
		}
		keys := m.hotMessageKeys()
		stop()
		check(t, m.Close())
		wg.Wait()
		if len(keys) < 2 {
			t.Errorf("%d keys were in use, want those of the head and of the version", len(keys))
		}
		if left := m.hotMessageKeys(); len(left) > 0 {
			t.Errorf("%d keys can be found after Close", len(left))
		}
		for _, k := range keys {
			if !k.Closed() {
				t.Error("a key is open after Close")
			}
		}
		w := &two{store: s, Manager: m}
		w.sealsNot(t, ErrClosed)
		w.opensNot(t, &letters[0], ErrClosed)
		check(t, first.Close())
	}
}

// manyKeys makes keys in so many scopes, and what each has sealed with its first version of two.
func manyKeys(t *testing.T, m *Manager, n int) map[Ref]*letter {
	t.Helper()
	letters := map[Ref]*letter{}
	for i := range n {
		ref := Ref{Scope: key.Scope(fmt.Sprint("scope", i)), Purpose: inner.Purpose}
		check(t, m.CreateScope(t.Context(), ref.Scope))
		l := letterOf(t, m, ref, fmt.Sprint("of ", ref))
		letters[ref] = &l
		_, err := m.Rotate(t.Context(), ref)
		check(t, err)
	}
	return letters
}

// useAll has many goroutines seal and open with all keys in turn: each call is with the right one.
func useAll(t *testing.T, m, other *Manager, letters map[Ref]*letter, rounds int) {
	t.Helper()
	var refs []Ref
	heads := map[Ref]key.ID{}
	for ref := range letters {
		refs = append(refs, ref)
		id, _, err := other.SealDetached(t.Context(), ref, nil, AAD{})
		check(t, err)
		heads[ref] = id
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range rounds {
				ref := refs[i*(2*g+1)%len(refs)]
				way := sealWays[i%len(sealWays)]
				text := fmt.Append(nil, ref)
				id, ct, err := way.seal(t.Context(), m, ref, text, row())
				if err != nil || id != heads[ref] {
					t.Errorf("%s: with %s, %v; the head of %v is %s", way.name, id, err, ref, heads[ref])
					return
				}
				var pt []byte
				if way.name == "SealDetached" {
					pt, err = other.OpenDetached(t.Context(), ref, id, ct, row())
				} else {
					pt, err = other.Open(t.Context(), ref, ct, row())
				}
				if err != nil || !bytes.Equal(pt, text) {
					t.Errorf("what %s sealed for %v opens as %q, %v", way.name, ref, pt, err)
					return
				}
				open := openWays[(i+g)%len(openWays)]
				pt, err = open.open(t.Context(), m, ref, letters[ref], row())
				if err != nil || string(pt) != letters[ref].text {
					t.Errorf("%s: %q, %v; want %q", open.name, pt, err, letters[ref].text)
					return
				}
			}
		})
	}
	wg.Wait()
}

// More keys are in use than are kept: each call has the right one.
func TestMoreMessageKeysThanAreKept(t *testing.T) {
	for _, kept := range []int{1, 4} {
		s := memstore.New()
		first := innerManager(t, s)
		m, err := New(t.Context(), s, Config{Root: first.root, Purposes: []Purpose{inner.Purpose}, CacheKeys: kept})
		check(t, err)
		useAll(t, m, first, manyKeys(t, first, 12), 150)
		for what, size := range m.cache.sizes() {
			if size.kept > kept {
				t.Errorf("%d of %s are kept, want at most %d", size.kept, what, kept)
			}
		}
		open := 0
		for _, k := range m.hotMessageKeys() {
			if !k.Closed() {
				open++
			}
		}
		if open > 2*kept { // the head of a key, and as a version
			t.Errorf("%d keys in the table are open, and %d are kept", open, kept)
		}
		check(t, m.Close())
		check(t, first.Close())
	}
}

// While many seal and open, keys are taken for idle and closed: each call has the right one all the same.
func TestMessageKeysAreClosedWhileTheyAreUsed(t *testing.T) {
	s := memstore.New()
	first := innerManager(t, s)
	defer func() { check(t, first.Close()) }()
	m, err := New(t.Context(), s, Config{Root: first.root, Purposes: []Purpose{inner.Purpose}})
	check(t, err)
	defer func() { check(t, m.Close()) }()
	letters := manyKeys(t, first, 4)
	var end atomic.Bool
	var closed atomic.Int64 // and found so
	var wg sync.WaitGroup
	wg.Go(func() {
		for !end.Load() {
			m.cache.dropIdle()
			m.cache.dropIdle()
			for _, k := range m.hotMessageKeys() {
				if k.Closed() {
					closed.Add(1)
				}
			}
		}
	})
	for round := 0; round < 50 && closed.Load() < 20; round++ {
		useAll(t, m, first, letters, 100)
	}
	end.Store(true)
	wg.Wait()
	if closed.Load() == 0 {
		t.Error("no key in use was closed")
	}
}

// However many seal at once, no nonce comes twice, and no prefix for more messages than the format allows.
func TestNoNonceTwice(t *testing.T) {
	const goroutines, each = 8, 12_500
	m := innerManager(t, memstore.New())
	defer func() { check(t, m.Close()) }()
	nonces := make([][][24]byte, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			buf := make([]byte, 0, 100)
			for range each {
				ct, err := m.AppendSeal(t.Context(), buf, inner, []byte("text"), AAD{})
				if err != nil {
					t.Error(err)
					return
				}
				nonces[g] = append(nonces[g], [24]byte(ct[18:42]))
			}
		})
	}
	wg.Wait()
	seen, prefixes := map[[24]byte]bool{}, map[[12]byte]int{}
	for _, some := range nonces {
		for _, nonce := range some {
			if seen[nonce] {
				t.Fatalf("%x comes twice", nonce)
			}
			seen[nonce] = true
			prefixes[[12]byte(nonce[:])]++
		}
	}
	for prefix, n := range prefixes {
		if n > 1<<16 {
			t.Errorf("%d messages have the prefix %x", n, prefix)
		}
	}
	if len(seen) != goroutines*each || len(prefixes) > 100 {
		t.Errorf("%d messages have %d prefixes", len(seen), len(prefixes))
	}
}
