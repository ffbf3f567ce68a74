package seal

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/envelope"
)

// cachedOf is how many subkeys of m are in the cache.
func cachedOf(m *MessageKey) (n int) {
	for i := range subkeys.sets {
		for j := range subkeys.sets[i] {
			if s := subkeys.sets[i][j].Load(); s != nil && s.owner == m {
				n++
			}
		}
	}
	return n
}

// assertGone asserts that nothing is left of a closed key, and that it is of no use.
func assertGone(t *testing.T, m *MessageKey) {
	t.Helper()
	if !m.Closed() {
		t.Error("a key that was closed says that it is not")
	}
	if _, ok := m.xaes.key.Copy(); ok || m.sealing.Load() != &closedState {
		t.Error("a closed key still has its bytes, or a cipher")
	}
	if n := cachedOf(m); n > 0 {
		t.Errorf("the cache still has %d subkeys of a closed key", n)
	}
	for _, f := range forms {
		message := make([]byte, f.overhead)
		if f.overhead == envelope.AttachedOverhead {
			envelope.PutAttachedHeader(message, 1, &m.kid)
		} else {
			envelope.PutDetachedHeader(message, 1)
		}
		if _, err := f.seal(m, nil, nil, ""); err != ErrClosed {
			t.Errorf("%s seals: %v", f.name, err)
		}
		if _, err := f.open(m, nil, message, ""); err != ErrClosed {
			t.Errorf("%s opens: %v", f.name, err)
		}
	}
}

func TestClosedMessageKeyRefuses(t *testing.T) {
	m, unused := testMessageKey(t), testMessageKey(t)
	if m.Closed() || unused.Closed() {
		t.Error("a new key is closed")
	}
	for _, f := range forms {
		sealed := f.mustSeal(t, m, []byte("text"), "")
		m.sealing.Store(nil)
		if _, err := f.open(m, nil, sealed, ""); err != nil {
			t.Fatal(err)
		}
	}
	if cachedOf(m) != 2 {
		t.Errorf("%d subkeys are in the cache, want 2", cachedOf(m))
	}
	CloseAll([]*MessageKey{m, unused})
	m.Close()
	assertGone(t, m)
	assertGone(t, unused)
}

// Closing runs beside calls, which end well or with ErrClosed. Whatever they were about to keep, nothing is left.
func TestRaceOfCloseAndUse(t *testing.T) {
	plaintext := []byte("text")
	for range 300 {
		k := newTestKey(t, 1)
		m, err := k.Messages()
		if err != nil {
			t.Fatal(err)
		}
		other, err := k.Messages()
		if err != nil {
			t.Fatal(err)
		}
		foreign := forms[0].mustSeal(t, other, plaintext, "")
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 2 {
			wg.Go(func() {
				<-begin
				var none envelope.Parts
				for at := time.Duration(0); ; at += time.Hour { // each time under a prefix of its own
					sealed, err := m.Seal(nil, plaintext, &none, at)
					if err == ErrClosed {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					if got, err := forms[0].open(other, nil, sealed, ""); err != nil || !bytes.Equal(got, plaintext) {
						t.Errorf("sealed %x, which opens to %q, %v", sealed, got, err)
						return
					}
				}
			})
			wg.Go(func() {
				<-begin
				for {
					got, err := forms[0].open(m, nil, foreign, "")
					if err == ErrClosed {
						return
					}
					if err != nil || !bytes.Equal(got, plaintext) {
						t.Errorf("opens to %q, %v", got, err)
						return
					}
				}
			})
		}
		wg.Go(func() {
			<-begin
			m.Close()
			if !m.Closed() {
				t.Error("Close returned, and the key is not closed")
			}
		})
		close(begin)
		wg.Wait()
		assertGone(t, m)
		other.Close()
	}
}

// A subkey that was found before its key was closed, and is kept after that, is not.
func TestClosedKeysAreNotCached(t *testing.T) {
	m := testMessageKey(t)
	w := new(scratch)
	_, fresh, err := m.subkey(w, new([prefixSize]byte))
	if err != nil || fresh == nil {
		t.Fatal(err)
	}
	m.Close()
	subkeys.add(fresh)
	for range 2 * cacheWays { // also where the set is full
		subkeys.add(&subkey{owner: m, prefix: fresh.prefix, aead: fresh.aead})
	}
	if n := cachedOf(m); n > 0 {
		t.Errorf("%d subkeys of a closed key are in the cache", n)
	}
}

func TestScratchKeepsNoKey(t *testing.T) {
	x := NewXAES(Random(32))
	var w scratch
	for range 2 {
		if _, err := x.aead(&w.derivation, new([prefixSize]byte)); err != nil {
			t.Fatal(err)
		}
		if w.derivation != (derivation{}) {
			t.Error("a subkey is left in the memory that it was derived in")
		}
	}
	if err := x.derive(&w.derivation, new([prefixSize]byte)); err != nil || w.derivation == (derivation{}) {
		t.Errorf("nothing is derived, %v", err)
	}
}
