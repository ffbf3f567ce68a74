package keyhold_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/pgstore"
)

// The tests whose names begin with TestFailover have a primary of PostgreSQL, and a standby that is promoted.

// cluster is a primary and its standby, with an external root.
type cluster struct {
	primary, standby *pgserver.Server
	root             wrapping.Wrapper
	crash            func() error // the primary, at once
}

// newCluster starts servers whose commits wait for the standby, or do not.
func newCluster(t *testing.T, synchronous bool) *cluster {
	t.Helper()
	b, err := pgserver.Find(t.Context())
	must(t, err)
	settings := map[string]string{"synchronous_commit": "on"}
	if synchronous {
		settings["synchronous_standby_names"] = "standby"
	}
	c := &cluster{root: newRoot(t)}
	c.primary, err = pgserver.Start(t.Context(), b, pgserver.Options{Settings: settings, Standbys: true})
	must(t, err)
	c.crash = sync.OnceValue(c.primary.Stop)
	t.Cleanup(func() { must(t, c.crash()) })
	c.standby, err = c.primary.Standby(t.Context(), map[string]string{"synchronous_standby_names": ""})
	must(t, err)
	t.Cleanup(func() { must(t, c.standby.Stop()) })
	return c
}

// failover loses what the standby was not sent.
func (c *cluster) failover(t *testing.T) {
	t.Helper()
	must(t, c.crash())
	must(t, c.standby.Promote(t.Context()))
}

func primaryOf(c *cluster) string { return c.primary.DSN("postgres") }
func standbyOf(c *cluster) string { return c.standby.DSN("postgres") }

// whicheverTakesWrites is the address of both servers.
func whicheverTakesWrites(t *testing.T, c *cluster) string {
	t.Helper()
	u, err := url.Parse(primaryOf(c))
	must(t, err)
	other, err := url.Parse(standbyOf(c))
	must(t, err)
	query := u.Query()
	for _, name := range []string{"host", "port"} {
		query.Set(name, query.Get(name)+","+other.Query().Get(name))
	}
	query.Set("target_session_attrs", "read-write")
	u.RawQuery = query.Encode()
	return u.String()
}

// instance opens a manager with a pool of its own, as a process would. It is not closed: in the end there may be nobody
// whom it could tell.
func (c *cluster) instance(t *testing.T, dsn string, d keyhold.Durability, more ...func(*keyhold.Config)) (*keyhold.Manager, *pgstore.Store) {
	t.Helper()
	s, err := pgstore.Open(t.Context(), dsn)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	cfg := keyhold.Config{
		Root: c.root, Initialize: true, Durability: d,
		Purposes: []key.Purpose{secrets, session, yearly},
		Policies: map[key.Purpose]keyhold.Policy{yearly: {RotateEvery: time.Second}}, // these are short years
	}
	for _, set := range more {
		set(&cfg)
	}
	m, err := keyhold.New(t.Context(), s, cfg)
	must(t, err)
	return m, s
}

const yearly = key.Purpose("yearly")

