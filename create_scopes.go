package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// CreateScopes is [Manager.CreateScope] for many scopes, and says how many of them it created: the others were there,
// or were refused. It may be interrupted and repeated, and any number of processes may do it at once; one that is named
// twice is one. The scopes stay the caller's.
//
// A scope that is refused does not keep the others from being created: the error joins one for each, which names it,
// and is one of those of CreateScope; [ErrUnavailable] if somebody has locked what it needs for longer than
// [Config.Timeout]. A name that is malformed is found before anything is written. When the database is away, or ctx
// ends, some of the scopes are there, each whole.
//
// It takes about four round trips for each hundred scopes or more, and some more for those that are refused, or that
// others create at the same time. [Config.Timeout] limits each step, and ctx all of it.
func (m *Manager) CreateScopes(ctx context.Context, scopes []Scope) (int, error) {
	c := &creation{m: m}
	var wanted []key.Scope
	for _, scope := range scopes {
		if err := scope.Validate(); err != nil {
			c.broken = append(c.broken, err)
			continue
		}
		wanted = append(wanted, scope)
	}
	// In one order, in which those who create the same scopes wait for each other, and not all for one another.
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	err := ahead(ctx, func(ctx context.Context) (madeScopes, bool, error) {
		batch := wanted[:min(bulkScopes, len(wanted))]
		wanted = wanted[len(batch):]
		made, err := c.prepare(ctx, batch)
		return made, len(wanted) > 0, err
	}, c.write)
	return c.created, errors.Join(append(c.broken, err)...)
}

// creation is a call of [Manager.CreateScopes].
type creation struct {
	m       *Manager
	pace    pace
	created int
	broken  []error
}

// madeScope is what a scope lacks: all of its keys, or some data keys. It has none if what it lacks is not known.
type madeScope struct {
	scope key.Scope
	keys  []store.Key
}

// root is the id of the root key that was made for the scope, empty if none was.
func (s *madeScope) root() key.ID {
	if len(s.keys) == 0 || s.keys[0].Kind != key.KEK {
		return ""
	}
	return s.keys[0].ID
}

// madeScopes are those of some scopes that lack something, and what is wrong with others.
type madeScopes struct {
	scopes []madeScope
	broken []error
	roots  map[key.Scope]key.ID // of the scopes that are there
}

// prepare reads some scopes, and makes what they lack. Where the database refuses a name, nothing is known of any.
func (c *creation) prepare(ctx context.Context, scopes []key.Scope) (made madeScopes, err error) {
	err = c.m.step(ctx, func(ctx context.Context) (err error) {
		made, err = c.m.committed().prepare(ctx, scopes)
		return err
	})
	if _, invalid := errors.AsType[*key.InvalidError](err); invalid {
		made, err = madeScopes{}, nil
		for _, scope := range scopes {
			made.scopes = append(made.scopes, madeScope{scope: scope})
		}
	}
	return made, err
}

func (r reader) prepare(ctx context.Context, scopes []key.Scope) (made madeScopes, err error) {
	families, _, err := r.m.store.Families(ctx, scopes)
	if err != nil {
		return made, err
	}
	there := make(map[key.Scope]*store.Family, len(families))
	made.roots = make(map[key.Scope]key.ID, len(families))
	for i := range families {
		root := &families[i].Root
		there[root.Scope], made.roots[root.Scope] = &families[i], root.ID
	}
	now := int64(0)
	for _, scope := range scopes {
		r.m.forgetOthers(scope, made.roots[scope])
		if there[scope] == nil && now == 0 {
			fam, err := r.q.Key(ctx, key.Ref{Scope: scope})
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return made, err
			}
			now = fam.Now
		}
	}
	all, errs := make([]madeScope, len(scopes)), make([]error, len(scopes))
	inParallel(len(scopes), func(i int) {
		keys, err := r.lacking(ctx, scopes[i], there[scopes[i]], now)
		all[i], errs[i] = madeScope{scopes[i], keys}, err
	})
	for i, err := range errs {
		switch {
		case err == nil && len(all[i].keys) > 0, errors.Is(err, store.ErrNotFound): // it was deleted meanwhile
			made.scopes = append(made.scopes, all[i])
		case err == nil:
		case isAway(err), ctx.Err() != nil:
			return made, err
		default:
			made.broken = append(made.broken, err)
		}
	}
	return made, nil
}

