package pgstore

import (
	"context"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// queries implements [store.Queries] on any view.
type queries struct {
	tables *tables
	view   view
}

// The first column says what a row is: the installation, a slot or an installation key. Of two of these the first is
// the one that the other follows, whatever the clock said.
var installationQuery = define(`
select 0::bigint, active_slot, ''::text, ''::text, inst, ik_kid, mac, seq as a, created, 0::bigint, 0::bigint, 0::bigint, 0::bigint
from {schema}{prefix}_installation
union all
select 1, s.private_id, s.wrapper_type, s.wrapper_key_id, s.ik_kid, s.blob, null, s.number, s.created,
    s.state, coalesce(s.activated, 0), coalesce(s.retired, 0), coalesce(s.removed, 0)
from {schema}{prefix}_root_slot s
union all
select 2, '', '', '', k.ik_kid, k.previous, k.link, case when f.ik_kid is null then 1 else 2 end, k.created, 0, 0, 0, 0
from {schema}{prefix}_installation_key k
left join {schema}{prefix}_installation_key f on f.ik_kid = k.previous
order by 1, a`)

// Installation implements [store.Queries].
func (q queries) Installation(ctx context.Context) (store.Installation, error) {
	var in store.Installation
	err := q.each(ctx, installationQuery, nil, func() { in = store.Installation{} }, func(scan func(...any) error) error {
		var what, number, created, state int64
		var id, wrapperType, wrapperKeyID string
		var x, y, z []byte
		var s store.Slot
		if err := scan(&what, &id, &wrapperType, &wrapperKeyID, &x, &y, &z, &number, &created,
			&state, &s.Activated, &s.Retired, &s.Removed); err != nil {
			return err
		}
		var n rows.Numbers
		switch what {
		case 0:
			in.ActiveSlot, in.Inst, in.IKKID, in.MAC, in.Created = key.ID(id), x, y, z, created
			in.Seq = rows.Fit[uint64](&n, number)
			return n.Check("installation")
		case 1:
			s.ID, s.WrapperType, s.WrapperKeyID = key.ID(id), wrapperType, wrapperKeyID
			s.IKKID, s.Blob, s.Created = x, y, created
			s.State = rows.Fit[key.State](&n, state)
			in.Slots = append(in.Slots, s)
		case 2:
			in.Keys = append(in.Keys, store.InstallationKey{KID: x, Previous: y, Link: z, Created: created})
		}
		return n.Check(id)
	})
	if err == nil && in.Inst == nil {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Installation{}, q.tables.explain(ctx, "read the installation", err)
	}
	return in, nil
}

// readEpochs is the end of a statement that reads the epochs, from the installation or what stands for it.
func readEpochs(installation string) string {
	return `
select i.inst, i.seq, coalesce(e.bucket, 0)::bigint, coalesce(e.n, 0), pg_is_in_recovery()
from ` + installation + ` i
left join (
    select bucket, (sum(n) % 9223372036854775807)::bigint as n from {schema}{prefix}_epoch group by bucket
) e on true`
}

var epochsQuery = define(readEpochs("{schema}{prefix}_installation"))

// Epochs implements [store.Store].
func (s *Store) Epochs(ctx context.Context) (store.Epochs, error) {
	var e store.Epochs
	if err := s.read(ctx, s.tables.epochs(&e, epochsQuery)); err != nil {
		return store.Epochs{}, s.tables.explain(ctx, "read the epochs", err)
	}
	return e, nil
}

// epochs is a statement that ends in readEpochs.
func (t *tables) epochs(e *store.Epochs, q query, args ...any) statement {
	st := t.statement(q, args...)
	st.start = func() { *e = store.Epochs{} }
	st.row = func(scan func(...any) error) error {
		var seq, bucket, n int64
		standby := false
		if err := scan(&e.Inst, &seq, &bucket, &n, &standby); err != nil {
			return err
		}
		if standby {
			return errStandby
		}
		var bad rows.Numbers
		e.Seq = rows.Fit[uint64](&bad, seq)
		e.Keys[rows.Fit[uint64](&bad, bucket)%store.Buckets] = rows.Fit[uint64](&bad, n)
		return bad.Check("epochs")
	}
	st.done = func(rows int) error {
		if rows == 0 {
			return store.ErrNotFound
		}
		return nil
	}
	return st
}

func family(ctes string, withData bool) query { return define(familyText(ctes, withData)) }

// familyText is a statement that reads a family, as the rows of package rows. ctes are the common table expressions
// that pick the root key, r, and, if withData, the data keys, d.
func familyText(ctes string, withData bool) string {
	buckets := `select {schema}{prefix}_bucket(private_id) from r`
	if withData {
		buckets += ` union all select {schema}{prefix}_bucket(private_id) from d`
	}
	return `with ` + ctes + `
select 0, ''::text, ''::text, ''::text, floor(extract(epoch from statement_timestamp()))::bigint,
    (select coalesce((sum(n) % 9223372036854775807)::bigint, 0) from {schema}{prefix}_epoch where bucket = any(array(` + buckets + `))),
    coalesce((select seq from {schema}{prefix}_installation), 0), 0::bigint, 0::bigint, null::bytea, null::bytea, null::bytea` +
		familyRows(withData)
}

// familyRows is the rest of a statement that reads families, after what it reads of all.
//
// Package rows needs the branches in this order: a key before its versions and tombstones, or it takes them for
// orphans. Nothing sorts them, as an append goes through its parts one after the other, but for a parallel one, which
// mixes them. That is none here: the branches' columns are of different types, so the planner keeps the union as it is
// written, and appends its parts in parallel only if each can be split among workers. The first, which reads no table,
// cannot be. Within a branch there is no order.
func familyRows(withData bool) string {
	text := `
union all
select 1, private_id, '', scope_id::text,
    seq, head_version, rotate_every, max_messages, coalesce(rotate_at, 0), ik_kid, mac, null
from r
union all
select 2, v.private_id, v.root_key_id, '', v.version, v.state, v.alg, v.created, coalesce(v.disabled, 0), v.ik_kid, v.commitment, v.key
from r join {schema}{prefix}_root_key_version v on v.root_key_id = r.private_id
union all
select 3, t.private_id, t.key_id, '', t.version, 0, t.alg, t.destroyed, 0, null, t.commitment, null
from r join {schema}{prefix}_tombstone t on t.key_id = r.private_id`
	if withData {
		text += `
union all
select 4, private_id, root_key_id, purpose,
    seq, head_version, rotate_every, max_messages, coalesce(rotate_at, 0), ik_kid, mac, convert_to(generator, 'UTF8')
from d
union all
select 5, v.private_id, v.data_key_id, v.root_key_version_id, v.version, v.state, v.alg, v.created, coalesce(v.disabled, 0),
    null, v.commitment, v.key
from d join {schema}{prefix}_data_key_version v on v.data_key_id = d.private_id
union all
select 6, t.private_id, t.key_id, '', t.version, 0, t.alg, t.destroyed, 0, null, t.commitment, null
from d join {schema}{prefix}_tombstone t on t.key_id = d.private_id`
	}
	return text
}

const byScope = `
r as (select * from {schema}{prefix}_root_key where scope_id = $1::text::{scope_type})`

var (
	rootKeyQuery = family(byScope, false)

	dataKeyQuery = family(byScope+`,
d as (select * from {schema}{prefix}_data_key where root_key_id = (select private_id from r) and purpose = $2::text)`, true)

	scopeQuery = family(byScope+`,
d as (select * from {schema}{prefix}_data_key where root_key_id = (select private_id from r))`, true)

	rootOfVersionQuery = family(`
r as (select * from {schema}{prefix}_root_key where private_id = coalesce(
    (select root_key_id from {schema}{prefix}_root_key_version where private_id = $1::text),
    (select key_id from {schema}{prefix}_tombstone where private_id = $1::text and private_id <> '')))`, false)

	dataOfVersionQuery = family(`
d as (select * from {schema}{prefix}_data_key where private_id = coalesce(
    (select data_key_id from {schema}{prefix}_data_key_version where private_id = $1::text),
    (select key_id from {schema}{prefix}_tombstone where private_id = $1::text and private_id <> ''))),
r as (select * from {schema}{prefix}_root_key where private_id = (select root_key_id from d))`, true)
)

// Key implements [store.Queries].
func (q queries) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	scope, err := q.tables.scopeArg(ref.Scope)
	if err != nil {
		return store.Family{}, fmt.Errorf("read %v: %w", ref, err)
	}
	var f store.Family
	if ref.IsRoot() {
		f, err = q.family(ctx, rootKeyQuery, scope)
	} else {
		f, err = q.family(ctx, dataKeyQuery, scope, storable(string(ref.Purpose)))
	}
	if err != nil {
		return f, q.tables.explain(ctx, fmt.Sprintf("read %v", ref), err)
	}
	return f, nil
}

