package dekmanager

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

// memory is a store without a database, whose clock is that of the process.
type memory struct{ *memstore.Store }

func (memory) Close() error { return nil }

// over starts an instance over s, as NewDEKManager does over a database.
func over(t *testing.T, s *memstore.Store, options ...DEKManagerOption) *DEKManager {
	t.Helper()
	return overStore(t, memory{s}, options...)
}

func overStore(t *testing.T, s closable, options ...DEKManagerOption) *DEKManager {
	t.Helper()
	config := defaults(nil, []byte("12345678901234567890123456789012"))
	config.Logger = &told{}
	for _, option := range options {
		option(&config)
	}
	d, settings, err := prepare(&config)
	check(t, err)
	d.store = s
	d.keys, err = keyhold.New(t.Context(), d.store, settings)
	check(t, err)
	there, err := d.keys.HasScope(t.Context(), d.scope)
	check(t, err)
	if !there {
		check(t, d.keys.CreateScope(t.Context(), d.scope))
	}
	d.start(&config)
	return d
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pass(d time.Duration) { <-time.After(d) }

func version(t *testing.T, d *DEKManager, name string) int {
	t.Helper()
	_, n, err := d.GetDEK(t.Context(), name)
	check(t, err)
	return n
}

// A process that never lives for as long as the period is rotates what is due all the same, and no process does so more
// often for being one of several.
func TestFaultRestartDoesNotResetThePeriod(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := memstore.New()
		every := WithDEKRotationPeriod(time.Hour)
		for restart := range 30 { // for ten hours
			d, other := over(t, s, every), over(t, s, every)
			if restart == 0 {
				version(t, d, "a")
			}
			pass(40 * time.Second) // in which what came due meanwhile is made
			want := 1 + (restart*20)/60
			if n := version(t, d, "a"); n != want {
				t.Errorf("after %d minutes it is version %d, want %d", restart*20, n, want)
			}
			pass(20*time.Minute - 70*time.Second)
			d.Shutdown()
			other.Shutdown()
			pass(30 * time.Second)
		}
		storetest.Check(t, s)
	})
}

// Keys that are there get a period that is given, and keep theirs under one that is not.
func TestPeriodOfKeysThatAreThere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := memstore.New()
		has := func(d *DEKManager, name string, want time.Duration) {
			t.Helper()
			info, err := d.keys.RawInfo(t.Context(), d.ref(name))
			if err != nil || info.RotateEvery != want {
				t.Errorf("key %q: period %v, %v, want %v", name, info.RotateEvery, err, want)
			}
		}
		d := over(t, s)
		version(t, d, "a")
		version(t, d, "b")
		check(t, d.RegisterKey(t.Context(), "no key"))
		has(d, "a", 90*24*time.Hour)
		d.Shutdown()

		d = over(t, s, WithDEKRotationPeriod(3*time.Hour+time.Millisecond))
		pass(time.Minute)
		has(d, "a", 3*time.Hour+time.Second)
		has(d, "b", 3*time.Hour+time.Second)
		version(t, d, "no key")
		has(d, "no key", 3*time.Hour+time.Second)
		d.Shutdown()

		d = over(t, s)
		pass(time.Minute)
		has(d, "a", 3*time.Hour+time.Second)
		version(t, d, "new")
		has(d, "new", 90*24*time.Hour)

		// An instance whose MEK is an old one has no say.
		next := over(t, s, func(c *DEKManagerConfig) { c.OldMEK = c.MEK }, func(c *DEKManagerConfig) { c.MEK = make([]byte, 32) })
		pass(time.Minute)
		old := over(t, s, WithDEKRotationPeriod(time.Minute))
		pass(10 * time.Minute)
		has(next, "a", 3*time.Hour+time.Second)
		info, err := next.keys.Installation(t.Context())
		check(t, err)
		check(t, next.keys.ActivateRoot(t.Context(), info.Roots[0].ID))
		pass(2 * time.Minute) // now its MEK is the current one again, which it learns by a call
		version(t, old, "a")
		pass(25 * time.Minute)
		has(old, "a", 3*time.Hour+time.Second)
		check(t, old.RotateDEK(t.Context(), "a"))
		for _, d := range []*DEKManager{d, next, old} {
			d.Shutdown()
		}
		storetest.Check(t, s)
	})
}

// A key that is never rotated stays so whatever period an instance gives, and others get that.
func TestPeriodLeavesAloneWhatIsNeverRotated(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := memstore.New()
		d := over(t, s)
		never := keyhold.RawKey{Policy: keyhold.Policy{RotateEvery: -1}}
		_, err := d.keys.MakeRaw(t.Context(), d.ref("kept#mek1"), never)
		check(t, err)
		version(t, d, "other")
		d.Shutdown()

		d = over(t, s, WithDEKRotationPeriod(time.Hour))
		pass(90 * time.Minute)
		info, err := d.keys.RawInfo(t.Context(), d.ref("kept#mek1"))
		if err != nil || info.RotateEvery != 0 || info.Version != 1 {
			t.Errorf("the key that is never rotated: %+v, %v", info, err)
		}
		if n := version(t, d, "other"); n != 2 {
			t.Errorf("the other key has version %d after an hour, want 2", n)
		}
		d.Shutdown()
	})
}

