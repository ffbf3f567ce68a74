package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var concurrencyTests = []test{
	{"of 32 updates from one manifest just one wins", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "sessions"}
		e.create(e.m.Scope(ref.Scope, ref.Purpose)...)
		for range 3 {
			f := e.family(ref)
			updates := make([]store.Update, 32)
			for i := range updates {
				updates[i] = e.m.Add(&f.Data[0], &f.Root)
			}
			winner := -1
			for i, err := range e.race(len(updates), func(i int, s store.Store) error { return s.Update(e.ctx, updates[i]) }) {
				if err == nil && winner < 0 {
					winner = i
					continue
				}
				e.wantClass("Update", err, store.ErrConflict)
			}
			if winner < 0 {
				e.Fatal("no update won")
			}
			want := f.Data[0]
			want.Manifest, want.RotateAt = updates[winner].Manifest, updates[winner].RotateAt
			want.Versions = append(want.Versions, *updates[winner].Add)
			if d := diff(want, e.key(ref)); d != "" {
				e.Errorf("the key is not as the winner made it (-want +read):\n%s", d)
			}
		}
	})},
	{"32 create one scope: one does, and none fails", initialized(func(e *env) {
		const purposes = 3
		var created atomic.Int64
		families := make([][]store.Key, 32)
		for i := range families {
			families[i] = e.m.Scope(e.scope(1), "one", "three", "two")
		}
		for i, err := range e.race(len(families), func(i int, s store.Store) error {
			n, err := s.Create(e.ctx, e.m.Inst(), families[i])
			created.Add(int64(n))
			return err
		}) {
			if err != nil {
				e.Errorf("Create, caller %d: %v", i, err)
			}
		}
		f, err := e.s.Scope(e.ctx, e.scope(1))
		if err != nil || created.Load() != 1+purposes {
			e.Fatalf("Scope: %v; %d keys created, want %d", err, created.Load(), 1+purposes)
		}
		for _, keys := range families {
			if keys[0].ID == f.Root.ID {
				if d := diff(store.Family{Root: keys[0], Data: keys[1:]}, f); d != "" {
					e.Errorf("the scope is not as one of them made it (-want +read):\n%s", d)
				}
			}
		}
	})},
	{"32 create one data key: one does, and none fails", initialized(func(e *env) {
		root := e.m.RootKey(e.scope(1))
		e.create(root)
		var created atomic.Int64
		for i, err := range e.race(32, func(_ int, s store.Store) error {
			n, err := s.Create(e.ctx, e.m.Inst(), []store.Key{e.m.DataKey(&root, "sessions", key.Message)})
			created.Add(int64(n))
			return err
		}) {
			if err != nil {
				e.Errorf("Create, caller %d: %v", i, err)
			}
		}
		if e.key(key.Ref{Scope: e.scope(1), Purpose: "sessions"}); created.Load() != 1 {
			e.Errorf("%d keys created, want 1", created.Load())
		}
	})},
	{"32 create different scopes: all are there", initialized(func(e *env) {
		for i, err := range e.race(32, func(i int, s store.Store) error {
			n, err := s.Create(e.ctx, e.m.Inst(), e.m.Scope(e.scope(i), "sessions"))
			if err == nil && n != 2 {
				return fmt.Errorf("%d keys created, want 2", n)
			}
			return err
		}) {
			if err != nil {
				e.Errorf("Create, caller %d: %v", i, err)
			}
			e.key(key.Ref{Scope: e.scope(i), Purpose: "sessions"})
		}
	})},
	{"of 32 rewraps of one version just one replaces it", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "sessions")
		e.create(keys...)
		var replaced atomic.Int64
		for i, err := range e.race(32, func(_ int, s store.Store) error {
			r := e.m.Rewrap(&keys[1].Versions[0], keys[0].Versions[0].ID)
			n, err := s.Rewrap(e.ctx, e.m.Inst(), []store.Rewrap{r}, nil)
			replaced.Add(int64(n))
			return err
		}) {
			if err != nil {
				e.Errorf("Rewrap, caller %d: %v", i, err)
			}
		}
		if replaced.Load() != 1 {
			e.Errorf("%d replaced it, want 1", replaced.Load())
		}
	})},
	{"readers see a whole key while it is rotated", initialized(func(e *env) {
		ref := key.Ref{Scope: e.scope(1), Purpose: "sessions"}
		e.create(e.m.Scope(ref.Scope, ref.Purpose)...)
		first := e.family(ref)
		var macs sync.Map // of each sequence number
		macs.Store(first.Data[0].Seq, first.Data[0].MAC)
		handles := e.handles(4)
		done := make(chan struct{})
		var readers sync.WaitGroup
		for i, s := range handles[1:] {
			readers.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-done:
						return
					default:
					}
					if err := readWhole(e.ctx, s, ref, &macs, n%3); err != nil {
						e.Errorf("reader %d: %v", i, err)
						return
					}
				}
			})
		}
		k := first.Data[0]
		for range 20 {
			for _, change := range []func() store.Update{
				func() store.Update { return e.m.Add(&k, &first.Root) },
				func() store.Update { return e.m.Activate(&k, newest(&k)) },
			} {
				u := change()
				macs.Store(u.Manifest.Seq, u.Manifest.MAC)
				k = e.update(ref, u)
			}
		}
		close(done)
		readers.Wait()
	})},
}

