package pgstore

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// durably is common table expressions for a transaction whose loss another process could suffer from, whatever the
// session's default is. It has to be named in the statement, or the server leaves it out.
const durably = `
durable as materialized (
    select set_config('synchronous_commit', 'on', true)
    where current_setting('synchronous_commit') not in ('on', 'remote_apply'))`

var (
	signStatement = define(`
with` + durably + `,
installed as (select inst, seq from {schema}{prefix}_installation),
signed as (
    insert into {schema}{prefix}_instance (private_id, name, seen, life, slot, since, signed)
    select $1::text, $2::text, $3::bytea, $4::bigint, $5::text, now, now
    from installed, (select floor(extract(epoch from statement_timestamp()))::bigint as now) clock
    on conflict (private_id) do update
    set name = excluded.name, seen = excluded.seen, life = excluded.life, slot = excluded.slot,
        signed = excluded.signed)` + readEpochs("installed") + `
where (select count(*) from durable) >= 0`)

	// The first column says what a row is: the time, an epoch or an instance.
	rollQuery = define(`
select 0::bigint, ''::text collate "C" as id, '', '', null::bytea,
    floor(extract(epoch from statement_timestamp()))::bigint as a, 0::bigint, 0::bigint, pg_is_in_recovery()
union all
select 1, '', '', '', null, bucket, (sum(n) % 9223372036854775807)::bigint, 0, false from {schema}{prefix}_epoch group by bucket
union all
select 2, private_id, name, slot, seen, since, signed, life, false from {schema}{prefix}_instance
order by 1, a, id`)

	deleteInstance = define(`delete from {schema}{prefix}_instance where private_id = $1::text`)
)

// Sign implements [store.Fleet]. It takes one round trip. Its commit, which waits for synchronous standbys, waits no
// longer than ctx allows: who signs does so again, and need not know what became of it.
func (s *Store) Sign(ctx context.Context, in store.Instance) (store.Epochs, error) {
	if err := rows.CheckInstance(&in); err != nil {
		return store.Epochs{}, fmt.Errorf("sign: %w", err)
	}
	var e store.Epochs
	err := s.alone(ctx, s.tables.epochs(&e, signStatement,
		string(in.ID), in.Name, rows.PackEpochs(&in.Seen), in.Life, string(in.Slot)))
	if err != nil {
		return store.Epochs{}, s.tables.explain(ctx, "sign", err)
	}
	return e, nil
}

// Roll implements [store.Queries].
func (q queries) Roll(ctx context.Context) (store.Roll, error) {
	var roll store.Roll
	err := q.each(ctx, rollQuery, nil, func() { roll = store.Roll{} }, func(scan func(...any) error) (err error) {
		var what, a, b, c int64
		var in store.Instance
		var seen []byte
		standby := false
		if err := scan(&what, &in.ID, &in.Name, &in.Slot, &seen, &a, &b, &c, &standby); err != nil {
			return err
		}
		var bad rows.Numbers
		switch {
		case standby:
			return errStandby
		case what == 0:
			roll.Now = a
		case what == 1:
			roll.Epochs[rows.Fit[uint64](&bad, a)%store.Buckets] = rows.Fit[uint64](&bad, b)
			err = bad.Check("epochs")
		default:
			in.Since, in.Signed, in.Life = a, b, c
			in.Seen, err = rows.UnpackEpochs(string(in.ID), seen)
			roll.Instances = append(roll.Instances, in)
		}
		return err
	})
	if err != nil {
		return store.Roll{}, q.tables.explain(ctx, "list the instances", err)
	}
	return roll, nil
}

// Leave implements [store.Fleet], as [Store.Sign] does.
func (s *Store) Leave(ctx context.Context, id key.ID) error {
	err := s.alone(ctx, s.tables.statement(deleteInstance, storable(string(id))))
	return s.tables.explain(ctx, "leave", err)
}

var (
	// Whoever has the lease may prolong it while something is written under it: the one locks the row for no key
	// update, the other for key share. Whoever takes it over locks the row for update, which neither lets through.
	// Nobody waits for a row that is being taken over: until then it is somebody else's. Who makes a row at the same
	// time waits for the other's commit.
	leaseStatement = define(`
with clock as materialized (select floor(extract(epoch from clock_timestamp()))::bigint as now),
mine as materialized (
    select name from {schema}{prefix}_lease
    where name = $1::text and owner = $2::text and until > (select now from clock)
    for no key update),
free as materialized (
    select name from {schema}{prefix}_lease
    where name = $1::text and until <= (select now from clock) and not exists (select 1 from mine)
    for update skip locked),
prolonged as (
    update {schema}{prefix}_lease l set until = clock.now + $3::bigint
    from mine, clock where l.name = mine.name
    returning l.fence, l.until),
taken as (
    update {schema}{prefix}_lease l set owner = $2::text, fence = l.fence + 1, until = clock.now + $3::bigint
    from free, clock where l.name = free.name
    returning l.fence, l.until),
made as (
    insert into {schema}{prefix}_lease (name, owner, fence, until)
    select $1::text, $2::text, 1, clock.now + $3::bigint from clock
    where not exists (select 1 from {schema}{prefix}_lease where name = $1::text)
    on conflict (name) do nothing
    returning fence, until)
select fence, until from prolonged
union all
select fence, until from taken
union all
select fence, until from made`)

	releaseLease = define(`
update {schema}{prefix}_lease set until = 0
where name = $1::text and owner = $2::text and fence = $3::bigint and until > 0`)

	// Until the transaction ends, nobody else gets the lease, even if its time is over meanwhile.
	holdLease = define(`
select 1 from {schema}{prefix}_lease
where name = $1::text and owner = $2::text and fence = $3::bigint
    and until > floor(extract(epoch from clock_timestamp()))::bigint
for key share`)
)

