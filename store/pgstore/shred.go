package pgstore

import (
	"context"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var (
	lockRootKey = define(`
select private_id from {schema}{prefix}_root_key
where scope_id = $1::text::{scope_type} and exists (select 1 from {schema}{prefix}_installation where inst = $2::bytea)
for update`)

	// Locked, so that whoever inserts a row with a foreign key to one waits.
	lockDataVersionsOfScope = define(`
select v.private_id
from {schema}{prefix}_data_key_version v
join {schema}{prefix}_data_key d on d.private_id = v.data_key_id
join {schema}{prefix}_root_key r on r.private_id = d.root_key_id
where r.scope_id = $1::text::{scope_type}
order by v.private_id
for update of v`)

	countRootVersionsOfScope = define(`
select count(*)
from {schema}{prefix}_root_key_version v
join {schema}{prefix}_root_key r on r.private_id = v.root_key_id
where r.scope_id = $1::text::{scope_type}`)

	deleteRootKey = define(`delete from {schema}{prefix}_root_key where scope_id = $1::text::{scope_type}`)
)

// Shred implements [store.Queries]. It takes four round trips besides the commit.
func (q queries) Shred(ctx context.Context, inst [16]byte, scope key.Scope) (store.Shredded, error) {
	done := store.Shredded{Remains: []string{
		"dead rows in the tables' files, until they are vacuumed and their space is used again",
		"the server's write-ahead log, and archives of it",
		"standbys, until they have replayed the deletion",
		"backups that were made before",
	}}
	arg, err := q.tables.scopeArg(scope)
	if err == nil {
		err = q.view.write(ctx, func(w *writer) (err error) {
			done.Versions, err = w.shred(ctx, inst, arg)
			return err
		})
	}
	if err != nil {
		return store.Shredded{}, q.tables.explain(ctx, fmt.Sprintf("shred scope %q", string(scope)), err)
	}
	return done, nil
}

func (w *writer) shred(ctx context.Context, inst [16]byte, scope string) (versions int, err error) {
	var ids []key.ID
	lock := w.tables.statement(lockDataVersionsOfScope, scope)
	lock.row = func(scan func(...any) error) error {
		var id key.ID
		err := scan(&id)
		ids = append(ids, id)
		return err
	}
	count := w.tables.statement(countRootVersionsOfScope, scope)
	count.row = func(scan func(...any) error) error { return scan(&versions) }
	if err := w.run(ctx, found(w.tables.statement(lockRootKey, scope, inst[:])), lock, count); err != nil {
		return 0, err
	}
	if len(ids) > 0 {
		if err := w.unused(ctx, key.DEK, ids); err != nil {
			return 0, err
		}
	}
	return versions + len(ids), w.run(ctx, w.tables.statement(deleteRootKey, scope))
}
