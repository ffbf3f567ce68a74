package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// queries implements [store.Queries] on any view.
type queries struct {
	tables *tables
	view   view
}

// epochsQuery has no rows if there is no installation.
var epochsQuery = define(`
select i.inst, i.seq, coalesce(e.bucket, 0), coalesce(e.n, 0)
from {prefix}_installation i
left join (select bucket, sum(n) as n from {prefix}_epoch group by bucket) e on true`)

// Epochs implements [store.Store].
func (s *Store) Epochs(ctx context.Context) (store.Epochs, error) {
	var e store.Epochs
	err := s.each(ctx, epochsQuery, nil, scanEpochs(&e))
	if err == nil && e.Inst == nil {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Epochs{}, s.tables.explain(ctx, "read the epochs", err)
	}
	return e, nil
}

func scanEpochs(e *store.Epochs) func(*sql.Rows) error {
	return func(r *sql.Rows) error {
		var bucket, n uint64
		if err := r.Scan(&e.Inst, &e.Seq, &bucket, &n); err != nil {
			return &rows.Error{Row: "epochs", Problem: err.Error()}
		}
		e.Keys[bucket%store.Buckets] = n
		return nil
	}
}

// bucket is [store.Bucket] of a row.
const bucket = `max(0, instr('0123456789abcdefghijklmnopqrstuv', lower(substr(private_id, 5, 1))) - 1)`

// family is a statement that reads a family, as the rows of package rows. ctes are the common table expressions that
// pick the root key, r, and, if withData, the data keys, d; more are statements that read further rows.
func family(ctes string, withData bool, more ...string) query {
	buckets := `select ` + bucket + ` from r`
	if withData {
		buckets += ` union all select ` + bucket + ` from d`
	}
	text := `with ` + ctes + `
select 0, '', '', '', cast(strftime('%s', 'now') as integer),
    (select coalesce(sum(n), 0) from {prefix}_epoch where bucket in (` + buckets + `)),
    coalesce((select seq from {prefix}_installation where only_row = 1), 0), 0, 0, null, null, null` + familyRows(withData)
	return define(strings.Join(append([]string{text}, more...), "\nunion all"))
}

// familyRows is the rest of a statement that reads families, after what it reads of all.
func familyRows(withData bool) string {
	text := `
union all
select 1, private_id, '', cast(scope_id as text),
    seq, head_version, rotate_every, max_messages, coalesce(rotate_at, 0), ik_kid, mac, null
from r
union all
select 2, v.private_id, v.root_key_id, '', v.version, v.state, v.alg, v.created, coalesce(v.disabled, 0), v.ik_kid, v.commitment, v.key
from r cross join {prefix}_root_key_version v on v.root_key_id = r.private_id
union all
select 3, t.private_id, t.key_id, '', t.version, 0, t.alg, t.destroyed, 0, null, t.commitment, null
from r cross join {prefix}_tombstone t on t.key_id = r.private_id`
	if withData {
		text += `
union all
select 4, private_id, root_key_id, purpose,
    seq, head_version, rotate_every, max_messages, coalesce(rotate_at, 0), ik_kid, mac, cast(generator as blob)
from d
union all
select 5, v.private_id, v.data_key_id, v.root_key_version_id,
    v.version, v.state, v.alg, v.created, coalesce(v.disabled, 0), null, v.commitment, v.key
from d cross join {prefix}_data_key_version v on v.data_key_id = d.private_id
union all
select 6, t.private_id, t.key_id, '', t.version, 0, t.alg, t.destroyed, 0, null, t.commitment, null
from d cross join {prefix}_tombstone t on t.key_id = d.private_id`
	}
	return text
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

// Keys implements [store.Store]. It is one statement for each key.
func (s *Store) Keys(ctx context.Context, refs []key.Ref) ([]store.Family, error) {
	var list []store.Family
	for _, ref := range refs {
		f, err := s.Key(ctx, ref)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		f.Epoch = 0
		list = append(list, f)
	}
	return list, nil
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
	f, _, err := q.familyAndNames(ctx, query, args...)
	return f, err
}

func (q queries) familyAndNames(ctx context.Context, query query, args ...any) (store.Family, []store.Name, error) {
	var f rows.Family
	var names []store.Name
	err := q.each(ctx, query, args, func(r *sql.Rows) error {
		var row rows.Row
		if err := r.Scan(row.Columns()...); err != nil {
			return &rows.Error{Row: string(row.ID), Problem: err.Error()}
		}
		if row.Table == rows.Name {
			n, err := row.AsName()
			names = append(names, n)
			return err
		}
		return f.Add(&row)
	})
	if err != nil {
		return store.Family{}, nil, err
	}
	all, err := f.Family()
	return all, names, err
}

var (
	firstScopesQuery = define(`select cast(scope_id as text) from {prefix}_root_key order by scope_id limit ?1`)
	nextScopesQuery  = define(`select cast(scope_id as text) from {prefix}_root_key where scope_id > ?2 order by scope_id limit ?1`)
)

// Scopes implements [store.Queries]. A limit of 0 or less lists none.
func (q queries) Scopes(ctx context.Context, after key.Scope, limit int) ([]key.Scope, error) {
	scopes, err := q.scopes(ctx, firstScopesQuery, nextScopesQuery, after, limit)
	return scopes, q.tables.explain(ctx, "list scopes", err)
}

// scopes lists a page of scopes: with the first query if it is the first, or with the next one, which gets the scope
// before it as its last argument.
func (q queries) scopes(ctx context.Context, first, next query, after key.Scope, limit int, args ...any) ([]key.Scope, error) {
	args = append([]any{max(0, limit)}, args...)
	query := first
	if after != "" {
		arg, err := q.tables.scopeArg(after)
		if err != nil {
			return nil, err
		}
		query, args = next, append(args, arg)
	}
	var scopes []key.Scope
	err := q.each(ctx, query, args, func(r *sql.Rows) error {
		var s key.Scope
		if err := r.Scan(&s); err != nil {
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

// each runs a read, and f on every row of it.
func (q queries) each(ctx context.Context, query query, args []any, f func(*sql.Rows) error) (err error) {
	found, err := q.view.query(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	for found.Next() {
		if err := ctx.Err(); err != nil {
			return err // inside a transaction nothing else ends the read
		}
		if err := f(found); err != nil {
			return err
		}
	}
	return found.Err()
}
