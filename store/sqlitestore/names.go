package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"unicode/utf8"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

var (
	// Each half ends after as many rows as the page has, in the order of an index; one that looked for names without a
	// key could read all names that have one. With max, SQLite takes the other columns from the row that has it, which
	// is the key's.
	namedQuery = define(`
with r as (select private_id from {prefix}_root_key where scope_id = ?1)
select purpose, generator, max(head), every from (
    select * from (
        select d.purpose, d.generator, d.head_version as head, d.rotate_every as every
        from r cross join {prefix}_data_key d on d.root_key_id = r.private_id
        join {prefix}_data_key_version v on v.data_key_id = d.private_id and v.version = d.head_version
        where d.purpose > ?2 and v.alg = 2
        order by d.purpose limit ?3)
    union all
    select * from (
        select n.purpose, n.generator, 0, 0
        from r cross join {prefix}_data_key_name n on n.root_key_id = r.private_id
        where n.purpose > ?2 and n.removed = 0
        order by n.purpose limit ?3))
group by purpose order by purpose limit ?3`)

	// Not "<>", for which no index serves.
	namesNotUnderQuery = define(`
select` + nameRow + `from {prefix}_data_key_name n where n.ik_kid < ?1
union all
select` + nameRow + `from {prefix}_data_key_name n where n.ik_kid > ?1
order by 10, 3, 4 limit ?2`)

	nameQuery = family(byScope, false, `
select`+nameRow+`from r cross join {prefix}_data_key_name n on n.root_key_id = r.private_id and n.purpose = ?2`)
)

// nameRow is the columns of a name, n, as a [rows.Name].
const nameRow = `
    7, '', n.root_key_id, n.purpose, n.seq, n.last_version, n.removed, 0, 0, n.ik_kid, n.mac, cast(n.generator as blob)
`

// Name implements [store.Queries].
func (q queries) Name(ctx context.Context, ref key.Ref) (store.Family, store.Name, error) {
	var n store.Name
	var f store.Family
	scope, err := q.tables.scopeArg(ref.Scope)
	if err == nil {
		var names []store.Name
		if f, names, err = q.familyAndNames(ctx, nameQuery, scope, string(ref.Purpose)); len(names) > 0 {
			n = names[0]
		}
	}
	if err != nil {
		return f, store.Name{}, q.tables.explain(ctx, fmt.Sprintf("read what is known of the name of %v", ref), err)
	}
	return f, n, nil
}

// Named implements [store.Store]. A limit of 0 or less lists none.
func (s *Store) Named(ctx context.Context, scope key.Scope, after key.Purpose, limit int) ([]store.Named, error) {
	var list []store.Named
	arg, err := s.tables.scopeArg(scope)
	if err == nil {
		err = s.each(ctx, namedQuery, []any{arg, string(after), max(0, limit)}, func(r *sql.Rows) error {
			var n store.Named
			var head, every int64
			if err := r.Scan(&n.Purpose, &n.Generator, &head, &every); err != nil {
				return &rows.Error{Row: string(n.Purpose), Problem: err.Error()}
			}
			var bad rows.Numbers
			n.Head, n.RotateEvery = rows.Fit[key.Version](&bad, head), rows.Fit[uint64](&bad, every)
			list = append(list, n)
			return bad.Check(string(n.Purpose))
		})
	}
	if err != nil {
		return nil, s.tables.explain(ctx, fmt.Sprintf("list the names of scope %q", string(scope)), err)
	}
	return list, nil
}

// NamesNotUnder implements [store.Store]. A limit of 0 or less lists none.
func (s *Store) NamesNotUnder(ctx context.Context, kid [16]byte, limit int) ([]store.Name, error) {
	var list []store.Name
	err := s.each(ctx, namesNotUnderQuery, []any{kid[:], max(0, limit)}, func(r *sql.Rows) error {
		var row rows.Row
		if err := r.Scan(row.Columns()...); err != nil {
			return &rows.Error{Row: row.Name, Problem: err.Error()}
		}
		n, err := row.AsName()
		list = append(list, n)
		return err
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "list the names to rekey", err)
	}
	return list, nil
}

var (
	insertName = define(`
insert into {prefix}_data_key_name (root_key_id, purpose, seq, generator, last_version, removed, ik_kid, mac)
select ?1, ?2, ?4, ?5, ?6, ?7, ?8, ?9
where ?3 = 0 and exists (select 1 from {prefix}_root_key where private_id = ?1)
    and not exists (select 1 from {prefix}_data_key_name where root_key_id = ?1 and purpose = ?2)`)

	updateName = define(`
update {prefix}_data_key_name
set seq = ?4, generator = ?5, last_version = ?6, removed = ?7, ik_kid = ?8, mac = ?9
where root_key_id = ?1 and purpose = ?2 and seq = ?3`)

	hasKey = define(`select exists (select 1 from {prefix}_data_key where root_key_id = ? and purpose = ?)`)
)

