package keyhold

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// CreateScope makes a scope: its root key, and a data key for each purpose of the [Config]. Where the scope is there
// already, it makes the data keys that it lacks; so it may be repeated, and any number of callers may do it at once. A
// name that another scope had a moment ago should rest for 7 s: other processes may still use that scope's keys, and so
// may this one, if the old scope goes in the same transaction as the new one comes.
//
// It takes two round trips. Errors: [*InvalidError]; [ErrPurpose] if there is a key for one of the purposes that is for
// another use; [ErrForeignKey] if the application's table of scopes has no such row; [*IntegrityError];
// [ErrUnavailable]. After any of them the scope may be there or not, never a part of a key.
func (m *Manager) CreateScope(ctx context.Context, scope key.Scope) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = m.committed().create(ctx, scope, "")
	return err
}

// HasScope says whether a scope is there. It takes one round trip, however many keys it has. Errors: [*InvalidError];
// [*IntegrityError]; [ErrUnavailable].
func (m *Manager) HasScope(ctx context.Context, scope key.Scope) (bool, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return false, err
	}
	defer end()
	_, err = m.committed().key(ctx, key.Ref{Scope: scope})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// CreateScopeTx is [Manager.CreateScope] inside the application's transaction, beside the insert of the tenant: both
// come into being or neither. Until that transaction is committed, only its own calls can use the keys. After
// [ErrUnavailable] and [ErrUnknownOutcome] it has to be rolled back.
func (m *Manager) CreateScopeTx(ctx context.Context, tx store.Tx, scope key.Scope) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	_, err = m.inside(tx).create(ctx, scope, "")
	return err
}

// create says whether it made the scope, and did not find it. tried is the root key that the call has made for it
// already, of which it is not known whether it was stored; empty if it has not.
func (r reader) create(ctx context.Context, scope key.Scope, tried key.ID) (made bool, err error) {
	if err := scope.Validate(); err != nil {
		return false, err
	}
	for refused := false; ; {
		fam, err := r.scope(ctx, scope)
		var keys []store.Key
		r.m.forgetOthers(scope, fam.Root.ID)
		switch {
		case errors.Is(err, store.ErrNotFound):
			keys, err = r.m.newFamily(fam.Now, scope)
		case err == nil:
			keys, err = r.missingKeys(ctx, &fam)
			made = made || fam.Root.ID == tried
		}
		if refused && err == nil && fam.Root.ID != "" {
			err = r.rawNames(ctx, scope, keys)
		}
		if err != nil || len(keys) == 0 {
			return made, r.known(err)
		}
		if keys[0].Kind == key.KEK {
			tried = keys[0].ID
		}
		n, err := r.q.Create(ctx, r.inst(), keys)
		switch {
		case err == nil && n == len(keys):
			return made || keys[0].Kind == key.KEK, nil
		case err == nil:
			err = store.ErrConflict // somebody else created some of it
		}
		refused = errors.Is(err, store.ErrConflict)
		if err := again(ctx, &r, err); err != nil {
			return made, fmt.Errorf("create scope %q: %w", scope, err)
		}
	}
}

// rawNames is [ErrPurpose] if one of the keys, which the database refused, is for another use than raw bytes, and its
// purpose was the name of a raw key that was removed: its numbers would begin again.
func (r reader) rawNames(ctx context.Context, scope key.Scope, keys []store.Key) error {
	for i := range keys {
		k := &keys[i]
		if k.Kind == key.KEK || k.Versions[0].Alg == key.Raw {
			continue
		}
		n, err := r.nameOf(ctx, key.Ref{Scope: scope, Purpose: k.Purpose})
		switch {
		case errors.Is(err, store.ErrNotFound): // the scope was deleted meanwhile
			return nil
		case err != nil:
			return err
		case n.name.Removed || n.name.Last > 0:
			return fmt.Errorf("purpose %q of scope %q is the name of a raw key that was removed: %w", k.Purpose, scope, ErrPurpose)
		}
	}
	return nil
}

// forgetOthers drops what is kept of a scope but that of its root key now: the application may have deleted or renamed
// what had the name before.
func (m *Manager) forgetOthers(scope key.Scope, root key.ID) {
	for _, p := range m.purposes {
		if m.cache.dropOthers(key.Ref{Scope: scope, Purpose: p.purpose}, root) {
			m.epochs.changed() // so that no answer which is under way brings it back
		}
	}
}

// newFamily makes a root key and the data keys under it, for a scope that is not there.
func (m *Manager) newFamily(now int64, scope key.Scope) ([]store.Key, error) {
	id, err := seal.RandomID(key.PrefixRootKey)
	if err != nil {
		return nil, err
	}
	kek, err := seal.Generate(seal.Identity{Kind: key.KEK, Inst: m.ring.inst, RootKeyID: id, Alg: key.Message})
	if err != nil {
		return nil, err
	}
	defer kek.Close()
	parent, err := kek.Parent()
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	root := store.Key{ID: id, Kind: key.KEK, Scope: scope}
	if err := m.firstVersion(&root, kek, m.ring.parent(), "", now, m.rootPolicy); err != nil {
		return nil, err
	}
	keys := []store.Key{root}
	for _, p := range m.purposes {
		data, err := m.newDataKey(&root, kek.ID(), parent, p, now)
		if err != nil {
			return nil, err
		}
		keys = append(keys, data)
	}
	return keys, nil
}

