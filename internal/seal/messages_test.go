package seal

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// form is one of the two forms of a message.
type form struct {
	name     string
	overhead int
	seal     func(m *MessageKey, dst, plaintext []byte, context string) ([]byte, error)
	open     func(m *MessageKey, dst, ciphertext []byte, context string) ([]byte, error)
}

var forms = []form{
	{"attached", 58, sealWith((*MessageKey).Seal), openWith((*MessageKey).Open)},
	{"detached", 42, sealWith((*MessageKey).SealDetached), openWith((*MessageKey).OpenDetached)},
}

// testTime is the time by a clock that follows that of a bubble.
func testTime() time.Duration { return time.Duration(time.Now().UnixNano()) }

func sealWith(
	seal func(*MessageKey, []byte, []byte, *envelope.Parts, time.Duration) ([]byte, error),
) func(m *MessageKey, dst, plaintext []byte, context string) ([]byte, error) {
	return func(m *MessageKey, dst, plaintext []byte, context string) ([]byte, error) {
		c := envelope.WholeContext(context)
		return seal(m, dst, plaintext, &c, testTime())
	}
}

func openWith(
	open func(*MessageKey, []byte, []byte, *envelope.Parts) ([]byte, error),
) func(m *MessageKey, dst, ciphertext []byte, context string) ([]byte, error) {
	return func(m *MessageKey, dst, ciphertext []byte, context string) ([]byte, error) {
		c := envelope.WholeContext(context)
		return open(m, dst, ciphertext, &c)
	}
}

// aadOf is the AAD of a message.
func aadOf(m *MessageKey, context string) []byte {
	c := envelope.WholeContext(context)
	return envelope.AppendMessageAAD(nil, key.Message, &m.kid, &c)
}

func (f form) mustSeal(tb testing.TB, m *MessageKey, plaintext []byte, context string) []byte {
	tb.Helper()
	b, err := f.seal(m, nil, plaintext, context)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestMessagesOfEverySizeOpen(t *testing.T) {
	m := testMessageKey(t)
	buf := Random(envelope.MaxPlaintext).Reveal()
	sizes := []int{1 << 20, envelope.MaxPlaintext}
	for n := range 4097 {
		sizes = append(sizes, n)
	}
	for _, f := range forms {
		for _, n := range sizes {
			context := strings.Repeat("c", n%300)
			sealed := f.mustSeal(t, m, buf[:n], context)
			if len(sealed) != n+f.overhead {
				t.Fatalf("%s: %d bytes become %d", f.name, n, len(sealed))
			}
			got, err := f.open(m, nil, sealed, context)
			if err != nil || !bytes.Equal(got, buf[:n]) {
				t.Fatalf("%s: %d bytes do not open: %v", f.name, n, err)
			}
		}
	}
}

func TestLimitsOfMessages(t *testing.T) {
	m := testMessageKey(t)
	large := make([]byte, envelope.MaxPlaintext+1)
	long := strings.Repeat("c", envelope.MaxContext+1)
	for _, f := range forms {
		var tooLarge *envelope.TooLargeError
		if _, err := f.seal(m, nil, large, ""); !errors.As(err, &tooLarge) || tooLarge.What != "plaintext" {
			t.Errorf("%s of a large plaintext: %v", f.name, err)
		}
		if _, err := f.seal(m, nil, nil, long); !errors.As(err, &tooLarge) || tooLarge.What != "context" {
			t.Errorf("%s of a long context: %v", f.name, err)
		}
		sealed := f.mustSeal(t, m, nil, long[1:])
		if _, err := f.open(m, nil, sealed, long[1:]); err != nil {
			t.Errorf("%s with the longest context: %v", f.name, err)
		}
		if _, err := f.open(m, nil, sealed, long); !isErrOpen(err) {
			t.Errorf("%s with a longer context: %v", f.name, err)
		}
		// Sealed rightly, but by somebody who knows of no limit.
		sealed = m.xaes.Seal(sealed[:f.overhead-40], large, aadOf(m, ""))
		if _, err := f.open(m, nil, sealed, ""); !isErrOpen(err) {
			t.Errorf("%s of a large ciphertext: %v", f.name, err)
		}
	}
}

func TestSealAndOpenInPlace(t *testing.T) {
	m := testMessageKey(t)
	for _, f := range forms {
		for _, n := range []int{0, 1, 15, 16, 29, 30, 31, 100, 1000} {
			plaintext := Random(n).Reveal()
			for _, room := range []int{0, f.overhead} {
				buf := make([]byte, n, n+room)
				copy(buf, plaintext)
				sealed, err := f.seal(m, buf[:0], buf, "context")
				if err != nil {
					t.Fatal(err)
				}
				if room > 0 && &sealed[0] != &buf[:1][0] {
					t.Errorf("%s of %d bytes: not in place", f.name, n)
				}
				got, err := f.open(m, sealed[:0], sealed, "context")
				if err != nil || !bytes.Equal(got, plaintext) {
					t.Fatalf("%s of %d bytes with %d bytes of room: %v", f.name, n, room, err)
				}
				if n > 0 && &got[0] != &sealed[0] {
					t.Errorf("%s of %d bytes: not opened in place", f.name, n)
				}
				if rest := sealed[n:]; !bytes.Equal(rest, make([]byte, len(rest))) {
					t.Errorf("%s of %d bytes: after the plaintext %x is left", f.name, n, rest)
				}
			}
		}
	}
}

func TestSealAndOpenAppend(t *testing.T) {
	m := testMessageKey(t)
	for _, f := range forms {
		for _, room := range []int{0, 10, 1000} {
			dst := append(make([]byte, 0, 6+room), "before"...)
			sealed, err := f.seal(m, dst, []byte("text"), "context")
			if err != nil || !bytes.HasPrefix(sealed, []byte("before")) {
				t.Fatalf("%s: %q, %v", f.name, sealed, err)
			}
			got, err := f.open(m, dst, bytes.Clone(sealed[6:]), "context")
			if err != nil || string(got) != "beforetext" {
				t.Errorf("%s with room for %d: %q, %v", f.name, room, got, err)
			}
		}
		buf := []byte("before text")
		sealed, err := f.seal(m, buf[:7], buf[7:], "")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.open(m, nil, sealed[7:], ""); err != nil || string(got) != "text" {
			t.Errorf("%s after what is before it: %q, %v", f.name, got, err)
		}
	}
}

// Of a plaintext that overlaps in any other way, nothing may be sealed wrongly: it is a panic, as with cipher.AEAD.
func TestInexactOverlapPanicsOrSealsRight(t *testing.T) {
	m := testMessageKey(t)
	for _, f := range forms {
		for shift := 1; shift < 120; shift++ {
			buf := Random(400).Reveal()
			want := bytes.Clone(buf[shift : shift+60])
			func() {
				defer func() { _ = recover() }()
				sealed, err := f.seal(m, buf[:0], buf[shift:shift+60], "")
				if err != nil {
					t.Error(err)
				}
				if got, err := f.open(m, nil, sealed, ""); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, shifted by %d: sealed something else", f.name, shift)
				}
			}()
		}
	}
}