// A key at which something fails holds up no other, is told, and gets its period ten minutes later.
func TestPeriodOfAKeyThatFails(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := memstore.New()
		d := over(t, s)
		names := []string{"a", "b", "c"}
		for _, name := range names {
			version(t, d, name)
		}
		d.Shutdown()
		flip := func() {
			s.Edit(func(all *memstore.Data) { all.Key(d.ref("b")).MAC[0] ^= 1 })
		}
		flip()

		var log told
		d = over(t, s, WithDEKRotationPeriod(3*time.Hour), WithLogger(&log))
		periods := func(when string, a, b, c time.Duration) {
			t.Helper()
			want := []time.Duration{a, b, c}
			for info, err := range d.keys.RawKeys(t.Context(), d.scope) {
				check(t, err)
				if i := slices.Index(names, string(info.Name)); info.RotateEvery != want[i] {
					t.Errorf("%s key %q has the period %v, want %v", when, info.Name, info.RotateEvery, want[i])
				}
			}
		}
		const every, before = 3 * time.Hour, 90 * 24 * time.Hour
		pass(9 * time.Minute)
		periods("after nine minutes", every, before, every)
		if n := log.of(`Not all keys have the rotation period`); n != 1 || log.of(`of key "b" of`) != 1 {
			t.Errorf("told %q, want once, and of which key", log.text)
		}
		flip() // it is right again
		pass(50 * time.Second)
		periods("before ten minutes", every, before, every)
		pass(time.Minute)
		periods("after ten minutes", every, every, every)
		pass(time.Hour)
		if n := log.of(`Not all keys have the rotation period`); n != 1 {
			t.Errorf("told %d times, want once: %q", n, log.text)
		}
		d.Shutdown()
		storetest.Check(t, s)
	})
}

type told struct {
	mu   sync.Mutex
	text []string
}

func (l *told) Warn(msg string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, msg+" "+strings.TrimSuffix(fmt.Sprintln(args...), "\n"))
}

// of counts what was told with the given words.
func (l *told) of(words string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, text := range l.text {
		if strings.Contains(text, words) {
			n++
		}
	}
	return n
}

// Calls with an old MEK warn once a minute, and no more when it is the current one again.
func TestOldMEKWarnsOnceAMinute(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := memstore.New()
		var log told
		old := over(t, s, WithLogger(&log))
		version(t, old, "a")
		next := over(t, s, func(c *DEKManagerConfig) { c.OldMEK = c.MEK }, func(c *DEKManagerConfig) { c.MEK = make([]byte, 32) })
		pass(10 * time.Second)
		for range 600 { // for ten minutes
			version(t, old, "a")
			pass(time.Second)
		}
		if n := len(log.text); n != 1+10 {
			t.Errorf("%d warnings, want one of the change and 10 of calls: %q", n, log.text)
		}
		info, err := next.keys.Installation(t.Context())
		check(t, err)
		check(t, next.keys.ActivateRoot(t.Context(), info.Roots[0].ID))
		pass(2 * time.Minute)
		log.text = nil
		for range 600 {
			version(t, old, "a")
			pass(time.Second)
		}
		if len(log.text) != 0 {
			t.Errorf("warnings of the current MEK: %q", log.text)
		}
		check(t, old.RotateDEK(t.Context(), "a"))
		old.Shutdown()
		next.Shutdown()
	})
}

// Events tell the logger what somebody should know, with no more than names and numbers.
func TestLoggerIsToldWhatFails(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := memstore.New()
		var log told
		function := WithFunction("custom", func(context.Context) ([]byte, error) { return []byte("custom"), nil })
		d := over(t, s, function, WithDEKRotationPeriod(time.Hour), WithLogger(&log))
		check(t, d.RegisterKeyWithFunction(t.Context(), "a", "custom"))
		version(t, d, "a")
		version(t, d, "b")
		pass(70 * time.Minute)
		if version(t, d, "a") != 2 || version(t, d, "b") != 2 || len(log.text) != 0 {
			t.Errorf("what was to be done is told: %q", log.text)
		}
		d.Shutdown()
		d = over(t, s, WithLogger(&log))
		pass(70 * time.Minute)
		if version(t, d, "a") != 2 || version(t, d, "b") != 3 {
			t.Error("not what is due was rotated")
		}
		if len(log.text) == 0 {
			t.Error("nobody was told")
		}
		for _, text := range log.text {
			if !strings.HasPrefix(text, "keyhold: rotation failed key_name a ") {
				t.Errorf("told %q", text)
			}
		}
		d.Shutdown()
	})
}

func TestSQLiteIsKnownByItsDriver(t *testing.T) {
	for name, want := range map[string]bool{"sqlite": true, "SQLite3": true, "pgx": false, "postgres": false} {
		if got := isSQLite(&DEKManagerConfig{DB: new(sql.DB), DriverName: name}); got != want {
			t.Errorf("driver %q: %v", name, got)
		}
	}
}

// What is under way when Shutdown begins is ended before it returns.
func TestShutdownWaitsForARotationThatIsUnderWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := memstore.New()
		var log told
		var began, ended atomic.Bool
		release := make(chan struct{})
		d := over(t, s, WithLogger(&log), WithDEKRotationPeriod(time.Hour), WithFunction("slow", func(context.Context) ([]byte, error) {
			if began.Swap(true) { // the second version
				<-release
				ended.Store(true)
			}
			return []byte("slow"), nil
		}))
		check(t, d.RegisterKeyWithFunction(t.Context(), "a", "slow"))
		version(t, d, "a")
		pass(time.Hour + 10*time.Second)
		done := make(chan struct{})
		go func() {
			d.Shutdown()
			if !ended.Load() {
				t.Error("Shutdown returned before the function did")
			}
			close(done)
		}()
		pass(time.Minute)
		close(release)
		<-done
		if len(log.text) != 0 {
			t.Errorf("that it is shut down is told as a failure: %q", log.text)
		}
		storetest.Check(t, s)
	})
}
