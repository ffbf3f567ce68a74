package pgstore

import (
	"context"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

var (
	purposesQuery = define(`select purpose, alg::bigint, created from {schema}{prefix}_purpose order by purpose`)

	insertPurposes = define(`
insert into {schema}{prefix}_purpose (purpose, alg)
select purpose, alg from unnest($1::text[], $2::bigint[]) as n (purpose, alg)
order by purpose
on conflict (purpose) do nothing`)

	firstLackingQuery = lacking("")
	nextLackingQuery  = lacking("where scope_id > $3::text::{scope_type}")

	// Not materialized, so that the planner sees the foreign keys, by which it knows how many rows there will be. What
	// it takes for many more it compiles first, for over a second. The order of the branches is needed: see familyRows.
	familiesQuery = define(`with
r as not materialized (select * from {schema}{prefix}_root_key where scope_id = any ($1::text[]::{scope_type}[])),
d as not materialized (select d.* from r join {schema}{prefix}_data_key d on d.root_key_id = r.private_id)
select 0, ''::text, ''::text, ''::text, floor(extract(epoch from statement_timestamp()))::bigint, 0::bigint,
    coalesce((select seq from {schema}{prefix}_installation), 0), 0::bigint, 0::bigint,
    (select inst from {schema}{prefix}_installation), null::bytea, null::bytea
union all
select 8, '', '', '', bucket, (sum(n) % 9223372036854775807)::bigint, 0, 0, 0, null, null, null
from {schema}{prefix}_epoch group by bucket` + familyRows(true))
)

// lacking looks at as many root keys as a page has, in the order of their scopes, for those without a data key. The
// last row says how far was looked, where there may be more. As uuids have no max, it is the last one.
//
// Each scope is looked up by the index. As "not exists" it would be a join, which the planner may do in any way: before
// the tables are analyzed for the first time, by reading the data keys once for each scope.
func lacking(after string) query {
	return define(`
with page as materialized (
    select scope_id, private_id from {schema}{prefix}_root_key ` + after + ` order by scope_id limit 1000),
lacking as materialized (
    select p.scope_id from page p
    where (select 1 from {schema}{prefix}_data_key d where d.root_key_id = p.private_id and d.purpose = $2::text) is null
    order by p.scope_id limit $1::bigint)
select further, scope_id::text from (
    select false as further, scope_id from lacking
    union all
    (select true, scope_id from page where (select count(*) from page) = 1000 order by scope_id desc limit 1)) found
order by further, found.scope_id`)
}

// Purposes implements [store.Store].
func (s *Store) Purposes(ctx context.Context) ([]store.Purpose, error) {
	var list []store.Purpose
	err := s.each(ctx, purposesQuery, nil, func() { list = nil }, func(scan func(...any) error) error {
		var p store.Purpose
		var alg int64
		if err := scan(&p.Purpose, &alg, &p.Created); err != nil {
			return err
		}
		var n rows.Numbers
		p.Alg = rows.Fit[key.Alg](&n, alg)
		list = append(list, p)
		return n.Check(string(p.Purpose))
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "read the purposes", err)
	}
	return list, nil
}

// AddPurposes implements [store.Store].
func (s *Store) AddPurposes(ctx context.Context, purposes []store.Purpose) error {
	var names []string
	var algs []int64
	for _, p := range purposes {
		if err := p.Purpose.Validate(); err != nil {
			return fmt.Errorf("add purposes: %w", err)
		}
		names, algs = append(names, string(p.Purpose)), append(algs, int64(p.Alg))
	}
	err := s.write(ctx, func(w *writer) error { return w.last(ctx, w.tables.statement(insertPurposes, names, algs)) })
	return s.tables.explain(ctx, "add purposes", err)
}

// Lacking implements [store.Store]. A limit of 0 or less lists none. It takes a round trip for each 1000 root keys that
// it looks at, until it has found as many as it may list.
func (s *Store) Lacking(ctx context.Context, p key.Purpose, after key.Scope, limit int) ([]key.Scope, error) {
	var list []key.Scope
	for more := true; more && len(list) < limit; {
		page, next, err := s.lackingPage(ctx, p, after, limit-len(list))
		if err != nil {
			return nil, s.tables.explain(ctx, fmt.Sprintf("list scopes without purpose %q", string(p)), err)
		}
		list = append(list, page...)
		after, more = next, next != ""
	}
	return list, nil
}

// lackingPage lists those of one page, and says how far it looked, unless that is the end.
func (s *Store) lackingPage(
	ctx context.Context, p key.Purpose, after key.Scope, limit int,
) (list []key.Scope, next key.Scope, err error) {
	query, args := firstLackingQuery, []any{int64(limit), storable(string(p))}
	if after != "" {
		arg, err := s.tables.scopeArg(after)
		if err != nil {
			return nil, "", err
		}
		query, args = nextLackingQuery, append(args, arg)
	}
	err = s.each(ctx, query, args, func() { list, next = nil, "" }, func(scan func(...any) error) error {
		var further bool
		var scope key.Scope
		if err := scan(&further, &scope); err != nil {
			return err
		}
		if further {
			next = scope
		} else {
			list = append(list, scope)
		}
		return nil
	})
	return list, next, err
}

var wasDestroyedQuery = define(`
select exists (select 1 from {schema}{prefix}_tombstone where private_id = $1::text and private_id <> '')`)

// WasDestroyed implements [store.Store].
func (s *Store) WasDestroyed(ctx context.Context, id key.ID) (was bool, err error) {
	err = s.each(ctx, wasDestroyedQuery, []any{storable(string(id))}, func() { was = false }, func(scan func(...any) error) error {
		return scan(&was)
	})
	return was && err == nil, s.tables.explain(ctx, fmt.Sprintf("look for the tombstone of version %q", string(id)), err)
}

// Families implements [store.Store]. It takes one round trip.
func (s *Store) Families(ctx context.Context, scopes []key.Scope) ([]store.Family, store.Epochs, error) {
	if len(scopes) > store.MaxFamilies {
		return nil, store.Epochs{}, fmt.Errorf("read %d scopes: the limit is %d", len(scopes), store.MaxFamilies)
	}
	var args []string
	for _, scope := range scopes {
		arg, err := s.tables.scopeArg(scope)
		if err != nil {
			return nil, store.Epochs{}, fmt.Errorf("read scope %q: %w", string(scope), err)
		}
		args = append(args, arg)
	}
	var f rows.Families
	var row rows.Row // one for all: there may be many
	columns := row.Columns()
	err := s.each(ctx, familiesQuery, []any{args}, func() { f = rows.Families{} }, func(scan func(...any) error) error {
		if err := scan(columns...); err != nil {
			return &rows.Error{Row: string(row.ID), Problem: err.Error()}
		}
		return f.Add(&row)
	})
	if err != nil {
		return nil, store.Epochs{}, s.tables.explain(ctx, "read scopes", err)
	}
	return f.Families(scopes), f.Epochs, nil
}
