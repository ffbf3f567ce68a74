package escrow_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"

	"keyhold.example/keyhold/cmd/keyhold/internal/escrow"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/vectors"
)

func TestAnyRecipientOpensARecoveryFile(t *testing.T) {
	for name, hybrid := range map[string]bool{"X25519": false, "hybrid": true} {
		a, b, stranger := newIdentity(t, hybrid), newIdentity(t, hybrid), newIdentity(t, hybrid)
		line := newLine(t)
		files := newEscrow(t, line, 0, a.recipient, b.recipient)
		if len(files) != 1 || filepath.Base(files[0]) != "recovery.age" {
			t.Fatalf("%s: files are %v", name, files)
		}
		opens(t, name+", the first", line, 0, files, a)
		opens(t, name+", the second among others", line, 0, files, stranger, b)
		got, err := open(files, stranger)
		refused(t, name+", a stranger", got, err, escrow.ErrIdentity)
		got, err = open(files)
		refused(t, name+", nobody", got, err, escrow.ErrIdentity)

		content, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(content), armor.Header+"\n") || !strings.HasSuffix(string(content), armor.Footer+"\n") {
			t.Errorf("%s: the file is not what age -a writes", name)
		}
		binary := filepath.Join(t.TempDir(), "binary.age")
		write(t, binary, string(dearmor(t, content)))
		opens(t, name+", not armored", line, 0, []string{binary}, a)
		write(t, binary, "\ufeff"+strings.ReplaceAll(string(content), "\n", "\r\n"))
		opens(t, name+", as an editor leaves it", line, 0, []string{binary}, a)
	}
}

