package cli

import (
	"bytes"
	"context"
	"crypto/fips140"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// namedRoot is a root of which only the name matters.
type namedRoot struct {
	wrapping.Wrapper

	kind wrapping.WrapperType
	id   string
}

func (r namedRoot) Type(context.Context) (wrapping.WrapperType, error) { return r.kind, nil }

func (r namedRoot) KeyId(context.Context) (string, error) { return r.id, nil } //nolint:revive // the interface has this name

// slotsOnly is a database of which only the slots are read.
type slotsOnly struct {
	database

	in store.Installation
}

func (d slotsOnly) Installation(context.Context) (store.Installation, error) { return d.in, nil }

// Two Vaults may have a key of one name.
func TestARootThatHasTheNameOfTheActiveOneIsNotToldToBeReplacedByIt(t *testing.T) {
	db := slotsOnly{in: store.Installation{ActiveSlot: "kr_1", Slots: []store.Slot{
		{ID: "kr_0", State: key.Retired, WrapperType: "transit", WrapperKeyID: "transit/other"},
		{ID: "kr_1", State: key.Active, WrapperType: "transit", WrapperKeyID: "transit/k"},
	}}}
	for _, test := range []struct{ id, has, hint string }{
		{"transit/k", "the active root has the same name, transit transit/k, and is another key, or its slot was changed", "look whether it is the same place"},
		{"transit/new", "the active root is transit transit/k", "give that one; "},
	} {
		set := rootSet{own: &root{Wrapper: namedRoot{kind: "transit", id: test.id}, given: "transit:k"}}
		p := (&app{}).explain(t.Context(), set.wrong(t.Context(), db))
		if p.Message != "the root transit:k ("+test.id+") does not open this installation: "+test.has ||
			!strings.HasPrefix(p.Hint, test.hint) || !strings.Contains(p.Hint, "keyhold root recover") {
			t.Errorf("%s: %q, %q", test.id, p.Message, p.Hint)
		}
	}
}

func TestARootThatDoesNotAnswerIsWaitedForAsLongAsTimeoutSays(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	given := "transit:http://" + silent.Addr().String() + "/transit/k"
	flags := installation(t)
	_, _, stderr := run(t, nil, "status", "--timeout", "100ms", flags[0], flags[1], "--root", given)
	want := "keyhold: error: cannot use the root " + given + ": no answer within 100ms\nkeyhold: hint: --timeout allows more\n"
	if stderr != want {
		t.Errorf("%q, want %q", stderr, want)
	}
}

// An active root that fails is not told to be the wrong one because an old one is gone.
func TestWhichRootFailed(t *testing.T) {
	gone := &oldRoot{given: "file:gone.key", failed: explainRoot("file:gone.key", fs.ErrNotExist)}
	there := &oldRoot{given: "file:old.key"}
	ofOld := fmt.Errorf("%w: it is another", keyhold.ErrRoot)
	away := fmt.Errorf("the external root (transit k) failed: it was asked too often: %w, %w", keyhold.ErrRoot, keyhold.ErrRootUnavailable)
	for _, test := range []struct {
		own, ofOld error
		old        *oldRoot
		want       string
	}{
		{away, ofOld, gone, "the root transit:k failed: it was asked too often"},
		{ofOld, ofOld, gone, "the root transit:k does not open this installation, and of the old one: there is no root file:gone.key"},
		{ofOld, away, there, "the root transit:k does not open this installation, and an old root failed: it was asked too often"},
	} {
		set := rootSet{own: &root{Wrapper: namedRoot{kind: "transit", id: "k"}, given: "transit:k"}, old: []*oldRoot{test.old}}
		err := fmt.Errorf("%w; and of an old root: %w", test.own, test.ofOld)
		p := (&app{}).explain(t.Context(), set.explain(t.Context(), slotsOnly{}, err))
		if !strings.HasPrefix(p.Message, test.want) || strings.Contains(p.Hint, "keygen") {
			t.Errorf("%q, %q, want %q", p.Message, p.Hint, test.want)
		}
	}
}

// Somebody makes the recovery file's name theirs after it was looked at.
func TestARootThatWasAddedIsToldAlsoIfThereIsNoRecoveryFile(t *testing.T) {
	if fips140.Enforced() {
		t.Skip("age uses no approved algorithm")
	}
	flags := installation(t)
	added := "file:" + newRoot(t)
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "recovery.age")
	asked := escrowFlags{file: path, recipients: []string{identity.Recipient().String()}}
	files, err := asked.prepare(func(flag string) bool { return flag != "shares" })
	if err == nil {
		err = os.WriteFile(path, []byte("theirs"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a := &app{db: flags[1], root: flags[3], prefix: "kms", timeout: -1, out: &out, err: io.Discard}
	p := a.explain(t.Context(), a.addRoot(t.Context(), added, files))
	_, list, _ := run(t, nil, append([]string{"root", "list"}, flags...)...)
	var slot string
	for text := range strings.Lines(list) {
		if strings.Contains(text, " retired ") {
			slot, _, _ = strings.Cut(text, " ")
		}
	}
	want := "the root " + added + " opens the installation, by slot " + slot + ", but there is no recovery file: " +
		path + " is there already, and was not touched"
	if p.Message != want || p.Code != "exists" || slot == "" || out.Len() > 0 || !strings.HasPrefix(p.Hint, "keyhold root escrow FILE --recipient R") {
		t.Errorf("%+v, want %q; printed %q", p, want, &out)
	}
}
