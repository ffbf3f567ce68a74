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
	// The root keys of data keys, too: see update.
	lockRootKeys = define(`
select 1 from {schema}{prefix}_root_key
where private_id = any (array(
    select unnest($1::text[])
    union
    select root_key_id from {schema}{prefix}_data_key where private_id = any ($2::text[])))
order by private_id
for no key update`)

	// Of the keys of many root keys, those whose root key somebody has locked are left out: see UpdateAll. The first
	// number is that of the root keys.
	lockFreeRootKeysToRekey = define(`
with asked as materialized (
    select id as key_id, id as root_key_id from unnest($1::text[]) as n (id)
    union all
    select private_id, root_key_id from {schema}{prefix}_data_key where private_id = any ($2::text[])),
free as materialized (
    select private_id from {schema}{prefix}_root_key
    where private_id = any (array(select root_key_id from asked))
    for no key update skip locked)
select (select count(distinct root_key_id) from asked), a.key_id
from asked a join free on free.private_id = a.root_key_id
union all
select count(distinct root_key_id), null from asked`)

	// The keys' rows are locked by now, so that none of them gets another version meanwhile. The last two numbers are
	// those of the versions that there are, and that were given.
	rekeyRootKeys = define(`
with keys as (
    update {schema}{prefix}_root_key k set seq = n.seq, ik_kid = n.ik_kid, mac = n.mac
    from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[]) as n (private_id, old, seq, ik_kid, mac)
    where k.private_id = n.private_id and k.seq = n.old
        and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
    returning k.private_id),
given as (
    select n.private_id, n.root_key_id, n.old, n.new, n.ik_kid
    from unnest($7::text[], $8::text[], $9::bytea[], $10::bytea[], $11::bytea[]) as n (private_id, root_key_id, old, new, ik_kid)
    join keys on keys.private_id = n.root_key_id),
versions as (
    update {schema}{prefix}_root_key_version v set key = n.new, ik_kid = n.ik_kid
    from given n
    where v.private_id = n.private_id and v.root_key_id = n.root_key_id and v.key = n.old
    returning 1)
select (select count(*) from keys), (select count(*) from versions), (select count(*) from given),
    (select count(*) from keys join {schema}{prefix}_root_key_version v on v.root_key_id = keys.private_id)`)

	rekeyDataKeys = define(`
update {schema}{prefix}_data_key k set seq = n.seq, ik_kid = n.ik_kid, mac = n.mac
from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[]) as n (private_id, old, seq, ik_kid, mac)
where k.private_id = n.private_id and k.seq = n.old
    and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
returning 1`)

	// Of each root key its own row, its versions and its data keys are looked at only as far as the first that names
	// another installation key. The last row says how far was looked, where there may be more.
	//
	// A range that is one value, in the order of an index: see laggingQuery. The comparison is in a case, which the
	// planner knows nothing of: from its statistics it would know that all name the same, think that the whole range is
	// read each time, of whose length it knows nothing either, and compile the statement.
	notUnderQuery = define(`
with page as materialized (
    select private_id, scope_id::text as scope, ik_kid from {schema}{prefix}_root_key
    where private_id > $1::text order by private_id limit 1000),
other as materialized (
    select p.private_id, p.scope
    from page p
    where p.ik_kid <> $3::bytea
        or (select 1 from {schema}{prefix}_root_key_version
            where root_key_id >= p.private_id and root_key_id <= p.private_id and case when ik_kid <> $3::bytea then true end
            order by root_key_id limit 1) is not null
        or (select 1 from {schema}{prefix}_data_key
            where root_key_id >= p.private_id and root_key_id <= p.private_id and case when ik_kid <> $3::bytea then true end
            order by root_key_id limit 1) is not null
    order by p.private_id limit $2::bigint)
select false as further, private_id, scope from other
union all
select true, max(private_id), '' from page having count(*) = 1000
order by 1, 2`)
)

// rekeyRows are new manifests of keys of one kind, and new wrapped keys, by column. No key comes twice.
type rekeyRows struct {
	ids        []string
	from, seqs []int64
	ikKIDs     [][]byte
	macs       [][]byte
	versions   struct {
		ids, keyIDs       []string
		olds, new, ikKIDs [][]byte
	}
}

func (r *rekeyRows) add(k *store.Rekey, from, seq int64) {
	r.ids = append(r.ids, storable(string(k.KeyID)))
	r.from, r.seqs = append(r.from, from), append(r.seqs, seq)
	r.ikKIDs, r.macs = append(r.ikKIDs, k.IKKID), append(r.macs, k.MAC)
	for _, v := range k.Versions {
		r.versions.ids = append(r.versions.ids, storable(string(v.ID)))
		r.versions.keyIDs = append(r.versions.keyIDs, storable(string(k.KeyID)))
		r.versions.olds, r.versions.new = append(r.versions.olds, v.Old), append(r.versions.new, v.Blob)
		r.versions.ikKIDs = append(r.versions.ikKIDs, v.IKKID)
	}
}

