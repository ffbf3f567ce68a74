package memstore

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// checkInstallation looks at what has to hold between the installation, its keys and its slots.
func checkInstallation(in *store.Installation) error {
	if err := errors.Join(
		length("inst", in.Inst, 16),
		length("ik_kid", in.IKKID, 16),
		length("mac", in.MAC, 32),
		number("sequence number", in.Seq, 1),
		checkInstallationKeys(in),
	); err != nil {
		return err
	}
	active := map[string]key.ID{} // by the installation key
	seen := map[key.ID]bool{}
	for i := range in.Slots {
		s := &in.Slots[i]
		if err := checkSlot(in, s); err != nil {
			return err
		}
		if seen[s.ID] {
			return fmt.Errorf("slot %s comes twice", s.ID)
		}
		seen[s.ID] = true
		if s.State != key.Active {
			continue
		}
		if other, taken := active[string(s.IKKID)]; taken {
			return fmt.Errorf("slots %s and %s of one installation key are active", other, s.ID)
		}
		active[string(s.IKKID)] = s.ID
	}
	if id, ok := active[string(in.IKKID)]; !ok || id != in.ActiveSlot {
		return fmt.Errorf("the slot %q is not the active one of the installation key, which is %q", in.ActiveSlot, id)
	}
	return nil
}

func checkSlot(in *store.Installation, s *store.Slot) error {
	if err := errors.Join(checkID(s.ID), length("ik_kid of slot", s.IKKID, 16)); err != nil {
		return err
	}
	switch {
	case s.WrapperType == "":
		return fmt.Errorf("slot %s has no wrapper type", s.ID)
	case s.State == key.Destroyed:
		return nil
	case s.State != key.Active && s.State != key.Retired:
		return fmt.Errorf("slot %s is %v", s.ID, s.State)
	case len(s.Blob) == 0:
		return fmt.Errorf("slot %s is empty", s.ID)
	case !slices.ContainsFunc(in.Keys, func(k store.InstallationKey) bool { return bytes.Equal(k.KID, s.IKKID) }):
		return fmt.Errorf("slot %s holds an installation key that is not there", s.ID)
	}
	return nil
}

// checkInstallationKeys looks for one key, or two of which the second follows the first.
func checkInstallationKeys(in *store.Installation) error {
	if len(in.Keys) < 1 || len(in.Keys) > 2 {
		return fmt.Errorf("there are %d installation keys", len(in.Keys))
	}
	for i, k := range in.Keys {
		if err := length("kid of an installation key", k.KID, 16); err != nil {
			return err
		}
		if first := len(k.Previous) == 0 && len(k.Link) == 0; first && i == 0 {
			continue
		}
		if err := errors.Join(
			length("previous of an installation key", k.Previous, 16),
			length("link of an installation key", k.Link, 32),
		); err != nil {
			return err
		}
		if i > 0 && (!bytes.Equal(k.Previous, in.Keys[0].KID) || bytes.Equal(k.KID, in.Keys[0].KID)) {
			return errors.New("the second installation key does not follow the first")
		}
	}
	return nil
}

// checkNew looks at the rules for a key that is to be inserted.
func (d *state) checkNew(k *store.Key) error {
	if err := checkID(k.ID); err != nil {
		return err
	}
	if kind, ok := k.ID.Kind(); !ok || kind != k.Kind {
		return fmt.Errorf("the id is not one of kind %q", k.Kind)
	}
	if d.keys[k.ID] != nil {
		return errors.New("the id is taken")
	}
	if k.Kind == key.KEK {
		if k.RootKeyID != "" || k.Purpose != "" {
			return errors.New("a root key has no root key and no purpose")
		}
		if err := k.Scope.Validate(); err != nil {
			return err
		}
		if d.tenants != nil && !d.tenants[k.Scope] {
			return fmt.Errorf("there is no row for scope %q: %w", k.Scope, store.ErrForeignKey)
		}
	} else {
		if k.Scope != "" {
			return errors.New("a data key has no scope of its own")
		}
		if err := k.Purpose.Validate(); err != nil {
			return err
		}
	}
	ids := map[key.ID]bool{}
	for i := range k.Versions {
		v := &k.Versions[i]
		if err := d.checkVersion(k, v); err != nil {
			return err
		}
		if v.State == key.Disabled || ids[v.ID] {
			return fmt.Errorf("version %d is inserted as %v, with id %s", v.Number, v.State, v.ID)
		}
		ids[v.ID] = true
	}
	for _, t := range k.Tombstones {
		if err := d.checkTombstone(t); err != nil {
			return err
		}
		if t.ID != "" && ids[t.ID] {
			return fmt.Errorf("tombstone %d: id %s comes twice", t.Number, t.ID)
		}
		ids[t.ID] = true
	}
	return cmp.Or(checkKey(k), d.checkIKs(k), d.checkNumbers(k))
}

