package secret_test

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"keyhold.example/keyhold/internal/secret"
)

const text = "correct horse"

// forms are the ways in which printed bytes would show.
func forms() []string {
	b := []byte(text)
	numbers := strings.Trim(fmt.Sprint(b), "[]")
	return []string{
		text, hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), base64.StdEncoding.EncodeToString(b),
		numbers[:12], strings.ReplaceAll(numbers, " ", ", ")[:12], "0x63, 0x6f", "0x636f", "63 6f", "1100011 1101111", "143 157",
	}
}

func noneIn(t *testing.T, how, printed string) {
	t.Helper()
	for _, form := range forms() {
		if strings.Contains(printed, form) {
			t.Errorf("%s shows the secret: %s", how, printed)
		}
	}
}

type holder struct {
	Public  secret.Bytes
	private secret.Bytes
	Pointer *secret.Bytes
	List    []secret.Bytes
	Map     map[string]secret.Bytes
	Any     any
}

func TestNoVerbShowsTheBytes(t *testing.T) {
	s := secret.New([]byte(text))
	h := holder{Public: s, private: s, Pointer: &s, List: []secret.Bytes{s}, Map: map[string]secret.Bytes{"k": s}, Any: s}
	for _, verb := range []string{
		"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#x", "%d", "%o", "%b", "%c", "%U", "%e", "%t", "%p", "%z", "%10.3s",
	} {
		if got := fmt.Sprintf(verb, s); got != secret.Redacted && verb != "%p" {
			t.Errorf("%s prints %q, want %q", verb, got, secret.Redacted)
		}
		for _, v := range []any{s, &s, h, &h, []any{h}} {
			noneIn(t, verb, fmt.Sprintf(verb, v))
		}
	}
	noneIn(t, "Println", fmt.Sprintln(s, h, &h))
	noneIn(t, "an error", fmt.Errorf("key %s: %v", s, h).Error())
}

func TestNothingMarshalsTheBytes(t *testing.T) {
	s := secret.New([]byte(text))
	h := holder{Public: s, private: s, Pointer: &s, List: []secret.Bytes{s}, Map: map[string]secret.Bytes{"k": s}, Any: s}

	printed, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	noneIn(t, "json", string(printed))
	if want := `"Public":"[redacted]"`; !strings.Contains(string(printed), want) {
		t.Errorf("json is %s, want %s in it", printed, want)
	}
	if printed, err = xml.Marshal(s); err != nil {
		t.Fatal(err)
	}
	noneIn(t, "xml", string(printed))

	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(struct{ S secret.Bytes }{s}); err != nil {
		t.Fatal(err)
	}
	noneIn(t, "gob", buf.String())

	for name, handler := range map[string]slog.Handler{
		"slog text": slog.NewTextHandler(&buf, nil), "slog json": slog.NewJSONHandler(&buf, nil),
	} {
		buf.Reset()
		slog.New(handler).Info("made", "key", s, "holder", h, "pointer", &h, slog.Group("g", "key", s))
		noneIn(t, name, buf.String())
		if !strings.Contains(buf.String(), secret.Redacted) {
			t.Errorf("%s does not say that something is redacted: %s", name, buf.String())
		}
	}
}

func TestPanicDoesNotShowTheBytes(t *testing.T) {
	s := secret.New([]byte(text))
	defer func() { noneIn(t, "a panic", fmt.Sprint(recover())) }()
	panic(fmt.Sprintf("%v %#v", s, holder{private: s}))
}

func TestClearOverwritesForAllHandles(t *testing.T) {
	b := []byte(text)
	s := secret.New(b)
	other := s
	if got := other.Reveal(); &got[0] != &b[0] || other.Len() != len(text) {
		t.Fatal("a copy of the handle does not share the bytes")
	}
	s.Clear()
	if !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("the bytes were not overwritten")
	}
	if other.Reveal() != nil || other.Len() != 0 {
		t.Error("another handle still reveals something")
	}
	other.Clear()
}

func TestZeroValueHoldsNothing(t *testing.T) {
	var s secret.Bytes
	s.Clear()
	if s.Reveal() != nil || s.Len() != 0 || fmt.Sprint(s) != secret.Redacted {
		t.Errorf("zero value: %v, %d bytes", s, s.Len())
	}
}
