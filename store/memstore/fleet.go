package memstore

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// fleet is what instances tell each other.
type fleet struct {
	instances map[key.ID]store.Instance
	leases    map[string]store.Lease
	used      map[key.ID]usage // by data key version
}

type usage struct {
	taken uint64
	since int64 // when four fifths were taken; 0: they were not
}

func (f fleet) clone() fleet {
	return fleet{maps.Clone(f.instances), maps.Clone(f.leases), maps.Clone(f.used)}
}

// Sign is as [store.Fleet] has it.
func (s *Store) Sign(ctx context.Context, in store.Instance) (e store.Epochs, err error) {
	err = s.write(ctx, func(d *state) error {
		e, err = d.sign(in, s.now())
		return err
	})
	if err != nil {
		return store.Epochs{}, err
	}
	return e, nil
}

func (d *state) sign(in store.Instance, now int64) (store.Epochs, error) {
	if err := rows.CheckInstance(&in); err != nil {
		return store.Epochs{}, fmt.Errorf("sign: %w", err)
	}
	e, err := d.allEpochs()
	if err != nil {
		return e, err
	}
	in.Since, in.Signed = now, now
	if old, ok := d.instances[in.ID]; ok {
		in.Since = old.Since
	}
	d.instances[in.ID] = in
	return e, nil
}

func (d *state) allEpochs() (store.Epochs, error) {
	if d.inst == nil {
		return store.Epochs{}, store.ErrNotFound
	}
	return store.Epochs{Inst: bytes.Clone(d.inst.Inst), Seq: d.inst.Seq, Keys: d.epochs}, nil
}

func (q queries) Roll(ctx context.Context) (store.Roll, error) {
	d, err := q.view.read(ctx)
	if err != nil {
		return store.Roll{}, err
	}
	list := slices.SortedFunc(maps.Values(d.instances), func(a, b store.Instance) int {
		return cmp.Or(cmp.Compare(a.Since, b.Since), strings.Compare(string(a.ID), string(b.ID)))
	})
	return store.Roll{Now: q.view.now(), Epochs: d.epochs, Instances: list}, nil
}

// Leave is as [store.Fleet] has it.
func (s *Store) Leave(ctx context.Context, id key.ID) error {
	return s.write(ctx, func(d *state) error {
		delete(d.instances, id)
		return nil
	})
}

// Due is as [store.Fleet] has it.
func (s *Store) Due(ctx context.Context, buckets store.BucketSet, after store.Due, limit int) ([]store.Due, error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := rows.CheckAfter(after.KeyID); err != nil {
		return nil, fmt.Errorf("list due keys: %w", err)
	}
	var due []store.Due
	for _, k := range d.keys {
		if buckets.Has(store.Bucket(k.ID)) {
			due = append(due, d.due(k, s.now())...)
		}
	}
	due = slices.DeleteFunc(due, func(due store.Due) bool { return compareDue(due, after) <= 0 })
	slices.SortFunc(due, compareDue)
	return due[:min(max(limit, 0), len(due))], nil
}

func compareDue(a, b store.Due) int {
	return cmp.Or(cmp.Compare(a.At, b.At), strings.Compare(string(a.KeyID), string(b.KeyID)), cmp.Compare(a.Why, b.Why))
}

// due is what there is to do at one key.
func (d *state) due(k *store.Key, now int64) []store.Due {
	scope := k.Scope
	if k.Kind == key.DEK && d.keys[k.RootKeyID] != nil {
		scope = d.keys[k.RootKeyID].Scope
	}
	var list []store.Due
	add := func(why store.Why, at int64) {
		list = append(list, store.Due{At: at, KeyID: k.ID, Why: why, Scope: scope, Purpose: k.Purpose, Head: k.Head})
	}
	if k.RotateAt != 0 && k.RotateAt <= now {
		add(store.Old, k.RotateAt)
	}
	if len(k.Versions) == 0 {
		return list // as only Edit leaves it
	}
	if newest := k.Versions[len(k.Versions)-1]; newest.State == key.Pending {
		add(store.Pending, newest.Created)
	}
	if head := versionOf(k, k.Head); head != nil && d.used[head.ID].since != 0 {
		add(store.Used, d.used[head.ID].since)
	}
	return list
}

