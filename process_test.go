package keyhold_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// The test binary runs itself as many processes: KEYHOLD_TEST_CHILD says what a child does, in the folder that it is
// started in.
const childVariable = "KEYHOLD_TEST_CHILD"

func TestMain(m *testing.M) {
	if work := os.Getenv(childVariable); work != "" {
		do := func() error { return child(context.Background(), work) }
		if work == "fleet" {
			do = func() error { return fleetChild(context.Background()) }
		}
		if err := do(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// With GODEBUG=fips140=only the first random byte sets off what a bubble of synctest cannot wait for.
	if _, err := seal.RandomID(key.PrefixRootKey); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Many tests wait for other processes, or for time to pass. The flag itself, where it is given, comes after this.
	if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// child does its work only when its standard input ends, which it does for all children at once; but to serve is to
// follow what comes there.
func child(ctx context.Context, work string) error {
	root, err := localroot.Open("root.key")
	if err != nil {
		return err
	}
	s, err := storeIn(ctx, ".")
	if err != nil {
		return err
	}
	defer s.Close()
	if work == "serve" {
		return serve(ctx, s, config(root))
	}
	fmt.Println("ready")
	if _, err := os.Stdin.Read(make([]byte, 1)); err == nil {
		return errors.New("unexpected input")
	}
	m, err := keyhold.New(ctx, s, keyhold.Config{
		Root: root, Purposes: []key.Purpose{secrets, session}, Initialize: true,
	})
	if err != nil {
		return err
	}
	defer m.Close()
	switch work {
	case "create":
		for i := range 5 {
			if err := m.CreateScope(ctx, key.Scope(fmt.Sprint("s", i))); err != nil {
				return err
			}
		}
	case "rotate":
		for range 3 {
			if _, err := m.Rotate(ctx, ref); err != nil {
				return err
			}
		}
	case "rotate if":
		if n, err := m.RotateIf(ctx, ref, 1); err != nil || n != 2 {
			return fmt.Errorf("version %d: %w", n, err)
		}
	case "seal":
		ct, err := m.Seal(ctx, ref, []byte("from another process"), keyhold.Context("a"))
		if err != nil {
			return err
		}
		return os.WriteFile(fmt.Sprintf("sealed-%d", os.Getpid()), ct, 0o600)
	default:
		return fmt.Errorf("no such work: %q", work)
	}
	return nil
}

// race starts n processes, lets them begin at once, and waits for all.
func race(t *testing.T, dir, work string, n int) {
	t.Helper()
	type process struct {
		cmd    *exec.Cmd
		start  func()
		stderr *bytes.Buffer
	}
	processes := make([]process, n)
	for i := range processes {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Dir, cmd.Env = dir, append(os.Environ(), childVariable+"="+work)
		stderr := &bytes.Buffer{}
		cmd.Stderr = stderr
		in, err := cmd.StdinPipe()
		must(t, err)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		line := make([]byte, 6)
		if _, err := out.Read(line); err != nil {
			t.Fatalf("process did not get ready: %v: %s", err, stderr)
		}
		processes[i] = process{cmd, func() { must(t, in.Close()) }, stderr}
	}
	for _, p := range processes {
		p.start()
	}
	for _, p := range processes {
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", work, err, p.stderr)
		}
	}
}

// fleetKind is a kind of database that several processes can use: how to make an empty one in their folder, and how
// to open it.
type fleetKind struct {
	prepare func(t *testing.T, dir string)
	open    func(ctx context.Context, dir string) (store.Store, error)
}

var fleetKinds = map[string]fleetKind{
	"sqlite": {
		prepare: func(*testing.T, string) {},
		open: func(_ context.Context, dir string) (store.Store, error) {
			return sqlitestore.Create(filepath.Join(dir, "keys.db"))
		},
	},
	"postgres": {
		prepare: func(t *testing.T, dir string) {
			t.Helper()
			must(t, os.WriteFile(filepath.Join(dir, "dsn"), []byte(keyholdtest.Postgres(t)), 0o600))
		},
		open: func(ctx context.Context, dir string) (store.Store, error) {
			dsn, err := os.ReadFile(filepath.Join(dir, "dsn"))
			if err != nil {
				return nil, err
			}
			return pgstore.Open(ctx, string(dsn))
		},
	},
}

// storeIn opens the database of a folder, whose kind is in a file there.
func storeIn(ctx context.Context, dir string) (store.Store, error) {
	name, err := os.ReadFile(filepath.Join(dir, "kind"))
	if err != nil {
		return nil, err
	}
	return fleetKinds[string(name)].open(ctx, dir)
}

// fleets runs f for each kind of database that several processes can use, with a folder for them to work in that has
// a root and an empty database.
func fleets(t *testing.T, f func(t *testing.T, dir string, open func() *keyhold.Manager)) {
	t.Helper()
	for name, kind := range fleetKinds {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			root, err := localroot.Generate(filepath.Join(dir, "root.key"))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "kind"), []byte(name), 0o600))
			kind.prepare(t, dir)
			f(t, dir, func() *keyhold.Manager {
				s, err := storeIn(t.Context(), dir)
				must(t, err)
				t.Cleanup(func() { must(t, s.Close()) })
				return newManager(t, s, root)
			})
		})
	}
}