// lacking makes the keys that a scope lacks. read is nil if it is not there.
func (r reader) lacking(ctx context.Context, scope key.Scope, read *store.Family, now int64) ([]store.Key, error) {
	if read == nil {
		return r.m.newFamily(now, scope)
	}
	fam, err := r.once(ctx, *read)
	if err != nil {
		return nil, err
	}
	return r.missingKeys(ctx, &fam)
}

// write stores what some scopes lack.
func (c *creation) write(ctx context.Context, made madeScopes) error {
	c.broken = append(c.broken, made.broken...)
	for rest := made.scopes; len(rest) > 0; {
		n, rows := c.pace.cut(len(rest), func(i int) int { return 2 * len(rest[i].keys) })
		began := c.m.epochs.clock()
		if err := c.store(ctx, rest[:n], true); err != nil {
			return err
		}
		c.pace.took(rows, c.m.epochs.clock().since(began))
		rest = rest[n:]
	}
	return nil
}

// store stores what some scopes lack. If others were first, or it is unknown whether it is stored, it reads them again.
// What the database refuses is one of them: it divides them, down to one by itself.
func (c *creation) store(ctx context.Context, scopes []madeScope, reads bool) error {
	err := c.storeBatch(ctx, scopes)
	switch {
	case err == nil:
		for i := range scopes {
			if scopes[i].root() != "" {
				c.created++
			}
		}
		return nil
	case ctx.Err() != nil, errors.Is(err, ErrClosed):
		return err
	case errors.Is(err, store.ErrUnavailable):
		return c.apart(ctx, scopes, err)
	case len(scopes) == 1:
		return c.one(ctx, &scopes[0])
	case reads && (errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrUnknownOutcome)):
		if scopes, err = c.remaining(ctx, scopes, err); err != nil || len(scopes) == 0 {
			return err
		}
		return c.store(ctx, scopes, false)
	}
	half := len(scopes) / 2
	if err := c.store(ctx, scopes[:half], false); err != nil {
		return err
	}
	return c.store(ctx, scopes[half:], false)
}

// apart creates scopes one by one, of which a transaction ended with why: somebody may have locked what one of them
// needs.
func (c *creation) apart(ctx context.Context, scopes []madeScope, why error) error {
	if !c.m.reachable(ctx) {
		return why
	}
	if len(scopes) == 1 {
		c.broken = append(c.broken, fmt.Errorf("create scope %q: %w", scopes[0].scope, why))
		return nil
	}
	for i := range scopes {
		if err := c.one(ctx, &scopes[i]); err != nil {
			return err
		}
	}
	return nil
}

// storeBatch is one transaction.
func (c *creation) storeBatch(ctx context.Context, scopes []madeScope) error {
	var keys []store.Key
	for _, s := range scopes {
		if len(s.keys) == 0 {
			return errors.New("what a scope lacks is not known")
		}
		keys = append(keys, s.keys...)
	}
	return c.m.step(ctx, func(ctx context.Context) error {
		n, err := c.m.store.Create(ctx, c.m.ring.inst, keys)
		if err == nil && n < len(keys) {
			err = store.ErrConflict // somebody else created some of it
		}
		return err
	})
}

// remaining reads some scopes again that were not stored, or not all, and makes what they lack still.
func (c *creation) remaining(ctx context.Context, scopes []madeScope, why error) ([]madeScope, error) {
	if errors.Is(why, store.ErrConflict) {
		if err := c.m.step(ctx, c.m.committed().stillOurs); err != nil {
			return nil, err
		}
	}
	var names []key.Scope
	for i := range scopes {
		names = append(names, scopes[i].scope)
	}
	now, err := c.prepare(ctx, names)
	if err != nil {
		return nil, err
	}
	c.broken = append(c.broken, now.broken...)
	for i := range scopes {
		if root := scopes[i].root(); root != "" && root == now.roots[scopes[i].scope] {
			c.created++
		}
	}
	return now.scopes, nil
}

// one creates a scope by itself.
func (c *creation) one(ctx context.Context, s *madeScope) error {
	var made bool
	err := c.m.step(ctx, func(ctx context.Context) (err error) {
		made, err = c.m.committed().create(ctx, s.scope, s.root())
		return err
	})
	if made {
		c.created++
	}
	switch {
	case err == nil:
	case ctx.Err() != nil, errors.Is(err, ErrClosed), errors.Is(err, store.ErrUnavailable) && !c.m.reachable(ctx):
		return err
	default:
		c.broken = append(c.broken, err)
	}
	return nil
}
