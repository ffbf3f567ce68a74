package roots

import (
	"bytes"
	"context"
	"crypto/fips140"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
)

func TestTheTokenForVaultComesFromWhereItsUsersKeepIt(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	for path, text := range map[string]string{file: "of-the-file\n", filepath.Join(dir, ".vault-token"): "of-the-home\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set(t, "HOME", dir)
	server := httptest.NewServer(vaultHandler(newFake("k")))
	defer server.Close()
	for _, c := range []struct{ want, settings, env, value string }{
		{"of-the-home", "", "X", "x"},
		{"of-openbao", "", "BAO_TOKEN", "of-openbao"},
		{"of-vault", "", "VAULT_TOKEN", "of-vault"}, // BAO_TOKEN is still set
		{"of-the-file", "?token-file=" + file, "X", "x"},
	} {
		set(t, c.env, c.value)
		world.mu.Lock()
		world.seen = nil
		world.mu.Unlock()
		open(t, "transit:"+server.URL+"/transit/k"+c.settings)
		for _, r := range asked("127.0.0.1") {
			if got := r.Header.Get("X-Vault-Token"); got != c.want || r.Header.Get("X-Vault-Namespace") != "" {
				t.Errorf("%s came with the token %q, want %q", r.URL.Path, got, c.want)
			}
		}
	}
	_, err := Open(t.Context(), "transit:"+server.URL+"/transit/k?token-file="+file+".none")
	if !errors.Is(err, ErrCredentials) || !oneSentence(err) {
		t.Errorf("a token file that is not there: %v", err)
	}
}

// The environment says where Vault is, and never which key it is: else a root would be another than its address says.
func TestTheEnvironmentDoesNotChangeTheKey(t *testing.T) {
	k := newFake("k")
	server := httptest.NewServer(vaultHandler(k))
	defer server.Close()
	set(t, "VAULT_ADDR", server.URL, "VAULT_TOKEN", "t", "TRANSIT_WRAPPER_KEY_NAME", "another", "VAULT_TRANSIT_SEAL_KEY_NAME", "another",
		"TRANSIT_WRAPPER_MOUNT_PATH", "elsewhere", "VAULT_NAMESPACE", "of-the-environment")
	root := open(t, "transit:k")
	if _, err := root.Encrypt(t.Context(), installationKey); err != nil {
		t.Fatal(err)
	}
	for _, path := range k.calls {
		if path != "/v1/transit/encrypt/k" {
			t.Errorf("called %s", path)
		}
	}
	if id := keyID(t, root); id != "of-the-environment/transit/k" {
		t.Errorf("the key's id is %s", id)
	}
	if fips140.Enforced() {
		return
	}
	k, address := beginAWS(t)
	set(t, "AWSKMS_WRAPPER_KEY_ID", "another", "VAULT_AWSKMS_SEAL_KEY_ID", "another", "AWS_REGION", "us-east-1")
	root = open(t, address)
	if _, err := root.Encrypt(t.Context(), installationKey); err != nil || k.asked != awsKey || keyID(t, root) != awsKey {
		t.Errorf("asked AWS for %q, %v; the key's id is %s", k.asked, err, keyID(t, root))
	}
}

func awsOrSkip(t *testing.T) (*fake, string) {
	t.Helper()
	if fips140.Enforced() {
		t.Skip("go-kms-wrapping's envelope chooses the nonces of AES-GCM itself, which is refused here")
	}
	return beginAWS(t)
}

// Without the key in the call, KMS opens a blob of any account that the credentials may use.
func TestAWSIsToldTheKeyToOpenWith(t *testing.T) {
	k, address := awsOrSkip(t)
	root := open(t, address)
	mine, err := root.Encrypt(t.Context(), installationKey)
	if err != nil {
		t.Fatal(err)
	}
	k.key = "arn:aws:kms:eu-central-1:999999999999:key/of-a-stranger"
	forged, err := root.Encrypt(t.Context(), bytes.Repeat([]byte{9}, 65))
	if err != nil {
		t.Fatal(err)
	}
	k.key = awsKey
	if _, err := root.Decrypt(t.Context(), forged); !errors.Is(err, ErrNotItsKey) || !strings.Contains(err.Error(), "IncorrectKeyException") {
		t.Errorf("a stranger's blob: %v", err)
	}
	if got, err := root.Decrypt(t.Context(), mine); err != nil || !bytes.Equal(got, installationKey) {
		t.Errorf("its own: %x, %v", got, err)
	}
}

func TestAnAnswerOfAnotherKeyOfAWSIsRefused(t *testing.T) {
	_, address := awsOrSkip(t)
	root := open(t, address)
	blob, err := root.Encrypt(t.Context(), installationKey)
	if err != nil {
		t.Fatal(err)
	}
	host(t, "kms.eu-central-1.amazonaws.com", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reply(w, 200, map[string]any{"KeyId": "arn:aws:kms:eu-central-1:999999999999:key/x", "Plaintext": make([]byte, 32)})
	}))
	if _, err := root.Decrypt(t.Context(), blob); !errors.Is(err, ErrNotItsKey) || !strings.Contains(err.Error(), "another key than the root's") {
		t.Errorf("an answer that names another key: %v", err)
	}
}

