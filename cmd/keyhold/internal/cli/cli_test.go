package cli

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
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
	id := retiredVersion(t, flags)
	db, err := sql.Open("sqlite", strings.TrimPrefix(flags[1], "sqlite:"))
	if err == nil {
		_, err = db.Exec("create table note (about text references kms_data_key_version (private_id))")
	}
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{
		"init", "scope create s --purpose p", "scope list", "scope reconcile --purpose p", "key list", "key list s", "key rotate s",
		"key rotate s --rewrap", "key rewrap s", "key rewrap --all", "key references",
		"seal --scope s --purpose p", "open", "key disable " + id, "key enable " + id, "key disable " + id, "key destroy " + id,
		"key destroy --yes --grace 0 " + id, "key policy s --purpose p --max-messages 7", "run --once",
		"status", "migrate up", "migrate status", "migrate print", "version",
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
	now := time.Unix(1_800_000_000, 0).UTC()
	at := func(before time.Duration) time.Time { return now.Add(-before) }
	k := func(due, pending time.Duration) *keyhold.KeyInfo {
		return &keyhold.KeyInfo{
			ID: "kdk_1", Ref: key.Ref{Scope: "s", Purpose: "p"}, Head: 2, RotateAt: at(due), Due: true,
			Versions: []keyhold.VersionInfo{
				{Number: 1, State: key.Destroyed},
				{Number: 2, State: key.Active, Behind: true},
				{Number: 3, State: key.Pending, Created: at(pending)},
			},
		}
	}
	used := func(head key.Version, since time.Duration) map[key.ID]store.Due {
		return map[key.ID]store.Due{"kdk_1": {Head: head, At: at(since).Unix()}}
	}
	const (
		due     = "due since 2027-01-15T07:59:00Z"
		pending = "version 3 is pending since 2027-01-15T07:59:59Z"
		behind  = "1 version is behind: rewrap the scope"
		nearly  = "four fifths of the messages of version 2 are given out since 2027-01-15T08:00:00Z"
	)
	for _, test := range []struct {
		name string
		key  *keyhold.KeyInfo
		used map[key.ID]store.Due

		usedKeys, overdue int
		want              []string
	}{
		{"all is new", k(time.Minute, time.Second), used(2, 0), 1, 0, []string{pending, behind, due, nearly}},
		{"what a version used that is the head no more", k(time.Minute, time.Second), used(1, 0), 0, 0, []string{pending, behind, due}},
		{"an hour is not overdue", k(time.Hour, time.Second), nil, 0, 0, []string{pending, behind, "due since 2027-01-15T07:00:00Z"}},
		{
			"due for too long", k(time.Hour+time.Second, time.Second), nil, 0, 1,
			[]string{pending, behind, "overdue: due since 2027-01-15T06:59:59Z"},
		},
		{
			"pending for too long", k(time.Minute, 2*time.Hour), nil, 0, 1,
			[]string{"overdue: version 3 is pending since 2027-01-15T06:00:00Z", behind, due},
		},
		{
			"used up for too long, and due", k(2*time.Hour, time.Second), used(2, 2*time.Hour), 1, 1,
			[]string{
				pending, behind, "overdue: due since 2027-01-15T06:00:00Z",
				"overdue: four fifths of the messages of version 2 are given out since 2027-01-15T06:00:00Z",
			},
		},
	} {
		st := status{Versions: map[string]int{}, now: now, used: test.used}
		for range statusListed {
			st.count(test.key)
		}
		counts := []int{st.DataKeys, st.Due, st.Pending, st.Behind, st.Used, st.Overdue, len(st.Attention)}
		const n = statusListed
		if diff := cmp.Diff([]int{n, n, n, n, n * test.usedKeys, n * test.overdue, n}, counts); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
		for i, what := range test.want {
			if diff := cmp.Diff(attention{"s", "data", "p", what}, st.Attention[i]); diff != "" {
				t.Errorf("%s: %s", test.name, diff)
			}
		}
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
		{
			wrapped(&keyhold.UnseenError{Instances: []keyhold.InstanceInfo{
				{Name: "host app 7", Signed: time.Unix(1_800_000_000, 0), Until: time.Unix(1_800_000_960, 0)}, {ID: "ki_1", Name: "a\x1b[2J"}, {ID: "ki_2"},
			}}),
			"unseen", "these processes have not seen the last change: host app 7 (last sign 2027-01-15T08:00:00Z, " +
				`live until 2027-01-15T08:16:00Z), "a\u001b[2J" (last sign -, live until -), ki_2 (last sign -, live until -)`,
		},
		{
			wrapped(fmt.Errorf("key version kdkv_1: %w", keyhold.ErrUsedUp)),
			"used_up", `scope "s": do it: key version kdkv_1 has sealed all the messages that its policy allows`,
		},
		{
			wrapped(fmt.Errorf("%w: the last answer is 1h0m0s old: %w", keyhold.ErrStale, keyhold.ErrUnavailable)),
			"stale", "the database has been away for longer than keys are used without it",
		},
		{
			wrapped(&keyhold.InUseError{ID: "kdkv_1", References: []keyhold.Reference{{Column: keyhold.Column{Table: "t", Column: "c"}, Rows: 2}}}),
			"in_use", "key version kdkv_1 is in use: rows that have its id: 2 in t.c",
		},
		{wrapped(keyhold.ErrForeignKey), "foreign_key", `scope "s": do it: the application's tables refuse`},
		{wrapped(keyhold.ErrNotFound), "not_found", `scope "s": do it is not there`},
		{
			fmt.Errorf("open: %w: the disk is full (driver: code 13)", keyhold.ErrUnavailable),
			"unavailable", "cannot use the database: the disk is full",
		},
		{fmt.Errorf("open: it is a folder: %w", keyhold.ErrUnavailable), "unavailable", "cannot use the database: it is a folder"},
		{wrapped(context.DeadlineExceeded), "timeout", "no answer within 30s"},
		{
			wrapped(fmt.Errorf("no answer within 30s (Config.Timeout): %w: %w", keyhold.ErrUnavailable, context.DeadlineExceeded)),
			"timeout", "no answer within 30s",
		},
		{
			fmt.Errorf("open: %w: the connection cannot be made (dial: %w)", keyhold.ErrUnavailable, context.DeadlineExceeded),
			"unavailable", "cannot use the database: the connection cannot be made",
		},
		{
			errors.Join(&keyhold.IntegrityError{Subject: "the key", Reason: "it differs"}, errors.New("another")),
			"integrity", "the key is not as keyhold stored it: it differs",
		},
		{
			&brokenError{&keyhold.IntegrityError{Subject: "the key", Reason: "it differs"}, 2},
			"integrity", "the key is not as keyhold stored it: it differs; so is it with keys of 2 more scopes",
		},
		{
			wrapped(store.ErrUnknownOutcome),
			"unknown_outcome", "the database was lost at the commit: what was asked may have been done, or not",
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

func TestAnInvalidContextIsSaidWithoutAValue(t *testing.T) {
	a := &app{}
	p := a.explain(t.Context(), key.Invalid("context", "", "it has 300 parts, the limit is 255"))
	if p.exit != exitUsage || p.Message != "invalid context: it has 300 parts, the limit is 255" {
		t.Errorf("exit code %d, %q", p.exit, p.Message)
	}
}

// scopes are the given ones, and then an error if it is not nil.
func scopes(end error, names ...keyhold.Scope) iter.Seq2[keyhold.Scope, error] {
	return func(yield func(keyhold.Scope, error) bool) {
		for _, name := range names {
			if !yield(name, nil) {
				return
			}
		}
		if end != nil {
			yield("", end)
		}
	}
}

func TestEachScopeGoesOnAfterABrokenScopeAndStopsAtAnyOtherError(t *testing.T) {
	away := fmt.Errorf("read: %w", keyhold.ErrUnavailable)
	gone := fmt.Errorf("scope: %w", keyhold.ErrNotFound)
	broken := func(subject string) error {
		return fmt.Errorf("read: %w", &keyhold.IntegrityError{Subject: subject, Reason: "it differs"})
	}
	first := broken("first")
	for _, test := range []struct {
		name    string
		errs    map[keyhold.Scope]error
		end     error
		visited string
		want    error
		more    int
	}{
		{"nothing is wrong", nil, nil, "abcd", nil, 0},
		{"one is gone", map[keyhold.Scope]error{"b": gone}, nil, "abcd", nil, 0},
		{"one is broken", map[keyhold.Scope]error{"b": first}, nil, "abcd", first, 0},
		{"three are broken", map[keyhold.Scope]error{"a": first, "b": broken("b"), "d": broken("d")}, nil, "abcd", first, 2},
		{"the database goes away", map[keyhold.Scope]error{"b": away}, nil, "ab", away, 0},
		{"it goes away after one was broken", map[keyhold.Scope]error{"a": first, "c": away}, nil, "abc", away, 0},
		{"it goes away in a broken scope", map[keyhold.Scope]error{"b": errors.Join(first, away)}, nil, "ab", away, 0},
		{"it goes away between two pages", nil, away, "abcd", away, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			visited := ""
			err := eachScope(scopes(test.end, "a", "b", "c", "d"), func(scope keyhold.Scope) error {
				visited += string(scope)
				return test.errs[scope]
			})
			more := 0
			if several := (*brokenError)(nil); errors.As(err, &several) {
				more = several.more
			}
			if !errors.Is(err, test.want) || visited != test.visited || more != test.more {
				t.Errorf("visited %s, %d more broken, error %v; want %s, %d, %v", visited, more, err, test.visited, test.more, test.want)
			}
		})
	}
}

// flushes is what is written, write by write.
type flushes []string

func (f *flushes) Write(p []byte) (int, error) {
	*f = append(*f, string(p))
	return len(p), nil
}

func TestATableIsPrintedInPartsAndInWholeWhateverEndsIt(t *testing.T) {
	const rows = 2*streamPart + 1
	for name, failure := range map[string]error{"all of it": nil, "until an error": errors.New("it ends here")} {
		t.Run(name, func(t *testing.T) {
			var out flushes
			list := (&app{out: &out}).newStream("NUMBER\tAGAIN")
			for i := range rows {
				if err := list.add(i, func(w io.Writer) { line(w, i, i) }); err != nil {
					t.Fatal(err)
				}
				if printed := strings.Count(strings.Join(out, ""), "\n"); i+1 == streamPart && printed != streamPart+1 {
					t.Errorf("after %d rows, %d lines are printed", i+1, printed)
				}
			}
			if err := list.end(failure); !errors.Is(err, failure) {
				t.Errorf("ends with %v", err)
			}
			if printed := strings.Count(strings.Join(out, ""), "\n"); printed != rows+1 {
				t.Errorf("%d lines are printed", printed)
			}
		})
	}
}

func TestAnArrayIsClosedWhateverEndsIt(t *testing.T) {
	failure := errors.New("it ends here")
	for _, test := range []struct {
		n    int
		err  error
		want string
	}{
		{0, nil, "[]\n"}, {0, failure, ""}, {2, nil, "[\n0,\n1\n]\n"}, {2, failure, "[\n0,\n1\n]\n"},
	} {
		var out bytes.Buffer
		list := (&app{out: &out, json: true}).newStream("")
		for i := range test.n {
			if err := list.add(i, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := list.end(test.err); !errors.Is(err, test.err) || out.String() != test.want {
			t.Errorf("%d elements and %v: %v, %q", test.n, test.err, err, &out)
		}
	}
}

func TestOfManyThatInitializeAtOnceOneSaysThatItDid(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { initializeAtOnce(t, "sqlite:"+filepath.Join(t.TempDir(), "keys.db")) })
	t.Run("postgres", func(t *testing.T) { initializeAtOnce(t, keyholdtest.Postgres(t)) })
}

func initializeAtOnce(t *testing.T, db string) {
	t.Helper()
	root := newRoot(t)
	var results [8]struct {
		code   int
		stdout bytes.Buffer
		stderr bytes.Buffer
	}
	var all sync.WaitGroup
	for i := range results {
		r := &results[i]
		all.Go(func() {
			args := []string{"init", "--json", "--db", db, "--root", "file:" + root}
			r.code = Main(t.Context(), args, nil, &r.stdout, &r.stderr)
		})
	}
	all.Wait()
	made := 0
	pins := map[string]bool{}
	for i := range results {
		r := &results[i]
		var said struct {
			Created bool
			Pin     string
		}
		if err := json.Unmarshal(r.stdout.Bytes(), &said); err != nil || r.code != exitDone {
			t.Errorf("exit code %d, %v: %s", r.code, err, &r.stderr)
		}
		if said.Created {
			made++
		}
		pins[said.Pin] = true
	}
	if made != 1 || len(pins) != 1 {
		t.Errorf("%d say that they made it; pins %v", made, pins)
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

func TestHowThisProgramIsRunAgainIsSomethingThatIsThere(t *testing.T) {
	// A test is run from a folder of the build, as "go run" runs a program.
	if got := programName(); got != "keyhold" {
		t.Errorf("where there is no source: %s", got)
	}
	dir := t.TempDir()
	main := filepath.Join(dir, "cmd", "keyhold", "main.go")
	if err := errors.Join(os.MkdirAll(filepath.Dir(main), 0o700), os.WriteFile(main, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	if got := programName(); got != "go run ./cmd/keyhold" {
		t.Errorf("where its source is: %s", got)
	}
}
