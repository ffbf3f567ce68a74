package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// reconcileBatch is how many scopes get a data key in one transaction.
const reconcileBatch = 100

// Reconciled is what [Manager.Reconcile] did and found.
type Reconciled struct {
	Created int       // data keys
	Dropped []Purpose // that the installation has, and the Config has not: their keys stay as they are
}

// Reconcile gives every scope the data keys that it lacks of the purposes in the [Config], which are stored as the
// installation's. It may be interrupted, repeated, and run by any number of processes at once: each key is made once.
// Scopes that are created meanwhile get their keys by their own.
//
// A scope whose root key cannot be used is left as it is; the others are reconciled, and then the error, which joins
// one for each, says which. [ErrPurpose] if a purpose is stored for another use than it is configured for; nothing is
// created then, or is the name of a raw key that was removed from a scope. It takes three round trips for each purpose
// and hundred scopes that lack it, and two more for each scope if the purpose is one of raw bytes; [Config.Timeout]
// limits each hundred, and ctx all of it.
func (m *Manager) Reconcile(ctx context.Context) (Reconciled, error) {
	var done Reconciled
	dropped, err := m.storePurposes(ctx)
	if err != nil {
		return done, err
	}
	done.Dropped = dropped
	var broken []error
	for _, p := range m.purposes {
		refused := false
		for after, more := key.Scope(""), true; more; {
			var n int
			n, more, err = m.reconcileBatch(ctx, p, &after, &refused, &broken)
			done.Created += n
			if err != nil {
				return done, errors.Join(append(broken, fmt.Errorf("reconcile purpose %q: %w", p.purpose, err))...)
			}
		}
	}
	return done, errors.Join(broken...)
}

// storePurposes stores the configured purposes, and returns those that are stored beside them.
func (m *Manager) storePurposes(ctx context.Context) (dropped []Purpose, err error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	var all []store.Purpose
	configured := map[key.Purpose]key.Alg{}
	for _, p := range m.purposes {
		all = append(all, store.Purpose{Purpose: p.purpose, Alg: p.alg})
		configured[p.purpose] = p.alg
	}
	stored, err := m.store.Purposes(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range stored {
		switch alg, ok := configured[p.Purpose]; {
		case !ok:
			dropped = append(dropped, p.Purpose)
		case alg != p.Alg:
			return nil, fmt.Errorf("purpose %q is stored for alg %v, configured is %v: %w", p.Purpose, p.Alg, alg, ErrPurpose)
		}
	}
	err = m.store.AddPurposes(ctx, all)
	if errors.Is(err, store.ErrUnknownOutcome) && ctx.Err() == nil {
		err = m.store.AddPurposes(ctx, all)
	}
	return dropped, err
}

// reconcileBatch gives the scopes after the given one a data key for p, and moves after on to the last of them; or
// leaves it, where the database refused them. It says whether there may be more.
func (m *Manager) reconcileBatch(
	ctx context.Context, p purposeOf, after *key.Scope, refused *bool, broken *[]error,
) (created int, more bool, err error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return 0, false, err
	}
	defer end()
	scopes, err := m.store.Lacking(ctx, p.purpose, *after, reconcileBatch)
	if err != nil || len(scopes) == 0 {
		return 0, false, err
	}
	families, _, err := m.store.Families(ctx, scopes)
	if err != nil {
		return 0, false, err
	}
	r := m.committed()
	var keys []store.Key
	var wrong []error
	for i := range families {
		data, err := r.missingKey(ctx, families[i], p)
		if *refused && err == nil && data != nil {
			err = r.rawNames(ctx, families[i].Root.Scope, []store.Key{*data})
		}
		switch {
		case errors.Is(err, store.ErrNotFound) && !errors.Is(err, ErrRemoved): // it was deleted meanwhile
		case err != nil:
			wrong = append(wrong, err)
		case data != nil:
			keys = append(keys, *data)
		}
	}
	// What others created meanwhile is left out.
	created, err = r.q.Create(ctx, r.inst(), keys)
	*refused = errors.Is(err, store.ErrConflict)
	if errors.Is(err, store.ErrUnknownOutcome) || *refused {
		return 0, true, again(ctx, &r, err) // the same scopes again, those that still lack it
	}
	*after, *broken = scopes[len(scopes)-1], append(*broken, wrong...)
	return created, true, err
}

// missingKey makes the data key for a purpose, or none if the scope has it by now.
func (r reader) missingKey(ctx context.Context, read store.Family, p purposeOf) (*store.Key, error) {
	fam, err := r.once(ctx, read)
	if err != nil {
		return nil, err
	}
	if err := fam.notOlder(); err != nil {
		return nil, err
	}
	for i := range fam.Data {
		if fam.Data[i].Purpose == p.purpose {
			return nil, nil //nolint:nilnil // as it says
		}
	}
	if p.alg == key.Raw {
		data, err := r.missingRaw(ctx, key.Ref{Scope: fam.Root.Scope, Purpose: p.purpose}, p.policy)
		if errors.Is(err, store.ErrConflict) {
			return nil, nil //nolint:nilnil // as it says
		}
		return &data, err
	}
	head, _ := headOf(&fam.Root)
	parent, err := r.parent(&fam.Family, head.ID)
	if err != nil {
		return nil, err
	}
	data, err := r.m.newDataKey(&fam.Root, head.ID, parent, p, fam.Now)
	return &data, err
}