// KeyOfVersion implements [store.Queries].
func (q queries) KeyOfVersion(ctx context.Context, id key.ID) (store.Family, error) {
	query := rootOfVersionQuery
	if kind, _ := id.Kind(); kind == key.DEK {
		query = dataOfVersionQuery
	}
	f, err := q.family(ctx, query, storable(string(id)))
	if err != nil {
		return f, q.tables.explain(ctx, fmt.Sprintf("read the key of version %q", string(id)), err)
	}
	return f, nil
}

// Scope implements [store.Queries].
func (q queries) Scope(ctx context.Context, scope key.Scope) (store.Family, error) {
	arg, err := q.tables.scopeArg(scope)
	if err != nil {
		return store.Family{}, fmt.Errorf("read scope %q: %w", string(scope), err)
	}
	f, err := q.family(ctx, scopeQuery, arg)
	if err != nil {
		return f, q.tables.explain(ctx, fmt.Sprintf("read scope %q", string(scope)), err)
	}
	return f, nil
}

func (q queries) family(ctx context.Context, query query, args ...any) (store.Family, error) {
	return q.familyAnd(ctx, nil, query, args...)
}

// familyAnd reads a family with a query that has names besides, which are given to name.
func (q queries) familyAnd(
	ctx context.Context, name func(*rows.Row) error, query query, args ...any,
) (store.Family, error) {
	var f rows.Family
	err := q.each(ctx, query, args, func() { f = rows.Family{} }, func(scan func(...any) error) error {
		var row rows.Row
		if err := scan(row.Columns()...); err != nil {
			return &rows.Error{Row: string(row.ID), Problem: err.Error()}
		}
		if row.Table == rows.Name {
			return name(&row)
		}
		return f.Add(&row)
	})
	if err != nil {
		return store.Family{}, err
	}
	return f.Family()
}

