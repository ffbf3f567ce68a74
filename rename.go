package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// RenameScope confirms that the application renamed a scope. The application's own update does the renaming: a foreign
// key from kms_root_key.scope_id with "on update cascade" carries the new name to the scope's root key, or, without
// one, the application updates that column itself. The manifest of the root key still has the old name then
// (docs/format.md, section 7), and so every call refuses the scope with an [*IntegrityError] until this writes the next
// one. Nothing else changes: keys, their ids and versions stay, and what was sealed opens under the new name, with the
// context that it was sealed with, even if the old name is a part of that.
//
// Who confirms vouches for it: from then on whoever uses the scope renamed seals and opens with the keys that were
// old's. keyhold cannot know whether it was the application that changed the column, or somebody who wants to read one
// tenant's data as another. So old has to come from whoever renamed, and never from the database.
//
// old is the name that the scope's keys were made with or that was last confirmed; what it was called in between, or
// whether there is a scope of that name again, does not matter. Where renamed's keys have that name already, nothing is
// done, whatever old says; so it may be repeated, and any number of callers may do it at once. Two scopes that exchange
// their names are confirmed one by one.
//
// It takes two round trips, one where there is nothing to confirm. Errors: [*InvalidError], also if the names are the
// same; [ErrNotFound] if there is no scope renamed, as when the application has not renamed it yet; [*IntegrityError]
// if old is not its name of before, or if its root key was changed otherwise; [ErrRolledBack]; [ErrUnavailable]. After
// any of them the scope may be confirmed or not.
//
// A process that has the keys at hand goes on with them under the old name until it has seen the change, 7 seconds at
// most. Until then the old name should not be given to another scope.
func (m *Manager) RenameScope(ctx context.Context, old, renamed key.Scope) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return m.committed().rename(ctx, old, renamed)
}

// RenameScopeTx is [Manager.RenameScope] inside the application's transaction, after its update of the tenant: the new
// name comes with its confirmation or not at all, and no call ever refuses the scope. After [ErrUnavailable] and
// [ErrUnknownOutcome] it has to be rolled back.
func (m *Manager) RenameScopeTx(ctx context.Context, tx store.Tx, old, renamed key.Scope) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return m.inside(tx).rename(ctx, old, renamed)
}

func (r reader) rename(ctx context.Context, old, renamed key.Scope) error {
	if err := old.Validate(); err != nil {
		return err
	}
	if err := renamed.Validate(); err != nil {
		return err
	}
	if old == renamed {
		return key.Invalid("scope", string(renamed), "it is both the old name and the new one")
	}
	for {
		fam, err := r.renamedKey(ctx, old, renamed)
		if err != nil {
			return fmt.Errorf("rename scope %q to %q: %w", old, renamed, r.known(err))
		}
		if fam.Root.Scope == renamed {
			return nil
		}
		if err := fam.notOlder(); err != nil {
			return fmt.Errorf("rename scope %q to %q: %w", old, renamed, err)
		}
		changed := fam.Root
		changed.Scope = renamed
		err = r.update(ctx, &fam.Root, &changed, store.Update{})
		if err == nil {
			return nil
		}
		if err := again(ctx, &r, err); err != nil {
			return fmt.Errorf("rename scope %q to %q: %w", old, renamed, err)
		}
	}
}

// renamedKey reads the root key that is stored under the new name, and checks it. It comes with the name that its
// manifest has: the old one, or the new one if that is confirmed.
func (r reader) renamedKey(ctx context.Context, old, renamed key.Scope) (family, error) {
	otherScope := false
	fam, err := r.read(ctx, func(ctx context.Context) (store.Family, error) {
		fam, err := r.q.Key(ctx, key.Ref{Scope: renamed})
		otherScope = fam.Root.Scope != renamed
		if err == nil && r.m.hasScope(fam.Root, old) {
			fam.Root.Scope = old
		}
		return fam, err
	})
	switch _, changed := errors.AsType[*IntegrityError](err); {
	case errors.Is(err, store.ErrNotFound):
		return fam, r.notRenamed(ctx, old, renamed)
	case changed && fam.Root.Scope == renamed && !r.m.hasScope(fam.Root, renamed):
		return fam, tampered(&fam.Root, fmt.Sprintf("its manifest fits neither this name nor %q", old))
	case err == nil && otherScope:
		return fam, tampered(&fam.Root, "it was read for another scope")
	}
	return fam, err
}

// hasScope says whether a root key's manifest is right under a scope's name.
func (m *Manager) hasScope(root store.Key, scope key.Scope) bool {
	root.Scope = scope
	manifest, err := m.manifestOf(&root)
	return err == nil && m.ring.verify(root.IKKID, manifest.Append(nil), root.MAC)
}

// notRenamed says what to do where there is no scope of the new name.
func (r reader) notRenamed(ctx context.Context, old, renamed key.Scope) error {
	_, err := r.q.Key(ctx, key.Ref{Scope: old})
	_, invalid := errors.AsType[*InvalidError](err)
	switch {
	case err == nil:
		return fmt.Errorf("scope %q still has its old name: the application has to change that first, in its own table or, "+
			"without a foreign key, in kms_root_key.scope_id: scope %q: %w", old, renamed, store.ErrNotFound)
	case invalid || errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("scope %q: %w", renamed, store.ErrNotFound)
	}
	return err
}
