package memstore

import (
	"context"
	"fmt"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// view is where queries run: a [Store], each call its own transaction, or a [Tx].
type view interface {
	now() int64
	read(ctx context.Context) (*state, error)
	// write calls f with a state that f may change; what it did stays unless it returns an error.
	write(ctx context.Context, f func(*state) error) error
}

type queries struct{ view view }

var (
	_ store.Store   = (*Store)(nil)
	_ store.Queries = queries{}
)

func (q queries) Installation(ctx context.Context) (store.Installation, error) {
	d, err := q.view.read(ctx)
	if err != nil {
		return store.Installation{}, err
	}
	if d.inst == nil {
		return store.Installation{}, store.ErrNotFound
	}
	return cloneInstallation(d.inst), nil
}

// Epochs is as [store.Store] has it.
func (s *Store) Epochs(ctx context.Context) (store.Epochs, error) {
	d, err := s.read(ctx)
	if err != nil {
		return store.Epochs{}, err
	}
	return d.allEpochs()
}

func (q queries) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	return q.family(ctx, func(d *state) (key.ID, []key.ID) {
		root := d.scopes[ref.Scope]
		if ref.IsRoot() {
			return root, nil
		}
		return root, d.dataKey(root, ref.Purpose)
	})
}

func (q queries) KeyOfVersion(ctx context.Context, id key.ID) (store.Family, error) {
	return q.family(ctx, func(d *state) (key.ID, []key.ID) {
		k := d.keys[d.versions[id]]
		switch {
		case k == nil:
			return "", nil
		case k.Kind == key.KEK:
			return k.ID, nil
		default:
			return k.RootKeyID, []key.ID{k.ID}
		}
	})
}

func (q queries) Scope(ctx context.Context, scope key.Scope) (store.Family, error) {
	return q.family(ctx, func(d *state) (key.ID, []key.ID) {
		root := d.scopes[scope]
		return root, d.data[root]
	})
}

// family returns the root key and the data keys that find names.
func (q queries) family(ctx context.Context, find func(*state) (root key.ID, data []key.ID)) (store.Family, error) {
	d, err := q.view.read(ctx)
	if err != nil {
		return store.Family{}, err
	}
	id, data := find(d)
	if d.keys[id] == nil {
		return store.Family{Now: q.view.now()}, store.ErrNotFound
	}
	return d.family(q.view.now(), id, data), nil
}

func (d *state) family(now int64, root key.ID, data []key.ID) store.Family {
	f := store.Family{Now: now, Root: cloneKey(d.keys[root])}
	if d.inst != nil {
		f.Roots = d.inst.Seq
	}
	for _, id := range data {
		f.Data = append(f.Data, cloneKey(d.keys[id]))
	}
	epochs := store.Epochs{Keys: d.epochs}
	f.Epoch = epochs.Of(append([]key.ID{root}, data...)...)
	return f
}

func (q queries) Scopes(ctx context.Context, after key.Scope, limit int) ([]key.Scope, error) {
	d, err := q.view.read(ctx)
	if err != nil {
		return nil, err
	}
	var scopes []key.Scope
	for scope := range d.scopes {
		if scope > after {
			scopes = append(scopes, scope)
		}
	}
	slices.Sort(scopes)
	return scopes[:min(max(limit, 0), len(scopes))], nil
}

func (q queries) Create(ctx context.Context, inst [16]byte, keys []store.Key) (n int, err error) {
	err = q.view.write(ctx, func(d *state) error {
		n, err = d.create(inst, keys, q.view.now())
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (q queries) Update(ctx context.Context, u store.Update) error {
	return q.view.write(ctx, func(d *state) error { return d.update(u, q.view.now()) })
}

// UpdateAll is as [store.Store] has it.
func (s *Store) UpdateAll(ctx context.Context, updates []store.Update) (made []bool, err error) {
	if err := rows.CheckUpdates(updates); err != nil {
		return nil, fmt.Errorf("update keys: %w", err)
	}
	made = make([]bool, len(updates))
	err = s.write(ctx, func(d *state) error {
		for i := range updates {
			u := &updates[i]
			if !d.isThere(u, s.now()) {
				continue
			}
			if err := d.update(*u, s.now()); err != nil {
				return err
			}
			made[i] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

func (q queries) Rewrap(ctx context.Context, inst [16]byte, rows []store.Rewrap, under *store.Lease) (n int, err error) {
	err = q.view.write(ctx, func(d *state) error {
		n, err = d.rewrap(inst, rows, under, q.view.now())
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}
