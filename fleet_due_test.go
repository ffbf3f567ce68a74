package keyhold_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// A key is due by the database's clock, whatever time zone the processes and the database are in.
func TestFleetRotatesByTheDatabasesClock(t *testing.T) {
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		now := "cast(strftime('%s', 'now') as integer)"
		if w.kind == "postgres" {
			now = "floor(extract(epoch from clock_timestamp()))::bigint"
			w.exec(t, "do $$ begin execute format('alter database %I set timezone to %L', current_database(), 'WEST+7'); end $$")
		}
		m := w.open(t, w.store)
		must(t, m.CreateScope(t.Context(), tenant))
		all := w.start(t, fleetSettings{Zone: "EAST-13"}, fleetSettings{Zone: "WEST+12"}, fleetSettings{})
		w.exec(t, "update kms_data_key set rotate_at = "+now+" + 3600")
		for _, want := range []int{0, 4} {
			rotated := 0
			for _, a := range fleetObey(t, all, fleetOrder{Do: "sweep"}) {
				rotated += a.Swept.Rotated
			}
			if rotated != want {
				t.Errorf("%d rotations, want %d", rotated, want)
			}
			w.exec(t, "update kms_data_key set rotate_at = "+now+" where head_version = 1")
		}
		for _, k := range []key.Ref{ref, {Scope: tenant, Purpose: session}} {
			if got := states(t, m, k); got != "1:retired 2:active" {
				t.Errorf("%v: %s", k, got)
			}
		}
		w.sound(t, m)
	})
}

// Where the database's clock is ten years from that of the processes, keys are due by the database's. In SQLite there
// is no clock but that of the processes.
func TestFleetRotatesByTheClockOfADatabaseThatIsYearsOff(t *testing.T) {
	t.Parallel()
	for _, off := range []string{"-10 years", "10 years"} {
		t.Run(off, func(t *testing.T) {
			t.Parallel()
			w := &fleetWorld{kind: "postgres", dir: t.TempDir()}
			fleetKinds[w.kind].prepare(t, w.dir)
			// Found before those of the server, which tell the time in every statement.
			before, err := fleetKinds[w.kind].open(t.Context(), w.dir)
			must(t, err)
			for _, function := range []string{"statement_timestamp", "clock_timestamp"} {
				must(t, fleetExec(t.Context(), before, "create function public."+function+"() returns timestamptz language sql stable as "+
					"$$ select pg_catalog."+function+"() + interval '"+off+"' $$"))
			}
			must(t, fleetExec(t.Context(), before, `do $$ begin
				execute format('alter database %I set search_path = public, pg_catalog', current_database()); end $$`))
			must(t, before.Close())
			w.begin(t)
			m := w.open(t, w.store)
			must(t, m.CreateScope(t.Context(), tenant))
			must(t, m.SetPolicy(t.Context(), ref, keyhold.Policy{RotateEvery: 3 * time.Second}))
			set := fleetSettings{Run: true}
			all := w.start(t, set, set)
			fleetObey(t, all, fleetOrder{Do: "use", Keys: []key.Ref{ref}, Every: 50 * time.Millisecond})
			fleetUntil(t, "the key was rotated by its period", func() bool { return len(ids(t, m, ref)) > 2 })
			for _, p := range all {
				p.end(t)
			}
			keys, err := m.Keys(t.Context(), tenant)
			must(t, err)
			for _, k := range keys {
				if k.Ref != ref && len(k.Versions) != 1 {
					t.Errorf("%v is not due, and has %d versions", k.Ref, len(k.Versions))
				}
				for i, v := range k.Versions {
					if d := time.Since(v.Created).Abs(); d < 9*365*24*time.Hour {
						t.Errorf("version %d of %v was made %v from now: it is not the clock that was set", v.Number, k.Ref, d)
					}
					if i > 0 && v.Created.Sub(k.Versions[i-1].Created) < 3*time.Second {
						t.Errorf("version %d of %v came too soon", v.Number, k.Ref)
					}
				}
			}
			w.sound(t, m)
		})
	}
}

// Processes that know none of the purposes rotate all keys, root keys as well, and wrap data keys anew.
func TestFleetThatKnowsNoPurposesRotatesAllOfThem(t *testing.T) {
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		m := w.open(t, w.store)
		must(t, m.CreateScope(t.Context(), tenant))
		all := w.start(t, fleetSettings{Bare: true}, fleetSettings{Bare: true})
		for _, table := range []string{"kms_root_key", "kms_data_key"} {
			w.exec(t, "update "+table+" set rotate_at = 1000000000")
		}
		rotated := 0
		for _, a := range fleetObey(t, all, fleetOrder{Do: "sweep"}) {
			rotated += a.Swept.Rotated
			if a.Swept.Failed != 0 {
				t.Errorf("a process failed at %d keys", a.Swept.Failed)
			}
		}
		keys, err := m.Keys(t.Context(), tenant)
		must(t, err)
		if rotated != len(keys) {
			t.Errorf("%d rotations, want one of each of %d keys", rotated, len(keys))
		}
		for _, k := range keys {
			if k.Head != 2 || len(k.Versions) != 2 || k.Due {
				t.Errorf("%v: head %d of %d versions, want 2 of 2; due: %v", k.Ref, k.Head, len(k.Versions), k.Due)
			}
			for _, v := range k.Versions {
				if v.Behind {
					t.Errorf("version %d of %v is not under the root key's head", v.Number, k.Ref)
				}
			}
		}
		w.sound(t, m)
	})
}

