package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var txTests = []test{
	{"what is committed is there, for all", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		tx, commit, _ := begin()
		keys := e.m.Scope(e.scope(1), "sessions")
		if n, err := tx.Create(e.ctx, e.m.Inst(), keys); n != 2 || err != nil {
			e.Fatalf("Create: %d, %v", n, err)
		}
		if err := commit(); err != nil {
			e.Fatalf("commit: %v", err)
		}
		for _, s := range e.handles(2) {
			f, err := s.Scope(e.ctx, e.scope(1))
			if d := diff(store.Family{Root: keys[0], Data: keys[1:]}, f); d != "" || err != nil {
				e.Errorf("Scope: %v (-stored +read):\n%s", err, d)
			}
		}
	})},
	{"what is rolled back is nowhere", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		first := e.m.Scope(e.scope(1), "sessions")
		e.create(first...)
		e.unchanged(func() {
			tx, _, rollback := begin()
			e.changeAll(tx, first)
			if err := rollback(); err != nil {
				e.Errorf("rollback: %v", err)
			}
		})
		e.create(e.m.Scope(e.scope(2), "sessions")...)
	})},
	{"sees its own changes, and nobody else does before the commit", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		first := e.m.Scope(e.scope(1), "sessions")
		e.create(first...)
		tx, commit, _ := begin()
		e.unchanged(func() { e.changeAll(tx, first) })
		ref := key.Ref{Scope: e.scope(1), Purpose: "sessions"}
		f, err := tx.Key(e.ctx, ref)
		if err != nil || len(f.Data) != 1 || len(f.Data[0].Versions) != 2 {
			e.Fatalf("Key inside: %+v, %v; want two versions", f.Data, err)
		}
		if f, err = tx.KeyOfVersion(e.ctx, f.Data[0].Versions[1].ID); err != nil || len(f.Data) != 1 {
			e.Errorf("KeyOfVersion inside: %v", err)
		}
		if f, err = tx.Scope(e.ctx, e.scope(2)); err != nil || len(f.Data) != 1 {
			e.Errorf("Scope inside: %v", err)
		}
		if scopes, err := tx.Scopes(e.ctx, "", 10); err != nil || len(scopes) != 2 {
			e.Errorf("Scopes inside: %q, %v; want 2", scopes, err)
		}
		if in, err := tx.Installation(e.ctx); err != nil || len(in.Slots) != 2 {
			e.Errorf("Installation inside: %v", err)
		}
		inside, err := tx.Scope(e.ctx, e.scope(1))
		if err != nil {
			e.Fatalf("Scope inside: %v", err)
		}
		if err := commit(); err != nil {
			e.Fatalf("commit: %v", err)
		}
		outside, err := e.s.Scope(e.ctx, e.scope(1))
		if d := diff(inside, outside); d != "" || err != nil {
			e.Errorf("Scope after the commit: %v (-inside +outside):\n%s", err, d)
		}
	})},
	{"a refused call changes nothing, and what was done before it stays", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		first := e.m.Scope(e.scope(1), "sessions")
		e.create(first...)
		stale := e.m.Next(&first[1])
		tx, commit, _ := begin()
		e.changeAll(tx, first)
		before, err := tx.Scope(e.ctx, e.scope(1))
		if err != nil {
			e.Fatalf("Scope: %v", err)
		}
		k := &before.Data[0]
		illegal := e.m.Add(k, &before.Root)
		illegal.States = []store.StateChange{{Number: 1, From: key.Active, To: key.Disabled}}
		skipped := e.m.Add(k, &before.Root)
		skipped.Add.Number++
		e.wantClass("stale Update", tx.Update(e.ctx, stale), store.ErrConflict)
		e.wantClass("illegal Update", tx.Update(e.ctx, illegal), errRefused)
		e.wantClass("Update that skips a number", tx.Update(e.ctx, skipped), errRefused)
		bad := e.m.RootKey(e.scope(4))
		bad.Versions[0].Blob = nil
		_, err = tx.Create(e.ctx, e.m.Inst(), slices.Concat(e.m.Scope(e.scope(3), "sessions"), []store.Key{bad}))
		e.wantClass("Create", err, errRefused)
		empty := e.m.Rewrap(&k.Versions[1], before.Root.Versions[0].ID)
		empty.Blob = nil
		_, err = tx.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{e.m.Rewrap(&k.Versions[0], before.Root.Versions[0].ID), empty}, nil)
		e.wantClass("Rewrap", err, errRefused)
		if err := commit(); err != nil {
			e.Fatalf("commit: %v", err)
		}
		after, err := e.s.Scope(e.ctx, e.scope(1))
		if d := diff(before, after); d != "" || err != nil {
			e.Errorf("Scope: %v (-before +after):\n%s", err, d)
		}
		e.key(key.Ref{Scope: e.scope(2), Purpose: "sessions"})
		for n := 3; n <= 4; n++ {
			_, err = e.s.Scope(e.ctx, e.scope(n))
			e.wantClass("Scope of the refused Create", err, store.ErrNotFound)
		}
	})},
	{"a taken name is left out and the transaction goes on", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		e.create(e.m.Scope(e.scope(1), "sessions")...)
		tx, commit, _ := begin()
		for _, c := range []struct {
			keys []store.Key
			want int
		}{
			{e.m.Scope(e.scope(1), "sessions"), 0},
			{e.m.Scope(e.scope(2), "sessions"), 2},
			{e.m.Scope(e.scope(2), "sessions"), 0},
		} {
			if n, err := tx.Create(e.ctx, e.m.Inst(), c.keys); n != c.want || err != nil {
				e.Errorf("Create: %d, %v; want %d", n, err, c.want)
			}
		}
		if err := commit(); err != nil {
			e.Fatalf("commit: %v", err)
		}
		e.key(key.Ref{Scope: e.scope(2), Purpose: "sessions"})
	})},
	{"goes on after a call whose context had ended", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		keys := e.m.Scope(e.scope(1), "sessions")
		e.create(keys...)
		reason := fmt.Errorf("no answer in time: %w", store.ErrUnavailable)
		ctx, cancel := context.WithCancelCause(e.ctx)
		cancel(reason)
		tx, commit, _ := begin()
		for what, call := range map[string]func() error{
			"Create": func() error { _, err := tx.Create(ctx, e.m.Inst(), e.m.Scope(e.scope(2))); return err },
			"Update": func() error { return tx.Update(ctx, e.m.Add(&keys[1], &keys[0])) },
			"Shred":  func() error { _, err := tx.Shred(ctx, e.m.Inst(), e.scope(1)); return err },
			"Take":   func() error { _, err := tx.Take(ctx, keys[1].Versions[0].ID, 1, 10); return err },
			"Rewrap": func() error {
				r := e.m.Rewrap(&keys[1].Versions[0], keys[0].Versions[0].ID)
				_, err := tx.Rewrap(ctx, e.m.Inst(), []store.Rewrap{r}, nil)
				return err
			},
		} {
			if err := call(); !errors.Is(err, context.Canceled) || !errors.Is(err, reason) || errors.Is(err, store.ErrUnknownOutcome) {
				e.Errorf("%s: %v; want %v because of %q", what, err, context.Canceled, reason)
			}
		}
		e.changeAll(tx, keys)
		if err := commit(); err != nil {
			e.Errorf("commit: %v", err)
		}
		e.take(keys[1].Versions[0].ID, 10, 10, 10)
	})},
	{"is committed as a whole, or not at all, after a call that was cancelled on the way", inTx(cancelledInTx)},
	{"is over after its end", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		keys := e.m.Scope(e.scope(1), "sessions")
		for _, end := range []bool{true, false} {
			tx, commit, rollback := begin()
			if !end {
				commit = rollback
			}
			if err := commit(); err != nil {
				e.Fatalf("end: %v", err)
			}
			e.unchanged(func() {
				if _, err := tx.Installation(e.ctx); err == nil || errors.Is(err, store.ErrNotFound) {
					e.Errorf("Installation after the end: %v; want an error", err)
				}
				if n, err := tx.Create(e.ctx, e.m.Inst(), keys); err == nil {
					e.Errorf("Create after the end: %d, no error", n)
				}
			})
		}
	})},
}

