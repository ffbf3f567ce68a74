package keyhold_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// lineOf is a recovery line of the installation.
func lineOf(t testing.TB, m *keyhold.Manager) (line []byte) {
	t.Helper()
	must(t, m.Escrow(t.Context(), func(l []byte) (string, error) { line = bytes.Clone(l); return "", nil }))
	return line
}

// withRoots is a configuration for Recover.
func withRoots(root wrapping.Wrapper, old ...wrapping.Wrapper) keyhold.Config {
	cfg := config(root)
	cfg.OldRoots = old
	return cfg
}

// A recovery line is handed out once it is asked for, cleared afterwards, however that ends, and recorded only if
// something was written.
func TestEscrow(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		fails(t, w.Escrow(ctx, nil), keyhold.ErrNoEscrow)
		must(t, w.Escrow(ctx, keyhold.NoEscrow))
		var kept []byte
		full := errors.New("the disk is full")
		fails(t, w.Escrow(ctx, func(l []byte) (string, error) { kept = l; return "a file", full }), full)
		if list, err := w.Escrows(ctx); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v; want none", list, err)
		}
		first := kept
		must(t, w.Escrow(ctx, func(l []byte) (string, error) { kept = l; return "a file", nil }))
		if strings.Trim(string(first)+string(kept), "\x00") != "" {
			t.Error("a recovery line is left when the function has returned")
		}
		rekeyed(t, w.Manager)
		list, err := w.Escrows(ctx)
		if err != nil || len(list) != 1 || list[0].Current || list[0].Verified || list[0].Detail != "a file" ||
			list[0].At.IsZero() {
			t.Errorf("%+v, %v; want one, of a key that is over", list, err)
		}
	})
}

// A line is refused for what is wrong with it: mistyped, of another installation, of a key from before a rekey. Nothing
// of the line is in the error, and it is left as it was.
func TestRecoverRefusesALine(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		right := lineOf(t, w.Manager)
		mistyped := bytes.Clone(right)
		mistyped[40] ^= 1
		old := bytes.Clone(right)
		other := lineOf(t, newManager(t, memstore.New(), newRoot(t)))
		rekeyed(t, w.Manager)
		right = lineOf(t, w.Manager)
		before, err := w.Installation(ctx)
		must(t, err)
		for name, c := range map[string]struct {
			line []byte
			says string
		}{
			"empty":                      {nil, "it has to begin with"},
			"mistyped":                   {mistyped, "mistyped"},
			"cut off":                    {right[:80], "characters"},
			"of another installation":    {other, "another installation"},
			"of the key before":          {old, "rekey"},
			"a local root in its place":  {[]byte("khr1_0000"), "it has to begin with"},
			"a line of the right length": {append([]byte("khi1_"), bytes.Repeat([]byte{'0'}, 84)...), "mistyped"},
		} {
			was := bytes.Clone(c.line)
			_, err := keyhold.VerifyRecovery(ctx, w.store, config(nil), c.line, "tried")
			for _, err := range []error{err, keyhold.Recover(ctx, w.store, config(newRoot(t)), c.line)} {
				fails(t, err, keyhold.ErrRecovery)
				if err == nil {
					continue
				}
				shows := len(c.line) > 20 && strings.Contains(err.Error(), string(c.line[10:20]))
				if shows || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: %v; want it to say %q, and nothing of the line", name, err, c.says)
				}
			}
			if !bytes.Equal(was, c.line) {
				t.Errorf("%s: the line was changed", name)
			}
		}
		after, err := w.Installation(ctx)
		must(t, err)
		list, err := w.Escrows(ctx)
		if err != nil || len(list) != 0 || len(after.Roots) != len(before.Roots) {
			t.Errorf("%+v became %+v; tried: %+v, %v", before.Roots, after.Roots, list, err)
		}
	})
}

