package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var (
	purposesQuery = define(`select purpose, alg, created from {prefix}_purpose order by purpose`)

	insertPurpose = define(`
insert into {prefix}_purpose (purpose, alg)
select ?1, ?2 where not exists (select 1 from {prefix}_purpose where purpose = ?1)`)

	firstLackingQuery = define(`
select cast(scope_id as text) from {prefix}_root_key r
where not exists (select 1 from {prefix}_data_key d where d.root_key_id = r.private_id and d.purpose = ?2)
order by scope_id limit ?1`)

	nextLackingQuery = define(`
select cast(scope_id as text) from {prefix}_root_key r
where scope_id > ?3
    and not exists (select 1 from {prefix}_data_key d where d.root_key_id = r.private_id and d.purpose = ?2)
order by scope_id limit ?1`)
)

// Purposes implements [store.Store].
func (s *Store) Purposes(ctx context.Context) ([]store.Purpose, error) {
	var list []store.Purpose
	err := s.each(ctx, purposesQuery, nil, func(r *sql.Rows) error {
		var p store.Purpose
		if err := r.Scan(&p.Purpose, &p.Alg, &p.Created); err != nil {
			return err
		}
		list = append(list, p)
		return nil
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "read the purposes", err)
	}
	return list, nil
}

// AddPurposes implements [store.Store].
func (s *Store) AddPurposes(ctx context.Context, purposes []store.Purpose) error {
	err := s.write(ctx, func(w *writer) error {
		for _, p := range purposes {
			if err := p.Purpose.Validate(); err != nil {
				return err
			}
			if _, err := w.exec(ctx, insertPurpose, string(p.Purpose), int64(p.Alg)); err != nil {
				return fmt.Errorf("purpose %q: %w", p.Purpose, err)
			}
		}
		return nil
	})
	return s.tables.explain(ctx, "add purposes", err)
}

// Lacking implements [store.Store]. A limit of 0 or less lists none.
func (s *Store) Lacking(ctx context.Context, p key.Purpose, after key.Scope, limit int) ([]key.Scope, error) {
	list, err := s.scopes(ctx, firstLackingQuery, nextLackingQuery, after, limit, string(p))
	return list, s.tables.explain(ctx, fmt.Sprintf("list scopes without purpose %q", p), err)
}

var wasDestroyedQuery = define(`select exists (select 1 from {prefix}_tombstone where private_id = ? and private_id <> '')`)

// WasDestroyed implements [store.Store].
func (s *Store) WasDestroyed(ctx context.Context, id key.ID) (was bool, err error) {
	err = s.each(ctx, wasDestroyedQuery, []any{string(id)}, func(r *sql.Rows) error { return r.Scan(&was) })
	return was && err == nil, s.tables.explain(ctx, fmt.Sprintf("look for the tombstone of version %q", string(id)), err)
}

// Families implements [store.Store]. It is one statement for each scope.
func (s *Store) Families(ctx context.Context, scopes []key.Scope) ([]store.Family, error) {
	var list []store.Family
	for _, scope := range scopes {
		f, err := s.Scope(ctx, scope)
		switch {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return nil, err
		default:
			f.Epoch, f.Roots = 0, 0 // those of different moments
			list = append(list, f)
		}
	}
	return list, nil
}
