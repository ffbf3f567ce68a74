package sqltest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// childEnv makes the test binary a process that works on a database: what it does, its number, the address.
const childEnv = "KEYHOLD_SQLTEST_CHILD"

const transactionsOfAChild = 40

// Child does what this process was started for by TestProcesses, and ends it. Otherwise it does nothing. TestMain
// begins with it.
func (db Database) Child() {
	child := os.Getenv(childEnv)
	if child == "" {
		return
	}
	if err := db.runChild(strings.SplitN(child, " ", 3)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (db Database) runChild(args []string) error {
	ctx := context.Background() //nolint:forbidigo // the process is the work, and ends with it
	number, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	// All begin at once: when the parent closes their input.
	if _, err := io.ReadAll(os.Stdin); err != nil {
		return err
	}
	s, err := db.Connect(ctx, args[2])
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Migrate(ctx); err != nil || args[0] == "migrate" {
		return err
	}
	in, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	m, inst := storetest.NewMaker(number), [16]byte(in.Inst)
	for i := 0; args[0] == "crash" || i < transactionsOfAChild; i++ {
		scope := key.Scope(fmt.Sprintf("%d-%d", number, i))
		keys := m.Scope(scope, "one")
		for i := range keys {
			keys[i].IKKID = in.IKKID
		}
		keys[0].Versions[0].IKKID = in.IKKID
		if n, err := s.Create(ctx, inst, keys); n != 2 || err != nil {
			return fmt.Errorf("create scope %s: %d, %w", scope, n, err)
		}
		if err := rotateShared(ctx, s, m, inst); err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, scope)
	}
	return nil
}

// rotateShared adds a version to the key that all processes share, makes it the head, and destroys the one before.
func rotateShared(ctx context.Context, s store.Store, m *storetest.Maker, inst [16]byte) error {
	for {
		f, err := s.Key(ctx, shared)
		if err != nil {
			return err
		}
		k := &f.Data[0]
		var u store.Update
		switch last := k.Versions[len(k.Versions)-1]; {
		case last.State == key.Pending:
			u = m.Activate(k, last.Number)
		case len(k.Versions) > 1 && k.Versions[0].State == key.Retired:
			u = m.Step(k, k.Versions[0].Number, key.Disabled)
		case len(k.Versions) > 1:
			u = m.Destroy(k, k.Versions[0].Number)
		default:
			u = m.Add(k, &f.Root)
		}
		u.Inst, u.Manifest.IKKID = inst, k.IKKID
		if err := s.Update(ctx, u); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

type child struct {
	*exec.Cmd

	stdin  io.Closer
	stdout *bufio.Scanner
	stderr *bytes.Buffer
}

func startChild(t *testing.T, do string, number int, address string) *child {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	c := &child{Cmd: exec.CommandContext(t.Context(), self), stderr: &bytes.Buffer{}} //nolint:gosec // this program
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", childEnv, do, number, address))
	stdin, err := c.StdinPipe()
	must(t, err)
	stdout, err := c.StdoutPipe()
	must(t, err)
	c.stdin, c.stdout, c.Stderr = stdin, bufio.NewScanner(stdout), c.stderr
	must(t, c.Start())
	return c
}

// finish reads what the child prints until it ends.
func (c *child) finish(t *testing.T) (scopes []key.Scope) {
	t.Helper()
	for c.stdout.Scan() {
		scopes = append(scopes, key.Scope(c.stdout.Text()))
	}
	if err := c.Wait(); err != nil {
		t.Errorf("child: %v: %s", err, c.stderr)
	}
	return scopes
}

func startChildren(t *testing.T, n int, do, address string) []*child {
	t.Helper()
	var children []*child
	for i := range n {
		children = append(children, startChild(t, do, i+1, address))
	}
	for _, c := range children {
		must(t, c.stdin.Close())
	}
	return children
}

// TestProcesses has several processes work on one database. The test binary's TestMain has to begin with
// [Database.Child].
func (db Database) TestProcesses(t *testing.T) {
	t.Parallel()
	t.Run("that migrate an empty database at once all succeed", func(t *testing.T) {
		t.Parallel()
		for range 3 {
			address := db.Fresh(t)
			for _, c := range startChildren(t, 8, "migrate", address) {
				c.finish(t)
			}
			must(t, db.Open(t, defaults, address).CheckSchema(t.Context()))
		}
	})
	t.Run("that work at once lose nothing", func(t *testing.T) {
		t.Parallel()
		db.workAtOnce(t)
	})
	t.Run("that are killed leave whole transactions", func(t *testing.T) {
		t.Parallel()
		db.kill(t)
	})
}

func (db Database) workAtOnce(t *testing.T) {
	t.Helper()
	const n = 8
	address := db.Fresh(t)
	s := db.Open(t, defaults, address)
	Initialized(t, s, storetest.NewMaker(100))
	for i, c := range startChildren(t, n, "work", address) {
		if got := len(c.finish(t)); got != transactionsOfAChild {
			t.Errorf("process %d did %d transactions; want %d", i, got, transactionsOfAChild)
		}
	}
	scopes, err := s.Scopes(t.Context(), "", 10_000)
	if err != nil || len(scopes) != 1+n*transactionsOfAChild {
		t.Errorf("%d scopes, %v; want %d", len(scopes), err, 1+n*transactionsOfAChild)
	}
	f, err := s.Key(t.Context(), shared)
	if err != nil || f.Data[0].Seq != 1+n*transactionsOfAChild {
		t.Errorf("the shared key's sequence number is %d, %v; want %d", f.Data[0].Seq, err, 1+n*transactionsOfAChild)
	}
	storetest.Check(t, s)
}

func (db Database) kill(t *testing.T) {
	t.Helper()
	const rounds = 20
	address := db.Fresh(t)
	first := db.Open(t, defaults, address)
	Initialized(t, first, storetest.NewMaker(100))
	var committed []key.Scope
	for round := range rounds {
		c := startChild(t, "crash", round+1, address)
		must(t, c.stdin.Close())
		for range rand.IntN(30) { //nolint:gosec // any moment will do
			if !c.stdout.Scan() {
				break
			}
			committed = append(committed, key.Scope(c.stdout.Text()))
		}
		must(t, c.Process.Kill())
		for c.stdout.Scan() { // what it said before it was killed counts, too
			committed = append(committed, key.Scope(c.stdout.Text()))
		}
		if err := c.Wait(); err == nil || c.stderr.Len() > 0 {
			t.Errorf("round %d: %v: %s; want a killed process that had nothing to say", round, err, c.stderr)
		}
		s, err := db.Connect(t.Context(), address)
		must(t, err)
		if found, err := s.Integrity(t.Context()); err != nil || len(found) > 0 {
			t.Errorf("round %d: Integrity: %q, %v", round, found, err)
		}
		storetest.Check(t, s)
		must(t, s.Close())
	}
	for _, scope := range committed {
		if f, err := first.Scope(t.Context(), scope); err != nil || len(f.Data) != 1 {
			t.Errorf("scope %s was committed: %d data keys, %v", scope, len(f.Data), err)
		}
	}
	if len(committed) < rounds {
		t.Errorf("only %d transactions were committed", len(committed))
	}
}