// PutName implements [store.Store].
func (s *Store) PutName(ctx context.Context, inst [16]byte, from uint64, n store.Name) error {
	err := checkName(from, &n)
	if err == nil {
		err = s.changeName(ctx, inst, func(w *writer) error {
			has, err := w.is(ctx, hasKey, string(n.RootKeyID), string(n.Purpose))
			if err != nil {
				return err
			}
			if has && n.Removed {
				return fmt.Errorf("%w: there is a data key of the name that was to be removed", store.ErrConflict)
			}
			return w.putName(ctx, from, &n)
		})
	}
	return s.tables.explain(ctx, fmt.Sprintf("store what is known of name %q", n.Purpose), err)
}

// changeName is write, for an installation that has to be this one.
func (s *Store) changeName(ctx context.Context, inst [16]byte, f func(*writer) error) error {
	err := s.write(ctx, func(w *writer) error {
		if err := w.checkInstallation(ctx, inst); err != nil {
			return err
		}
		return f(w)
	})
	if errors.Is(err, errNoRight) {
		err = store.ErrConflict
	}
	return err
}

// checkName looks at what the tables do not.
func checkName(from uint64, n *store.Name) error {
	if n.Seq <= from {
		return fmt.Errorf("the sequence number goes from %d to %d", from, n.Seq)
	}
	if _, err := integers(n.Seq); err != nil {
		return err
	}
	if err := n.Purpose.Validate(); err != nil {
		return err
	}
	return checkGenerator(n.Generator)
}

func checkGenerator(name string) error {
	if !utf8.ValidString(name) {
		return errors.New("the name of a generator is not UTF-8")
	}
	return nil
}

// putName stores a name that was checked.
func (w *writer) putName(ctx context.Context, from uint64, n *store.Name) error {
	put := updateName
	if from == 0 {
		put = insertName
	}
	stored, err := w.execUnder(ctx, n.IKKID, put, string(n.RootKeyID), string(n.Purpose), int64(from), int64(n.Seq),
		n.Generator, int64(n.Last), n.Removed, n.IKKID, n.MAC)
	if err == nil && stored == 0 {
		err = store.ErrConflict
	}
	return err
}

var (
	keyToRemove = define(`
select k.root_key_id, k.purpose, max(
    (select coalesce(max(v.version), 0) from {prefix}_data_key_version v where v.data_key_id = k.private_id),
    (select coalesce(max(t.version), 0) from {prefix}_tombstone t where t.key_id = k.private_id))
from {prefix}_data_key k
where k.private_id = ? and k.seq = ?`)

	versionsOfKey = define(`select private_id from {prefix}_data_key_version where data_key_id = ?`)

	deleteDataKey = define(`delete from {prefix}_data_key where private_id = ?`)
)

// RemoveKey implements [store.Store]. The name is first, because the tables let no key go before.
func (s *Store) RemoveKey(ctx context.Context, inst [16]byte, id key.ID, keyFrom, from uint64, n store.Name) error {
	err := s.changeName(ctx, inst, func(w *writer) error {
		if err := w.checkRemoval(ctx, id, keyFrom, &n); err != nil {
			return err
		}
		if err := checkName(from, &n); err != nil {
			return err
		}
		if err := w.putName(ctx, from, &n); err != nil {
			return err
		}
		_, err := w.exec(ctx, deleteDataKey, string(id))
		return err
	})
	return s.tables.explain(ctx, "remove key "+string(id), err)
}

func (w *writer) checkRemoval(ctx context.Context, id key.ID, from uint64, n *store.Name) error {
	seq, err := integers(from)
	if err != nil {
		return store.ErrConflict // nothing stored has such a number
	}
	var of store.Name
	if err := w.each(ctx, keyToRemove, func(r *sql.Rows) error {
		return r.Scan(&of.RootKeyID, &of.Purpose, &of.Last)
	}, string(id), seq[0]); err != nil {
		return err
	}
	switch {
	case of.RootKeyID == "":
		return store.ErrConflict
	case n.RootKeyID != of.RootKeyID || n.Purpose != of.Purpose || !n.Removed || n.Last < of.Last:
		return fmt.Errorf("its name, %q, is to be stored as removed, with no number less than %d", of.Purpose, of.Last)
	}
	var ids []key.ID
	if err := w.each(ctx, versionsOfKey, func(r *sql.Rows) error {
		var version key.ID
		err := r.Scan(&version)
		ids = append(ids, version)
		return err
	}, string(id)); err != nil {
		return err
	}
	return w.unused(ctx, key.DEK, ids...)
}
