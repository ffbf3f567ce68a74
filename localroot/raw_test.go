package localroot_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
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

// The worked example of docs/format.md, section 8, which another program made.
const (
	rawKey  = "4ae441b3407b445dbbe60cf50e5ab53ee8160df012be064a450a3126204751d3"
	rawBlob = "1f9c4f5e6a7b8091a2b3c4d5e6f708192a3b4c5d6e7f80917c7246533564a3907001620609a98aee1a55fd13"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fromBytes(t *testing.T, mek []byte) *localroot.RawRoot {
	t.Helper()
	root, err := localroot.FromBytes(mek)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestARawRootOpensTheWorkedExample(t *testing.T) {
	got, err := fromBytes(t, unhex(t, rawKey)).Decrypt(t.Context(), &wrapping.BlobInfo{Ciphertext: unhex(t, rawBlob)})
	if err != nil || string(got) != "slot" {
		t.Errorf("it opens %q, %v", got, err)
	}
}

func TestARawRootHas32Bytes(t *testing.T) {
	for _, n := range []int{0, 1, 16, 24, 31, 33, 34, 64} {
		root, err := localroot.FromBytes(make([]byte, n))
		says := fmt.Sprintf("has to have 32 bytes, this one has %d", n)
		if root != nil || !errors.Is(err, localroot.ErrNotLocalRoot) || !strings.HasSuffix(err.Error(), says) {
			t.Errorf("%d bytes: %v, %v", n, root, err)
		}
	}
}

func TestARawRootKeepsNothingOfTheBytesGiven(t *testing.T) {
	mek := unhex(t, rawKey)
	root := fromBytes(t, mek)
	if !bytes.Equal(mek, unhex(t, rawKey)) {
		t.Error("the caller's bytes were changed")
	}
	clear(mek)
	if _, err := root.Decrypt(t.Context(), &wrapping.BlobInfo{Ciphertext: unhex(t, rawBlob)}); err != nil {
		t.Errorf("after the caller cleared them: %v", err)
	}
}

func TestARawRootSealsAndOpens(t *testing.T) {
	root := fromBytes(t, unhex(t, rawKey))
	if kind, err := root.Type(t.Context()); err != nil || kind != "keyhold-raw" {
		t.Errorf("type is %s, %v", kind, err)
	}
	if id, err := root.KeyId(t.Context()); err != nil || id != "" {
		t.Errorf("key id is %q, %v", id, err)
	}
	for _, size := range []int{0, 1, 65, 1000} {
		for _, options := range [][]wrapping.Option{nil, {wrapping.WithAad([]byte("aad"))}, {nil}} {
			plaintext := bytes.Repeat([]byte{7}, size)
			blob, err := root.Encrypt(t.Context(), plaintext, options...)
			if err != nil || len(blob.GetCiphertext()) != size+40 {
				t.Fatalf("blob is %v, %v", blob, err)
			}
			if got, err := root.Decrypt(t.Context(), blob, options...); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%d bytes open to %x, %v", size, got, err)
			}
		}
	}
}

func TestALabelSaysNothingOfTheKey(t *testing.T) {
	root := fromBytes(t, unhex(t, rawKey))
	labels := map[string]bool{}
	for range 20 {
		blob, err := root.Encrypt(t.Context(), []byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		label := blob.GetKeyInfo().GetKeyId()
		if b, ok := key.ParseBase32(strings.TrimPrefix(label, "khm_")); !ok || len(b) != 8 || !strings.HasPrefix(label, "khm_") {
			t.Errorf("label is %q", label)
		}
		labels[label] = true
		for _, other := range []string{"", "khm_0000000000000", "anything"} {
			blob.KeyInfo = &wrapping.KeyInfo{KeyId: other}
			if _, err := root.Decrypt(t.Context(), blob); err != nil {
				t.Errorf("labelled %q: %v", other, err)
			}
		}
	}
	if len(labels) != 20 {
		t.Errorf("20 blobs have %d labels", len(labels))
	}
}

func TestARawRootRefusesWhatItDidNotSeal(t *testing.T) {
	root := fromBytes(t, unhex(t, rawKey))
	aad := wrapping.WithAad([]byte("aad"))
	blob, err := root.Encrypt(t.Context(), []byte("text"), aad)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := fromBytes(t, make([]byte, 32)).Encrypt(t.Context(), []byte("text"), aad)
	if err != nil {
		t.Fatal(err)
	}
	for name, decrypt := range map[string]func() ([]byte, error){
		"nil":          func() ([]byte, error) { return root.Decrypt(t.Context(), nil) },
		"empty":        func() ([]byte, error) { return root.Decrypt(t.Context(), &wrapping.BlobInfo{}) },
		"other bytes'": func() ([]byte, error) { return root.Decrypt(t.Context(), foreign, aad) },
		"without AAD":  func() ([]byte, error) { return root.Decrypt(t.Context(), blob) },
		"another AAD":  func() ([]byte, error) { return root.Decrypt(t.Context(), blob, wrapping.WithAad([]byte("AAD"))) },
	} {
		if _, err := decrypt(); !errors.Is(err, localroot.ErrOpen) {
			t.Errorf("%s: error is %v, want ErrOpen", name, err)
		}
	}
	for i := range 8 * len(blob.GetCiphertext()) {
		changed := bytes.Clone(blob.GetCiphertext())
		changed[i/8] ^= 1 << (i % 8)
		if _, err := root.Decrypt(t.Context(), &wrapping.BlobInfo{Ciphertext: changed}, aad); !errors.Is(err, localroot.ErrOpen) {
			t.Fatalf("bit %d changed: %v", i, err)
		}
	}
}

func TestARawRootRefusesOptionsThatMeanNothing(t *testing.T) {
	root := fromBytes(t, unhex(t, rawKey))
	if _, err := root.Encrypt(t.Context(), nil, wrapping.WithKeyId("k")); err == nil || !strings.Contains(err.Error(), "with_key_id") {
		t.Errorf("sealing: %v", err)
	}
	if _, err := root.Decrypt(t.Context(), nil, wrapping.WithKeyId("k")); err == nil || !strings.Contains(err.Error(), "with_key_id") {
		t.Errorf("opening: %v", err)
	}
	if _, err := root.SetConfig(t.Context()); err == nil {
		t.Error("it can be configured")
	}
	var tooLarge *envelope.TooLargeError
	if _, err := root.Encrypt(t.Context(), make([]byte, envelope.MaxPlaintext+1)); !errors.As(err, &tooLarge) {
		t.Errorf("a large plaintext: %v", err)
	}
}

func TestARawRootIsNeverPrinted(t *testing.T) {
	mek := unhex(t, rawKey)
	root := fromBytes(t, mek)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		if got := fmt.Sprintf(verb, root); got != "raw root [redacted]" {
			t.Errorf("%s: %s", verb, got)
		}
	}
	var buf bytes.Buffer
	slog.New(slog.NewTextHandler(&buf, nil)).Info("root", "r", root)
	slog.New(slog.NewJSONHandler(&buf, nil)).Info("root", "r", root)
	if err := json.NewEncoder(&buf).Encode(map[string]any{"root": root}); err != nil {
		t.Fatal(err)
	}
	printed := buf.String() + fmt.Sprintf("%v %+v %#v %s", *root, *root, *root, struct{ r *localroot.RawRoot }{root}.r)
	notIn(t, printed, mek)
}

func notIn(t *testing.T, printed string, secret []byte) {
	t.Helper()
	for _, form := range []string{
		fmt.Sprintf("%x", secret[:4]), strings.Trim(fmt.Sprint(secret[:4]), "[]"), string(secret[:4]),
		base64.StdEncoding.EncodeToString(secret)[:6],
	} {
		if strings.Contains(printed, form) {
			t.Errorf("shows the key: %s", printed)
		}
	}
}

func TestARawFileHolds32BytesOrTheirBase64(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mek.key")
	mek := unhex(t, rawKey)
	text := base64.StdEncoding.EncodeToString(mek)
	spaces := []byte(" \n" + strings.Repeat("x", 28) + " \n") // 32 bytes, though it looks like a line
	for name, c := range map[string]struct{ content, want []byte }{
		"bytes":                  {mek, mek},
		"bytes that are spaces":  {spaces, spaces},
		"base64":                 {[]byte(text), mek},
		"base64 and a newline":   {[]byte(text + "\n"), mek},
		"base64 and white space": {[]byte("\t " + text + "\r\n\n"), mek},
	} {
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := localroot.FromRawFile(path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		blob, err := root.Encrypt(t.Context(), []byte("text"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := fromBytes(t, c.want).Decrypt(t.Context(), blob); err != nil || string(got) != "text" {
			t.Errorf("%s: the bytes open %q, %v", name, got, err)
		}
	}
}

func TestARawFileThatHoldsSomethingElseIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "mek.key")
	mek := unhex(t, rawKey)
	text := base64.StdEncoding.EncodeToString(mek)
	for name, c := range map[string]struct{ content, says string }{
		"nothing":          {"", "holds 0 bytes"},
		"too short":        {string(mek[:31]), "holds 31 bytes"},
		"34 bytes":         {string(mek) + "xy", "holds 34 bytes"},
		"a newline behind": {"0123456789abcdef0123456789abcdef\n", "white space around"},
		"hex":              {rawKey, "holds 64 bytes"},
		"base64 of 31":     {base64.StdEncoding.EncodeToString(mek[:31]), "holds 44 bytes"},
		"base64 for URLs":  {base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 32)), "holds 44 bytes"},
		"unpadded":         {strings.TrimRight(text, "="), "holds 43 bytes"},
		"two lines":        {text[:20] + "\n" + text[20:], "in one line"},
		"bits at the end":  {text[:42] + "1=", "holds 44 bytes"},
		"a local root":     {line, "holds 76 bytes"},
		"much":             {strings.Repeat("x", 1<<20), "holds 4096 bytes"},
	} {
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := localroot.FromRawFile(path)
		if !errors.Is(err, localroot.ErrNotLocalRoot) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q in it", name, err, c.says)
			continue
		}
		notIn(t, err.Error(), mek)
	}
	missing := filepath.Join(dir, "missing.key")
	if _, err := localroot.FromRawFile(missing); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing: %v", err)
	}
}
