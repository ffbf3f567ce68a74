package sqlitestore

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

var (
	updateInstance = define(`
update {prefix}_instance set name = ?2, seen = ?3, life = ?4, slot = ?5, signed = cast(strftime('%s', 'now') as integer)
where private_id = ?1`)

	insertInstance = define(`
insert into {prefix}_instance (private_id, name, seen, life, slot) values (?1, ?2, ?3, ?4, ?5)`)

	deleteInstance = define(`delete from {prefix}_instance where private_id = ?`)

	// The first column says what a row is: the time, an epoch or an instance.
	rollQuery = define(`
select 0, '' as id, '', '', null, cast(strftime('%s', 'now') as integer) as a, 0, 0
union all
select 1, '', '', '', null, bucket, sum(n), 0 from {prefix}_epoch group by bucket
union all
select 2, private_id, name, slot, seen, since, signed, life from {prefix}_instance
order by 1, a, id`)
)

// Sign implements [store.Fleet].
func (s *Store) Sign(ctx context.Context, in store.Instance) (store.Epochs, error) {
	var e store.Epochs
	err := rows.CheckInstance(&in)
	if err == nil {
		err = s.write(ctx, func(w *writer) error {
			if err := w.each(ctx, epochsQuery, scanEpochs(&e)); err != nil {
				return err
			}
			if e.Inst == nil {
				return store.ErrNotFound
			}
			return w.put(ctx, updateInstance, insertInstance,
				string(in.ID), in.Name, rows.PackEpochs(&in.Seen), in.Life, string(in.Slot))
		})
	}
	if err != nil {
		return store.Epochs{}, s.tables.explain(ctx, "sign", err)
	}
	return e, nil
}

// put updates a row, or inserts it. Not "on conflict do update": the tables refuse whatever meets a row that is there
// before SQLite looks for conflicts.
func (w *writer) put(ctx context.Context, update, insert query, args ...any) error {
	n, err := w.exec(ctx, update, args...)
	if err == nil && n == 0 {
		_, err = w.exec(ctx, insert, args...)
	}
	return err
}

