package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// installation makes a root, an installation, and a scope "s" with the purpose "p", and returns the flags for it.
func installation(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root.key")
	flags := []string{"--db", "sqlite:" + filepath.Join(dir, "keys.db"), "--root", "file:" + root}
	for _, args := range [][]string{
		{"root", "keygen", root},
		append([]string{"init"}, flags...),
		append([]string{"scope", "create", "s", "--purpose", "p"}, flags...),
	} {
		var stderr bytes.Buffer
		if code := Main(t.Context(), args, nil, io.Discard, &stderr); code != exitDone {
			t.Fatalf("%v: exit code %d: %s", args, code, &stderr)
		}
	}
	return flags
}

// countingReader is so many bytes, and knows how many were read.
type countingReader struct{ left, read int }

func (r *countingReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), r.left)
	r.left -= n
	r.read += n
	clear(p[:n])
	return n, nil
}

func TestSealTakesWhatTheLimitAllowsAndReadsOneByteMoreAtMost(t *testing.T) {
	flags := installation(t)
	for _, test := range []struct {
		name       string
		size       int
		code, read int
		output     int
		stderr     string
	}{
		{"at the limit", envelope.MaxPlaintext, exitDone, envelope.MaxPlaintext, envelope.MaxPlaintext + envelope.AttachedOverhead, ""},
		{
			"one more", envelope.MaxPlaintext + 1, exitFailed, envelope.MaxPlaintext + 1, 0,
			"standard input has more than 67108864 bytes, which is the limit",
		},
		{"without end", 1 << 40, exitFailed, envelope.MaxPlaintext + 1, 0, "which is the limit"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := &countingReader{left: test.size}
			var out, stderr bytes.Buffer
			code := Main(t.Context(), append([]string{"seal", "--scope", "s", "--purpose", "p"}, flags...), in, &out, &stderr)
			if code != test.code || in.read != test.read || out.Len() != test.output || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("exit code %d, %d bytes read, %d written, %q", code, in.read, out.Len(), &stderr)
			}
			if code != exitDone {
				return
			}
			var opened bytes.Buffer
			code = Main(t.Context(), append([]string{"open", "--scope", "s", "--purpose", "p"}, flags...), &out, &opened, &stderr)
			if code != exitDone || opened.Len() != test.size {
				t.Errorf("open: exit code %d, %d bytes: %s", code, opened.Len(), &stderr)
			}
		})
	}
}

func TestOpenRefusesInputLongerThanAnySealedMessage(t *testing.T) {
	flags := installation(t)
	in := &countingReader{left: 1 << 40}
	var out, stderr bytes.Buffer
	code := Main(t.Context(), append([]string{"open"}, flags...), in, &out, &stderr)
	limit := envelope.MaxPlaintext + envelope.AttachedOverhead
	if code != exitFailed || in.read != limit+1 || out.Len() != 0 || !strings.Contains(stderr.String(), "is the limit") {
		t.Errorf("exit code %d, %d bytes read, %d written, %q", code, in.read, out.Len(), &stderr)
	}
}

// blockingReader says when it is read from, and never answers.
type blockingReader struct{ reading chan struct{} }

func (r blockingReader) Read([]byte) (int, error) {
	close(r.reading)
	select {}
}

func TestAnInterruptEndsACommandThatWaitsForItsInput(t *testing.T) {
	flags := installation(t)
	ctx, cancel := context.WithCancel(t.Context())
	in := blockingReader{make(chan struct{})}
	go func() {
		<-in.reading
		cancel()
	}()
	var out, stderr bytes.Buffer
	code := Main(ctx, append([]string{"seal", "--scope", "s", "--purpose", "p"}, flags...), in, &out, &stderr)
	if code != exitFailed || out.Len() != 0 || stderr.String() != "keyhold: error: interrupted\n" {
		t.Errorf("exit code %d, %q, %q", code, &out, &stderr)
	}
}

// brokenWriter takes nothing.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("it is broken") }

func TestOutputThatCannotBeWrittenIsAFailureOfEveryCommandThatPrints(t *testing.T) {
	flags := installation(t)
	var sealed bytes.Buffer
	seal := append([]string{"seal", "--scope", "s", "--purpose", "p"}, flags...)
	if code := Main(t.Context(), seal, strings.NewReader("x"), &sealed, io.Discard); code != exitDone {
		t.Fatal(code)
	}
	for _, command := range []string{
		"init", "scope create s --purpose p", "scope list", "key list", "key list s", "key rotate s", "key rewrap s", "key rewrap --all",
		"seal --scope s --purpose p", "open", "status", "migrate up", "migrate status", "migrate print", "version",
	} {
		for _, json := range []string{"", "--json"} {
			t.Run(command+json, func(t *testing.T) {
				args := append(strings.Fields(command+" "+json), flags...)
				var stderr bytes.Buffer
				code := Main(t.Context(), args, bytes.NewReader(sealed.Bytes()), brokenWriter{}, &stderr)
				if code != exitFailed || !strings.Contains(stderr.String(), "cannot write the result: it is broken") {
					t.Errorf("exit code %d, %q", code, &stderr)
				}
			})
		}
	}
}

