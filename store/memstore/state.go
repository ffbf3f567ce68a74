package memstore

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// state is the content of the database. What the pointers and slices in it refer to is shared between states and never
// changed: who changes a row puts a new one in its place.
type state struct {
	schema  int
	foreign string
	inst    *store.Installation
	keys    map[key.ID]*store.Key
	scopes  map[key.Scope]key.ID // root keys
	data    map[key.ID][]key.ID  // of a root key, its data keys by purpose
	// versions has every id that a version ever had, and the key it is of: live, a tombstone, or, with an empty key,
	// one in graves.
	versions map[key.ID]key.ID
	graves   []store.Tombstone // of versions whose key is gone
	epochs   [store.Buckets]uint64
	tenants  map[key.Scope]bool
	names    map[nameID]store.Name
	referred map[key.ID]bool
	purposes map[key.Purpose]store.Purpose
	columns  map[store.Column]bool // that were registered
	escrows  []store.Escrow

	fleet
}

func newState() *state {
	return &state{
		keys:     map[key.ID]*store.Key{},
		scopes:   map[key.Scope]key.ID{},
		data:     map[key.ID][]key.ID{},
		versions: map[key.ID]key.ID{},
		names:    map[nameID]store.Name{},
		referred: map[key.ID]bool{},
		purposes: map[key.Purpose]store.Purpose{},
		columns:  map[store.Column]bool{},
		fleet: fleet{
			instances: map[key.ID]store.Instance{},
			leases:    map[string]store.Lease{},
			used:      map[key.ID]usage{},
		},
	}
}

func (d *state) clone() *state {
	c := *d
	c.keys = maps.Clone(d.keys)
	c.scopes = maps.Clone(d.scopes)
	c.data = maps.Clone(d.data)
	c.versions = maps.Clone(d.versions)
	c.graves = slices.Clip(d.graves)
	c.names = maps.Clone(d.names)
	c.tenants = maps.Clone(d.tenants)
	c.referred = maps.Clone(d.referred)
	c.purposes, c.columns = maps.Clone(d.purposes), maps.Clone(d.columns)
	c.fleet = d.fleet.clone()
	return &c
}

func (d *state) checkSchema() error {
	if d.schema == store.SchemaVersion && d.foreign == "" {
		return nil
	}
	return &store.SchemaError{Prefix: Prefix, Have: d.schema, Want: store.SchemaVersion, Foreign: d.foreign}
}

func (d *state) migrate() error {
	if d.schema > store.SchemaVersion || d.foreign != "" {
		return d.checkSchema()
	}
	d.schema = store.SchemaVersion
	return nil
}

func (d *state) initialize(in store.Installation, now int64) error {
	if d.inst != nil {
		return store.ErrConflict
	}
	in = cloneInstallation(&in)
	in.Created = now
	in.Keys = []store.InstallationKey{{KID: bytes.Clone(in.IKKID), Created: now}}
	for i := range in.Slots {
		s := &in.Slots[i]
		if s.Removed != 0 || s.State == key.Destroyed {
			return fmt.Errorf("initialize: slot %s is removed", s.ID)
		}
		s.Created, s.Activated, s.Retired = now, 0, 0
		enter(s, s.State, now)
	}
	if err := checkInstallation(&in); err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	d.inst = &in
	return nil
}

func (d *state) is(inst [16]byte) bool { return d.inst != nil && bytes.Equal(d.inst.Inst, inst[:]) }

// dataKey is the data key of a root key for a purpose, as a list of one or none.
func (d *state) dataKey(root key.ID, p key.Purpose) []key.ID {
	ids := d.data[root]
	if i, ok := d.purposeIndex(root, p); ok {
		return ids[i : i+1 : i+1]
	}
	return nil
}

func (d *state) purposeIndex(root key.ID, p key.Purpose) (int, bool) {
	return slices.BinarySearchFunc(d.data[root], p, func(id key.ID, p key.Purpose) int {
		return strings.Compare(string(d.keys[id].Purpose), string(p))
	})
}

func (d *state) create(inst [16]byte, keys []store.Key, now int64) (int, error) {
	if !d.is(inst) {
		return 0, nil
	}
	n := 0
	for i := range keys {
		k := cloneKey(&keys[i])
		if k.Kind != key.KEK && k.Kind != key.DEK {
			return 0, fmt.Errorf("create key %s: a key cannot be of kind %q", k.ID, k.Kind)
		}
		if d.leftOut(&k) {
			continue
		}
		for j := range k.Versions {
			k.Versions[j].Disabled = 0
		}
		for j := range k.Tombstones {
			k.Tombstones[j].Destroyed = now
		}
		if err := d.checkNew(&k); err != nil {
			return 0, fmt.Errorf("create key %s: %w", k.ID, err)
		}
		d.insert(&k)
		n++
	}
	return n, nil
}