// Roll implements [store.Queries].
func (q queries) Roll(ctx context.Context) (store.Roll, error) {
	var roll store.Roll
	err := q.each(ctx, rollQuery, nil, func(r *sql.Rows) (err error) {
		var what, a, b, c int64
		var in store.Instance
		var seen []byte
		if err := r.Scan(&what, &in.ID, &in.Name, &in.Slot, &seen, &a, &b, &c); err != nil {
			return &rows.Error{Row: string(in.ID), Problem: err.Error()}
		}
		switch what {
		case 0:
			roll.Now = a
		case 1:
			roll.Epochs[uint64(a)%store.Buckets] = uint64(b)
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

// Leave implements [store.Fleet].
func (s *Store) Leave(ctx context.Context, id key.ID) error {
	err := s.write(ctx, func(w *writer) error {
		_, err := w.exec(ctx, deleteInstance, string(id))
		return err
	})
	return s.tables.explain(ctx, fmt.Sprintf("remove instance %q", string(id)), err)
}

var (
	leaseQuery = define(`
select cast(strftime('%s', 'now') as integer), coalesce(l.owner, ''), coalesce(l.fence, 0), coalesce(l.until, 0)
from (select 1) left join {prefix}_lease l on l.name = ?`)

	updateLease = define(`update {prefix}_lease set owner = ?2, fence = ?3, until = ?4 where name = ?1`)
	insertLease = define(`insert into {prefix}_lease (name, owner, fence, until) values (?1, ?2, ?3, ?4)`)
	endLease    = define(`update {prefix}_lease set until = 0 where name = ? and owner = ? and fence = ?`)
)

// Lease implements [store.Fleet].
func (s *Store) Lease(ctx context.Context, name string, owner key.ID, seconds int64) (store.Lease, bool, error) {
	l, ok := store.Lease{Name: name}, false
	err := rows.CheckLease(name, owner, seconds)
	if err == nil {
		err = s.write(ctx, func(w *writer) (err error) {
			l, ok, err = w.lease(ctx, name, owner, seconds)
			return err
		})
	}
	if err != nil {
		err = s.tables.explain(ctx, fmt.Sprintf("get lease %q", name), err)
	}
	if err != nil || !ok {
		return store.Lease{}, false, err
	}
	return l, true, nil
}

func (w *writer) lease(ctx context.Context, name string, owner key.ID, seconds int64) (store.Lease, bool, error) {
	l, now := store.Lease{Name: name}, int64(0)
	err := w.each(ctx, leaseQuery, func(r *sql.Rows) error {
		if err := r.Scan(&now, &l.Owner, &l.Fence, &l.Until); err != nil {
			return &rows.Error{Row: name, Problem: err.Error()}
		}
		return nil
	}, name)
	switch {
	case err != nil:
		return l, false, err
	case l.Until <= now:
		l.Owner, l.Fence = owner, l.Fence+1
	case l.Owner != owner:
		return l, false, nil
	}
	l.Until = now + seconds
	return l, true, w.put(ctx, updateLease, insertLease, l.Name, string(l.Owner), l.Fence, l.Until)
}

// Release implements [store.Fleet].
func (s *Store) Release(ctx context.Context, l store.Lease) error {
	err := s.write(ctx, func(w *writer) error {
		_, err := w.exec(ctx, endLease, l.Name, string(l.Owner), l.Fence)
		return err
	})
	return s.tables.explain(ctx, fmt.Sprintf("release lease %q", l.Name), err)
}

var (
	// No rows if there is no such version.
	usageQuery = define(`
select coalesce(u.taken, 0), u.used_at is not null
from {prefix}_data_key_version v
left join {prefix}_usage u on u.private_id = v.private_id
where v.private_id = ?`)

	updateUsage = define(`
update {prefix}_usage set taken = ?2, used_at = case when ?3 then coalesce(used_at, cast(strftime('%s', 'now') as integer)) end
where private_id = ?1`)

	insertUsage = define(`
insert into {prefix}_usage (private_id, taken, used_at)
values (?1, ?2, case when ?3 then cast(strftime('%s', 'now') as integer) end)`)
)

// Take implements [store.Queries].
func (q queries) Take(ctx context.Context, id key.ID, n, limit uint64) (given uint64, err error) {
	if err = rows.CheckTake(n, limit); err == nil {
		err = q.view.write(ctx, func(w *writer) error {
			given, err = w.take(ctx, id, n, limit)
			return err
		})
	}
	if err != nil {
		return 0, q.tables.explain(ctx, fmt.Sprintf("take messages of version %q", string(id)), err)
	}
	return given, nil
}

func (w *writer) take(ctx context.Context, id key.ID, n, limit uint64) (given uint64, err error) {
	there, taken, used := false, uint64(0), false
	if err := w.each(ctx, usageQuery, func(r *sql.Rows) error {
		there = true
		if err := r.Scan(&taken, &used); err != nil {
			return &rows.Error{Row: string(id), Problem: err.Error()}
		}
		return nil
	}, string(id)); err != nil {
		return 0, err
	}
	if !there {
		return 0, store.ErrNotFound
	}
	if taken < limit {
		given = min(n, limit-taken)
	}
	nearlyAll := taken+given >= rows.UsedFrom(limit)
	if given == 0 && nearlyAll == used {
		return 0, nil
	}
	now, err := integers(taken + given)
	if err != nil {
		return 0, err
	}
	return given, w.put(ctx, updateUsage, insertUsage, string(id), now[0], nearlyAll)
}

var (
	sumsQuery = define(`
select bucket, sum(n), count(*), max(id)
from (select id, bucket, n from {prefix}_epoch order by id limit ?)
group by bucket`)

	deleteEpochs = define(`delete from {prefix}_epoch where id <= ?`)
	insertEpoch  = define(`insert into {prefix}_epoch (bucket, n) values (?, ?)`)

	deleteGone = define(`
delete from {prefix}_instance where private_id in (
    select private_id from {prefix}_instance where cast(strftime('%s', 'now') as integer) - signed - ? > life limit ?)`)
)

const (
	tidied = 50_000                 // rows of each kind that one transaction tidies up at most: others that write wait for it
	rest   = 150 * time.Millisecond // longer than SQLite lets pass before who waits to write looks again
)

// Tidy implements [store.Fleet]. While there is more to do it rests before it returns: nobody queues for the one lock
// of the database, so that whoever takes it again at once keeps all others out.
func (s *Store) Tidy(ctx context.Context) (more bool, err error) {
	err = s.write(ctx, func(w *writer) error {
		epochs, err := w.addUpEpochs(ctx)
		if err != nil {
			return err
		}
		gone, err := w.exec(ctx, deleteGone, rows.Day, tidied)
		more = epochs == tidied || gone == tidied
		return err
	})
	if err != nil {
		return false, s.tables.explain(ctx, "tidy", err)
	}
	if more {
		select {
		case <-time.After(rest):
		case <-ctx.Done():
		}
	}
	return more, nil
}

// addUpEpochs replaces the first rows by one for each bucket, and says how many it looked at. Nobody else writes
// meanwhile, and who reads sees the old rows or the new ones.
func (w *writer) addUpEpochs(ctx context.Context) (looked int64, err error) {
	var sums [][2]int64
	last := int64(0)
	if err := w.each(ctx, sumsQuery, func(r *sql.Rows) error {
		var bucket, n, count, id int64
		if err := r.Scan(&bucket, &n, &count, &id); err != nil {
			return &rows.Error{Row: "epochs", Problem: err.Error()}
		}
		sums, looked, last = append(sums, [2]int64{bucket, n}), looked+count, max(last, id)
		return nil
	}, tidied); err != nil || looked == int64(len(sums)) {
		return looked, err
	}
	if _, err := w.exec(ctx, deleteEpochs, last); err != nil {
		return looked, err
	}
	for _, sum := range sums {
		if _, err := w.exec(ctx, insertEpoch, sum[0], sum[1]); err != nil {
			return looked, err
		}
	}
	return looked, nil
}
