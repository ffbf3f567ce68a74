package pgstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// queries implements [store.Queries] on any view.
type queries struct {
	tables *tables
	view   view
}

var installationQuery = define(`
select i.inst, i.ik_kid, i.seq, i.active_slot, i.mac, i.created,
    s.private_id, s.wrapper_type, s.wrapper_key_id, s.ik_kid, s.state, s.blob, s.created, coalesce(s.removed, 0)
from {schema}{prefix}_installation i
cross join {schema}{prefix}_root_slot s
order by s.number`)

// Installation implements [store.Queries].
func (q queries) Installation(ctx context.Context) (store.Installation, error) {
	var in store.Installation
	err := q.each(ctx, installationQuery, nil, func() { in = store.Installation{} }, func(scan func(...any) error) error {
		var s store.Slot
		var seq, state int64
		if err := scan(&in.Inst, &in.IKKID, &seq, &in.ActiveSlot, &in.MAC, &in.Created,
			&s.ID, &s.WrapperType, &s.WrapperKeyID, &s.IKKID, &state, &s.Blob, &s.Created, &s.Removed); err != nil {
			return err
		}
		in.Seq, s.State = uint64(seq), key.State(state)
		in.Slots = append(in.Slots, s)
		return nil
	})
	if err == nil && in.Inst == nil {
		err = store.ErrNotFound // an installation without slots cannot be: its active one is a foreign key
	}
	if err != nil {
		return store.Installation{}, q.tables.explain(ctx, "read the installation", err)
	}
	return in, nil
}

// A family is read as one list of rows of several tables. The first column says which.
const (
	rowNow = iota
	rowRoot
	rowRootVersion
	rowRootTombstone
	rowData
	rowDataVersion
	rowDataTombstone
)

// family is a statement that reads a family. ctes are the common table expressions that pick the root key, r, and,
// if withData, the data keys, d.
func family(ctes string, withData bool) query {
	text := `with ` + ctes + `
select 0, ''::text, ''::text, ''::text, floor(extract(epoch from statement_timestamp()))::bigint,
    0::bigint, 0::bigint, 0::bigint, 0::bigint, null::bytea, null::bytea, null::bytea
union all
select 1, private_id, '', scope_id::text,
    seq, head_version, rotate_every, max_messages, coalesce(rotate_at, 0), ik_kid, mac, null
from r
union all
select 2, v.private_id, v.root_key_id, '', v.version, v.state, v.alg, v.created, 0, v.ik_kid, v.commitment, v.key
from r join {schema}{prefix}_root_key_version v on v.root_key_id = r.private_id
union all
select 3, t.private_id, t.key_id, '', t.version, 0, t.alg, t.destroyed, 0, null, t.commitment, null
from r join {schema}{prefix}_tombstone t on t.key_id = r.private_id`
	if withData {
		text += `
union all
select 4, private_id, root_key_id, purpose,
    seq, head_version, rotate_every, max_messages, coalesce(rotate_at, 0), ik_kid, mac, null
from d
union all
select 5, v.private_id, v.data_key_id, v.root_key_version_id, v.version, v.state, v.alg, v.created, 0, null, v.commitment, v.key
from d join {schema}{prefix}_data_key_version v on v.data_key_id = d.private_id
union all
select 6, t.private_id, t.key_id, '', t.version, 0, t.alg, t.destroyed, 0, null, t.commitment, null
from d join {schema}{prefix}_tombstone t on t.key_id = d.private_id`
	}
	return define(text)
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
	var f store.Family
	var data map[key.ID]*store.Key
	keyOf := func(id key.ID) *store.Key {
		if id == f.Root.ID {
			return &f.Root
		}
		return data[id]
	}
	err := q.each(ctx, query, args, func() { f, data = store.Family{}, map[key.ID]*store.Key{} }, func(scan func(...any) error) error {
		var (
			row           int
			id, owner     key.ID
			name          string
			a, b, c, d, e int64
			x, y, z       []byte
		)
		if err := scan(&row, &id, &owner, &name, &a, &b, &c, &d, &e, &x, &y, &z); err != nil {
			return err
		}
		switch row {
		case rowNow:
			f.Now = a
		case rowRoot, rowData:
			k := store.Key{ID: id, Kind: key.KEK, Scope: key.Scope(name), RotateAt: e, Manifest: store.Manifest{
				Seq: uint64(a), Head: key.Version(b), RotateEvery: uint64(c), MaxMessages: uint64(d), IKKID: x, MAC: y,
			}}
			if row == rowRoot {
				f.Root = k
				break
			}
			k.Kind, k.Scope, k.RootKeyID, k.Purpose = key.DEK, "", owner, key.Purpose(name)
			data[id] = &k
		case rowRootVersion, rowDataVersion:
			k := keyOf(owner)
			k.Versions = append(k.Versions, store.Version{
				ID: id, Number: key.Version(a), State: key.State(b), Alg: key.Alg(c), Created: d,
				Commit: y, Blob: z, Parent: key.ID(name), IKKID: x,
			})
		case rowRootTombstone, rowDataTombstone:
			k := keyOf(owner)
			k.Tombstones = append(k.Tombstones, store.Tombstone{
				ID: id, Number: key.Version(a), Alg: key.Alg(c), Destroyed: d, Commit: y,
			})
		}
		return nil
	})
	if err != nil {
		return store.Family{}, err
	}
	if f.Root.ID == "" {
		return store.Family{Now: f.Now}, store.ErrNotFound
	}
	for _, k := range data {
		sortKey(k)
		f.Data = append(f.Data, *k)
	}
	sortKey(&f.Root)
	slices.SortFunc(f.Data, func(a, b store.Key) int { return strings.Compare(string(a.Purpose), string(b.Purpose)) })
	return f, nil
}

func sortKey(k *store.Key) {
	slices.SortFunc(k.Versions, func(a, b store.Version) int { return int(a.Number) - int(b.Number) })
	slices.SortFunc(k.Tombstones, func(a, b store.Tombstone) int { return int(a.Number) - int(b.Number) })
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
	query, args := firstScopesQuery, []any{int64(max(0, limit))}
	if after != "" {
		arg, err := q.tables.scopeArg(after)
		if err != nil {
			return nil, fmt.Errorf("list scopes: %w", err)
		}
		query, args = nextScopesQuery, append(args, arg)
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
		return nil, q.tables.explain(ctx, "list scopes", err)
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
