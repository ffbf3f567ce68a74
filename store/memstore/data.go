package memstore

import (
	"bytes"
	"maps"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Data is all rows, for tests that change them as somebody who can write to the database would.
type Data struct {
	Schema       int                 // the version of the tables; 0: there are none
	Foreign      string              // see [store.SchemaError]
	Installation *store.Installation // nil if there is none
	Keys         []store.Key         // root keys, then data keys, each by id
	Names        []store.Name        // by root key and purpose
	Graves       []store.Tombstone   // of versions whose key is gone

	// Epochs move on by themselves when keys are changed or deleted, unless they are changed here too.
	Epochs [store.Buckets]uint64
}

// Edit calls f with a copy of all rows and puts what f leaves in their place. No rule is looked at, tables or not; of
// two root keys of one scope, or two data keys of one purpose, it is open which will be read.
func (s *Store) Edit(f func(*Data)) {
	s.db.lock <- struct{}{}
	defer s.release()
	d := s.db.committed.Load()
	data := &Data{Schema: d.schema, Foreign: d.foreign, Graves: cloneTombstones(d.graves), Epochs: d.epochs}
	if d.inst != nil {
		in := cloneInstallation(d.inst)
		data.Installation = &in
	}
	for _, kind := range []key.Kind{key.KEK, key.DEK} {
		for _, id := range slices.Sorted(maps.Keys(d.keys)) {
			if k := d.keys[id]; k.Kind == kind {
				data.Keys = append(data.Keys, cloneKey(k))
			}
		}
	}
	for _, n := range d.sortedNames() {
		data.Names = append(data.Names, cloneName(n))
	}
	f(data)

	next := newState()
	next.schema, next.foreign, next.graves = data.Schema, data.Foreign, cloneTombstones(data.Graves)
	next.tenants, next.referred = d.tenants, d.referred
	next.epochs, next.purposes, next.columns = data.Epochs, d.purposes, d.columns
	next.fleet, next.escrows = d.fleet, d.escrows
	if data.Installation != nil {
		in := cloneInstallation(data.Installation)
		next.inst = &in
	}
	for _, t := range next.graves {
		next.versions[t.ID] = ""
	}
	for _, n := range data.Names {
		next.names[nameID{n.RootKeyID, n.Purpose}] = cloneName(n)
	}
	for i := range data.Keys {
		k := cloneKey(&data.Keys[i])
		next.insert(&k)
	}
	for id, k := range d.keys {
		if edited := next.keys[id]; data.Epochs == d.epochs && (edited == nil || edited.Seq != k.Seq || edited.Scope != k.Scope) {
			next.changed(id)
		}
	}
	s.db.committed.Store(next)
}

// Key returns the row that ref names, to be changed in place, or nil.
func (d *Data) Key(ref key.Ref) *store.Key {
	for i := range d.Keys {
		root := &d.Keys[i]
		if root.Kind != key.KEK || root.Scope != ref.Scope {
			continue
		}
		if ref.IsRoot() {
			return root
		}
		for j := range d.Keys {
			if k := &d.Keys[j]; k.Kind == key.DEK && k.RootKeyID == root.ID && k.Purpose == ref.Purpose {
				return k
			}
		}
	}
	return nil
}

// Version returns the live version with the id, to be changed in place, or nil.
func (d *Data) Version(id key.ID) *store.Version {
	for i := range d.Keys {
		for j := range d.Keys[i].Versions {
			if v := &d.Keys[i].Versions[j]; v.ID == id {
				return v
			}
		}
	}
	return nil
}

func cloneInstallation(in *store.Installation) store.Installation {
	c := *in
	c.Inst, c.IKKID, c.MAC = bytes.Clone(in.Inst), bytes.Clone(in.IKKID), bytes.Clone(in.MAC)
	c.Slots = slices.Clone(in.Slots)
	for i := range c.Slots {
		c.Slots[i] = cloneSlot(c.Slots[i])
	}
	c.Keys = slices.Clone(in.Keys)
	for i := range c.Keys {
		c.Keys[i] = cloneInstallationKey(c.Keys[i])
	}
	return c
}

func cloneSlot(s store.Slot) store.Slot {
	s.IKKID, s.Blob = bytes.Clone(s.IKKID), bytes.Clone(s.Blob)
	return s
}

func cloneInstallationKey(k store.InstallationKey) store.InstallationKey {
	k.KID, k.Previous, k.Link = bytes.Clone(k.KID), bytes.Clone(k.Previous), bytes.Clone(k.Link)
	return k
}

func cloneKey(k *store.Key) store.Key {
	c := *k
	c.Manifest = cloneManifest(k.Manifest)
	c.Versions = slices.Clone(k.Versions)
	for i := range c.Versions {
		c.Versions[i] = cloneVersion(c.Versions[i])
	}
	c.Tombstones = cloneTombstones(k.Tombstones)
	return c
}

func cloneManifest(m store.Manifest) store.Manifest {
	m.IKKID, m.MAC = bytes.Clone(m.IKKID), bytes.Clone(m.MAC)
	return m
}

func cloneVersion(v store.Version) store.Version {
	v.Commit, v.Blob, v.IKKID = bytes.Clone(v.Commit), bytes.Clone(v.Blob), bytes.Clone(v.IKKID)
	return v
}

func cloneTombstones(ts []store.Tombstone) []store.Tombstone {
	c := slices.Clone(ts)
	for i := range c {
		c[i].Commit = bytes.Clone(c[i].Commit)
	}
	return c
}
