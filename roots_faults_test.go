package keyhold

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// rootsFault is a change of roots, and what it leads to. old is the root that is the active one before it.
type rootsFault struct {
	before func(t *testing.T, s *memstore.Store, old, next wrapping.Wrapper) // nil for nothing
	do     func(ctx context.Context, s store.Store, old, next wrapping.Wrapper) error
	after  string // the states of the slots, when it is over
}

// with opens s by a root for one call.
func with(ctx context.Context, s store.Store, root wrapping.Wrapper, do func(m *Manager) error) error {
	m, err := New(ctx, s, Config{Root: root, Purposes: []Purpose{inner.Purpose}})
	if err != nil {
		return err
	}
	return errors.Join(do(m), m.Close())
}

func addNext(ctx context.Context, s store.Store, old, next wrapping.Wrapper) error {
	return with(ctx, s, old, func(m *Manager) error { _, err := m.AddRoot(ctx, next); return err })
}

func activateNext(ctx context.Context, s store.Store, old, _ wrapping.Wrapper) error {
	return with(ctx, s, old, func(m *Manager) error {
		info, err := m.Installation(ctx)
		if err != nil {
			return err
		}
		return m.ActivateRoot(ctx, info.Roots[1].ID)
	})
}

func takeOver(ctx context.Context, s store.Store, old, next wrapping.Wrapper) error {
	m, err := New(ctx, s, Config{Root: next, OldRoots: []wrapping.Wrapper{old}})
	if err != nil {
		return err
	}
	return m.Close()
}

func rekeyBoth(ctx context.Context, s store.Store, root, other wrapping.Wrapper) error {
	m, err := New(ctx, s, Config{Root: root, OldRoots: []wrapping.Wrapper{other}})
	if err != nil {
		return err
	}
	_, err = m.Rekey(ctx, func([]byte) (string, error) { return "a file", nil })
	return errors.Join(err, m.Close())
}

func rekeyBegun(t *testing.T, s *memstore.Store, old, _ wrapping.Wrapper) {
	t.Helper()
	begun(t, s, old)
}

var changes = map[string]rootsFault{
	"add": {do: addNext, after: "active/retired"},
	"activate": {
		before: func(t *testing.T, s *memstore.Store, old, next wrapping.Wrapper) {
			check(t, addNext(t.Context(), s, old, next))
		},
		do: activateNext, after: "retired/active",
	},
	"take over": {do: takeOver, after: "retired/active"},
	"remove": {
		before: func(t *testing.T, s *memstore.Store, old, next wrapping.Wrapper) {
			check(t, takeOver(t.Context(), s, old, next))
		},
		do: func(ctx context.Context, s store.Store, _, next wrapping.Wrapper) error {
			return with(ctx, s, next, func(m *Manager) error {
				info, err := m.Installation(ctx)
				if err != nil {
					return err
				}
				return m.RemoveRoot(ctx, info.Roots[0].ID)
			})
		},
		after: "destroyed/active",
	},
	"rekey": {
		do: func(ctx context.Context, s store.Store, old, _ wrapping.Wrapper) error {
			return rekeyBoth(ctx, s, old, old)
		},
		after: "destroyed/active",
	},
	"rekey with two roots": {
		before: func(t *testing.T, s *memstore.Store, old, next wrapping.Wrapper) {
			check(t, takeOver(t.Context(), s, old, next))
		},
		do: func(ctx context.Context, s store.Store, old, next wrapping.Wrapper) error {
			return rekeyBoth(ctx, s, next, old)
		},
		after: "destroyed/destroyed/retired/active",
	},
	"take over while it is rekeyed": {
		before: rekeyBegun,
		do:     takeOver, after: "retired/retired/active/active",
	},
	"add while it is rekeyed": {
		before: rekeyBegun,
		do:     addNext, after: "active/active/retired/retired",
	},
	"recover by an old root": {
		before: func(t *testing.T, s *memstore.Store, old, next wrapping.Wrapper) {
			check(t, takeOver(t.Context(), s, old, next))
		},
		do: func(ctx context.Context, s store.Store, old, _ wrapping.Wrapper) error {
			return Recover(ctx, s, Config{Root: old})
		},
		after: "active/retired",
	},
}

// Each change of roots, with each of its database calls failing in turn, before and after it did its work: at every
// moment every scope opens with a root that is configured somewhere, processes that run make no error, and doing it
// again ends it, with no slot too many.
func TestRootsEveryFault(t *testing.T) {
	for name, c := range changes {
		for mode, text := range map[faultstore.Mode]string{faultstore.Before: "before", faultstore.After: "after"} {
			t.Run(name+"/"+text, func(t *testing.T) {
				t.Parallel()
				for n := 0; faultAt(t, c, n, mode); n++ {
					if t.Failed() || n > 200 {
						t.Fatalf("at call %d", n)
					}
				}
			})
		}
	}
}