// 32 processes make tables, installation, and the same scopes at once.
func TestProcessesCreateOneOfEach(t *testing.T) {
	fleets(t, func(t *testing.T, dir string, open func() *keyhold.Manager) {
		race(t, dir, "create", 32)
		m := open()
		n := 0
		for scope, err := range m.Scopes(t.Context()) {
			must(t, err)
			keys, err := m.Keys(t.Context(), scope)
			must(t, err)
			if len(keys) != 3 || len(keys[0].Versions) != 1 || len(keys[1].Versions) != 1 {
				t.Errorf("scope %q has %d keys", scope, len(keys))
			}
			n++
		}
		if n != 5 {
			t.Errorf("%d scopes, want 5", n)
		}
		checked(t, m)
	})
}

func TestProcessesRotate(t *testing.T) {
	fleets(t, func(t *testing.T, dir string, open func() *keyhold.Manager) {
		m := open()
		must(t, m.CreateScope(t.Context(), tenant))
		ct := sealed(t, m, ref, "before", keyhold.AAD{})
		race(t, dir, "rotate if", 16)
		if got := states(t, m, ref); got != "1:retired 2:active" {
			t.Error(got)
		}
		race(t, dir, "rotate", 16)
		keys, err := m.Keys(t.Context(), tenant)
		must(t, err)
		if keys[1].Head != 50 {
			t.Errorf("head is %d, want 50", keys[1].Head)
		}
		opens(t, m, ref, ct, keyhold.AAD{}, "before")
		checked(t, m)
	})
}

func TestOneProcessOpensWhatAnotherSealed(t *testing.T) {
	fleets(t, func(t *testing.T, dir string, open func() *keyhold.Manager) {
		m := open()
		must(t, m.CreateScope(t.Context(), tenant))
		race(t, dir, "seal", 4)
		files, err := filepath.Glob(filepath.Join(dir, "sealed-*"))
		must(t, err)
		if len(files) != 4 {
			t.Fatalf("%d files", len(files))
		}
		for _, name := range files {
			ct, err := os.ReadFile(name)
			must(t, err)
			opens(t, m, ref, ct, keyhold.Context("a"), "from another process")
		}
	})
}

// What the operating system says of the files is in the error, so that somebody can do something about it.
func TestMissingDatabaseIsSaid(t *testing.T) {
	_, err := sqlitestore.Open(filepath.Join(t.TempDir(), "none.db"))
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "none.db") {
		t.Errorf("got %v", err)
	}
}
