package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func counted(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + 1)
	}
	return b
}

// A copy has all bytes, whatever their number, and is its owner's; what it was made of is, too.
func TestSharedCopies(t *testing.T) {
	for n := range 70 {
		from := counted(n)
		s := NewShared(from)
		clear(from)
		for range 2 {
			b, ok := s.Copy()
			if !ok || !bytes.Equal(b, counted(n)) || len(b) != n {
				t.Fatalf("%d bytes: %x, %v", n, b, ok)
			}
			clear(b)
		}
		if n > 0 {
			if allocs := testing.AllocsPerRun(100, func() { _, _ = s.Copy() }); allocs > 1 {
				t.Errorf("%d bytes: %v allocations for a copy", n, allocs)
			}
		}
	}
}

// What is copied into memory of the caller's is all, or zeros, and takes no other memory.
func TestSharedCopiesToWhatIsThere(t *testing.T) {
	for n := range 70 {
		s := NewShared(counted(n))
		into := bytes.Repeat([]byte{0xff}, n)
		if allocs := testing.AllocsPerRun(10, func() {
			if !s.CopyTo(into) {
				t.Fatalf("%d bytes are not copied", n)
			}
		}); allocs > 0 || !bytes.Equal(into, counted(n)) {
			t.Errorf("%d bytes: %x, %v allocations", n, into, allocs)
		}
		for _, other := range []int{n - 1, n + 1, n + 8} {
			if other < 0 {
				continue
			}
			if into := bytes.Repeat([]byte{0xff}, other); s.CopyTo(into) || !bytes.Equal(into, make([]byte, other)) {
				t.Errorf("%d bytes are copied to %d: %x", n, other, into)
			}
		}
		s.Clear()
		if s.CopyTo(into) || !bytes.Equal(into, make([]byte, n)) {
			t.Errorf("%d bytes that were cleared: %x", n, into)
		}
	}
	if (*Shared)(nil).CopyTo(nil) {
		t.Error("nothing was copied")
	}
}

func TestSharedThatIsCleared(t *testing.T) {
	s := NewShared(counted(33))
	for range 2 {
		s.Clear()
		if b, ok := s.Copy(); ok || b != nil {
			t.Errorf("%d bytes were copied", len(b))
		}
	}
	for i := range s.words {
		if s.words[i].Load() != 0 {
			t.Errorf("word %d is left", i)
		}
	}
	var none *Shared
	none.Clear()
	if b, ok := none.Copy(); ok || b != nil {
		t.Error("nothing was copied")
	}
}

// While it is cleared, a copy is whole or is none.
func TestSharedIsClearedWhileItIsCopied(t *testing.T) {
	want := counted(1 << 16)
	for range 200 {
		s := NewShared(want)
		var wg sync.WaitGroup
		begun := make(chan struct{}, 4)
		for range 4 {
			wg.Go(func() {
				begun <- struct{}{}
				for {
					b, ok := s.Copy()
					if !ok {
						return
					}
					if !bytes.Equal(b, want) {
						t.Error("a copy that is not whole")
						return
					}
				}
			})
		}
		for range 4 {
			<-begun
		}
		s.Clear()
		wg.Wait()
	}
}

func TestSharedPrintsNothing(t *testing.T) {
	s := NewShared([]byte("a secret that is shared by many"))
	holder := struct{ S *Shared }{s}
	encoded, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	word := fmt.Sprint(s.words[0].Load())
	for _, text := range []string{
		fmt.Sprint(s), fmt.Sprintf("%+v", s), fmt.Sprintf("%#v", s), fmt.Sprintf("%s", s), fmt.Sprintf("%q", s),
		fmt.Sprintf("%x", s), fmt.Sprintf("%d", s), fmt.Sprintf("%v", holder), string(encoded),
	} {
		if strings.Contains(text, "secret") || strings.Contains(text, word) || strings.Contains(text, "612073656372") {
			t.Errorf("printed as %s", text)
		}
	}
}