// readWhole reads the key in one of three ways and looks whether its row and its versions are of one moment.
func readWhole(ctx context.Context, s store.Store, ref key.Ref, macs *sync.Map, way int) error {
	var f store.Family
	var err error
	switch way {
	case 0:
		f, err = s.Key(ctx, ref)
	case 1:
		f, err = s.Scope(ctx, ref.Scope)
	default:
		if f, err = s.Key(ctx, ref); err == nil {
			f, err = s.KeyOfVersion(ctx, f.Data[0].Versions[0].ID)
		}
	}
	if err != nil {
		return err
	}
	if len(f.Data) != 1 {
		return fmt.Errorf("%d data keys, want 1", len(f.Data))
	}
	k := f.Data[0]
	if mac, ok := macs.Load(k.Seq); !ok || !bytes.Equal(mac.([]byte), k.MAC) {
		return fmt.Errorf("the MAC of sequence number %d is another's", k.Seq)
	}
	// Sequence number 1 has one version; then each rotation adds a version and makes it the head.
	if len(k.Versions) != int(k.Seq)/2+1 || int(k.Head) != (int(k.Seq)+1)/2 {
		return fmt.Errorf("%d versions and head %d at sequence number %d", len(k.Versions), k.Head, k.Seq)
	}
	for _, v := range k.Versions {
		if (v.State == key.Active) != (v.Number == k.Head) {
			return fmt.Errorf("version %d is %v and the head is %d", v.Number, v.State, k.Head)
		}
	}
	return nil
}

