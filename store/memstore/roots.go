package memstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// ChangeRoots is as [store.Store] has it.
func (s *Store) ChangeRoots(ctx context.Context, c store.RootsChange) error {
	return s.write(ctx, func(d *state) error { return d.changeRoots(&c, s.now()) })
}

func (d *state) changeRoots(c *store.RootsChange, now int64) error {
	if !d.is(c.Inst) || d.inst.Seq != c.From {
		return store.ErrConflict
	}
	in := cloneInstallation(d.inst)
	if c.Seq <= c.From {
		return fmt.Errorf("change the roots: the sequence number goes from %d to %d", c.From, c.Seq)
	}
	in.Seq, in.IKKID, in.ActiveSlot, in.MAC = c.Seq, bytes.Clone(c.IKKID), c.ActiveSlot, bytes.Clone(c.MAC)
	if err := errors.Join(changeSlots(&in, c, now), changeKeys(&in, c, now)); err != nil {
		return fmt.Errorf("change the roots: %w", err)
	}
	if err := checkInstallation(&in); err != nil {
		return fmt.Errorf("change the roots: %w", err)
	}
	if names := d.named(c.Drop); names != "" {
		return fmt.Errorf("drop installation key %s, which %s names: %w", key.Base32(c.Drop), names, store.ErrConflict)
	}
	d.inst = &in
	return nil
}

func changeSlots(in *store.Installation, c *store.RootsChange, now int64) error {
	named := map[key.ID]bool{}
	for _, change := range c.States {
		i := slices.IndexFunc(in.Slots, func(s store.Slot) bool { return s.ID == change.ID })
		if i < 0 || named[change.ID] || in.Slots[i].State != change.From || !becomes(change.From, change.To) {
			return fmt.Errorf("slot %s cannot go from %v to %v", change.ID, change.From, change.To)
		}
		named[change.ID] = true
		enter(&in.Slots[i], change.To, now)
	}
	for _, slot := range c.Add {
		slot = cloneSlot(slot)
		slot.Created, slot.Activated, slot.Retired, slot.Removed = now, 0, 0, 0
		if slot.State == key.Destroyed {
			return fmt.Errorf("slot %s is added as removed", slot.ID)
		}
		enter(&slot, slot.State, now)
		in.Slots = append(in.Slots, slot)
	}
	return nil
}

// becomes says whether a slot may go from one state to another.
func becomes(from, to key.State) bool {
	live := func(s key.State) bool { return s == key.Active || s == key.Retired }
	return live(from) && from != to && (live(to) || to == key.Destroyed)
}

// enter sets a slot's state, and what follows from it. Retired is since when it is not the active one, whether it was
// retired before it was removed or not.
func enter(s *store.Slot, to key.State, now int64) {
	s.State = to
	switch {
	case to == key.Active:
		s.Activated, s.Retired = now, 0
	case s.Retired == 0:
		s.Retired = now
	}
	if to == key.Destroyed {
		s.Blob, s.Removed = nil, now
	}
}

func changeKeys(in *store.Installation, c *store.RootsChange, now int64) error {
	if len(c.Drop) > 0 && c.AddKey != nil {
		return errors.New("an installation key goes and another one comes at once")
	}
	if len(c.Drop) > 0 {
		i := slices.IndexFunc(in.Keys, func(k store.InstallationKey) bool { return bytes.Equal(k.KID, c.Drop) })
		if i < 0 {
			return fmt.Errorf("installation key %s, which is to go, is not there", key.Base32(c.Drop))
		}
		in.Keys = slices.Delete(in.Keys, i, i+1)
	}
	if c.AddKey != nil {
		k := cloneInstallationKey(*c.AddKey)
		k.Created = now
		in.Keys = append(in.Keys, k)
	}
	return nil
}

// named is a key with a manifest, or a version, or a name, that names the installation key with the given kid; empty if
// none does.
func (d *state) named(kid []byte) string {
	for _, id := range slices.Sorted(maps.Keys(d.keys)) {
		if len(kid) > 0 && names(d.keys[id], func(ik []byte) bool { return bytes.Equal(ik, kid) }) {
			return string(id)
		}
	}
	for _, n := range d.sortedNames() {
		if len(kid) > 0 && bytes.Equal(n.IKKID, kid) {
			return fmt.Sprintf("name %q of root key %s", n.Purpose, n.RootKeyID)
		}
	}
	return ""
}

// errMissingIK is what a foreign key would say.
var errMissingIK = fmt.Errorf("an installation key that is named is not there: %w", store.ErrConflict)

// checkIKs looks for installation keys that the key and its versions name and that are not there.
func (d *state) checkIKs(k *store.Key) error {
	if names(k, func(ik []byte) bool { return !d.hasIK(ik) }) {
		return errMissingIK
	}
	return nil
}

