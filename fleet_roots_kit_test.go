package keyhold_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
)

// What processes of fleets do with external roots, each of which is a file in their folder.

const firstRoot = "root.key"

// fleetRoots are settings of a process.
type fleetRoots struct {
	Root     string // empty for the first
	OldRoots []string
	Cleanup  bool // of versions that have a newer one
	Hold     bool // begin with an order, and not at once

	fleetDeath
}

// fleetDeath has a process kill itself, so that it can do nothing more, before its Die-th call of the database from now
// on, of those with the given name if there is one. 0 is never.
type fleetDeath struct {
	Die     int
	DieCall string
}

// mortal is of a process that may be told later when to die.
var mortal = fleetDeath{Die: 1 << 30}

type fleetRootsOrder struct {
	Root string // a file
	ID   key.ID
	File string // of messages

	fleetDeath
}

type fleetRootsAnswer struct {
	ID  key.ID
	Pin string
	Old string // what a process was told that may not, as it has an old root
}

func openRoots(files ...string) (roots []wrapping.Wrapper, err error) {
	for _, file := range files {
		root, err := localroot.Open(file)
		if err != nil {
			return nil, err
		}
		roots = append(roots, root)
	}
	return roots, nil
}

func (set *fleetRoots) config() (keyhold.Config, error) {
	roots, err := openRoots(append([]string{orFirst(set.Root)}, set.OldRoots...)...)
	if err != nil {
		return keyhold.Config{}, err
	}
	cfg := config(roots[0])
	cfg.OldRoots = roots[1:]
	if set.Cleanup {
		cfg.Cleanup = keyhold.Cleanup{After: 1, Purposes: []key.Purpose{secrets, session}}
	}
	return cfg, nil
}

func orFirst(root string) string {
	if root == "" {
		return firstRoot
	}
	return root
}

func (set *fleetRoots) hold(in *json.Decoder, out *json.Encoder) error {
	if !set.Hold {
		return nil
	}
	if err := out.Encode(fleetAnswer{}); err != nil {
		return err
	}
	return in.Decode(&fleetOrder{})
}

// mortal is the database for a process that may have to die at a call.
func (c *fleetMember) mortal(s store.Store, set *fleetRoots) store.Store {
	if set.Die == 0 {
		return s
	}
	c.faulty = faultstore.New(s)
	set.await(c.faulty)
	return c.faulty
}

func (d fleetDeath) await(s *faultstore.Store) {
	calls := 0
	s.Hook(func(call string) {
		if d.DieCall != "" && d.DieCall != call {
			return
		}
		if calls++; calls != d.Die {
			return
		}
		if self, err := os.FindProcess(os.Getpid()); err == nil {
			_ = self.Kill() // otherwise it waits for ever, and the test says so
		}
		select {}
	})
}

func (c *fleetMember) followRoots(ctx context.Context, o *fleetOrder, a *fleetAnswer) (err error) {
	if c.faulty != nil && o.Die != 0 {
		o.await(c.faulty)
	}
	var root wrapping.Wrapper
	if o.Root != "" {
		if root, err = localroot.Open(o.Root); err != nil {
			return err
		}
	}
	switch o.Do {
	case "add", "move":
		var info keyhold.RootInfo
		info, err = c.m.AddRoot(ctx, root)
		a.ID = info.ID
		if err == nil && o.Do == "move" {
			err = c.m.ActivateRoot(ctx, info.ID)
		}
	case "activate":
		err = c.m.ActivateRoot(ctx, o.ID)
	case "remove":
		err = c.m.RemoveRoot(ctx, o.ID)
	case "rekey":
		var done keyhold.Rekeyed
		done, err = c.m.Rekey(ctx, func([]byte) (string, error) { return "nowhere, for a test", nil })
		a.Pin, a.Count = done.Pin, done.Keys
	case "pin":
		a.Pin = c.m.Pin()
	case "own":
		var info keyhold.InstallationInfo
		info, err = c.m.Installation(ctx)
		for _, root := range info.Roots {
			if root.Own {
				a.ID = root.ID
			}
		}
	case "open":
		a.Count, err = c.openFile(ctx, o.File)
	case "create":
		err = c.m.CreateScope(ctx, o.Keys[0].Scope)
	case "rotate":
		_, err = c.m.Rotate(ctx, o.Keys[0])
	case "change":
		return c.change(ctx, o.Root)
	case "round about":
		files := [2]string{o.Root, o.File}
		c.background(func(ctx context.Context) error { return c.roundAbout(ctx, files) }, func(*fleetAnswer) {})
	default:
		return fmt.Errorf("no such order: %q", o.Do)
	}
	if errors.Is(err, keyhold.ErrOldRoot) {
		a.Old, err = err.Error(), nil
	}
	return err
}

