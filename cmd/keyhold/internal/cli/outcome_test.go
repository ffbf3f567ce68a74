package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// A server whose standby is away commits, and never says so. What the database shows afterwards may be lost with it.
func TestAChangeWhoseCommitIsNotAcknowledgedIsNotToldAsDone(t *testing.T) {
	b, err := pgserver.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := pgserver.Start(t.Context(), b, pgserver.Options{Settings: map[string]string{"synchronous_standby_names": "nobody", "synchronous_commit": "on"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	waits := []string{"--db", s.DSN("postgres"), "--root", "file:" + newRoot(t)}
	flags := append([]string{}, waits...)
	flags[1] += "&options=-c%20synchronous_commit%3Dlocal"
	for _, command := range []string{"init", "scope create s --purpose p --purpose q --purpose r"} {
		if code, _, stderr := run(t, nil, append(strings.Fields(command), flags...)...); code != exitDone {
			t.Fatalf("%s: %s", command, stderr)
		}
	}
	id := retiredVersion(t, flags)
	var all sync.WaitGroup
	for command, may := range map[string]string{
		"key disable " + id:                          `version 1 of the key "p" of scope "s" may be disabled`,
		"key rotate s --purpose q":                   `the rotation of the key "q" of scope "s" may have been done`,
		"key policy s --purpose r --rotate-every 7d": `the policy of the key "r" of scope "s" may be changed`,
		"scope create t --purpose p":                 `scope "t" may have its keys`,
	} {
		all.Go(func() {
			code, stdout, stderr := run(t, nil, append(strings.Fields(command+" --timeout 4s"), waits...)...)
			sentence, hint, _ := strings.Cut(stderr, "\n")
			if code != exitFailed || stdout != "" || !strings.HasSuffix(sentence, ": "+may+", or not") ||
				!strings.Contains(hint, "keyhold: hint: keyhold key list --db ") || !strings.Contains(hint, " shows whether it was") {
				t.Errorf("%s: exit code %d, %q, %q", command, code, stdout, stderr)
			}
		})
	}
	all.Wait()
}

// lateStore changes keys, and from the second change on does not say so in time.
type lateStore struct {
	store.Store

	updates atomic.Int64
}

func (s *lateStore) Update(ctx context.Context, u store.Update) error {
	err := s.Store.Update(ctx, u)
	if s.updates.Add(1) == 1 || err != nil {
		return err
	}
	<-ctx.Done()
	return fmt.Errorf("%w: %w", store.ErrUnknownOutcome, ctx.Err())
}

func TestOnlyPoliciesThatAreCertainlyChangedArePrinted(t *testing.T) {
	root, err := localroot.Open(newRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	m, err := keyhold.New(t.Context(), &lateStore{Store: memstore.New()}, keyhold.Config{
		Root: root, Purposes: []keyhold.Purpose{"p", "q", "r"}, Initialize: true, Timeout: 100 * time.Millisecond, Strict: true,
	})
	if err == nil {
		err = m.CreateScope(t.Context(), "s")
	}
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a := &app{out: &out, err: io.Discard, timeout: 100 * time.Millisecond}
	err = a.policies(t.Context(), &session{Manager: m}, []string{"s"}, &policyChange{
		purposes: []keyhold.Purpose{"p", "q", "r"}, every: 7 * day, found: map[keyhold.Purpose]bool{},
	})
	const want = `no answer within 100ms: the policy of the key "q" of scope "s" may be changed, or not`
	if err == nil || err.Error() != want || strings.Count(out.String(), " 7d ") != 1 || !strings.Contains(out.String(), "\ns      p ") {
		t.Errorf("%v, %q", err, &out)
	}
	keys, err := m.Keys(t.Context(), "s")
	if err != nil || keys[2].RotateEvery != 7*day || keys[3].RotateEvery == 7*day {
		t.Errorf("%v, %v", keys, err)
	}
}

func TestAnErrorThatLeavesOpenWhatWasDoneSaysSo(t *testing.T) {
	wrapped := func(err error) error { return fmt.Errorf("rotate: %w", err) }
	late := fmt.Errorf("no answer within 5s (Config.Timeout): %w: %w", keyhold.ErrUnavailable, context.DeadlineExceeded)
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		err  error
		want string // empty if the error says what was done
		code string
	}{
		{"lost at the commit", t.Context(), wrapped(store.ErrUnknownOutcome), "the database was lost at the commit: it may be done, or not", "unknown_outcome"},
		{"no answer", t.Context(), wrapped(late), "no answer within 5s: it may be done, or not", "unknown_outcome"},
		{
			"no answer at the commit", t.Context(), wrapped(errors.Join(store.ErrUnknownOutcome, late)),
			"no answer within 5s: it may be done, or not", "unknown_outcome",
		},
		{"interrupted", interrupted, wrapped(context.Canceled), "interrupted: it may be done, or not", "interrupted"},
		{"refused", t.Context(), wrapped(keyhold.ErrState), "", ""},
		{"away", t.Context(), wrapped(keyhold.ErrUnavailable), "", ""},
		{"done", t.Context(), nil, "", ""},
	} {
		a := &app{timeout: 5 * time.Second}
		err := a.unsure(test.ctx, test.err, "it may be done", "look there")
		p, said := errors.AsType[*problem](err)
		switch {
		case test.want == "" && (said || !errors.Is(err, test.err)):
			t.Errorf("%s: %v", test.name, err)
		case test.want != "" && (!said || p.Message != test.want || p.Code != test.code || p.Hint != "look there" || p.exit != exitFailed):
			t.Errorf("%s: %v", test.name, p)
		}
	}
}