// names says whether of the installation keys that the key and its versions name one is as asked for.
func names(k *store.Key, is func(ik []byte) bool) bool {
	version := func(v store.Version) bool { return is(v.IKKID) }
	return is(k.IKKID) || k.Kind == key.KEK && slices.ContainsFunc(k.Versions, version)
}

func (d *state) hasIK(kid []byte) bool {
	return slices.ContainsFunc(d.inst.Keys, func(k store.InstallationKey) bool { return bytes.Equal(k.KID, kid) })
}

// Rekey is as [store.Store] has it.
func (s *Store) Rekey(ctx context.Context, inst [16]byte, keys []store.Rekey, under *store.Lease) (n int, err error) {
	err = s.write(ctx, func(d *state) error {
		n, err = d.rekey(inst, keys, under, s.now())
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (d *state) rekey(inst [16]byte, keys []store.Rekey, under *store.Lease, now int64) (n int, err error) {
	if !d.is(inst) || !d.holds(under, now) {
		return 0, nil
	}
	named := map[key.ID]bool{}
	for i := range keys {
		r := &keys[i]
		if named[r.KeyID] {
			return 0, fmt.Errorf("rekey key %s: it is named twice", r.KeyID)
		}
		named[r.KeyID] = true
		old := d.keys[r.KeyID]
		if old == nil || old.Kind != r.Kind || old.Seq != r.From {
			continue
		}
		k := cloneKey(old)
		if err := d.rekeyOne(&k, r); err != nil {
			return 0, fmt.Errorf("rekey key %s: %w", r.KeyID, err)
		}
		d.keys[k.ID] = &k
		d.changed(k.ID)
		n++
	}
	return n, nil
}

func (d *state) rekeyOne(k *store.Key, r *store.Rekey) error {
	if r.Seq <= r.From {
		return fmt.Errorf("the sequence number goes from %d to %d", r.From, r.Seq)
	}
	k.Seq, k.IKKID, k.MAC = r.Seq, bytes.Clone(r.IKKID), bytes.Clone(r.MAC)
	if k.Kind == key.DEK {
		if len(r.Versions) > 0 {
			return errors.New("a data key's wrapped keys are under no installation key")
		}
	} else if err := d.rekeyVersions(k, r.Versions); err != nil {
		return err
	}
	return cmp.Or(checkKey(k), d.checkIKs(k))
}

// rekeyVersions replaces the wrapped keys of all versions of a root key.
func (d *state) rekeyVersions(k *store.Key, versions []store.Rewrap) error {
	if len(versions) != len(k.Versions) {
		return fmt.Errorf("there are %d versions, and %d are given: %w", len(k.Versions), len(versions), store.ErrConflict)
	}
	for i := range k.Versions {
		v := &k.Versions[i]
		j := slices.IndexFunc(versions, func(r store.Rewrap) bool { return r.ID == v.ID })
		if j < 0 || !bytes.Equal(versions[j].Old, v.Blob) {
			return fmt.Errorf("version %d is not as given: %w", v.Number, store.ErrConflict)
		}
		r := &versions[j]
		v.Blob, v.Parent, v.IKKID = bytes.Clone(r.Blob), r.Parent, bytes.Clone(r.IKKID)
		if err := d.checkWrapping(k, v); err != nil {
			return err
		}
	}
	return nil
}

// NotUnder is as [store.Store] has it.
func (s *Store) NotUnder(
	ctx context.Context, kid [16]byte, after key.ID, limit int,
) (scopes []key.Scope, next key.ID, err error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, "", err
	}
	if err := rows.CheckAfter(after); err != nil {
		return nil, "", fmt.Errorf("list scopes to rekey: %w", err)
	}
	other := func(ik []byte) bool { return !bytes.Equal(ik, kid[:]) }
	for _, id := range slices.Sorted(maps.Values(d.scopes)) {
		if id <= after || !names(d.keys[id], other) &&
			!slices.ContainsFunc(d.data[id], func(data key.ID) bool { return names(d.keys[data], other) }) {
			continue
		}
		if len(scopes) >= limit {
			return scopes, next, nil
		}
		scopes, next = append(scopes, d.keys[id].Scope), id
	}
	return scopes, "", nil
}

// Escrows is as [store.Store] has it.
func (s *Store) Escrows(ctx context.Context) ([]store.Escrow, error) {
	d, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	list := slices.Clone(d.escrows)
	for i := range list {
		list[i].IKKID = bytes.Clone(list[i].IKKID)
	}
	return list, nil
}

// AddEscrow is as [store.Store] has it.
func (s *Store) AddEscrow(ctx context.Context, inst [16]byte, e store.Escrow) error {
	return s.write(ctx, func(d *state) error {
		if err := rows.CheckEscrow(&e); err != nil {
			return fmt.Errorf("store what became of an escrow: %w", err)
		}
		if d.is(inst) {
			e.IKKID, e.At = bytes.Clone(e.IKKID), s.now()
			d.escrows = append(slices.Clip(d.escrows), e)
		}
		return nil
	})
}
