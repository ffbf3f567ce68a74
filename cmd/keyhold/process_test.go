//go:build unix

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nobody is the user that a test of permissions runs the program as, where it runs as root itself, whom no
// permission stops.
const nobody = 65534

// program is the program of this test, in a folder with a root and an installation that has a scope "s" with the
// purpose "p".
type program struct {
	t   *testing.T
	dir string
}

func newProgram(t *testing.T) program {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "keyhold-test-") //nolint:usetesting // what is above t.TempDir only its owner may enter
	if err != nil {
		t.Fatal(err)
	}
	p := program{t, dir}
	t.Cleanup(func() {
		p.chmod(map[string]os.FileMode{".": 0o700})
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := copyPart(filepath.Join(dir, "keyhold"), wholeFile); err != nil {
		t.Fatal(err)
	}
	p.chmod(map[string]os.FileMode{"keyhold": 0o755, ".": 0o755})
	for _, args := range []string{"root keygen root.key", "init", "scope create s --purpose p"} {
		if code, _, stderr := p.run(p.command(args), "text"); code != 0 {
			t.Fatalf("%s: exit code %d: %s", args, code, stderr)
		}
	}
	return p
}

func (p program) chmod(modes map[string]os.FileMode) {
	p.t.Helper()
	for path, mode := range modes {
		if err := os.Chmod(filepath.Join(p.dir, path), mode); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p program) command(args string) *exec.Cmd {
	c := exec.Command(filepath.Join(p.dir, "keyhold"), strings.Fields(args)...)
	c.Dir = p.dir
	c.Env = []string{"KEYHOLD_DB=sqlite:keys.db", "KEYHOLD_ROOT=file:root.key"}
	return c
}

// asNobody is command as a user whom permissions stop.
func (p program) asNobody(args string) *exec.Cmd {
	c := p.command(args)
	if os.Getuid() == 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return c
}

func (p program) run(c *exec.Cmd, stdin string) (code int, stdout, stderr string) {
	p.t.Helper()
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(stdin), &out, &errs
	err := c.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// refused runs a command as nobody and checks that it says one sentence, and nothing else.
func (p program) refused(args, stdin, sentence string) {
	p.t.Helper()
	code, stdout, stderr := p.run(p.asNobody(args), stdin)
	if code != 1 || stdout != "" || stderr != "keyhold: error: "+sentence+"\n" {
		p.t.Errorf("%s: exit code %d, %q, %q", args, code, stdout, stderr)
	}
}

// reading is commands that change nothing.
var reading = []string{"status", "doctor", "key list", "key list s", "scope list", "migrate status", "open"}

func TestADatabaseInAFolderThatCannotBeWrittenIsOneSentence(t *testing.T) {
	p := newProgram(t)
	_, sealed, _ := p.run(p.command("seal --scope s --purpose p"), "text")
	p.chmod(map[string]os.FileMode{"keys.db": 0o444, "root.key": 0o444, ".": 0o555})
	for _, command := range append([]string{"scope create s2 --purpose p", "key rotate s", "seal --scope s --purpose p", "init"}, reading...) {
		p.refused(command, sealed, "cannot use the database sqlite:keys.db: the file, or its folder, is read-only")
	}
	p.refused("init --db sqlite:new.db", "", "cannot use the database sqlite:new.db: permission denied")
	p.refused("root keygen new.key", "", "cannot write the root new.key: permission denied")
}

func TestADatabaseFileThatCannotBeWrittenIsRead(t *testing.T) {
	p := newProgram(t)
	_, sealed, _ := p.run(p.command("seal --scope s --purpose p"), "text")
	p.chmod(map[string]os.FileMode{"keys.db": 0o444, "root.key": 0o444, ".": 0o777})
	for _, command := range reading {
		code, stdout, stderr := p.run(p.asNobody(command), sealed)
		if code != 0 || strings.Contains(stderr, "error") {
			t.Errorf("%s: exit code %d, %q, %q", command, code, stdout, stderr)
		}
	}
	for _, command := range []string{"scope create s2 --purpose p", "key rotate s"} {
		p.refused(command, "", "cannot use the database sqlite:keys.db: the file, or its folder, is read-only")
	}
}

func TestFilesThatCannotBeReadAreOneSentence(t *testing.T) {
	p := newProgram(t)
	p.chmod(map[string]os.FileMode{"keys.db": 0, "root.key": 0o444, ".": 0o777})
	for _, command := range append([]string{"init", "key rotate s"}, reading...) {
		p.refused(command, "", "cannot use the database sqlite:keys.db: permission denied")
	}
	p.chmod(map[string]os.FileMode{"keys.db": 0o666, "root.key": 0})
	p.refused("status", "", "cannot read the root file:root.key: permission denied")

	folder := filepath.Join(p.dir, "unreadable")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	p.chmod(map[string]os.FileMode{"unreadable": 0o333})
	p.refused("root keygen unreadable/new.key", "",
		"cannot write the root unreadable/new.key: its folder has to be readable too, so that the file outlasts a crash")
	p.chmod(map[string]os.FileMode{"unreadable": 0o700})
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
}

func TestASignalEndsACommandThatWaitsForItsInput(t *testing.T) {
	p := newProgram(t)
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		c := p.command("seal --scope s --purpose p")
		var out, errs bytes.Buffer
		c.Stdout, c.Stderr = &out, &errs
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		// More than a pipe holds, so that it reads when all of it was taken.
		_, err = in.Write(make([]byte, 1<<20))
		if err = errors.Join(err, c.Process.Signal(sig)); err != nil {
			t.Error(err)
		}
		_ = c.Wait() // its error is the exit code
		if code := c.ProcessState.ExitCode(); code != 1 || out.Len() > 0 || errs.String() != "keyhold: error: interrupted\n" {
			t.Errorf("%v: exit code %d, %d bytes, %q", sig, code, out.Len(), &errs)
		}
	}
}
