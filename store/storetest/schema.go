package storetest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var schemaTests = []test{
	{"an empty database has no tables", empty(func(e *env) {
		e.wantNoTables()
		if _, err := e.s.Installation(e.ctx); err == nil || errors.Is(err, store.ErrNotFound) {
			e.Errorf("Installation without tables: %v; want an error that is not %v", err, store.ErrNotFound)
		}
		keys := e.m.Scope(e.scope(1))
		if n, err := e.s.Create(e.ctx, e.m.Inst(), keys); err == nil {
			e.Errorf("Create without tables: %d keys, no error", n)
		}
	})},
	{"migrating makes the tables and nothing in them", empty(func(e *env) {
		e.migrate()
		if err := e.s.CheckSchema(e.ctx); err != nil {
			e.Errorf("CheckSchema: %v", err)
		}
		_, err := e.s.Installation(e.ctx)
		e.wantClass("Installation", err, store.ErrNotFound)
		scopes, err := e.s.Scopes(e.ctx, "", 10)
		if err != nil || len(scopes) != 0 {
			e.Errorf("Scopes: %q, %v; want none", scopes, err)
		}
	})},
	{"migrating again changes nothing", initialized(func(e *env) {
		e.create(e.m.Scope(e.scope(1), "sessions")...)
		e.unchanged(func() {
			if err := e.s.Migrate(e.ctx); err != nil {
				e.Errorf("Migrate: %v", err)
			}
		})
	})},
	{"any number may migrate at once", empty(func(e *env) {
		for i, err := range e.race(8, func(_ int, s store.Store) error { return s.Migrate(e.ctx) }) {
			if err != nil {
				e.Errorf("Migrate, caller %d: %v", i, err)
			}
		}
		e.initialize()
	})},
	{"a cancelled migration makes no tables", empty(func(e *env) {
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		e.wantClass("Migrate", e.s.Migrate(ctx), context.Canceled)
		e.wantNoTables()
		e.migrate()
	})},
	{"a closed store refuses", func(e *env) {
		if e.h.Reopen == nil {
			e.Skip("without a second handle nothing could look at the database afterwards")
		}
		e.initialize()
		s := e.h.Reopen(e.T, e.s)
		if err := s.Close(); err != nil {
			e.Fatalf("Close: %v", err)
		}
		e.unchanged(func() {
			if _, err := s.Key(e.ctx, key.Ref{Scope: e.scope(1)}); err == nil || errors.Is(err, store.ErrNotFound) {
				e.Errorf("Key of a closed store: %v; want an error that is not %v", err, store.ErrNotFound)
			}
			if n, err := s.Create(e.ctx, e.m.Inst(), e.m.Scope(e.scope(1))); err == nil {
				e.Errorf("Create of a closed store: %d keys, no error", n)
			}
		})
	}},
}

func (e *env) wantNoTables() {
	e.Helper()
	err := e.s.CheckSchema(e.ctx)
	var schema *store.SchemaError
	if !errors.As(err, &schema) {
		e.Fatalf("CheckSchema: %v; want a *store.SchemaError", err)
	}
	if schema.Have != 0 || schema.Want != store.SchemaVersion || schema.Foreign != "" || schema.Prefix == "" {
		e.Errorf("CheckSchema: %+v; want no tables, and what is wanted", *schema)
	}
}

