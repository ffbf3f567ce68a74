package storetest

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var fleetTests = []test{
	{"an instance is listed as it was when it signed last", initialized(func(e *env) {
		in := e.m.Instance()
		e.sign(in)
		first := e.roll().Instances[0]
		if first.Slot != in.Slot {
			e.Errorf("slot %q; want %q", first.Slot, in.Slot)
		}
		in.Slot = e.m.ID(key.PrefixRootSlot)
		in.Name, in.Life, in.Seen = "", 0, [store.Buckets]uint64{0: math.MaxInt64, 17: 1 << 40, 31: 7}
		e.sign(in)
		for _, s := range e.handles(2) {
			roll, err := s.Roll(e.ctx)
			if err != nil || len(roll.Instances) != 1 {
				e.Fatalf("Roll: %+v, %v; want one instance", roll, err)
			}
			want, got := in, roll.Instances[0]
			want.Since, want.Signed = first.Since, got.Signed
			if d := diff(want, got); d != "" {
				e.Errorf("Roll (-signed +read):\n%s", d)
			}
			if got.Since > got.Signed || got.Signed > roll.Now {
				e.Errorf("signed from %d to %d, at %d", got.Since, got.Signed, roll.Now)
			}
		}
	})},
	{"signing reads the epochs, and so does the roll", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two", "three")
		e.create(keys...)
		for i := range keys {
			u := e.m.Next(&keys[i])
			if err := e.s.Update(e.ctx, u); err != nil {
				e.Fatalf("Update: %v", err)
			}
		}
		want := e.epochs()
		got, err := e.s.Sign(e.ctx, e.m.Instance())
		if d := diff(want, got); d != "" || err != nil {
			e.Errorf("Sign: %v (-Epochs +Sign):\n%s", err, d)
		}
		if roll := e.roll(); roll.Epochs != want.Keys {
			e.Errorf("Roll: %v; want %v", roll.Epochs, want.Keys)
		}
	})},
	{"without an installation nobody signs, and nobody is listed", func(e *env) {
		e.migrate()
		_, err := e.s.Sign(e.ctx, e.m.Instance())
		e.wantClass("Sign", err, store.ErrNotFound)
		if roll := e.roll(); len(roll.Instances) != 0 || roll.Now == 0 || roll.Epochs != [store.Buckets]uint64{} {
			e.Errorf("Roll: %+v; want nobody, no epochs, and the time", roll)
		}
	}},
	{"instances are listed in their order, until they leave", initialized(func(e *env) {
		want := map[key.ID]bool{}
		for range 10 {
			in := e.m.Instance()
			e.sign(in)
			want[in.ID] = true
		}
		for id := range want {
			list := e.roll().Instances
			if !slices.IsSortedFunc(list, func(a, b store.Instance) int {
				return strings.Compare(fmt.Sprintf("%20d %s", a.Since, a.ID), fmt.Sprintf("%20d %s", b.Since, b.ID))
			}) {
				e.Errorf("not by since and id: %v", list)
			}
			got := map[key.ID]bool{}
			for _, in := range list {
				got[in.ID] = true
			}
			if d := diff(want, got); d != "" {
				e.Fatalf("instances (-want +listed):\n%s", d)
			}
			for range 2 {
				if err := e.s.Leave(e.ctx, id); err != nil {
					e.Errorf("Leave: %v", err)
				}
			}
			delete(want, id)
		}
	})},
	{"16 at once sign for two instances, and all read the same epochs", initialized(func(e *env) {
		instances := []store.Instance{e.m.Instance(), e.m.Instance()}
		epochs := make([]store.Epochs, 16)
		for i, err := range e.race(len(epochs), func(i int, s store.Store) (err error) {
			epochs[i], err = s.Sign(e.ctx, instances[i/8])
			return err
		}) {
			if d := diff(epochs[0], epochs[i]); d != "" || err != nil {
				e.Errorf("Sign, caller %d: %v (-first +this):\n%s", i, err, d)
			}
		}
		if list := e.roll().Instances; len(list) != 2 {
			e.Errorf("%d instances, want 2", len(list))
		}
	})},
	{"what an instance says is stored exactly, or refused", initialized(func(e *env) {
		for _, name := range []string{
			"", " ", "'; drop table kms_instance; --", "tab\tnew\nline\x7f", "\u202e\U0010FFFF", strings.Repeat("é", 127) + "a", "%s{prefix}?1$1",
		} {
			in := e.m.Instance()
			in.Name, in.Life = name, math.MaxInt64
			e.sign(in)
			list := e.roll().Instances
			if i := slices.IndexFunc(list, func(got store.Instance) bool { return got.ID == in.ID }); i < 0 || list[i].Name != name ||
				list[i].Life != math.MaxInt64 || list[i].Gone(math.MaxInt64) {
				e.Errorf("%q is not listed as it signed: %v", name, list)
			}
		}
		for _, slot := range []key.ID{"", " ", "'; drop table kms_root_slot; --", "\x01\x7f", key.ID(strings.Repeat("k", key.MaxIDLen))} {
			in := e.m.Instance()
			in.Slot = slot
			e.sign(in)
			list := e.roll().Instances
			if i := slices.IndexFunc(list, func(got store.Instance) bool { return got.ID == in.ID }); i < 0 || list[i].Slot != slot {
				e.Errorf("slot %q is not listed as it signed: %v", slot, list)
			}
		}
		before := len(e.roll().Instances)
		for what, change := range map[string]func(*store.Instance){
			"a name with a zero byte":  func(in *store.Instance) { in.Name = "a\x00b" },
			"a name of other bytes":    func(in *store.Instance) { in.Name = "a\xffb" },
			"a name that is too long":  func(in *store.Instance) { in.Name = strings.Repeat("é", 128) },
			"no id":                    func(in *store.Instance) { in.ID = "" },
			"an id with a zero byte":   func(in *store.Instance) { in.ID += "\x00" },
			"an id that is not ASCII":  func(in *store.Instance) { in.ID += "é" },
			"an id of other bytes":     func(in *store.Instance) { in.ID += "\xff" },
			"an id that is too long":   func(in *store.Instance) { in.ID = key.ID(strings.Repeat("k", key.MaxIDLen+1)) },
			"a slot with a zero byte":  func(in *store.Instance) { in.Slot = "kr_\x00" },
			"a slot that is not ASCII": func(in *store.Instance) { in.Slot = "kr_é" },
			"a slot of other bytes":    func(in *store.Instance) { in.Slot = "kr_\xff" },
			"a slot that is too long":  func(in *store.Instance) { in.Slot = key.ID(strings.Repeat("k", key.MaxIDLen+1)) },
			"a negative life":          func(in *store.Instance) { in.Life = -1 },
			"an epoch that cannot be":  func(in *store.Instance) { in.Seen[31] = math.MaxInt64 + 1 },
			"the greatest of integers": func(in *store.Instance) { in.Seen[0] = math.MaxUint64 },
		} {
			in := e.m.Instance()
			change(&in)
			_, err := e.s.Sign(e.ctx, in)
			e.wantClass("Sign with "+what, err, errRefused)
		}
		for _, id := range hostileIDs {
			e.wantClass(fmt.Sprintf("Leave of %q", id), e.s.Leave(e.ctx, id), nil)
		}
		if after := len(e.roll().Instances); after != before {
			e.Errorf("from %d to %d instances", before, after)
		}
	})},
	{"tidying changes no epoch and removes no instance that may seal", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		e.sign(e.m.Instance())
		gone := e.m.Instance()
		gone.Life = 0
		e.sign(gone)
		for range 3 {
			for i := range keys {
				for range 4 {
					keys[i] = e.update(key.Ref{Scope: e.scope(1), Purpose: keys[i].Purpose}, e.m.Next(&keys[i]))
				}
			}
			e.changes("Tidy", nil, func() { e.tidy(e.s) })
		}
		e.tidy(e.s)
		if list := e.roll().Instances; len(list) != 2 {
			e.Errorf("%d instances, want 2", len(list))
		}
		e.changes("an update after Tidy", []key.ID{keys[0].ID}, func() {
			if err := e.s.Update(e.ctx, e.m.Next(&keys[0])); err != nil {
				e.Errorf("Update: %v", err)
			}
		})
	})},
	{"tidying beside updates and itself loses no change and makes none up", initialized(func(e *env) {
		const updaters, updates = 4, 10
		var keys []store.Key
		for i := range updaters {
			keys = append(keys, e.m.Scope(e.scope(i), "one")...)
		}
		e.create(keys...)
		before := e.epochs()
		for i, err := range e.race(updaters+3, func(i int, s store.Store) error {
			if i < updaters {
				k := keys[2*i+1]
				for range updates {
					u := e.m.Next(&k)
					if err := s.Update(e.ctx, u); err != nil {
						return err
					}
					k.Manifest = u.Manifest
				}
				return nil
			}
			last := before
			for range updates {
				if i > updaters {
					if _, err := s.Tidy(e.ctx); err != nil {
						return err
					}
				}
				now, err := s.Epochs(e.ctx)
				if err != nil {
					return err
				}
				for b := range now.Keys {
					if now.Keys[b] < last.Keys[b] {
						return fmt.Errorf("the epoch of bucket %d went back from %d to %d", b, last.Keys[b], now.Keys[b])
					}
				}
				last = now
			}
			return nil
		}) {
			if err != nil {
				e.Errorf("caller %d: %v", i, err)
			}
		}
		want := map[int]bool{}
		for i := range updaters {
			want[store.Bucket(keys[2*i+1].ID)] = true
		}
		after := e.epochs()
		e.changes("Tidy in the end", nil, func() { e.tidy(e.s) })
		for b := range after.Keys {
			if moved := after.Keys[b] != before.Keys[b]; moved != want[b] {
				e.Errorf("bucket %d from %d to %d", b, before.Keys[b], after.Keys[b])
			}
		}
	})},
	{"several that tidy at once are never seen to change an epoch", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		for range 20 {
			for i := range keys {
				u := e.m.Next(&keys[i])
				if err := e.s.Update(e.ctx, u); err != nil {
					e.Fatalf("Update: %v", err)
				}
				keys[i].Manifest = u.Manifest
			}
		}
		want := e.epochs()
		for i, err := range e.race(8, func(i int, s store.Store) error {
			for range 10 {
				if i < 4 {
					if err := e.tidyAll(s); err != nil {
						return err
					}
				}
				got, err := s.Epochs(e.ctx)
				if d := diff(want, got); d != "" || err != nil {
					return fmt.Errorf("epochs beside Tidy: %w (-before +read):\n%s", err, d)
				}
			}
			return nil
		}) {
			if err != nil {
				e.Errorf("caller %d: %v", i, err)
			}
		}
	})},
	{"what is rolled back was not taken", inTx(func(e *env, begin func() (store.Tx, func() error, func() error)) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		id := keys[1].Versions[0].ID
		tx, _, rollback := begin()
		if n, err := tx.Take(e.ctx, id, 70, 100); n != 70 || err != nil {
			e.Errorf("Take inside: %d, %v; want 70", n, err)
		}
		roll, err := tx.Roll(e.ctx)
		if err != nil || roll.Now == 0 {
			e.Errorf("Roll inside: %+v, %v", roll, err)
		}
		if err := rollback(); err != nil {
			e.Fatalf("rollback: %v", err)
		}
		e.take(id, 200, 100, 100)
	})},
}