func TestMessageOpensWithItsKeyAndFormAlone(t *testing.T) {
	m, other := testMessageKey(t), testMessageKey(t)
	attached := forms[0].mustSeal(t, m, []byte("text"), "context")
	detached := forms[1].mustSeal(t, m, []byte("text"), "context")
	for name, open := range map[string]func() ([]byte, error){
		"another key":           func() ([]byte, error) { return forms[0].open(other, nil, attached, "context") },
		"another key, detached": func() ([]byte, error) { return forms[1].open(other, nil, detached, "context") },
		"attached as detached":  func() ([]byte, error) { return forms[1].open(m, nil, attached, "context") },
		"detached as attached":  func() ([]byte, error) { return forms[0].open(m, nil, detached, "context") },
		"another context":       func() ([]byte, error) { return forms[0].open(m, nil, attached, "context ") },
		"no context":            func() ([]byte, error) { return forms[0].open(m, nil, attached, "") },
	} {
		if _, err := open(); !isErrOpen(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The AAD has the attached form's first byte in both, so either form can be made of the other.
	kid := m.KID()
	attached = append(append([]byte{0xE1, 1}, kid[:]...), detached[2:]...)
	if got, err := forms[0].open(m, nil, attached, "context"); err != nil || string(got) != "text" {
		t.Errorf("detached with the key id put in: %q, %v", got, err)
	}
}

func TestFailedOpenInPlaceLeavesNoPlaintext(t *testing.T) {
	m := testMessageKey(t)
	plaintext := bytes.Repeat([]byte("plaintext "), 20)
	sealed := forms[0].mustSeal(t, m, plaintext, "")
	sealed[len(sealed)-1] ^= 1
	if _, err := forms[0].open(m, sealed[:0], sealed, ""); !isErrOpen(err) {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, plaintext[:10]) {
		t.Error("the plaintext of a changed message is in the buffer")
	}
}

func TestOnlyKeysForMessagesSeal(t *testing.T) {
	for _, k := range []*Key{newTestKey(t, key.Raw), newTestKey(t, key.BlindIndex), newTestKey(t, key.Imported)} {
		if _, err := k.Messages(); !invalid(err) {
			t.Errorf("%v: %v", k.Identity(), err)
		}
	}
}
