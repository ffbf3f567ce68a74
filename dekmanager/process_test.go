package dekmanager_test

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
)

// childVariable says to this program, started again, that it is a child: the driver and the database.
const childVariable = "KEYHOLD_TEST_DEK_CHILD"

// child does what it is told, a line for each thing, and answers with a line.
func child(driver, dsn string) error {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	d, err := dekmanager.NewDEKManager(db, mek, dekmanager.WithLogger(quiet))
	if err != nil {
		return err
	}
	defer d.Shutdown()
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		answer, err := told(context.Background(), d, strings.Fields(in.Text()))
		if err != nil {
			return fmt.Errorf("%s: %w", in.Text(), err)
		}
		fmt.Println(answer)
	}
	return nil
}

func told(ctx context.Context, d *dekmanager.DEKManager, words []string) (string, error) {
	name, n := words[1], 0
	if len(words) > 2 {
		n, _ = strconv.Atoi(words[2])
	}
	switch words[0] {
	case "get":
		dek, version, err := d.GetDEK(ctx, name)
		return fmt.Sprint(version, " ", hex.EncodeToString(dek)), err
	case "rotate":
		for range n {
			if err := d.RotateDEK(ctx, name); err != nil {
				return "", err
			}
		}
		return "done", nil
	case "see":
		for began := time.Now(); ; <-time.After(20 * time.Millisecond) {
			_, version, err := d.GetDEK(ctx, name)
			if err != nil || version >= n || time.Since(began) > time.Minute {
				return fmt.Sprint(version, " ", time.Since(began).Milliseconds()), err
			}
		}
	}
	return "", fmt.Errorf("unknown: %q", words)
}

// process is a child as its parent sees it.
type process struct {
	in  io.WriteCloser
	out *bufio.Scanner
}

func (p *process) answer(t *testing.T) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatalf("a process ended: %v", p.out.Err())
	}
	return p.out.Text()
}

type processes []*process

// processes starts so many on w's database, which end with the test.
func (w *world) processes(n int) (all processes) {
	w.t.Helper()
	for range n {
		cmd := exec.CommandContext(context.WithoutCancel(w.t.Context()), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+w.driver()+" "+w.dsn)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		must(w.t, err)
		out, err := cmd.StdoutPipe()
		must(w.t, err)
		must(w.t, cmd.Start())
		p := &process{in, bufio.NewScanner(out)}
		w.t.Cleanup(func() {
			must(w.t, in.Close())
			if err := cmd.Wait(); err != nil {
				w.t.Errorf("a process: %v", err)
			}
		})
		all = append(all, p)
	}
	for _, p := range all {
		if got := p.answer(w.t); got != "ready" {
			w.t.Fatalf("a process says %q", got)
		}
	}
	return all
}

// all tells all processes the same at once, and returns what they say.
func (all processes) all(t *testing.T, line string) (answers []string) {
	t.Helper()
	for _, p := range all {
		_, err := fmt.Fprintln(p.in, line)
		must(t, err)
	}
	for _, p := range all {
		answers = append(answers, p.answer(t))
	}
	return answers
}

// see is that all processes have seen version n of a key within the bound, which is counted from now.
func (all processes) see(t *testing.T, name string, n int) {
	t.Helper()
	for _, answer := range all.all(t, fmt.Sprint("see ", name, " ", n)) {
		var version int
		var took int64
		if _, err := fmt.Sscan(answer, &version, &took); err != nil || version != n || took > 7000 {
			t.Errorf("a process has version %d after %d ms, want %d within 7 s", version, took, n)
		}
	}
}

// What one process knows of the others it knows from the database alone.
func TestEightProcesses(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		d := w.open(mek)
		ref := keyhold.Ref{Scope: scope, Purpose: "due"}
		// They find it when they start.
		_, err := d.Manager().ImportRaw(t.Context(), ref, keyhold.RawKey{Policy: keyhold.Policy{RotateEvery: 30 * time.Minute}},
			[]keyhold.ImportedVersion{{Number: 1, Created: time.Now().Add(-time.Hour), Key: mek}})
		must(t, err)
		all := w.processes(8)

		first := all.all(t, "get shared")
		for _, answer := range first {
			if answer != first[0] || !strings.HasPrefix(answer, "1 ") {
				t.Errorf("of a new key one process has version %.1s and another %.1s, or other bytes", answer, first[0])
			}
		}
		for _, answer := range all.all(t, "rotate shared 10") {
			if answer != "done" {
				t.Errorf("a process says %q", answer)
			}
		}
		if _, version, err := d.GetKeyInfo(t.Context(), "shared"); err != nil || version != 81 {
			t.Errorf("after 80 rotations of version 1 the newest is %d (%v)", version, err)
		}
		all.see(t, "shared", 81)

		for began := time.Now(); ; <-time.After(20 * time.Millisecond) {
			_, version, err := d.GetKeyInfo(t.Context(), "due")
			must(t, err)
			if version > 1 {
				break
			}
			if time.Since(began) > 2*time.Minute {
				t.Fatal("nobody rotates a key that is due")
			}
		}
		all.see(t, "due", 2)
		keys, err := d.Manager().Keys(t.Context(), scope)
		must(t, err)
		for _, k := range keys {
			if k.Ref == ref && len(k.Versions) != 2 {
				t.Errorf("a key that was due once has %d versions", len(k.Versions))
			}
		}
	})
}
