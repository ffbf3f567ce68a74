package pgstore

import (
	"context"

	"keyhold.example/keyhold/store/internal/rows"
)

var (
	// Of each bucket the first row that nobody else is adding up gets the sum of the others, which go. Nobody waits: a
	// row that is locked is another's to add up. Sums are kept below 2^63-1 as those are that are read of them. No part
	// reads more of the table than there is to add up: the rows that go are named one by one.
	addUpEpochs = define(`
with several as materialized (
    select b::smallint as bucket from generate_series(0, 31) b
    where (select count(*) from (select 1 from {schema}{prefix}_epoch where bucket = b order by n limit 2) two) = 2),
mine as materialized (
    select id, bucket, n from {schema}{prefix}_epoch
    where bucket = any (array(select bucket from several))
    order by id limit $1::bigint
    for update skip locked),
sums as materialized (
    select bucket, min(id) as id, (sum(n) % 9223372036854775807)::bigint as n from mine group by bucket having count(*) > 1),
gone as (
    delete from {schema}{prefix}_epoch
    where id = any (array(select mine.id from mine join sums on sums.bucket = mine.bucket where mine.id <> sums.id))),
kept as (
    update {schema}{prefix}_epoch e set n = case sums.n when 0 then 9223372036854775807 else sums.n end
    from sums where e.id = sums.id)
select count(*) from mine`)

	removeGoneInstances = define(`
with away as materialized (
    select private_id from {schema}{prefix}_instance
    where floor(extract(epoch from statement_timestamp()))::bigint - $2::bigint - signed > life
    limit $1::bigint
    for update skip locked),
removed as (delete from {schema}{prefix}_instance where private_id = any (array(select private_id from away)))
select count(*) from away`)

	// What was taken of versions that are head no more makes no key due, and would only be in the way of those that do.
	forgetUsed = define(`
with old as materialized (
    select u.private_id from {schema}{prefix}_usage u
    join {schema}{prefix}_data_key_version v on v.private_id = u.private_id
    where u.used_at is not null and v.state in (3, 4)
    limit $1::bigint
    for update of u skip locked),
forgot as (update {schema}{prefix}_usage set used_at = null where private_id = any (array(select private_id from old)))
select count(*) from old`)
)

// tidied is how many rows of each kind one transaction tidies up at most, which takes about a second.
const tidied = 50_000

// Tidy implements [store.Fleet].
func (s *Store) Tidy(ctx context.Context) (more bool, err error) {
	err = s.write(ctx, func(w *writer) error {
		more = false
		atMost := func(q query, args ...any) statement {
			st := s.tables.statement(q, append([]any{int64(tidied)}, args...)...)
			st.row = func(scan func(...any) error) error {
				n := 0
				err := scan(&n)
				more = more || n == tidied
				return err
			}
			return st
		}
		return w.last(ctx, atMost(addUpEpochs), atMost(removeGoneInstances, int64(rows.Day)), atMost(forgetUsed))
	})
	if err != nil {
		return false, s.tables.explain(ctx, "tidy", err)
	}
	return more, nil
}
