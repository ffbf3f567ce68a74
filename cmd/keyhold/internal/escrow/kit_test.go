package escrow_test

import (
	"bytes"
	"crypto/fips140"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"keyhold.example/keyhold/cmd/keyhold/internal/escrow"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
)

// identity is a custodian's, in a file as age-keygen writes it.
type identity struct {
	recipient, path string
}

func needsAge(t testing.TB) {
	t.Helper()
	if fips140.Enforced() {
		t.Skip("age uses no approved algorithm; TestAgeIsRefusedInFIPSOnlyMode is about that")
	}
}

func newIdentity(t testing.TB, hybrid bool) identity {
	t.Helper()
	needsAge(t)
	var text, recipient string
	if hybrid {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			t.Fatal(err)
		}
		text, recipient = id.String(), id.Recipient().String()
	} else {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		text, recipient = id.String(), id.Recipient().String()
	}
	path := filepath.Join(t.TempDir(), "identity.txt")
	write(t, path, "# created: 2026-11-22T18:00:00Z\n# public key: "+recipient+"\n"+text+"\n")
	return identity{recipient, path}
}

func newIdentities(t testing.TB, n int) (ids []identity, recipients []string) {
	t.Helper()
	for i := range n {
		ids = append(ids, newIdentity(t, i%2 == 1))
		recipients = append(recipients, ids[i].recipient)
	}
	return ids, recipients
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newLine(t testing.TB) []byte {
	t.Helper()
	ik, err := seal.GenerateIK()
	if err != nil {
		t.Fatal(err)
	}
	return ik.Recovery().Reveal()
}

// newEscrow writes what is told, and returns the names of the files.
func newEscrow(t testing.TB, line []byte, threshold int, recipients ...string) []string {
	t.Helper()
	plan, err := escrow.Prepare(filepath.Join(t.TempDir(), "recovery.age"), recipients, threshold)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(line)
	if err := plan.Write(line); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, line) {
		t.Error("writing changed the caller's line")
	}
	return plan.Files()
}

func open(files []string, identities ...identity) (*escrow.Opened, error) {
	s := escrow.Source{Files: files}
	for _, id := range identities {
		s.Identities = append(s.Identities, id.path)
	}
	return s.Open()
}

// opens says what is wrong unless the files give the line from so many shares.
func opens(t *testing.T, what string, line []byte, shares int, files []string, identities ...identity) {
	t.Helper()
	got, err := open(files, identities...)
	switch {
	case err != nil:
		t.Errorf("%s: %v", what, err)
	case !bytes.Equal(got.Line.Reveal(), line):
		t.Errorf("%s: gives another line", what)
	case got.Shares != shares:
		t.Errorf("%s: says that it was joined from %d shares, want %d", what, got.Shares, shares)
	}
}

// refused says what is wrong unless err is want, shows none of the secrets, and there is no result.
func refused(t *testing.T, what string, got *escrow.Opened, err error, want ...error) {
	t.Helper()
	found := false
	for _, w := range want {
		found = found || errors.Is(err, w)
	}
	if !found || got != nil {
		t.Errorf("%s: error is %v, want one of %v", what, err, want)
	}
	showsNothing(t, what, fmt.Sprint(err))
}

func showsNothing(t *testing.T, what, text string) {
	t.Helper()
	for _, begin := range []string{"AGE-SECRET-KEY-", seal.RecoveryPrefix, seal.SharePrefix} {
		for rest := text; ; {
			_, after, found := strings.Cut(rest, begin)
			if !found {
				break
			}
			if after != "" && strings.ContainsAny(after[:1], "0123456789abcdefghijklmnopqrstuvwxyzPQ") {
				t.Errorf("%s: the error shows a secret: %s", what, text)
			}
			rest = after
		}
	}
}

func passphrase(text string) func(string) (secret.Bytes, error) {
	return func(string) (secret.Bytes, error) { return secret.New([]byte(text)), nil }
}
