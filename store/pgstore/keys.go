package pgstore

import (
	"context"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

var keysQuery = family(`
n as (select distinct scope::{scope_type} as scope_id, purpose from unnest($1::text[], $2::text[]) as n (scope, purpose)),
r as (select r.* from (select distinct scope_id from n) n join {schema}{prefix}_root_key r on r.scope_id = n.scope_id),
d as (
    select d.* from n
    join {schema}{prefix}_root_key r on r.scope_id = n.scope_id
    join {schema}{prefix}_data_key d on d.root_key_id = r.private_id and d.purpose = n.purpose)`, true)

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
	err := s.each(ctx, keysQuery, []any{args, purposes}, func() { f = rows.Families{} }, func(scan func(...any) error) error {
		var row rows.Row
		if err := scan(row.Columns()...); err != nil {
			return &rows.Error{Row: string(row.ID), Problem: err.Error()}
		}
		return f.Add(&row)
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "read keys", err)
	}
	type name struct {
		root    key.ID
		purpose key.Purpose
	}
	roots, data := map[key.Scope]store.Family{}, map[name]store.Key{}
	for _, fam := range f.Families(scopes) {
		for _, k := range fam.Data {
			data[name{fam.Root.ID, k.Purpose}] = k
		}
		fam.Data, fam.Epoch = nil, 0
		roots[fam.Root.Scope] = fam
	}
	list := make([]store.Family, len(refs))
	for i, ref := range refs {
		list[i] = roots[ref.Scope]
		if k, ok := data[name{list[i].Root.ID, ref.Purpose}]; ok {
			list[i].Data = []store.Key{k}
		}
	}
	return list, nil
}
