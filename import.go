package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// ErrExists: a scope that was to be imported is there already, with other keys than those, or its keys are there under
// another name. Nothing was changed.
var ErrExists = errors.New("scope or its keys are there already, with others or elsewhere")

// ImportedKey is a root key or a data key that another system made, for [Manager.ImportScope].
type ImportedKey struct {
	ID       key.ID            // krk_ or kdk_, and letters and digits
	Purpose  Purpose           // of a data key; empty for the root key
	Versions []ImportedVersion // ascending by number
}

// ImportedVersion is one version of an [ImportedKey]. However it is printed, its key is not shown.
type ImportedVersion struct {
	ID      key.ID // krkv_ or kdkv_, and letters and digits, not of the form of those that are made here
	Number  Version
	Created time.Time // of the version there; what is not between 1970 and now stands for now
	Key     []byte    `json:"-"` // 1 to 1024 bytes
}

// Format prints the number and the id.
func (v ImportedVersion) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, fmt.Sprint("version ", uint64(v.Number), " (", string(v.ID), ")"))
}

// ImportScope makes a scope of keys that another system made: the root key first, then the data keys. All ids stay.
// What was sealed with those keys by go-kms-wrapping's AES-GCM opens by [Manager.Wrapper]; nothing is sealed with
// them any more, and nothing wrapped: every key gets a version of its own, which is its head. A number that is
// missing counts as that of a version that was destroyed there.
//
// It says whether it made the scope. Where the scope is there already, with these keys, it changes nothing, whatever
// was rotated, rewrapped, disabled or destroyed here since; so it may be repeated, and any number of callers may do
// it at once. The keys stay the caller's, who should clear them; copies that are made are cleared.
//
// It takes two round trips, and three where versions are missing. Errors: [*InvalidError]; [ErrExists] if the scope has
// other keys; [ErrState] if the scope is not there any more and its keys were destroyed here, as by [Manager.Shred] or
// with the application's tenant: they never come back; [ErrForeignKey] if the application's table of scopes has no such
// row; [*IntegrityError]; [ErrUnavailable]. After any of them the whole scope may be there, or nothing of it.
func (m *Manager) ImportScope(ctx context.Context, scope Scope, keys []ImportedKey) (made bool, err error) {
	if err := checkImport(scope, keys); err != nil {
		return false, fmt.Errorf("import scope %q: %w", scope, err)
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return false, err
	}
	defer end()
	r := m.committed()
	for {
		fam, err := r.scope(ctx, scope)
		m.forgetOthers(scope, fam.Root.ID)
		if err == nil {
			err = r.isImport(&fam.Family, keys)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return made && err == nil, r.known(err)
		}
		rows, err := m.importedFamily(fam.Now, scope, keys)
		if err != nil {
			return false, fmt.Errorf("import scope %q: %w", scope, err)
		}
		n, err := r.q.Create(ctx, r.inst(), rows)
		switch {
		case err == nil && n == len(rows):
			return true, nil
		case err == nil:
			err = store.ErrConflict // somebody else made it
		}
		made = errors.Is(err, store.ErrUnknownOutcome)
		if err := again(ctx, &r, err); err != nil {
			return false, fmt.Errorf("import scope %q: %w", scope, m.orThere(ctx, scope, keys, err))
		}
	}
}

// orThere says it, in place of what a store says in its own way, of keys that were here and are destroyed, by an
// [ErrState], or that are here under another name, by an [ErrExists].
func (m *Manager) orThere(ctx context.Context, scope key.Scope, keys []ImportedKey, err error) error {
	id := keys[0].Versions[0].ID
	if was, failed := m.store.WasDestroyed(ctx, id); failed == nil && was {
		return fmt.Errorf("%w: its keys were here and were destroyed, such as %s", ErrState, id)
	}
	if fam, failed := m.store.KeyOfVersion(ctx, id); failed == nil && fam.Root.Scope != scope {
		return fmt.Errorf("%w: its own are here under the name %q", ErrExists, fam.Root.Scope)
	}
	return err
}

