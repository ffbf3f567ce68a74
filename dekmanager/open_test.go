package dekmanager_test

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
	"keyhold.example/keyhold/migrate"
)

func TestOptionsThatMakeNoSenseAreNamed(t *testing.T) {
	w := newWorld(t, "sqlite")
	function := func(context.Context) ([]byte, error) { return nil, nil }
	for words, option := range map[string]dekmanager.DEKManagerOption{
		"option 2 of 2 is nil":        nil,
		"WithCleanupPeriod: 0s":       dekmanager.WithCleanupPeriod(0),
		"WithDEKRotationPeriod: -1ns": dekmanager.WithDEKRotationPeriod(-1),
		"WithDEKRotationPeriod: 0s":   dekmanager.WithDEKRotationPeriod(0),
		"hundred years":               dekmanager.WithDEKRotationPeriod(101 * 365 * 24 * time.Hour),
		"WithTransitionCheckPeriod:":  dekmanager.WithTransitionCheckPeriod(-time.Hour),
		"WithLockLeaseDuration:":      dekmanager.WithLockLeaseDuration(0),
		"WithCacheExpiration:":        dekmanager.WithCacheExpiration(0),
		"WithMaxCacheSize: 0":         dekmanager.WithMaxCacheSize(0),
		"WithMaxCacheSize: -1":        dekmanager.WithMaxCacheSize(-1),
		"WithMaxKeyFuncCache: -1":     dekmanager.WithMaxKeyFuncCache(-1),
		"WithScope:":                  dekmanager.WithScope(""),
		`function "f" is nil`:         dekmanager.WithFunction("f", nil),
		`"aes256-random" already`:     dekmanager.WithFunction("aes256-random", function),
		"WithFunction: the name":      dekmanager.WithFunction(" f", function),
		"WithFunction: the name of":   dekmanager.WithFunction("", function),
		"'other' not registered":      dekmanager.WithDefaultGenFuncName("other"),
		"WithDefaultGenFuncName: DEK": dekmanager.WithDefaultGenFuncName(""),
		`no schema "other"`:           dekmanager.WithSchemaName("other"),
		"WithOldMEK: invalid MEK":     dekmanager.WithOldMEK([]byte("short")),
		"it has 0 bytes":              dekmanager.WithOldMEK([]byte{}),
		"prefix":                      dekmanager.WithTablePrefix(`x"; drop table a; --`),
	} {
		refused(t, w.fails(mek, option), nil, words)
	}
	if n := w.count("select count(*) from sqlite_master"); n != 0 {
		t.Errorf("%d tables", n)
	}
	_, err := dekmanager.NewDEKManager(nil, mek)
	refused(t, err, nil, "*sql.DB is nil")
	d := w.open(mek, dekmanager.WithOldMEK(nil), dekmanager.WithLogger(nil), dekmanager.WithSchemaName("main"))
	get(t, d, "a", 1)
}

// An option may fill in what the others do.
func TestOptionOfTheCallersOwn(t *testing.T) {
	w := newWorld(t, "sqlite")
	d := w.open(mek, func(c *dekmanager.DEKManagerConfig) {
		c.TablePrefix, c.DEKRotationPeriod = "mine", 2*c.DEKRotationPeriod
	})
	get(t, d, "a", 1)
	info, err := d.Manager().RawInfo(t.Context(), keyhold.Ref{Scope: scope, Purpose: "a"})
	if err != nil || info.RotateEvery != 180*24*time.Hour || d.TablePrefix() != "mine" {
		t.Errorf("period %v, prefix %q, %v", info.RotateEvery, d.TablePrefix(), err)
	}
}

func TestDriverNames(t *testing.T) {
	w := newWorld(t, "sqlite")
	w.open(mek, dekmanager.WithDriverName("sqlite3"))
	err := w.fails(mek, dekmanager.WithDriverName("pgx")) // which it believes
	refused(t, err, nil, "open DEK manager")
	p := newWorld(t, "postgres")
	for _, name := range []string{"pgx", "postgres", "pq", ""} {
		p.open(mek, dekmanager.WithDriverName(name))
	}
}

// After an error nothing is left of an instance.
func TestFaultNothingRunsAfterAnError(t *testing.T) {
	w := newWorld(t, "sqlite")
	d := w.open(mek)
	get(t, d, "a", 1)
	db := w.db()
	must(t, db.PingContext(t.Context()))
	before := goleak.IgnoreCurrent()
	for _, options := range [][]dekmanager.DEKManagerOption{
		nil,
		{dekmanager.WithOldMEK(make([]byte, 32))},
		{dekmanager.WithDEKRotationPeriod(-1)},
	} {
		if _, err := dekmanager.NewDEKManager(db, newMEK, options...); err == nil {
			t.Error("an instance was started")
		}
	}
	goleak.VerifyNone(t, before)
	must(t, db.PingContext(t.Context())) // it is the caller's
}

