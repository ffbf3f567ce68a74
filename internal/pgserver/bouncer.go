package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Bouncer is a running pgbouncer.
type Bouncer struct {
	dir string
	end func() error
}

// StartBouncer starts a pgbouncer in transaction mode in front of the server with the given address, whose user it
// uses for everybody who can reach its socket. It has so few connections to the server for each database that
// clients get each other's all the time. It ends as [Start] says. Where there is no pgbouncer, Debian's is
// installed, if this process may.
func StartBouncer(ctx context.Context, address string) (_ *Bouncer, err error) {
	target, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, errors.New("the server's address is not one") // what pgx says may hold the password
	}
	binary, err := findBouncer(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	as, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := as.folder("pgbouncer")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()

	password := "" // pgbouncer does not take an empty one
	if target.Password != "" {
		password = "password='" + strings.ReplaceAll(target.Password, "'", "''") + "'"
	}
	// Clients of lib/pq ask for extra_float_digits when they connect, which pgbouncer otherwise refuses.
	ini := fmt.Sprintf(`[databases]
* = host=%s port=%d user=%s %s
[pgbouncer]
pool_mode = transaction
default_pool_size = 5
max_client_conn = 1000
auth_type = any
listen_addr =
listen_port = 6432
unix_socket_dir = %s
ignore_startup_parameters = extra_float_digits
`, target.Host, target.Port, target.User, password, dir)
	config := filepath.Join(dir, "pgbouncer.ini")
	if err := as.write(config, []byte(ini)); err != nil {
		return nil, err
	}
	guard, err := as.start(dir, "TERM", binary, config)
	if err != nil {
		return nil, err
	}
	b := &Bouncer{dir: dir, end: guard.end}
	err = guard.await(ctx, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, b.DSN(target.Database))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", binary, err), guard.end())
	}
	return b, nil
}

// DSN is how a database of the server is reached through the pgbouncer.
func (b *Bouncer) DSN(database string) string { return socketDSN(b.dir, 6432, database) }

// Stop ends the pgbouncer.
func (b *Bouncer) Stop() error { return b.end() }

func findBouncer(ctx context.Context) (string, error) {
	// Debian has it where only root's PATH goes.
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	if err := Install(ctx, "pgbouncer"); err != nil {
		return "", fmt.Errorf("no pgbouncer to test with, and none could be installed: %w; "+
			`install one ("apt-get install pgbouncer")`, err)
	}
	return exec.LookPath("/usr/sbin/pgbouncer")
}