func TestAKeyOfSeveralRegionsIsOneKey(t *testing.T) {
	c := &awsCalls{key: "arn:aws:kms:eu-central-1:111122223333:key/mrk-1"}
	for id, want := range map[string]bool{
		c.key: true, "arn:aws:kms:us-east-1:111122223333:key/mrk-1": true, "arn:aws:kms:us-east-1:111122223333:key/mrk-2": false, "": false,
		"mrk-1": false,
	} {
		if c.sealed(id) != want {
			t.Errorf("%q is its key: %v", id, !want)
		}
	}
	if (&awsCalls{key: awsKey}).sealed(strings.Replace(awsKey, "eu-central-1", "us-east-1", 1)) {
		t.Error("keys of one region are not the same because of their id")
	}
}

func TestAWSAsksForARegion(t *testing.T) {
	if fips140.Enforced() {
		t.Skip("go-kms-wrapping's envelope chooses the nonces of AES-GCM itself, which is refused here")
	}
	if _, err := Open(t.Context(), "awskms:alias/a"); !errors.Is(err, ErrAddress) || !strings.Contains(err.Error(), "?region=") {
		t.Errorf("no region: %v", err)
	}
}

// Each of these libraries prints what it opens when it is told to by a setting that may be there for something else.
func TestLibrariesThatPrintWhatTheyOpenAreNotUsed(t *testing.T) {
	if fips140.Enforced() {
		t.Skip("go-kms-wrapping's envelope chooses the nonces of AES-GCM itself, which is refused here")
	}
	_, ali := beginAli(t)
	_, oci := beginOCI(t)
	set(t, "DEBUG", "a,sdk", "OCI_GO_SDK_DEBUG", "v")
	for _, address := range []string{ali, oci} {
		if _, err := Open(t.Context(), address); !errors.Is(err, ErrUnsupported) || !oneSentence(err) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestWhatCannotBeReachedIsSaidWithoutItsURL(t *testing.T) {
	for _, s := range standIns() {
		if s.name != "transit" && fips140.Enforced() {
			continue
		}
		_, address := s.begin(t)
		if s.name == "transit" {
			address = "transit:http://127.0.0.1:1/transit/k"
		}
		world.mu.Lock()
		clear(world.hosts) // the proxy refuses all of them
		world.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		root, err := Open(ctx, address)
		if s.name == "gcpckms" && err == nil {
			_, err = root.Encrypt(ctx, installationKey)
		}
		cancel()
		t.Log(err)
		if !errors.Is(err, ErrUnreachable) && !(s.name == "azurekeyvault" && errors.Is(err, ErrCredentials)) || !oneSentence(err) {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

func TestVendorsWithoutCredentialsSaySo(t *testing.T) {
	for _, s := range standIns() {
		if s.name == "transit" || fips140.Enforced() {
			continue // an agent may add its token
		}
		t.Run(s.name, func(t *testing.T) {
			_, address := s.begin(t)
			set(t, "AWS_ACCESS_KEY_ID", "", "AWS_SECRET_ACCESS_KEY", "", "AWS_EC2_METADATA_DISABLED", "true",
				"GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(t.TempDir(), "none"), "AZURE_CLIENT_ID", "", "AZURE_TENANT_ID", "",
				"AZURE_CLIENT_SECRET", "", "PATH", "", "OCI_CONFIG_FILE", filepath.Join(t.TempDir(), "none"),
				"ALIBABA_CLOUD_ACCESS_KEY_ID", "", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := Open(ctx, address)
			t.Log(err)
			if !errors.Is(err, ErrCredentials) || !oneSentence(err) {
				t.Error(err)
			}
		})
	}
}

func TestFIPSIsSaidBeforeAnyCall(t *testing.T) {
	if !fips140.Enforced() {
		t.Skip("this process does not enforce FIPS 140-3")
	}
	for _, s := range standIns() {
		k, address := s.begin(t)
		if _, err := Open(t.Context(), address); s.name != "transit" && (!errors.Is(err, ErrUnsupported) || !oneSentence(err) || k.count() != 0) {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

func TestAPanicOfALibraryIsAnError(t *testing.T) {
	root := &Root{Shown: "test:", vendor: vendor{wrapper: panicking{}, explain: explainOCI}}
	_, err := root.Encrypt(t.Context(), installationKey)
	if !errors.Is(err, ErrUnreachable) || !oneSentence(err) {
		t.Errorf("encrypt: %v", err)
	}
	_, err = root.Decrypt(t.Context(), &wrapping.BlobInfo{Ciphertext: []byte{1}, KeyInfo: &wrapping.KeyInfo{}})
	if !errors.Is(err, ErrUnreachable) || !oneSentence(err) {
		t.Errorf("decrypt: %v", err)
	}
}

type panicking struct{ wrapping.Wrapper }

func (panicking) Encrypt(context.Context, []byte, ...wrapping.Option) (*wrapping.BlobInfo, error) {
	panic(secretText)
}

func (panicking) Decrypt(context.Context, *wrapping.BlobInfo, ...wrapping.Option) ([]byte, error) {
	panic(secretText)
}