// checkKey looks at what has to hold between a key's row and its versions, whenever a transaction is over.
func checkKey(k *store.Key) error {
	if err := errors.Join(
		number("sequence number", k.Seq, 1),
		number("rotation period", k.RotateEvery, 0),
		number("limit of messages", k.MaxMessages, 0),
		length("ik_kid", k.IKKID, 16),
		length("mac", k.MAC, 32),
		checkGenerator(k.Generator),
	); err != nil {
		return err
	}
	if k.Kind == key.KEK && k.Generator != "" {
		return errors.New("a root key has a generator")
	}
	if k.RotateAt < 0 || k.RotateAt != 0 && k.RotateEvery == 0 {
		return fmt.Errorf("rotate_at is %d with a period of %d", k.RotateAt, k.RotateEvery)
	}
	var next key.Version = 1
	versions, tombstones, active := k.Versions, k.Tombstones, 0
	for ; len(versions)+len(tombstones) > 0; next++ {
		switch {
		case len(versions) > 0 && versions[0].Number == next:
			if v := versions[0]; v.State == key.Active {
				active++
			}
			if (versions[0].State == key.Active) != (next == k.Head) {
				return fmt.Errorf("version %d is %v and the head is %d", next, versions[0].State, k.Head)
			}
			versions = versions[1:]
		case len(tombstones) > 0 && tombstones[0].Number == next:
			tombstones = tombstones[1:]
		default:
			return fmt.Errorf("version number %d is skipped, or one comes twice", next)
		}
	}
	if active != 1 || next > key.MaxVersion+1 {
		return fmt.Errorf("there are %d active versions of %d", active, next-1)
	}
	return nil
}

// checkVersion looks at the rules for a version of k that is to be inserted.
func (d *state) checkVersion(k *store.Key, v *store.Version) error {
	if err := errors.Join(checkID(v.ID), length("commitment", v.Commit, 32)); err != nil {
		return fmt.Errorf("version %d: %w", v.Number, err)
	}
	_, taken := d.versions[v.ID]
	kind, ok := v.ID.Kind()
	switch {
	case taken:
		return fmt.Errorf("version %d: the id %s is taken", v.Number, v.ID)
	case !ok || kind != k.Kind:
		return fmt.Errorf("version %d: the id %s is not one of kind %q", v.Number, v.ID, k.Kind)
	case !v.Alg.Known(), k.Kind == key.KEK && v.Alg != key.Message && v.Alg != key.Imported:
		return fmt.Errorf("version %d cannot be of %v", v.Number, v.Alg)
	case v.State < key.Pending || v.State > key.Disabled:
		return fmt.Errorf("version %d cannot be %v", v.Number, v.State)
	case v.Created <= 0:
		return fmt.Errorf("version %d has no time", v.Number)
	}
	return d.checkWrapping(k, v)
}

// checkWrapping looks at the rules for a wrapped key and its parent.
func (d *state) checkWrapping(k *store.Key, v *store.Version) error {
	if len(v.Blob) == 0 {
		return fmt.Errorf("version %d: the wrapped key is empty", v.Number)
	}
	if k.Kind == key.KEK {
		if v.Parent != "" {
			return fmt.Errorf("version %d of a root key has a parent", v.Number)
		}
		return length("ik_kid", v.IKKID, 16)
	}
	if len(v.IKKID) != 0 {
		return fmt.Errorf("version %d of a data key has an ik_kid", v.Number)
	}
	for _, p := range d.keys[k.RootKeyID].Versions {
		switch {
		case p.ID != v.Parent || p.Alg != key.Message:
		case p.State == key.Disabled:
			return fmt.Errorf("version %d: the parent %q is disabled: %w", v.Number, v.Parent, store.ErrConflict)
		default:
			return nil
		}
	}
	return fmt.Errorf("version %d: the parent %q is not a version of the root key that wraps", v.Number, v.Parent)
}

func (d *state) checkTombstone(t store.Tombstone) error {
	if err := length("commitment", t.Commit, 32); err != nil {
		return fmt.Errorf("tombstone %d: %w", t.Number, err)
	}
	if !t.Alg.Known() {
		return fmt.Errorf("tombstone %d cannot be of %v", t.Number, t.Alg)
	}
	if t.ID == "" {
		if !bytes.Equal(t.Commit, make([]byte, 32)) {
			return fmt.Errorf("tombstone %d has a commitment and no id", t.Number)
		}
		return nil
	}
	if _, taken := d.versions[t.ID]; taken {
		return fmt.Errorf("tombstone %d: the id %s is taken", t.Number, t.ID)
	}
	return checkID(t.ID)
}

func checkID(id key.ID) error {
	if len(id) == 0 || len(id) > key.MaxIDLen {
		return fmt.Errorf("an id of %d bytes", len(id))
	}
	return nil
}

func length(name string, b []byte, want int) error {
	if len(b) != want {
		return fmt.Errorf("%s has %d bytes, not %d", name, len(b), want)
	}
	return nil
}

// number refuses what an integer column of a database cannot hold.
func number(name string, n, least uint64) error {
	if n < least || n > math.MaxInt64 {
		return fmt.Errorf("%s cannot be %d", name, n)
	}
	return nil
}
