package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var (
	updateRootKeys = define(`
update {schema}{prefix}_root_key k
set seq = n.seq, head_version = n.head_version, rotate_every = n.rotate_every, max_messages = n.max_messages,
    rotate_at = nullif(n.rotate_at, 0), ik_kid = n.ik_kid, mac = n.mac
from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[],
        $10::bytea[])
    as n (private_id, old, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac)
where k.private_id = n.private_id and k.seq = n.old
    and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
returning k.private_id`)

	updateDataKeys = define(`
update {schema}{prefix}_data_key k
set seq = n.seq, head_version = n.head_version, rotate_every = n.rotate_every, max_messages = n.max_messages,
    rotate_at = nullif(n.rotate_at, 0), ik_kid = n.ik_kid, mac = n.mac, generator = n.generator
from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[],
        $10::bytea[], $11::text[])
    as n (private_id, old, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac, generator)
where k.private_id = n.private_id and k.seq = n.old
    and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
returning k.private_id`)

	changeRootKeyVersions = define(`
update {schema}{prefix}_root_key_version v set state = n.new
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) as n (key_id, version, old, new)
where v.root_key_id = n.key_id and v.version = n.version and v.state = n.old
returning v.private_id, v.state = 4`)

	changeDataKeyVersions = define(`
update {schema}{prefix}_data_key_version v set state = n.new
from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) as n (key_id, version, old, new)
where v.data_key_id = n.key_id and v.version = n.version and v.state = n.old
returning v.private_id, v.state = 4`)

	destroyRootKeyVersions = define(`
delete from {schema}{prefix}_root_key_version where root_key_id = $1::text and version = any ($2::bigint[]) returning 1`)
	destroyDataKeyVersions = define(`
delete from {schema}{prefix}_data_key_version where data_key_id = $1::text and version = any ($2::bigint[]) returning 1`)

	// Of a version in another state there is another reason why it is not destroyed, which the trigger says.
	lockRootKeyVersions = define(`
select private_id from {schema}{prefix}_root_key_version
where root_key_id = $1::text and version = any ($2::bigint[]) and state in (1, 4)
order by version for update`)
	lockDataKeyVersions = define(`
select private_id from {schema}{prefix}_data_key_version
where data_key_id = $1::text and version = any ($2::bigint[]) and state in (1, 4)
order by version for update`)

	lockRootKeyOf = define(`
select 1
from {schema}{prefix}_root_key r
join {schema}{prefix}_data_key k on k.root_key_id = r.private_id
where k.private_id = $1::text
for no key update of r`)

	lockRootKeyOfParent = define(`
select 1
from {schema}{prefix}_root_key r
where r.private_id = (select v.root_key_id from {schema}{prefix}_root_key_version v where v.private_id = $1::text)
for no key update`)

	// The foreign key of the head says this only at the end of the transaction, too.
	rootHeadsAreActive = define(`
select 1
from {schema}{prefix}_root_key k
join {schema}{prefix}_root_key_version v on v.root_key_id = k.private_id and v.version = k.head_version
where k.private_id = any ($1::text[]) and v.state = 2`)

	dataHeadsAreActive = define(`
select 1
from {schema}{prefix}_data_key k
join {schema}{prefix}_data_key_version v on v.data_key_id = k.private_id and v.version = k.head_version
where k.private_id = any ($1::text[]) and v.state = 2`)
)

// statements are those that exist for both kinds of keys.
type statements struct {
	update, changeStates, lock, lockFree, lockFreeVersions, destroy, headsAreActive, rewrap query
}

func of(kind key.Kind) statements {
	if kind == key.KEK {
		return statements{
			updateRootKeys, changeRootKeyVersions, lockRootKeyVersions, lockFreeRootKeys, lockFreeRootKeyVersions,
			destroyRootKeyVersions, rootHeadsAreActive, rewrapRootKeyVersions,
		}
	}
	return statements{
		updateDataKeys, changeDataKeyVersions, lockDataKeyVersions, lockFreeRootKeysOf, lockFreeDataKeyVersions,
		destroyDataKeyVersions, dataHeadsAreActive, rewrapDataKeyVersions,
	}
}

