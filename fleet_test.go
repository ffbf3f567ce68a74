package keyhold_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
	"keyhold.example/keyhold/store/storetest"
)

// The tests whose names begin with TestFleet have processes that stay up, follow orders, and go on with what they do
// while keys change, processes come and go, and databases are away.

// fleetThorough says whether the tests take the time for the full figures, as with "make endure".
func fleetThorough() bool {
	n, err := strconv.Atoi(os.Getenv(repeatVariable))
	return err == nil && n >= 50
}

// fleetPass lets real time pass, where that is what is measured.
func fleetPass(d time.Duration) { <-time.After(d) }

// fleetUntil waits for something that other processes do.
func fleetUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(2 * time.Minute); !is(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited for two minutes, and it is not so that %s", what)
		}
	}
}

// fleetWorld is a database that processes share, in a folder with what they need to open it.
type fleetWorld struct {
	kind  string
	dir   string
	store store.Store
}

// fleetEach runs f for each kind of database that processes can share, side by side with all that waits as much.
func fleetEach(t *testing.T, f func(t *testing.T, w *fleetWorld)) {
	t.Helper()
	t.Parallel()
	for name := range fleetKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fleetOn(t, name, f)
		})
	}
}

func fleetOn(t *testing.T, kind string, f func(t *testing.T, w *fleetWorld)) {
	t.Helper()
	w := &fleetWorld{kind: kind, dir: t.TempDir()}
	fleetKinds[kind].prepare(t, w.dir)
	w.begin(t)
	f(t, w)
}

// fleetAlone is fleetEach for so many processes that they need the machine for themselves.
func fleetAlone(t *testing.T, f func(t *testing.T, w *fleetWorld)) {
	t.Helper()
	for name := range fleetKinds {
		t.Run(name, func(t *testing.T) { fleetOn(t, name, f) })
	}
}

// begin makes what processes need besides an empty database.
func (w *fleetWorld) begin(t *testing.T) {
	t.Helper()
	_, err := localroot.Generate(filepath.Join(w.dir, "root.key"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.dir, "kind"), []byte(w.kind), 0o600))
	w.store, err = storeIn(t.Context(), w.dir)
	must(t, err)
	t.Cleanup(func() { must(t, w.store.Close()) })
}

// open opens the installation in s, which is the database or stands before it.
func (w *fleetWorld) open(t *testing.T, s store.Store) *keyhold.Manager {
	t.Helper()
	root, err := localroot.Open(filepath.Join(w.dir, "root.key"))
	must(t, err)
	return newManager(t, s, root)
}

// exec runs a statement of the application's, or of somebody's who changes the tables by hand.
func fleetExec(ctx context.Context, s store.Store, query string) error {
	switch s := s.(type) {
	case *pgstore.Store:
		_, err := s.Pool().Exec(ctx, query)
		return err
	case *sqlitestore.Store:
		_, err := s.DB().ExecContext(ctx, query)
		return err
	}
	return fmt.Errorf("%T has no SQL", s)
}

func (w *fleetWorld) exec(t *testing.T, query string) {
	t.Helper()
	must(t, fleetExec(t.Context(), w.store, query))
}

// sound asserts that everything the tables hold is as it has to be.
func (w *fleetWorld) sound(t *testing.T, m *keyhold.Manager) {
	t.Helper()
	checked(t, m)
	storetest.Check(t, w.store)
}

// fleetSettings are what a process is started with.
type fleetSettings struct {
	SealFor, OpenFor, Timeout time.Duration

	Strict bool
	Run    bool   // from the beginning
	Bare   bool   // it knows no purposes
	Zone   string // its time zone; empty for that of the test

	fleetRoots
}

// fleetOrder is what a process is to do, and fleetAnswer what it says when that is done; each is a line of JSON.
type fleetOrder struct {
	Do    string
	Keys  []key.Ref
	Every time.Duration
	Spend int // goroutines

	fleetRootsOrder
}