func (r *rekeyRows) args(inst [16]byte) []any {
	return []any{inst[:], r.ids, r.from, r.seqs, r.ikKIDs, r.macs}
}

func (r *rekeyRows) versionArgs() []any {
	return []any{r.versions.ids, r.versions.keyIDs, r.versions.olds, r.versions.new, r.versions.ikKIDs}
}

// rekeyColumns are the root keys and the data keys.
func rekeyColumns(keys []store.Rekey) (root, data rekeyRows, err error) {
	named := map[key.ID]bool{}
	for i := range keys {
		k := &keys[i]
		seq, err := integer(k.Seq)
		if err == nil {
			err = checkRekey(k)
		}
		if err == nil && named[k.KeyID] {
			err = errors.New("it is named twice")
		}
		if err != nil {
			return root, data, fmt.Errorf("key %s: %w", k.KeyID, err)
		}
		named[k.KeyID] = true
		from, err := integer(k.From)
		switch {
		case err != nil: // nothing stored has such a number
		case k.Kind == key.KEK:
			root.add(k, from, seq)
		default:
			data.add(k, from, seq)
		}
	}
	return root, data, nil
}

func checkRekey(k *store.Rekey) error {
	if k.Kind != key.KEK && k.Kind != key.DEK {
		return fmt.Errorf("a key cannot be of kind %q", k.Kind)
	}
	if k.Kind == key.DEK && len(k.Versions) > 0 {
		return errors.New("the versions of a data key are under no installation key")
	}
	for _, v := range k.Versions {
		if err := checkWrapping(key.KEK, v.Parent, v.IKKID); err != nil {
			return fmt.Errorf("version %s: %w", v.ID, err)
		}
	}
	return nil
}

// Rekey implements [store.Store]. It takes two round trips besides the commit, however many keys there are, or three if
// they are of one root key, which somebody has locked: it waits for that.
func (s *Store) Rekey(ctx context.Context, inst [16]byte, keys []store.Rekey, under *store.Lease) (int, error) {
	n := 0
	root, data, err := rekeyColumns(keys)
	if err == nil && len(root.ids)+len(data.ids) > 0 {
		err = s.write(ctx, func(w *writer) error {
			n = 0
			free, several, err := w.freeToRekey(ctx, &root, &data, under)
			if err != nil {
				return err
			}
			if !several {
				lock := w.tables.statement(lockRootKeys, root.ids, data.ids)
				return w.last(ctx, append([]statement{lock}, w.rekey(inst, &root, &data, &n)...)...)
			}
			root, data, err := rekeyColumns(slices.DeleteFunc(slices.Clone(keys), func(k store.Rekey) bool { return !free[k.KeyID] }))
			if err != nil || len(free) == 0 {
				return err
			}
			return w.last(ctx, w.rekey(inst, &root, &data, &n)...)
		})
	}
	if errors.Is(err, errNotHeld) {
		return 0, nil
	}
	if err != nil {
		return 0, s.tables.explain(ctx, "rekey", err)
	}
	return n, nil
}

// freeToRekey locks the root keys that nobody else has locked, and says which keys are theirs, and whether the keys are
// of several root keys.
func (w *writer) freeToRekey(
	ctx context.Context, root, data *rekeyRows, under *store.Lease,
) (free map[key.ID]bool, several bool, err error) {
	lock := w.tables.statement(lockFreeRootKeysToRekey, root.ids, data.ids)
	lock.row = func(scan func(...any) error) error {
		roots, id := 0, (*key.ID)(nil)
		if err := scan(&roots, &id); err != nil {
			return err
		}
		several = roots > 1
		if id != nil {
			free[*id] = true
		}
		return nil
	}
	free = map[key.ID]bool{}
	err = w.run(ctx, append(w.held(under, errNotHeld), lock)...)
	return free, several, err
}

// rekey is statements that leave in n how many keys they replaced.
func (w *writer) rekey(inst [16]byte, root, data *rekeyRows, n *int) (batch []statement) {
	if len(root.ids) > 0 {
		st := w.tables.statement(rekeyRootKeys, append(root.args(inst), root.versionArgs()...)...)
		st.row = func(scan func(...any) error) error {
			var replaced, versions, given, stored int
			if err := scan(&replaced, &versions, &given, &stored); err != nil {
				return err
			}
			*n += replaced
			if versions != stored || given != stored {
				return fmt.Errorf("a root key has other versions than those that were given: %w", store.ErrConflict)
			}
			return nil
		}
		batch = append(batch, st)
	}
	if len(data.ids) > 0 {
		st := w.tables.statement(rekeyDataKeys, data.args(inst)...)
		st.done = func(rows int) error {
			*n += rows
			return nil
		}
		batch = append(batch, st)
	}
	return batch
}

// NotUnder implements [store.Store]. It looks at 1000 root keys and what belongs to them. A limit of 0 or less lists
// none.
func (s *Store) NotUnder(
	ctx context.Context, kid [16]byte, after key.ID, limit int,
) (scopes []key.Scope, next key.ID, err error) {
	return s.pageByKey(ctx, "list scopes to rekey", notUnderQuery, after, limit, kid[:])
}
