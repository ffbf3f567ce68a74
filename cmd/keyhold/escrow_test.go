package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/rogpeppe/go-internal/testscript"
)

// identity FILE VARIABLE [hybrid|locked]: makes an age identity in a file, as age-keygen does, and sets the variable to
// its recipient. A locked one is sealed with the passphrase "open sesame".
func identity(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 || len(args) == 3 && args[2] != "hybrid" && args[2] != "locked" {
		ts.Fatalf("usage: identity FILE VARIABLE [hybrid|locked]")
	}
	var secret, recipient fmt.Stringer
	kind := args[len(args)-1]
	if kind == "hybrid" {
		id, err := age.GenerateHybridIdentity()
		ts.Check(err)
		secret, recipient = id, id.Recipient()
	} else {
		id, err := age.GenerateX25519Identity()
		ts.Check(err)
		secret, recipient = id, id.Recipient()
	}
	var out bytes.Buffer
	if kind == "locked" {
		passphrase, err := age.NewScryptRecipient("open sesame")
		ts.Check(err)
		passphrase.SetWorkFactor(10)
		w, err := age.Encrypt(&out, passphrase)
		ts.Check(err)
		_, err = io.WriteString(w, secret.String())
		ts.Check(errors.Join(err, w.Close()))
	} else {
		out.WriteString(secret.String() + "\n")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), out.Bytes(), 0o600))
	ts.Setenv(args[1], recipient.String())
}

// reveal FILE IDENTITY TO: opens a recovery file, as age does, into another file.
func reveal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: reveal FILE IDENTITY TO")
	}
	ids, err := age.ParseIdentities(strings.NewReader(ts.ReadFile(args[1])))
	ts.Check(err)
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(ts.ReadFile(args[0]))), ids...)
	ts.Check(err)
	line, err := io.ReadAll(r)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), line, 0o600))
}