func (d *state) leftOut(k *store.Key) bool {
	if k.Kind == key.KEK {
		return d.scopes[k.Scope] != ""
	}
	return d.keys[k.RootKeyID] == nil || len(d.dataKey(k.RootKeyID, k.Purpose)) > 0
}

// insert puts a key and its index entries in place, with no rule looked at.
func (d *state) insert(k *store.Key) {
	if k.Kind == key.KEK {
		d.scopes[k.Scope] = k.ID
	} else {
		i, _ := d.purposeIndex(k.RootKeyID, k.Purpose)
		d.data[k.RootKeyID] = slices.Insert(slices.Clone(d.data[k.RootKeyID]), i, k.ID)
	}
	d.keys[k.ID] = k
	for _, v := range k.Versions {
		d.versions[v.ID] = k.ID
	}
	for _, t := range k.Tombstones {
		if t.ID != "" {
			d.versions[t.ID] = k.ID
		}
	}
}

func (d *state) update(u store.Update, now int64) error {
	if !d.isThere(&u, now) {
		return store.ErrConflict
	}
	k := cloneKey(d.keys[u.KeyID])
	if err := d.apply(&k, u, now); err != nil {
		return fmt.Errorf("update key %s: %w", k.ID, err)
	}
	d.keys[k.ID] = &k
	d.changed(k.ID)
	return nil
}

// isThere says whether what u changes is what it was when u was made, and may be changed.
func (d *state) isThere(u *store.Update, now int64) bool {
	k := d.keys[u.KeyID]
	return d.is(u.Inst) && k != nil && k.Kind == u.Kind && k.Seq == u.From && d.holds(u.Lease, now)
}

// changed says that a key's manifest or scope was changed, or the key deleted.
func (d *state) changed(id key.ID) { d.epochs[store.Bucket(id)] += steps.Add(1) }

// steps makes no two steps alike, so that a database which was set back and then changed again shows other epochs than
// before.
var steps atomic.Uint64

