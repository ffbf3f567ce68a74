package demo

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// sealBatch is how many rows one transaction of the application's inserts.
const sealBatch = 250

func (w *walk) createTenant(ctx context.Context, tx *sql.Tx, keys store.Tx, id key.Scope) error {
	if _, err := tx.ExecContext(ctx, w.names.sql(insertTenant), id); err != nil {
		return err
	}
	return w.keys.CreateScopeTx(ctx, keys, id)
}

func (w *walk) createTenants(ctx context.Context, step *Step) error {
	tick := w.progress("creating tenants", len(w.tenants))
	for _, t := range w.tenants {
		err := w.inTx(ctx, func(tx *sql.Tx, keys store.Tx) error { return w.createTenant(ctx, tx, keys, t.id) })
		if err != nil {
			return err
		}
		tick()
	}
	nobody := key.Scope("rolled back")
	for w.tenantOf(nobody) != nil {
		nobody += "!"
	}
	if err := w.tryTenant(ctx, nobody, func(store.Tx) error { return nil }); err != nil {
		return err
	}
	step.Counts["tenants"] = len(w.tenants)
	step.did("Created %d tenants, each with its root key and its data key in the transaction that inserts the tenant.", len(w.tenants))
	step.did("Rolled such a transaction back: neither the tenant nor its keys are there.")
	return nil
}

func (w *walk) tenantOf(id key.Scope) *tenant {
	i := slices.IndexFunc(w.tenants, func(t *tenant) bool { return t.id == id })
	if i < 0 {
		return nil
	}
	return w.tenants[i]
}

// context is what the sealed value of a row belongs to.
func (w *walk) context(id int) keyhold.AAD {
	return keyhold.Context(w.names.record, w.Data.SealColumn, strconv.Itoa(id))
}

// insert seals the secret of a row and inserts it.
func (w *walk) insert(ctx context.Context, tx *sql.Tx, keys store.Tx, ref key.Ref, id int, fields string) error {
	version, sealed, err := w.keys.SealDetachedTx(ctx, keys, ref, []byte(w.secrets[id]), w.context(id))
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, w.names.sql(insertRecord), id, ref.Scope, fields, sealed, version)
	return err
}

func (w *walk) seal(ctx context.Context, step *Step) error {
	tick := w.progress("sealing", len(w.Data.Rows))
	id, transactions := 0, 0
	for batch := range slices.Chunk(w.Data.Rows, sealBatch) {
		err := w.inTx(ctx, func(tx *sql.Tx, keys store.Tx) error {
			for _, row := range batch {
				id++
				if err := w.insert(ctx, tx, keys, key.Ref{Scope: row.Scope, Purpose: Purpose}, id, row.Rest); err != nil {
					return fmt.Errorf("row %d: %w", id, err)
				}
				tick()
			}
			return nil
		})
		if err != nil {
			return err
		}
		transactions++
	}
	step.Counts["rows"], step.Counts["transactions"] = id, transactions
	step.did("Sealed column %q of %d rows in %d transactions of the application's.", w.Data.SealColumn, id, transactions)
	return nil
}

// openRows opens the stored rows of a tenant, or of all, compares them with what was sealed, and says how many
// there were of each key version.
func (w *walk) openRows(ctx context.Context, scope key.Scope) (map[key.ID]int, int, error) {
	rows, err := w.names.rows(ctx, w.at.db, scope)
	if err != nil {
		return nil, 0, err
	}
	tick := w.progress("opening", len(rows))
	versions := map[key.ID]int{}
	for i := range rows {
		r := &rows[i]
		plaintext, err := w.openRow(ctx, w.keys, r.tenant, r)
		if err != nil {
			return nil, 0, fmt.Errorf("row %d: %w", r.id, err)
		}
		if string(plaintext) != w.secrets[r.id] {
			return nil, 0, fmt.Errorf("row %d opens to something else than was sealed", r.id)
		}
		versions[r.keyVersion]++
		tick()
	}
	return versions, len(rows), nil
}

// openRow opens what r stores as the value of row r.id of a tenant.
func (w *walk) openRow(ctx context.Context, keys *keyhold.Manager, scope key.Scope, r *sealedRow) ([]byte, error) {
	return keys.OpenDetached(ctx, key.Ref{Scope: scope, Purpose: Purpose}, r.keyVersion, r.sealed, w.context(r.id))
}