// impatient ends, for the rest of the test, each wait for the standby but those of signs, as somebody does who wants to
// go on without it. So what was committed is seen on the primary, and the standby does not have it.
//
// The server says together what a session waits for now, and what it did a moment before. So only a statement that was
// seen to wait twice is cancelled, and only once, or what comes after it would be, a sign as well.
func (c *cluster) impatient(t *testing.T) (stop func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), primaryOf(c))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	type statement struct {
		PID   int32
		Start time.Time
		Sign  bool
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		seen := map[statement]int{}
		for {
			rows, err := conn.Query(ctx, `select pid, query_start, query like '%kms_instance%' from pg_stat_activity
				where wait_event = 'SyncRep'`)
			var waiting []statement
			if err == nil {
				waiting, err = pgx.CollectRows(rows, pgx.RowToStructByPos[statement])
			}
			before := seen
			seen = map[statement]int{}
			for _, s := range waiting {
				seen[s] = before[s] + 1
				if err == nil && seen[s] == 2 && !s.Sign {
					_, err = conn.Exec(ctx, "select pg_cancel_backend($1)", s.PID)
				}
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("cancel the waits: %v", err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				_ = conn.Close(context.Background())
				return
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// outside is what ciphertext that is not in the database was sealed with.
type outside struct {
	ref key.Ref
	id  key.ID
}

// sealer is an instance that seals with several keys all the time, as far as it may.
type sealer struct {
	m     *keyhold.Manager
	tries map[key.Ref]*atomic.Int64 // that are over

	mu   sync.Mutex
	kept map[outside][]byte // the last ciphertext of each version: the others open as it does
}

func newSealer(m *keyhold.Manager, refs []key.Ref) *sealer {
	s := &sealer{m: m, tries: map[key.Ref]*atomic.Int64{}, kept: map[outside][]byte{}}
	for _, r := range refs {
		s.tries[r] = &atomic.Int64{}
	}
	return s
}

// run seals with each key until ctx ends.
func (s *sealer) run(ctx context.Context, t *testing.T, wg *sync.WaitGroup) {
	t.Helper()
	for r, tries := range s.tries {
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				s.try(ctx, t, r)
				tries.Add(1)
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
}

func (s *sealer) try(ctx context.Context, t *testing.T, r key.Ref) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 300*time.Millisecond)
	defer cancel()
	id, ct, err := s.m.SealDetached(ctx, r, []byte(r.Purpose), keyhold.AAD{})
	switch {
	case err == nil:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.kept[outside{r, id}] = ct
	case errors.Is(err, keyhold.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
	case errors.Is(err, keyhold.ErrNotFound) && r.Scope != tenant: // its scope is not there yet
	default:
		t.Errorf("seal with %v: %v", r, err)
	}
}

// unreadable says, of the keys with a version with which something was sealed that does not open, what opening it says.
func (s *sealer) unreadable(t *testing.T, m *keyhold.Manager) map[key.Ref]error {
	t.Helper()
	refs := map[key.Ref]error{}
	for o, ct := range s.kept {
		pt, err := m.OpenDetached(t.Context(), o.ref, o.id, ct, keyhold.AAD{})
		if err == nil && string(pt) != string(o.ref.Purpose) {
			err = errors.New("another message")
		}
		if err != nil {
			refs[o.ref] = err
		}
	}
	return refs
}

// sealersTry waits until each of the sealers has tried each key from now on.
func sealersTry(t *testing.T, sealers ...*sealer) {
	t.Helper()
	enough := map[*atomic.Int64]int64{}
	for _, s := range sealers {
		for _, tries := range s.tries {
			enough[tries] = tries.Load() + 2 // the first of them may have begun before
		}
	}
	for tries, n := range enough {
		awaitThat(t, "each instance has tried each key", func() bool { return tries.Load() >= n })
	}
}

func awaitThat(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(30 * time.Second); !is(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited for 30 s, and it is not so that %s", what)
		}
	}
}

// What was sealed with Acknowledged and kept elsewhere opens after a failover, though the standby never got the keys
// that everybody saw on the primary meanwhile. Without, some of it does not.
func TestFailoverLosesNoKeyThatHasSealed(t *testing.T) {
	t.Parallel()
	for run := range repeats(t) {
		t.Run(strconv.Itoa(run), failOverWhileKeysChange)
	}
}

func failOverWhileKeysChange(t *testing.T) {
	const warm, made, own = key.Scope("warm"), key.Scope("made"), key.Scope("own")
	c := newCluster(t, true)
	rotated, failures := make(chan struct{}, 100), make(chan error, 100)
	changer, store := c.instance(t, primaryOf(c), keyhold.SameDatabase, func(c *keyhold.Config) {
		c.OnEvent = func(_ context.Context, e keyhold.Event) {
			switch {
			case e.Kind == keyhold.Rotated && e.Ref.Scope == tenant:
				rotated <- struct{}{}
			case e.Err != nil:
				failures <- fmt.Errorf("%v of %v: %w", e.Kind, e.Ref, e.Err)
			}
		}
	})
	must(t, changer.CreateScope(t.Context(), warm))
	must(t, changer.CreateScope(t.Context(), tenant))

	changed := []key.Ref{
		{Scope: made, Purpose: secrets},
		{Scope: tenant, Purpose: secrets},
		{Scope: tenant, Purpose: session},
		{Scope: tenant, Purpose: yearly},
	}

	open := func(d keyhold.Durability, refs []key.Ref) *sealer {
		m, _ := c.instance(t, primaryOf(c), d)
		sealed(t, m, key.Ref{Scope: warm, Purpose: secrets}, "x", keyhold.AAD{})
		return newSealer(m, refs)
	}
	hot, early, late := open(keyhold.Acknowledged, changed), open(keyhold.Acknowledged, changed), open(keyhold.Acknowledged, changed)
	maker := open(keyhold.Acknowledged, append(slices.Clone(changed), key.Ref{Scope: own, Purpose: secrets}))
	careless := open(keyhold.SameDatabase, changed)
	for _, r := range changed[1:] {
		sealed(t, hot.m, r, "x", keyhold.AAD{})
	}

	must(t, c.standby.Unfollow(t.Context()))
	stopCancelling := c.impatient(t)
	ctx, stop := context.WithCancel(t.Context())
	var sealing sync.WaitGroup
	hot.run(ctx, t, &sealing)
	early.run(ctx, t, &sealing)

	var changing sync.WaitGroup
	changing.Go(func() { check(t, changer.CreateScope(ctx, made)) })
	changing.Go(func() { check(t, maker.m.CreateScope(ctx, own)) })
	changing.Go(func() {
		_, err := changer.Rotate(ctx, changed[1])
		check(t, err)
	})
	changing.Go(func() {
		check(t, pgx.BeginFunc(ctx, store.Pool(), func(tx pgx.Tx) error {
			_, err := changer.RotateTx(ctx, store.InTx(tx), changed[2])
			return err
		}))
	})
	running, stopRunning := context.WithCancel(ctx)
	changing.Go(func() {
		if err := changer.Run(running); !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	select {
	case <-rotated:
	case <-time.After(30 * time.Second):
		t.Error("nothing was rotated by itself")
		for len(failures) > 0 {
			t.Log(<-failures)
		}
	}
	stopRunning()
	changing.Wait()

	for _, s := range []*sealer{late, maker, careless} {
		s.run(ctx, t, &sealing)
	}
	sealersTry(t, hot, early, late, maker, careless)
	stopCancelling()
	must(t, c.crash())
	stop()
	sealing.Wait()
	c.failover(t)

	m, _ := c.instance(t, standbyOf(c), keyhold.SameDatabase)
	for name, s := range map[string]*sealer{
		"knew the keys": hot, "needed them from then on": early, "needed them afterwards": late, "changed keys itself": maker,
	} {
		if lost := s.unreadable(t, m); len(lost) > 0 {
			t.Errorf("of what the instance that %s has sealed with, versions of %v are gone", name, lost)
		}
	}
	if len(hot.kept) == 0 {
		t.Error("the instance that knew the keys did not go on")
	}
	lost := careless.unreadable(t, m)
	for _, r := range changed {
		if _, ok := lost[r]; !ok {
			t.Errorf("without Acknowledged everything that was sealed with %v opens, so that nothing is shown", r)
		}
	}
	checked(t, m)
}

// check is must for goroutines other than the test's.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// upToDate waits until the standby has all that the primary has.
func (c *cluster) upToDate(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), primaryOf(c))
	must(t, err)
	awaitThat(t, "the standby is up to date", func() bool {
		var is bool
		must(t, conn.QueryRow(t.Context(), "select coalesce(bool_and(replay_lsn >= pg_current_wal_lsn()), false) from pg_stat_replication").Scan(&is))
		return is
	})
	must(t, conn.Close(t.Context()))
}

// A rotation that an asynchronous standby never got is written back within two questions by an instance that has sealed
// with the new version, and was given the addresses of both servers.
func TestFailoverThatLostARotationIsRepaired(t *testing.T) {
	t.Parallel()
	c := newCluster(t, false)
	recovered := make(chan keyhold.Event, 100)
	m, _ := c.instance(t, whicheverTakesWrites(t, c), keyhold.SameDatabase, func(c *keyhold.Config) {
		c.OnEvent = func(_ context.Context, e keyhold.Event) {
			if e.Kind == keyhold.Recovered {
				recovered <- e
			}
		}
	})
	must(t, m.CreateScope(t.Context(), tenant))
	before := sealed(t, m, ref, "before", keyhold.AAD{})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := m.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	c.upToDate(t)
	must(t, c.standby.Unfollow(t.Context()))
	other, _ := c.instance(t, primaryOf(c), keyhold.SameDatabase)
	_, err := other.Rotate(t.Context(), ref)
	must(t, err)
	keys, err := other.Keys(t.Context(), tenant)
	must(t, err)
	next := keys[1].Versions[1].ID
	var ct []byte
	awaitThat(t, "the instance seals with the new version", func() bool {
		var id key.ID
		id, ct, err = m.SealDetached(t.Context(), ref, []byte("after"), keyhold.AAD{})
		must(t, err)
		return id == next
	})

	c.failover(t)
	fresh, _ := c.instance(t, standbyOf(c), keyhold.SameDatabase)
	if _, err := fresh.OpenDetached(t.Context(), ref, next, ct, keyhold.AAD{}); err == nil {
		t.Fatal("the failover has lost nothing, so that nothing is shown")
	}
	// Two questions, and an answer; and as much again, where the machine is busy.
	within := time.After(2 * (2*4500*time.Millisecond + 2*time.Second))
	for back := false; !back; {
		select {
		case e := <-recovered:
			back = e.ID == next
		case <-within:
			t.Fatal("the version is not written back after two questions")
		}
	}
	fresh, _ = c.instance(t, standbyOf(c), keyhold.SameDatabase)
	pt, err := fresh.OpenDetached(t.Context(), ref, next, ct, keyhold.AAD{})
	if err != nil || string(pt) != "after" {
		t.Errorf("open what was sealed with the lost version: %q, %v", pt, err)
	}
	opens(t, fresh, ref, before, keyhold.AAD{}, "before")
	awaitThat(t, "it is the head again", func() bool { return states(t, fresh, ref) == "1:retired 2:active" })
	awaitThat(t, "the instance seals again", func() bool {
		_, err := m.Seal(t.Context(), ref, nil, keyhold.AAD{})
		return err == nil
	})
	stop()
	running.Wait()
	checked(t, fresh)
}

// timed says how long f took.
func timed(f func() error) (time.Duration, error) {
	began := time.Now()
	err := f()
	return time.Since(began), err
}

// While the standby that commits wait for is away, keys in use go on sealing for SealFor, a key that was not used
// before only where nothing depends on the standby, and no call takes longer than it may.
func TestFailoverStandbyAway(t *testing.T) {
	t.Parallel()
	const timeout, sealFor, slack = time.Second, 8 * time.Second, time.Second
	const commit = 5 * time.Second // is how long one is waited for whose outcome matters
	c := newCluster(t, true)
	open := func(d keyhold.Durability) *keyhold.Manager {
		m, _ := c.instance(t, primaryOf(c), d, func(c *keyhold.Config) { c.Timeout, c.SealFor = timeout, sealFor })
		return m
	}
	maker, _ := c.instance(t, primaryOf(c), keyhold.SameDatabase)
	must(t, maker.CreateScope(t.Context(), tenant))
	modes := map[string]keyhold.Durability{"SameDatabase": keyhold.SameDatabase, "Acknowledged": keyhold.Acknowledged}
	warm := map[string]*keyhold.Manager{}
	for name, d := range modes {
		warm[name] = open(d)
		sealed(t, warm[name], ref, "x", keyhold.AAD{})
	}
	away := time.Now()
	must(t, c.standby.Unfollow(t.Context()))
	cold := key.Ref{Scope: tenant, Purpose: session}

	for name, m := range warm {
		took, err := timed(func() error { _, err := m.Seal(t.Context(), cold, nil, keyhold.AAD{}); return err })
		if want := map[string]error{"Acknowledged": keyhold.ErrUnavailable}[name]; !errors.Is(err, want) || took > timeout+slack {
			t.Errorf("%s: %v after %v, want %v", name, err, took, want)
		}
	}
	for name, d := range modes {
		m := open(d)
		took, err := timed(func() error { _, err := m.Seal(t.Context(), ref, nil, keyhold.AAD{}); return err })
		if !errors.Is(err, keyhold.ErrUnavailable) || took > timeout+slack {
			t.Errorf("%s, in an instance that is not registered: %v after %v, want ErrUnavailable", name, err, took)
		}
	}

	var both sync.WaitGroup
	for name, m := range warm {
		both.Go(func() {
			var last, longest time.Duration
			var err error
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for err == nil {
				began := time.Since(away)
				var took time.Duration
				took, err = timed(func() error { _, err := m.Seal(t.Context(), ref, nil, keyhold.AAD{}); return err })
				if took > timeout+slack {
					t.Errorf("%s: a call took %v", name, took)
				}
				if err == nil {
					last, longest = began, max(longest, took)
				}
				<-tick.C
			}
			if !errors.Is(err, keyhold.ErrStale) || !errors.Is(err, keyhold.ErrUnavailable) {
				t.Errorf("%s, in the end: got error %v, want ErrStale and ErrUnavailable", name, err)
			}
			t.Logf("%s: sealed for %v, each call within %v", name, last, longest)
			if last < sealFor-timeout-slack || last > sealFor {
				t.Errorf("%s: a key in use went on sealing for %v, want %v", name, last, sealFor)
			}
		})
	}

	m := open(keyhold.Acknowledged)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	_, err := m.Seal(t.Context(), ref, nil, keyhold.AAD{}) // from then on it signs
	fails(t, err, keyhold.ErrUnavailable)
	took, err := timed(func() error { stop(); return <-ended })
	if !errors.Is(err, context.Canceled) || took > commit+slack {
		t.Errorf("run: %v %v after its end", err, took)
	}
	took, err = timed(m.Close)
	if !errors.Is(err, keyhold.ErrUnknownOutcome) || took > 2*time.Second+slack {
		t.Errorf("close: %v after %v, want ErrUnknownOutcome", err, took)
	}
	both.Wait()

	must(t, c.standby.Follow(t.Context()))
	for name, m := range warm {
		for _, r := range []key.Ref{ref, cold} {
			if _, err := m.Seal(t.Context(), r, nil, keyhold.AAD{}); err != nil {
				t.Errorf("%s, when the standby is back: %v", name, err)
			}
		}
	}
}
