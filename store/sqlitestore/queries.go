package sqlitestore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
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
from {prefix}_installation i
cross join {prefix}_root_slot s
order by s.number`)

// Installation implements [store.Queries].
func (q queries) Installation(ctx context.Context) (store.Installation, error) {
	var in store.Installation
	err := q.each(ctx, installationQuery, nil, func(rows *sql.Rows) error {
		var s store.Slot
		if err := rows.Scan(&in.Inst, &in.IKKID, &in.Seq, &in.ActiveSlot, &in.MAC, &in.Created,
			&s.ID, &s.WrapperType, &s.WrapperKeyID, &s.IKKID, &s.State, &s.Blob, &s.Created, &s.Removed); err != nil {
			// A number that does not fit its field is refused by Scan, which reads the slot after the installation.
			return &rowError{cmp.Or(string(s.ID), "installation"), err.Error()}
		}
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

// family is a statement that reads a family. ctes are the common table expressions that pick the root key, r, and, if
// withData, the data keys, d.
func family(ctes string, withData bool) query {
	text := `with ` + ctes + `
select 0, '', '', '', cast(strftime('%s', 'now') as integer), 0, 0, 0, 0, null, null, null
union all
select 1, private_id, '', cast(scope_id as text),
    seq, head_version, rotate_every, max_messages, coalesce(rotate_at, 0), ik_kid, mac, null
from r
union all
select 2, v.private_id, v.root_key_id, '', v.version, v.state, v.alg, v.created, 0, v.ik_kid, v.commitment, v.key
from r cross join {prefix}_root_key_version v on v.root_key_id = r.private_id
union all
select 3, t.private_id, t.key_id, '', t.version, 0, t.alg, t.destroyed, 0, null, t.commitment, null
from r cross join {prefix}_tombstone t on t.key_id = r.private_id`
	if withData {
		text += `
union all
select 4, private_id, root_key_id, purpose,
    seq, head_version, rotate_every, max_messages, coalesce(rotate_at, 0), ik_kid, mac, null
from d
union all
select 5, v.private_id, v.data_key_id, v.root_key_version_id, v.version, v.state, v.alg, v.created, 0, null, v.commitment, v.key
from d cross join {prefix}_data_key_version v on v.data_key_id = d.private_id
union all
select 6, t.private_id, t.key_id, '', t.version, 0, t.alg, t.destroyed, 0, null, t.commitment, null
from d cross join {prefix}_tombstone t on t.key_id = d.private_id`
	}
	return define(text)
}

const byScope = `
r as (select * from {prefix}_root_key where scope_id = ?1)`

var (
	rootKeyQuery = family(byScope, false)

	dataKeyQuery = family(byScope+`,
d as (select * from {prefix}_data_key where root_key_id = (select private_id from r) and purpose = ?2)`, true)

	scopeQuery = family(byScope+`,
d as (select * from {prefix}_data_key where root_key_id = (select private_id from r))`, true)

	rootOfVersionQuery = family(`
r as (select * from {prefix}_root_key where private_id = coalesce(
    (select root_key_id from {prefix}_root_key_version where private_id = ?1),
    (select key_id from {prefix}_tombstone where private_id = ?1 and private_id <> '')))`, false)

	dataOfVersionQuery = family(`
d as (select * from {prefix}_data_key where private_id = coalesce(
    (select data_key_id from {prefix}_data_key_version where private_id = ?1),
    (select key_id from {prefix}_tombstone where private_id = ?1 and private_id <> ''))),
r as (select * from {prefix}_root_key where private_id = (select root_key_id from d))`, true)
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
		f, err = q.family(ctx, dataKeyQuery, scope, string(ref.Purpose))
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
	f, err := q.family(ctx, query, string(id))
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
	data := map[key.ID]*store.Key{}
	keyOf := func(id key.ID) *store.Key {
		if id == f.Root.ID {
			return &f.Root
		}
		return data[id]
	}
	err := q.each(ctx, query, args, func(rows *sql.Rows) error {
		var (
			row           int
			id, owner     key.ID
			name          string
			a, b, c, d, e int64
			x, y, z       []byte
			n             numbers
		)
		if err := rows.Scan(&row, &id, &owner, &name, &a, &b, &c, &d, &e, &x, &y, &z); err != nil {
			return &rowError{string(id), err.Error()}
		}
		switch row {
		case rowNow:
			f.Now = a
		case rowRoot, rowData:
			k := store.Key{ID: id, Kind: key.KEK, Scope: key.Scope(name), RotateAt: e, Manifest: store.Manifest{
				Seq: fit[uint64](&n, a), Head: fit[key.Version](&n, b),
				RotateEvery: fit[uint64](&n, c), MaxMessages: fit[uint64](&n, d), IKKID: x, MAC: y,
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
				ID: id, Number: fit[key.Version](&n, a), State: fit[key.State](&n, b), Alg: fit[key.Alg](&n, c), Created: d,
				Commit: y, Blob: z, Parent: key.ID(name), IKKID: x,
			})
		case rowRootTombstone, rowDataTombstone:
			k := keyOf(owner)
			k.Tombstones = append(k.Tombstones, store.Tombstone{
				ID: id, Number: fit[key.Version](&n, a), Alg: fit[key.Alg](&n, c), Destroyed: d, Commit: y,
			})
		}
		return n.check(id)
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

// numbers are those of a row that do not fit where they belong.
type numbers []int64

// fit is n as a T. Cut to T's size, a number that does not fit could stand for another: it is kept for check instead.
func fit[T ~uint8 | ~uint32 | ~uint64](bad *numbers, n int64) T {
	if n < 0 || int64(T(n)) != n {
		*bad = append(*bad, n)
	}
	return T(n)
}

func (n numbers) check(id key.ID) error {
	if len(n) == 0 {
		return nil
	}
	return &rowError{string(id), fmt.Sprintf("the number %d is out of range", n[0])}
}

func sortKey(k *store.Key) {
	slices.SortFunc(k.Versions, func(a, b store.Version) int { return int(a.Number) - int(b.Number) })
	slices.SortFunc(k.Tombstones, func(a, b store.Tombstone) int { return int(a.Number) - int(b.Number) })
}

var (
	firstScopesQuery = define(`select cast(scope_id as text) from {prefix}_root_key order by scope_id limit ?1`)
	nextScopesQuery  = define(`select cast(scope_id as text) from {prefix}_root_key where scope_id > ?2 order by scope_id limit ?1`)
)

// Scopes implements [store.Queries]. A limit of 0 or less lists none.
func (q queries) Scopes(ctx context.Context, after key.Scope, limit int) ([]key.Scope, error) {
	query, args := firstScopesQuery, []any{max(0, limit)}
	if after != "" {
		arg, err := q.tables.scopeArg(after)
		if err != nil {
			return nil, fmt.Errorf("list scopes: %w", err)
		}
		query, args = nextScopesQuery, append(args, arg)
	}
	var scopes []key.Scope
	err := q.each(ctx, query, args, func(rows *sql.Rows) error {
		var s key.Scope
		if err := rows.Scan(&s); err != nil {
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

// each runs a read, and f on every row of it.
func (q queries) each(ctx context.Context, query query, args []any, f func(*sql.Rows) error) (err error) {
	rows, err := q.view.query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := ctx.Err(); err != nil {
			return err // inside a transaction nothing else ends the read
		}
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
