package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

var (
	rekeyRootKey = define(`
update {prefix}_root_key set seq = ?3, ik_kid = ?4, mac = ?5 where private_id = ?1 and seq = ?2`)

	rekeyDataKey = define(`
update {prefix}_data_key set seq = ?3, ik_kid = ?4, mac = ?5 where private_id = ?1 and seq = ?2`)

	countRootKeyVersions = define(`select count(*) = ?2 from {prefix}_root_key_version where root_key_id = ?1`)

	rekeyRootKeyVersion = define(`
update {prefix}_root_key_version set key = ?4, ik_kid = ?5 where private_id = ?2 and root_key_id = ?1 and key = ?3`)
)

// Rekey implements [store.Store].
func (s *Store) Rekey(ctx context.Context, inst [16]byte, keys []store.Rekey, under *store.Lease) (int, error) {
	n := 0
	err := s.write(ctx, func(w *writer) error {
		if err := w.checkRight(ctx, inst, under); err != nil {
			return err
		}
		named := map[key.ID]bool{}
		for i := range keys {
			if named[keys[i].KeyID] {
				return fmt.Errorf("key %s is named twice", keys[i].KeyID)
			}
			named[keys[i].KeyID] = true
			replaced, err := w.rekey(ctx, &keys[i])
			if err != nil {
				return fmt.Errorf("key %s: %w", keys[i].KeyID, err)
			}
			if replaced {
				n++
			}
		}
		return nil
	})
	if errors.Is(err, errNoRight) {
		return 0, nil
	}
	if err != nil {
		return 0, s.tables.explain(ctx, "rekey", err)
	}
	return n, nil
}

// rekey says whether the key was replaced.
func (w *writer) rekey(ctx context.Context, k *store.Rekey) (bool, error) {
	if k.From > math.MaxInt64 || k.Kind != key.KEK && k.Kind != key.DEK {
		return false, nil // nothing stored is such a key
	}
	seq, err := integers(k.Seq)
	if err != nil {
		return false, err
	}
	n, err := w.execUnder(ctx, k.IKKID, of(k.Kind).rekey, string(k.KeyID), int64(k.From), seq[0], k.IKKID, k.MAC)
	switch {
	case err != nil || n == 0:
		return false, err
	case k.Kind == key.KEK:
		return true, w.rekeyVersions(ctx, k)
	case len(k.Versions) > 0:
		return false, errors.New("a data key's versions are under no installation key")
	}
	return true, nil
}

// rekeyVersions replaces the wrapped keys of all versions of a root key.
func (w *writer) rekeyVersions(ctx context.Context, k *store.Rekey) error {
	if all, err := w.is(ctx, countRootKeyVersions, string(k.KeyID), len(k.Versions)); err != nil {
		return err
	} else if !all {
		return fmt.Errorf("%w: it does not have these %d versions", store.ErrConflict, len(k.Versions))
	}
	for i, v := range k.Versions {
		wrapped, err := wrappedUnder(key.KEK, v.Parent, v.IKKID)
		var n int64
		if err == nil {
			args := []any{string(k.KeyID), string(v.ID), v.Old, v.Blob, wrapped}
			n, err = w.execUnder(ctx, v.IKKID, rekeyRootKeyVersion, args...)
		}
		twice := slices.ContainsFunc(k.Versions[:i], func(other store.Rewrap) bool { return other.ID == v.ID })
		if err == nil && (n == 0 || twice) {
			err = store.ErrConflict // another version is not replaced, or this one was changed
		}
		if err != nil {
			return fmt.Errorf("version %s: %w", v.ID, err)
		}
	}
	return nil
}

var notUnderQuery = define(`
select r.private_id,
    case when r.ik_kid <> ?3
        or exists (select 1 from {prefix}_root_key_version v where v.root_key_id = r.private_id and v.ik_kid <> ?3)
        or exists (select 1 from {prefix}_data_key d where d.root_key_id = r.private_id and d.ik_kid <> ?3)
    then cast(r.scope_id as text) else '' end
from {prefix}_root_key r
where r.private_id > ?1
order by r.private_id limit ?2`)

// NotUnder implements [store.Store]. A limit of 0 or less lists none.
func (s *Store) NotUnder(ctx context.Context, kid [16]byte, after key.ID, limit int) ([]key.Scope, key.ID, error) {
	var scopes []key.Scope
	var next key.ID
	err := rows.CheckAfter(after)
	if err == nil && limit > 0 {
		scopes, next, err = s.page(ctx, notUnderQuery, after, limit, kid[:])
	}
	if err != nil {
		return nil, "", s.tables.explain(ctx, "list the scopes to rekey", err)
	}
	return scopes, next, nil
}

var (
	escrowsQuery = define(`select ik_kid, event, detail, at from {prefix}_escrow order by id`)
	insertEscrow = define(`insert into {prefix}_escrow (ik_kid, event, detail) values (?, ?, ?)`)
)

// Escrows implements [store.Store].
func (s *Store) Escrows(ctx context.Context) ([]store.Escrow, error) {
	var list []store.Escrow
	err := s.each(ctx, escrowsQuery, nil, func(r *sql.Rows) error {
		var e store.Escrow
		if err := r.Scan(&e.IKKID, &e.Event, &e.Detail, &e.At); err != nil {
			return &rows.Error{Row: "escrow", Problem: err.Error()}
		}
		list = append(list, e)
		return nil
	})
	if err != nil {
		return nil, s.tables.explain(ctx, "list the escrows", err)
	}
	return list, nil
}

// AddEscrow implements [store.Store].
func (s *Store) AddEscrow(ctx context.Context, inst [16]byte, e store.Escrow) error {
	err := rows.CheckEscrow(&e)
	if err == nil {
		err = s.write(ctx, func(w *writer) error {
			if err := w.checkInstallation(ctx, inst); err != nil {
				return err
			}
			_, err := w.exec(ctx, insertEscrow, e.IKKID, e.Event, e.Detail)
			return err
		})
	}
	if errors.Is(err, errNoRight) {
		return nil
	}
	return s.tables.explain(ctx, "store an escrow", err)
}
