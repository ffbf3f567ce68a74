package pgserver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
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

// A process that is killed, and so cannot clean up anything, leaves neither a server nor its data.
func TestKilledProcessLeavesNothing(t *testing.T) {
	const child = "PGSERVER_TEST_CHILD"
	if os.Getenv(child) != "" {
		s := started(t, Options{})
		os.Stdout.WriteString(s.dir + "\n")
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcessLeavesNothing$")
	cmd.Env = append(os.Environ(), child+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, err := out.Read(line)
	dir := strings.TrimSpace(string(line[:n]))
	if killErr := cmd.Process.Kill(); err != nil || killErr != nil {
		t.Fatal(err, killErr)
	}
	_ = cmd.Wait() // says that it was killed
	if !strings.Contains(dir, "keyhold-postgres-") {
		t.Fatalf("the child said %q", dir)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(20 * time.Second); ; {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("%s is still there", dir)
		}
	}
}