// cancelledInTx goes on in the transaction after a cancelled call, as an application may. The cancellation lands
// wherever it lands, and a database may end the transaction for it: then nothing of it stays, also of what came later.
func cancelledInTx(e *env, begin func() (store.Tx, func() error, func() error)) {
	for i := range 40 {
		tx, commit, rollback := begin()
		_, firstErr := tx.Create(e.ctx, e.m.Inst(), e.m.Scope(e.scope(3*i), "one"))
		if firstErr != nil {
			e.Fatalf("Create before: %v", firstErr)
		}
		ctx, cancel := context.WithCancel(e.ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			for range i * 20 {
				_ = ctx.Err()
			}
			cancel()
		})
		n, err := tx.Create(ctx, e.m.Inst(), e.m.Scope(e.scope(3*i+1), "one", "two", "three"))
		wg.Wait()
		if (n == 4) != (err == nil) || n != 0 && n != 4 {
			e.Errorf("the cancelled Create: %d, %v", n, err)
		}
		_, laterErr := tx.Create(e.ctx, e.m.Inst(), e.m.Scope(e.scope(3*i+2), "one"))
		commitErr := commit()
		if commitErr != nil {
			_ = rollback() // where a failed commit leaves that to do
		}
		for j, callErr := range []error{firstErr, err, laterErr} {
			_, readErr := e.s.Scope(e.ctx, e.scope(3*i+j))
			there, want := readErr == nil, callErr == nil && commitErr == nil
			if readErr != nil && !errors.Is(readErr, store.ErrNotFound) || there != want {
				e.Errorf("the scope of Create %d of 3, whose error is %v: there is %v, %v; commit: %v", j+1, callErr, there, readErr, commitErr)
			}
		}
	}
}

