//go:build unix

package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold/keyholdtest"
)

// running is a program under way, whose standard error is read line by line.
type running struct {
	*exec.Cmd

	out   bytes.Buffer
	lines *bufio.Scanner
	said  []string
}

// installed makes an installation there, with the scope "s" and the purpose "p". It returns what starts the program
// with it, and what changes its database.
func installed(t *testing.T, address string) (command func(args string) *exec.Cmd, change func(statement string)) {
	t.Helper()
	dir := t.TempDir()
	driver, source := "pgx", address
	if file, ok := strings.CutPrefix(address, "sqlite:"); ok {
		driver, source = "sqlite", filepath.Join(dir, file)
	}
	command = func(args string) *exec.Cmd {
		c := exec.Command("keyhold", strings.Fields(args)...)
		c.Dir = dir
		c.Env = append(os.Environ(), "KEYHOLD_DB="+address, "KEYHOLD_ROOT=file:root.key", "KEYHOLD_PIN=")
		return c
	}
	for _, args := range []string{"root keygen root.key", "init", "scope create s --purpose p"} {
		if out, err := command(args).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return command, func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}

func start(t *testing.T, c *exec.Cmd) *running {
	t.Helper()
	r := &running{Cmd: c}
	r.Stdout = &r.out
	stderr, err := r.StderrPipe()
	if err == nil {
		err = r.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Process.Kill() })
	r.lines = bufio.NewScanner(stderr)
	return r
}

// until reads what the program says until that has the given words.
func (r *running) until(t *testing.T, words string) {
	t.Helper()
	for r.lines.Scan() {
		r.said = append(r.said, r.lines.Text())
		if strings.Contains(r.lines.Text(), words) {
			return
		}
	}
	t.Fatalf("it ended without saying %q: %q", words, r.said)
}

// end sends the signal and checks that the program ends soon, without an error and without words.
func (r *running) end(t *testing.T, sig os.Signal) {
	t.Helper()
	began := time.Now()
	if err := r.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	for r.lines.Scan() {
		r.said = append(r.said, r.lines.Text())
	}
	err := r.Wait()
	if took := time.Since(began); err != nil || took > 5*time.Second {
		t.Errorf("%v after %v: %v", sig, took, err)
	}
	if i := slices.IndexFunc(r.said, func(line string) bool {
		return strings.Contains(line, "failed") || strings.Contains(line, "error")
	}); i >= 0 || r.out.Len() > 0 {
		t.Errorf("%v: %q, %q", sig, r.said, &r.out)
	}
}

func TestRunRotatesWhatIsDueUntilASignalEndsIt(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			command, change := installed(t, kinds[kind](t, "keys"))
			change("update kms_data_key set rotate_at = 1000")
			r := start(t, command("run"))
			r.until(t, ` rotated: key "p" of scope "s", version 2`)
			r.end(t, syscall.SIGTERM)
			if !strings.Contains(r.said[0], "are rotated when they are due, until SIGINT or SIGTERM") {
				t.Errorf("it began with %q", r.said[0])
			}

			// It goes on rotating, also after another one, and with an object for each thing.
			if out, err := command("key policy s --purpose p --rotate-every 1s").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			another := start(t, command("run"))
			another.until(t, " rotated: ")
			r = start(t, command("run --json"))
			another.end(t, syscall.SIGINT)
			r.until(t, `"event":"rotated","scope":"s","kind":"data","purpose":"p",`)
			r.until(t, `"event":"rotated",`)
			r.end(t, syscall.SIGINT)
			if out, err := command("doctor").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// silenced is a way to a PostgreSQL server that at some time does not lead there any more, without a word.
type silenced struct {
	silent chan struct{} // closed from then on
	asked  chan struct{} // closed when the program has asked after that
	once   sync.Once
	left   atomic.Int64 // questions that still lead there
}

// newSilenced returns a way to the server of dsn, and its address.
func newSilenced(t *testing.T, dsn string) (way *silenced, address string) {
	t.Helper()
	c, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	way = &silenced{silent: make(chan struct{}), asked: make(chan struct{})}
	way.left.Store(math.MaxInt64)
	var open sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		open.Wait()
	})
	open.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial(pgconn.NetworkAddress(c.Host, c.Port))
			if err != nil {
				t.Error(err)
				return
			}
			open.Go(func() { way.pass(out, in, true) })
			open.Go(func() { way.pass(in, out, false) })
		}
	})
	address = (&url.URL{
		Scheme: "postgres", User: url.UserPassword(c.User, c.Password), Host: l.Addr().String(), Path: c.Database, RawQuery: "sslmode=disable",
	}).String()
	return way, address
}

// pass passes on what comes, until the program or the server closes its end.
func (w *silenced) pass(to io.WriteCloser, from io.Reader, questions bool) {
	defer to.Close()
	b := make([]byte, 1<<16)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		select {
		case <-w.silent:
			if questions {
				w.once.Do(func() { close(w.asked) })
			}
			continue
		default:
		}
		if questions && w.left.Add(-1) < 0 {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

func TestASignalEndsRunAlsoWhileTheDatabaseIsSilent(t *testing.T) {
	t.Parallel()
	way, address := newSilenced(t, keyholdtest.Postgres(t))
	command, _ := installed(t, address)
	if out, err := command("key policy s --purpose p --rotate-every 1s").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := start(t, command("run"))
	r.until(t, " rotated: ")
	close(way.silent)
	<-way.asked
	r.end(t, syscall.SIGTERM)
}
