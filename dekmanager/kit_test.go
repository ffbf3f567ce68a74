package dekmanager_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"go.uber.org/goleak"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
	"keyhold.example/keyhold/store/storetest"
)

func TestMain(m *testing.M) {
	if driver, dsn, ok := strings.Cut(os.Getenv(childVariable), " "); ok {
		if err := child(driver, dsn); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// With GODEBUG=fips140=only the first random byte sets off what a bubble of synctest cannot wait for.
	if _, err := seal.RandomID(key.PrefixRootKey); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	manyWait()
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("database/sql.(*DB).connectionOpener"))
}

// manyWait has more parallel tests at a time than there are processors, if nobody said how many: they wait for seconds
// to pass, as instances do before they ask again, and use little of a processor.
func manyWait() {
	const tests = 8
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if said {
		return
	}
	if err := flag.Set("test.parallel", strconv.Itoa(tests)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var (
	mek    = []byte("12345678901234567890123456789012")
	newMEK = []byte("abcdefghijklmnopqrstuvwxyz012345")
)

const scope = keyhold.Scope(dekmanager.DefaultScope)

// world is a database that several instances use, each through a pool of its own.
type world struct {
	t    *testing.T
	kind string
	dsn  string
}

var worlds = []string{"postgres", "sqlite"}

// each runs f on every kind of database, and checks what is in it at the end.
func each(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	for _, kind := range worlds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kind)
			f(t, w)
			if !t.Failed() {
				storetest.Check(t, w.store())
			}
		})
	}
}

func newWorld(t *testing.T, kind string) *world {
	t.Helper()
	if kind == "postgres" {
		return &world{t, kind, keyholdtest.Postgres(t)}
	}
	path := filepath.Join(t.TempDir(), "keys.db")
	s, err := sqlitestore.Create(path)
	must(t, err)
	must(t, s.Close())
	// SQLite does not serve those who wait in turn, so on a busy machine one of many may have to wait for long.
	query := url.Values{"_txlock": {"immediate"}, "_pragma": {"busy_timeout(60000)", "foreign_keys(1)", "synchronous(full)"}}
	return &world{t, kind, "file:" + path + "?" + query.Encode()}
}

func (w *world) driver() string {
	if w.kind == "postgres" {
		return "pgx"
	}
	return "sqlite"
}

// db opens a pool of its own, that is closed when the test is over.
func (w *world) db() *sql.DB {
	w.t.Helper()
	db, err := sql.Open(w.driver(), w.dsn)
	must(w.t, err)
	db.SetMaxOpenConns(8)
	w.t.Cleanup(func() { must(w.t, db.Close()) })
	return db
}

// store opens what is in the tables, without the keys.
func (w *world) store() store.Store {
	w.t.Helper()
	var s store.Store
	var err error
	if w.kind == "postgres" {
		s, err = pgstore.FromSQL(w.db())
	} else {
		s, err = sqlitestore.New(w.db())
	}
	must(w.t, err)
	return s
}

// open starts an instance with a pool of its own, that is shut down when the test is over.
func (w *world) open(mek []byte, options ...dekmanager.DEKManagerOption) *dekmanager.DEKManager {
	w.t.Helper()
	d, err := dekmanager.NewDEKManager(w.db(), mek, append([]dekmanager.DEKManagerOption{dekmanager.WithLogger(quiet)}, options...)...)
	must(w.t, err)
	w.t.Cleanup(d.Shutdown)
	return d
}

// fails starts an instance, which is refused.
func (w *world) fails(mek []byte, options ...dekmanager.DEKManagerOption) error {
	w.t.Helper()
	d, err := dekmanager.NewDEKManager(w.db(), mek, append([]dekmanager.DEKManagerOption{dekmanager.WithLogger(quiet)}, options...)...)
	if err == nil {
		d.Shutdown()
		w.t.Fatal("an instance was started")
	}
	return err
}

// exec runs SQL past everything that is tested.
func (w *world) exec(text string, args ...any) {
	w.t.Helper()
	_, err := w.db().ExecContext(context.WithoutCancel(w.t.Context()), text, args...)
	must(w.t, err)
}

// count is what the database answers to a question for a number.
func (w *world) count(text string) (n int) {
	w.t.Helper()
	must(w.t, w.db().QueryRowContext(context.WithoutCancel(w.t.Context()), text).Scan(&n))
	return n
}

// logs keeps what it is told.
type logs struct {
	mu   sync.Mutex
	text []string
}

func (l *logs) Warn(msg string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, msg+" "+fmt.Sprint(args...))
}

// of counts what was told with the given words.
func (l *logs) of(words string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, text := range l.text {
		if strings.Contains(text, words) {
			n++
		}
	}
	return n
}

type nobody struct{}

func (nobody) Warn(string, ...any) {}

var quiet = nobody{}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused asserts the class and the words of an error.
func refused(t testing.TB, err, is error, words string) {
	t.Helper()
	if err == nil || is != nil && !errors.Is(err, is) || !strings.Contains(err.Error(), words) {
		t.Errorf("got error %v, want %q, which is %v", err, words, is)
	}
}

// get is a key's newest version, which has to be of the given number.
func get(t testing.TB, d *dekmanager.DEKManager, name string, want int) []byte {
	t.Helper()
	dek, version, err := d.GetDEK(t.Context(), name)
	must(t, err)
	if version != want {
		t.Fatalf("key %q: version %d, want %d", name, version, want)
	}
	return dek
}

func same(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: other bytes", what)
	}
}

// versions are the numbers of a key's versions in the tables, after checking all.
func versions(t testing.TB, d *dekmanager.DEKManager, name string) (numbers []keyhold.Version) {
	t.Helper()
	keys, err := d.Manager().Keys(t.Context(), scope)
	must(t, err)
	for _, k := range keys {
		if string(k.Ref.Purpose) == name {
			for _, v := range k.Versions {
				numbers = append(numbers, v.Number)
			}
		}
	}
	return numbers
}

// upTo is the numbers from 1 to n.
func upTo(n int) (numbers []keyhold.Version) {
	for i := range n {
		numbers = append(numbers, keyhold.Version(i+1))
	}
	return numbers
}

func hasVersions(t testing.TB, d *dekmanager.DEKManager, name string, n int) {
	t.Helper()
	if got := versions(t, d, name); !slices.Equal(got, upTo(n)) {
		t.Errorf("key %q has versions %v, want 1 to %d", name, got, n)
	}
}

// within waits until something is so, and fails the test after the limit.
func within(t testing.TB, limit time.Duration, what string, so func() bool) {
	t.Helper()
	end := time.After(limit)
	for !so() {
		select {
		case <-end:
			t.Fatalf("not within %v: %s", limit, what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// atOnce runs f for each of n at the same time.
func atOnce(n int, f func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() { <-start; f(i) })
	}
	close(start)
	wg.Wait()
}

// full says whether tests use their full figures.
func full(t testing.TB) bool {
	t.Helper()
	text := os.Getenv("KEYHOLD_TEST_REPEAT")
	if text == "" {
		return false
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("KEYHOLD_TEST_REPEAT is %q, and has to be a number from 1 on", text)
	}
	return n >= 50
}
