package roots

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
)

// mood is what is wrong with a stand-in of a vendor.
type mood int

const (
	well mood = iota
	disabled
	denied
	unknownKey
	badCredentials
	throttled
	hung      // answers nothing until the caller goes away
	broken    // an answer that says nothing
	otherText // opens everything as something else
)

// fake is what stand-ins have in common: keys with versions, which "seal" by writing their name in front.
type fake struct {
	mu       sync.Mutex
	mood     mood
	version  int
	key      string // the name of the key that the vendor uses
	sealed   []byte // what it was asked to seal last
	calls    []string
	asked    string        // the key that it was asked to seal with last, where that stands in the call
	gone     chan struct{} // gets a value when a caller went away
	released chan struct{}
}

func newFake(key string) *fake {
	return &fake{version: 1, key: key, gone: make(chan struct{}, 100), released: make(chan struct{})}
}

func (k *fake) is() mood {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mood
}

func (k *fake) becomes(m mood) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mood = m
}

func (k *fake) rotate() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.version++
}

func (k *fake) newest() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.version
}

// called notes a call, and holds it up while the stand-in is hung.
func (k *fake) called(name string, r *http.Request) {
	k.mu.Lock()
	k.calls = append(k.calls, name)
	wait := k.mood == hung
	k.mu.Unlock()
	if wait {
		select {
		case <-r.Context().Done():
		case <-k.released:
		}
		k.gone <- struct{}{}
	}
}

func (k *fake) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.calls)
}

func (k *fake) seal(plaintext []byte) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sealed = bytes.Clone(plaintext)
	out := []byte(fmt.Sprintf("%s|%d|", k.key, k.version))
	for _, b := range plaintext {
		out = append(out, b^0x5a)
	}
	return out
}

// open opens what seal returned, for the key that is asked for; empty: for any.
func (k *fake) open(ciphertext []byte, key string) (plaintext []byte, sealedBy string, ok bool) {
	part := bytes.SplitN(ciphertext, []byte("|"), 3)
	if len(part) != 3 || key != "" && key != string(part[0]) {
		return nil, "", false
	}
	for _, b := range part[2] {
		plaintext = append(plaintext, b^0x5a)
	}
	if k.is() == otherText {
		plaintext = bytes.Repeat([]byte{7}, len(plaintext))
	}
	return plaintext, string(part[0]), true
}

// secrets are what no message may have any of: all that stands in for a credential here has this in it.
const secretText = "SeCrEt"

func oneSentence(err error) bool {
	return err != nil && !strings.Contains(err.Error(), "\n") && !strings.Contains(err.Error(), secretText) && len(err.Error()) < 400
}