// faultAt says whether there was an n-th call.
func faultAt(t *testing.T, c rootsFault, n int, mode faultstore.Mode) bool {
	t.Helper()
	ctx := t.Context()
	s, old, next := memstore.New(), newStub(t), newStub(t)
	runs := openedBy(t, s, old, nil)
	refs := []Ref{inner}
	check(t, runs.CreateScope(ctx, inner.Scope))
	for i := range 3 {
		refs = append(refs, Ref{Scope: key.Scope(fmt.Sprint("s", i)), Purpose: inner.Purpose})
		check(t, runs.CreateScope(ctx, refs[i+1].Scope))
	}
	var cts [][]byte
	for _, r := range refs {
		cts = append(cts, sealing(t, runs, r, "x"))
	}
	check(t, runs.Close()) // so that no instance uses the old root
	if c.before != nil {
		c.before(t, s, old, next)
	}
	hot, cold := openedBy(t, s, old, nil), openedBy(t, s, old, nil)
	for i, r := range refs {
		_, err := hot.Open(ctx, r, cts[i], AAD{})
		check(t, err)
	}

	faulty := faultstore.New(s)
	faulty.Fail(n, mode)
	failed := c.do(ctx, faulty, old, next)
	opens := 0
	for _, root := range []wrapping.Wrapper{old, next} {
		m, err := New(ctx, s, Config{Root: root})
		if err != nil {
			continue
		}
		opens++
		for i, r := range refs {
			if _, err := m.Open(ctx, r, cts[i], AAD{}); err != nil {
				t.Errorf("a new process: %v", err)
			}
		}
		check(t, m.Close())
	}
	if opens == 0 {
		t.Error("no root opens the installation")
	}
	for _, m := range []*Manager{hot, cold} {
		for i, r := range refs {
			if _, err := m.Open(ctx, r, cts[i], AAD{}); err != nil {
				t.Errorf("a process that runs: %v", err)
			}
		}
	}
	if failed != nil {
		check(t, c.do(ctx, s, old, next))
	}
	in, err := s.Installation(ctx)
	check(t, err)
	got := ""
	for _, slot := range in.Slots {
		got += fmt.Sprint(slot.State, "/")
	}
	if got != c.after+"/" {
		t.Errorf("slots: %s, want %s (the first time: %v)", got, c.after, failed)
	}
	root := old
	if _, err := New(ctx, s, Config{Root: root}); err != nil {
		root = next
	}
	clean(t, s, root)
	return faulty.Fired()
}

// Whatever goes wrong with roots, rekeys and recovery lines, no error and nothing that is printed shows an installation
// key or its recovery line.
func TestRootsNoErrorHoldsASecret(t *testing.T) {
	ctx := t.Context()
	s, old, next := memstore.New(), newStub(t), newStub(t)
	check(t, openedBy(t, s, old, nil).CreateScope(ctx, inner.Scope))
	var shown []any
	var secrets [][]byte
	keep := func(m *Manager) {
		iks := m.ring.clones()
		defer closeAll(iks)
		for _, ik := range iks {
			secrets = append(secrets, bytes.Clone(ik.SlotPayload("kr_0", "x").Reveal()[33:]))
			secrets = append(secrets, bytes.Clone(ik.Recovery().Reveal()))
		}
	}
	try := func(s store.Store) {
		m, err := New(ctx, s, Config{Root: old, OldRoots: []wrapping.Wrapper{next}})
		shown = append(shown, err)
		if err != nil {
			return
		}
		defer func() { check(t, m.Close()) }()
		keep(m)
		slot, err1 := m.AddRoot(ctx, next)
		info, err2 := m.Installation(ctx)
		rekeyed, err3 := m.Rekey(ctx, func([]byte) (string, error) { return "a file", nil })
		keep(m)
		list, err4 := m.Escrows(ctx)
		line := bytes.Clone(secrets[len(secrets)-1])
		line[50] ^= 1
		_, err5 := VerifyRecovery(ctx, s, Config{}, line, "tried")
		err6 := Recover(ctx, s, Config{Root: next}, secrets[1], line)
		shown = append(shown, m, m.ring, m.slots.Load().Slots, slot, info, rekeyed, list,
			err1, err2, err3, err4, err5, err6, m.ActivateRoot(ctx, "kr_none"),
			m.RemoveRoot(ctx, slot.ID), m.RemoveRoot(ctx, info0(info)))
		_, err = m.Rekey(ctx, func([]byte) (string, error) { return "", errRootAway })
		shown = append(shown, err)
	}
	for n := range 8 {
		for _, root := range []*stubRoot{old, next} {
			calls := 0
			root.does(func(context.Context, string) error {
				if calls++; calls > n {
					return errRootAway
				}
				return nil
			})
			try(s)
			root.does(nil)
		}
		faulty := faultstore.New(s)
		for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
			faulty.Fail(2*n+1, mode)
			try(faulty)
		}
	}
	errs := 0
	for _, v := range shown {
		if _, ok := v.(error); ok {
			errs++
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%x"} {
			text := fmt.Sprintf(verb, v)
			for _, b := range secrets {
				for _, form := range []string{
					string(b), fmt.Sprintf("%x", b), fmt.Sprintf("%X", b), strings.Trim(fmt.Sprint(b), "[]"),
					fmt.Sprintf("%#v", b)[7:], base64.StdEncoding.EncodeToString(b)[:40], key.Base32(b),
				} {
					if strings.Contains(text, form) {
						t.Fatalf("%T shows an installation key by %s", v, verb)
					}
				}
			}
		}
	}
	if errs < 100 || len(secrets) < 20 {
		t.Errorf("only %d errors and %d secrets were looked at", errs, len(secrets))
	}
}

func info0(info InstallationInfo) key.ID {
	if len(info.Roots) == 0 {
		return ""
	}
	return info.Roots[0].ID
}
