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