// Lease implements [store.Fleet].
func (s *Store) Lease(ctx context.Context, name string, owner key.ID, seconds int64) (l store.Lease, ok bool, err error) {
	if err := rows.CheckLease(name, owner, seconds); err != nil {
		return store.Lease{}, false, err
	}
	err = s.write(ctx, func(w *writer) error {
		st := s.tables.statement(leaseStatement, name, string(owner), seconds)
		st.start = func() { l, ok = store.Lease{Name: name, Owner: owner}, false }
		st.row = func(scan func(...any) error) error {
			ok = true
			return scan(&l.Fence, &l.Until)
		}
		return w.last(ctx, st)
	})
	if err != nil || !ok {
		return store.Lease{}, false, s.tables.explain(ctx, fmt.Sprintf("lease %q", name), err)
	}
	return l, true, nil
}

// Release implements [store.Fleet].
func (s *Store) Release(ctx context.Context, l store.Lease) error {
	err := s.write(ctx, func(w *writer) error {
		return w.last(ctx, s.tables.statement(releaseLease, storable(l.Name), storable(string(l.Owner)), l.Fence))
	})
	return s.tables.explain(ctx, fmt.Sprintf("release lease %q", l.Name), err)
}

// errNotHeld ends a transaction that was to be done under a lease.
var errNotHeld = errors.New("the lease is not held any more")

// held is what a transaction under a lease begins with: no statement if that is nil. Its error is otherwise.
func (w *writer) held(l *store.Lease, otherwise error) []statement {
	if l == nil {
		return nil
	}
	st := w.tables.statement(holdLease, storable(l.Name), storable(string(l.Owner)), l.Fence)
	st.done = func(rows int) error {
		if rows == 0 {
			return otherwise
		}
		return nil
	}
	return []statement{st}
}

// The rows are locked in the order of everybody else (see update): the root key's first, then the version's, then what
// was taken of it. So no row is made for a version that is being destroyed; and the application's transaction, which
// goes on to insert a row with a foreign key to the version, or to change a key, waits for no deletion that waits for
// it.
// Where all was taken before, nothing is locked or written. Where two make the row at once, only one does, and the
// other begins again.
var takeStatement = define(`
with` + durably + `,
spent as materialized (
    select 1 from {schema}{prefix}_usage where private_id = $1::text and taken >= $3::bigint and used_at is not null),
root as materialized (
    select r.private_id
    from {schema}{prefix}_data_key_version v
    join {schema}{prefix}_data_key k on k.private_id = v.data_key_id
    join {schema}{prefix}_root_key r on r.private_id = k.root_key_id
    where v.private_id = $1::text and not exists (select 1 from spent)
    for key share of r),
version as materialized (
    select private_id from {schema}{prefix}_data_key_version
    where private_id = $1::text and exists (select 1 from root)
    for key share),
was as materialized (
    select taken, used_at, greatest(0, least($2::bigint, $3::bigint - taken)) as n
    from {schema}{prefix}_usage where private_id = (select private_id from version)
    for no key update),
given as (
    update {schema}{prefix}_usage u set taken = was.taken + was.n, used_at = case
        when was.taken + was.n >= $4::bigint then coalesce(u.used_at, floor(extract(epoch from statement_timestamp()))::bigint) end
    from was
    where u.private_id = $1::text and (was.n > 0 or (was.used_at is null) = (was.taken >= $4::bigint))),
made as (
    insert into {schema}{prefix}_usage (private_id, taken, used_at)
    select private_id, least($2::bigint, $3::bigint), case
        when least($2::bigint, $3::bigint) >= $4::bigint then floor(extract(epoch from statement_timestamp()))::bigint end
    from version
    where $2::bigint > 0 and not exists (select 1 from was)
    on conflict (private_id) do nothing
    returning taken as n)
select exists (select 1 from version), coalesce((select 0 from spent), (select n from was), (select n from made),
    case when $2::bigint = 0 and exists (select 1 from version) then 0 else -1 end)
where (select count(*) from durable) >= 0`)

// Take implements [store.Queries]. It takes one round trip besides the commit, unless several begin with the same
// version at once.
func (q queries) Take(ctx context.Context, id key.ID, n, limit uint64) (uint64, error) {
	doing := fmt.Sprintf("take messages of %q", string(id))
	if err := rows.CheckTake(n, limit); err != nil {
		return 0, fmt.Errorf("%s: %w", doing, err)
	}
	var given int64
	err := q.view.write(ctx, func(w *writer) error {
		for range attempts {
			there := false
			st := w.tables.statement(takeStatement, storable(string(id)), int64(n), int64(limit), int64(rows.UsedFrom(limit)))
			st.row = func(scan func(...any) error) error { return scan(&there, &given) }
			switch err := w.run(ctx, st); {
			case err != nil || given >= 0:
				return err
			case !there:
				return store.ErrNotFound
			}
		}
		return errors.New("others take of it at the same time, again and again")
	})
	if err != nil {
		return 0, q.tables.explain(ctx, doing, err)
	}
	return uint64(given), nil
}
