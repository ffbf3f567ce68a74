package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Rewrap wraps every version of a scope's data keys under the head of its root key, where it is not yet, and says
// how many it wrapped. The keys stay the same, and so does what they sealed. Each version is replaced by itself, so
// it may be interrupted, repeated, and run by several at once.
//
// A version that does not open is left as it is; the others are rewrapped, and then the error, which joins one for
// each, says which. It takes one round trip for each batch of versions, which is as large as a transaction of about
// 100 ms allows, and two more; [Config.Timeout] limits each of them, and ctx all of it.
func (m *Manager) Rewrap(ctx context.Context, scope key.Scope) (int, error) {
	return m.committed().rewrap(ctx, scope)
}

// RewrapTx is [Manager.Rewrap] inside the application's transaction. After [ErrUnavailable] and [ErrUnknownOutcome]
// that has to be rolled back.
func (m *Manager) RewrapTx(ctx context.Context, tx store.Tx, scope key.Scope) (int, error) {
	return m.inside(tx).rewrap(ctx, scope)
}

func (r reader) rewrap(ctx context.Context, scope key.Scope) (total int, err error) {
	ctx, sp := r.m.telemetry.span(ctx, "keyhold.rewrap")
	defer func() { sp.end(err) }()
	for {
		fam, err := r.scopeToRewrap(ctx, scope)
		if err != nil {
			return total, r.known(err)
		}
		sp.key(&fam.Root, fam.Root.Head)
		rows, broken := r.rewrapped(&fam.Family)
		if len(rows) == 0 {
			return total, broken
		}
		done, err := r.replace(ctx, rows)
		total += done
		if err == nil && done < len(rows) {
			err = store.ErrConflict // somebody else rewrapped some of it
		}
		// What a batch replaced whose answer was lost is found replaced, and not counted.
		if err := again(ctx, &r, err); err != nil {
			return total, errors.Join(broken, fmt.Errorf("rewrap scope %q: %w", scope, err))
		}
	}
}

// scopeToRewrap reads a scope within the limit of one call; so does each batch, as there is no limit to how many
// there are.
func (r reader) scopeToRewrap(ctx context.Context, scope key.Scope) (family, error) {
	ctx, end, err := r.m.begin(ctx)
	if err != nil {
		return family{}, err
	}
	defer end()
	fam, err := r.scope(ctx, scope)
	if err == nil {
		err = fam.notOlder()
	}
	return fam, err
}

// rewrapped wraps anew what is not under the head of the root key. The error joins what is wrong with versions that
// were left out.
func (r reader) rewrapped(fam *store.Family) ([]store.Rewrap, error) {
	head, _ := headOf(&fam.Root)
	target, err := r.parent(fam, head.ID)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	var rows []store.Rewrap
	var broken []error
	for i := range fam.Data {
		data := &fam.Data[i]
		for j := range data.Versions {
			v := &data.Versions[j]
			if v.Parent == head.ID {
				continue
			}
			blob, err := r.wrapAnew(fam, data, v, target)
			if err != nil {
				broken = append(broken, err)
				continue
			}
			rows = append(rows, store.Rewrap{ID: v.ID, Old: v.Blob, Blob: blob, Parent: head.ID})
		}
	}
	return rows, errors.Join(broken...)
}

// wrapAnew opens a version, wraps it under target, and opens that again: nothing replaces a wrapped key but what was
// seen to open.
func (r reader) wrapAnew(fam *store.Family, data *store.Key, v *store.Version, target *seal.Parent) ([]byte, error) {
	if err := usableParent(fam, v.Parent); err != nil {
		return nil, err
	}
	return r.wrapUnder(fam, data, v, target)
}

// wrapUnder is wrapAnew for a version of any key in any state.
func (r reader) wrapUnder(fam *store.Family, its *store.Key, v *store.Version, target *seal.Parent) ([]byte, error) {
	k, err := r.unwrap(fam, its, v)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	blob, err := target.Wrap(k, v.Number, v.Created)
	if err != nil {
		return nil, err
	}
	again, err := target.Unwrap(k.Identity(), v.Number, v.Created, k.Commit(), blob)
	if err != nil {
		return nil, fmt.Errorf("open version %s as it was just wrapped: %w", v.ID, err)
	}
	again.Close()
	return blob, nil
}

// replace stores rewrapped keys in batches.
func (r reader) replace(ctx context.Context, rows []store.Rewrap) (int, error) {
	total := 0
	for p := (pace{}); len(rows) > 0; {
		batch := rows[:min(len(rows), p.next())]
		began := r.m.epochs.clock()
		n, err := r.replaceBatch(ctx, batch)
		total += n
		if err != nil {
			return total, err
		}
		p.took(len(batch), r.m.epochs.clock().since(began))
		rows = rows[len(batch):]
	}
	return total, nil
}

func (r reader) replaceBatch(ctx context.Context, batch []store.Rewrap) (int, error) {
	ctx, end, err := r.m.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	n, err := r.q.Rewrap(ctx, r.inst(), batch, r.under)
	if !r.tx && n > 0 {
		r.m.telemetry.count(ctx, r.m.telemetry.rewrapped, n)
	}
	return n, err
}