// hostileIDs are of nothing, and no database may choke on them.
var hostileIDs = []key.ID{"", "\x00", "ki_\x00", "ki_\xff", "kdkv_é", "'", "kdkv_none", key.ID(strings.Repeat("k", 10_000))}

func (e *env) sign(in store.Instance) {
	e.Helper()
	if _, err := e.s.Sign(e.ctx, in); err != nil {
		e.Fatalf("Sign: %v", err)
	}
}

func (e *env) roll() store.Roll {
	e.Helper()
	roll, err := e.s.Roll(e.ctx)
	if err != nil {
		e.Fatalf("Roll: %v", err)
	}
	return roll
}

func (e *env) tidy(s store.Store) {
	e.Helper()
	if err := e.tidyAll(s); err != nil {
		e.Errorf("Tidy: %v", err)
	}
}

// tidyAll calls Tidy until there is no more to do, which has to be soon for what the suite writes.
func (e *env) tidyAll(s store.Store) error {
	for range 100 {
		if more, err := s.Tidy(e.ctx); !more || err != nil {
			return err
		}
	}
	return errors.New("there is more to do after 100 calls")
}

func (e *env) take(id key.ID, n, limit, want uint64) {
	e.Helper()
	if got, err := e.s.Take(e.ctx, id, n, limit); got != want || err != nil {
		e.Errorf("Take of %d of %d: %d, %v; want %d", n, limit, got, err, want)
	}
}