var (
	firstScopesQuery = define(`
select scope_id::text from {schema}{prefix}_root_key order by {schema}{prefix}_root_key.scope_id limit $1::bigint`)
	nextScopesQuery = define(`
select scope_id::text from {schema}{prefix}_root_key
where scope_id > $2::text::{scope_type} order by {schema}{prefix}_root_key.scope_id limit $1::bigint`)
)

// Scopes implements [store.Queries]. A limit of 0 or less lists none.
func (q queries) Scopes(ctx context.Context, after key.Scope, limit int) ([]key.Scope, error) {
	scopes, err := q.scopes(ctx, firstScopesQuery, nextScopesQuery, after, limit)
	return scopes, q.tables.explain(ctx, "list scopes", err)
}

// scopes lists a page of scopes: with the first query if it is the first, or with the next one, which gets the scope
// before it as its last argument.
func (q queries) scopes(ctx context.Context, first, next query, after key.Scope, limit int, args ...any) ([]key.Scope, error) {
	args = append([]any{int64(max(0, limit))}, args...)
	query := first
	if after != "" {
		arg, err := q.tables.scopeArg(after)
		if err != nil {
			return nil, err
		}
		query, args = next, append(args, arg)
	}
	var scopes []key.Scope
	err := q.each(ctx, query, args, func() { scopes = nil }, func(scan func(...any) error) error {
		var s key.Scope
		if err := scan(&s); err != nil {
			return err
		}
		scopes = append(scopes, s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return scopes, nil
}

// each runs a read: start before the first row, also when it is tried again, and f on every row.
func (q queries) each(
	ctx context.Context, query query, args []any, start func(), f func(scan func(...any) error) error,
) error {
	st := q.tables.statement(query, args...)
	st.start, st.row = start, f
	return q.view.read(ctx, st)
}
