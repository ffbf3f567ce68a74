package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"keyhold.example/keyhold/store"
)

// busyTimeout is how long a connection of ours waits for another process's lock.
const busyTimeout = 10 * time.Second

// creating keeps a file that is being made from being opened at the same time by this process: closing it after making
// it would release the locks that SQLite has on it.
var creating sync.Mutex

// Open opens an existing database file with the defaults; see [Config.Open].
func Open(path string) (*Store, error) { return Config{}.Open(path) }

// Create opens a database file with the defaults, and makes it if it is not there; see [Config.Create].
func Create(path string) (*Store, error) { return Config{}.Create(path) }

// Open opens an existing database file; the path is that of a file whatever characters it has. The error wraps
// [fs.ErrNotExist] if there is none, and [store.ErrUnavailable] if it is not a database or cannot be opened. A file
// that cannot be written is opened for reading, if SQLite can.
//
// The file is brought to WAL mode, so that readers and the writer do not wait for each other. Every connection has
// foreign keys on, a busy_timeout of 10 s, secure_delete on, so that a destroyed key does not stay in free pages, and
// synchronous=FULL: with less, a power cut could take away a key's commit after data was sealed with the key. It keeps
// what SQLite would write to temporary files, and at most 32 MiB of pages, in memory.
// Transactions that the application begins on [Store.DB] are BEGIN IMMEDIATE, unless they are begun as read-only.
func (c Config) Open(path string) (*Store, error) { return c.open(path, false) }

// Create is [Config.Open], but makes the file, with mode 0600, if it is not there. It makes no folders and no tables.
func (c Config) Create(path string) (*Store, error) { return c.open(path, true) }

func (c Config) open(path string, create bool) (*Store, error) {
	if err := checkFile(path, create); err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	dsn, err := dataSource(path)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	s, err := c.New(db)
	if err == nil {
		s.owned = true
		ctx := context.Background() //nolint:forbidigo // opening has no context, and ends by itself
		err = s.tables.explain(ctx, "open database "+path, useWAL(ctx, db))
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func checkFile(path string, create bool) error {
	creating.Lock()
	defer creating.Unlock()
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("it is a folder: %w", store.ErrUnavailable)
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist) && create:
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return nil // another process was first
		}
		if err != nil {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		return f.Close()
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no such file: %w", fs.ErrNotExist)
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// dataSource is the URI of a file, in which no character of the path means anything but itself.
func dataSource(path string) (string, error) {
	if strings.ContainsRune(path, 0) {
		return "", errors.New("the path contains a zero byte")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a Windows drive
	}
	query := url.Values{
		"mode":    {"rw"},
		"_txlock": {"immediate"},
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
			"foreign_keys(1)",
			"secure_delete(1)",
			"synchronous(full)",
			"temp_store(memory)",
			"cache_size(-32768)",
		},
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String(), nil
}

// useWAL brings the file to WAL mode, once for all its connections. Changing the mode needs the file alone, and SQLite
// does not wait for that as it waits for other locks.
func useWAL(ctx context.Context, db *sql.DB) error {
	for start := time.Now(); ; {
		var mode string
		err := db.QueryRowContext(ctx, "pragma journal_mode").Scan(&mode)
		if err == nil && mode != "wal" {
			err = db.QueryRowContext(ctx, "pragma journal_mode = wal").Scan(&mode)
		}
		switch class := classify(err); {
		case err == nil || class == classReadOnly:
			return nil // where WAL cannot be had, what there is has to do
		case class != classLocked || time.Since(start) > busyTimeout:
			return err
		}
		<-time.After(10 * time.Millisecond)
	}
}
