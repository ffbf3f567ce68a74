package envelope_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

type tuple struct {
	Label  string
	Fields [][]byte
}

// tuples draws tuples of few and short fields, so that those of equal concatenation are frequent.
func tuples() *rapid.Generator[tuple] {
	return rapid.Custom(func(t *rapid.T) tuple {
		short := rapid.SliceOfN(rapid.ByteRange(0, 2), 0, 3)
		return tuple{
			Label:  string(short.Draw(t, "label")),
			Fields: rapid.SliceOfN(short, 0, 4).Draw(t, "fields"),
		}
	})
}

func TestTupleIsInjective(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := tuples().Draw(t, "a"), tuples().Draw(t, "b")
		same := a.Label == b.Label && len(a.Fields) == len(b.Fields)
		for i := 0; same && i < len(a.Fields); i++ {
			same = bytes.Equal(a.Fields[i], b.Fields[i])
		}
		if got := bytes.Equal(envelope.Tuple(a.Label, a.Fields...), envelope.Tuple(b.Label, b.Fields...)); got != same {
			t.Fatalf("encodings equal: %v, tuples equal: %v", got, same)
		}
	})
}

func TestParseTupleReadsWhatTupleWrote(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := tuples().Draw(t, "tuple")
		after := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "after")
		encoded := envelope.Tuple(want.Label, want.Fields...)
		label, fields, rest, err := envelope.ParseTuple(append(bytes.Clone(encoded), after...))
		if err != nil {
			t.Fatal(err)
		}
		if label != want.Label || len(fields) != len(want.Fields) || !bytes.Equal(rest, after) {
			t.Fatalf("parsed %q with %d fields and %x after it", label, len(fields), rest)
		}
		if again := envelope.Tuple(label, fields...); !bytes.Equal(again, encoded) {
			t.Fatalf("encodes again to %x, want %x", again, encoded)
		}
		for n := range encoded {
			if _, _, _, err := envelope.ParseTuple(encoded[:n]); !errors.Is(err, envelope.ErrMalformed) {
				t.Fatalf("the first %d of %d bytes parse: %v", n, len(encoded), err)
			}
		}
	})
}

func TestTupleLimits(t *testing.T) {
	if got := len(envelope.Tuple(strings.Repeat("l", 255), make([][]byte, 255)...)); got != 1+255+1+255*4 {
		t.Errorf("the largest tuple of empty fields has %d bytes", got)
	}
	for name, make := range map[string]func(){
		"label":  func() { envelope.Tuple(strings.Repeat("l", 256)) },
		"fields": func() { envelope.Tuple("l", make([][]byte, 256)...) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("256 of %s do not panic", name)
				}
			}()
			make()
		}()
	}
}

