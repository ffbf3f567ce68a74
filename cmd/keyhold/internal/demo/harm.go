package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// tamper writes to the table behind the application's back, reads as the application would, and restores the row.
func (w *walk) tamper(ctx context.Context, step *Step) error {
	t := w.largest()
	victim, err := w.names.row(ctx, w.at.db, t.rows[0])
	if err != nil {
		return err
	}
	flipped := bytes.Clone(victim.sealed)
	flipped[len(flipped)/2] ^= 1
	attempts := 1
	if err := w.attempt(ctx, &victim, flipped, victim.keyVersion); err != nil {
		return fmt.Errorf("a flipped bit: %w", err)
	}
	step.did("Flipped one bit in the ciphertext of row %d: refused.", victim.id)

	// A row of the same tenant is always there: each has one from before the rotation and one from after it.
	for _, other := range []*tenant{t, w.otherThan(t)} {
		if other == nil {
			step.did("There is only one tenant, so no other's ciphertext can be moved here.")
			continue
		}
		from, err := w.names.row(ctx, w.at.db, other.rows[len(other.rows)-1])
		if err != nil {
			return err
		}
		attempts++
		if err := w.attempt(ctx, &victim, from.sealed, from.keyVersion); err != nil {
			return fmt.Errorf("ciphertext of row %d: %w", from.id, err)
		}
		whose := "of the same tenant"
		if other != t {
			whose = fmt.Sprintf("of the tenant %q", string(other.id))
		}
		step.did("Put there the ciphertext of row %d, %s, together with its key's id: refused.", from.id, whose)
	}

	plaintext, err := w.openStored(ctx, t, victim.id)
	if err != nil || string(plaintext) != w.secrets[victim.id] {
		return errors.Join(errors.New("the restored row does not open"), err)
	}
	step.Counts["refused"] = attempts
	step.did("Restored the row: it opens.")
	return nil
}

// attempt puts another ciphertext into a row, sees that it does not open, and puts back what was there.
func (w *walk) attempt(ctx context.Context, row *sealedRow, sealed []byte, keyVersion key.ID) error {
	if err := w.names.put(ctx, w.at.db, row.id, sealed, keyVersion); err != nil {
		return err
	}
	_, opened := w.openStored(ctx, w.tenantOf(row.tenant), row.id)
	err := refused("it", opened, keyhold.ErrOpen)
	return errors.Join(err, w.names.put(ctx, w.at.db, row.id, row.sealed, row.keyVersion))
}

// openStored opens a row of t's as the application does.
func (w *walk) openStored(ctx context.Context, t *tenant, id int) ([]byte, error) {
	r, err := w.names.row(ctx, w.at.db, id)
	if err != nil {
		return nil, err
	}
	return w.openRow(ctx, w.keys, t.id, &r)
}

// otherThan is the smallest other tenant, or nil.
func (w *walk) otherThan(t *tenant) *tenant {
	others := slices.DeleteFunc(slices.Clone(w.tenants), func(o *tenant) bool { return o == t })
	if len(others) == 0 {
		return nil
	}
	return slices.MinFunc(others, byRows)
}

func (w *walk) deleteTenant(ctx context.Context, step *Step) error {
	t := w.otherThan(w.largest())
	if t == nil {
		step.did("There is only one tenant, so none is deleted, and something is left for you to explore.")
		return nil
	}
	kept, err := w.names.row(ctx, w.at.db, t.rows[0])
	if err != nil {
		return err
	}
	rows, err := w.names.countRows(ctx, w.at.db, t.id)
	if err != nil {
		return err
	}
	versions, err := w.names.countVersions(ctx, w.at.db, t.id)
	if err != nil {
		return err
	}

	_, err = w.at.db.ExecContext(ctx, w.names.sql(deleteKeys), t.id)
	if err == nil || !w.at.refused(err) {
		return errors.Join(errors.New("keys that rows refer to could be deleted"), err)
	}
	step.did("Tried to delete only the keys of %q: the database refuses, as %d rows need them.", string(t.id), rows)

	if _, err := w.at.db.ExecContext(ctx, w.names.sql(deleteTenant), t.id); err != nil {
		return err
	}
	rowsLeft, err := w.names.countRows(ctx, w.at.db, t.id)
	if err != nil {
		return err
	}
	versionsLeft, err := w.names.countVersions(ctx, w.at.db, t.id)
	if err != nil {
		return err
	}
	if rowsLeft+versionsLeft > 0 {
		return fmt.Errorf("%d rows and %d key versions are left", rowsLeft, versionsLeft)
	}
	step.did("Deleted the tenant: its %d rows and its %d data key versions went with it.", rows, versions)

	// A process that has used the key may know it for some seconds more.
	another, err := w.open(ctx, false)
	if err != nil {
		return err
	}
	_, opened := w.openRow(ctx, another, t.id, &kept)
	if err := errors.Join(refused("a copy of a deleted tenant's ciphertext", opened, keyhold.ErrNotFound), another.Close()); err != nil {
		return err
	}
	err = w.tryTenant(ctx, t.id, func(keys store.Tx) error {
		_, opened := w.keys.OpenDetachedTx(ctx, keys, t.ref(), kept.keyVersion, kept.sealed, w.context(kept.id))
		return refused("a copy of a deleted tenant's ciphertext", opened, keyhold.ErrOpen)
	})
	if err != nil {
		return err
	}
	step.did("A copy of one ciphertext, kept aside, does not open any more, not even for a new tenant of the same name. " +
		"(A process that had used the key notices within seconds.)")
	step.Counts["rows"], step.Counts["versions"] = rows, versions
	w.tenants = slices.DeleteFunc(w.tenants, func(o *tenant) bool { return o == t })
	return nil
}
