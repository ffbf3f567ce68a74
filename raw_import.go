package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// ImportRaw makes ref's raw key of versions that another system made, of which the last is its head, and says whether
// it did. A number that is missing, up to the last, counts as that of a version that was destroyed there. The versions'
// ids are new ones, and have to be empty here. how says how the next versions are made; the generator may be one that
// this process does not have. A new period counts from when the last version was made.
//
// Where the key is there, with these bytes in these versions and this generator, it changes nothing, whatever was
// rotated since; so it may be repeated, and any number of callers may do it at once. The keys stay the caller's, who
// should clear them; copies that are made are cleared.
//
// It takes three round trips, one where the key is there. Errors: an [*InvalidError]; [ErrExists] if the key is there
// with others; [ErrRemoved] if it was removed here; [ErrNotFound] for an unknown scope; [ErrPurpose]; [ErrOldRoot];
// [ErrRolledBack]; [*IntegrityError]; [ErrUnavailable]. After any of them the whole key may be there, or nothing of it.
func (m *Manager) ImportRaw(ctx context.Context, ref Ref, how RawKey, versions []ImportedVersion) (made bool, err error) {
	if err := m.checkRaw(ref, how.Generator); err != nil {
		return false, err
	}
	if err := checkRawVersions(versions); err != nil {
		return false, fmt.Errorf("import %v: %w", ref, err)
	}
	policy, err := how.Policy.check(key.DEK, key.Raw)
	if err != nil {
		return false, err
	}
	policy.Generator = storedGenerator(how.Generator)
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return false, err
	}
	defer end()
	r := m.committed()
	for tried := key.ID(""); ; {
		fam, err := r.keyOrName(ctx, ref)
		switch {
		case err != nil:
			return false, r.known(err)
		case fam.made:
			return fam.Data[0].ID == tried, r.known(r.isRawImport(&fam, ref, policy.Generator, versions))
		case fam.name.Seq > 0:
			if err := fam.sameGenerator(ref, policy.Generator); err != nil {
				return false, err
			}
		}
		if err := errors.Join(r.mayRotate(ctx, &fam.family), fam.notOlder()); err != nil {
			return false, r.known(err)
		}
		row, err := r.importedRaw(&fam, ref, policy, versions)
		if err != nil {
			return false, fmt.Errorf("import %v: %w", ref, err)
		}
		n, err := r.q.Create(ctx, r.inst(), []store.Key{row})
		switch {
		case err == nil && n == 1:
			return true, nil
		case err == nil:
			err = store.ErrConflict // somebody else made it
		}
		tried = row.ID
		if err := again(ctx, &r, err); err != nil {
			return false, fmt.Errorf("import %v: %w", ref, err)
		}
	}
}

func checkRawVersions(versions []ImportedVersion) error {
	if len(versions) == 0 {
		return key.Invalid("key", "", "it has no version")
	}
	last := key.Version(0)
	for _, v := range versions {
		switch {
		case v.ID != "":
			return key.Invalid("key version id", string(v.ID), "a raw key's versions get new ones")
		case v.Number <= last || v.Number > key.MaxVersion:
			return key.Invalid("version", fmt.Sprint(v.Number), fmt.Sprintf("numbers go up, from 1 to %d at most", key.MaxVersion))
		}
		last = v.Number
	}
	return nil
}

// importedRaw is a key with the given versions.
func (r reader) importedRaw(fam *named, ref Ref, policy store.Manifest, versions []ImportedVersion) (store.Key, error) {
	if versions[0].Number <= fam.name.Last {
		return store.Key{}, fmt.Errorf("its versions begin at %d, and a key of that name had as many as %d: %w", versions[0].Number, fam.name.Last, ErrExists)
	}
	id, err := seal.RandomID(key.PrefixDataKey)
	if err != nil {
		return store.Key{}, err
	}
	head, _ := headOf(&fam.Root)
	parent, err := r.parent(&fam.Family, head.ID)
	if err != nil {
		return store.Key{}, err
	}
	defer parent.Close()
	k := store.Key{ID: id, Kind: key.DEK, RootKeyID: fam.Root.ID, Purpose: ref.Purpose, Manifest: policy}
	next := key.Version(1)
	for _, v := range versions {
		k.Tombstones = append(k.Tombstones, missing(next, v.Number-1)...)
		row, err := importVersion(v, r.m.rawIdentity(fam.Root.ID, ref), parent, head.ID, fam.Now)
		if err != nil {
			return store.Key{}, fmt.Errorf("version %d: %w", v.Number, err)
		}
		k.Versions = append(k.Versions, row)
		next = v.Number + 1
	}
	last := &k.Versions[len(k.Versions)-1]
	last.State = key.Active
	k.Seq, k.Head = 1, last.Number
	k.RotateAt = due(&k)
	return k, r.m.sign(&k)
}

// isRawImport is nil if the key that is there has the given versions.
func (r reader) isRawImport(fam *named, ref Ref, generator string, versions []ImportedVersion) error {
	if err := fam.sameGenerator(ref, generator); err != nil {
		return err
	}
	data := &fam.Data[0]
	for _, v := range versions {
		row, live := versionOf(data, v.Number)
		switch {
		case !live && wasVersion(data, v.Number):
			continue // it was destroyed since
		case !live || row.Alg != key.Raw:
			return fmt.Errorf("%v has no version %d: %w", ref, v.Number, ErrExists)
		}
		opened, err := r.unwrap(&fam.Family, data, row)
		if err != nil {
			return err
		}
		same := bytes.Equal(opened.Bytes().Reveal(), v.Key)
		opened.Close()
		if !same {
			return fmt.Errorf("version %d of %v has other bytes: %w", v.Number, ref, ErrExists)
		}
	}
	return nil
}

// wasVersion says whether a number was that of a version of k which was destroyed, and not one that is only counted.
func wasVersion(k *store.Key, n Version) bool {
	return slices.ContainsFunc(k.Tombstones, func(t store.Tombstone) bool { return t.Number == n && t.ID != "" })
}
