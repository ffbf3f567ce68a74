package roots

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/localroot"
)

const rawText = "0123456789abcdef0123456789ABCDEF" // 32 bytes

func TestARawRootOpensFromItsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mek.key")
	made, err := localroot.FromBytes([]byte(rawText))
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{rawText, base64.StdEncoding.EncodeToString([]byte(rawText)) + "\n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		root := open(t, "raw:"+file)
		if typ, err := root.Type(t.Context()); err != nil || typ != "keyhold-raw" || keyID(t, root) != "" || root.Shown != "raw:"+file {
			t.Errorf("opened %v of type %s with the key id %q, %v", root, typ, keyID(t, root), err)
		}
		blob, err := root.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := made.Decrypt(t.Context(), blob); err != nil || string(got) != string(installationKey) {
			t.Errorf("opened %x, %v", got, err)
		}
		if got, err := ReadRaw("raw:" + file); err != nil || string(got) != rawText {
			t.Errorf("read %x, %v", got, err)
		}
	}
}

func TestARawFileThatIsNoneSaysWhy(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mek.key")
	if err := os.WriteFile(file, []byte(rawText+"xy"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), "raw:"+file)
	if !errors.Is(err, localroot.ErrNotLocalRoot) || err.Error() != "the file has to hold 32 bytes, or their base64 in one line, and holds 34 bytes" {
		t.Errorf("34 bytes: %v", err)
	}
	if _, again := ReadRaw("raw:" + file); again == nil || again.Error() != err.Error() {
		t.Errorf("34 bytes, read: %v", again)
	}
	if _, err := Open(t.Context(), "raw:"+file+".none"); !errors.Is(err, os.ErrNotExist) || err.Error() != "no such file or directory" {
		t.Errorf("no file: %v", err)
	}
	if _, err := Open(t.Context(), "raw:"+dir); err == nil || !oneSentence(err) {
		t.Errorf("a folder: %v", err)
	}
}

func TestARawKeyInPlaceOfItsPathIsNotRepeated(t *testing.T) {
	b := []byte(strings.Repeat("\xfb\xff", 16))
	for _, key := range []string{
		rawText, base64.StdEncoding.EncodeToString(b), base64.RawStdEncoding.EncodeToString(b), base64.URLEncoding.EncodeToString(b),
		base64.RawURLEncoding.EncodeToString(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)),
	} {
		_, err := Open(t.Context(), "raw:"+key)
		if !errors.Is(err, ErrAddress) || err.Error() != keyInAddress || Printable("raw:"+key) {
			t.Errorf("%s: %v", key, err)
		}
		for _, given := range []string{key, "raw:" + key} {
			if _, err := ReadRaw(given); !errors.Is(err, ErrAddress) || err.Error() != keyInAddress {
				t.Errorf("read %s: %v", given, err)
			}
		}
	}
	for _, wrong := range []string{"raw:", "raw:khr1_" + strings.Repeat("c0nfidential", 2)} {
		if _, err := Open(t.Context(), wrong); !errors.Is(err, ErrAddress) || strings.Contains(err.Error(), "c0nf") || Printable(wrong) {
			t.Errorf("%s: %v", wrong, err)
		}
		if _, err := ReadRaw(wrong); !errors.Is(err, ErrAddress) || strings.Contains(err.Error(), "c0nf") {
			t.Errorf("read %s: %v", wrong, err)
		}
	}
	for _, path := range []string{
		"mek.key", "/run/secrets/mek", "./" + rawText, "/" + strings.Repeat("a", 31), "/" + strings.Repeat("b", 42), "/run/secrets/AKIA",
		strings.Repeat("x", 64), strings.Repeat("secret ", 6) + "a", "a/" + strings.Repeat("b", 30),
	} {
		if !Printable("raw:" + path) {
			t.Errorf("the path %s is taken for a key", path)
		}
	}
}
