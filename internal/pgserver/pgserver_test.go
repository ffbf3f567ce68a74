package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func started(t *testing.T, o Options) *Server {
	t.Helper()
	b, err := Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(t.Context(), b, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// answer connects and asks something that only a server can answer.
func answer(ctx context.Context, dsn, query string) (text string, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	err = conn.QueryRow(ctx, query, pgx.QueryExecModeExec).Scan(&text)
	return text, errors.Join(err, conn.Close(ctx))
}

func TestStopLeavesNothing(t *testing.T) {
	s := started(t, Options{Settings: map[string]string{"work_mem": "12MB"}, TCP: true})
	bouncer, err := StartBouncer(t.Context(), s.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	tcp := "postgres://postgres@" + s.Addr() + "/postgres?sslmode=disable"
	for _, dsn := range []string{s.DSN("postgres"), tcp, bouncer.DSN("postgres")} {
		if text, err := answer(t.Context(), dsn, "show work_mem"); err != nil || text != "12MB" {
			t.Errorf("%s: %q, %v", dsn, text, err)
		}
	}
	if err := errors.Join(bouncer.Stop(), s.Stop()); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{s.dir, bouncer.dir} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
	if text, err := answer(t.Context(), tcp, "show work_mem"); err == nil {
		t.Errorf("the server still answers %s", text)
	}
}

func TestServerThatDoesNotStartSaysWhy(t *testing.T) {
	b, err := Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), b, Options{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), `unrecognized configuration parameter "no_such_setting"`) {
		t.Errorf("got %v", err)
	}
}

// A process that is killed, and so cannot clean up anything, leaves neither a server nor its data: not while the data
// folder is made, and not when the server runs.
func TestKilledProcessLeavesNothing(t *testing.T) {
	const child = "PGSERVER_TEST_CHILD"
	if os.Getenv(child) != "" {
		started(t, Options{})
		os.Stdout.WriteString("started\n")
		select {}
	}
	for _, running := range []bool{false, true} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcessLeavesNothing$")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		folders := func() []string {
			var all []string
			for _, parent := range []string{"/dev/shm", "/tmp", os.TempDir()} {
				// Only a broken pattern is an error.
				some, _ := filepath.Glob(filepath.Join(parent, fmt.Sprintf("keyhold-postgres-%d-*", cmd.Process.Pid)))
				all = append(all, some...)
			}
			return all
		}
		var dirs []string
		if running {
			line, readErr := bufio.NewReader(out).ReadString('\n')
			if dirs = folders(); readErr != nil || line != "started\n" {
				t.Errorf("the child said %q, %v", line, readErr)
			}
		} else {
			await(t, "the data folder is made", func() bool {
				dirs = folders()
				return len(dirs) > 0 && exists(filepath.Join(dirs[0], "data"))
			})
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // says that it was killed
		if len(dirs) == 0 {
			t.Fatal("the child's folder is nowhere")
		}
		await(t, dirs[0]+" is gone", func() bool { return len(folders()) == 0 })
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(20 * time.Second); !is(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited for 20 s, and it is not so that %s", what)
		}
	}
}