var takeTests = []test{
	{"16 take, and together just what there is", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		e.create(keys...)
		const limit = 1000
		var sum atomic.Uint64
		for i, err := range e.race(16, func(i int, s store.Store) error {
			for {
				n, err := s.Take(e.ctx, keys[1].Versions[0].ID, uint64(10+i), limit)
				if n == 0 || err != nil {
					return err
				}
				if sum.Add(n); n > uint64(10+i) {
					return fmt.Errorf("%d taken instead of %d", n, 10+i)
				}
			}
		}) {
			if err != nil {
				e.Errorf("Take, caller %d: %v", i, err)
			}
		}
		if sum.Load() != limit {
			e.Errorf("%d were taken, want %d", sum.Load(), limit)
		}
	})},
	{"each version has its own, whatever limit is said", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		one, two := keys[1].Versions[0].ID, keys[2].Versions[0].ID
		e.take(one, 0, 10, 0)
		e.take(one, 6, 10, 6)
		e.take(one, 6, 10, 4)
		e.take(one, 1, 10, 0)
		e.take(one, 1, 5, 0)
		e.take(one, 5, 12, 2)
		e.take(one, 0, 12, 0)
		e.take(one, 0, 1, 0)
		e.take(one, 1, 13, 1)
		e.take(two, 5, 12, 5)
		e.take(two, math.MaxInt64, math.MaxInt64, math.MaxInt64-5)
		e.take(two, math.MaxInt64, math.MaxInt64, 0)
	})},
	{"what is no version, or was destroyed, has nothing to take", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "one"}
		e.create(e.m.Scope(ref.Scope, ref.Purpose)...)
		k := e.life(ref)
		disabled := k.Versions[0].ID
		e.take(disabled, 3, 10, 3)
		k = e.update(ref, e.m.Destroy(&k, 2))
		root := e.family(ref).Root
		for _, id := range append(hostileIDs, k.Tombstones[0].ID, disabled, root.Versions[0].ID, k.ID) {
			n, err := e.s.Take(e.ctx, id, 1, 10)
			if e.wantClass(fmt.Sprintf("Take of %q", id), err, store.ErrNotFound); n != 0 {
				e.Errorf("%d taken of %q", n, id)
			}
		}
		id := k.Versions[0].ID
		for _, c := range [][2]uint64{{1, 0}, {0, 0}, {1, math.MaxInt64 + 1}, {math.MaxInt64 + 1, 1}, {math.MaxUint64, math.MaxUint64}} {
			_, err := e.s.Take(e.ctx, id, c[0], c[1])
			e.wantClass(fmt.Sprintf("Take of %d of %d", c[0], c[1]), err, errRefused)
		}
		e.take(id, 9, 9, 9)
		if e.h.DeleteScope == nil {
			return
		}
		e.h.DeleteScope(e.T, e.s, ref.Scope)
		_, err := e.s.Take(e.ctx, id, 1, 10)
		e.wantClass("Take of a deleted scope's", err, store.ErrNotFound)
	})},
}

