package pgstore

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

var (
	// Whoever changes the roots waits here, while nothing else is locked.
	lockInstallation = define(`
select 1 from {schema}{prefix}_installation where inst = $1::bytea and seq = $2::bigint for no key update`)

	insertInstallationKey = define(`
insert into {schema}{prefix}_installation_key (ik_kid, previous, link)
values ($1::bytea, $2::bytea, $3::bytea)`)

	deleteInstallationKey = define(`
delete from {schema}{prefix}_installation_key where ik_kid = $1::bytea returning 1`)

	insertSlots = define(`
insert into {schema}{prefix}_root_slot
    (private_id, number, wrapper_type, wrapper_key_id, ik_kid, state, blob, created, activated, retired)
select n.private_id, n.number + (select coalesce(max(number), 0) from {schema}{prefix}_root_slot),
    n.wrapper_type, n.wrapper_key_id, n.ik_kid, n.state, n.blob, now,
    case when n.state = 2 then now end, case when n.state <> 2 then now end
from unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::bytea[]) with ordinality
    as n (private_id, wrapper_type, wrapper_key_id, ik_kid, state, blob, number),
    (select floor(extract(epoch from statement_timestamp()))::bigint as now) clock
order by n.number`)

	changeSlots = define(`
update {schema}{prefix}_root_slot s set state = n.new, blob = case when n.new = 5 then '' else s.blob end
from unnest($1::text[], $2::bigint[], $3::bigint[]) as n (private_id, old, new)
where s.private_id = n.private_id and s.state = n.old
returning 1`)

	updateInstallation = define(`
update {schema}{prefix}_installation set seq = $1::bigint, ik_kid = $2::bytea, active_slot = $3::text, mac = $4::bytea`)

	// Its foreign key would say the same, and not whether it was the caller's mistake.
	installationKeyThere = define(`select 1 from {schema}{prefix}_installation_key where ik_kid = $1::bytea`)

	// The foreign key of the installation says only that there is such a slot.
	activeSlotOpens = define(`
select 1
from {schema}{prefix}_installation i
join {schema}{prefix}_root_slot s on s.private_id = i.active_slot and s.ik_kid = i.ik_kid and s.state = 2`)

	// The argument is the installation key that goes, or null.
	slotsWithoutKey = define(`
select 1 from {schema}{prefix}_root_slot s
where s.state <> 5 and not exists (
    select 1 from {schema}{prefix}_installation_key k where k.ik_kid = s.ik_kid and k.ik_kid is distinct from $1::bytea)`)

	keysInARow = define(`
select 1
from (
    select count(*) as n, count(p.ik_kid) as following
    from {schema}{prefix}_installation_key k
    left join {schema}{prefix}_installation_key p on p.ik_kid = k.previous and p.ik_kid is distinct from $1::bytea
    where k.ik_kid is distinct from $1::bytea) keys
where n = 1 or n = 2 and following = 1`)
)

// ChangeRoots implements [store.Store]. It takes two round trips besides the commit. Where an installation key goes,
// the tables of the keys are read once from one end to the other.
func (s *Store) ChangeRoots(ctx context.Context, c store.RootsChange) error {
	return s.tables.explain(ctx, "change the roots", s.changeRoots(ctx, &c))
}

func (s *Store) changeRoots(ctx context.Context, c *store.RootsChange) error {
	from, err := integer(c.From)
	if err != nil {
		return store.ErrConflict // nothing stored has such a number
	}
	seq, invalid := integer(c.Seq)
	switch err := rows.CheckSlotChanges(c.States); {
	case err != nil:
		invalid = err
	case c.AddKey != nil && len(c.AddKey.Previous) == 0:
		invalid = errors.New("an installation key is added that follows none")
	}
	batch := s.rootsChange(c, seq)
	return s.write(ctx, func(w *writer) error {
		lock := s.tables.statement(lockInstallation, c.Inst[:], from)
		lock.done = func(rows int) error {
			if rows == 0 {
				return store.ErrConflict
			}
			return invalid
		}
		if err := w.run(ctx, lock); err != nil {
			return err
		}
		return w.last(ctx, batch...)
	})
}