// openFile opens all messages of a file, and says how many there are.
func (c *fleetMember) openFile(ctx context.Context, file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var messages []message
	if err := json.Unmarshal(text, &messages); err != nil {
		return 0, err
	}
	for i := range messages {
		if err := messages[i].opens(ctx, c.m); err != nil {
			return i, err
		}
	}
	return len(messages), nil
}

func (msg *message) opens(ctx context.Context, m *keyhold.Manager) error {
	pt, err := m.Open(ctx, msg.Ref, msg.CT, keyhold.AAD{})
	if err != nil || string(pt) != msg.Text {
		return fmt.Errorf("open what was sealed with %v as %q: %q, %w", msg.Ref, msg.Text, pt, err)
	}
	return nil
}

// change tries all that only a process with the active root may do, of ref's key among it; that it does any of it is an
// error.
func (c *fleetMember) change(ctx context.Context, other string) error {
	root, err := localroot.Open(other)
	if err != nil {
		return err
	}
	info, err := c.m.Installation(ctx)
	if err != nil {
		return err
	}
	own := info.Roots[slices.IndexFunc(info.Roots, func(r keyhold.RootInfo) bool { return r.Own })].ID
	active := info.Roots[slices.IndexFunc(info.Roots, func(r keyhold.RootInfo) bool { return r.Active })].ID
	for what, try := range map[string]func() error{
		"rotate":      func() error { _, err := c.m.Rotate(ctx, ref); return err },
		"rotate if":   func() error { _, err := c.m.RotateIf(ctx, ref, 2); return err },
		"rotate root": func() error { _, err := c.m.Rotate(ctx, key.Ref{Scope: ref.Scope}); return err },
		"add":         func() error { _, err := c.m.AddRoot(ctx, root); return err },
		"activate":    func() error { return c.m.ActivateRoot(ctx, own) },
		"remove":      func() error { return c.m.RemoveRoot(ctx, active) },
		"rekey":       func() error { _, err := c.m.Rekey(ctx, keyhold.NoEscrow); return err },
	} {
		if err := try(); !errors.Is(err, keyhold.ErrOldRoot) {
			return fmt.Errorf("%s with an old root: %w; want %w", what, err, keyhold.ErrOldRoot)
		}
	}
	return nil
}

// openOrder is to open all messages of a file.
func openOrder(file string) fleetOrder {
	return fleetOrder{Do: "open", fleetRootsOrder: fleetRootsOrder{File: file}}
}

// newRoot makes a root in the world's folder.
func (w *fleetWorld) newRoot(t *testing.T, file string) wrapping.Wrapper {
	t.Helper()
	root, err := localroot.Generate(filepath.Join(w.dir, file))
	must(t, err)
	return root
}

// root is the root in a file of the world's folder.
func (w *fleetWorld) root(t *testing.T, file string) wrapping.Wrapper {
	t.Helper()
	root, err := localroot.Open(filepath.Join(w.dir, file))
	must(t, err)
	return root
}

