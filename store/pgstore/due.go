package pgstore

import (
	"context"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// Each reason has an index in the order of the list, which has only the keys that may be due, so that each part ends
// after as many rows as the page has. The time is not in a common table expression: the planner has to see that little
// of the index is before it, or it starts parallel workers and compiles the statement, which takes many times longer.
//
// Before the tables are analyzed for the first time the planner may do a join in any way, such as by reading all data
// keys. So the greater version, which one that is pending does not have, and the key of a version that is used up are
// looked up for each. Both are few, which for the latter the planner takes from a range with two ends.
var (
	dueQuery = define(`
with due as materialized (
    (select rotate_at as at, private_id, 1 as why from {schema}{prefix}_root_key
    where rotate_at <= floor(extract(epoch from statement_timestamp()))::bigint
        and (rotate_at, private_id) >= ($1::bigint, $2::text) and (rotate_at, private_id, 1) > ($1::bigint, $2::text, $3::bigint)
        and ($4::bigint >> {schema}{prefix}_bucket(private_id)) & 1 = 1
    order by rotate_at, private_id limit $5::bigint)
    union all
    (select rotate_at, private_id, 1 from {schema}{prefix}_data_key
    where rotate_at <= floor(extract(epoch from statement_timestamp()))::bigint
        and (rotate_at, private_id) >= ($1::bigint, $2::text) and (rotate_at, private_id, 1) > ($1::bigint, $2::text, $3::bigint)
        and ($4::bigint >> {schema}{prefix}_bucket(private_id)) & 1 = 1
    order by rotate_at, private_id limit $5::bigint)
    union all
    (select created, root_key_id, 2 from {schema}{prefix}_root_key_version v
    where state = 1
        and (created, root_key_id) >= ($1::bigint, $2::text) and (created, root_key_id, 2) > ($1::bigint, $2::text, $3::bigint)
        and ($4::bigint >> {schema}{prefix}_bucket(root_key_id)) & 1 = 1
        and (select 1 from {schema}{prefix}_root_key_version n where n.root_key_id = v.root_key_id and n.version > v.version
            order by n.version limit 1) is null
    order by created, root_key_id limit $5::bigint)
    union all
    (select created, data_key_id, 2 from {schema}{prefix}_data_key_version v
    where state = 1
        and (created, data_key_id) >= ($1::bigint, $2::text) and (created, data_key_id, 2) > ($1::bigint, $2::text, $3::bigint)
        and ($4::bigint >> {schema}{prefix}_bucket(data_key_id)) & 1 = 1
        and (select 1 from {schema}{prefix}_data_key_version n where n.data_key_id = v.data_key_id and n.version > v.version
            order by n.version limit 1) is null
    order by created, data_key_id limit $5::bigint)
    union all
    (select u.used_at, k.private_id, 3
    from {schema}{prefix}_usage u
    cross join lateral (
        select d.private_id from {schema}{prefix}_data_key_version v
        join {schema}{prefix}_data_key d on d.private_id = v.data_key_id and d.head_version = v.version
        where v.private_id = u.private_id offset 0) k
    where u.used_at >= $1::bigint and u.used_at <= 9223372036854775807 and (u.used_at, k.private_id, 3) > ($1::bigint, $2::text, $3::bigint)
        and ($4::bigint >> {schema}{prefix}_bucket(k.private_id)) & 1 = 1
    order by u.used_at, k.private_id limit $5::bigint)),
page as materialized (select at, private_id, why from due order by at, private_id, why limit $5::bigint)
select p.at, p.private_id, p.why::bigint, r.scope_id::text, '', r.head_version::bigint
from page p join {schema}{prefix}_root_key r on r.private_id = p.private_id
union all
select p.at, p.private_id, p.why::bigint, r.scope_id::text, d.purpose, d.head_version::bigint
from page p
join {schema}{prefix}_data_key d on d.private_id = p.private_id
join {schema}{prefix}_root_key r on r.private_id = d.root_key_id
order by 1, 2, 3`)

	upcomingQuery = define(`
select floor(extract(epoch from statement_timestamp()))::bigint, coalesce(least(
    (select min(rotate_at) from {schema}{prefix}_root_key where rotate_at > floor(extract(epoch from statement_timestamp()))::bigint),
    (select min(rotate_at) from {schema}{prefix}_data_key where rotate_at > floor(extract(epoch from statement_timestamp()))::bigint)
), 0)`)

	// A version under another root key version than the head is found from the root key's other versions, of which
	// there are few. The last row says how far was looked, where there may be more.
	//
	// It is written so that no join can go through all versions, and by ranges that are one value, in the order of an
	// index: of an equality the planner thinks that a row is soon found by reading the table, and where nothing lags
	// behind it reads all of it for each root key. So it also knows that little is read, and does not compile the
	// statement.
	laggingQuery = define(`
with page as materialized (
    select private_id, scope_id::text as scope, head_version from {schema}{prefix}_root_key
    where private_id > $1::text order by private_id limit 1000),
lagging as materialized (
    select p.private_id, p.scope
    from page p
    where (
        select v.one
        from {schema}{prefix}_root_key_version r
        cross join lateral (
            select 1 as one from {schema}{prefix}_data_key_version
            where root_key_version_id >= r.private_id and root_key_version_id <= r.private_id
            order by root_key_version_id limit 1) v
        where r.root_key_id >= p.private_id and r.root_key_id <= p.private_id and r.version <> p.head_version
        order by r.root_key_id limit 1) is not null
    order by p.private_id limit $2::bigint)
select false as further, private_id, scope from lagging
union all
select true, max(private_id), '' from page having count(*) = 1000
order by 1, 2`)
)

// Due implements [store.Fleet]. It takes one round trip. A limit of 0 or less lists none.
func (s *Store) Due(ctx context.Context, buckets store.BucketSet, after store.Due, limit int) ([]store.Due, error) {
	if err := rows.CheckAfter(after.KeyID); err != nil {
		return nil, fmt.Errorf("list due keys: %w", err)
	}
	args := []any{after.At, string(after.KeyID), int64(after.Why), int64(buckets), int64(max(0, limit))}
	var list []store.Due
	err := s.each(ctx, dueQuery, args, func() { list = nil }, func(scan func(...any) error) error {
		var d store.Due
		var why, head int64
		if err := scan(&d.At, &d.KeyID, &why, &d.Scope, &d.Purpose, &head); err != nil {
			return err
		}
		var n rows.Numbers
		d.Why, d.Head = store.Why(why), rows.Fit[key.Version](&n, head)
		list = append(list, d)
		return n.Check(string(d.KeyID))
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "list due keys", err)
	}
	return list, nil
}

// Upcoming implements [store.Fleet].
func (s *Store) Upcoming(ctx context.Context) (now, at int64, err error) {
	err = s.each(ctx, upcomingQuery, nil, nil, func(scan func(...any) error) error { return scan(&now, &at) })
	if err != nil {
		return 0, 0, s.tables.explain(ctx, "look for the next due key", err)
	}
	return now, at, nil
}

// Lagging implements [store.Fleet]. It looks at 1000 root keys. A limit of 0 or less lists none.
func (s *Store) Lagging(ctx context.Context, after key.ID, limit int) (scopes []key.Scope, next key.ID, err error) {
	return s.pageByKey(ctx, "list scopes to rewrap", laggingQuery, after, limit)
}

// pageByKey lists a page of scopes in the order of their root keys' ids. The query gets the id before the page, how
// many to list at most, and args. Its rows are the scopes, and perhaps a last one that says how far it looked.
func (s *Store) pageByKey(
	ctx context.Context, doing string, query query, after key.ID, limit int, args ...any,
) (scopes []key.Scope, next key.ID, err error) {
	if err := rows.CheckAfter(after); err != nil {
		return nil, "", fmt.Errorf("%s: %w", doing, err)
	}
	if limit <= 0 {
		return nil, "", nil
	}
	more := false // than limit were found
	var last key.ID
	args = append([]any{string(after), int64(limit) + 1}, args...)
	err = s.each(ctx, query, args, func() { scopes, next, more = nil, "", false },
		func(scan func(...any) error) error {
			var further bool
			var id key.ID
			var scope key.Scope
			if err := scan(&further, &id, &scope); err != nil {
				return err
			}
			switch {
			case further && !more:
				next = id
			case !further && len(scopes) == limit:
				next, more = last, true
			case !further:
				scopes, last = append(scopes, scope), id
			}
			return nil
		})
	if err != nil {
		return nil, "", s.tables.explain(ctx, doing, err)
	}
	return scopes, next, nil
}