type fleetAnswer struct {
	Error string
	Swept keyhold.Swept
	Uses  map[key.ID]fleetUse
	Calls []fleetCall
	Count int

	Refusals []fleetRefusal
	Stalls   []fleetStall

	fleetRootsAnswer
}

// fleetMember is a process, seen from inside. What it does all the time ends with the order to stop.
type fleetMember struct {
	m      *keyhold.Manager
	s      store.Store
	cfg    keyhold.Config
	faulty *faultstore.Store // what m works with, if it is to die; otherwise nil
	ctx    context.Context   // of what is done in the background
	cancel context.CancelFunc
	ended  []func(*fleetAnswer)
	count  func() int // of the versions that were used
}

func (c *fleetMember) goOn(ctx context.Context) { c.ctx, c.cancel = context.WithCancel(ctx) }

// background does something until the process is told to stop, when report adds to the answer.
func (c *fleetMember) background(do func(context.Context) error, report func(*fleetAnswer)) {
	done := make(chan error, 1)
	ctx := c.ctx
	go func() { done <- do(ctx) }()
	c.ended = append(c.ended, func(a *fleetAnswer) {
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) && a.Error == "" {
			a.Error = err.Error()
		}
		report(a)
	})
}

// stop ends what is done in the background.
func (c *fleetMember) stop(a *fleetAnswer) {
	c.cancel()
	for _, ended := range c.ended {
		ended(a)
	}
	c.ended = nil
}

// fleetChild is the work of a process: it follows orders until its standard input ends.
func fleetChild(ctx context.Context) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var set fleetSettings
	if err := in.Decode(&set); err != nil {
		return err
	}
	cfg, err := set.config()
	if err != nil {
		return err
	}
	s, err := storeIn(ctx, ".")
	if err != nil {
		return err
	}
	defer s.Close()
	cfg.SealFor, cfg.OpenFor, cfg.Timeout, cfg.Strict = set.SealFor, set.OpenFor, set.Timeout, set.Strict
	if set.Bare {
		cfg.Purposes, cfg.RawPurposes, cfg.IndexPurposes = nil, nil, nil
	}
	if err := set.hold(in, out); err != nil {
		return err
	}
	c := &fleetMember{s: s, cfg: cfg}
	through := c.mortal(s, &set.fleetRoots)
	m, err := keyhold.New(ctx, through, cfg)
	if err != nil {
		return err
	}
	c.m = m
	c.goOn(ctx)
	if set.Run {
		c.background(m.Run, func(*fleetAnswer) {})
	}
	for o := (fleetOrder{}); err == nil; {
		var a fleetAnswer
		if o.Do != "" {
			if err := c.follow(ctx, &o, &a); err != nil {
				a.Error = err.Error()
			}
		}
		if err = out.Encode(a); err == nil {
			o = fleetOrder{}
			err = in.Decode(&o)
		}
	}
	var last fleetAnswer
	c.stop(&last)
	if last.Error != "" {
		err = errors.New(last.Error)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, m.Close())
}

func (c *fleetMember) follow(ctx context.Context, o *fleetOrder, a *fleetAnswer) (err error) {
	switch o.Do {
	case "sweep":
		a.Swept, err = c.m.Sweep(ctx)
		return err
	case "use":
		c.use(o.Keys, o.Every)
	case "count":
		a.Count = c.count()
	case "write", "write and store":
		c.write(o.Keys[0], o.Every, o.Do == "write and store")
	case "spend":
		a.Count, err = c.spend(ctx, o.Keys[0], o.Spend)
		return err
	case "stop":
		c.stop(a)
		c.goOn(ctx)
	default:
		return c.followRoots(ctx, o, a)
	}
	return nil
}

// fleetProcess is a process, seen from the test.
type fleetProcess struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	stderr *bytes.Buffer
	over   bool // it was ended by the test
}

