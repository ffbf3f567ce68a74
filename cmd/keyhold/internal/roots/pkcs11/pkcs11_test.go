//go:build pkcs11

package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/miekg/pkcs11"
	"google.golang.org/protobuf/proto"
)

const (
	library = "/usr/lib/softhsm/libsofthsm2.so"
	userPIN = "87654321"
)

var token = struct{ label, dir string }{label: "keyhold test"}

// TestMain makes a token. SoftHSM reads where its tokens are once in a process.
func TestMain(m *testing.M) {
	if job := os.Getenv(jobOfProcess); job != "" {
		if err := openOnce(context.Background(), job); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		os.Stderr.WriteString("these tests need SoftHSM: apt-get install softhsm2\n")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "softhsm")
	if err != nil {
		panic(err)
	}
	token.dir = dir
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+dir+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		panic(err)
	}
	os.Setenv("SOFTHSM2_CONF", conf)
	out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", token.label, "--so-pin", "12345678", "--pin", userPIN).CombinedOutput()
	if err != nil {
		panic(string(out))
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// makeKey makes an AES key in the token, as somebody does with the tools of an HSM, and says where it is.
func makeKey(t *testing.T, label, id string, encrypts bool) Place {
	t.Helper()
	pin := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(pin, []byte(userPIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	place := Place{Module: library, Token: token.label, Object: label, PIN: pin}
	m, err := load(library)
	if err == nil {
		err = m.enter()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(t, m)
	slot, err := (&Wrapper{place: place, module: m}).slot()
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ctx.Login(s, pkcs11.CKU_USER, userPIN); err != nil && !errors.Is(err, errLoggedIn) {
		t.Fatal(err)
	}
	_, err = m.ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, encrypts), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		destroyKey(t, place)
	})
	return place
}

var errLoggedIn = pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)

// letGo also ends what the test itself did with the library.
func letGo(t *testing.T, m *module) {
	t.Helper()
	m.leave()
	if err := m.release(); err != nil {
		t.Error(err)
	}
}

func destroyKey(t *testing.T, place Place) {
	t.Helper()
	m, err := load(library)
	if err == nil {
		err = m.enter()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer letGo(t, m)
	w := &Wrapper{place: place, module: m}
	slot, err := w.slot()
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ctx.Login(s, pkcs11.CKU_USER, userPIN); err != nil && !errors.Is(err, errLoggedIn) {
		t.Fatal(err)
	}
	key, err := w.find(m.ctx, s) // handles end with the library, so the key is looked for again
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ctx.DestroyObject(s, key); err != nil {
		t.Error(err)
	}
}

func open(t *testing.T, place Place) *Wrapper {
	t.Helper()
	w, err := Open(t.Context(), place)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

var plaintext = bytes.Repeat([]byte{42}, 65)

func TestAKeyOfATokenSealsAndOpens(t *testing.T) {
	w := open(t, makeKey(t, "k", "\x01\xfe", true))
	if id, err := w.KeyId(t.Context()); err != nil || id != "01fe" {
		t.Errorf("the key's id is %q, %v", id, err)
	}
	seen := map[string]bool{}
	for range 3 {
		blob, err := w.Encrypt(t.Context(), plaintext)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(blob.Ciphertext, plaintext[:16]) || len(blob.Iv) != ivSize || seen[string(blob.Iv)] || blob.KeyInfo.KeyId != "01fe" {
			t.Errorf("sealed as %v", blob)
		}
		seen[string(blob.Iv)] = true
		if got, err := w.Decrypt(t.Context(), blob); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("opened %x, %v", got, err)
		}
		if got, err := open(t, w.place).Decrypt(t.Context(), blob); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("another one opened %x, %v", got, err)
		}
	}
}

func TestTheAADIsPartOfWhatIsSealed(t *testing.T) {
	w := open(t, makeKey(t, "k", "", true))
	if id, _ := w.KeyId(t.Context()); id != "k" {
		t.Errorf("without CKA_ID, the key's id is %q", id)
	}
	blob, err := w.Encrypt(t.Context(), plaintext, wrapping.WithAad([]byte("a")))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := w.Decrypt(t.Context(), blob, wrapping.WithAad([]byte("a"))); err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("opened %x, %v", got, err)
	}
	for _, opt := range [][]wrapping.Option{nil, {wrapping.WithAad([]byte("b"))}} {
		if got, err := w.Decrypt(t.Context(), blob, opt...); !errors.Is(err, ErrOpen) {
			t.Errorf("opened %x with another AAD, %v", got, err)
		}
	}
}

