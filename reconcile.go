package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Reconciled is what [Manager.Reconcile] did and found.
type Reconciled struct {
	Created int       // data keys
	Dropped []Purpose // that the installation has, and the Config has not: their keys stay as they are
}

// Reconcile gives every scope the data keys that it lacks of the purposes in the [Config], which are stored as the
// installation's. It may be interrupted, repeated, and run by any number of processes at once: each key is made once.
// Scopes that are created meanwhile get their keys by their own.
//
// A scope whose root key cannot be used, or that somebody has locked for longer than [Config.Timeout], is left as it
// is; the others are reconciled, and then the error, which joins one for each, says which. [ErrPurpose] if a purpose is
// stored for another use than it is configured for; nothing is created then, or is the name of a raw key that was
// removed from a scope. It takes two round trips for each purpose and 250 scopes, or 10 000 rows, that lack it, one for
// each batch of keys, which is as large as a transaction of about 100 ms allows, and two more for each scope if the
// purpose is one of raw bytes; [Config.Timeout] limits each step, and ctx all of it.
func (m *Manager) Reconcile(ctx context.Context) (Reconciled, error) {
	var done Reconciled
	dropped, err := m.storePurposes(ctx)
	if err != nil {
		return done, err
	}
	done.Dropped = dropped
	w := &reconciliation{m: m}
	for _, w.p = range m.purposes {
		if err := w.run(ctx); err != nil {
			err = fmt.Errorf("reconcile purpose %q: %w", w.p.purpose, err)
			w.broken = append(w.broken, err)
			break
		}
	}
	done.Created = w.created
	return done, errors.Join(w.broken...)
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

// reconciliation is a call of [Manager.Reconcile].
type reconciliation struct {
	m       *Manager
	p       purposeOf
	reads   readPace
	pace    pace
	created int
	broken  []error
}

// missingKeys are data keys that some scopes lack, and what is wrong with others.
type missingKeys struct {
	scopes []key.Scope // one for each of keys
	keys   []store.Key
	broken []error
}

// run gives the scopes that lack it a data key for p.
func (w *reconciliation) run(ctx context.Context) error {
	after := key.Scope("")
	return ahead(ctx, func(ctx context.Context) (missing missingKeys, more bool, err error) {
		var scopes []key.Scope
		err = w.m.step(ctx, func(ctx context.Context) (err error) {
			scopes, err = w.m.store.Lacking(ctx, w.p.purpose, after, w.reads.next())
			return err
		})
		if err != nil || len(scopes) == 0 {
			return missing, false, err
		}
		after = scopes[len(scopes)-1]
		missing, err = w.prepare(ctx, scopes, false)
		return missing, true, err
	}, w.write)
}

// prepare reads some scopes, and makes the keys that they lack. refused is whether the database refused some before.
func (w *reconciliation) prepare(
	ctx context.Context, scopes []key.Scope, refused bool,
) (missing missingKeys, err error) {
	families, bad, err := w.m.readScopes(ctx, scopes)
	if err != nil {
		return missing, err
	}
	if !refused { // or it is not who reads ahead
		w.reads.read(families)
	}
	for _, b := range bad {
		missing.broken = append(missing.broken, fmt.Errorf("scope %q: %w", b.scope, b.err))
	}
	err = w.m.step(ctx, func(ctx context.Context) error {
		keys, errs := make([]*store.Key, len(families)), make([]error, len(families))
		inParallel(len(families), func(i int) {
			r := w.m.committed()
			keys[i], errs[i] = r.missingKey(ctx, families[i], w.p)
			if refused && errs[i] == nil && keys[i] != nil {
				errs[i] = r.rawNames(ctx, families[i].Root.Scope, []store.Key{*keys[i]})
			}
		})
		for i, err := range errs {
			switch {
			case errors.Is(err, store.ErrNotFound) && !errors.Is(err, ErrRemoved): // it was deleted meanwhile
			case err != nil && (isAway(err) || ctx.Err() != nil):
				return err
			case err != nil:
				missing.broken = append(missing.broken, err)
			case keys[i] != nil:
				missing.scopes = append(missing.scopes, families[i].Root.Scope)
				missing.keys = append(missing.keys, *keys[i])
			}
		}
		return nil
	})
	return missing, err
}

func (w *reconciliation) write(ctx context.Context, missing missingKeys) error {
	w.broken = append(w.broken, missing.broken...)
	for len(missing.keys) > 0 {
		n, rows := w.pace.cut(len(missing.keys), func(int) int { return 2 })
		began := w.m.epochs.clock()
		if err := w.store(ctx, missing.scopes[:n], missing.keys[:n]); err != nil {
			return err
		}
		w.pace.took(rows, w.m.epochs.clock().since(began))
		missing.scopes, missing.keys = missing.scopes[n:], missing.keys[n:]
	}
	return nil
}

// store stores some keys. What others created meanwhile is left out. If the database refuses, or it is unknown what was
// done, it looks again at the scopes.
func (w *reconciliation) store(ctx context.Context, scopes []key.Scope, keys []store.Key) error {
	for r := w.m.committed(); len(keys) > 0; {
		err := w.m.step(ctx, func(ctx context.Context) error {
			n, err := r.q.Create(ctx, r.inst(), keys)
			w.created += n
			if err != nil {
				return again(ctx, &r, err)
			}
			keys = nil
			return nil
		})
		switch {
		case errors.Is(err, store.ErrUnavailable) && ctx.Err() == nil:
			return w.apart(ctx, scopes, keys, err)
		case err != nil || len(keys) == 0:
			return err
		}
		missing, err := w.prepare(ctx, scopes, true)
		if err != nil {
			return r.known(err)
		}
		w.broken = append(w.broken, missing.broken...)
		scopes, keys = missing.scopes, missing.keys
	}
	return nil
}

// apart stores keys one by one, of which a transaction ended with why: somebody may have locked what one of them needs.
func (w *reconciliation) apart(ctx context.Context, scopes []key.Scope, keys []store.Key, why error) error {
	if !w.m.reachable(ctx) {
		return why
	}
	if len(keys) == 1 {
		w.broken = append(w.broken, fmt.Errorf("reconcile purpose %q of scope %q: %w", w.p.purpose, scopes[0], why))
		return nil
	}
	for i := range keys {
		if err := w.store(ctx, scopes[i:i+1], keys[i:i+1]); err != nil {
			return err
		}
	}
	return nil
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
	defer parent.Close()
	data, err := r.m.newDataKey(&fam.Root, head.ID, parent, p, fam.Now)
	return &data, err
}