// with is the root in a file, by which the installation is opened; what is asked of it is counted.
func (w *fleetWorld) with(t *testing.T, file string) (*keyhold.Manager, *countingRoot) {
	t.Helper()
	root := &countingRoot{Wrapper: w.root(t, file)}
	return newManager(t, w.store, root), root
}

// write writes messages to a file for processes to open.
func (w *fleetWorld) write(t *testing.T, file string, messages []message) {
	t.Helper()
	text, err := json.Marshal(messages)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.dir, file), text, 0o600))
}

// installation is what is stored of the roots.
func (w *fleetWorld) installation(t *testing.T) store.Installation {
	t.Helper()
	in, err := w.store.Installation(t.Context())
	must(t, err)
	return in
}

// died says whether the process ended by its own death, and not with an answer.
func (p *fleetProcess) died(t *testing.T) (a fleetAnswer, died bool) {
	t.Helper()
	if p.out.Decode(&a) == nil {
		if a.Error != "" {
			t.Errorf("a process: %s", a.Error)
		}
		return a, false
	}
	p.over = true
	err := p.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Exited() || p.stderr.Len() > 0 {
		t.Fatalf("%v: %s; want a killed process that had nothing to say", err, p.stderr)
	}
	return a, true
}

// bulk keeps what a Manager creates of scopes that are not there, until there is enough for a transaction.
type bulk struct {
	store.Store

	keys []store.Key
}

func (*bulk) Scope(context.Context, key.Scope) (store.Family, error) {
	return store.Family{Now: time.Now().Unix()}, store.ErrNotFound
}

func (b *bulk) Create(_ context.Context, _ [16]byte, keys []store.Key) (int, error) {
	b.keys = append(b.keys, keys...)
	return len(keys), nil
}

func scopeNumber(i int) key.Scope { return key.Scope(fmt.Sprintf("s%06d", i)) }

// fill makes n scopes that have a key for each of the purposes, and seals a message in every each-th of them.
func (w *fleetWorld) fill(t *testing.T, n, each int, purposes ...key.Purpose) (messages []message) {
	t.Helper()
	m, root := w.with(t, firstRoot)
	b := &bulk{Store: w.store}
	maker, err := keyhold.New(t.Context(), b, keyhold.Config{Root: root, Purposes: purposes})
	must(t, err)
	inst := [16]byte(w.installation(t).Inst)
	for i := range n {
		must(t, maker.CreateScope(t.Context(), scopeNumber(i)))
		if len(b.keys) < 2000 && i < n-1 {
			continue
		}
		if made, err := w.store.Create(t.Context(), inst, b.keys); made != len(b.keys) || err != nil {
			t.Fatalf("made %d keys of %d, %v", made, len(b.keys), err)
		}
		b.keys = b.keys[:0]
	}
	must(t, maker.Close())
	if w.kind == "postgres" {
		w.exec(t, "analyze") // which it would do by itself within a minute
	}
	for i := 0; i < n; i += each {
		msg := message{Ref: key.Ref{Scope: scopeNumber(i), Purpose: secrets}, Text: fmt.Sprint("message ", i)}
		msg.CT = sealed(t, m, msg.Ref, msg.Text, keyhold.AAD{})
		messages = append(messages, msg)
	}
	must(t, m.Close())
	return messages
}

// refsOf is the keys of some messages, evenly spread.
func refsOf(messages []message, n int) (refs []key.Ref) {
	for i := range n {
		refs = append(refs, messages[i*len(messages)/n].Ref)
	}
	return refs
}

// undisturbed asserts that processes that sealed and opened all the time never failed.
func undisturbed(t *testing.T, processes []*fleetProcess) {
	t.Helper()
	for i, a := range fleetObey(t, processes, fleetOrder{Do: "stop"}) {
		if len(a.Uses) == 0 || len(a.Refusals) > 0 {
			t.Errorf("process %d used %d versions, and was refused: %v", i, len(a.Uses), a.Refusals)
		}
	}
}
