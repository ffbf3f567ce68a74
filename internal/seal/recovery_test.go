package seal

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"keyhold.example/keyhold/internal/secret"
)

// fixedIK is the same in every process that fuzzes.
func fixedIK() *IK {
	return newIK([16]byte{1, 2, 3}, secret.New(bytes.Repeat([]byte{7, 8}, 16)))
}

func TestRecoveryLineGivesTheKeyBack(t *testing.T) {
	for range 100 {
		ik, err := GenerateIK()
		if err != nil {
			t.Fatal(err)
		}
		line := ik.Recovery()
		got, err := ParseRecovery(line.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		if got.Inst() != ik.Inst() || got.KID() != ik.KID() || got.Pin() != ik.Pin() {
			t.Fatal("the line holds another key")
		}
		if again := got.Recovery(); !bytes.Equal(again.Reveal(), line.Reveal()) {
			t.Fatal("the line of the key that a line gave is another")
		}
	}
}

func TestRecoveryLineIsParsedAsItIsTyped(t *testing.T) {
	line := string(fixedIK().Recovery().Reveal())
	for _, text := range []string{line, line + "\n", line + "\r\n", "\t " + line + " \r\n\n", "\ufeff" + line + "\r\n", "\ufeff\n" + line} {
		before := []byte(text)
		ik, err := ParseRecovery(before)
		if err != nil {
			t.Errorf("%d characters around the line: %v", len(text)-len(line), err)
			continue
		}
		if ik.KID() != fixedIK().KID() || string(before) != text {
			t.Error("another key, or the caller's bytes were changed")
		}
	}
}

func TestParseRecoverySaysWhatIsWrong(t *testing.T) {
	line := string(fixedIK().Recovery().Reveal())
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"nothing":           {"", ErrNotRecovery},
		"white space":       {" \r\n", ErrNotRecovery},
		"a local root":      {"khr1_cl91j6n61c3cs", ErrNotRecovery},
		"a share":           {SharePrefix + line[5:], ErrNotRecovery},
		"a later version":   {"khi2_" + line[5:], ErrNotRecovery},
		"cut off":           {line[:len(line)-1], ErrNotRecovery},
		"too long":          {line + "0", ErrNotRecovery},
		"two lines":         {line + "\n" + line, ErrNotRecovery},
		"broken in two":     {line[:40] + "\r\n" + line[40:], ErrNotRecovery},
		"upper case":        {RecoveryPrefix + strings.ToUpper(line[5:]), ErrMistyped},
		"a letter beyond":   {line[:20] + "w" + line[21:], ErrMistyped},
		"bits at the end":   {line[:len(line)-1] + "1", ErrMistyped},
		"white space in it": {line[:20] + " " + line[21:], ErrMistyped},
	} {
		ik, err := ParseRecovery([]byte(c.text))
		if !errors.Is(err, c.want) || ik != nil {
			t.Errorf("%s: error is %v, want %v", name, err, c.want)
		}
		if oneLine := strings.Contains(fmt.Sprint(err), "one line"); oneLine != strings.Contains(strings.TrimSpace(c.text), "\n") {
			t.Errorf("%s: the error does not say that it has to be one line, or for no reason: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), line[10:14]) {
			t.Errorf("%s: the error repeats some of the line: %v", name, err)
		}
	}
}

func TestEveryMistypedCharacterIsFound(t *testing.T) {
	lines := map[string]func([]byte) error{
		string(fixedIK().Recovery().Reveal()):          func(b []byte) error { _, err := ParseRecovery(b); return err },
		string(shares(t, fixedIK(), 2, 3)[1].Reveal()): func(b []byte) error { _, err := parseShare(b); return err },
	}
	for line, parse := range lines {
		if err := parse([]byte(line)); err != nil {
			t.Fatal(err)
		}
		for i := range line {
			for c := range 256 {
				text := []byte(line)
				text[i] = byte(c)
				if string(text) == line {
					continue
				}
				err := parse(text)
				if i >= len(RecoveryPrefix) && i < len(line)-1 && strings.IndexByte(lineDigits, byte(c)) >= 0 {
					if !errors.Is(err, ErrMistyped) {
						t.Fatalf("character %d as %#x: %v", i, c, err)
					}
				} else if err == nil {
					t.Fatalf("character %d as %#x parses", i, c)
				}
			}
		}
	}
}

func TestAClosedKeyHasNoLine(t *testing.T) {
	for name, use := range map[string]func(*IK){
		"Recovery": func(ik *IK) { ik.Recovery() },
		"Shares":   func(ik *IK) { _, _ = ik.Shares(2, 3, splitKey) },
	} {
		ik := fixedIK()
		ik.Close()
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a closed key gives something", name)
				}
			}()
			use(ik)
		}()
	}
}

func FuzzParseRecovery(f *testing.F) {
	line := fixedIK().Recovery().Reveal()
	f.Add(line)
	f.Add(append([]byte("\ufeff "), line...))
	f.Add(line[:len(line)-1])
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		ik, err := ParseRecovery(b)
		if !bytes.Equal(before, b) {
			t.Fatal("parsing changed the line")
		}
		if err != nil {
			if ik != nil || !errors.Is(err, ErrNotRecovery) && !errors.Is(err, ErrMistyped) {
				t.Fatal(err)
			}
			return
		}
		if again := ik.Recovery().Reveal(); !bytes.Equal(trimmed(b), again) {
			t.Fatal("what parses is not the line of what it parsed as")
		}
	})
}

func FuzzParseShare(f *testing.F) {
	for _, line := range shares(f, fixedIK(), 2, 3) {
		f.Add(line.Reveal())
		f.Add(append(line.Reveal()[:30:30], '\n'))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseShare(b)
		if err != nil {
			if s != nil || !errors.Is(err, ErrNotShare) && !errors.Is(err, ErrMistyped) {
				t.Fatal(err)
			}
			return
		}
		if s.k < 2 || s.k > s.n || s.number() < 1 || s.number() > s.n {
			t.Fatalf("share %d of %d, %d needed", s.number(), s.n, s.k)
		}
		if again := s.line().Reveal(); !bytes.Equal(trimmed(b), again) {
			t.Fatal("what parses is not the line of what it parsed as")
		}
	})
}

// trimmed is b without what may stand around a line.
func trimmed(b []byte) []byte { return bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\ufeff"))) }
