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

// The first column says what a row is: the installation, a slot or an installation key. Of two installation keys the
// one that follows the other is the later one, whatever the clock said.
var installationQuery = define(`
select 0, 0 as number, active_slot, '', '', ik_kid, inst, mac, seq, created, 0, 0, 0 from {prefix}_installation
union all
select 1, number, private_id, wrapper_type, wrapper_key_id, ik_kid, blob, null,
    state, created, coalesce(activated, 0), coalesce(retired, 0), coalesce(removed, 0)
from {prefix}_root_slot
union all
select 2, exists (select 1 from {prefix}_installation_key p where p.ik_kid = k.previous), '', '', '',
    ik_kid, previous, link, 0, created, 0, 0, 0
from {prefix}_installation_key k
order by 1, 2`)

// Installation implements [store.Queries].
func (q queries) Installation(ctx context.Context) (store.Installation, error) {
	var in store.Installation
	err := q.each(ctx, installationQuery, nil, func(r *sql.Rows) error {
		var what, number, seq, created int64
		var s store.Slot
		var x, y []byte
		if err := r.Scan(&what, &number, &s.ID, &s.WrapperType, &s.WrapperKeyID, &s.IKKID, &x, &y,
			&seq, &created, &s.Activated, &s.Retired, &s.Removed); err != nil {
			return &rows.Error{Row: nameOf(what, s.ID), Problem: err.Error()}
		}
		var bad rows.Numbers
		switch what {
		case 0:
			in.Inst, in.IKKID, in.MAC, in.ActiveSlot, in.Created = x, s.IKKID, y, s.ID, created
			in.Seq = rows.Fit[uint64](&bad, seq)
		case 1:
			s.State, s.Blob, s.Created = rows.Fit[key.State](&bad, seq), x, created
			in.Slots = append(in.Slots, s)
		default:
			in.Keys = append(in.Keys, store.InstallationKey{KID: s.IKKID, Previous: x, Link: y, Created: created})
		}
		return bad.Check(nameOf(what, s.ID))
	})
	if err == nil && in.Inst == nil {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Installation{}, q.tables.explain(ctx, "read the installation", err)
	}
	return in, nil
}

// nameOf is how an error calls a row of installationQuery.
func nameOf(what int64, slot key.ID) string {
	switch what {
	case 0:
		return "installation"
	case 1:
		return string(slot)
	}
	return "installation_key"
}

var (
	hasInstallation = define(`select exists (select 1 from {prefix}_installation)`)

	insertInstallation = define(`
insert into {prefix}_installation (only_row, inst, ik_kid, seq, active_slot, mac) values (1, ?, ?, ?, ?, ?)`)

	insertInstallationKey = define(`insert into {prefix}_installation_key (ik_kid, previous, link) values (?, ?, ?)`)

	insertSlot = define(`
insert into {prefix}_root_slot (private_id, number, wrapper_type, wrapper_key_id, ik_kid, state, blob, activated, retired)
values (?1, 1 + coalesce((select max(number) from {prefix}_root_slot), 0), ?2, ?3, ?4, ?5, ?6,
    case when ?5 = 2 then cast(strftime('%s', 'now') as integer) end,
    case when ?5 <> 2 then cast(strftime('%s', 'now') as integer) end)`)
)

// Initialize implements [store.Store].
func (s *Store) Initialize(ctx context.Context, in store.Installation) error {
	err := s.write(ctx, func(w *writer) error {
		if there, err := w.is(ctx, hasInstallation); err != nil {
			return err
		} else if there {
			return store.ErrConflict
		}
		seq, err := integers(in.Seq)
		if err != nil {
			return err
		}
		if err := w.addKey(ctx, &store.InstallationKey{KID: in.IKKID}); err != nil {
			return err
		}
		_, err = w.exec(ctx, insertInstallation, in.Inst, in.IKKID, seq[0], string(in.ActiveSlot), in.MAC)
		if err != nil {
			return err
		}
		if err := w.addSlots(ctx, in.Slots); err != nil {
			return err
		}
		return w.checkRoots(ctx, nil)
	})
	return s.tables.explain(ctx, "initialize", err)
}

func (w *writer) addKey(ctx context.Context, k *store.InstallationKey) error {
	var previous, link any
	if len(k.Previous) > 0 {
		previous = k.Previous
	}
	if len(k.Link) > 0 {
		link = k.Link
	}
	if _, err := w.exec(ctx, insertInstallationKey, k.KID, previous, link); err != nil {
		return fmt.Errorf("installation key %s: %w", key.Base32(k.KID), err)
	}
	return nil
}

func (w *writer) addSlots(ctx context.Context, slots []store.Slot) error {
	for _, s := range slots {
		err := fmt.Errorf("a new slot cannot be %v", s.State)
		if s.State == key.Active || s.State == key.Retired {
			_, err = w.exec(ctx, insertSlot,
				string(s.ID), s.WrapperType, s.WrapperKeyID, s.IKKID, int64(s.State), s.Blob)
		}
		if err != nil {
			return fmt.Errorf("slot %s: %w", s.ID, err)
		}
	}
	return nil
}

