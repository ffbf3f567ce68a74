package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

var (
	updateRootKey = define(`
update {prefix}_root_key
set seq = ?3, head_version = ?4, rotate_every = ?5, max_messages = ?6, ik_kid = ?7, mac = ?8, rotate_at = ?9
where private_id = ?1 and seq = ?2`)

	updateDataKey = define(`
update {prefix}_data_key
set seq = ?3, head_version = ?4, rotate_every = ?5, max_messages = ?6, ik_kid = ?7, mac = ?8, rotate_at = ?9,
    generator = ?10
where private_id = ?1 and seq = ?2`)

	changeRootKeyVersion = define(`
update {prefix}_root_key_version
set state = ?4, disabled = case ?4 when 4 then cast(strftime('%s', 'now') as integer) end
where root_key_id = ?1 and version = ?2 and state = ?3`)

	changeDataKeyVersion = define(`
update {prefix}_data_key_version
set state = ?4, disabled = case ?4 when 4 then cast(strftime('%s', 'now') as integer) end
where data_key_id = ?1 and version = ?2 and state = ?3`)

	destroyRootKeyVersion = define(`delete from {prefix}_root_key_version where root_key_id = ? and version = ?`)
	destroyDataKeyVersion = define(`delete from {prefix}_data_key_version where data_key_id = ? and version = ?`)

	// Of a version in another state there is another reason why it is not destroyed, which the trigger says.
	rootVersionID = define(`
select private_id from {prefix}_root_key_version where root_key_id = ? and version = ? and state in (1, 4)`)
	dataVersionID = define(`
select private_id from {prefix}_data_key_version where data_key_id = ? and version = ? and state in (1, 4)`)
)

// Update implements [store.Queries].
func (q queries) Update(ctx context.Context, u store.Update) error {
	err := q.view.write(ctx, func(w *writer) error {
		if err := w.checkRight(ctx, u.Inst, u.Lease); err != nil {
			return err
		}
		there, err := w.update(ctx, &u)
		if err == nil && !there {
			err = store.ErrConflict
		}
		return err
	})
	if errors.Is(err, errNoRight) {
		err = store.ErrConflict
	}
	return q.tables.explain(ctx, "update key "+string(u.KeyID), err)
}

// UpdateAll implements [store.Store]. There is one writer at a time, so that nobody else is at work at any scope.
func (s *Store) UpdateAll(ctx context.Context, updates []store.Update) ([]bool, error) {
	made := make([]bool, len(updates))
	err := rows.CheckUpdates(updates)
	if err == nil && len(updates) > 0 {
		err = s.write(ctx, func(w *writer) (err error) {
			if err := w.checkRight(ctx, updates[0].Inst, updates[0].Lease); err != nil {
				return err
			}
			for i := range updates {
				if made[i], err = w.update(ctx, &updates[i]); err != nil {
					return fmt.Errorf("key %s: %w", updates[i].KeyID, err)
				}
			}
			return nil
		})
	}
	if errors.Is(err, errNoRight) {
		return make([]bool, len(updates)), nil
	}
	if err != nil {
		return nil, s.tables.explain(ctx, "update keys", err)
	}
	return made, nil
}

// update changes the key, or says that it is not there with that sequence number. It goes in an order that the
// constraints allow: the key's row first, because a version's state depends on which one is the head; the old head's
// retirement before the new one's activation, because only one may be active.
func (w *writer) update(ctx context.Context, u *store.Update) (there bool, err error) {
	if u.Kind != key.KEK && u.Kind != key.DEK {
		return false, fmt.Errorf("a key cannot be of kind %q", u.Kind)
	}
	args, err := manifestArgs(u.Kind, u.Manifest, u.RotateAt)
	if err != nil {
		return false, err
	}
	from, err := integers(u.From)
	if err != nil {
		return false, nil //nolint:nilerr // nothing stored has such a number
	}
	n, err := w.execUnder(ctx, u.Manifest.IKKID, of(u.Kind).update, append([]any{string(u.KeyID), from[0]}, args...)...)
	if err != nil || n == 0 {
		return false, err
	}
	return true, w.updateVersions(ctx, u)
}