func FuzzParseTuple(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(envelope.Tuple("kh1/x"))
	f.Add(envelope.Tuple("v", envelope.U64(7), envelope.U8(2), []byte("text")))
	f.Add(envelope.Manifest{Kind: key.DEK, Policy: envelope.Policy{Generator: "aes128-random"}}.Append(nil))
	f.Add(envelope.NameManifest{RootKeyID: "krk_a", Purpose: "p", Seq: 2, Last: 3, Removed: true}.Append(nil))
	f.Add([]byte{1, 'v', 255, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		label, fields, rest, err := envelope.ParseTuple(b)
		if err != nil {
			if !errors.Is(err, envelope.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := append(envelope.Tuple(label, fields...), rest...); !bytes.Equal(again, b) {
			t.Errorf("%x encodes again to %x", b, again)
		}
	})
}

func TestContextOfParts(t *testing.T) {
	const begins = "\x0bkh1/context"
	long := strings.Repeat("x", envelope.MaxContext)
	for name, c := range map[string]struct {
		parts  []string
		want   string
		refuse bool
	}{
		"none":                      {nil, "", false},
		"one is its bytes":          {[]string{"users/42"}, "users/42", false},
		"one empty":                 {[]string{""}, "", false},
		"one of any bytes":          {[]string{"\x00\xff"}, "\x00\xff", false},
		"one of the limit":          {[]string{long}, long, false},
		"one beyond the limit":      {[]string{long + "x"}, "", true},
		"one like several":          {[]string{begins + "\x02"}, "", true},
		"one that only begins so":   {[]string{begins}, "", true},
		"one that nearly begins so": {[]string{begins[:11]}, begins[:11], false},
		"two":                       {[]string{"ab", ""}, begins + "\x02\x00\x00\x00\x02ab\x00\x00\x00\x00", false},
		"two like several":          {[]string{begins, ""}, begins + "\x02\x00\x00\x00\x0c" + begins + "\x00\x00\x00\x00", false},
		"two beyond the limit":      {[]string{long, ""}, "", true},
		"255":                       {make([]string, 255), begins + "\xff" + strings.Repeat("\x00", 255*4), false},
		"256":                       {make([]string, 256), "", true},
	} {
		got, err := envelope.Context(c.parts...)
		if (err != nil) != c.refuse {
			t.Errorf("%s: error %v", name, err)
		}
		if err == nil && got != c.want {
			t.Errorf("%s: got %.80q, want %.80q", name, got, c.want)
		}
		p, again := envelope.PartsOf(c.parts...)
		if cmp.Diff(err, again) != "" || err != nil && p != (envelope.Parts{}) {
			t.Errorf("%s: in parts error %v, want %v", name, again, err)
		}
		if b := p.Append([]byte("before")); err == nil && (string(b) != "before"+c.want || p.Len() != len(c.want)) {
			t.Errorf("%s: in parts %d bytes, %.80q, want %.80q", name, p.Len(), b, c.want)
		}
	}
}

// However many parts there are, they are encoded as the tuple that they are, also when the slice that they came in has
// others by then.
func TestPartsAreEncodedWhereTheyAreNeeded(t *testing.T) {
	for n := range 9 {
		parts, fields := make([]string, n), make([][]byte, n)
		for i := range parts {
			parts[i] = strings.Repeat("p", i*50)
			fields[i] = []byte(parts[i])
		}
		p, err := envelope.PartsOf(parts...)
		if err != nil {
			t.Fatal(err)
		}
		for i := range parts {
			parts[i] = "another"
		}
		want := envelope.Tuple("kh1/context", fields...)
		switch n {
		case 0:
			want = nil
		case 1:
			want = fields[0]
		}
		if got := p.Append(nil); !bytes.Equal(got, want) || p.Len() != len(want) {
			t.Errorf("%d parts: %d bytes, %.60x, want %.60x", n, p.Len(), got, want)
		}
		whole := envelope.WholeContext(string(want))
		if got := whole.Append(nil); !bytes.Equal(got, want) || whole.Len() != len(want) {
			t.Errorf("%d parts as bytes: %.60x, want %.60x", n, got, want)
		}
	}
	if p := envelope.WholeContext(strings.Repeat("x", envelope.MaxContext+1)); p.Len() != envelope.MaxContext+1 {
		t.Errorf("too long a context has %d bytes", p.Len())
	}
	var none envelope.Parts
	if none.Len() != 0 || none.Append(nil) != nil {
		t.Error("the zero value is not the empty context")
	}
}

func TestContextErrorsSayWhichLimit(t *testing.T) {
	_, err := envelope.Context(strings.Repeat("x", envelope.MaxContext+1))
	want := &envelope.TooLargeError{What: "context", Size: envelope.MaxContext + 1, Limit: envelope.MaxContext}
	if got := (*envelope.TooLargeError)(nil); !errors.As(err, &got) || cmp.Diff(want, got) != "" {
		t.Errorf("error is %v, want %v", err, want)
	}
	_, err = envelope.Context("\x0bkh1/context")
	if got := (*envelope.ContextError)(nil); !errors.As(err, &got) {
		t.Errorf("error is %v, want a *ContextError", err)
	}
}

func TestContextsOfDifferentPartsDiffer(t *testing.T) {
	parts := rapid.SliceOfN(rapid.SliceOfN(rapid.ByteRange(0, 2), 0, 3), 1, 4)
	text := func(parts [][]byte) []string {
		var s []string
		for _, p := range parts {
			s = append(s, string(p))
		}
		return s
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := text(parts.Draw(t, "a")), text(parts.Draw(t, "b"))
		ca, errA := envelope.Context(a...)
		cb, errB := envelope.Context(b...)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if (ca == cb) != cmp.Equal(a, b) {
			t.Fatalf("%q and %q: contexts equal: %v", a, b, ca == cb)
		}
	})
}

func TestParseMessage(t *testing.T) {
	kid := key.KID{1, 2, 3}
	body := bytes.Repeat([]byte{9}, envelope.NonceSize+envelope.TagSize+1)
	attached := make([]byte, envelope.AttachedHeader)
	envelope.PutAttachedHeader(attached, key.Message, &kid)
	attached = append(attached, body...)
	detached := make([]byte, envelope.DetachedHeader)
	envelope.PutDetachedHeader(detached, key.Message)
	detached = append(detached, body...)

	for _, c := range []struct {
		b    []byte
		want envelope.Message
	}{
		{attached, envelope.Message{Attached: true, Alg: key.Message, KID: kid, Sealed: body}},
		{detached, envelope.Message{Alg: key.Message, Sealed: body}},
	} {
		got, err := envelope.ParseMessage(c.b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%x (-want +got):\n%s", c.b, diff)
		}
		other := kid
		other[15]++
		for _, its := range []*key.KID{&kid, &other} {
			sealed, ok := envelope.SealedAttached(c.b, its)
			if ok != (c.want.Attached && its == &kid) || ok && !bytes.Equal(sealed, body) {
				t.Errorf("%x: sealed is %x, %v", c.b, sealed, ok)
			}
		}
		if sealed, ok := envelope.SealedDetached(c.b); ok == c.want.Attached || ok && !bytes.Equal(sealed, body) {
			t.Errorf("%x: sealed is %x, %v", c.b, sealed, ok)
		}
		for first := range 256 {
			b := bytes.Clone(c.b)
			b[0] = byte(first)
			ok := first == 0xE1 && len(b) >= envelope.AttachedOverhead || first == 0xE2
			if _, err := envelope.ParseMessage(b); (err == nil) != ok {
				t.Errorf("first byte %#x: %v", first, err)
			}
			b[0], b[1] = c.b[0], byte(first)
			if _, err := envelope.ParseMessage(b); (err == nil) != (first == 1) {
				t.Errorf("algorithm %#x: %v", first, err)
			}
		}
		shortest := len(c.b) - 1
		if _, err := envelope.ParseMessage(c.b[:shortest]); err != nil {
			t.Errorf("the message of nothing: %v", err)
		}
		for n := range shortest {
			if _, err := envelope.ParseMessage(c.b[:n]); !errors.Is(err, envelope.ErrMalformed) {
				t.Errorf("%d bytes: error %v", n, err)
			}
		}
	}
}

func TestMessageAADIsATuple(t *testing.T) {
	kid, context := key.KID{5, 6}, strings.Repeat("c", 70000)
	for _, context := range []string{"", "users/42", context[:envelope.MaxContext]} {
		header := make([]byte, envelope.AttachedHeader)
		envelope.PutAttachedHeader(header, key.Message, &kid)
		want := envelope.Tuple("kh1/msg", header, []byte(context))
		parts := envelope.WholeContext(context)
		for _, room := range []int{0, 10, 100_000} {
			before := append(make([]byte, 0, room), "before"...)
			got := envelope.AppendMessageAAD(before, key.Message, &kid, &parts)
			if !bytes.Equal(got[:6], before) || !bytes.Equal(got[6:], want) {
				t.Errorf("AAD with a context of %d bytes is %.60x, want %.60x", len(context), got, want)
			}
		}
	}
}

func TestParseWrapped(t *testing.T) {
	for n, ok := range map[int]bool{0: false, 1: false, 72: false, 73: true, 74: true, 1097: true, 1098: false} {
		blob := make([]byte, n)
		if n > 0 {
			blob[0] = 1
		}
		sealed, err := envelope.ParseWrapped(blob)
		if (err == nil) != ok || ok && len(sealed) != n-1 {
			t.Errorf("%d bytes: %d bytes are sealed, error %v", n, len(sealed), err)
		}
	}
	for _, first := range []byte{0, 2, 3, 0xE1} {
		if _, err := envelope.ParseWrapped(append([]byte{first}, make([]byte, 72)...)); !errors.Is(err, envelope.ErrMalformed) {
			t.Errorf("first byte %d: %v", first, err)
		}
	}
}

func TestSlotPayload(t *testing.T) {
	binding, ik := [32]byte{1, 2}, bytes.Repeat([]byte{7}, 32)
	payload := envelope.AppendSlotPayload(nil, binding, ik)
	gotBinding, gotIK, err := envelope.ParseSlotPayload(payload)
	if err != nil || gotBinding != binding || !bytes.Equal(gotIK, ik) || len(payload) != 65 {
		t.Errorf("%d bytes parse as %x, %x, %v", len(payload), gotBinding, gotIK, err)
	}
	for _, bad := range [][]byte{nil, payload[:64], append(bytes.Clone(payload), 0), append([]byte{1}, payload[1:]...)} {
		if _, _, err := envelope.ParseSlotPayload(bad); !errors.Is(err, envelope.ErrMalformed) {
			t.Errorf("%d bytes that begin with %.1x parse: %v", len(bad), bad, err)
		}
	}
}