// start starts processes with the given settings, one each, which end with the test, and waits until they are ready.
func (w *fleetWorld) start(t *testing.T, settings ...fleetSettings) []*fleetProcess {
	t.Helper()
	all := make([]*fleetProcess, len(settings))
	for i, set := range settings {
		p := &fleetProcess{cmd: exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0]), stderr: &bytes.Buffer{}}
		p.cmd.Dir, p.cmd.Env, p.cmd.Stderr = w.dir, append(os.Environ(), childVariable+"=fleet"), p.stderr
		if set.Zone != "" {
			p.cmd.Env = append(p.cmd.Env, "TZ="+set.Zone)
		}
		var err error
		p.in, err = p.cmd.StdinPipe()
		must(t, err)
		out, err := p.cmd.StdoutPipe()
		must(t, err)
		p.out = json.NewDecoder(out)
		must(t, p.cmd.Start())
		t.Cleanup(func() { p.end(t) })
		p.say(t, set)
		all[i] = p
	}
	for _, p := range all {
		p.answer(t)
	}
	return all
}

// end lets the process end by itself, as a deployment does.
func (p *fleetProcess) end(t *testing.T) {
	t.Helper()
	if p.over {
		return
	}
	p.over = true
	_ = p.in.Close() // an error says that it ended by itself, which Wait says, too
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("a process ended with %v: %s", err, p.stderr)
	}
}

// kill ends the process so that it can do nothing more.
func (p *fleetProcess) kill(t *testing.T) {
	t.Helper()
	p.over = true
	must(t, p.cmd.Process.Kill())
	if err := p.cmd.Wait(); err == nil || p.stderr.Len() > 0 {
		t.Errorf("%v: %s; want a killed process that had nothing to say", err, p.stderr)
	}
}

func (p *fleetProcess) say(t *testing.T, what any) {
	t.Helper()
	line, err := json.Marshal(what)
	must(t, err)
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		t.Fatalf("a process is gone: %v", err)
	}
}

func (p *fleetProcess) answer(t *testing.T) (a fleetAnswer) {
	t.Helper()
	if err := p.out.Decode(&a); err != nil {
		t.Fatalf("no answer from a process: %v", err)
	}
	if a.Error != "" {
		t.Errorf("a process: %s", a.Error)
	}
	return a
}

// fleetObey has all processes follow an order at once, and returns their answers.
func fleetObey(t *testing.T, processes []*fleetProcess, o fleetOrder) []fleetAnswer {
	t.Helper()
	for _, p := range processes {
		p.say(t, o)
	}
	answers := make([]fleetAnswer, len(processes))
	for i, p := range processes {
		answers[i] = p.answer(t)
	}
	return answers
}

// However many processes find the same keys due, each key gets one successor, and nobody fails.
func TestFleetMakesOneVersionOfEachDueKey(t *testing.T) {
	fleetAlone(t, func(t *testing.T, w *fleetWorld) {
		const scopes, processes = 250, 32
		m := w.open(t, w.store)
		for i := range scopes {
			must(t, m.CreateScope(t.Context(), key.Scope(fmt.Sprint("s", i))))
		}
		all := w.start(t, make([]fleetSettings, processes)...)
		w.exec(t, "update kms_data_key set rotate_at = 1000000000")
		rotated := 0
		for _, a := range fleetObey(t, all, fleetOrder{Do: "sweep"}) {
			rotated += a.Swept.Rotated
			if a.Swept.Failed != 0 {
				t.Errorf("a process failed at %d keys", a.Swept.Failed)
			}
		}
		if rotated != 4*scopes {
			t.Errorf("%d rotations, want %d", rotated, 4*scopes)
		}
		for i := range scopes {
			keys, err := m.Keys(t.Context(), key.Scope(fmt.Sprint("s", i)))
			must(t, err)
			for _, k := range keys {
				want := key.Version(2)
				if k.Ref.IsRoot() {
					want = 1
				}
				if k.Head != want || len(k.Versions) != int(want) || k.Due {
					t.Errorf("%v: head %d of %d versions, want %d; due: %v", k.Ref, k.Head, len(k.Versions), want, k.Due)
				}
			}
		}
		w.sound(t, m)
	})
}