func TestWhatTheKeyDidNotSealDoesNotOpen(t *testing.T) {
	w, other := open(t, makeKey(t, "k", "1", true)), open(t, makeKey(t, "other", "2", true))
	blob, err := w.Encrypt(t.Context(), plaintext)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := other.Decrypt(t.Context(), blob); !errors.Is(err, ErrOpen) {
		t.Errorf("another key opened %x, %v", got, err)
	}
	for name, change := range map[string]func(b *wrapping.BlobInfo){
		"tag": func(b *wrapping.BlobInfo) { b.Ciphertext[len(b.Ciphertext)-1] ^= 1 }, "text": func(b *wrapping.BlobInfo) { b.Ciphertext[0] ^= 1 },
		"nonce": func(b *wrapping.BlobInfo) { b.Iv[0] ^= 1 }, "no nonce": func(b *wrapping.BlobInfo) { b.Iv = nil },
		"short": func(b *wrapping.BlobInfo) { b.Ciphertext = b.Ciphertext[:15] }, "mechanism": func(b *wrapping.BlobInfo) { b.KeyInfo.Mechanism = 1 },
		"no key": func(b *wrapping.BlobInfo) { b.KeyInfo = nil }, "short nonce": func(b *wrapping.BlobInfo) { b.Iv = b.Iv[:3] },
	} {
		changed := proto.Clone(blob).(*wrapping.BlobInfo)
		change(changed)
		if got, err := w.Decrypt(t.Context(), changed); !errors.Is(err, ErrOpen) {
			t.Errorf("%s: opened %x, %v", name, got, err)
		}
	}
	if got, err := w.Decrypt(t.Context(), blob); err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("after all that, it opened %x, %v", got, err)
	}
}

func TestWhatIsWrongWithATokenIsTold(t *testing.T) {
	place := makeKey(t, "k", "1", true)
	wrong := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wrong, []byte("0000"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PIN_OF_TEST", "0000")
	for name, c := range map[string]struct {
		change func(p *Place)
		want   error
	}{
		"wrong PIN":           {func(p *Place) { p.PIN = "file:" + wrong }, ErrPIN},
		"wrong PIN from env":  {func(p *Place) { p.PIN = "env:PIN_OF_TEST" }, ErrPIN},
		"no PIN file":         {func(p *Place) { p.PIN += ".none" }, ErrPIN},
		"no PIN in env":       {func(p *Place) { p.PIN = "env:NOT_SET_HERE" }, ErrPIN},
		"no such token":       {func(p *Place) { p.Token = "another" }, ErrNoKey},
		"no such serial":      {func(p *Place) { p.Serial = "another" }, ErrNoKey},
		"no such key":         {func(p *Place) { p.Object = "another" }, ErrNoKey},
		"no key with this id": {func(p *Place) { p.ID = "2" }, ErrNoKey},
		"no such library":     {func(p *Place) { p.Module += ".none" }, nil},
	} {
		its := place
		c.change(&its)
		w, err := Open(t.Context(), its)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "0000") {
			t.Errorf("%s: %v, %v", name, w, err)
		}
	}
	makeKey(t, "k2", "1", true)
	if _, err := Open(t.Context(), Place{Module: library, Token: token.label, ID: "1", PIN: place.PIN}); !errors.Is(err, ErrNoKey) {
		t.Errorf("two keys with one id: %v", err)
	}
	mute := open(t, makeKey(t, "mute", "3", false))
	if _, err := mute.Encrypt(t.Context(), plaintext); !errors.Is(err, ErrRefused) {
		t.Errorf("a key that is not for encrypting: %v", err)
	}
	if len(loaded) != 1 || loaded[library].users != 1 {
		t.Errorf("what did not open is still loaded: %v", loaded)
	}
}

// The library is one for the whole process: closing one root must not end another's.
func TestRootsInOneTokenAreClosedOneByOne(t *testing.T) {
	w := open(t, makeKey(t, "k", "1", true))
	second, err := Open(t.Context(), w.place)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := w.Encrypt(t.Context(), plaintext); err != nil {
		t.Errorf("after the other was closed: %v", err)
	}
}

func TestSeveralGoroutinesMayUseAKey(t *testing.T) {
	w := open(t, makeKey(t, "k", "1", true))
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 20 {
				blob, err := w.Encrypt(t.Context(), plaintext)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := w.Decrypt(t.Context(), blob); err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("opened %x, %v", got, err)
				}
			}
		})
	}
	group.Wait()
}