func TestATimeoutOfNothingIsSaidAsOne(t *testing.T) {
	flags := installation(t)
	var stderr bytes.Buffer
	code := Main(t.Context(), append([]string{"status", "--timeout", "1ns"}, flags...), nil, io.Discard, &stderr)
	want := "keyhold: error: no answer within 1ns\nkeyhold: hint: --timeout allows more\n"
	if code != exitFailed || stderr.String() != want {
		t.Errorf("exit code %d, %q", code, &stderr)
	}
}

func TestStatusCountsWhatNeedsAttention(t *testing.T) {
	due := time.Now().Add(-time.Minute)
	k := keyhold.KeyInfo{
		Ref: key.Ref{Scope: "s", Purpose: "p"}, Head: 2, RotateAt: due, Due: true,
		Versions: []keyhold.VersionInfo{
			{Number: 1, State: key.Destroyed},
			{Number: 2, State: key.Active, Behind: true},
			{Number: 3, State: key.Pending},
		},
	}
	st := status{Versions: map[string]int{}}
	for range statusListed {
		st.count(&k)
	}
	got := st
	got.Attention = st.Attention[:3]
	want := status{
		DataKeys: statusListed, Due: statusListed, Behind: statusListed, Pending: statusListed,
		Versions: map[string]int{"destroyed": statusListed, "active": statusListed, "pending": statusListed},
		Attention: []attention{
			{"s", "p", "the rotation to version 3 was begun and not ended: rotate it again"},
			{"s", "p", "1 version is behind: rewrap the scope"},
			{"s", "p", "due since " + timeText(due) + ": rotate it"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(st.Attention) != statusListed {
		t.Errorf("%d things are listed", len(st.Attention))
	}
}

func TestEveryErrorThatACallerCanDecideOnIsOneSentence(t *testing.T) {
	wrapped := func(err error) error { return fmt.Errorf("scope %q: %w", "s", fmt.Errorf("do it: %w", err)) }
	for _, test := range []struct {
		err     error
		code    string
		message string
	}{
		{wrapped(keyhold.ErrNotInitialized), "not_initialized", "there is no installation in the database, with tables kms_*"},
		{wrapped(keyhold.ErrDisabled), "disabled", "the ciphertext's key version is disabled or destroyed"},
		{wrapped(keyhold.ErrRolledBack), "rolled_back", wrapped(keyhold.ErrRolledBack).Error()},
		{wrapped(keyhold.ErrTooLarge), "too_large", `scope "s": do it`},
		{wrapped(keyhold.ErrForeignKey), "foreign_key", `scope "s": do it: the application's tables refuse`},
		{wrapped(keyhold.ErrNotFound), "not_found", `scope "s": do it is not there`},
		{
			fmt.Errorf("open: %w: the disk is full (driver: code 13)", keyhold.ErrUnavailable),
			"unavailable", "cannot use the database: the disk is full",
		},
		{fmt.Errorf("open: it is a folder: %w", keyhold.ErrUnavailable), "unavailable", "cannot use the database: it is a folder"},
		{wrapped(context.DeadlineExceeded), "timeout", "no answer within 30s"},
		{
			errors.Join(&keyhold.IntegrityError{Subject: "the key", Reason: "it differs"}, errors.New("another")),
			"integrity", "the key is not as keyhold stored it: it differs",
		},
		{errors.New("one line\nand another"), "failed", "one line"},
	} {
		t.Setenv("KEYHOLD_DB", "")
		a := &app{prefix: "kms", timeout: 30 * time.Second}
		p := a.explain(t.Context(), test.err)
		if p.Code != test.code || p.Message != test.message || p.exit != exitFailed {
			t.Errorf("%v: code %s, exit code %d, %q", test.err, p.Code, p.exit, p.Message)
		}
	}
}

func TestShellQuoteKeepsAWordOneWord(t *testing.T) {
	for word, want := range map[string]string{
		"org_42": "org_42", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'", "Zoë": "'Zoë'",
	} {
		if got := shellQuote(word); got != want {
			t.Errorf("%q: %s, not %s", word, got, want)
		}
	}
}
