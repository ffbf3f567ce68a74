package memstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// The columns that there are: the one that [Store.Refer] stands for, and that of the wrapping root key version.
var (
	referring = store.Column{Table: "secret", Column: "key_id"}
	wrapping  = store.Column{Table: Prefix + "_data_key_version", Column: "root_key_version_id"}
)

func (q queries) References(ctx context.Context, id key.ID) ([]store.Reference, error) {
	d, err := q.view.read(ctx)
	if err != nil {
		return nil, err
	}
	return d.references(id), nil
}

func (d *state) references(id key.ID) []store.Reference {
	if kind, _ := id.Kind(); kind == key.KEK {
		return []store.Reference{{Column: wrapping, ForeignKey: true, Rows: d.wrapped(id)}}
	}
	rows := int64(len(d.referred))
	if id != "" {
		rows = 0
		if d.referred[id] {
			rows = 1
		}
	}
	list := []store.Reference{{Column: referring, ForeignKey: true, Rows: rows}}
	for c := range d.columns {
		list = append(list, store.Reference{Column: c})
	}
	slices.SortFunc(list, func(a, b store.Reference) int { return strings.Compare(a.Column.String(), b.Column.String()) })
	return list
}

func (q queries) Shred(ctx context.Context, inst [16]byte, scope key.Scope) (done store.Shredded, err error) {
	err = q.view.write(ctx, func(d *state) error {
		root := d.scopes[scope]
		if root == "" || !d.is(inst) {
			return fmt.Errorf("shred scope %q: %w", scope, store.ErrNotFound)
		}
		for _, id := range append([]key.ID{root}, d.data[root]...) {
			for i := range d.keys[id].Versions {
				if id != root {
					if err := d.unused(&d.keys[id].Versions[i]); err != nil {
						return fmt.Errorf("shred scope %q: %w", scope, err)
					}
				}
				done.Versions++
			}
		}
		required := d.tenants[scope]
		d.deleteScope(scope, q.view.now())
		if required {
			d.tenants[scope] = true // it is the application's row, which stays
		}
		return nil
	})
	if err != nil {
		return store.Shredded{}, err
	}
	return done, nil
}

// wrapped is how many data key versions a root key version wraps.
func (d *state) wrapped(id key.ID) (n int64) {
	for _, k := range d.keys {
		for _, v := range k.Versions {
			if k.Kind == key.DEK && v.Parent == id {
				n++
			}
		}
	}
	return n
}

// Register is as [store.Store] has it. Every column is there, and empty.
func (s *Store) Register(ctx context.Context, c store.Column) error {
	return s.write(ctx, func(d *state) error {
		if c.Table == "" || c.Column == "" {
			return fmt.Errorf("register column %v: %w", c, store.ErrNotFound)
		}
		d.columns[c] = true
		return nil
	})
}

// Unregister is as [store.Store] has it.
func (s *Store) Unregister(ctx context.Context, c store.Column) error {
	return s.write(ctx, func(d *state) error {
		if !d.columns[c] {
			return fmt.Errorf("unregister column %v: %w", c, store.ErrNotFound)
		}
		delete(d.columns, c)
		return nil
	})
}

// Purposes is as [store.Store] has it.
func (s *Store) Purposes(ctx context.Context) ([]store.Purpose, error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(d.purposes), func(a, b store.Purpose) int {
		return strings.Compare(string(a.Purpose), string(b.Purpose))
	}), nil
}

// AddPurposes is as [store.Store] has it.
func (s *Store) AddPurposes(ctx context.Context, purposes []store.Purpose) error {
	return s.write(ctx, func(d *state) error {
		for _, p := range purposes {
			if err := p.Purpose.Validate(); err != nil {
				return fmt.Errorf("add a purpose: %w", err)
			}
			if p.Alg == key.Imported || !p.Alg.Known() {
				return fmt.Errorf("add purpose %q: no key is made for alg %v", p.Purpose, p.Alg)
			}
			if _, there := d.purposes[p.Purpose]; !there {
				p.Created = s.now()
				d.purposes[p.Purpose] = p
			}
		}
		return nil
	})
}

// Families is as [store.Store] has it.
func (s *Store) Families(ctx context.Context, scopes []key.Scope) ([]store.Family, store.Epochs, error) {
	if len(scopes) > store.MaxFamilies {
		return nil, store.Epochs{}, fmt.Errorf("read %d scopes: the limit is %d", len(scopes), store.MaxFamilies)
	}
	d, err := s.read(ctx)
	if err != nil {
		return nil, store.Epochs{}, err
	}
	var list []store.Family
	read := map[key.Scope]bool{}
	for _, scope := range scopes {
		if root := d.keys[d.scopes[scope]]; root != nil && !read[scope] {
			list = append(list, d.family(s.now(), root.ID, d.data[root.ID]))
			read[scope] = true
		}
	}
	e, err := d.allEpochs()
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return list, e, err
}

// Keys is as [store.Store] has it.
func (s *Store) Keys(ctx context.Context, refs []key.Ref) ([]store.Family, error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	var list []store.Family
	for _, ref := range refs {
		f, root := store.Family{Now: s.now()}, d.scopes[ref.Scope]
		if d.keys[root] != nil {
			f = d.family(s.now(), root, d.dataKey(root, ref.Purpose))
		}
		f.Epoch = 0
		list = append(list, f)
	}
	return list, nil
}

// WasDestroyed is as [store.Store] has it.
func (s *Store) WasDestroyed(ctx context.Context, id key.ID) (bool, error) {
	d, err := s.read(ctx)
	if err != nil {
		return false, err
	}
	of, known := d.versions[id]
	live := func(v store.Version) bool { return v.ID == id }
	return known && (of == "" || !slices.ContainsFunc(d.keys[of].Versions, live)), nil
}

// Lacking is as [store.Store] has it.
func (s *Store) Lacking(ctx context.Context, p key.Purpose, after key.Scope, limit int) ([]key.Scope, error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	var list []key.Scope
	for _, scope := range slices.Sorted(maps.Keys(d.scopes)) {
		if len(list) >= limit {
			break
		}
		if scope > after && len(d.dataKey(d.scopes[scope], p)) == 0 {
			list = append(list, scope)
		}
	}
	return list, nil
}