func (w *writer) updateVersions(ctx context.Context, u *store.Update) error {
	if err := checkNamedOnce(u); err != nil {
		return err
	}
	if u.Add != nil {
		if u.Add.State != key.Pending {
			return fmt.Errorf("version %d is added as %v, not pending", u.Add.Number, u.Add.State)
		}
		if err := w.insertVersion(ctx, u.Kind, u.KeyID, u.Add); err != nil {
			return err
		}
	}
	if err := w.changeStates(ctx, u); err != nil {
		return err
	}
	for _, v := range u.Destroy {
		if err := w.destroy(ctx, u, v); err != nil {
			return fmt.Errorf("destroy version %d: %w", v, err)
		}
	}
	if err := w.checkHead(ctx, u.Kind, u.KeyID); err != nil || u.Kind != key.KEK {
		return err
	}
	for _, c := range u.States {
		if c.To == key.Disabled {
			if err := w.notReferred(ctx, u, c.Number); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkNamedOnce(u *store.Update) error {
	named := slices.Clone(u.Destroy)
	for _, c := range u.States {
		named = append(named, c.Number)
	}
	if u.Add != nil {
		named = append(named, u.Add.Number)
	}
	slices.Sort(named)
	if len(slices.Compact(slices.Clone(named))) != len(named) {
		return errors.New("a version is named twice")
	}
	return nil
}

func (w *writer) changeStates(ctx context.Context, u *store.Update) error {
	for _, activate := range []bool{false, true} {
		for _, c := range u.States {
			if (c.To == key.Active) != activate {
				continue
			}
			var n int64
			err := errors.New("it is not allowed")
			if c.From.CanBecome(c.To) && c.To != key.Destroyed {
				n, err = w.exec(ctx, of(u.Kind).changeState, string(u.KeyID), int64(c.Number), int64(c.From), int64(c.To))
			}
			if err == nil && n == 0 {
				err = errors.New("there is no such version in that state")
			}
			if err != nil {
				return fmt.Errorf("version %d from %v to %v: %w", c.Number, c.From, c.To, err)
			}
		}
	}
	return nil
}

func (w *writer) destroy(ctx context.Context, u *store.Update, v key.Version) error {
	if err := w.notReferred(ctx, u, v); err != nil {
		return err
	}
	n, err := w.exec(ctx, of(u.Kind).destroy, string(u.KeyID), int64(v))
	if err == nil && n == 0 {
		err = errors.New("there is no such version")
	}
	return err
}

// notReferred looks, for a version that is to be deleted or disabled, whether a row has its id. A foreign key may take
// that row along, or say so only at the end of the transaction, which may be the application's; and where there is
// none, nobody else says it.
func (w *writer) notReferred(ctx context.Context, u *store.Update, n key.Version) error {
	var id key.ID
	err := w.each(ctx, of(u.Kind).idOf, func(r *sql.Rows) error { return r.Scan(&id) }, string(u.KeyID), int64(n))
	if err != nil || id == "" {
		return err
	}
	return w.unused(ctx, u.Kind, id)
}

var (
	rewrapRootKeyVersion = define(`update {prefix}_root_key_version set key = ?3, ik_kid = ?4 where private_id = ?1 and key = ?2`)
	rewrapDataKeyVersion = define(`
update {prefix}_data_key_version set key = ?3, root_key_version_id = ?4 where private_id = ?1 and key = ?2`)
)

// Rewrap implements [store.Queries].
func (q queries) Rewrap(ctx context.Context, inst [16]byte, rewraps []store.Rewrap, under *store.Lease) (int, error) {
	n := 0
	err := q.view.write(ctx, func(w *writer) error {
		if err := w.checkRight(ctx, inst, under); err != nil {
			return err
		}
		for _, r := range rewraps {
			kind, _ := r.ID.Kind()
			wrapped, err := wrappedUnder(kind, r.Parent, r.IKKID)
			var changed int64
			if err == nil {
				changed, err = w.execUnder(ctx, r.IKKID, of(kind).rewrap, string(r.ID), r.Old, r.Blob, wrapped)
			}
			if err != nil {
				return fmt.Errorf("version %s: %w", r.ID, err)
			}
			n += int(changed)
		}
		return nil
	})
	if errors.Is(err, errNoRight) {
		return 0, nil
	}
	if err != nil {
		return 0, q.tables.explain(ctx, "rewrap", err)
	}
	return n, nil
}
