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
	versionsOfScope = define(`
select v.private_id
from {prefix}_root_key r
join {prefix}_data_key d on d.root_key_id = r.private_id
join {prefix}_data_key_version v on v.data_key_id = d.private_id
where r.scope_id = ?1
union all
select v.private_id
from {prefix}_root_key r
join {prefix}_root_key_version v on v.root_key_id = r.private_id
where r.scope_id = ?1`)

	deleteRootKey = define(`delete from {prefix}_root_key where scope_id = ?`)
)

// Shred implements [store.Queries]. The log is emptied afterwards; inside the application's transaction it cannot be.
func (q queries) Shred(ctx context.Context, inst [16]byte, scope key.Scope) (store.Shredded, error) {
	done := store.Shredded{Remains: []string{"backups and copies of the database file that were made before"}}
	arg, err := q.tables.scopeArg(scope)
	if err == nil {
		err = q.view.write(ctx, func(w *writer) error {
			overwrites := 0
			if err := w.conn.QueryRowContext(context.WithoutCancel(ctx), "pragma secure_delete").Scan(&overwrites); err != nil {
				return err
			}
			if overwrites != 1 { // 2 is sometimes
				done.Remains = append(done.Remains, "free pages of the database file, until they are used again or the file is vacuumed: "+
					"secure_delete is not on for this connection")
			}
			done.Versions, err = w.shred(ctx, inst, arg)
			return err
		})
	}
	if errors.Is(err, errNoRight) {
		err = store.ErrNotFound
	}
	if err != nil {
		return store.Shredded{}, q.tables.explain(ctx, fmt.Sprintf("shred scope %q", string(scope)), err)
	}
	if log := q.view.checkpoint(ctx); log != "" {
		done.Remains = append(done.Remains, log)
	}
	return done, nil
}

func (w *writer) shred(ctx context.Context, inst [16]byte, scope any) (int, error) {
	if err := w.checkInstallation(ctx, inst); err != nil {
		return 0, err
	}
	var ids []key.ID
	err := w.each(ctx, versionsOfScope, func(r *sql.Rows) error {
		var id key.ID
		err := r.Scan(&id)
		ids = append(ids, id)
		return err
	}, scope)
	if err != nil {
		return 0, err
	}
	if len(ids) > 0 {
		if err := w.unused(ctx, key.DEK, ids...); err != nil {
			return 0, err
		}
	}
	n, err := w.exec(ctx, deleteRootKey, scope)
	if err == nil && n == 0 {
		err = store.ErrNotFound
	}
	return len(ids), err
}

// checkpoint empties the write-ahead log, and says what remains in it. A reader in another process may be in the way.
func (s *Store) checkpoint(ctx context.Context) string {
	const remains = "the write-ahead log beside the database file, until the next checkpoint that empties it"
	db, err := s.pool()
	if err != nil {
		return remains
	}
	var busy, frames, done int
	if err := db.QueryRowContext(ctx, "pragma wal_checkpoint(truncate)").Scan(&busy, &frames, &done); err != nil || busy != 0 {
		return remains
	}
	return ""
}

func (*inTx) checkpoint(context.Context) string {
	return "the write-ahead log beside the database file, until a checkpoint that empties it: pragma wal_checkpoint(truncate) after the commit"
}