// Shutdown returns when the work is done, also while calls are under way, and as often as it is called.
func TestFaultShutdownWaitsForNothingElse(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, d := t.Context(), w.open(mek)
		want := get(t, d, "a", 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			atOnce(4, func(i int) {
				for {
					var err error
					if i == 0 {
						err = d.RotateDEK(ctx, "b")
					} else {
						_, _, err = d.GetDEK(ctx, "a")
					}
					switch {
					case errors.Is(err, keyhold.ErrClosed):
						return
					case err != nil:
						t.Errorf("while it shuts down: %v", err)
						return
					}
				}
			})
		}()
		within(t, 10*time.Second, "rotations are under way", func() bool {
			_, n, err := d.GetKeyInfo(ctx, "b")
			return err == nil && n > 2
		})
		began := time.Now()
		atOnce(3, func(int) { d.Shutdown() })
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		<-done
		_, _, err := d.GetDEK(ctx, "a")
		refused(t, err, keyhold.ErrClosed, "")
		_, err = d.GetDEKByVersion(ctx, "a", 1)
		refused(t, err, keyhold.ErrClosed, "")
		refused(t, d.RegisterKey(ctx, "a"), keyhold.ErrClosed, "")
		refused(t, d.RotateDEK(ctx, "a"), keyhold.ErrClosed, "")
		refused(t, d.RemoveKey(ctx, "a"), keyhold.ErrClosed, "")
		_, err = d.ListKeys(ctx)
		refused(t, err, keyhold.ErrClosed, "")
		same(t, "after a restart", get(t, w.open(mek), "a", 1), want)
	})
}

func TestFaultMEKOfAnotherLengthIsRefusedByOneSentence(t *testing.T) {
	w := newWorld(t, "sqlite")
	for _, mek := range []string{"", "short", "your-32-byte-master-encryption-key", strings.Repeat("x", 31), strings.Repeat("x", 33)} {
		err := w.fails([]byte(mek))
		refused(t, err, nil, "invalid MEK size: it has")
		if mek != "" && strings.Contains(err.Error(), mek) {
			t.Errorf("it shows the MEK: %v", err)
		}
	}
	refused(t, w.fails([]byte("your-32-byte-master-encryption-key")), nil, "it has 34 bytes, and must be 32 bytes")
}

// The tables' names are quoted or refused, only the first start makes any, and any number of first starts may be at
// once.
func TestFaultTablesAreMadeOnce(t *testing.T) {
	w := newWorld(t, "postgres")
	schema := `it's "mine"; drop table a; --`
	u, err := url.Parse(w.dsn)
	must(t, err)
	atOnce(8, func(int) {
		d, err := dekmanager.NewDEKManager(w.db(), mek, dekmanager.WithSchemaName(schema), dekmanager.WithLogger(quiet))
		if err != nil {
			t.Errorf("first start: %v", err)
			return
		}
		defer d.Shutdown()
		if _, version, err := d.GetDEK(t.Context(), "a"); err != nil || version != 1 {
			t.Errorf("version %d, %v", version, err)
		}
	})
	if n := w.count("select count(*) from pg_tables where tablename = 'kms_root_key'"); n != 1 {
		t.Errorf("%d tables of root keys", n)
	}
	// From now on a user does who may only read and write.
	user := strings.TrimPrefix(u.Path, "/") + "_app"
	quoted := migrate.Quote(schema)
	for _, text := range []string{
		"create role " + user + " login",
		"grant usage on schema " + quoted + " to " + user,
		"grant select, insert, update, delete on all tables in schema " + quoted + " to " + user,
		"grant usage on all sequences in schema " + quoted + " to " + user,
	} {
		w.exec(text)
	}
	t.Cleanup(func() { w.exec("drop owned by " + user); w.exec("drop role " + user) })
	u.User = url.User(user)
	query := u.Query()
	if query.Has("user") {
		query.Set("user", user)
		u.RawQuery = query.Encode()
	}
	db, err := sql.Open("pgx", u.String())
	must(t, err)
	defer db.Close()
	d, err := dekmanager.NewDEKManager(db, mek, dekmanager.WithSchemaName(schema), dekmanager.WithLogger(quiet))
	must(t, err)
	defer d.Shutdown()
	var who string
	must(t, db.QueryRowContext(t.Context(), "select current_user").Scan(&who))
	if who != user {
		t.Fatalf("the user is %q, want %q", who, user)
	}
	get(t, d, "a", 1)
	must(t, d.RotateDEK(t.Context(), "a"))
	get(t, d, "b", 1)
	must(t, d.RemoveKey(t.Context(), "b"))
}

// A program that only reads in its tests would go live, and then could not rotate.
func TestSQLiteWithoutForeignKeysIsRefused(t *testing.T) {
	w := newWorld(t, "sqlite")
	w.open(mek)
	path, _, _ := strings.Cut(w.dsn, "?")
	db, err := sql.Open("sqlite", path)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	d, err := dekmanager.NewDEKManager(db, mek)
	if err == nil {
		d.Shutdown()
	}
	if err == nil || !strings.Contains(err.Error(), "_pragma=foreign_keys(1)") {
		t.Errorf("%v", err)
	}
}