var installationTests = []test{
	{"is read as it was stored, with times of the store's", func(e *env) {
		e.migrate()
		want := e.m.Installation()
		given := want
		given.Created, given.Keys = 7, []store.InstallationKey{{KID: e.m.Bytes(16)}, {KID: e.m.Bytes(16), Previous: e.m.Bytes(16), Link: e.m.Bytes(32)}}
		given.Slots = slices.Clone(want.Slots)
		for i := range given.Slots {
			s := &given.Slots[i]
			s.Created, s.Activated, s.Retired = 7, 7, 7
		}
		before := e.roll().Now
		if err := e.s.Initialize(e.ctx, given); err != nil {
			e.Fatalf("Initialize: %v", err)
		}
		after := e.roll().Now
		got, err := e.s.Installation(e.ctx)
		if err != nil {
			e.Fatalf("Installation: %v", err)
		}
		if d := diff(want, got); d != "" {
			e.Errorf("Installation (-stored +read):\n%s", d)
		}
		nearNow(e.T, "Created", got.Created)
		e.slotTimes(store.Installation{Created: got.Created}, got, before, after)
	}},
	{"comes with its slots in the order in which they were made", func(e *env) {
		e.migrate()
		in := e.m.Installation()
		in.Slots[0], in.Slots[1] = in.Slots[1], in.Slots[0]
		if err := e.s.Initialize(e.ctx, in); err != nil {
			e.Fatalf("Initialize: %v", err)
		}
		got, err := e.s.Installation(e.ctx)
		if err != nil || len(got.Slots) != 2 || got.Slots[0].ID != in.Slots[0].ID || got.Slots[1].ID != in.Slots[1].ID {
			e.Errorf("Installation: slots %+v, %v; want those of %+v", got.Slots, err, in.Slots)
		}
	}},
	{"a second one is refused and the first stays", initialized(func(e *env) {
		e.unchanged(func() {
			e.wantClass("Initialize", e.s.Initialize(e.ctx, e.m.Installation()), store.ErrConflict)
			e.wantClass("Initialize, another", e.s.Initialize(e.ctx, NewMaker(2).Installation()), store.ErrConflict)
		})
	})},
	{"of many at once just one is stored", func(e *env) {
		e.migrate()
		candidates := make([]store.Installation, 16)
		for i := range candidates {
			candidates[i] = NewMaker(uint64(i) + 10).Installation()
		}
		winner := -1
		for i, err := range e.race(len(candidates), func(i int, s store.Store) error { return s.Initialize(e.ctx, candidates[i]) }) {
			if err == nil && winner < 0 {
				winner = i
				continue
			}
			e.wantClass("Initialize", err, store.ErrConflict)
		}
		got, err := e.s.Installation(e.ctx)
		if err != nil || winner < 0 {
			e.Fatalf("winner %d, Installation: %v", winner, err)
		}
		if d := diff(candidates[winner], got); d != "" {
			e.Errorf("the one stored is not the winner's (-winner +read):\n%s", d)
		}
	}},
	{"a malformed one is refused", func(e *env) {
		e.migrate()
		for name, spoil := range map[string]func(in *store.Installation){
			"inst too short":         func(in *store.Installation) { in.Inst = in.Inst[:15] },
			"ik_kid too long":        func(in *store.Installation) { in.IKKID = make([]byte, 17) },
			"mac too short":          func(in *store.Installation) { in.MAC = in.MAC[:31] },
			"no sequence number":     func(in *store.Installation) { in.Seq = 0 },
			"slot without an id":     func(in *store.Installation) { in.Slots[0].ID = "" },
			"slot twice":             func(in *store.Installation) { in.Slots[1].ID = in.Slots[0].ID },
			"slot without a blob":    func(in *store.Installation) { in.Slots[0].Blob = nil },
			"slot without a type":    func(in *store.Installation) { in.Slots[0].WrapperType = "" },
			"slot's ik_kid is short": func(in *store.Installation) { in.Slots[1].IKKID = []byte{1} },
			"slot of another key":    func(in *store.Installation) { in.Slots[1].IKKID = e.m.Bytes(16) },
			"no slots":               func(in *store.Installation) { in.Slots = nil },
			"no active slot":         func(in *store.Installation) { in.Slots[0].State = key.Retired },
			"two active slots":       func(in *store.Installation) { in.Slots[1].State = key.Active },
			"a pending slot":         func(in *store.Installation) { in.Slots[1].State = key.Pending },
			"active is a retired":    func(in *store.Installation) { in.ActiveSlot = in.Slots[1].ID },
			"active is not there":    func(in *store.Installation) { in.ActiveSlot = "kr_none" },
		} {
			in := e.m.Installation()
			spoil(&in)
			e.wantClass("Initialize, "+name, e.s.Initialize(e.ctx, in), errRefused)
			_, err := e.s.Installation(e.ctx)
			e.wantClass("Installation after "+name, err, store.ErrNotFound)
		}
	}},
	{"without one no key is created", func(e *env) {
		e.migrate()
		n, err := e.s.Create(e.ctx, e.m.Inst(), e.m.Scope(e.scope(1), "sessions"))
		if n != 0 || err != nil {
			e.Errorf("Create: %d, %v; want 0, nil", n, err)
		}
		_, err = e.s.Key(e.ctx, key.Ref{Scope: e.scope(1)})
		e.wantClass("Key", err, store.ErrNotFound)
	}},
}

// nearNow allows a database on another machine a clock that is an hour off.
func nearNow(t *testing.T, what string, seconds int64) {
	t.Helper()
	if off := time.Since(time.Unix(seconds, 0)).Abs(); off > time.Hour {
		t.Errorf("%s is %d, %v from now", what, seconds, off)
	}
}
