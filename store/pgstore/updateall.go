package pgstore

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// While a transaction has the rows of many keys, whoever wants several of them as well would wait for it, and it for
// them. So these wait for nobody, and what they do not get is left out: root keys, which come before everything else
// of a scope, and versions, to which rows of the application's refer that it has not committed yet.
var (
	lockFreeRootKeys = define(`
select private_id from {schema}{prefix}_root_key where private_id = any ($1::text[]) for no key update skip locked`)

	lockFreeRootKeysOf = define(`
select k.private_id
from {schema}{prefix}_data_key k
join {schema}{prefix}_root_key r on r.private_id = k.root_key_id
where k.private_id = any ($1::text[])
for no key update of r skip locked`)

	lockFreeRootKeyVersions = define(`
select v.root_key_id
from unnest($1::text[], $2::bigint[]) as n (key_id, version)
join {schema}{prefix}_root_key_version v on v.root_key_id = n.key_id and v.version = n.version
for update of v skip locked`)

	lockFreeDataKeyVersions = define(`
select v.data_key_id
from unnest($1::text[], $2::bigint[]) as n (key_id, version)
join {schema}{prefix}_data_key_version v on v.data_key_id = n.key_id and v.version = n.version
for update of v skip locked`)
)

// UpdateAll implements [store.Store]. It takes three round trips besides the commit, however many changes there are.
func (s *Store) UpdateAll(ctx context.Context, updates []store.Update) ([]bool, error) {
	var made map[key.ID]bool
	err := rows.CheckUpdates(updates)
	for i := range updates {
		if err == nil {
			err = checkUpdate(&updates[i])
		}
	}
	if err == nil && len(updates) > 0 {
		err = s.write(ctx, func(w *writer) (err error) {
			made, err = w.updateAll(ctx, updates)
			return err
		})
	}
	if err != nil && !errors.Is(err, errNotHeld) {
		return nil, s.tables.explain(ctx, fmt.Sprintf("update %d keys", len(updates)), err)
	}
	list := make([]bool, len(updates))
	for i := range updates {
		list[i] = err == nil && made[updates[i].KeyID]
	}
	return list, nil
}

// updateAll goes in the order of update, and says which keys it changed.
func (w *writer) updateAll(ctx context.Context, updates []store.Update) (map[key.ID]bool, error) {
	var kinds [2][]*store.Update
	for i := range updates {
		u := &updates[i]
		n := 0
		if u.Kind == key.DEK {
			n = 1
		}
		kinds[n] = append(kinds[n], u)
	}
	free, batch := map[key.ID]int{}, w.held(updates[0].Lease, errNotHeld)
	for _, list := range kinds {
		batch = append(batch, w.lockFree(list, free)...)
	}
	if err := w.run(ctx, batch...); err != nil {
		return nil, err
	}

	made := map[key.ID]bool{}
	batch = nil
	for n := range kinds {
		kinds[n] = only(kinds[n], func(u *store.Update) bool { return free[u.KeyID] == 1+len(u.States) })
		if len(kinds[n]) == 0 {
			continue
		}
		move, err := w.move(kinds[n][0].Inst, kinds[n][0].Kind, kinds[n])
		if err != nil {
			return nil, err
		}
		move.row = func(scan func(...any) error) error {
			var id key.ID
			err := scan(&id)
			made[id] = true
			return err
		}
		batch = append(batch, move)
	}
	if len(batch) == 0 {
		return made, nil
	}
	if err := w.run(ctx, batch...); err != nil {
		return nil, err
	}

	batch = nil
	for _, list := range kinds {
		list = only(list, func(u *store.Update) bool { return made[u.KeyID] })
		if len(list) > 0 {
			batch = append(batch, w.changes(list[0].Kind, list, new([]key.ID))...)
		}
	}
	if len(batch) == 0 {
		return made, nil
	}
	return made, w.last(ctx, batch...)
}

// lockFree locks what is free of what changes of one kind need, and counts in free what it got of each key.
func (w *writer) lockFree(updates []*store.Update, free map[key.ID]int) (batch []statement) {
	var ids, keys []string
	var versions []int64
	for _, u := range updates {
		id := storable(string(u.KeyID))
		ids = append(ids, id)
		for _, c := range u.States {
			keys, versions = append(keys, id), append(versions, int64(c.Number))
		}
	}
	count := func(st statement) statement {
		st.row = func(scan func(...any) error) error {
			var id key.ID
			err := scan(&id)
			free[id]++
			return err
		}
		return st
	}
	if len(ids) > 0 {
		batch = append(batch, count(w.tables.statement(of(updates[0].Kind).lockFree, ids)))
	}
	if len(versions) > 0 {
		batch = append(batch, count(w.tables.statement(of(updates[0].Kind).lockFreeVersions, keys, versions)))
	}
	return batch
}

func only(updates []*store.Update, is func(*store.Update) bool) (list []*store.Update) {
	for _, u := range updates {
		if is(u) {
			list = append(list, u)
		}
	}
	return list
}
