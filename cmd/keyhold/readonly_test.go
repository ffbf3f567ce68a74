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

func TestADatabaseThatCannotBeWrittenIsOneSentence(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "keyhold-test-") //nolint:usetesting // what is above t.TempDir only its owner may enter
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(os.Chmod(dir, 0o700), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	}()
	program := filepath.Join(dir, "keyhold")
	if err := errors.Join(copyPart(program, wholeFile), os.Chmod(program, 0o755)); err != nil {
		t.Fatal(err)
	}
	run := func(unprivileged bool, args ...string) (code int, stdout, stderr string) {
		t.Helper()
		c := exec.Command(program, args...)
		c.Dir = dir
		c.Env = []string{"KEYHOLD_DB=sqlite:keys.db", "KEYHOLD_ROOT=file:root.key"}
		c.Stdin = strings.NewReader("text")
		var out, errs bytes.Buffer
		c.Stdout, c.Stderr = &out, &errs
		if unprivileged && os.Getuid() == 0 {
			c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		}
		err := c.Run()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return exit.ExitCode(), out.String(), errs.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		return 0, out.String(), errs.String()
	}
	for _, args := range [][]string{{"root", "keygen", "root.key"}, {"init"}, {"scope", "create", "s", "--purpose", "p"}} {
		if code, _, stderr := run(false, args...); code != 0 {
			t.Fatalf("%v: exit code %d: %s", args, code, stderr)
		}
	}
	for path, mode := range map[string]os.FileMode{"keys.db": 0o444, "root.key": 0o444, ".": 0o555} {
		if err := os.Chmod(filepath.Join(dir, path), mode); err != nil {
			t.Fatal(err)
		}
	}

	const readOnly = "keyhold: error: cannot use the database sqlite:keys.db: the file, or its folder, is read-only\n"
	for _, command := range []string{"scope create s2 --purpose p", "key rotate s", "seal --scope s --purpose p", "init"} {
		code, stdout, stderr := run(true, strings.Fields(command)...)
		if code != 1 || stdout != "" || stderr != readOnly {
			t.Errorf("%s: exit code %d, %q, %q", command, code, stdout, stderr)
		}
	}
	code, stdout, stderr := run(true, "init", "--db", "sqlite:new.db")
	if code != 1 || stdout != "" || stderr != "keyhold: error: cannot use the database sqlite:new.db: permission denied\n" {
		t.Errorf("init of a new file: exit code %d, %q, %q", code, stdout, stderr)
	}
}