// A rehearsal opens everything by the line alone, whatever the root, and changes nothing but that it was done.
func TestVerifyRecovery(t *testing.T) {
	s, root := memstore.New(), newRoot(t)
	m := newManager(t, s, root)
	ctx := t.Context()
	for _, scope := range []key.Scope{"a", "b", tenant} {
		must(t, m.CreateScope(ctx, scope))
	}
	line := lineOf(t, m)
	faulty := faultstore.New(s)
	cfg := keyhold.Config{Pins: []string{m.Pin()}}
	for detail, want := range map[string][]string{"": nil, "the drill of May": {"AddEscrow"}} {
		before := faulty.Calls()
		n, err := keyhold.VerifyRecovery(ctx, faulty, cfg, line, detail)
		if err != nil || n != 3 {
			t.Errorf("%d scopes, %v; want 3", n, err)
		}
		var writes []string
		for _, call := range faulty.Log()[before:] {
			if slices.Contains([]string{"CheckSchema", "Installation", "Scopes", "Scope"}, call) {
				continue
			}
			writes = append(writes, call)
		}
		if strings.Join(writes, " ") != strings.Join(want, " ") {
			t.Errorf("with %q it calls %v", detail, writes)
		}
	}
	list, err := m.Escrows(ctx)
	if err != nil || len(list) != 1 || !list[0].Verified || !list[0].Current || list[0].Detail != "the drill of May" {
		t.Errorf("%+v, %v", list, err)
	}
	cfg.Pins = []string{strings.Repeat("0", 64)}
	_, err = keyhold.VerifyRecovery(ctx, s, cfg, line, "x")
	fails(t, err, keyhold.ErrPin)
	s.Edit(func(d *memstore.Data) { d.Key(ref).Versions[0].Blob[30] ^= 1 })
	_, err = keyhold.VerifyRecovery(ctx, s, keyhold.Config{}, line, "x")
	integrity(t, err)
	if list, err := m.Escrows(ctx); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v; want no record of a drill that failed", list, err)
	}
	_, err = keyhold.VerifyRecovery(ctx, memstore.New(), keyhold.Config{Initialize: true}, line, "x")
	fails(t, err, keyhold.ErrNotInitialized)
}

// Every root is lost: the recovery line and the database are enough, and the new root works as any.
func TestRecoverByTheLine(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		line := lineOf(t, w.Manager)
		root := newRoot(t)
		_, err := keyhold.New(ctx, w.store, config(root))
		fails(t, err, keyhold.ErrRoot)
		for range 2 { // the second changes nothing
			must(t, keyhold.Recover(ctx, w.store, config(root), line))
			m := newManager(t, w.store, root)
			opens(t, m, ref, ct, keyhold.AAD{}, "x")
			info, err := m.Installation(ctx)
			if err != nil || len(info.Roots) != 2 || !info.Roots[1].Active || !info.Roots[1].Own ||
				info.Roots[0].State != key.Retired {
				t.Errorf("%+v, %v", info.Roots, err)
			}
			_, err = m.Rotate(ctx, ref)
			must(t, err)
		}
		_, err = w.Rotate(ctx, ref)
		fails(t, err, keyhold.ErrOldRoot)
	})
}

// While the installation is rekeyed there are two keys: one line is not enough, both are, in any order; so is a root,
// which has both.
func TestRecoverWhileItIsRekeyed(t *testing.T) {
	for name, c := range map[string]struct {
		first, second, own bool
		ok                 bool
	}{
		"the old line": {first: true},
		"the new line": {second: true},
		"both":         {first: true, second: true, ok: true},
		"the root":     {own: true, ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s, old, root := memstore.New(), newRoot(t), newRoot(t)
			faulty := faultstore.New(s)
			m := newManager(t, faulty, old)
			must(t, m.CreateScope(ctx, tenant))
			var lines [][]byte
			if c.first {
				lines = append(lines, lineOf(t, m))
			}
			faulty.Hook(func(call string) {
				if call == "Rekey" {
					faulty.Fail(0, faultstore.Before)
				}
			})
			_, err := m.Rekey(ctx, func(l []byte) (string, error) {
				if c.second {
					lines = append([][]byte{bytes.Clone(l)}, lines...)
				}
				return "a file", nil
			})
			fails(t, err, keyhold.ErrUnavailable)
			must(t, m.CreateScope(ctx, "under the new key"))
			cfg := config(root)
			if c.own {
				cfg.OldRoots = []wrapping.Wrapper{old}
			}
			err = keyhold.Recover(ctx, s, cfg, lines...)
			if !c.ok {
				fails(t, err, keyhold.ErrRecovery)
				return
			}
			must(t, err)
			again := newManager(t, s, root)
			for _, scope := range []key.Scope{tenant, "under the new key"} {
				sealed(t, again, key.Ref{Scope: scope, Purpose: secrets}, "x", keyhold.AAD{})
			}
			rekeyed(t, again)
			onlyKey(t, again)
			checked(t, again)
		})
	}
}