// Update implements [store.Queries]. It takes one round trip besides the commit, three more if versions are destroyed,
// and two more if versions of a root key are disabled.
func (q queries) Update(ctx context.Context, u store.Update) error {
	err := q.view.write(ctx, func(w *writer) error { return w.update(ctx, &u) })
	return q.tables.explain(ctx, "update key "+string(u.KeyID), err)
}

// update goes in an order that the constraints allow: the key's row first, because a version's state depends on
// which one is the head, and because that row is what others wait for; the old head's retirement before the new
// one's activation, because only one may be active.
//
// Before a data key comes the row of its root key: whoever changes keys of a scope waits there, while nothing is locked
// that others need. The application's deletion of a tenant goes from the root key downwards, too. If some went the
// other way, two could wait for each other, and PostgreSQL would give up either, such as that deletion.
func (w *writer) update(ctx context.Context, u *store.Update) error {
	first, err := w.move(u.Inst, u.Kind, []*store.Update{u})
	if err != nil {
		return err
	}
	id, invalid := storable(string(u.KeyID)), checkUpdate(u)
	first.done = func(rows int) error {
		if rows == 0 {
			return store.ErrConflict
		}
		return invalid
	}
	batch := w.held(u.Lease, store.ErrConflict)
	if u.Kind == key.DEK {
		batch = append(batch, w.tables.statement(lockRootKeyOf, id))
	}
	batch = append(batch, first)
	if invalid == nil && len(u.Destroy) > 0 {
		if err := w.notReferred(ctx, id, u, batch); err != nil {
			return err
		}
		batch = nil
	}
	var disabled []key.ID
	if invalid == nil {
		batch = append(batch, w.changes(u.Kind, []*store.Update{u}, &disabled)...)
	}
	if err := w.run(ctx, batch...); err != nil || u.Kind != key.KEK || len(disabled) == 0 {
		return err
	}
	// By now nothing more is wrapped under them: a trigger waits for this transaction, and then refuses.
	return w.unused(ctx, u.Kind, disabled)
}

// move is the statement that replaces the manifests of keys of one kind.
func (w *writer) move(inst [16]byte, kind key.Kind, updates []*store.Update) (statement, error) {
	var ids, generators []string
	var from, seqs, heads, every, most, dues []int64
	var kids, macs [][]byte
	if kind != key.KEK && kind != key.DEK {
		return statement{}, fmt.Errorf("a key cannot be of kind %q", kind)
	}
	for _, u := range updates {
		m, err := manifestOf(kind, &u.Manifest, u.RotateAt)
		if err != nil {
			return statement{}, err
		}
		old, err := integer(u.From)
		if err != nil {
			old = -1 // nothing stored has such a number
		}
		ids, from = append(ids, storable(string(u.KeyID))), append(from, old)
		seqs, heads = append(seqs, m.seq), append(heads, m.head)
		every, most, dues = append(every, m.rotateEvery), append(most, m.maxMessages), append(dues, u.RotateAt)
		kids, macs = append(kids, u.Manifest.IKKID), append(macs, u.Manifest.MAC)
		generators = append(generators, u.Manifest.Generator)
	}
	st := w.tables.statement(of(kind).update, inst[:], ids, from, seqs, heads, every, most, dues, kids, macs)
	if kind == key.DEK {
		st.args = append(st.args, generators)
	}
	return st, nil
}