// rootsChange goes in an order that the constraints allow: a slot's retirement before another's activation, because of
// an installation key only one may be active; an installation key before the manifest that names it, and after the
// manifest that named it.
func (s *Store) rootsChange(c *store.RootsChange, seq int64) (batch []statement) {
	if k := c.AddKey; k != nil {
		batch = append(batch, s.tables.statement(insertInstallationKey, k.KID, orNull(k.Previous), orNull(k.Link)))
	}
	batch = append(batch, s.slotChanges(c.States, false)...)
	if len(c.Add) > 0 {
		batch = append(batch, s.insertSlots(c.Add))
	}
	batch = append(batch, s.slotChanges(c.States, true)...)
	batch = append(batch,
		exactly(1, "the installation key of the slots' manifest is not there",
			s.tables.statement(installationKeyThere, c.IKKID)),
		s.tables.statement(updateInstallation, seq, c.IKKID, storable(string(c.ActiveSlot)), c.MAC))
	batch = append(batch, s.rootsFit(orNull(c.Drop))...)
	if len(c.Drop) > 0 {
		batch = append(batch, exactly(1, "the installation key that was to go is not there",
			s.tables.statement(deleteInstallationKey, c.Drop)))
	}
	return batch
}

// rootsFit looks at what has to hold between the installation, its slots, and its keys without the one that goes.
func (s *Store) rootsFit(drop []byte) []statement {
	return []statement{
		exactly(1, "the active slot is not there, not active, or of another installation key",
			s.tables.statement(activeSlotOpens)),
		exactly(0, "a root slot holds an installation key that is not there",
			s.tables.statement(slotsWithoutKey, drop)),
		exactly(1, "there may be one installation key, and one that follows it",
			s.tables.statement(keysInARow, drop)),
	}
}

func (s *Store) insertSlots(list []store.Slot) statement {
	var ids, types, keyIDs []string
	var ikKIDs, blobs [][]byte
	var states []int64
	for _, slot := range list {
		ids = append(ids, string(slot.ID))
		types = append(types, slot.WrapperType)
		keyIDs = append(keyIDs, slot.WrapperKeyID)
		ikKIDs = append(ikKIDs, slot.IKKID)
		states = append(states, int64(slot.State))
		blobs = append(blobs, slot.Blob)
	}
	return s.tables.statement(insertSlots, ids, types, keyIDs, ikKIDs, states, blobs)
}

// slotChanges is no statement if no slot becomes active, or none becomes anything else.
func (s *Store) slotChanges(changes []store.SlotChange, activate bool) []statement {
	var ids []string
	var from, to []int64
	for _, c := range changes {
		if (c.To == key.Active) == activate {
			ids, from, to = append(ids, storable(string(c.ID))), append(from, int64(c.From)), append(to, int64(c.To))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return []statement{exactly(len(ids), "a root slot whose state was to change is not there in that state",
		s.tables.statement(changeSlots, ids, from, to))}
}

// orNull is b as an argument that is null if b is empty.
func orNull(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

var (
	insertEscrow = define(`
insert into {schema}{prefix}_escrow (ik_kid, event, detail)
select $2::bytea, $3::text, $4::text
where exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)`)

	escrowsQuery = define(`select ik_kid, event, detail, at from {schema}{prefix}_escrow order by id`)
)

// Escrows implements [store.Store].
func (s *Store) Escrows(ctx context.Context) ([]store.Escrow, error) {
	var list []store.Escrow
	err := s.each(ctx, escrowsQuery, nil, func() { list = nil }, func(scan func(...any) error) error {
		var e store.Escrow
		err := scan(&e.IKKID, &e.Event, &e.Detail, &e.At)
		list = append(list, e)
		return err
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "read what became of the recovery files", err)
	}
	return list, nil
}

// AddEscrow implements [store.Store].
func (s *Store) AddEscrow(ctx context.Context, inst [16]byte, e store.Escrow) error {
	const doing = "store what became of recovery files"
	if err := rows.CheckEscrow(&e); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	err := s.write(ctx, func(w *writer) error {
		return w.last(ctx, s.tables.statement(insertEscrow, inst[:], e.IKKID, e.Event, e.Detail))
	})
	return s.tables.explain(ctx, doing, err)
}
