package pgstore

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
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// childEnv makes the test binary a process that works on a database: what it does, its number, the address.
const childEnv = "PGSTORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if child := os.Getenv(childEnv); child != "" {
		if err := runChild(strings.SplitN(child, " ", 3)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const transactionsOfAChild = 40

var shared = key.Ref{Scope: "a", Purpose: "one"}

func runChild(args []string) error {
	ctx := context.Background()
	number, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	// All begin at once: when the parent closes their input.
	if _, err := io.ReadAll(os.Stdin); err != nil {
		return err
	}
	s, err := Open(ctx, args[2])
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
		fmt.Println(scope)
	}
	return nil
}

// rotateShared adds a version to the key that all processes share, makes it the head, and destroys the one before.
func rotateShared(ctx context.Context, s *Store, m *storetest.Maker, inst [16]byte) error {
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

func startChild(t *testing.T, do string, number int, dsn string) *child {
	t.Helper()
	c := &child{Cmd: exec.CommandContext(t.Context(), os.Args[0]), stderr: &bytes.Buffer{}}
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", childEnv, do, number, dsn))
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

func startChildren(t *testing.T, n int, do, dsn string) []*child {
	t.Helper()
	var children []*child
	for i := range n {
		children = append(children, startChild(t, do, i+1, dsn))
	}
	for _, c := range children {
		must(t, c.stdin.Close())
	}
	return children
}

func TestProcessesThatMigrateADatabaseAtOnceAllSucceed(t *testing.T) {
	for range 2 {
		dsn := keyholdtest.Postgres(t)
		for _, c := range startChildren(t, 8, "migrate", dsn) {
			c.finish(t)
		}
		must(t, byOpen(t, Config{}, dsn).CheckSchema(t.Context()))
	}
}

func TestProcessesOnOneDatabaseLoseNothing(t *testing.T) {
	const n = 8
	dsn := keyholdtest.Postgres(t)
	s := byOpen(t, Config{}, dsn)
	initialized(t, s, storetest.NewMaker(100))
	for i, c := range startChildren(t, n, "work", dsn) {
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

func TestAKilledProcessLeavesWholeTransactions(t *testing.T) {
	dsn := keyholdtest.Postgres(t)
	s := byOpen(t, Config{}, dsn)
	initialized(t, s, storetest.NewMaker(100))
	var committed []key.Scope
	for round := range 10 {
		c := startChild(t, "crash", round+1, dsn)
		must(t, c.stdin.Close())
		for range rand.IntN(30) {
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
		storetest.Check(t, s)
	}
	for _, scope := range committed {
		if f, err := s.Scope(t.Context(), scope); err != nil || len(f.Data) != 1 {
			t.Errorf("scope %s was committed: %d data keys, %v", scope, len(f.Data), err)
		}
	}
	if len(committed) < 10 {
		t.Errorf("only %d transactions were committed", len(committed))
	}
}
