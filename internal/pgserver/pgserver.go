// Package pgserver runs PostgreSQL for tests, and ends it with the process that asked for it.
package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// superuser is the server's superuser.
	superuser = "postgres"

	// startLimit is how long making the data folder and starting the server may take together. A second is usual.
	startLimit = 30 * time.Second
)

// Options is what a server has besides the defaults.
type Options struct {
	// Settings are settings of postgresql.conf.
	Settings map[string]string

	// HBA are lines of pg_hba.conf. The default lets everybody in who can reach the socket.
	HBA []string

	// Files are written into the data folder, for nobody else to read.
	Files map[string][]byte

	// TCP makes the server listen on a free port of 127.0.0.1 as well.
	TCP bool

	// Standbys allows for [Server.Standby], which takes some memory: it keeps the data folder as it was in the
	// beginning, and all that is written to it.
	Standbys bool
}

// Server is a running server. Its data are gone when it ends.
type Server struct {
	Version int // such as 150018 for 15.18

	binaries Binaries
	options  Options
	dir      string
	port     int
	end      func() error
}

// makeAndServe makes the data folder and serves it. It is one program, so that nothing stays either if this process is
// killed meanwhile.
const makeAndServe = `
if [ -n "$3" ]; then
	cp -R "$3" data || exit
else
	"$1/initdb" --pgdata data --username "$2" --auth trust --encoding UTF8 --locale C --no-sync >/dev/null || exit
fi
[ -z "$4" ] || cp -R data "$4" || exit
for file in own-*; do mv "$file" "data/${file#own-}" || exit; done
exec "$1/postgres" -D "$PWD/data"
`

// Start makes a data folder and starts a server on it, which ends with [Server.Stop] or with this process, however
// that ends. It listens on a socket in a folder that no other user can enter. What it stores does not survive a
// power cut, which makes it fast. Root gets a server that runs as postgres or nobody, as PostgreSQL refuses to run
// as root.
func Start(ctx context.Context, b Binaries, o Options) (*Server, error) {
	pristine := ""
	if o.Standbys {
		pristine = beginning
	}
	return start(ctx, b, o, "", pristine)
}

// start starts a server on a copy of the data folder from, or on a fresh one if that is empty. If pristine is not
// empty, a copy of that name of the folder as it was made stays.
func start(ctx context.Context, b Binaries, o Options, from, pristine string) (_ *Server, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	as, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := as.folder("postgres")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()

	s := &Server{binaries: b, options: o, dir: dir, port: 5432}
	settings := map[string]string{
		"unix_socket_directories": dir,
		"listen_addresses":        "",
		"max_connections":         "300",
		"fsync":                   "off",
		"synchronous_commit":      "off",
		"full_page_writes":        "off",
		"autovacuum":              "off",
		"shared_buffers":          "32MB",
		"max_wal_size":            "128MB",
		"min_wal_size":            "32MB",
	}
	if o.TCP {
		if s.port, err = freePort(ctx); err != nil {
			return nil, err
		}
		settings["listen_addresses"] = "127.0.0.1"
	}
	if o.Standbys {
		settings["wal_keep_size"] = "1GB"
	}
	settings["port"] = strconv.Itoa(s.port)
	maps.Copy(settings, o.Settings)
	var conf strings.Builder
	for name, value := range settings {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(value, "'", "''"))
	}
	files := map[string][]byte{"postgresql.auto.conf": []byte(conf.String())}
	if o.HBA != nil {
		files["pg_hba.conf"] = []byte(strings.Join(o.HBA, "\n") + "\n")
	}
	maps.Copy(files, o.Files)
	for name, content := range files {
		if err := as.write(filepath.Join(dir, "own-"+name), content); err != nil {
			return nil, err
		}
	}

	guard, err := as.start(dir, "QUIT", "/bin/sh", "-c", makeAndServe, "sh", b.Dir, superuser, from, pristine)
	if err != nil {
		return nil, err
	}
	s.end = guard.end
	err = guard.await(ctx, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, s.DSN("postgres"))
		if err != nil {
			return err
		}
		err = conn.QueryRow(ctx, "select current_setting('server_version_num')::int").Scan(&s.Version)
		return errors.Join(err, conn.Close(ctx))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", filepath.Join(b.Dir, "postgres"), err), guard.end())
	}
	return s, nil
}

// DSN is how the superuser reaches a database of the server by its socket, as a URL.
func (s *Server) DSN(database string) string { return socketDSN(s.dir, s.port, database) }

// Addr is the server's TCP address, where [Options.TCP] was set.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Stop ends the server at once, as a crash does, and removes its data. What standbys were not sent is lost.
func (s *Server) Stop() error { return s.end() }

// socketDSN names the socket in the query, which every driver understands; what is not said, such as sslmode,
// drivers take from the environment.
func socketDSN(dir string, port int, database string) string {
	query := url.Values{"host": {dir}, "port": {strconv.Itoa(port)}, "sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + database, RawQuery: query.Encode()}
	return u.String()
}

func freePort(ctx context.Context) (int, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// logOf is the end of what a program said before it gave up.
func logOf(dir string) string {
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(log[max(0, len(log)-2000):]))
}

// output runs a program and returns what it prints, without white space around it.
func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}
