//go:build pkcs11

package roots

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"
)

const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

// softToken makes a token of SoftHSM with one AES key, and a file with its PIN.
func softToken(t *testing.T) (address string) {
	t.Helper()
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		t.Fatal("this test needs SoftHSM: apt-get install softhsm2")
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"softhsm2.conf": "directories.tokendir = " + dir + "\n", "pin": "8765" + secretText + "\n", "wrong": secretText} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set(t, "SOFTHSM2_CONF", filepath.Join(dir, "softhsm2.conf"))
	made, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", "my token", "--so-pin", "12345678",
		"--pin", "8765"+secretText).CombinedOutput()
	if err != nil {
		t.Fatalf("%s, %v", made, err)
	}
	ctx := pkcs11.New(softHSM)
	defer ctx.Destroy()
	if err := ctx.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := ctx.Finalize(); err != nil {
			t.Error(err)
		}
	}()
	slots, err := ctx.GetSlotList(true)
	if err != nil || len(slots) == 0 {
		t.Fatal(slots, err)
	}
	s, err := ctx.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	if err := ctx.Login(s, pkcs11.CKU_USER, "8765"+secretText); err != nil {
		t.Fatal(err)
	}
	_, err = ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, "keyhold"), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte{1}),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
	})
	if err != nil {
		t.Fatal(err)
	}
	return "pkcs11:token=my%20token;object=keyhold?module-path=" + softHSM + "&pin-source=file:" + filepath.Join(dir, "pin")
}

func TestATokenIsARoot(t *testing.T) {
	address := softToken(t)
	root, err := Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	if typ, err := root.Type(t.Context()); err != nil || typ != "pkcs11" || keyID(t, root) != "01" {
		t.Errorf("type %q, %v, key %q", typ, err, keyID(t, root))
	}
	blob, err := root.Encrypt(t.Context(), installationKey)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := root.Decrypt(t.Context(), blob); err != nil || !bytes.Equal(got, installationKey) {
		t.Errorf("opened %x, %v", got, err)
	}
	blob.Ciphertext[0] ^= 1
	if _, err := root.Decrypt(t.Context(), blob); !errors.Is(err, ErrNotItsKey) || !oneSentence(err) {
		t.Errorf("a changed blob: %v", err)
	}
	blob.KeyInfo.KeyId = "02"
	if _, err := root.Decrypt(t.Context(), blob); !errors.Is(err, ErrNotItsKey) {
		t.Errorf("a blob of another key: %v", err)
	}
	if _, err := root.Encrypt(ended0(t), installationKey); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	if err := root.Close(t.Context()); err != nil { // while it is open, its login is shared
		t.Error(err)
	}
	wrong := address[:len(address)-len("pin")] + "wrong"
	if _, err := Open(t.Context(), wrong); !errors.Is(err, ErrCredentials) || !oneSentence(err) {
		t.Errorf("a wrong PIN: %v", err)
	}
	if _, err := Open(t.Context(), "pkcs11:token=my%20token;object=other?module-path="+softHSM+"&pin-source=env:HOME"); !errors.Is(err, ErrCredentials) {
		t.Errorf("no PIN: %v", err)
	}
}