// The argument is the installation key that is about to go, or null.
var rootsQuery = define(`
with k as (select * from {prefix}_installation_key where ik_kid is not ?1)
select
    exists (
        select 1 from {prefix}_installation i
        join {prefix}_root_slot s on s.private_id = i.active_slot and s.ik_kid = i.ik_kid
        where s.state = 2),
    not exists (select 1 from {prefix}_root_slot where state <> 5 and ik_kid not in (select ik_kid from k)),
    (select count(*) from k) in (1, 1 + (select min(1, count(*)) from k join k p on p.ik_kid = k.previous))`)

// checkRoots looks at what has to hold between the installation, its slots, and its keys but for the one that is about
// to go.
func (w *writer) checkRoots(ctx context.Context, drop []byte) error {
	var active, named, chain bool
	err := w.each(ctx, rootsQuery, func(r *sql.Rows) error { return r.Scan(&active, &named, &chain) }, drop)
	if err != nil {
		return err
	}
	switch {
	case !active:
		return errors.New("the active slot is not there, not active, or not of the installation key")
	case !named:
		return errors.New("a slot that is not removed holds an installation key that is not there")
	case !chain:
		return errors.New("there may be one installation key, and one that follows it")
	}
	return nil
}

var (
	isAtRoots = define(`select exists (select 1 from {prefix}_installation where inst = ? and seq = ?)`)

	updateInstallation = define(`update {prefix}_installation set ik_kid = ?, seq = ?, active_slot = ?, mac = ?`)

	changeSlot = define(`
update {prefix}_root_slot
set state = ?3,
    activated = case ?3 when 2 then cast(strftime('%s', 'now') as integer) else activated end,
    retired = case when ?3 = 2 then null when ?2 = 2 then cast(strftime('%s', 'now') as integer) else retired end,
    removed = case ?3 when 5 then cast(strftime('%s', 'now') as integer) end,
    blob = case ?3 when 5 then x'' else blob end
where private_id = ?1 and state = ?2`)

	deleteInstallationKey = define(`delete from {prefix}_installation_key where ik_kid = ?`)
)

// ChangeRoots implements [store.Store]. To let an installation key go it reads all keys.
func (s *Store) ChangeRoots(ctx context.Context, c store.RootsChange) error {
	err := s.write(ctx, func(w *writer) error {
		from, err := integers(c.From)
		if err != nil {
			return store.ErrConflict // nothing stored has such a number
		}
		if is, err := w.is(ctx, isAtRoots, c.Inst[:], from[0]); err != nil {
			return err
		} else if !is {
			return store.ErrConflict
		}
		return w.changeRoots(ctx, &c)
	})
	return s.tables.explain(ctx, "change the roots", err)
}

// changeRoots goes in an order that the constraints allow: an installation key before what names it; the old active
// slot's retirement before the new one's activation, because of an installation key only one may be active; and what
// names an installation key before that goes.
func (w *writer) changeRoots(ctx context.Context, c *store.RootsChange) error {
	seq, err := integers(c.Seq)
	if err != nil {
		return err
	}
	if c.AddKey != nil {
		if len(c.AddKey.Previous) == 0 {
			return fmt.Errorf("installation key %s follows none", key.Base32(c.AddKey.KID))
		}
		if err := w.addKey(ctx, c.AddKey); err != nil {
			return err
		}
	}
	for _, kid := range [][]byte{c.IKKID, c.Drop} {
		if there, err := w.is(ctx, isInstallationKey, kid); err != nil {
			return err
		} else if !there && len(kid) > 0 {
			return fmt.Errorf("installation key %s is not there", key.Base32(kid))
		}
	}
	if _, err := w.exec(ctx, updateInstallation, c.IKKID, seq[0], string(c.ActiveSlot), c.MAC); err != nil {
		return err
	}
	if err := w.changeSlots(ctx, c.States); err != nil {
		return err
	}
	if err := w.addSlots(ctx, c.Add); err != nil {
		return err
	}
	if err := w.checkRoots(ctx, c.Drop); err != nil || len(c.Drop) == 0 {
		return err
	}
	_, err = w.exec(ctx, deleteInstallationKey, c.Drop)
	if classify(err) == classForeignKey {
		err = fmt.Errorf("%w: something still names installation key %s", store.ErrConflict, key.Base32(c.Drop))
	}
	return err
}

func (w *writer) changeSlots(ctx context.Context, changes []store.SlotChange) error {
	for i, c := range changes {
		if slices.ContainsFunc(changes[:i], func(other store.SlotChange) bool { return other.ID == c.ID }) {
			return fmt.Errorf("slot %s is named twice", c.ID)
		}
	}
	for _, activate := range []bool{false, true} {
		for _, c := range changes {
			if (c.To == key.Active) != activate {
				continue
			}
			var n int64
			err := errors.New("it is not allowed")
			if c.From != c.To && (c.To == key.Active || c.To == key.Retired || c.To == key.Destroyed) {
				n, err = w.exec(ctx, changeSlot, string(c.ID), int64(c.From), int64(c.To))
			}
			if err == nil && n == 0 {
				err = errors.New("there is no such slot in that state")
			}
			if err != nil {
				return fmt.Errorf("slot %s from %v to %v: %w", c.ID, c.From, c.To, err)
			}
		}
	}
	return nil
}
