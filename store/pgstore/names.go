package pgstore

import (
	"context"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// nameRows is a statement's end that reads names, as the rows of package rows.
const nameRows = `
select 7, ''::text, n.root_key_id, n.purpose, n.seq, n.last_version, n.removed, 0::bigint, 0::bigint, n.ik_kid, n.mac,
    convert_to(n.generator, 'UTF8')
from {schema}{prefix}_data_key_name n`

var (
	nameQuery = define(familyText(byScope, false) + `
union all` + nameRows + ` join r on n.root_key_id = r.private_id where n.purpose = $2::text`)

	namesNotUnderQuery = define(`
(` + nameRows + ` where n.ik_kid < $1::bytea order by n.ik_kid, n.root_key_id, n.purpose limit $2::bigint)
union all
(` + nameRows + ` where n.ik_kid > $1::bytea order by n.ik_kid, n.root_key_id, n.purpose limit $2::bigint)
limit $2::bigint`)

	// Each part ends after as many rows as the page has, in the order of an index. A name that has a key is in both, or
	// behind the page: looking for names without one could read all of them.
	namedQuery = define(`
with r as materialized (select private_id from {schema}{prefix}_root_key where scope_id = $1::text::{scope_type})
select distinct on (purpose) purpose, generator, head::bigint, every from (
    (select k.purpose, k.generator, k.head_version as head, k.rotate_every as every
    from {schema}{prefix}_data_key k
    join {schema}{prefix}_data_key_version v on v.data_key_id = k.private_id and v.version = k.head_version and v.alg = 2
    where k.root_key_id = (select private_id from r) and k.purpose > $2::text
    order by k.purpose limit $3::bigint)
    union all
    (select n.purpose, n.generator, 0, 0
    from {schema}{prefix}_data_key_name n
    where n.root_key_id = (select private_id from r) and n.purpose > $2::text and n.removed = 0
    order by n.purpose limit $3::bigint)) named
order by purpose, head desc limit $3::bigint`)

	// Before what belongs to a root key comes its row: see update. With the first, whoever inserts a key of it waits.
	lockRootKeyForName = define(`
select 1 from {schema}{prefix}_root_key where private_id = $1::text for update`)
	shareRootKeyForName = define(`
select 1 from {schema}{prefix}_root_key where private_id = $1::text for key share`)

	insertName = define(`
insert into {schema}{prefix}_data_key_name (root_key_id, purpose, seq, generator, last_version, removed, ik_kid, mac)
select $2::text, $3::text, $5::bigint, $6::text, $7::bigint, $8::bigint, $9::bytea, $10::bytea
where $4::bigint = 0 and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
on conflict (root_key_id, purpose) do nothing
returning 1`)

	updateName = define(`
update {schema}{prefix}_data_key_name
set seq = $5::bigint, generator = $6::text, last_version = $7::bigint, removed = $8::bigint, ik_kid = $9::bytea,
    mac = $10::bytea
where root_key_id = $2::text and purpose = $3::text and seq = $4::bigint
    and exists (select 1 from {schema}{prefix}_installation where inst = $1::bytea)
returning 1`)

	lockDataKey = define(`
select 1 from {schema}{prefix}_data_key
where private_id = $1::text and seq = $2::bigint and exists (select 1 from {schema}{prefix}_installation where inst = $3::bytea)
for update`)

	lockDataVersionsOfKey = define(`
select private_id from {schema}{prefix}_data_key_version where data_key_id = $1::text order by version for update`)

	deleteDataKey = define(`delete from {schema}{prefix}_data_key where private_id = $1::text returning 1`)
)

// Name implements [store.Queries].
func (q queries) Name(ctx context.Context, ref key.Ref) (store.Family, store.Name, error) {
	scope, err := q.tables.scopeArg(ref.Scope)
	if err != nil {
		return store.Family{}, store.Name{}, fmt.Errorf("read the name of %v: %w", ref, err)
	}
	var name store.Name
	f, err := q.familyAnd(ctx, func(r *rows.Row) (err error) {
		name, err = r.AsName()
		return err
	}, nameQuery, scope, storable(string(ref.Purpose)))
	if err != nil {
		return f, store.Name{}, q.tables.explain(ctx, fmt.Sprintf("read the name of %v", ref), err)
	}
	return f, name, nil
}

// Named implements [store.Store]. A limit of 0 or less lists none.
func (s *Store) Named(ctx context.Context, scope key.Scope, after key.Purpose, limit int) ([]store.Named, error) {
	doing := fmt.Sprintf("list the names of scope %q", string(scope))
	arg, err := s.tables.scopeArg(scope)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	var list []store.Named
	args := []any{arg, storable(string(after)), int64(max(0, limit))}
	err = s.each(ctx, namedQuery, args, func() { list = nil }, func(scan func(...any) error) error {
		var n store.Named
		var head, every int64
		if err := scan(&n.Purpose, &n.Generator, &head, &every); err != nil {
			return err
		}
		var bad rows.Numbers
		n.Head, n.RotateEvery = rows.Fit[key.Version](&bad, head), rows.Fit[uint64](&bad, every)
		list = append(list, n)
		return bad.Check(string(n.Purpose))
	})
	if err != nil {
		return nil, s.tables.explain(ctx, doing, err)
	}
	return list, nil
}

// NamesNotUnder implements [store.Store], in the order of an index. A limit of 0 or less lists none.
func (s *Store) NamesNotUnder(ctx context.Context, kid [16]byte, limit int) ([]store.Name, error) {
	var list []store.Name
	args := []any{kid[:], int64(max(0, limit))}
	err := s.each(ctx, namesNotUnderQuery, args, func() { list = nil }, func(scan func(...any) error) error {
		var row rows.Row
		if err := scan(row.Columns()...); err != nil {
			return &rows.Error{Row: row.Name, Problem: err.Error()}
		}
		n, err := row.AsName()
		list = append(list, n)
		return err
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "list names to rekey", err)
	}
	return list, nil
}

// PutName implements [store.Store]. It takes one round trip besides the commit. A name that becomes removed waits for
// transactions that insert data keys of its root key, and they for it.
func (s *Store) PutName(ctx context.Context, inst [16]byte, from uint64, n store.Name) error {
	err := rows.CheckName(from, &n)
	if err == nil {
		err = s.write(ctx, func(w *writer) error {
			lock := shareRootKeyForName
			if n.Removed {
				lock = lockRootKeyForName
			}
			return w.last(ctx,
				conflictUnless(w.tables.statement(lock, storable(string(n.RootKeyID)))),
				w.putName(inst, from, &n))
		})
	}
	return s.tables.explain(ctx, fmt.Sprintf("store name %q", string(n.Purpose)), err)
}

func (w *writer) putName(inst [16]byte, from uint64, n *store.Name) statement {
	put, removed := updateName, int64(0)
	if from == 0 {
		put = insertName
	}
	if n.Removed {
		removed = 1
	}
	return conflictUnless(w.tables.statement(put, inst[:], storable(string(n.RootKeyID)), string(n.Purpose),
		int64(from), int64(n.Seq), n.Generator, int64(n.Last), removed, n.IKKID, n.MAC))
}

// RemoveKey implements [store.Store]. It takes four round trips besides the commit, two more for an error about one of
// several versions. It waits for transactions that insert data keys of the same root key, and they for it.
func (s *Store) RemoveKey(ctx context.Context, inst [16]byte, id key.ID, keyFrom, from uint64, n store.Name) error {
	err := rows.CheckName(from, &n)
	if err == nil {
		err = s.write(ctx, func(w *writer) error { return w.removeKey(ctx, inst, id, keyFrom, from, &n) })
	}
	return s.tables.explain(ctx, "remove key "+string(id), err)
}

// removeKey stores the name first, as a trigger wants it before the key goes, and locks what goes before it looks who
// refers to it, as update does.
func (w *writer) removeKey(ctx context.Context, inst [16]byte, id key.ID, keyFrom, from uint64, n *store.Name) error {
	seq, err := integer(keyFrom)
	if err != nil {
		return store.ErrConflict // nothing stored has such a number
	}
	arg := storable(string(id))
	var versions []key.ID
	lock := w.tables.statement(lockDataVersionsOfKey, arg)
	lock.row = func(scan func(...any) error) error {
		var version key.ID
		err := scan(&version)
		versions = append(versions, version)
		return err
	}
	if err := w.run(ctx,
		w.tables.statement(lockRootKeyForName, storable(string(n.RootKeyID))),
		conflictUnless(w.tables.statement(lockDataKey, arg, seq, inst[:])),
		lock,
	); err != nil {
		return err
	}
	if err := w.unused(ctx, key.DEK, versions); err != nil {
		return err
	}
	return w.last(ctx, w.putName(inst, from, n), conflictUnless(w.tables.statement(deleteDataKey, arg)))
}

// conflictUnless makes it [store.ErrConflict] if there are no rows.
func conflictUnless(st statement) statement {
	st.done = func(rows int) error {
		if rows == 0 {
			return store.ErrConflict
		}
		return nil
	}
	return st
}