// Over a time in which keys come due again and again, they get the versions that are due and no more, whether the
// processes stay, or are ended and started anew all the time.
func TestFleetRotatesOnceAPeriod(t *testing.T) {
	fleetEach(t, func(t *testing.T, w *fleetWorld) { fleetPeriods(t, w, false) })
}

// A process that starts beside many others takes a second for it, under the race detector, and is to be restarted in
// two.
func TestFleetRotatesOnceAPeriodWhenItIsRestartedAllTheTime(t *testing.T) {
	fleetAlone(t, func(t *testing.T, w *fleetWorld) { fleetPeriods(t, w, true) })
}

func fleetPeriods(t *testing.T, w *fleetWorld, restarts bool) {
	t.Helper()
	const processes = 4
	const lasts = 10 * time.Second
	m := w.open(t, w.store)
	scopes := []key.Scope{"a", "b"}
	refs := make([]key.Ref, 0, 2*len(scopes))
	for _, scope := range scopes {
		must(t, m.CreateScope(t.Context(), scope))
		refs = append(refs, key.Ref{Scope: scope, Purpose: secrets}, key.Ref{Scope: scope, Purpose: session})
	}
	for _, r := range refs {
		must(t, m.SetPolicy(t.Context(), r, keyhold.Policy{RotateEvery: time.Second}))
	}
	set := fleetSettings{Run: true}
	all := w.start(t, set, set, set, set)
	use := fleetOrder{Do: "use", Keys: refs, Every: 50 * time.Millisecond}
	fleetObey(t, all, use)
	var watch fleetWatch
	watching, stop := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- watch.run(watching, w.store) }()
	from := w.clock(t)
	began := time.Now()
	for i := 0; time.Since(began) < lasts; i++ {
		fleetPass(2 * time.Second / processes)
		if restarts { // each every 2 s
			all[i%processes].end(t)
			all[i%processes] = w.start(t, set)[0]
			fleetObey(t, all[i%processes:i%processes+1], use)
		}
	}
	ended := time.Now()
	to := w.clock(t)
	for _, p := range all {
		p.end(t)
	}
	stop()
	must(t, <-watched)
	lost := fleetLost(watch.lost(), began, ended)
	for _, scope := range scopes {
		keys, err := m.Keys(t.Context(), scope)
		must(t, err)
		for _, k := range keys {
			if !slices.Contains(refs, k.Ref) {
				if len(k.Versions) != 1 {
					t.Errorf("%v is not due, and has %d versions", k.Ref, len(k.Versions))
				}
				continue
			}
			fleetDue(t, &k, from, to, lost, restarts)
		}
	}
	w.sound(t, m)
}

// clock is what the database's clock says, in whole seconds.
func (w *fleetWorld) clock(t *testing.T) int64 {
	t.Helper()
	now, _, err := w.store.Upcoming(t.Context())
	must(t, err)
	return now
}

// fleetDue asserts that the key, which is due a second after each of its versions, got those that were due from one
// second of the database's clock to another, and none sooner. All were late together by what Run may be, and by what
// was lost.
//
// Who has made a version looks again when the next one is due, and half a second later, a fifth more or less: a version
// is at most 0.65 s late, with the work. Where processes are started all the time, who is new looks at once, so that
// all together are not much later than one. That takes a machine that does nothing else, so it is asserted where the
// tests are to be thorough, and otherwise that no more than four fifths of the time were lost, and no more than half of
// it at the beginning or the end.
func fleetDue(t *testing.T, k *keyhold.KeyInfo, from, to int64, lost time.Duration, restarts bool) {
	t.Helper()
	var at []int64
	for _, v := range k.Versions {
		if second := v.Created.Unix(); second >= from && second <= to {
			at = append(at, second-from)
		}
	}
	if len(at) == 0 {
		t.Errorf("%v: no version in %d s", k.Ref, to-from)
		return
	}
	for i := range at[1:] {
		if at[i+1]-at[i] < 1 {
			t.Errorf("%v: of the versions at seconds %v some are not a second younger than the one before", k.Ref, at)
		}
	}
	n := len(at) - 1
	late := time.Duration(at[n]-at[0]-int64(n)) * time.Second
	may := lost + time.Second + time.Duration(n)*650*time.Millisecond // a second, as these are whole ones
	if restarts {
		may = lost + 2*time.Second
	}
	gapMay := lost + 3*time.Second
	if !fleetThorough() {
		all := time.Duration(to-from) * time.Second
		may, gapMay = max(may, all*4/5), max(gapMay, all/2)
	}
	t.Logf("%v: versions at seconds %v of %d: %v late, of %v", k.Ref, at, to-from, late, may)
	if late > may {
		t.Errorf("%v: the versions at seconds %v were %v late, which is more than %v", k.Ref, at, late, may)
	}
	if gap := time.Duration(max(at[0], to-from-at[n])) * time.Second; gap > gapMay {
		t.Errorf("%v: the versions at seconds %v of %d do not go from the beginning to the end", k.Ref, at, to-from)
	}
}