// A database from a backup of before the last change of roots, with the newest root, an older one, or the line: what
// was active then is no hindrance.
func TestRecoverAnOlderDatabase(t *testing.T) {
	for name, roots := range map[string]int{"the root of then is lost": 0, "an older root": 1} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s, first, second := memstore.New(), newRoot(t), newRoot(t)
			m := newManager(t, s, first)
			must(t, m.CreateScope(ctx, tenant))
			ct := sealed(t, m, ref, "x", keyhold.AAD{})
			var kept memstore.Data
			s.Edit(func(d *memstore.Data) { kept = *d })
			line := lineOf(t, m)
			slot, err := m.AddRoot(ctx, second)
			must(t, err)
			must(t, m.ActivateRoot(ctx, slot.ID))

			restored := memstore.New()
			must(t, restored.Migrate(ctx))
			restored.Edit(func(d *memstore.Data) { *d = kept })
			_, err = keyhold.New(ctx, restored, config(second))
			fails(t, err, keyhold.ErrRoot)
			if roots == 0 {
				must(t, keyhold.Recover(ctx, restored, config(second), line))
			} else {
				must(t, keyhold.Recover(ctx, restored, withRoots(second, first)))
			}
			opened := newManager(t, restored, second)
			opens(t, opened, ref, ct, keyhold.AAD{}, "x")
			_, err = opened.Rotate(ctx, ref)
			must(t, err)
			checked(t, opened)
		})
	}
}

// The active root is lost, and one that was it before has a slot still: it is made the active one, without a call to
// the lost one, and without a second slot.
func TestRecoverByAnOlderRoot(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		slot, err := w.AddRoot(ctx, newRoot(t))
		must(t, err)
		must(t, w.ActivateRoot(ctx, slot.ID))
		_, err = w.Rotate(ctx, ref)
		fails(t, err, keyhold.ErrOldRoot)
		for range 2 {
			must(t, keyhold.Recover(ctx, w.store, config(w.root)))
			info, err := w.Installation(ctx)
			if err != nil || len(info.Roots) != 2 || !info.Roots[0].Active || info.Roots[1].State != key.Retired {
				t.Errorf("%+v, %v", info.Roots, err)
			}
		}
		_, err = w.Rotate(ctx, ref)
		must(t, err)
		must(t, w.RemoveRoot(ctx, slot.ID))
	})
}

// A rekey without a recovery file has to be asked for; one whose recovery file could not be written changes nothing.
func TestRekeyEscrow(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx, pin := t.Context(), w.Pin()
		before, err := w.Installation(ctx)
		must(t, err)
		_, err = w.Rekey(ctx, nil)
		fails(t, err, keyhold.ErrNoEscrow)
		var kept []byte
		full := errors.New("the disk is full")
		_, err = w.Rekey(ctx, func(line []byte) (string, error) { kept = line; return "", full })
		fails(t, err, full)
		if strings.Trim(string(kept), "\x00") != "" {
			t.Error("the recovery line is left when the function has returned")
		}
		after, err := w.Installation(ctx)
		must(t, err)
		if w.Pin() != pin || after.Rekeyed || len(after.Roots) != len(before.Roots) {
			t.Errorf("%+v became %+v", before, after)
		}
		var line []byte
		_, err = w.Rekey(ctx, func(l []byte) (string, error) {
			kept, line = l, bytes.Clone(l)
			return "to Alice", nil
		})
		must(t, err)
		if len(line) != 89 || strings.Trim(string(kept), "\x00") != "" {
			t.Errorf("the line has %d characters; or it is left when the function has returned", len(line))
		}
		list, err := w.Escrows(ctx)
		if err != nil || len(list) != 1 || list[0].Verified || !list[0].Current || list[0].Detail != "to Alice" {
			t.Errorf("%+v, %v", list, err)
		}
		n, err := keyhold.VerifyRecovery(ctx, w.store, config(nil), line, "tried")
		if err != nil || n != 1 {
			t.Errorf("%d scopes, %v", n, err)
		}
	})
}