func dearmor(t *testing.T, content []byte) []byte {
	t.Helper()
	b, err := io.ReadAll(armor.NewReader(bytes.NewReader(content)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEnoughCustodiansOpenShares(t *testing.T) {
	for _, c := range []struct{ k, n int }{{2, 2}, {2, 3}, {3, 5}} {
		ids, recipients := newIdentities(t, c.n)
		line := newLine(t)
		files := newEscrow(t, line, c.k, recipients...)
		for i, file := range files {
			if want := fmt.Sprintf("recovery-%d-of-%d.age", i+1, c.n); filepath.Base(file) != want {
				t.Errorf("file %d is %s, want %s", i+1, file, want)
			}
			got, err := open([]string{file}, ids[(i+1)%c.n])
			refused(t, "another custodian's identity", got, err, escrow.ErrIdentity)
		}
		for set := uint(1); set < 1<<c.n; set++ {
			var some []string
			for i, file := range files {
				if set&(1<<i) != 0 {
					some = append(some, file)
				}
			}
			what := fmt.Sprintf("%d of %d, shares %0*b", c.k, c.n, c.n, set)
			if given := bits.OnesCount(set); given < c.k {
				got, err := open(some, ids...)
				var few *seal.TooFewSharesError
				if !errors.As(err, &few) || *few != (seal.TooFewSharesError{Have: given, Need: c.k}) || got != nil {
					t.Errorf("%s: %v", what, err)
				}
			} else {
				opens(t, what, line, given, some, ids...)
			}
		}
	}
}

func TestFilesThatDoNotBelongTogetherAreRefused(t *testing.T) {
	ids, recipients := newIdentities(t, 3)
	line := newLine(t)
	one, two := newEscrow(t, line, 2, recipients...), newEscrow(t, line, 2, recipients...)
	three := newEscrow(t, line, 3, recipients...)
	foreign := newEscrow(t, newLine(t), 2, recipients...)
	whole := newEscrow(t, line, 0, ids[0].recipient)
	for name, c := range map[string]struct {
		files []string
		want  error
	}{
		"the same file twice":           {[]string{one[0], one[0]}, seal.ErrSameShare},
		"the same among enough":         {[]string{one[0], one[1], one[0]}, seal.ErrSameShare},
		"one number of two splits":      {[]string{one[0], two[0]}, seal.ErrMixed},
		"one too many of another split": {[]string{one[0], one[1], two[2]}, seal.ErrMixed},
		"another threshold":             {[]string{one[0], three[1]}, seal.ErrMixed},
		"another installation":          {[]string{one[0], foreign[1]}, seal.ErrMixed},
		"a recovery file and a share":   {[]string{whole[0], one[0]}, seal.ErrMixed},
		"a recovery file twice":         {[]string{whole[0], whole[0]}, seal.ErrMixed},
		"none":                          {nil, seal.ErrNotRecovery},
	} {
		got, err := open(c.files, ids...)
		refused(t, name, got, err, c.want)
	}
	got, err := open([]string{one[0], two[1]}, ids...)
	if err != nil || bytes.Equal(got.Line.Reveal(), line) || got.Shares != 2 {
		t.Errorf("the fewest shares of two splits give %v, want a line that its pin shows to be wrong", err)
	}
}

func TestAChangedFileDoesNotOpen(t *testing.T) {
	id := newIdentity(t, false)
	line := newLine(t)
	content, err := os.ReadFile(newEscrow(t, line, 0, id.recipient)[0])
	if err != nil {
		t.Fatal(err)
	}
	openChanged := func(changed []byte) (*escrow.Opened, error) {
		s := escrow.Source{Files: []string{"-"}, Stdin: bytes.NewReader(changed), Identities: []string{id.path}}
		return s.Open()
	}
	for name, original := range map[string][]byte{"armored": content, "binary": dearmor(t, content)} {
		for i := range original {
			for _, flip := range []byte{0x01, 0x20, 0x80} {
				changed := bytes.Clone(original)
				changed[i] ^= flip
				got, err := openChanged(changed)
				if err == nil && name == "armored" && i == len(original)-1 {
					continue // what follows the last line may be any white space
				}
				refused(t, fmt.Sprintf("%s, byte %d of %d changed by %#x", name, i, len(original), flip), got, err,
					escrow.ErrDamaged, escrow.ErrIdentity, seal.ErrNotRecovery)
			}
		}
		for n := range len(original) - 1 {
			got, err := openChanged(original[:n])
			refused(t, fmt.Sprintf("%s, cut off at %d", name, n), got, err, escrow.ErrDamaged, seal.ErrNotRecovery)
		}
	}
}

func TestAFileThatHoldsSomethingElseIsRefused(t *testing.T) {
	id := newIdentity(t, false)
	recipient, err := age.ParseX25519Recipient(id.recipient)
	if err != nil {
		t.Fatal(err)
	}
	line := string(newLine(t))
	for name, text := range map[string]string{
		"nothing": "", "two lines": line + "\n" + line + "\n", "another text": "hunter2", "long": strings.Repeat(line, 10),
		"a chunk": strings.Repeat("x", 1<<17), "filled up": line + strings.Repeat("\n", 256-len(line)),
	} {
		var b bytes.Buffer
		w, err := age.Encrypt(&b, recipient)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "other.age")
		write(t, path, b.String())
		got, err := open([]string{path}, id)
		refused(t, name, got, err, escrow.ErrDamaged)
	}
}

func TestTypedLinesAreReadFromFilesAndStandardInput(t *testing.T) {
	ik, err := seal.GenerateIK()
	if err != nil {
		t.Fatal(err)
	}
	line := string(ik.Recovery().Reveal())
	shares := typedShares(t, line)
	paper := filepath.Join(t.TempDir(), "paper.txt")
	write(t, paper, shares[2]+"\r\n")
	for name, c := range map[string]struct {
		stdin  string
		files  []string
		shares int
	}{
		"a recovery line":          {line + "\n", []string{"-"}, 0},
		"with what editors add":    {"\ufeff\r\n  " + line + " \r\n\r\n", []string{"-"}, 0},
		"shares":                   {shares[0] + "\n\n" + shares[1], []string{"-"}, 2},
		"a share here and a share": {shares[0], []string{"-", paper}, 2},
	} {
		s := escrow.Source{Files: c.files, Stdin: strings.NewReader(c.stdin)}
		got, err := s.Open()
		if err != nil || string(got.Line.Reveal()) != line || got.Shares != c.shares {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		stdin string
		want  error
	}{
		"nothing":                {"", seal.ErrNotRecovery},
		"another text":           {line + "\nhunter2", seal.ErrNotRecovery},
		"a line and its share":   {line + "\n" + shares[0], seal.ErrMixed},
		"a mistyped line":        {line[:20] + "w" + line[21:], seal.ErrMistyped},
		"a mistyped share":       {shares[0] + "\n" + shares[1][:20] + "w" + shares[1][21:], seal.ErrMistyped},
		"a share that is cut":    {shares[0] + "\n" + shares[1][:20], seal.ErrNotShare},
		"a line in two":          {line[:40] + "\n" + line[40:], seal.ErrNotRecovery},
		"more than a file holds": {strings.Repeat("\n", 1<<20) + line, escrow.ErrDamaged},
	} {
		s := escrow.Source{Files: []string{"-"}, Stdin: strings.NewReader(c.stdin)}
		got, err := s.Open()
		refused(t, name, got, err, c.want)
	}
	if _, err := open([]string{"-"}); err == nil {
		t.Error("a line is read from a standard input that is not there")
	}
}

// typedShares are three of which two are needed, as they stand on paper.
func typedShares(t *testing.T, line string) (shares []string) {
	t.Helper()
	lines, err := escrow.Split([]byte(line), 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		shares = append(shares, string(l.Reveal()))
	}
	return shares
}

func TestAnotherImplementationsSharesAreJoined(t *testing.T) {
	f, err := vectors.Parse(vectors.Format)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range f.Shares {
		var lines []secret.Bytes
		for _, l := range v.Lines {
			lines = append(lines, secret.New([]byte(l)))
		}
		line, err := escrow.Join(lines)
		if !v.Valid {
			if err == nil {
				t.Errorf("%s: they give a key", v.Note)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", v.Note, err)
			continue
		}
		ik, err := seal.ParseRecovery(line.Reveal())
		if err != nil || !bytes.Equal(ik.SlotPayload("", "").Reveal()[33:], v.IK) {
			t.Errorf("%s: they give another key, %v", v.Note, err)
		}
	}
}

// The files were written by the first version that wrote any.
func TestFilesOfTheFirstVersionOpen(t *testing.T) {
	needsAge(t)
	line, err := os.ReadFile("testdata/line.txt")
	if err != nil {
		t.Fatal(err)
	}
	line = bytes.TrimSpace(line)
	ids := []identity{{path: "testdata/identity-x25519.txt"}, {path: "testdata/identity-hybrid.txt"}}
	opens(t, "X25519", line, 0, []string{"testdata/x25519.age"}, ids...)
	opens(t, "hybrid", line, 0, []string{"testdata/hybrid.age"}, ids...)
	opens(t, "shares", line, 2, []string{"testdata/shares-1-of-2.age", "testdata/shares-2-of-2.age"}, ids...)
}

func TestIdentitiesCanBeSealedWithAPassphrase(t *testing.T) {
	id := newIdentity(t, true)
	text, err := os.ReadFile(id.path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.NewScryptRecipient("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	r.SetWorkFactor(10)
	var b bytes.Buffer
	w, err := age.Encrypt(&b, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sealed := filepath.Join(t.TempDir(), "identity.age")
	write(t, sealed, b.String())
	line := newLine(t)
	s := escrow.Source{Files: newEscrow(t, line, 0, id.recipient), Identities: []string{sealed}}

	got, err := s.Open()
	refused(t, "nobody to ask", got, err, escrow.ErrIdentity)
	for _, wrong := range []string{"wrong horse", ""} {
		s.Passphrase = passphrase(wrong)
		got, err = s.Open()
		refused(t, "another passphrase", got, err, escrow.ErrIdentity)
	}
	gone := errors.New("nobody answers")
	s.Passphrase = func(string) (secret.Bytes, error) { return secret.Bytes{}, gone }
	got, err = s.Open()
	refused(t, "no answer", got, err, gone)
	var asked string
	s.Passphrase = func(path string) (secret.Bytes, error) {
		asked = path
		return secret.New([]byte("correct horse")), nil
	}
	if got, err = s.Open(); err != nil || !bytes.Equal(got.Line.Reveal(), line) || asked != sealed {
		t.Errorf("asked for %s: %v", asked, err)
	}
}

func TestFilesThatAreNoIdentitiesAreRefused(t *testing.T) {
	id := newIdentity(t, false)
	text, err := os.ReadFile(id.path)
	if err != nil {
		t.Fatal(err)
	}
	files := newEscrow(t, newLine(t), 0, id.recipient)
	mistyped := bytes.Replace(text, []byte("AGE-SECRET-KEY-1"), []byte("AGE-SECRET-KEY-1B"), 1)
	for name, content := range map[string][]byte{
		"nothing": nil, "a comment": []byte("# none\n"), "a recipient": []byte(id.recipient), "mistyped": mistyped,
		"an SSH key": []byte("-----BEGIN OPENSSH PRIVATE KEY-----\n"), "too long": bytes.Repeat([]byte("#\n"), 1<<20),
	} {
		path := filepath.Join(t.TempDir(), "identity.txt")
		write(t, path, string(content))
		s := escrow.Source{Files: files, Identities: []string{id.path, path}}
		got, err := s.Open()
		refused(t, name, got, err, escrow.ErrIdentity, escrow.ErrDamaged)
	}
	s := escrow.Source{Files: files, Identities: []string{filepath.Join(t.TempDir(), "none")}}
	got, err := s.Open()
	refused(t, "no file", got, err, fs.ErrNotExist)
	got, err = open([]string{filepath.Join(t.TempDir(), "none")}, id)
	refused(t, "no recovery file", got, err, fs.ErrNotExist)
	if _, err = open([]string{t.TempDir()}, id); err == nil {
		t.Error("a folder opens")
	}
}

func TestAHugeFileIsNotRead(t *testing.T) {
	for name, begin := range map[string]string{"age": armor.Header + "\n", "binary": "age-encryption.org/v1\n", "lines": seal.RecoveryPrefix} {
		path := filepath.Join(t.TempDir(), "huge")
		write(t, path, begin)
		if err := os.Truncate(path, 1<<30); err != nil {
			t.Fatal(err)
		}
		for use, s := range map[string]escrow.Source{
			"recovery file": {Files: []string{path}},
			"identities":    {Files: []string{"testdata/x25519.age"}, Identities: []string{path}},
		} {
			if use == "identities" {
				needsAge(t)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := s.Open()
			runtime.ReadMemStats(&after)
			refused(t, name+" as "+use, got, err, escrow.ErrDamaged)
			if used := after.TotalAlloc - before.TotalAlloc; used > 8<<20 {
				t.Errorf("%s as %s: took %d bytes of memory", name, use, used)
			}
		}
	}
}
