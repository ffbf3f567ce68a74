//go:build unix

package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// account is the user that servers run as: nil is the one that this process runs as.
type account struct{ cred *syscall.Credential }

// unprivileged is the account for servers, which refuse to run as root.
func unprivileged() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return account{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
		}
	}
	return account{}, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")
}

// folder makes a folder for the account alone: in memory, where there is plenty, since most of what a server does for
// tests is to make files. Root's own place for them may lie where others cannot get, so else it is made in /tmp.
func (a account) folder(name string) (string, error) {
	parent, ok := inMemory()
	if !ok && a.cred != nil {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("keyhold-%s-%d-", name, os.Getpid()))
	if err != nil {
		return "", err
	}
	return dir, a.own(dir)
}

func (a account) write(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return a.own(path)
}

func (a account) own(path string) error {
	if a.cred == nil {
		return nil
	}
	return os.Chown(path, int(a.cred.Uid), int(a.cred.Gid))
}

// watch runs a program until this process closes the other end of the shell's input, or is gone, be it by kill -9.
// It says so on its output if the program ends before, whose folder then stays until the input is closed. The program
// is sent the signal again and again, as one that has only begun may not heed it yet.
const watch = `
dir=$1 signal=$2
shift 2
"$@" >"$dir/log" 2>&1 </dev/null &
pid=$!
trap '' PIPE
exec 3<&0
{ read -r _; until [ -e "$dir/over" ]; do kill -s "$signal" $pid; sleep 0.1; done; } <&3 >/dev/null 2>&1 &
wait $pid
: >"$dir/over"
echo ended
wait
cd / && rm -rf "$dir"
`

// guard is a program that runs as long as this process.
type guard struct {
	dir   string
	cmd   *exec.Cmd
	input *os.File // closing it ends the program
	ended *os.File // can be read from when the program has ended
}

// guards keeps all that run: a pipe that nobody refers to is closed by the garbage collector, which would end its
// program.
var guards sync.Map

// start runs a program that this process's end ends with a signal, whereupon dir is removed.
func (a account) start(dir, signal, name string, args ...string) (*guard, error) {
	input, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer input.Close()
	ended, say, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, hold.Close())
	}
	defer say.Close()

	cmd := exec.Command("/bin/sh", append([]string{"-c", watch, "sh", dir, signal, name}, args...)...)
	cmd.Dir = dir
	cmd.Env = environment(dir)
	cmd.Stdin, cmd.Stdout = input, say
	// In a process group of its own, so that what a terminal or a supervisor sends to ours does not end the watch.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.cred, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), hold.Close(), ended.Close())
	}
	g := &guard{dir, cmd, hold, ended}
	guards.Store(g, nil)
	return g, nil
}

// await tries until the program serves, and gives up when it has ended or ctx is over.
func (g *guard) await(ctx context.Context, try func(context.Context) error) error {
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; its log ends in\n%s", err, logOf(g.dir))
		}
		if err := g.ended.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := g.ended.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("it ended at once; its log ends in\n%s", logOf(g.dir))
		}
	}
}

// end ends the program and waits until it and its folder are gone.
func (g *guard) end() error {
	guards.Delete(g)
	return errors.Join(g.input.Close(), g.ended.Close(), g.cmd.Wait())
}

// environment is free of PG* variables and of languages, and has a home that the account may read.
func environment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C", "TZ=UTC"}
}

// exclusively runs f while no other process runs it under the same name, which is that of a file.
func exclusively(name string, f func() error) error {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() // and with it the lock
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", name, err)
	}
	return f()
}