var disabledTests = []test{
	{"a version says since when it is disabled, and only then", bothKinds(func(e *env, ref key.Ref) {
		k := e.life(ref)
		if k = e.update(ref, e.m.Step(&k, 2, key.Retired)); k.Versions[0].Disabled != 0 {
			e.Errorf("a version that was enabled is disabled since %d", k.Versions[0].Disabled)
		}
		before := e.roll().Now
		k = e.update(ref, e.m.Step(&k, 2, key.Disabled))
		after := e.roll().Now
		if at := k.Versions[0].Disabled; at < before || at > after {
			e.Errorf("disabled since %d; want from %d to %d", at, before, after)
		}
		for _, v := range k.Versions[1:] {
			if v.Disabled != 0 {
				e.Errorf("version %d is %v, and disabled since %d", v.Number, v.State, v.Disabled)
			}
		}
		at := k.Versions[0].Disabled
		if k = e.update(ref, e.m.Next(&k)); k.Versions[0].Disabled != at {
			e.Errorf("from %d to %d by a change of something else", at, k.Versions[0].Disabled)
		}
	})},
	{"nobody can say it for a new version", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one")
		for i := range keys {
			keys[i].Versions[0].Disabled = 7
		}
		e.create(keys...)
		u := e.m.Add(&keys[1], &keys[0])
		u.Add.Disabled = 7
		k := e.update(key.Ref{Scope: e.scope(1), Purpose: "one"}, u)
		for _, v := range append(k.Versions, e.key(key.Ref{Scope: e.scope(1)}).Versions...) {
			if v.Disabled != 0 {
				e.Errorf("version %d is %v, and disabled since %d", v.Number, v.State, v.Disabled)
			}
		}
	})},
}
