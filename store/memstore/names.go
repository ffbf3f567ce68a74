package memstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// nameID is what a [store.Name] is found by.
type nameID struct {
	root    key.ID
	purpose key.Purpose
}

func (q queries) Name(ctx context.Context, ref key.Ref) (store.Family, store.Name, error) {
	d, err := q.view.read(ctx)
	if err != nil {
		return store.Family{}, store.Name{}, err
	}
	root := d.scopes[ref.Scope]
	if root == "" {
		return store.Family{Now: q.view.now()}, store.Name{}, store.ErrNotFound
	}
	return d.family(q.view.now(), root, nil), cloneName(d.names[nameID{root, ref.Purpose}]), nil
}

// Named is as [store.Store] has it.
func (s *Store) Named(ctx context.Context, scope key.Scope, after key.Purpose, limit int) ([]store.Named, error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	root := d.scopes[scope]
	found := map[key.Purpose]store.Named{}
	for id, n := range d.names {
		if id.root == root && !n.Removed {
			found[n.Purpose] = store.Named{Purpose: n.Purpose, Generator: n.Generator}
		}
	}
	for _, id := range d.data[root] {
		k := d.keys[id]
		if v := versionOf(k, k.Head); v != nil && v.Alg == key.Raw {
			found[k.Purpose] = store.Named{
				Purpose: k.Purpose, Generator: k.Generator, Head: k.Head, RotateEvery: k.RotateEvery,
			}
		}
	}
	var list []store.Named
	for _, p := range slices.Sorted(maps.Keys(found)) {
		if p > after && len(list) < limit {
			list = append(list, found[p])
		}
	}
	return list, nil
}

// NamesNotUnder is as [store.Store] has it.
func (s *Store) NamesNotUnder(ctx context.Context, kid [16]byte, limit int) ([]store.Name, error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	var list []store.Name
	for _, n := range d.sortedNames() {
		if !bytes.Equal(n.IKKID, kid[:]) && len(list) < limit {
			list = append(list, cloneName(n))
		}
	}
	return list, nil
}

func (d *state) sortedNames() []store.Name {
	return slices.SortedFunc(maps.Values(d.names), func(a, b store.Name) int {
		return cmp.Or(cmp.Compare(a.RootKeyID, b.RootKeyID), cmp.Compare(a.Purpose, b.Purpose))
	})
}

// PutName is as [store.Store] has it.
func (s *Store) PutName(ctx context.Context, inst [16]byte, from uint64, n store.Name) error {
	return s.write(ctx, func(d *state) error { return d.putName(inst, from, n) })
}

func (d *state) putName(inst [16]byte, from uint64, n store.Name) error {
	if err := checkName(from, &n); err != nil {
		return fmt.Errorf("store name %q: %w", n.Purpose, err)
	}
	id := nameID{n.RootKeyID, n.Purpose}
	stored := d.names[id]
	switch {
	case !d.is(inst) || stored.Seq != from:
		return store.ErrConflict
	case d.keys[n.RootKeyID] == nil || d.keys[n.RootKeyID].Kind != key.KEK:
		return fmt.Errorf("store name %q, whose root key is not there: %w", n.Purpose, store.ErrConflict)
	case !d.hasIK(n.IKKID):
		return errMissingIK
	case n.Removed && len(d.dataKey(n.RootKeyID, n.Purpose)) > 0:
		return fmt.Errorf("store name %q as removed, of which there is a data key: %w", n.Purpose, store.ErrConflict)
	case n.Last < stored.Last:
		return fmt.Errorf("store name %q: the last number goes back from %d to %d", n.Purpose, stored.Last, n.Last)
	}
	d.names[id] = cloneName(n)
	return nil
}

// checkName looks at the rules for a name by itself.
func checkName(from uint64, n *store.Name) error {
	if n.Seq <= from {
		return fmt.Errorf("the sequence number goes from %d to %d", from, n.Seq)
	}
	if n.Last > key.MaxVersion {
		return fmt.Errorf("the last number cannot be %d", n.Last)
	}
	return errors.Join(
		n.Purpose.Validate(),
		number("sequence number", n.Seq, 1),
		checkGenerator(n.Generator),
		length("ik_kid", n.IKKID, 16),
		length("mac", n.MAC, 32),
	)
}

func checkGenerator(name string) error {
	if len(name) > 255 || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return errors.New("a generator's name is at most 255 bytes of UTF-8, with no control character")
	}
	return nil
}

// RemoveKey is as [store.Store] has it.
func (s *Store) RemoveKey(ctx context.Context, inst [16]byte, id key.ID, keyFrom, from uint64, n store.Name) error {
	return s.write(ctx, func(d *state) error { return d.removeKey(inst, id, keyFrom, from, n, s.now()) })
}

func (d *state) removeKey(inst [16]byte, id key.ID, keyFrom, from uint64, n store.Name, now int64) error {
	k := d.keys[id]
	if !d.is(inst) || k == nil || k.Kind != key.DEK || k.Seq != keyFrom {
		return store.ErrConflict
	}
	if last := key.Version(len(k.Versions) + len(k.Tombstones)); !n.Removed || n.Last < last ||
		n.RootKeyID != k.RootKeyID || n.Purpose != k.Purpose {
		return fmt.Errorf("remove key %s: its name has to say so, and that its numbers went to %d", id, last)
	}
	for i := range k.Versions {
		if err := d.unused(&k.Versions[i]); err != nil {
			return fmt.Errorf("remove key %s: %w", id, err)
		}
	}
	i, _ := d.purposeIndex(k.RootKeyID, k.Purpose)
	d.data[k.RootKeyID] = slices.Delete(slices.Clone(d.data[k.RootKeyID]), i, i+1)
	d.bury(k, now)
	return d.putName(inst, from, n)
}

// checkNumbers refuses a new key whose numbers do not go on where those of a removed one of its name ended.
func (d *state) checkNumbers(k *store.Key) error {
	if n := d.names[nameID{k.RootKeyID, k.Purpose}]; n.Removed || n.Last >= k.Head {
		return fmt.Errorf("its name is removed, or had a key with numbers up to %d: %w", n.Last, store.ErrConflict)
	}
	return nil
}

func cloneName(n store.Name) store.Name {
	n.IKKID, n.MAC = bytes.Clone(n.IKKID), bytes.Clone(n.MAC)
	return n
}
