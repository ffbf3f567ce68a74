package seal

import (
	"runtime"
	"testing"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// The context is made of what is on the stack, and stays there: sealing and opening with it take no memory, and neither
// does taking it in parts.
func TestHotCallsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool lose buffers at random, so that calls allocate")
	}
	m := testMessageKey(t)
	plaintext, dst := make([]byte, 1024), make([]byte, 0, 2048)
	own := forms[0].mustSeal(t, m, plaintext, "users/42")
	detached := forms[1].mustSeal(t, m, plaintext, "users/42")
	other := testMessageKey(t)
	foreign := forms[0].mustSeal(t, other, plaintext, "users/42")
	other.sealing.Store(nil)
	id := []byte("42")
	for name, call := range map[string]func() error{
		"seal": func() error {
			c, err := envelope.PartsOf("users", "email", string(id), "x")
			if err == nil {
				_, err = m.Seal(dst, plaintext, &c, 0)
			}
			return err
		},
		"seal detached": func() error {
			c, err := envelope.PartsOf("users", string(id))
			if err == nil {
				_, err = m.SealDetached(dst, plaintext, &c, 0)
			}
			return err
		},
		"open": func() error {
			c := envelope.WholeContext("users/" + string(id))
			_, err := m.Open(dst, own, &c)
			return err
		},
		"open detached": func() error {
			c := envelope.WholeContext("users/" + string(id))
			_, err := m.OpenDetached(dst, detached, &c)
			return err
		},
		"open another's": func() error {
			c := envelope.WholeContext("users/" + string(id))
			_, err := other.Open(dst, foreign, &c)
			return err
		},
	} {
		if got := testing.AllocsPerRun(1000, func() {
			if err := call(); err != nil {
				t.Fatal(name, err)
			}
		}); got >= 1 {
			t.Errorf("%s allocates %v times", name, got)
		}
	}
	if got := testing.AllocsPerRun(1000, func() {
		c, err := envelope.PartsOf(string(id))
		if err == nil {
			_, err = m.Seal(nil, plaintext, &c, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}); got >= 2 {
		t.Errorf("sealing to a new slice allocates %v times, want the slice alone", got)
	}
}

// Of the 2 KiB that a process keeps for a data key that sealed, this is the part of the key itself.
func TestMemoryOfKeyThatSealed(t *testing.T) {
	n := 100_000
	if raceEnabled || testing.Short() {
		n = 5_000
	}
	messages := make([]*MessageKey, n)
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := used()
	for i := range messages {
		k := newTestKey(t, key.Message)
		var err error
		if messages[i], err = k.Messages(); err != nil {
			t.Fatal(err)
		}
		k.Close()
		forms[1].mustSeal(t, messages[i], []byte("text"), "context")
	}
	each := (used() - before) / uint64(n)
	t.Logf("%d bytes for each key", each)
	if each > 1000 {
		t.Errorf("a key that sealed once takes %d bytes, want at most 1000", each)
	}
	CloseAll(messages)
	if closed := (used() - before) / uint64(n); closed > 200 {
		t.Errorf("a closed key that is still held takes %d bytes, want no cipher left", closed)
	}
	runtime.KeepAlive(messages)
}