// missingKeys makes the data keys that a scope lacks.
func (r reader) missingKeys(ctx context.Context, fam *family) ([]store.Key, error) {
	have := map[key.Purpose]*store.Key{}
	for i := range fam.Data {
		have[fam.Data[i].Purpose] = &fam.Data[i]
	}
	var keys []store.Key
	for _, p := range r.m.purposes {
		if data := have[p.purpose]; data != nil {
			if head, _ := headOf(data); head.Alg != p.alg {
				return nil, fmt.Errorf("purpose %q of scope %q has a key of alg %v, configured is %v: %w",
					p.purpose, fam.Root.Scope, head.Alg, p.alg, ErrPurpose)
			}
			continue
		}
		if err := fam.notOlder(); err != nil {
			return nil, err
		}
		head, _ := headOf(&fam.Root)
		parent, err := r.parent(&fam.Family, head.ID)
		if err != nil {
			return nil, err
		}
		var data store.Key
		if p.alg == key.Raw {
			data, err = r.missingRaw(ctx, key.Ref{Scope: fam.Root.Scope, Purpose: p.purpose}, p.policy)
		} else {
			data, err = r.m.newDataKey(&fam.Root, head.ID, parent, p, fam.Now)
		}
		parent.Close()
		if err != nil {
			return nil, err
		}
		keys = append(keys, data)
	}
	return keys, nil
}

func (m *Manager) newDataKey(root *store.Key, parentID key.ID, parent *seal.Parent, p purposeOf, now int64) (store.Key, error) {
	id, err := seal.RandomID(key.PrefixDataKey)
	if err != nil {
		return store.Key{}, err
	}
	dek, err := seal.Generate(seal.Identity{Kind: key.DEK, Inst: m.ring.inst, RootKeyID: root.ID, Purpose: p.purpose, Alg: p.alg})
	if err != nil {
		return store.Key{}, err
	}
	defer dek.Close()
	data := store.Key{ID: id, Kind: key.DEK, RootKeyID: root.ID, Purpose: p.purpose}
	if err := m.firstVersion(&data, dek, parent, parentID, now, p.policy); err != nil {
		return store.Key{}, err
	}
	return data, nil
}

// firstVersion gives k its version 1, wrapped and active, and its manifest.
func (m *Manager) firstVersion(
	k *store.Key, opened *seal.Key, parent *seal.Parent, parentID key.ID, now int64, policy store.Manifest,
) error {
	v, err := newVersion(opened, parent, parentID, 1, now)
	if err != nil {
		return err
	}
	v.State = key.Active
	k.Versions = []store.Version{v}
	k.Manifest = policy
	k.Seq, k.Head = 1, 1
	k.RotateAt = due(k)
	return m.sign(k)
}

// newVersion wraps a key that was just made, as a pending version. parentID is the root key version that parent is, and
// empty if it is the installation key.
func newVersion(opened *seal.Key, parent *seal.Parent, parentID key.ID, n key.Version, now int64) (store.Version, error) {
	blob, err := parent.Wrap(opened, n, now)
	if err != nil {
		return store.Version{}, err
	}
	commit := opened.Commit()
	v := store.Version{
		ID: opened.ID(), Number: n, State: key.Pending, Alg: opened.Identity().Alg, Commit: commit[:], Blob: blob, Parent: parentID, Created: now,
	}
	if parentID == "" {
		kid := parent.KID()
		v.IKKID = kid[:]
	}
	return v, nil
}

// due is when the version after k's newest is due, 0 if never.
func due(k *store.Key) int64 {
	if k.RotateEvery == 0 {
		return 0
	}
	return newestCreated(k) + int64(k.RotateEvery)
}

// sign sets the MAC of k's manifest to fit what k says, and the installation key that it is under.
func (m *Manager) sign(k *store.Key) error {
	manifest, err := m.manifestOf(k)
	if err != nil {
		return err
	}
	kid, mac := m.ring.sign(manifest.Append(nil))
	k.IKKID, k.MAC = kid[:], mac[:]
	return nil
}

// Scopes lists all scopes in the order of the database's type for them. It reads them in pages, so that one that is
// created or deleted meanwhile may be among them or not. After an error, which comes with an empty scope, it ends.
func (m *Manager) Scopes(ctx context.Context) iter.Seq2[key.Scope, error] {
	const page = 500
	return func(yield func(key.Scope, error) bool) {
		var after key.Scope
		for {
			scopes, err := m.scopesAfter(ctx, after, page)
			if err != nil {
				yield("", err)
				return
			}
			for _, scope := range scopes {
				if !yield(scope, nil) {
					return
				}
			}
			if len(scopes) < page {
				return
			}
			after = scopes[len(scopes)-1]
		}
	}
}

func (m *Manager) scopesAfter(ctx context.Context, after key.Scope, limit int) ([]key.Scope, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return m.store.Scopes(ctx, after, limit)
}