// notReferred looks, before versions are deleted, whether a row has the id of one. A foreign key may take that row
// along, or say so only at the end of the transaction, which may be the application's; and where there is none, nobody
// else says it. The versions' rows are locked before, after what else comes first, so that whoever inserts a row with a
// foreign key to one waits.
func (w *writer) notReferred(ctx context.Context, id string, u *store.Update, first []statement) error {
	var numbers []int64
	for _, n := range u.Destroy {
		numbers = append(numbers, int64(n))
	}
	var ids []key.ID
	lock := w.tables.statement(of(u.Kind).lock, id, numbers)
	lock.row = func(scan func(...any) error) error {
		var version key.ID
		err := scan(&version)
		ids = append(ids, version)
		return err
	}
	if err := w.run(ctx, append(first, lock)...); err != nil {
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	return w.unused(ctx, u.Kind, ids)
}

// checkUpdate refuses what the tables could not, or not in all cases.
func checkUpdate(u *store.Update) error {
	named := slices.Clone(u.Destroy)
	for _, c := range u.States {
		named = append(named, c.Number)
		if !c.From.CanBecome(c.To) || c.To == key.Destroyed {
			return fmt.Errorf("version %d from %v to %v: it is not allowed", c.Number, c.From, c.To)
		}
	}
	if u.Add != nil {
		named = append(named, u.Add.Number)
		if u.Add.State != key.Pending {
			return fmt.Errorf("version %d is added as %v, not pending", u.Add.Number, u.Add.State)
		}
		if err := checkWrapping(u.Kind, u.Add.Parent, u.Add.IKKID); err != nil {
			return fmt.Errorf("version %d: %w", u.Add.Number, err)
		}
	}
	slices.Sort(named)
	if len(slices.Compact(slices.Clone(named))) != len(named) {
		return errors.New("a version is named twice")
	}
	return nil
}

// changes are the statements that come after the rows of keys of one kind. They put into disabled which versions they
// disable.
func (w *writer) changes(kind key.Kind, updates []*store.Update, disabled *[]key.ID) (batch []statement) {
	var r round
	added := &r.data
	if kind == key.KEK {
		added = &r.root
	}
	var ids []string
	for _, u := range updates {
		ids = append(ids, storable(string(u.KeyID)))
		if u.Add != nil {
			added.add(u.KeyID, u.Add)
		}
	}
	batch = w.insertVersions(false, &r)
	for _, activate := range []bool{false, true} {
		var keys []string
		var numbers, from, to []int64
		for i, u := range updates {
			for _, c := range u.States {
				if (c.To == key.Active) == activate {
					keys, numbers = append(keys, ids[i]), append(numbers, int64(c.Number))
					from, to = append(from, int64(c.From)), append(to, int64(c.To))
				}
			}
		}
		if len(numbers) > 0 {
			change := w.tables.statement(of(kind).changeStates, keys, numbers, from, to)
			change.row = func(scan func(...any) error) error {
				var version key.ID
				off := false
				err := scan(&version, &off)
				if off {
					*disabled = append(*disabled, version)
				}
				return err
			}
			batch = append(batch, exactly(len(numbers), "a version whose state was to change is not there in that state", change))
		}
	}
	for i, u := range updates {
		if len(u.Destroy) > 0 {
			batch = append(batch, w.destroy(ids[i], u))
		}
	}
	return append(batch,
		exactly(len(ids), "the head is not there, or not active", w.tables.statement(of(kind).headsAreActive, ids)))
}

func (w *writer) destroy(id string, u *store.Update) statement {
	var numbers []int64
	for _, n := range u.Destroy {
		numbers = append(numbers, int64(n))
	}
	return exactly(len(numbers), "a version that was to be destroyed is not there",
		w.tables.statement(of(u.Kind).destroy, id, numbers))
}

// exactly makes any other number of rows an error.
func exactly(n int, otherwise string, st statement) statement {
	st.done = func(rows int) error {
		if rows != n {
			return errors.New(otherwise)
		}
		return nil
	}
	return st
}

var (
	rewrapRootKeyVersions = define(`
update {schema}{prefix}_root_key_version v set key = n.new, ik_kid = n.ik_kid
from unnest($2::text[], $3::bytea[], $4::bytea[], $5::bytea[]) as n (private_id, old, new, ik_kid)
where v.private_id = n.private_id and v.key = n.old
    and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
returning 1`)

	rewrapDataKeyVersions = define(`
update {schema}{prefix}_data_key_version v set key = n.new, root_key_version_id = n.parent
from unnest($2::text[], $3::bytea[], $4::bytea[], $5::text[]) as n (private_id, old, new, parent)
where v.private_id = n.private_id and v.key = n.old
    and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
returning 1`)

	// Of many scopes, those that somebody has locked are left out, and waited for are none: see UpdateAll. The tables
	// refuse a parent that is not there.
	rewrapFreeDataKeyVersions = define(`
with free as materialized (
    select p.private_id
    from {schema}{prefix}_root_key_version p
    join {schema}{prefix}_root_key r on r.private_id = p.root_key_id
    where p.private_id = any ($6::text[])
    for no key update of r skip locked)
update {schema}{prefix}_data_key_version v set key = n.new, root_key_version_id = n.parent
from unnest($2::text[], $3::bytea[], $4::bytea[], $5::text[]) as n (private_id, old, new, parent)
left join free on free.private_id = n.parent
where v.private_id = n.private_id and v.key = n.old
    and (free.private_id is not null
        or not exists (select 1 from {schema}{prefix}_root_key_version p where p.private_id = n.parent))
    and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
returning 1`)
)

// rewrapRows are replacements in one table, by column, in which no version comes twice.
type rewrapRows struct {
	ids       []string
	olds, new [][]byte
	parents   []string
	ikKIDs    [][]byte
}

// Rewrap implements [store.Queries]. It takes one round trip besides the commit, however many rows there are, if no
// version comes twice. If the new parents are several, it waits for no root key.
func (q queries) Rewrap(ctx context.Context, inst [16]byte, rows []store.Rewrap, under *store.Lease) (int, error) {
	type place struct {
		kind  key.Kind
		round int
	}
	var order []place
	tables := map[place]*rewrapRows{}
	seen := map[key.ID]int{}
	for _, r := range rows {
		kind, _ := r.ID.Kind()
		err := checkWrapping(kind, r.Parent, r.IKKID)
		if kind == key.DEK && r.Parent == "" { // which would pass for one that somebody has locked
			err = errors.New("a data key's version has a parent")
		}
		if err != nil {
			return 0, fmt.Errorf("rewrap: version %s: %w", r.ID, err)
		}
		p := place{kind, seen[r.ID]}
		seen[r.ID]++
		t := tables[p]
		if t == nil {
			t = &rewrapRows{}
			tables[p] = t
			order = append(order, p)
		}
		t.ids = append(t.ids, storable(string(r.ID)))
		t.olds, t.new = append(t.olds, r.Old), append(t.new, r.Blob)
		t.parents, t.ikKIDs = append(t.parents, string(r.Parent)), append(t.ikKIDs, r.IKKID)
	}
	n := 0
	err := q.view.write(ctx, func(w *writer) error {
		n = 0
		batch := w.held(under, errNotHeld)
		for _, p := range order {
			t := tables[p]
			args := []any{inst[:], t.ids, t.olds, t.new, t.parents}
			query := of(p.kind).rewrap
			if p.kind == key.KEK {
				args[4] = t.ikKIDs
			} else if distinct := slices.Compact(slices.Sorted(slices.Values(t.parents))); len(distinct) > 1 {
				query, args = rewrapFreeDataKeyVersions, append(args, distinct)
			} else {
				batch = append(batch, w.tables.statement(lockRootKeyOfParent, distinct[0])) // as update does
			}
			st := w.tables.statement(query, args...)
			st.done = func(rows int) error {
				n += rows
				return nil
			}
			batch = append(batch, st)
		}
		if len(order) == 0 {
			return nil
		}
		return w.last(ctx, batch...)
	})
	if errors.Is(err, errNotHeld) {
		return 0, nil
	}
	if err != nil {
		return 0, q.tables.explain(ctx, "rewrap", err)
	}
	return n, nil
}