var contextTests = []test{
	{"a cancelled call returns the context's error and changes nothing", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "sessions")
		e.create(keys...)
		in := e.installation()
		ctx, cancel := context.WithCancel(e.ctx)
		cancel()
		ref := key.Ref{Scope: e.scope(1), Purpose: "sessions"}
		e.unchanged(func() {
			for what, call := range map[string]func() error{
				"CheckSchema":  func() error { return e.s.CheckSchema(ctx) },
				"Migrate":      func() error { return e.s.Migrate(ctx) },
				"Initialize":   func() error { return e.s.Initialize(ctx, e.m.Installation()) },
				"Integrity":    func() error { _, err := e.s.Integrity(ctx); return err },
				"Installation": func() error { _, err := e.s.Installation(ctx); return err },
				"Key":          func() error { _, err := e.s.Key(ctx, ref); return err },
				"KeyOfVersion": func() error { _, err := e.s.KeyOfVersion(ctx, keys[1].Versions[0].ID); return err },
				"Scope":        func() error { _, err := e.s.Scope(ctx, ref.Scope); return err },
				"Name":         func() error { _, _, err := e.s.Name(ctx, ref); return err },
				"Named":        func() error { _, err := e.s.Named(ctx, ref.Scope, "", 10); return err },
				"Scopes":       func() error { _, err := e.s.Scopes(ctx, "", 10); return err },
				"Roll":         func() error { _, err := e.s.Roll(ctx); return err },
				"Sign":         func() error { _, err := e.s.Sign(ctx, e.m.Instance()); return err },
				"Leave":        func() error { return e.s.Leave(ctx, "ki_a") },
				"Due":          func() error { _, err := e.s.Due(ctx, store.AllBuckets, store.Due{}, 10); return err },
				"Upcoming":     func() error { _, _, err := e.s.Upcoming(ctx); return err },
				"Lagging":      func() error { _, _, err := e.s.Lagging(ctx, "", 10); return err },
				"Lease":        func() error { _, _, err := e.s.Lease(ctx, "sweep", "one", hour); return err },
				"Release":      func() error { return e.s.Release(ctx, store.Lease{Name: "sweep", Owner: "one", Fence: 1}) },
				"ChangeRoots":  func() error { return e.s.ChangeRoots(ctx, e.m.AddKey(&in)) },
				"Rekey": func() error {
					_, err := e.s.Rekey(ctx, e.m.Inst(), []store.Rekey{e.m.Rekey(&keys[1], in.IKKID)}, nil)
					return err
				},
				"NotUnder":      func() error { _, _, err := e.s.NotUnder(ctx, [16]byte(in.IKKID), "", 10); return err },
				"NamesNotUnder": func() error { _, err := e.s.NamesNotUnder(ctx, [16]byte{}, 10); return err },
				"PutName":       func() error { return e.s.PutName(ctx, e.m.Inst(), 0, e.m.Name(keys[0].ID, "named")) },
				"RemoveKey": func() error {
					return e.s.RemoveKey(ctx, e.m.Inst(), keys[1].ID, 1, 0, e.m.Removed(&keys[1], store.Name{}))
				},
				"Escrows":     func() error { _, err := e.s.Escrows(ctx); return err },
				"AddEscrow":   func() error { return e.s.AddEscrow(ctx, e.m.Inst(), store.Escrow{IKKID: in.IKKID, Event: "written"}) },
				"Take":        func() error { _, err := e.s.Take(ctx, keys[1].Versions[0].ID, 1, 10); return err },
				"Tidy":        func() error { _, err := e.s.Tidy(ctx); return err },
				"Create":      func() error { _, err := e.s.Create(ctx, e.m.Inst(), e.m.Scope(e.scope(2))); return err },
				"Shred":       func() error { _, err := e.s.Shred(ctx, e.m.Inst(), e.scope(1)); return err },
				"AddPurposes": func() error { return e.s.AddPurposes(ctx, []store.Purpose{{Purpose: "one", Alg: key.Message}}) },
				"Register":    func() error { return e.s.Register(ctx, store.Column{Table: "any", Column: "id"}) },
				"Unregister":  func() error { return e.s.Unregister(ctx, store.Column{Table: "any", Column: "id"}) },
				"Update":      func() error { return e.s.Update(ctx, e.m.Add(&keys[1], &keys[0])) },
				"Rewrap": func() error {
					r := e.m.Rewrap(&keys[1].Versions[0], keys[0].Versions[0].ID)
					_, err := e.s.Rewrap(ctx, e.m.Inst(), []store.Rewrap{r}, nil)
					return err
				},
			} {
				e.wantClass(what, call(), context.Canceled)
			}
		})
		if list := e.roll().Instances; len(list) != 0 {
			e.Errorf("instances: %v; want none", list)
		}
		if list, err := e.s.Purposes(e.ctx); len(list) != 0 || err != nil {
			e.Errorf("purposes: %v, %v; want none", list, err)
		}
		e.take(keys[1].Versions[0].ID, 10, 10, 10)
		e.lease("sweep", "two", hour)
	})},
	{"an ended context says why, in the words of whoever ended it", initialized(func(e *env) {
		reason := errors.New("the operator pulled the plug")
		cancelled, cancel := context.WithCancelCause(e.ctx)
		cancel(reason)
		late, stop := context.WithTimeoutCause(e.ctx, -1, reason)
		defer stop()
		for ctx, want := range map[context.Context]error{cancelled: context.Canceled, late: context.DeadlineExceeded} {
			_, readErr := e.s.Key(ctx, key.Ref{Scope: e.scope(1)})
			_, writeErr := e.s.Create(ctx, e.m.Inst(), e.m.Scope(e.scope(2)))
			for what, err := range map[string]error{"Key": readErr, "Create": writeErr} {
				if !errors.Is(err, want) || !errors.Is(err, reason) {
					e.Errorf("%s: %v; want %v and %v", what, err, want, reason)
				}
			}
		}
	})},
	{"a call cancelled on the way is done or not, never by half", initialized(func(e *env) {
		// The cancellation lands wherever it lands: what may be seen afterwards is what counts.
		for i := range 40 {
			ctx, cancel := context.WithCancel(e.ctx)
			var wg sync.WaitGroup
			wg.Go(func() {
				for range i * 20 {
					_ = ctx.Err()
				}
				cancel()
			})
			keys := e.m.Scope(e.scope(i), "one", "two", "three")
			n, err := e.s.Create(ctx, e.m.Inst(), keys)
			wg.Wait()
			f, readErr := e.s.Scope(e.ctx, e.scope(i))
			there := readErr == nil && len(f.Data) == 3
			switch {
			case readErr != nil && !errors.Is(readErr, store.ErrNotFound), readErr == nil && !there:
				e.Fatalf("Scope: %v with %d data keys after Create: %d, %v", readErr, len(f.Data), n, err)
			case err == nil && !there, there && err != nil && !errors.Is(err, store.ErrUnknownOutcome):
				e.Errorf("Create: %d, %v; the scope is there: %v", n, err, there)
			}
		}
	})},
}
