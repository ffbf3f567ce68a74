package localroot_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
)

// line is a local root that protects nothing.
const line = "khr1_cl91j6n61c3csin486pk0uq4bmtuc37l1pdbafn82o6v04lu0p54a2hh4og4ekej97aem2o"

func mustParse(t *testing.T, text string) *localroot.Root {
	t.Helper()
	root, err := localroot.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func generate(t *testing.T) (root *localroot.Root, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "root.key")
	root, err := localroot.Generate(path)
	if err != nil {
		t.Fatal(err)
	}
	return root, path
}

func TestParseIgnoresWhiteSpaceAround(t *testing.T) {
	for _, text := range []string{line, line + "\n", "\t " + line + " \r\n\n"} {
		if got := mustParse(t, text).String(); got != "local root khr_cl91j6n61c3cs" {
			t.Errorf("%q is %s", text, got)
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"nothing":           {"", localroot.ErrNotLocalRoot},
		"white space":       {" \n", localroot.ErrNotLocalRoot},
		"something else":    {"AGE-SECRET-KEY-1", localroot.ErrNotLocalRoot},
		"the root's id":     {"khr_cl91j6n61c3cs", localroot.ErrNotLocalRoot},
		"a later version":   {"khr2_" + line[5:], localroot.ErrNotLocalRoot},
		"cut off":           {line[:len(line)-1], localroot.ErrNotLocalRoot},
		"too long":          {line + "0", localroot.ErrNotLocalRoot},
		"two lines":         {line + "\n" + line, localroot.ErrNotLocalRoot},
		"upper case":        {"khr1_" + strings.ToUpper(line[5:]), localroot.ErrMistyped},
		"a letter beyond":   {line[:20] + "z" + line[21:], localroot.ErrMistyped},
		"bits at the end":   {line[:len(line)-1] + "p", localroot.ErrMistyped},
		"letters swapped":   {line[:10] + line[11:12] + line[10:11] + line[12:], localroot.ErrMistyped},
		"white space in it": {line[:20] + " " + line[21:], localroot.ErrMistyped},
	} {
		if _, err := localroot.Parse(c.text); !errors.Is(err, c.want) {
			t.Errorf("%s: error is %v, want %v", name, err, c.want)
		}
	}
}

func TestEveryMistypedCharacterIsFound(t *testing.T) {
	const alphabet = "0123456789abcdefghijklmnopqrstuv"
	for i := len("khr1_"); i < len(line); i++ {
		for _, c := range alphabet {
			if byte(c) == line[i] {
				continue
			}
			if _, err := localroot.Parse(line[:i] + string(c) + line[i+1:]); !errors.Is(err, localroot.ErrMistyped) {
				t.Fatalf("character %d as %c: error is %v", i, c, err)
			}
		}
	}
}

func TestGenerateMakesFileForItsOwnerAlone(t *testing.T) {
	root, path := generate(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode().Perm())
	}
	opened, err := localroot.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if opened.String() != root.String() {
		t.Errorf("the file holds %v, Generate returned %v", opened, root)
	}
	blob, err := root.Encrypt(t.Context(), []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := opened.Decrypt(t.Context(), blob); err != nil || string(got) != "text" {
		t.Errorf("what Generate returned seals, and the file opens %q, %v", got, err)
	}
	other, _ := generate(t)
	if other.String() == root.String() {
		t.Error("two roots have the same id")
	}
}

func TestGenerateNeverOverwrites(t *testing.T) {
	_, path := generate(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := localroot.Generate(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("error is %v, want os.ErrExist", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file changed, %v", err)
	}
	link := filepath.Join(filepath.Dir(path), "link")
	if err := os.Symlink(filepath.Join(filepath.Dir(path), "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	if _, err := localroot.Generate(link); !errors.Is(err, os.ErrExist) {
		t.Errorf("through a symbolic link: error is %v, want os.ErrExist", err)
	}
	if _, err := localroot.Generate(filepath.Join(filepath.Dir(path), "no", "folder")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in no folder: error is %v, want os.ErrNotExist", err)
	}
}

func TestOpenSaysWhichFile(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.key")
	if _, err := localroot.Open(missing); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing: %v", err)
	}
	if _, err := localroot.Open(dir); err == nil {
		t.Error("a folder opens")
	}
	wrong := filepath.Join(dir, "wrong.key")
	for _, content := range []string{"", "not a key\n", line[:40] + "\n", line + "\n" + line, strings.Repeat("x", 1<<20)} {
		if err := os.WriteFile(wrong, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := localroot.Open(wrong)
		if !errors.Is(err, localroot.ErrNotLocalRoot) || !strings.Contains(err.Error(), wrong) {
			t.Errorf("%.20q: %v", content, err)
		}
	}
}

func TestFromEnv(t *testing.T) {
	const name = "KEYHOLD_TEST_ROOT"
	if _, err := localroot.FromEnv(name); !errors.Is(err, localroot.ErrUnset) || !strings.Contains(err.Error(), name) {
		t.Errorf("unset: %v", err)
	}
	t.Setenv(name, line)
	if root, err := localroot.FromEnv(name); err != nil || root.String() != "local root khr_cl91j6n61c3cs" {
		t.Errorf("%v, %v", root, err)
	}
	t.Setenv(name, line+"0")
	if _, err := localroot.FromEnv(name); !errors.Is(err, localroot.ErrNotLocalRoot) || !strings.Contains(err.Error(), name) {
		t.Errorf("wrong: %v", err)
	}
}

func TestErrorsDoNotShowTheLine(t *testing.T) {
	for i := range line {
		for _, text := range []string{line[:i] + "!" + line[i+1:], line[:i], line[i:], line[:i] + "0" + line[i+1:], line + line[i:]} {
			if _, err := localroot.Parse(text); err != nil {
				shows(t, err.Error())
			}
		}
	}
}

func shows(t *testing.T, printed string) {
	t.Helper()
	for i := len("khr1_") + 13; i+6 <= len(line); i++ {
		if strings.Contains(printed, line[i:i+6]) {
			t.Fatalf("shows a part of the line: %s", printed)
		}
	}
}

func TestRootPrintsAsItsID(t *testing.T) {
	root := mustParse(t, line)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		if got := fmt.Sprintf(verb, root); got != "local root khr_cl91j6n61c3cs" {
			t.Errorf("%s: %s", verb, got)
		}
	}
	var buf bytes.Buffer
	slog.New(slog.NewTextHandler(&buf, nil)).Info("root", "r", root)
	slog.New(slog.NewJSONHandler(&buf, nil)).Info("root", "r", root)
	if err := json.NewEncoder(&buf).Encode(map[string]any{"root": root}); err != nil {
		t.Fatal(err)
	}
	printed := buf.String() + fmt.Sprintf("%v %+v %#v %s", *root, *root, *root, struct{ r *localroot.Root }{root}.r)
	shows(t, printed)
	decoded, ok := key.ParseBase32(line[5:])
	if !ok {
		t.Fatal("the line does not decode")
	}
	secret := decoded[8:40]
	for _, form := range []string{fmt.Sprintf("%x", secret[:4]), strings.Trim(fmt.Sprint(secret[:4]), "[]"), string(secret[:4])} {
		if strings.Contains(printed, form) {
			t.Errorf("shows the key: %s", printed)
		}
	}
}

func TestWrapperSealsAndOpens(t *testing.T) {
	root := mustParse(t, line)
	kind, err := root.Type(t.Context())
	if err != nil || kind != "keyhold-local" {
		t.Errorf("type is %s, %v", kind, err)
	}
	for _, size := range []int{0, 1, 65, 1000} {
		for _, options := range [][]wrapping.Option{nil, {wrapping.WithAad([]byte("aad"))}, {nil}} {
			plaintext := bytes.Repeat([]byte{7}, size)
			blob, err := root.Encrypt(t.Context(), plaintext, options...)
			if err != nil {
				t.Fatal(err)
			}
			if blob.GetKeyInfo().GetKeyId() != "khr_cl91j6n61c3cs" || len(blob.GetCiphertext()) != size+40 {
				t.Errorf("blob is %v", blob)
			}
			if got, err := root.Decrypt(t.Context(), blob, options...); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%d bytes open to %x, %v", size, got, err)
			}
		}
	}
}

func TestNoAADIsTheSameAsEmptyAAD(t *testing.T) {
	root := mustParse(t, line)
	blob, err := root.Encrypt(t.Context(), []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Decrypt(t.Context(), blob, wrapping.WithAad([]byte{})); err != nil {
		t.Error(err)
	}
}

func TestDecryptRefusesWhatItDidNotSeal(t *testing.T) {
	root := mustParse(t, line)
	other, _ := generate(t)
	aad := wrapping.WithAad([]byte("aad"))
	blob, err := root.Encrypt(t.Context(), []byte("text"), aad)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Encrypt(t.Context(), []byte("text"), aad)
	if err != nil {
		t.Fatal(err)
	}
	relabelled := &wrapping.BlobInfo{Ciphertext: foreign.GetCiphertext(), KeyInfo: blob.GetKeyInfo()}
	for name, decrypt := range map[string]func() ([]byte, error){
		"nil":   func() ([]byte, error) { return root.Decrypt(t.Context(), nil) },
		"empty": func() ([]byte, error) { return root.Decrypt(t.Context(), &wrapping.BlobInfo{}) },
		"no key id": func() ([]byte, error) {
			return root.Decrypt(t.Context(), &wrapping.BlobInfo{Ciphertext: blob.GetCiphertext()}, aad)
		},
		"no ciphertext": func() ([]byte, error) {
			return root.Decrypt(t.Context(), &wrapping.BlobInfo{KeyInfo: blob.GetKeyInfo()}, aad)
		},
		"another root's": func() ([]byte, error) { return root.Decrypt(t.Context(), foreign, aad) },
		"relabelled":     func() ([]byte, error) { return root.Decrypt(t.Context(), relabelled, aad) },
		"without AAD":    func() ([]byte, error) { return root.Decrypt(t.Context(), blob) },
		"another AAD":    func() ([]byte, error) { return root.Decrypt(t.Context(), blob, wrapping.WithAad([]byte("AAD"))) },
	} {
		if _, err := decrypt(); !errors.Is(err, localroot.ErrOpen) {
			t.Errorf("%s: error is %v, want ErrOpen", name, err)
		}
	}
	for i := range 8 * len(blob.GetCiphertext()) {
		changed := bytes.Clone(blob.GetCiphertext())
		changed[i/8] ^= 1 << (i % 8)
		tampered := &wrapping.BlobInfo{Ciphertext: changed, KeyInfo: blob.GetKeyInfo()}
		if _, err := root.Decrypt(t.Context(), tampered, aad); !errors.Is(err, localroot.ErrOpen) {
			t.Fatalf("bit %d changed: %v", i, err)
		}
	}
}

func TestOptionsThatMeanNothingAreRefused(t *testing.T) {
	root := mustParse(t, line)
	blob, err := root.Encrypt(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, option := range map[string]wrapping.Option{
		"with_key_id":     wrapping.WithKeyId("khr_cl91j6n61c3cs"),
		"with_iv":         wrapping.WithIV(make([]byte, 12)),
		"with_config_map": wrapping.WithConfigMap(map[string]string{"a": "b"}),
		"without_hmac":    wrapping.WithoutHMAC(),
		"not from":        func() any { return 1 },
	} {
		if _, err := root.Encrypt(t.Context(), nil, option); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("sealing with %s: %v", name, err)
		}
		if _, err := root.Decrypt(t.Context(), blob, option); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("opening with %s: %v", name, err)
		}
	}
	if _, err := root.SetConfig(t.Context()); err == nil {
		t.Error("it can be configured")
	}
	var tooLarge *envelope.TooLargeError
	if _, err := root.Encrypt(t.Context(), make([]byte, envelope.MaxPlaintext+1)); !errors.As(err, &tooLarge) {
		t.Errorf("a large plaintext: %v", err)
	}
}

func FuzzLocalRootParse(f *testing.F) {
	for _, seed := range []string{"", line, line + "\n", line[:40], "khr1_", "khr_cl91j6n61c3cs", "khr1_" + strings.Repeat("v", 71)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		root, err := localroot.Parse(text)
		if err != nil {
			if root != nil || !errors.Is(err, localroot.ErrNotLocalRoot) && !errors.Is(err, localroot.ErrMistyped) {
				t.Fatalf("%v, %v", root, err)
			}
			return
		}
		again, err := localroot.Parse(strings.TrimSpace(text))
		if err != nil || again.String() != root.String() {
			t.Fatalf("%q is %v, trimmed it is %v, %v", text, root, again, err)
		}
	})
}
