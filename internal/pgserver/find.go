package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// installVariable allows Debian's packages to be installed. Continuous integration may without being asked.
const installVariable = "KEYHOLD_TEST_INSTALL"

// installLimit is how long fetching a server may take.
const installLimit = 10 * time.Minute

// Binaries are the programs of a PostgreSQL server.
type Binaries struct {
	Dir     string // has postgres and initdb
	Version string // as "postgres --version" says it
	Origin  string // how they were found, for people
}

// Find looks for a server: in PATH, where pg_config says, where Debian has them, with the newest first. Where there
// is none, it installs Debian's package if it may, and else downloads binaries. The error says what was tried and
// what can be done.
func Find(ctx context.Context) (Binaries, error) {
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	if b, ok := onMachine(ctx); ok {
		return b, nil
	}
	var tried []error
	if mayInstall() {
		err := Install(ctx, "postgresql")
		if b, ok := onMachine(ctx); ok {
			b.Origin = "Debian's package postgresql, just installed: " + b.Dir
			return b, nil
		}
		tried = append(tried, err)
	}
	b, err := download(ctx)
	if err == nil {
		return b, nil
	}
	return Binaries{}, fmt.Errorf(`no PostgreSQL server to test with: there is none in PATH, none where pg_config says, none in `+
		`/usr/lib/postgresql, and none could be fetched (%w). Install one ("apt-get install postgresql"; %s=1 lets the `+
		`tests do so as root), or set KEYHOLD_TEST_POSTGRES to the address of a server on which databases may be made`,
		errors.Join(append(tried, err)...), installVariable)
}

func onMachine(ctx context.Context) (Binaries, bool) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if b, ok := binaries(ctx, filepath.Dir(path), "PATH"); ok {
			return b, true
		}
	}
	if dir, err := output(exec.CommandContext(ctx, "pg_config", "--bindir")); err == nil {
		if b, ok := binaries(ctx, dir, "pg_config"); ok {
			return b, true
		}
	}
	// Only a broken pattern is an error.
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(dirs, func(a, b string) int { return debianVersion(b) - debianVersion(a) })
	for _, dir := range dirs {
		if b, ok := binaries(ctx, dir, "Debian's package"); ok {
			return b, true
		}
	}
	return Binaries{}, false
}

func debianVersion(dir string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
	if err != nil {
		return 0
	}
	return n
}

// binaries looks whether a folder has a server that runs.
func binaries(ctx context.Context, dir, origin string) (Binaries, bool) {
	if _, err := exec.LookPath(filepath.Join(dir, "initdb")); err != nil {
		return Binaries{}, false
	}
	version, err := output(exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version"))
	return Binaries{Dir: dir, Version: version, Origin: origin + ": " + dir}, err == nil
}

func mayInstall() bool {
	return os.Getenv(installVariable) != "" || os.Getenv("CI") != ""
}

// Install installs a Debian package, if this process may; see [Find]. Several processes may ask at once.
func Install(ctx context.Context, name string) error {
	switch {
	case !mayInstall():
		return fmt.Errorf("install Debian's package %s: %s is not set", name, installVariable)
	case os.Geteuid() != 0:
		return fmt.Errorf("install Debian's package %s: only root may", name)
	}
	lists := exec.CommandContext(ctx, "apt-get", "-o", "DPkg::Lock::Timeout=300", "update", "-q")
	if out, err := lists.CombinedOutput(); err != nil {
		return fmt.Errorf("run apt-get update: %w\n%s", err, out)
	}
	install := exec.CommandContext(ctx, "apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-q", "-y", "--no-install-recommends", name)
	install.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("run apt-get install %s: %w\n%s", name, err, out)
	}
	return nil
}

// download fetches binaries once for all processes of this user. Those of root lie where the account that the server
// runs as can read them.
func download(ctx context.Context) (Binaries, error) {
	cache := "/var/cache"
	if os.Geteuid() != 0 || runtime.GOOS == "windows" {
		var err error
		if cache, err = os.UserCacheDir(); err != nil {
			return Binaries{}, fmt.Errorf("find a folder for downloads: %w", err)
		}
	}
	cache = filepath.Join(cache, "keyhold-test-postgres")
	version := embeddedpostgres.V18
	dir := filepath.Join(cache, string(version))
	// The account that servers run as has to get in.
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("make a folder for downloads: %w", err)
	}
	var fetch error
	err := exclusively(filepath.Join(cache, "lock"), func() error {
		if _, ok := binaries(ctx, filepath.Join(dir, "bin"), ""); !ok {
			fetch = fetchInto(ctx, version, cache, dir)
		}
		return nil
	})
	if err != nil {
		return Binaries{}, err
	}
	b, ok := binaries(ctx, filepath.Join(dir, "bin"), "github.com/fergusstrange/embedded-postgres")
	if !ok {
		return Binaries{}, fmt.Errorf("download PostgreSQL %s with github.com/fergusstrange/embedded-postgres: %w", version, fetch)
	}
	return b, nil
}

// fetchInto has the library download and unpack the binaries, which it does only on the way to starting a server.
// That it cannot start one as root is nothing to us.
func fetchInto(ctx context.Context, version embeddedpostgres.PostgresVersion, cache, dir string) error {
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "keyhold-postgres-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	server := embeddedpostgres.NewDatabase(embeddedpostgres.DefaultConfig().Version(version).Port(uint32(port)).
		CachePath(cache).BinariesPath(dir).RuntimePath(scratch).Logger(io.Discard))
	if err := server.Start(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join([]string{runtime.GOOS, runtime.GOARCH}, "/"), err)
	}
	return server.Stop()
}
