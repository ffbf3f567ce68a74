package roots

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/localroot"
)

func TestAddressesThatPeopleWrite(t *testing.T) {
	for _, address := range []string{
		"file:root.key", "raw:mek.key", "raw:/run/secrets/a mek", "file:/run/secrets/a root?.key", "env:KEYHOLD_ROOT_LINE",
		"transit:keyhold", "transit:mounts/team/keyhold", "transit:keyhold?namespace=team/a",
		"transit:https://vault:8200/transit/keyhold?namespace=ns&token-file=/run/secrets/token", "transit:http://127.0.0.1:8200/transit/k",
		"awskms:" + awsKey, "awskms:alias/keyhold?region=eu-central-1", "awskms:alias/keyhold",
		"awskms:arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/a/b", "awskms:mrk-1234abcd12ab34cd56ef1234567890ab?region=eu-central-1",
		"gcpckms:" + gcpKey, "gcpckms:projects/example.com:p/locations/global/keyRings/r/cryptoKeys/k",
		"azurekeyvault:https://v.vault.azure.net/keys/k", "azurekeyvault:https://h.managedhsm.azure.net/keys/k",
		"ocikms:" + ociKey + "?crypto-endpoint=https://x-crypto.kms.us-ashburn-1.oraclecloud.com&auth=instance",
		"alicloudkms:acs:kms:eu-central-1:1:key/" + aliKey, "alicloudkms:alias/a?region=eu-central-1",
		"pkcs11:token=my%20token;object=keyhold?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin",
		"pkcs11:serial=1f;id=%01%ff;type=secret-key?module-path=/l.so&pin-source=env:PIN",
	} {
		if !Printable(address) {
			_, _, err := parse(address)
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestWrongAddressesAreNotRepeated(t *testing.T) {
	const secret = "c0nfidential"
	for _, address := range []string{
		"", ":", secret, "vault:" + secret, "file:", "env:", "khr1_" + strings.Repeat(secret, 2), "file:khr1_" + strings.Repeat(secret, 2),
		"transit:", "transit:https://vault:8200/" + secret, "transit:k?" + secret, "transit:k?namespace=", "transit:k?namespace=a&namespace=" + secret,
		"transit:k " + secret, "transit:../" + secret, "transit:k\n" + secret, "transit:ftp://host/transit/" + secret, "transit:k?namespace=%zz",
		"awskms:", "awskms:arn:aws:s3:::" + secret, "awskms:" + awsKey + "?region=us-east-1", "awskms:a?endpoint=" + secret,
		"gcpckms:" + gcpKey + "/cryptoKeyVersions/1", "gcpckms:" + secret, "gcpckms:" + gcpKey + "?x=" + secret,
		"azurekeyvault:https://v.vault.azure.net/keys/k/" + azureVersion(1), "azurekeyvault:https://v." + secret + ".net/keys/k",
		"azurekeyvault:http://v.vault.azure.net/keys/k", "azurekeyvault:k",
		"ocikms:" + ociKey, "ocikms:" + ociKey + "?crypto-endpoint=http://x-crypto.kms.example.com",
		"ocikms:" + ociKey + "?crypto-endpoint=https://x.example.com",
		"alicloudkms:acs:kms:r:1:" + secret, "pkcs11:token=t?module-path=/l.so&pin-source=file:/p", "pkcs11:object=k?module-path=/l.so&pin-source=env:P",
		"pkcs11:token=t;object=k?module-path=l.so&pin-source=env:P", "pkcs11:token=t;object=k?module-path=/l.so&pin-source=" + secret,
		"pkcs11:token=t;object=k?module-path=/l.so", "pkcs11:token=t;" + secret + "=k?module-path=/l.so&pin-source=env:P",
	} {
		root, err := Open(t.Context(), address)
		if !errors.Is(err, ErrAddress) || !oneSentence(err) || strings.Contains(err.Error(), secret) || root != nil {
			t.Errorf("%q: %v", address, err)
		}
		if Printable(address) {
			t.Errorf("%q is called fit to be printed", address)
		}
	}
}

func TestCredentialsInAnAddressAreRefused(t *testing.T) {
	for _, address := range []string{
		"transit:https://user:c0nfidential@vault:8200/transit/k", "transit:k?token=c0nfidential", "transit:k?VAULT_TOKEN=c0nfidential",
		"transit:hvs.c0nfidential", "transit:https://vault/transit/k?namespace=a&token=hvs.c0nfidential", "awskms:alias/a?secret_key=c0nfidential",
		"awskms:alias/a?region=AKIAC0NFIDENTIAL", "azurekeyvault:https://v.vault.azure.net/keys/k?client_secret=c0nfidential",
		"gcpckms:" + gcpKey + "?credentials=c0nfidential", "alicloudkms:a?access_key=c0nfidential",
		"pkcs11:token=t;object=k?module-path=/l.so&pin-value=c0nfidential",
	} {
		_, err := Open(t.Context(), address)
		if !errors.Is(err, ErrAddress) || err.Error() != credentialInAddress || Printable(address) {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestLocalRootsOpenWithTheirOwnErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "root.key")
	made, err := localroot.Generate(file)
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	set(t, "LINE", string(line))
	for _, address := range []string{"file:" + file, "env:LINE"} {
		root := open(t, address)
		if keyID(t, root) != keyID(t, made) || root.Shown != address {
			t.Errorf("opened %s with the key %s", root.Shown, keyID(t, root))
		}
		blob, err := root.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := made.Decrypt(t.Context(), blob); err != nil || string(got) != string(installationKey) {
			t.Errorf("opened %x, %v", got, err)
		}
		if _, err := root.Decrypt(t.Context(), nil); !errors.Is(err, localroot.ErrOpen) {
			t.Errorf("no blob at all: %v", err)
		}
	}
	if _, err := Open(t.Context(), "file:"+file+".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Open(t.Context(), "env:NOT_SET_HERE"); !errors.Is(err, localroot.ErrUnset) {
		t.Errorf("no variable: %v", err)
	}
}

func TestARootPrintsAsItsAddress(t *testing.T) {
	_, address := beginTransit(t)
	root := open(t, address)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, root); got != "root "+address {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}
