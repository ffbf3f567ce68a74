package keyhold

import (
	"context"
	"slices"

	"keyhold.example/keyhold/internal/rotor"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// rotating is a key that is rotated together with others.
type rotating struct {
	store.Due
	ref  key.Ref
	ctx  context.Context //nolint:containedctx // with the key's span
	span span

	// Of the round:
	now       int64
	change    keyChange
	activates *store.Version
	begun     uint64 // questions, when it was read
	atOnce    bool   // whether the version may become the head though others may not have seen it

	rotated bool
	ended   bool
	err     error // what became of it
}

func (d *rotating) end(err error) { d.ended, d.err = true, err }

func (s *sweep) begin(ctx context.Context, k *rotating) { k.ctx, k.span = s.span(ctx, k.Due) }

// workTogether rotates keys in a few transactions: all of them get a pending version in one, and it becomes the head of
// those in another whose version all instances have seen. Between the two it is read again, as rotateDue does. A key
// that is not just rotated by that, whatever the reason, is left for that to deal with.
func (s *sweep) workTogether(ctx context.Context, due []store.Due, under *store.Lease) []error {
	keys, named := make([]*rotating, len(due)), make(map[key.ID]bool, len(due))
	for i, d := range due {
		keys[i] = &rotating{Due: d, ref: key.Ref{Scope: d.Scope, Purpose: d.Purpose}, err: rotor.ErrAlone, ended: named[d.KeyID]}
		named[d.KeyID] = true
	}
	if len(named) == 1 {
		return slices.Repeat([]error{rotor.ErrAlone}, len(due))
	}
	for _, k := range keys {
		s.begin(ctx, k)
	}
	_ = s.m.step(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, workLimit, errLocked)
		defer cancel()
		return s.rotateTogether(ctx, keys, under)
	}) // of those that had not ended nothing else is known, either
	errs := make([]error, len(due))
	for i, k := range keys {
		errs[i] = k.err
		if k.err == nil {
			errs[i] = s.after(k.ctx, k.ref, k.Due, k.rotated, nil, under)
		}
		k.span.end(nil)
	}
	return errs
}

func (s *sweep) rotateTogether(ctx context.Context, keys []*rotating, under *store.Lease) error {
	r := s.m.committed()
	r.use, r.under = seals, under
	for {
		if err := s.plan(ctx, r, keys); err != nil {
			return err
		}
		if err := s.mayActivateAll(ctx, r, keys); err != nil {
			return err
		}
		var changed []*rotating
		var updates []store.Update
		for _, k := range keys {
			if !k.ended {
				changed, updates = append(changed, k), append(updates, k.change.update)
			}
		}
		if len(changed) == 0 {
			return nil
		}
		made, err := s.m.store.UpdateAll(ctx, updates)
		if mayHaveChanged(err) {
			for _, k := range changed {
				s.m.changedKey(k.change.from)
			}
		}
		if err != nil {
			return err
		}
		for i, k := range changed {
			s.made(k, made[i])
		}
		keys = changed
	}
}

// plan reads the keys, and finds out what is to be done at each.
func (s *sweep) plan(ctx context.Context, r reader, keys []*rotating) error {
	var open []*rotating
	var refs []key.Ref
	for _, k := range keys {
		if !k.ended {
			open, refs = append(open, k), append(refs, k.ref)
		}
	}
	if len(open) == 0 {
		return nil
	}
	read, err := s.read(ctx, refs)
	if err != nil {
		return err
	}
	begun := s.m.epochs.begun.Load()
	inParallel(len(open), func(i int) {
		open[i].begun = begun
		if err := s.planOne(ctx, r, open[i], &read[i]); err != nil {
			open[i].end(rotor.ErrAlone)
		}
	})
	return nil
}

func (s *sweep) read(ctx context.Context, refs []key.Ref) (list []store.Family, err error) {
	ctx, sp := s.m.telemetry.span(ctx, "keyhold.read")
	defer func() { sp.end(err) }()
	return s.m.store.Keys(ctx, refs)
}

// planOne decides as rotateDue does. What was read is checked as if it had been read alone; where it does not fit, it
// is read once more.
func (s *sweep) planOne(ctx context.Context, r reader, d *rotating, read *store.Family) error {
	ctx = s.m.telemetry.within(ctx, d.span)
	if read.Root.ID == "" {
		return store.ErrNotFound
	}
	first := true
	checked, err := r.verified(ctx, func() (store.Family, error) {
		if first {
			first = false
			return *read, nil
		}
		again, err := r.q.Key(ctx, d.ref)
		d.begun = s.m.epochs.begun.Load()
		return again, err
	})
	checked, err = keyIn(checked, d.ref, err)
	fam, k, err := r.rotatable(ctx, checked, d.ref, err)
	if err == nil {
		err = r.timely(fam, k)
	}
	if err != nil {
		return err
	}
	newest := &k.Versions[len(k.Versions)-1]
	due := k.RotateAt != 0 && k.RotateAt <= fam.Now
	used := d.Why == store.Used && d.Head == k.Head
	d.now, d.activates = fam.Now, nil
	var c keyChange
	switch {
	case k.ID != d.KeyID:
		return rotor.ErrAlone
	case newest.State == key.Pending:
		d.activates, d.atOnce = newest, due || used
		c, err = r.activating(k, newest)
	case due || used:
		c, err = s.adding(ctx, r, fam, k)
	default:
		d.end(nil)
		return nil
	}
	d.change = c
	return err
}

// mayActivateAll ends what may not become the head yet.
func (s *sweep) mayActivateAll(ctx context.Context, r reader, keys []*rotating) error {
	var roll *store.Roll
	for _, k := range keys {
		if k.ended || k.activates == nil {
			continue
		}
		if !k.atOnce && k.now-k.activates.Created < activateAfter {
			if roll == nil {
				all, err := s.m.store.Roll(ctx)
				if err != nil {
					return err
				}
				roll = &all
			}
			if err := s.seenByAll(roll, k.change.from); err != nil {
				k.end(err)
				continue
			}
		}
		if err := r.durable(ctx, k.activates.ID, k.begun); err != nil {
			return err
		}
	}
	return nil
}

// made says what became of a key when its change was made, or was not.
func (s *sweep) made(k *rotating, made bool) {
	if !made {
		k.end(rotor.ErrAlone)
		return
	}
	to := k.change.to
	s.m.cache.saw(to.ID, to.Seq)
	if k.activates == nil {
		return
	}
	s.m.telemetry.rotated(k.ctx, to.Purpose, nil)
	s.swept.Rotated++
	s.m.tell(k.ctx, Event{Kind: Rotated, Ref: k.ref, Key: to.ID, Version: k.activates.Number, ID: k.activates.ID})
	k.rotated = true
	// What is wrapped under a root key is to be wrapped anew before it is rotated again.
	if to.RotateAt == 0 || to.RotateAt > k.now || k.ref.IsRoot() {
		k.end(nil)
	}
}
