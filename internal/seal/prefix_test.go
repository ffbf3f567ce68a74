package seal

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
)

func prefixOf(detached []byte) [prefixSize]byte { return [prefixSize]byte(detached[2:]) }

func TestPrefixIsKeptFor65536Messages(t *testing.T) {
	bubble.Test(t, func(t *testing.T) { // time stands still
		m := testMessageKey(t)
		count := make(map[[prefixSize]byte]int)
		nonces := make(map[[envelope.NonceSize]byte]bool)
		var dst []byte
		for range 3*maxPrefixMessages + 1 {
			var err error
			if dst, err = m.SealDetached(dst[:0], nil, ""); err != nil {
				t.Fatal(err)
			}
			count[prefixOf(dst)]++
			nonces[[envelope.NonceSize]byte(dst[2:])] = true
		}
		if len(count) != 4 || len(nonces) != 3*maxPrefixMessages+1 {
			t.Errorf("%d prefixes and %d nonces", len(count), len(nonces))
		}
		for prefix, n := range count {
			if n > 1<<16 {
				t.Errorf("prefix %x has %d messages", prefix, n)
			}
		}
	})
}

func TestPrefixIsKeptForMinuteAtMost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := testMessageKey(t)
		var last [prefixSize]byte
		var born time.Time
		for range 2000 {
			prefix := prefixOf(forms[1].mustSeal(t, m, nil, ""))
			switch age := time.Since(born); {
			case prefix != last:
				if !born.IsZero() && age < 59*time.Second {
					t.Errorf("another prefix after %v", age)
				}
				last, born = prefix, time.Now()
			case age > 60*time.Second:
				t.Fatalf("the prefix is kept for %v", age)
			}
			<-time.After(time.Duration(rand.N(900)) * time.Millisecond)
		}
	})
}

func TestPrefixIsKeptForBytes(t *testing.T) {
	m := testMessageKey(t)
	first := prefixOf(forms[1].mustSeal(t, m, nil, ""))
	// Of 2^34 bytes all but 100 are used up; what fits is sealed under the prefix, and then nothing more.
	m.sealing.Load().used.Add(1<<34 - 100)
	for _, c := range []struct {
		size int
		same bool
	}{{60, true}, {40, true}, {1, false}} {
		if got := prefixOf(forms[1].mustSeal(t, m, make([]byte, c.size), "")) == first; got != c.same {
			t.Errorf("%d bytes: the same prefix is %v, want %v", c.size, got, c.same)
		}
	}
}

func TestKeysHaveDifferentPrefixes(t *testing.T) {
	k := newTestKey(t, key.Message)
	seen := make(map[[prefixSize]byte]bool)
	for range 100 {
		m, err := k.Messages()
		if err != nil {
			t.Fatal(err)
		}
		seen[prefixOf(forms[1].mustSeal(t, m, nil, ""))] = true
	}
	if len(seen) != 100 {
		t.Errorf("100 sealers have %d prefixes", len(seen))
	}
}

func TestConcurrentSealAndOpen(t *testing.T) {
	k := newTestKey(t, key.Message)
	m, err := k.Messages()
	if err != nil {
		t.Fatal(err)
	}
	const workers, each = 8, 3 * maxPrefixMessages / 16
	var mu sync.Mutex
	count := make(map[[prefixSize]byte]int)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			mine := make(map[[prefixSize]byte]int)
			plaintext := []byte{byte(w)}
			var sealed, opened []byte
			for range each {
				var err error
				if sealed, err = m.SealDetached(sealed[:0], plaintext, "context"); err != nil {
					t.Error(err)
					return
				}
				if opened, err = m.OpenDetached(opened[:0], sealed, "context"); err != nil || !bytes.Equal(opened, plaintext) {
					t.Errorf("opens to %x, %v", opened, err)
					return
				}
				mine[prefixOf(sealed)]++
			}
			mu.Lock()
			defer mu.Unlock()
			for prefix, n := range mine {
				count[prefix] += n
			}
		})
	}
	wg.Wait()
	total := 0
	for prefix, n := range count {
		total += n
		if n > 1<<16 {
			t.Errorf("prefix %x has %d messages", prefix, n)
		}
	}
	if total != workers*each {
		t.Errorf("%d messages, want %d", total, workers*each)
	}
}

func TestSubkeyCacheFindsAndIsBounded(t *testing.T) {
	k := newTestKey(t, key.Message)
	opener, err := k.Messages()
	if err != nil {
		t.Fatal(err)
	}
	var c subkeyCache
	aead := opener.xaes.aead(make([]byte, prefixSize))
	for i := range 10 * cacheSets * cacheWays {
		prefix := [prefixSize]byte{byte(i), byte(i >> 8), byte(i >> 16)}
		c.add(opener, prefix, aead)
		if c.find(opener, &prefix) == nil {
			t.Fatalf("entry %d is not found right after it was added", i)
		}
		if other := testKeyOfSameKID(opener); c.find(other, &prefix) != nil {
			t.Fatal("another key finds the entry")
		}
	}
	c.drop(func(owner *MessageKey) bool { return owner == opener })
	for i := range c.sets {
		for j := range c.sets[i] {
			if c.sets[i][j].Load() != nil {
				t.Fatal("an entry is left")
			}
		}
	}
}

func testKeyOfSameKID(m *MessageKey) *MessageKey { return &MessageKey{kid: m.kid} }

func TestOpenCachesOnlyWhatOpened(t *testing.T) {
	k := newTestKey(t, key.Message)
	opener, _ := k.Messages()
	sealer, _ := k.Messages()
	sealed := forms[1].mustSeal(t, sealer, []byte("text"), "")
	prefix := prefixOf(sealed)
	changed := bytes.Clone(sealed)
	changed[len(changed)-1] ^= 1
	if _, err := opener.OpenDetached(nil, changed, ""); !isErrOpen(err) {
		t.Fatal(err)
	}
	if subkeys.find(opener, &prefix) != nil {
		t.Error("a changed message is in the cache")
	}
	for range 2 {
		if got, err := opener.OpenDetached(nil, sealed, ""); err != nil || string(got) != "text" {
			t.Fatalf("opens to %q, %v", got, err)
		}
		if subkeys.find(opener, &prefix) == nil {
			t.Error("an opened message is not in the cache")
		}
	}
}