// Upcoming is as [store.Fleet] has it.
func (s *Store) Upcoming(ctx context.Context) (now, at int64, err error) {
	d, err := s.read(ctx)
	if err != nil {
		return 0, 0, err
	}
	now = s.now()
	for _, k := range d.keys {
		if k.RotateAt > now && (at == 0 || k.RotateAt < at) {
			at = k.RotateAt
		}
	}
	return now, at, nil
}

// Lagging is as [store.Fleet] has it.
func (s *Store) Lagging(ctx context.Context, after key.ID, limit int) (scopes []key.Scope, next key.ID, err error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, "", err
	}
	if err := rows.CheckAfter(after); err != nil {
		return nil, "", fmt.Errorf("list scopes to rewrap: %w", err)
	}
	for _, id := range slices.Sorted(maps.Keys(d.data)) {
		if limit <= 0 || id <= after || !d.lags(id) {
			continue
		}
		if len(scopes) >= limit {
			return scopes, next, nil
		}
		scopes, next = append(scopes, d.keys[id].Scope), id
	}
	return scopes, "", nil
}

func (d *state) lags(root key.ID) bool {
	k := d.keys[root]
	if k == nil {
		return false
	}
	head := versionOf(k, k.Head)
	for _, id := range d.data[root] {
		for _, v := range d.keys[id].Versions {
			if head == nil || v.Parent != head.ID {
				return true
			}
		}
	}
	return false
}

// Lease is as [store.Fleet] has it.
func (s *Store) Lease(ctx context.Context, name string, owner key.ID, seconds int64) (l store.Lease, ok bool, err error) {
	err = s.write(ctx, func(d *state) error {
		l, ok, err = d.lease(name, owner, seconds, s.now())
		return err
	})
	if err != nil || !ok {
		return store.Lease{}, false, err
	}
	return l, true, nil
}

func (d *state) lease(name string, owner key.ID, seconds, now int64) (store.Lease, bool, error) {
	if err := rows.CheckLease(name, owner, seconds); err != nil {
		return store.Lease{}, false, err
	}
	l := d.leases[name]
	switch {
	case l.Until <= now:
		l = store.Lease{Name: name, Owner: owner, Fence: l.Fence + 1}
	case l.Owner != owner:
		return store.Lease{}, false, nil
	}
	l.Until = now + seconds
	d.leases[name] = l
	return l, true, nil
}

// Release is as [store.Fleet] has it.
func (s *Store) Release(ctx context.Context, l store.Lease) error {
	return s.write(ctx, func(d *state) error {
		if have, ok := d.leases[l.Name]; ok && have.Owner == l.Owner && have.Fence == l.Fence {
			have.Until = 0
			d.leases[l.Name] = have
		}
		return nil
	})
}

// holds says whether what is done under the lease may be done; under none it may.
func (d *state) holds(l *store.Lease, now int64) bool {
	if l == nil {
		return true
	}
	have, ok := d.leases[l.Name]
	return ok && have.Owner == l.Owner && have.Fence == l.Fence && have.Until > now
}

func (q queries) Take(ctx context.Context, id key.ID, n, limit uint64) (given uint64, err error) {
	err = q.view.write(ctx, func(d *state) error {
		given, err = d.take(id, n, limit, q.view.now())
		return err
	})
	if err != nil {
		return 0, err
	}
	return given, nil
}

func (d *state) take(id key.ID, n, limit uint64, now int64) (uint64, error) {
	if err := rows.CheckTake(n, limit); err != nil {
		return 0, fmt.Errorf("take messages of %q: %w", string(id), err)
	}
	k := d.keys[d.versions[id]]
	if k == nil || k.Kind != key.DEK || !slices.ContainsFunc(k.Versions, func(v store.Version) bool { return v.ID == id }) {
		return 0, store.ErrNotFound
	}
	u := d.used[id]
	given := uint64(0)
	if u.taken < limit {
		given = min(n, limit-u.taken)
	}
	u.taken += given
	switch {
	case u.taken < rows.UsedFrom(limit):
		u.since = 0
	case u.since == 0:
		u.since = now
	}
	d.used[id] = u
	return given, nil
}

// Tidy is as [store.Fleet] has it. There is one row for each epoch, and nothing to add up.
func (s *Store) Tidy(ctx context.Context) (more bool, err error) {
	return false, s.write(ctx, func(d *state) error {
		now := s.now()
		maps.DeleteFunc(d.instances, func(_ key.ID, in store.Instance) bool { return in.Gone(now - rows.Day) })
		return nil
	})
}
