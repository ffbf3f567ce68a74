//go:build pkcs11

package pkcs11

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
)

const jobOfProcess = "KEYHOLD_TEST_PKCS11_JOB"

// job is what a process of TestProcessesShareAToken does: it opens a blob.
type job struct {
	Place Place
	Blob  *wrapping.BlobInfo
}

// openOnce is one run of a program with a root in the token.
func openOnce(ctx context.Context, text string) error {
	var its job
	if err := json.Unmarshal([]byte(text), &its); err != nil {
		return err
	}
	w, err := Open(ctx, its.Place)
	if err != nil {
		return err
	}
	opened, err := w.Decrypt(ctx, its.Blob)
	if err == nil && !bytes.Equal(opened, plaintext) {
		err = fmt.Errorf("opened %x", opened)
	}
	return errors.Join(err, w.Close())
}

// SoftHSM writes the token's file at each login, so that other processes see half of it.
func TestProcessesShareAToken(t *testing.T) {
	place := makeKey(t, "k", "1", true)
	blob, err := open(t, place).Encrypt(t.Context(), plaintext)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(job{place, blob})
	if err != nil {
		t.Fatal(err)
	}
	const processes, atATime = 30, 6
	var group sync.WaitGroup
	turns := make(chan struct{}, atATime)
	for range processes {
		turns <- struct{}{}
		group.Go(func() {
			defer func() { <-turns }()
			command := exec.CommandContext(t.Context(), os.Args[0])
			command.Env = append(os.Environ(), jobOfProcess+"="+string(text))
			if out, err := command.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	group.Wait()
}

// tokenFile is where SoftHSM has what it says of the token, and what is there. The first eight bytes count the changes.
func tokenFile(t *testing.T) (path string, content []byte) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(token.dir, "*", "token.object"))
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	content, err = os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return found[0], content
}

func TestAModuleThatFailsIsSetUpAgain(t *testing.T) {
	w := open(t, makeKey(t, "k", "1", true))
	path, content := tokenFile(t)
	half := append(bytes.Repeat([]byte{0x7f}, 8), content[8:len(content)/2]...)
	if err := os.WriteFile(path, half, 0o600); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}()
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := w.Encrypt(ended, plaintext); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoKey) {
		t.Errorf("with a context that has ended, a token that cannot be read is: %v", err)
	}
	if _, err := w.Encrypt(t.Context(), plaintext); err == nil || errors.Is(err, ErrNoKey) {
		t.Errorf("a token that cannot be read is: %v", err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Encrypt(t.Context(), plaintext); err != nil {
		t.Errorf("once it can be read again: %v", err)
	}
}

func TestALoginIsKept(t *testing.T) {
	w := open(t, makeKey(t, "k", "1", true))
	_, before := tokenFile(t)
	for range 3 {
		if _, err := w.Encrypt(t.Context(), plaintext); err != nil {
			t.Fatal(err)
		}
		open(t, w.place)
	}
	if _, after := tokenFile(t); !bytes.Equal(before, after) {
		t.Error("a call logged in again, which SoftHSM writes to the token's file")
	}
}
