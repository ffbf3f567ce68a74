package keyhold_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/sqlitestore"
)

// What processes are started with whose database goes away.
const (
	fleetSealFor = 6 * time.Second
	fleetOpenFor = 7 * time.Second
)

// fleetOutages makes worlds whose database can be taken away, and brought back, and says for how long it can be opened
// without.
var fleetOutages = map[string]func(t *testing.T, w *fleetWorld) (away, back func(), opens time.Duration){
	// A server of its own is stopped.
	"postgres": func(t *testing.T, w *fleetWorld) (away, back func(), opens time.Duration) {
		t.Helper()
		ctx := context.WithoutCancel(t.Context())
		b, err := pgserver.Find(ctx)
		must(t, err)
		server, err := pgserver.Start(ctx, b, pgserver.Options{})
		must(t, err)
		t.Cleanup(func() { must(t, server.Stop()) })
		must(t, os.WriteFile(filepath.Join(w.dir, "dsn"), []byte(server.DSN("postgres")), 0o600))
		return func() { must(t, server.Halt(ctx)) }, func() { must(t, server.Resume(ctx)) }, fleetOpenFor
	},
	// Nobody else can write to the file, as during somebody's long transaction. It can still be read.
	"sqlite": func(t *testing.T, w *fleetWorld) (away, back func(), opens time.Duration) {
		t.Helper()
		lock := func(query string) {
			s := w.store.(*sqlitestore.Store) //nolint:forcetypeassert // of this kind
			fleetUntil(t, query+" is done", func() bool {
				_, err := s.DB().ExecContext(t.Context(), query)
				return err == nil
			})
		}
		return func() { w.store.(*sqlitestore.Store).DB().SetMaxOpenConns(1); lock("begin exclusive") }, func() { lock("rollback") }, time.Hour
	},
}

// While the database is away, keys that were used before go on sealing and opening for as long as the configuration
// says, and then are refused with the error that says so. When it is back, everything goes on by itself.
func TestFleetSurvivesADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	for name, outage := range fleetOutages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &fleetWorld{kind: name, dir: t.TempDir()}
			away, back, opens := outage(t, w)
			w.begin(t)
			m := w.open(t, w.store)
			must(t, m.CreateScope(t.Context(), tenant))
			set := fleetSettings{SealFor: fleetSealFor, OpenFor: fleetOpenFor, Timeout: time.Second}
			running := set
			running.Run = true
			all := w.start(t, set, running)
			fleetObey(t, all, fleetOrder{Do: "write", Keys: []key.Ref{ref}, Every: 50 * time.Millisecond})
			fleetPass(500 * time.Millisecond)

			var o fleetOutage
			o.begins = time.Now()
			away()
			o.gone = time.Now()
			fleetPass(fleetOpenFor + 2500*time.Millisecond)
			o.ends = time.Now()
			back()
			o.back = time.Now()
			fleetPass(3 * time.Second)
			for i, a := range fleetObey(t, all, fleetOrder{Do: "stop"}) {
				var sealing, opening []fleetCall
				for _, call := range a.Calls {
					if call.Opens {
						opening = append(opening, call)
					} else {
						sealing = append(sealing, call)
					}
				}
				o.judge(t, fmt.Sprintf("process %d, sealing", i), sealing, fleetSealFor)
				o.judge(t, fmt.Sprintf("process %d, opening", i), opening, opens)
			}
			w.sound(t, m)
		})
	}
}

// fleetOutage is when a database was away: at the longest from begins to back, and at least from gone to ends.
type fleetOutage struct{ begins, gone, ends, back time.Time }

// judge asserts that the calls of a process went well, but for those that began later than limit after the last answer,
// and that those were refused; and that they go well again soon after the database is back.
func (o *fleetOutage) judge(t *testing.T, who string, calls []fleetCall, limit time.Duration) {
	t.Helper()
	// What is known is up to 5 s old when the database goes; and a second after it is back it is asked again.
	var before, without, refused, after int
	for _, call := range calls {
		what := ""
		switch {
		case call.Began.Before(o.begins.Add(limit - 5*time.Second - 100*time.Millisecond)):
			if call.Began.After(o.gone) {
				without++
			} else {
				before++
			}
			if call.Error != "" {
				what = "it was to go well"
			}
		case call.Began.After(o.gone.Add(limit)) && call.Ended.Before(o.ends):
			refused++
			if call.Error != "stale" {
				what = "it was to be refused as stale"
			}
		case call.Began.After(o.back.Add(2 * time.Second)):
			after++
			if call.Error != "" {
				what = "it was to go well again"
			}
		case call.Error != "" && call.Error != "stale":
			what = "it was to go well, or to be refused as stale"
		}
		if what != "" {
			t.Errorf("%s: %v after the database went, for %v, until %v before it was back: %q; %s", who,
				call.Began.Sub(o.begins), call.Ended.Sub(call.Began), o.back.Sub(call.Ended), call.Error, what)
		}
	}
	t.Logf("%s: %d calls before, %d without the database, %d refused, %d afterwards", who, before, without, refused, after)
	ended := o.gone.Add(limit).Before(o.ends)
	if before == 0 || without == 0 || ended && (refused == 0 || after == 0) {
		t.Errorf("%s: the test shows nothing of one of these times", who)
	}
}
