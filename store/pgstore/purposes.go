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

	firstLackingQuery = define(`
select r.scope_id::text from {schema}{prefix}_root_key r
where not exists (select 1 from {schema}{prefix}_data_key d where d.root_key_id = r.private_id and d.purpose = $2::text)
order by r.scope_id limit $1::bigint`)

	nextLackingQuery = define(`
select r.scope_id::text from {schema}{prefix}_root_key r
where r.scope_id > $3::text::{scope_type}
    and not exists (select 1 from {schema}{prefix}_data_key d where d.root_key_id = r.private_id and d.purpose = $2::text)
order by r.scope_id limit $1::bigint`)

	familiesQuery = family(`
r as (select * from {schema}{prefix}_root_key where scope_id = any ($1::text[]::{scope_type}[])),
d as (select d.* from r join {schema}{prefix}_data_key d on d.root_key_id = r.private_id)`, true)

	keysQuery = family(`
n as (select distinct scope::{scope_type} as scope_id, purpose from unnest($1::text[], $2::text[]) as n (scope, purpose)),
r as (select r.* from (select distinct scope_id from n) n join {schema}{prefix}_root_key r on r.scope_id = n.scope_id),
d as (
    select d.* from n
    join {schema}{prefix}_root_key r on r.scope_id = n.scope_id
    join {schema}{prefix}_data_key d on d.root_key_id = r.private_id and d.purpose = n.purpose)`, true)
)

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

// Lacking implements [store.Store]. A limit of 0 or less lists none.
func (s *Store) Lacking(ctx context.Context, p key.Purpose, after key.Scope, limit int) ([]key.Scope, error) {
	list, err := s.scopes(ctx, firstLackingQuery, nextLackingQuery, after, limit, storable(string(p)))
	return list, s.tables.explain(ctx, fmt.Sprintf("list scopes without purpose %q", string(p)), err)
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
func (s *Store) Families(ctx context.Context, scopes []key.Scope) ([]store.Family, error) {
	var args []string
	for _, scope := range scopes {
		arg, err := s.tables.scopeArg(scope)
		if err != nil {
			return nil, fmt.Errorf("read scope %q: %w", string(scope), err)
		}
		args = append(args, arg)
	}
	var f rows.Families
	err := s.each(ctx, familiesQuery, []any{args}, func() { f = rows.Families{} }, func(scan func(...any) error) error {
		var row rows.Row
		if err := scan(row.Columns()...); err != nil {
			return &rows.Error{Row: string(row.ID), Problem: err.Error()}
		}
		return f.Add(&row)
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "read scopes", err)
	}
	return f.Families(scopes), nil
}

// Keys implements [store.Store]. It takes one round trip.
func (s *Store) Keys(ctx context.Context, refs []key.Ref) ([]store.Family, error) {
	var scopes []key.Scope
	var args, purposes []string
	for _, ref := range refs {
		arg, err := s.tables.scopeArg(ref.Scope)
		if err != nil {
			return nil, fmt.Errorf("read %v: %w", ref, err)
		}
		scopes, args, purposes = append(scopes, ref.Scope), append(args, arg), append(purposes, storable(string(ref.Purpose)))
	}
	var f rows.Families
	var seq int64
	err := s.each(ctx, keysQuery, []any{args, purposes}, func() { f = rows.Families{} }, func(scan func(...any) error) error {
		var row rows.Row
		if err := scan(row.Columns()...); err != nil {
			return &rows.Error{Row: string(row.ID), Problem: err.Error()}
		}
		if row.Table == rows.Now {
			seq = row.C
		}
		return f.Add(&row)
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "read keys", err)
	}
	found := map[key.Scope]store.Family{}
	for _, fam := range f.Families(scopes) {
		found[fam.Root.Scope] = fam
	}
	list := make([]store.Family, len(refs))
	for i, ref := range refs {
		fam := found[ref.Scope]
		list[i] = store.Family{Now: fam.Now, Roots: uint64(seq), Root: fam.Root}
		for n := range fam.Data {
			if fam.Data[n].Purpose == ref.Purpose {
				list[i].Data = fam.Data[n : n+1 : n+1]
			}
		}
	}
	return list, nil
}