// apply changes k as u says, after looking at every rule.
func (d *state) apply(k *store.Key, u store.Update, now int64) error {
	oldHead := k.Head
	if u.Manifest.Seq <= u.From {
		return fmt.Errorf("the sequence number goes from %d to %d", u.From, u.Manifest.Seq)
	}
	k.Manifest = cloneManifest(u.Manifest)
	k.RotateAt = u.RotateAt
	if k.Head < oldHead {
		return fmt.Errorf("the head goes back from version %d to %d", oldHead, k.Head)
	}
	named := map[key.Version]bool{}
	for _, c := range u.States {
		v := versionOf(k, c.Number)
		if v == nil || named[c.Number] || v.State != c.From || !c.From.CanBecome(c.To) || c.To == key.Destroyed {
			return fmt.Errorf("version %d cannot go from %v to %v", c.Number, c.From, c.To)
		}
		named[c.Number] = true
		v.State, v.Disabled = c.To, 0
		if c.To == key.Disabled {
			v.Disabled = now
		}
	}
	for _, n := range u.Destroy {
		if named[n] {
			return fmt.Errorf("version %d is named twice", n)
		}
		named[n] = true
		if err := d.destroy(k, n, now); err != nil {
			return err
		}
	}
	if u.Add != nil {
		v := cloneVersion(*u.Add)
		v.Disabled = 0
		if v.State != key.Pending {
			return fmt.Errorf("version %d is added as %v, not pending", v.Number, v.State)
		}
		if err := d.checkVersion(k, &v); err != nil {
			return err
		}
		k.Versions = append(k.Versions, v)
		d.versions[v.ID] = k.ID
	}
	if err := checkKey(k); err != nil {
		return err
	}
	if !d.hasIK(k.IKKID) || u.Add != nil && k.Kind == key.KEK && !d.hasIK(u.Add.IKKID) {
		return errMissingIK
	}
	for _, c := range u.States {
		if v := versionOf(k, c.Number); k.Kind == key.KEK && c.To == key.Disabled {
			if err := d.unused(v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *state) destroy(k *store.Key, n key.Version, now int64) error {
	v := versionOf(k, n)
	if v == nil || !v.State.CanBecome(key.Destroyed) {
		return fmt.Errorf("version %d cannot be destroyed", n)
	}
	if err := d.unused(v); err != nil {
		return err
	}
	k.Tombstones = append(k.Tombstones, tombstone(v, now))
	slices.SortFunc(k.Tombstones, func(a, b store.Tombstone) int { return int(a.Number) - int(b.Number) })
	delete(d.used, v.ID)
	k.Versions = slices.DeleteFunc(k.Versions, func(v store.Version) bool { return v.Number == n })
	return nil
}

func tombstone(v *store.Version, now int64) store.Tombstone {
	return store.Tombstone{ID: v.ID, Number: v.Number, Alg: v.Alg, Commit: v.Commit, Destroyed: now}
}

// unused is a [*store.InUseError] if anything refers to the version.
func (d *state) unused(v *store.Version) error {
	refs := slices.DeleteFunc(d.references(v.ID), func(r store.Reference) bool { return r.Rows == 0 })
	if len(refs) == 0 {
		return nil
	}
	return &store.InUseError{ID: v.ID, References: refs}
}

func (d *state) rewrap(inst [16]byte, rows []store.Rewrap, under *store.Lease, now int64) (int, error) {
	if !d.is(inst) || !d.holds(under, now) {
		return 0, nil
	}
	n := 0
	for _, r := range rows {
		old := d.keys[d.versions[r.ID]]
		if old == nil {
			continue
		}
		k := cloneKey(old)
		i := slices.IndexFunc(k.Versions, func(v store.Version) bool { return v.ID == r.ID })
		if i < 0 || !bytes.Equal(k.Versions[i].Blob, r.Old) {
			continue
		}
		v := &k.Versions[i]
		v.Blob, v.Parent, v.IKKID = bytes.Clone(r.Blob), r.Parent, bytes.Clone(r.IKKID)
		if err := d.checkWrapping(&k, v); err != nil {
			return 0, fmt.Errorf("rewrap %s: %w", r.ID, err)
		}
		if k.Kind == key.KEK && !d.hasIK(v.IKKID) {
			return 0, fmt.Errorf("rewrap %s: %w", r.ID, errMissingIK)
		}
		d.keys[k.ID] = &k
		n++
	}
	return n, nil
}

func (d *state) deleteScope(scope key.Scope, now int64) {
	root := d.scopes[scope]
	if root == "" {
		return
	}
	for _, id := range append([]key.ID{root}, d.data[root]...) {
		d.bury(d.keys[id], now)
	}
	maps.DeleteFunc(d.names, func(id nameID, _ store.Name) bool { return id.root == root })
	delete(d.scopes, scope)
	delete(d.data, root)
	delete(d.tenants, scope)
}

// bury deletes a key, but for its place among its root key's, and keeps a tombstone of each of its versions.
func (d *state) bury(k *store.Key, now int64) {
	graves := cloneTombstones(k.Tombstones)
	for i := range k.Versions {
		graves = append(graves, tombstone(&k.Versions[i], now))
		delete(d.used, k.Versions[i].ID)
	}
	for _, t := range graves {
		if t.ID != "" {
			d.versions[t.ID] = ""
			d.graves = append(d.graves, t)
		}
	}
	delete(d.keys, k.ID)
	d.changed(k.ID)
}

func (d *state) renameScope(old, renamed key.Scope) error {
	id := d.scopes[old]
	if id == "" || old == renamed {
		return nil
	}
	if err := renamed.Validate(); err != nil {
		return fmt.Errorf("rename scope %q: %w", old, err)
	}
	if d.scopes[renamed] != "" {
		return fmt.Errorf("rename scope %q to %q: %w", old, renamed, store.ErrConflict)
	}
	k := cloneKey(d.keys[id])
	k.Scope = renamed
	d.keys[id] = &k
	d.changed(id)
	delete(d.scopes, old)
	d.scopes[renamed] = id
	if d.tenants[old] {
		delete(d.tenants, old)
		d.tenants[renamed] = true
	}
	return nil
}

func (d *state) requireScopes(scopes []key.Scope) {
	if d.tenants == nil {
		d.tenants = map[key.Scope]bool{}
	}
	for _, s := range scopes {
		d.tenants[s] = true
	}
}

func (d *state) refer(id key.ID) error {
	k := d.keys[d.versions[id]]
	if k == nil || !slices.ContainsFunc(k.Versions, func(v store.Version) bool { return v.ID == id }) {
		return fmt.Errorf("refer to version %s: %w", id, store.ErrForeignKey)
	}
	d.referred[id] = true
	return nil
}

func (d *state) orphans() []string {
	var found []string
	for _, id := range slices.Sorted(maps.Keys(d.keys)) {
		if k := d.keys[id]; k.Kind == key.DEK && d.keys[k.RootKeyID] == nil {
			found = append(found, fmt.Sprintf("data key %s refers to root key %s, which is not there", id, k.RootKeyID))
		}
	}
	for _, n := range d.sortedNames() {
		if d.keys[n.RootKeyID] == nil {
			found = append(found, fmt.Sprintf("name %q is of root key %s, which is not there", n.Purpose, n.RootKeyID))
		}
	}
	return found
}

func versionOf(k *store.Key, n key.Version) *store.Version {
	for i := range k.Versions {
		if k.Versions[i].Number == n {
			return &k.Versions[i]
		}
	}
	return nil
}