func (w *walk) openAll(ctx context.Context, step *Step) error {
	_, n, err := w.openRows(ctx, "")
	if err != nil {
		return err
	}
	if n != len(w.Data.Rows) {
		return fmt.Errorf("%d rows are stored, not %d", n, len(w.Data.Rows))
	}
	step.Counts["rows"] = n
	step.did("Read all %d rows back from the database and opened them: each is equal to what was sealed.", n)
	return nil
}

func (w *walk) rotate(ctx context.Context, step *Step) error {
	tick := w.progress("rotating", len(w.tenants))
	newHead := map[key.ID]bool{}
	for _, t := range w.tenants {
		if _, err := w.keys.Rotate(ctx, t.ref()); err != nil {
			return err
		}
		tick()
	}
	rooted := w.largest()
	if _, err := w.keys.Rotate(ctx, key.Ref{Scope: rooted.id}); err != nil {
		return err
	}
	// A new row of each tenant, which says what the tenant's first row says.
	err := w.inTx(ctx, func(tx *sql.Tx, keys store.Tx) error {
		for _, t := range w.tenants {
			id := len(w.secrets) + 1
			w.secrets[id] = w.secrets[t.rows[0]]
			t.rows = append(t.rows, id)
			if err := w.insert(ctx, tx, keys, t.ref(), id, `{"note":"added after the rotation"}`); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, t := range w.tenants {
		keys, err := w.keys.Keys(ctx, t.id)
		if err != nil {
			return err
		}
		data := keys[1]
		newHead[data.Versions[data.Head-1].ID] = true
	}
	versions, n, err := w.openRows(ctx, "")
	if err != nil {
		return err
	}
	oldRows, newRows := 0, 0
	for id, count := range versions {
		if newHead[id] {
			newRows += count
		} else {
			oldRows += count
		}
	}
	if newRows != len(w.tenants) || oldRows != len(w.Data.Rows) {
		return fmt.Errorf("%d rows are sealed with new versions and %d with old ones", newRows, oldRows)
	}
	step.Counts["data_keys"], step.Counts["root_keys"] = len(w.tenants), 1
	step.Counts["rows"], step.Counts["old_rows"], step.Counts["new_rows"] = n, oldRows, newRows
	step.did("Added a version to the data key of each of the %d tenants, and one to the root key of %q.", len(w.tenants), string(rooted.id))
	step.did("Sealed %d new rows, with the new versions. Opened all %d: %d sealed before, %d after.", newRows, n, oldRows, newRows)
	return nil
}

// largest is the tenant with the most rows.
func (w *walk) largest() *tenant { return slices.MaxFunc(w.tenants, byRows) }

func byRows(a, b *tenant) int { return len(a.rows) - len(b.rows) }

func (w *walk) rewrap(ctx context.Context, step *Step) error {
	t := w.largest()
	before, err := w.names.rows(ctx, w.at.db, t.id)
	if err != nil {
		return err
	}
	n, err := w.keys.Rewrap(ctx, t.id)
	if err != nil {
		return err
	}
	keys, err := w.keys.Keys(ctx, t.id)
	if err != nil {
		return err
	}
	for _, k := range keys {
		for _, v := range k.Versions {
			if v.Behind {
				return fmt.Errorf("version %s is still wrapped under the old root key version", v.ID)
			}
		}
	}
	after, err := w.names.rows(ctx, w.at.db, t.id)
	if err != nil {
		return err
	}
	same := func(a, b sealedRow) bool {
		return a.id == b.id && a.keyVersion == b.keyVersion && bytes.Equal(a.sealed, b.sealed)
	}
	if !slices.EqualFunc(before, after, same) {
		return errors.New("rewrapping changed rows")
	}
	_, opened, err := w.openRows(ctx, t.id)
	if err != nil {
		return err
	}
	step.Counts["versions"], step.Counts["rows"] = n, opened
	step.did("Wrapped %d data key versions of %q under the new version of its root key. Its %d rows are what they were, and open.",
		n, string(t.id), opened)
	return nil
}
