package keyhold_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
)

// The tests whose names begin with TestRace have processes, or connections, do at once what only one of them can, and
// assert what comes of it. Each does so several times: "make endure" says how often with this variable.
const repeatVariable = "KEYHOLD_TEST_REPEAT"

func repeats(t testing.TB) int {
	t.Helper()
	text := os.Getenv(repeatVariable)
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, and has to be a number from 1 on", repeatVariable, text)
	}
	return n
}

// order is what a process that stays up is to do, and answer what it says then; each is a line of JSON.
type order struct {
	Do     string
	Scope  key.Scope
	Times  int
	Sealed []message
}

type answer struct {
	Error    string
	Versions []key.Version // that it made
	Sealed   []message
}

// message is a ciphertext, and what it is to open as.
type message struct {
	Ref  key.Ref
	CT   []byte
	Text string
}

// serve follows orders until its standard input ends.
func serve(ctx context.Context, s store.Store, c keyhold.Config) error {
	faulty := faultstore.New(s)
	m, err := keyhold.New(ctx, faulty, c)
	if err != nil {
		return err
	}
	defer m.Close()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if o.Do == "rewrap a part" {
			faulty.Hook(secondBatch(func() {
				_ = out.Encode(answer{})
				_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
			}))
		}
		var a answer
		if err := o.follow(ctx, m, &a); err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// secondBatch is a hook that calls f before a store rewraps the second time.
func secondBatch(f func()) func(call string) {
	batches := 0
	return func(call string) {
		if call == "Rewrap" {
			if batches++; batches == 2 {
				f()
			}
		}
	}
}

func (o *order) follow(ctx context.Context, m *keyhold.Manager, a *answer) error {
	seal := func(purpose key.Purpose) error {
		msg := message{Ref: key.Ref{Scope: o.Scope, Purpose: purpose}, Text: fmt.Sprint("from process ", os.Getpid(), " in ", purpose)}
		var err error
		msg.CT, err = m.Seal(ctx, msg.Ref, []byte(msg.Text), keyhold.AAD{})
		a.Sealed = append(a.Sealed, msg)
		return err
	}
	switch o.Do {
	case "create":
		if err := m.CreateScope(ctx, o.Scope); err != nil {
			return err
		}
		return errors.Join(seal(secrets), seal(session))
	case "open":
		for _, msg := range o.Sealed {
			pt, err := m.Open(ctx, msg.Ref, msg.CT, keyhold.AAD{})
			if err != nil || string(pt) != msg.Text {
				return fmt.Errorf("open what was sealed %s: %q, %w", msg.Text, pt, err)
			}
		}
	case "rotate":
		for range o.Times {
			n, err := m.Rotate(ctx, key.Ref{Scope: o.Scope, Purpose: secrets})
			if err != nil {
				return err
			}
			a.Versions = append(a.Versions, n)
			if err := seal(secrets); err != nil {
				return err
			}
		}
	case "rotate and rewrap":
		return o.rotateAndRewrap(ctx, m, a)
	case "rewrap a part":
		_, err := m.Rewrap(ctx, o.Scope)
		return err
	default:
		return fmt.Errorf("no such order: %q", o.Do)
	}
	return nil
}

// rotateAndRewrap rotates the root key and two data keys in turns, in as many goroutines as the order says. Each
// rewraps after it rotated.
func (o *order) rotateAndRewrap(ctx context.Context, m *keyhold.Manager, a *answer) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for i := range o.Times {
		wg.Go(func() {
			err := func() error {
				n, err := m.Rotate(ctx, key.Ref{Scope: o.Scope, Purpose: []key.Purpose{"", secrets, "", session}[i%4]})
				if err != nil {
					return err
				}
				ref := key.Ref{Scope: o.Scope, Purpose: []key.Purpose{secrets, session}[i%2]}
				text := fmt.Sprint("by goroutine ", i, " that made version ", n)
				ct, err := m.Seal(ctx, ref, []byte(text), keyhold.AAD{})
				if err != nil {
					return err
				}
				mu.Lock()
				a.Sealed = append(a.Sealed, message{ref, ct, text})
				mu.Unlock()
				_, err = m.Rewrap(ctx, o.Scope)
				return err
			}()
			if err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// process is one that follows orders.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	stderr *bytes.Buffer
}

// startServing starts n processes in a folder, which end with the test.
func startServing(t *testing.T, dir string, n int) []*process {
	t.Helper()
	all := make([]*process, n)
	for i := range all {
		p := &process{cmd: exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0]), stderr: &bytes.Buffer{}}
		p.cmd.Dir, p.cmd.Env, p.cmd.Stderr = dir, append(os.Environ(), childVariable+"=serve"), p.stderr
		var err error
		p.in, err = p.cmd.StdinPipe()
		must(t, err)
		out, err := p.cmd.StdoutPipe()
		must(t, err)
		p.out = json.NewDecoder(out)
		must(t, p.cmd.Start())
		t.Cleanup(func() {
			if p.cmd.ProcessState != nil {
				return // it was killed
			}
			_ = p.in.Close() // an error says that it ended by itself, which Wait says, too
			if err := p.cmd.Wait(); err != nil {
				t.Errorf("a process ended with %v: %s", err, p.stderr)
			}
		})
		all[i] = p
	}
	return all
}

// obey has all processes follow an order at once, and returns the answers together. An error in one of them fails the
// test.
func obey(t *testing.T, processes []*process, o order) (together answer) {
	t.Helper()
	line, err := json.Marshal(o)
	must(t, err)
	for _, p := range processes {
		if _, err := p.in.Write(append(line, '\n')); err != nil {
			t.Fatalf("%s: a process is gone: %v", o.Do, err)
		}
	}
	for i, p := range processes {
		var a answer
		if err := p.out.Decode(&a); err != nil {
			t.Fatalf("%s: no answer from process %d: %v", o.Do, i, err)
		}
		if a.Error != "" {
			t.Errorf("%s in scope %q: process %d: %s", o.Do, o.Scope, i, a.Error)
		}
		together.Versions = append(together.Versions, a.Versions...)
		together.Sealed = append(together.Sealed, a.Sealed...)
	}
	if t.Failed() {
		t.FailNow()
	}
	return together
}

// heads asserts the heads of a scope's keys, the root key's first, that each key has every number up to its head once,
// and that nothing is pending or wrapped under an old root key version.
func heads(t *testing.T, m *keyhold.Manager, scope key.Scope, want map[key.Purpose]key.Version) {
	t.Helper()
	keys, err := m.Keys(t.Context(), scope)
	must(t, err)
	if len(keys) != len(want) {
		t.Errorf("scope %q has %d keys, want %d", scope, len(keys), len(want))
	}
	for _, k := range keys {
		if k.Head != want[k.Ref.Purpose] || len(k.Versions) != int(k.Head) {
			t.Errorf("%v: head %d of %d versions, want %d", k.Ref, k.Head, len(k.Versions), want[k.Ref.Purpose])
		}
		for i, v := range k.Versions {
			state := key.Retired
			if v.Number == k.Head {
				state = key.Active
			}
			if int(v.Number) != i+1 || v.State != state || v.Behind {
				t.Errorf("%v: version %d in place %d: %v, behind: %v", k.Ref, v.Number, i+1, v.State, v.Behind)
			}
		}
	}
}

func TestRaceToCreateAScopeMakesOneOfEachKey(t *testing.T) {
	fleets(t, func(t *testing.T, dir string, open func() *keyhold.Manager) {
		m := open()
		processes := startServing(t, dir, 8)
		for i := range repeats(t) {
			scope := key.Scope(fmt.Sprint("s", i))
			sealed := obey(t, processes, order{Do: "create", Scope: scope}).Sealed
			if len(sealed) != 16 {
				t.Errorf("%d messages, want 16", len(sealed))
			}
			obey(t, processes, order{Do: "open", Scope: scope, Sealed: sealed})
			heads(t, m, scope, map[key.Purpose]key.Version{"": 1, secrets: 1, session: 1, search: 1, token: 1})
		}
		checked(t, m)
	})
}

func TestRaceOfRotationsMakesEveryNumberOnce(t *testing.T) {
	fleets(t, func(t *testing.T, dir string, open func() *keyhold.Manager) {
		m := open()
		processes := startServing(t, dir, 8)
		for i := range repeats(t) {
			scope := key.Scope(fmt.Sprint("s", i))
			sealed := obey(t, processes[:1], order{Do: "create", Scope: scope}).Sealed
			rotated := obey(t, processes, order{Do: "rotate", Scope: scope, Times: 10})
			slices.Sort(rotated.Versions)
			for i, n := range rotated.Versions {
				if int(n) != i+2 || len(rotated.Versions) != 80 {
					t.Fatalf("versions %v; want each of 2 to 81 once", rotated.Versions)
				}
			}
			sealed = append(sealed, rotated.Sealed...)
			sealed = append(sealed, obey(t, processes[1:2], order{Do: "create", Scope: scope}).Sealed...)
			if len(sealed) != 84 {
				t.Errorf("%d messages, want 84", len(sealed))
			}
			obey(t, processes[:2], order{Do: "open", Scope: scope, Sealed: sealed})
			heads(t, m, scope, map[key.Purpose]key.Version{"": 1, secrets: 81, session: 1, search: 1, token: 1})
		}
		checked(t, m)
	})
}

func TestRaceOfRotationsAndRewrapsEndsUnderTheNewestRootKey(t *testing.T) {
	fleets(t, func(t *testing.T, dir string, open func() *keyhold.Manager) {
		m := open()
		processes := startServing(t, dir, 2)
		for i := range repeats(t) {
			scope := key.Scope(fmt.Sprint("s", i))
			sealed := obey(t, processes[:1], order{Do: "create", Scope: scope}).Sealed
			sealed = append(sealed, obey(t, processes, order{Do: "rotate and rewrap", Scope: scope, Times: 8}).Sealed...)
			if len(sealed) != 18 {
				t.Errorf("%d messages, want 18", len(sealed))
			}
			heads(t, m, scope, map[key.Purpose]key.Version{"": 9, secrets: 5, session: 5, search: 1, token: 1})
			if n, err := m.Rewrap(t.Context(), scope); n != 0 || err != nil {
				t.Errorf("rewrapped %d afterwards, %v; want nothing left", n, err)
			}
			obey(t, processes, order{Do: "open", Scope: scope, Sealed: sealed})
		}
		checked(t, m)
	})
}

// A rewrap whose context ends after a batch, and one whose process is killed, leave the rest to the next.
func TestRaceRewrapThatWasStoppedIsTakenUp(t *testing.T) {
	fleets(t, func(t *testing.T, dir string, open func() *keyhold.Manager) {
		m := open()
		must(t, m.CreateScope(t.Context(), tenant))
		s, err := storeIn(t.Context(), dir)
		must(t, err)
		defer s.Close()
		name, err := os.ReadFile(filepath.Join(dir, "kind"))
		must(t, err)
		tx, commit, _ := stores[string(name)].begin(t, s)
		for range 220 {
			_, err := m.RotateTx(t.Context(), tx, ref)
			must(t, err)
		}
		must(t, commit())
		sealed := obey(t, startServing(t, dir, 1), order{Do: "rotate", Scope: tenant, Times: 1}).Sealed
		faulty := faultstore.New(s)
		root, err := localroot.Open(filepath.Join(dir, "root.key"))
		must(t, err)
		stopping := newManager(t, faulty, root)
		for i := range repeats(t) {
			newest, err := m.Rotate(t.Context(), key.Ref{Scope: tenant})
			must(t, err)

			ctx, cancel := context.WithCancel(t.Context())
			faulty.Hook(secondBatch(cancel))
			n, err := stopping.Rewrap(ctx, tenant)
			if n != 100 || !errors.Is(err, context.Canceled) {
				t.Errorf("stopped by its context: rewrapped %d, %v; want 100 and %v", n, err, context.Canceled)
			}

			killed := startServing(t, dir, 1)
			obey(t, killed, order{Do: "rewrap a part", Scope: tenant})
			must(t, killed[0].cmd.Process.Kill())
			if err := killed[0].cmd.Wait(); err == nil || killed[0].stderr.Len() > 0 {
				t.Errorf("%v: %s; want a killed process that had nothing to say", err, killed[0].stderr)
			}

			// 222 versions for secrets, and one for each other purpose.
			if n, err := m.Rewrap(t.Context(), tenant); n != 222+3-200 || err != nil {
				t.Errorf("taken up: rewrapped %d, %v; want the 25 that were left", n, err)
			}
			if int(newest) != i+2 {
				t.Errorf("root key version %d, want %d", newest, i+2)
			}
			heads(t, m, tenant, map[key.Purpose]key.Version{"": newest, secrets: 222, session: 1, search: 1, token: 1})
		}
		obey(t, startServing(t, dir, 1), order{Do: "open", Scope: tenant, Sealed: sealed})
		checked(t, m)
	})
}
