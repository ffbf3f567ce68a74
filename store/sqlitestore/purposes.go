package sqlitestore

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
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

// familiesQueries read at most so many scopes, and stay prepared: a statement of SQLite's has no arrays.
var familiesQueries = func() (list []sized) {
	for _, n := range []int{1, 32, 512, store.MaxFamilies} {
		list = append(list, sized{n, define(`with
r as materialized (select * from {prefix}_root_key where scope_id in (` + strings.Repeat("?,", n-1) + `?)),
d as materialized (select d.* from r cross join {prefix}_data_key d on d.root_key_id = r.private_id)
select 0, '', '', '', cast(strftime('%s', 'now') as integer), 0,
    coalesce((select seq from {prefix}_installation where only_row = 1), 0), 0, 0,
    (select inst from {prefix}_installation where only_row = 1), null, null
union all
select 8, '', '', '', bucket, sum(n), 0, 0, 0, null, null, null from {prefix}_epoch group by bucket` + familyRows(true))})
	}
	return list
}()

type sized struct {
	limit int
	query query
}

// Families implements [store.Store]. It is one statement.
func (s *Store) Families(ctx context.Context, scopes []key.Scope) ([]store.Family, store.Epochs, error) {
	i := slices.IndexFunc(familiesQueries, func(q sized) bool { return len(scopes) <= q.limit })
	if i < 0 {
		return nil, store.Epochs{}, fmt.Errorf("read %d scopes: the limit is %d", len(scopes), store.MaxFamilies)
	}
	args := make([]any, familiesQueries[i].limit) // null is no scope
	for n, scope := range scopes {
		var err error
		if args[n], err = s.tables.scopeArg(scope); err != nil {
			return nil, store.Epochs{}, fmt.Errorf("read scope %q: %w", string(scope), err)
		}
	}
	var f rows.Families
	var row rows.Row // one for all: there may be many
	columns := row.Columns()
	err := s.each(ctx, familiesQueries[i].query, args, func(r *sql.Rows) error {
		if err := r.Scan(columns...); err != nil {
			return &rows.Error{Row: string(row.ID), Problem: err.Error()}
		}
		return f.Add(&row)
	})
	if err != nil {
		return nil, store.Epochs{}, s.tables.explain(ctx, "read scopes", err)
	}
	return f.Families(scopes), f.Epochs, nil
}
