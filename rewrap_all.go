package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// RewrapAll is [Manager.Rewrap] for all scopes that have something to rewrap, many at once, and says how many versions
// it wrapped. done, which may be nil, is called for each of them, one at a time, with the number of its versions that
// were wrapped and with what is wrong with it. What is wrong with one keeps no other from being rewrapped; the error
// joins all of it. It may be interrupted and repeated, and run by several at once. A scope that is changed meanwhile
// may be missed.
//
// It takes a round trip for each thousand scopes, one for each 250 that have something to rewrap, or for 10 000 rows
// of them, and two for each batch of versions, which is as large as a transaction of about 100
// ms allows; [Config.Timeout] limits each of them, and ctx all of it. The other errors are [ErrUnavailable],
// [ErrClosed] and ctx's; those end it.
func (m *Manager) RewrapAll(ctx context.Context, done func(scope Scope, n int, err error)) (int, error) {
	total := 0
	var broken []error
	held := func(context.Context) (*store.Lease, error) { return nil, nil } //nolint:nilnil // as it says: none
	err := m.rewrapAll(ctx, held, func(scope key.Scope, n int, err error) {
		total += n
		if err != nil {
			broken = append(broken, err)
		}
		if done != nil {
			done(scope, n, err)
		}
	})
	return total, errors.Join(append(broken, err)...)
}

// rewraps is the rewrapping of many scopes.
type rewraps struct {
	m     *Manager
	held  func(context.Context) (*store.Lease, error) // under which it is done; it is asked before each transaction
	done  func(scope key.Scope, n int, err error)
	reads readPace
	pace  pace
}

// rewrapAll rewraps all scopes that lag behind, and says of each what was done.
func (m *Manager) rewrapAll(
	ctx context.Context, held func(context.Context) (*store.Lease, error), done func(scope key.Scope, n int, err error),
) error {
	w := &rewraps{m: m, held: held, done: done}
	lagging := pages(&w.reads, func(ctx context.Context, after key.ID) (scopes []key.Scope, next key.ID, err error) {
		err = m.step(ctx, func(ctx context.Context) error {
			scopes, next, err = m.store.Lagging(ctx, after, lagPage)
			return err
		})
		return scopes, next, err
	})
	return ahead(ctx, func(ctx context.Context) ([]rewrapOf, bool, error) {
		scopes, more, err := lagging(ctx)
		if err != nil || len(scopes) == 0 {
			return nil, more, err
		}
		rows, err := w.prepare(ctx, scopes)
		return rows, more, err
	}, w.write)
}

// pages returns the scopes that list lists, as many at once as are to be read, and whether there may be more.
func pages(
	at *readPace, list func(ctx context.Context, after key.ID) ([]key.Scope, key.ID, error),
) func(context.Context) ([]key.Scope, bool, error) {
	var rest []key.Scope
	after, last := key.ID(""), false
	return func(ctx context.Context) (scopes []key.Scope, more bool, err error) {
		if len(rest) == 0 {
			if rest, after, err = list(ctx, after); err != nil {
				return nil, false, err
			}
			last = after == ""
		}
		scopes = rest[:min(at.next(), len(rest))]
		rest = rest[len(scopes):]
		return scopes, len(rest) > 0 || !last, nil
	}
}

// rewrapOf is what is to be replaced in a scope, and what is wrong with versions that are left as they are.
type rewrapOf struct {
	scope  key.Scope
	rows   []store.Rewrap
	broken error
}

// prepare reads some scopes, and wraps their versions anew.
func (w *rewraps) prepare(ctx context.Context, scopes []key.Scope) (all []rewrapOf, err error) {
	r := w.m.committed()
	families, bad, err := w.m.readScopes(ctx, scopes)
	if err != nil {
		return nil, err
	}
	w.reads.read(families)
	all = make([]rewrapOf, len(families)+len(bad))
	for i, b := range bad {
		all[len(families)+i] = rewrapOf{scope: b.scope, broken: fmt.Errorf("rewrap scope %q: %w", b.scope, b.err)}
	}
	err = w.m.step(ctx, func(ctx context.Context) error {
		inParallel(len(families), func(i int) {
			all[i].scope = families[i].Root.Scope
			all[i].rows, all[i].broken = r.rewrappedOnce(ctx, families[i])
		})
		for i := range families {
			if err := all[i].broken; err != nil && (isAway(err) || ctx.Err() != nil) {
				return err
			}
		}
		return nil
	})
	return all, err
}

