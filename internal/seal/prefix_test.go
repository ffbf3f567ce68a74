package seal

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
)

func prefixOf(detached []byte) [prefixSize]byte { return [prefixSize]byte(detached[2:]) }

func TestPrefixIsKeptFor65536Messages(t *testing.T) {
	const messages = 3*maxPrefixUnits + 1
	bubble.Test(t, func(t *testing.T) { // time stands still
		m := testMessageKey(t)
		count := make(map[[prefixSize]byte]int)
		nonces := make(map[[envelope.NonceSize]byte]bool)
		var dst []byte
		for range messages {
			var err error
			if dst, err = forms[1].seal(m, dst[:0], nil, ""); err != nil {
				t.Fatal(err)
			}
			count[prefixOf(dst)]++
			nonces[[envelope.NonceSize]byte(dst[2:])] = true
		}
		// What a scratch had claimed when the garbage collector took it is lost; the race detector loses many.
		if len(count) < 4 || len(count) > 5 && !raceEnabled || len(nonces) != messages {
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
				if !born.IsZero() && age < 58*time.Second {
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

// Callers' times are late by up to a second, each by another, and yet no prefix is in use for longer than a minute.
func TestPrefixIsKeptForMinuteAtMostByClocksThatAreLate(t *testing.T) {
	m := testMessageKey(t)
	var c envelope.Parts
	var last [prefixSize]byte
	var born, now time.Duration
	prefixes := 0
	for range 20_000 {
		now += time.Duration(rand.N(200)) * time.Millisecond
		late := rand.N(time.Second)
		sealed, err := m.SealDetached(nil, nil, &c, now-late)
		if err != nil {
			t.Fatal(err)
		}
		if prefix := prefixOf(sealed); prefix != last {
			last, born = prefix, now
			prefixes++
		} else if now-born > 60*time.Second {
			t.Fatalf("the prefix is kept for %v", now-born)
		}
	}
	if most := int(now/(57*time.Second)) + 1; prefixes > most {
		t.Errorf("%d prefixes in %v", prefixes, now)
	}
}

// A clock that goes back keeps no prefix alive.
func TestPrefixIsNotKeptWhereTheClockGoesBack(t *testing.T) {
	m := testMessageKey(t)
	var c envelope.Parts
	at := func(at time.Duration) [prefixSize]byte {
		t.Helper()
		sealed, err := m.SealDetached(nil, nil, &c, at)
		if err != nil {
			t.Fatal(err)
		}
		return prefixOf(sealed)
	}
	first := at(time.Hour)
	if at(time.Hour-999*time.Millisecond) != first {
		t.Error("another prefix for one that is late")
	}
	second := at(time.Minute)
	if second == first || at(0) == second {
		t.Error("the prefix is kept though its age is unknown")
	}
}

func TestUnitsCountMessagesAndBytes(t *testing.T) {
	for _, n := range []int{0, 1, unitBytes - 1, unitBytes, unitBytes + 1, 3*unitBytes - 1, envelope.MaxPlaintext} {
		units := unitsOf(n)
		if units < 1 || int(units)*unitBytes < n {
			t.Errorf("%d bytes are %d units", n, units)
		}
	}
	if maxPrefixUnits > 1<<16 || maxPrefixUnits*unitBytes > 1<<34 {
		t.Errorf("%d units of %d bytes are more than the format allows", maxPrefixUnits, unitBytes)
	}
}

func TestPrefixIsKeptForBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := testMessageKey(t)
		first := prefixOf(forms[1].mustSeal(t, m, nil, ""))
		// All units but 4 are used up; what fits is sealed under the prefix, and then nothing more.
		m.sealing.Load().used.Store(maxPrefixUnits - 4)
		for i, c := range []struct {
			size int
			same bool
		}{{2*unitBytes + 1, true}, {unitBytes + 1, false}, {0, false}} {
			if got := prefixOf(forms[1].mustSeal(t, m, make([]byte, c.size), "")) == first; got != c.same {
				t.Errorf("message %d: the same prefix is %v, want %v", i, got, c.same)
			}
		}
	})
}

// However many seal with however many keys at once, no more units are given out than there are.
func TestScratchesShareUnits(t *testing.T) {
	for range 50 {
		states := []*prefixState{{prefix: [prefixSize]byte{1}}, {prefix: [prefixSize]byte{2}}}
		var given [2]atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				var w scratch
				for left := []bool{true, true}; left[0] || left[1]; {
					i := rand.N(2)
					for range rand.N(100) {
						units := uint32(1 + rand.N(8)*rand.N(8))
						if !w.take(states[i], units) {
							left[i] = false
							break
						}
						given[i].Add(int64(units))
					}
				}
			})
		}
		wg.Wait()
		for i, s := range states {
			if n := given[i].Load(); n > maxPrefixUnits || s.used.Load() > maxPrefixUnits {
				t.Fatalf("%d units were given out of %d, %d claimed", n, maxPrefixUnits, s.used.Load())
			}
		}
	}
}

// One processor that goes on with one key claims little by little at first, and then many at once.
func TestScratchClaimsWhatItNeeds(t *testing.T) {
	var w scratch
	a, b := &prefixState{prefix: [prefixSize]byte{1}}, &prefixState{prefix: [prefixSize]byte{2}}
	for range 1000 {
		if !w.take(a, 1) || !w.take(b, 1) {
			t.Fatal("nothing is left")
		}
	}
	if a.used.Load() != 1000 || b.used.Load() != 1000 {
		t.Errorf("in turns, 1000 messages of each claim %d and %d units", a.used.Load(), b.used.Load())
	}
	before := a.used.Load()
	changes := 0
	for range 1000 {
		was := a.used.Load()
		w.take(a, 1)
		if a.used.Load() != was {
			changes++
		}
	}
	if got := a.used.Load() - before; got < 1000 || got > 1000+maxBlock || changes > 1000/maxBlock+7 {
		t.Errorf("1000 messages in a row claim %d units in %d steps", got, changes)
	}
	for run := range 100 {
		a.used.Store(0)
		w.take(b, 1)
		for range run {
			w.take(a, 1)
		}
		if got := int(a.used.Load()); got > 2*run {
			t.Errorf("%d messages in a row claim %d units", run, got)
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
	const workers, each = 8, 3 * maxPrefixUnits / 16
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
				if sealed, err = forms[1].seal(m, sealed[:0], plaintext, "context"); err != nil {
					t.Error(err)
					return
				}
				opened, err = forms[1].open(m, opened[:0], sealed, "context")
				if err != nil || !bytes.Equal(opened, plaintext) {
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
	aead, err := opener.xaes.aead(new(derivation), new([prefixSize]byte))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 * cacheSets * cacheWays {
		prefix := [prefixSize]byte{byte(i), byte(i >> 8), byte(i >> 16)}
		c.add(&subkey{opener, prefix, aead})
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
	if _, err := forms[1].open(opener, nil, changed, ""); !isErrOpen(err) {
		t.Fatal(err)
	}
	if subkeys.find(opener, &prefix) != nil || opener.cached.Load() {
		t.Error("a changed message is in the cache")
	}
	for range 2 {
		if got, err := forms[1].open(opener, nil, sealed, ""); err != nil || string(got) != "text" {
			t.Fatalf("opens to %q, %v", got, err)
		}
		if subkeys.find(opener, &prefix) == nil {
			t.Error("an opened message is not in the cache")
		}
	}
}