// inTx makes a test of transactions.
func inTx(run func(e *env, begin func() (store.Tx, func() error, func() error))) func(e *env) {
	return func(e *env) {
		if e.h.Begin == nil {
			e.Skip("the harness has no Begin")
		}
		e.initialize()
		run(e, func() (store.Tx, func() error, func() error) {
			e.Helper()
			tx, commit, rollback := e.h.Begin(e.T, e.s)
			return tx, commit, rollback
		})
	}
}

// changeAll changes something by each call of tx: it creates scope 2, adds to the data key of first, which is scope 1,
// and rewraps it.
func (e *env) changeAll(tx store.Tx, first []store.Key) {
	e.Helper()
	if n, err := tx.Create(e.ctx, e.m.Inst(), e.m.Scope(e.scope(2), "sessions")); n != 2 || err != nil {
		e.Fatalf("Create inside: %d, %v", n, err)
	}
	if err := tx.Update(e.ctx, e.m.Add(&first[1], &first[0])); err != nil {
		e.Fatalf("Update inside: %v", err)
	}
	r := e.m.Rewrap(&first[1].Versions[0], first[0].Versions[0].ID)
	if n, err := tx.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{r}, nil); n != 1 || err != nil {
		e.Fatalf("Rewrap inside: %d, %v", n, err)
	}
}

var cascadeTests = []test{
	{"a deleted scope is gone with all its keys, and others stay", initialized(func(e *env) {
		if e.h.DeleteScope == nil {
			e.Skip("the harness has no DeleteScope")
		}
		for n := 1; n <= 2; n++ {
			e.create(e.m.Scope(e.scope(n), "sessions", "another")...)
		}
		k := e.life(key.Ref{Scope: e.scope(1), Purpose: "sessions"})
		root := e.life(key.Ref{Scope: e.scope(1)})
		other, err := e.s.Scope(e.ctx, e.scope(2))
		if err != nil {
			e.Fatalf("Scope: %v", err)
		}
		e.h.DeleteScope(e.T, e.s, e.scope(1))
		for what, read := range map[string]func() error{
			"Key":                             func() error { _, err := e.s.Key(e.ctx, key.Ref{Scope: e.scope(1)}); return err },
			"Scope":                           func() error { _, err := e.s.Scope(e.ctx, e.scope(1)); return err },
			"KeyOfVersion of a live version":  func() error { _, err := e.s.KeyOfVersion(e.ctx, k.Versions[0].ID); return err },
			"KeyOfVersion of a destroyed one": func() error { _, err := e.s.KeyOfVersion(e.ctx, k.Tombstones[0].ID); return err },
			"KeyOfVersion of the root key's":  func() error { _, err := e.s.KeyOfVersion(e.ctx, root.Versions[0].ID); return err },
		} {
			e.wantClass(what, read(), store.ErrNotFound)
		}
		e.wantClass("Update", e.s.Update(e.ctx, e.m.Next(&k)), store.ErrConflict)
		e.wantRewrapped(0, e.m.Rewrap(&k.Versions[0], root.Versions[0].ID))
		scopes, err := e.s.Scopes(e.ctx, "", 10)
		if err != nil || !slices.Equal(scopes, []key.Scope{e.scope(2)}) {
			e.Errorf("Scopes: %q, %v; want the other one", scopes, err)
		}
		got, err := e.s.Scope(e.ctx, e.scope(2))
		if d := diff(other, got); d != "" || err != nil {
			e.Errorf("the other scope: %v (-before +after):\n%s", err, d)
		}
		again := e.m.Scope(e.scope(1), "sessions")
		e.create(again...)
		f, err := e.s.Scope(e.ctx, e.scope(1))
		if d := diff(store.Family{Root: again[0], Data: again[1:]}, f); d != "" || err != nil {
			e.Errorf("the scope created anew: %v (-stored +read):\n%s", err, d)
		}
	})},
	{"a renamed scope is there under its new name alone", initialized(func(e *env) {
		if e.h.RenameScope == nil {
			e.Skip("the harness has no RenameScope")
		}
		keys := e.m.Scope(e.scope(1), "sessions")
		e.create(keys...)
		e.h.RenameScope(e.T, e.s, e.scope(1), e.scope(2))
		_, err := e.s.Scope(e.ctx, e.scope(1))
		e.wantClass("Scope under the old name", err, store.ErrNotFound)
		keys[0].Scope = e.scope(2)
		want := store.Family{Root: keys[0], Data: keys[1:]}
		f, err := e.s.Scope(e.ctx, e.scope(2))
		if d := diff(want, f); d != "" || err != nil {
			e.Errorf("Scope under the new name: %v (-want +read):\n%s", err, d)
		}
		if f, err = e.s.KeyOfVersion(e.ctx, keys[1].Versions[0].ID); err != nil || diff(want, f) != "" {
			e.Errorf("KeyOfVersion: %v, scope %q", err, f.Root.Scope)
		}
	})},
}