// checkImport looks at the names and numbers of what is to be imported.
func checkImport(scope key.Scope, keys []ImportedKey) error {
	if err := scope.Validate(); err != nil {
		return err
	}
	if len(keys) == 0 || keys[0].Purpose != "" {
		return key.Invalid("key", "", "the first one has to be the root key, which has no purpose")
	}
	if len(keys[0].Versions) == 0 {
		return key.Invalid("root key", string(keys[0].ID), "it has no version, so nothing was ever sealed under it: delete it there")
	}
	seen := map[string]bool{}
	for i, k := range keys {
		kind, prefix := key.KEK, key.PrefixRootKey
		if i > 0 {
			kind, prefix = key.DEK, key.PrefixDataKey
			if err := k.Purpose.Validate(); err != nil {
				return err
			}
			if seen["purpose "+string(k.Purpose)] {
				return key.Invalid("purpose", string(k.Purpose), "there are two keys for it")
			}
			seen["purpose "+string(k.Purpose)] = true
		}
		name, found := strings.CutPrefix(string(k.ID), prefix)
		// The rest of an id is as that of a version's.
		if !found || key.ID(key.PrefixRootKeyVersion+name).Validate() != nil || len(k.ID) > key.MaxIDLen || seen[string(k.ID)] {
			return key.Invalid("key id", string(k.ID), "it has to be "+prefix+" and letters and digits, at most 64 in all, and of one key")
		}
		seen[string(k.ID)] = true
		if err := checkImportedVersions(kind, k.Versions, seen); err != nil {
			return fmt.Errorf("key %s: %w", k.ID, err)
		}
	}
	return nil
}

func checkImportedVersions(kind key.Kind, versions []ImportedVersion, seen map[string]bool) error {
	last := key.Version(0)
	for _, v := range versions {
		if err := v.ID.Validate(); err != nil {
			return err
		}
		switch is, _ := v.ID.Kind(); {
		case is != kind:
			return key.Invalid("key version id", string(v.ID), "it is one of the other kind of keys")
		case seen[string(v.ID)]:
			return key.Invalid("key version id", string(v.ID), "it comes twice")
		case v.Number <= last || v.Number >= key.MaxVersion:
			return key.Invalid("version", fmt.Sprint(v.Number), fmt.Sprintf("numbers go up, to %d at most", key.MaxVersion-1))
		}
		if _, ok := v.ID.KID(); ok {
			return key.Invalid("key version id", string(v.ID), "it has the form of one that is made here")
		}
		seen[string(v.ID)], last = true, v.Number
	}
	return nil
}

// importedFamily wraps the keys of a scope anew: the versions of the root key under the installation key, those of data
// keys under the root key's new head.
func (m *Manager) importedFamily(now int64, scope key.Scope, keys []ImportedKey) ([]store.Key, error) {
	root := store.Key{ID: keys[0].ID, Kind: key.KEK, Scope: scope}
	head, err := m.importKey(&root, keys[0].Versions, m.ring.parent(), "", now, m.rootPolicy)
	if err != nil {
		return nil, err
	}
	defer head.Close()
	parent, err := head.Parent()
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	all := []store.Key{root}
	for _, k := range keys[1:] {
		data := store.Key{ID: k.ID, Kind: key.DEK, RootKeyID: root.ID, Purpose: k.Purpose}
		dek, err := m.importKey(&data, k.Versions, parent, head.ID(), now, m.policyOf(k.Purpose))
		if err != nil {
			return nil, err
		}
		dek.Close()
		all = append(all, data)
	}
	return all, nil
}