// rewrappedOnce is rewrapped for a family that was read with others.
func (r reader) rewrappedOnce(ctx context.Context, read store.Family) ([]store.Rewrap, error) {
	fam, err := r.once(ctx, read)
	if err == nil {
		err = fam.notOlder()
	}
	if err != nil {
		return nil, err
	}
	return r.rewrapped(&fam.Family)
}

// write replaces what some scopes have to be replaced.
func (w *rewraps) write(ctx context.Context, scopes []rewrapOf) error {
	for len(scopes) > 0 {
		n, rows := w.pace.cut(len(scopes), func(i int) int { return len(scopes[i].rows) })
		began := w.m.epochs.clock()
		if err := w.replace(ctx, scopes[:n]); err != nil {
			return err
		}
		w.pace.took(rows, w.m.epochs.clock().since(began))
		scopes = scopes[n:]
	}
	return nil
}

// replace is one transaction, unless something was in its way.
func (w *rewraps) replace(ctx context.Context, scopes []rewrapOf) error {
	r := w.m.committed()
	var err error
	if r.under, err = w.held(ctx); err != nil {
		return err
	}
	var rows []store.Rewrap
	for i := range scopes {
		rows = append(rows, scopes[i].rows...)
	}
	replaced := 0
	if len(rows) > 0 && (len(scopes) > 1 || len(rows) <= w.pace.next()) {
		replaced, err = r.replaceBatch(ctx, rows)
	}
	if err == nil && replaced == len(rows) {
		for i := range scopes {
			w.tell(scopes[i].scope, len(scopes[i].rows), scopes[i].broken)
		}
		return nil
	}
	for i := range scopes {
		n, err := w.one(ctx, &scopes[i])
		if errors.Is(err, store.ErrUnavailable) && ctx.Err() == nil && !w.m.reachable(ctx) {
			w.tell(scopes[i].scope, n, nil)
			return err
		}
		w.tell(scopes[i].scope, n, err)
		if ctx.Err() != nil {
			return store.ContextError(ctx)
		}
	}
	return nil
}

// one is for a scope of which not all was replaced, or it is unknown what was: it finds that out, and does the rest.
func (w *rewraps) one(ctx context.Context, s *rewrapOf) (n int, err error) {
	r := w.m.committed()
	if r.under, err = w.held(ctx); err != nil {
		return 0, err
	}
	err = w.m.step(ctx, func(ctx context.Context) error {
		fam, err := r.q.Scope(ctx, s.scope)
		n = countReplaced(&fam, s.rows)
		return err
	})
	if err != nil {
		return n, fmt.Errorf("rewrap scope %q: %w", s.scope, err)
	}
	more, err := r.rewrap(ctx, s.scope)
	return n + more, err
}

// countReplaced is how many of the versions in rows are stored as rows say.
func countReplaced(fam *store.Family, rows []store.Rewrap) (n int) {
	blobs := map[key.ID][]byte{}
	for i := range rows {
		blobs[rows[i].ID] = rows[i].Blob
	}
	for i := range fam.Data {
		for j := range fam.Data[i].Versions {
			v := &fam.Data[i].Versions[j]
			if blob, ok := blobs[v.ID]; ok && bytes.Equal(blob, v.Blob) {
				n++
			}
		}
	}
	return n
}

// tell says what was done for a scope. One that somebody else deleted, or was at, is no failure.
func (w *rewraps) tell(scope key.Scope, n int, err error) {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
		err = nil
	}
	if n > 0 || err != nil {
		w.done(scope, n, err)
	}
}