// importKey gives k its versions, retired, a tombstone for each number that is missing, and a new head, which it
// returns for the caller to close; and its manifest.
func (m *Manager) importKey(
	k *store.Key, versions []ImportedVersion, parent *seal.Parent, parentID key.ID, now int64, policy store.Manifest,
) (*seal.Key, error) {
	id := seal.Identity{Kind: k.Kind, Inst: m.ring.inst, RootKeyID: k.RootKeyID, Purpose: k.Purpose, Alg: key.Imported}
	if k.Kind == key.KEK {
		id.RootKeyID = k.ID
	}
	next := key.Version(1)
	for _, v := range versions {
		for ; next < v.Number; next++ {
			k.Tombstones = append(k.Tombstones, store.Tombstone{Number: next, Alg: key.Imported, Commit: make([]byte, 32)})
		}
		row, err := importVersion(v, id, parent, parentID, now)
		if err != nil {
			return nil, fmt.Errorf("key version %s: %w", v.ID, err)
		}
		k.Versions = append(k.Versions, row)
		next++
	}
	id.Alg = key.Message
	head, err := seal.Generate(id)
	if err != nil {
		return nil, err
	}
	row, err := newVersion(head, parent, parentID, next, now)
	if err != nil {
		head.Close()
		return nil, err
	}
	row.State = key.Active
	k.Versions = append(k.Versions, row)
	k.Manifest = policy
	k.Seq, k.Head = 1, next
	k.RotateAt = due(k)
	if err := m.sign(k); err != nil {
		head.Close()
		return nil, err
	}
	return head, nil
}

func importVersion(v ImportedVersion, id seal.Identity, parent *seal.Parent, parentID key.ID, now int64) (store.Version, error) {
	material := secret.New(bytes.Clone(v.Key))
	defer material.Clear()
	opened, err := seal.FromBytes(id, material)
	if err != nil {
		return store.Version{}, err
	}
	defer opened.Close()
	created := v.Created.Unix()
	if created <= 0 || created > now {
		created = now
	}
	row, err := newVersion(opened, parent, parentID, v.Number, created)
	row.State = key.Retired
	if id.Alg == key.Imported {
		row.ID = v.ID
	}
	return row, err
}

// isImport returns nil if a scope was made of the given keys.
func (r reader) isImport(fam *store.Family, keys []ImportedKey) error {
	other := func(k *store.Key) error { return fmt.Errorf("%s (%s): %w", describe(k), k.ID, ErrExists) }
	given := map[key.ID]ImportedKey{}
	for _, k := range keys {
		given[k.ID] = k
	}
	for i, k := range allKeys(fam) {
		from, ok := given[k.ID]
		delete(given, k.ID)
		if i == 0 && k.ID != keys[0].ID || ok && from.Purpose != k.Purpose {
			return other(k)
		}
		same, err := r.hasVersions(fam, k, from.Versions)
		if err != nil {
			return err
		}
		if !same {
			return other(k)
		}
	}
	for _, k := range keys {
		if _, missing := given[k.ID]; missing {
			return fmt.Errorf("scope %q has no key %s: %w", fam.Root.Scope, k.ID, ErrExists)
		}
	}
	return nil
}

// importedIDs is the ids of the versions that an import brought, by number.
func importedIDs(k *store.Key) map[key.Version]key.ID {
	ids := map[key.Version]key.ID{}
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Alg == key.Imported {
			ids[v.Number] = v.ID
		}
	}
	for i := range k.Tombstones {
		if t := &k.Tombstones[i]; t.Alg == key.Imported && t.ID != "" {
			ids[t.Number] = t.ID
		}
	}
	return ids
}

// hasVersions says whether just these versions were imported as k's. Of one that was destroyed since, only its id is
// known.
func (r reader) hasVersions(fam *store.Family, k *store.Key, versions []ImportedVersion) (bool, error) {
	ids := importedIDs(k)
	if len(ids) != len(versions) {
		return false, nil
	}
	for _, v := range versions {
		if ids[v.Number] != v.ID {
			return false, nil
		}
		row, live := versionOf(k, v.Number)
		if !live {
			continue
		}
		opened, err := r.unwrap(fam, k, row)
		if err != nil {
			return false, err
		}
		same := bytes.Equal(opened.Bytes().Reveal(), v.Key)
		opened.Close()
		if !same {
			return false, nil
		}
	}
	return true, nil
}
