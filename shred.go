package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Shredded is what became of a scope that [Manager.Shred] deleted.
type Shredded = store.Shredded

// Shred deletes all keys of a scope for ever, and with them everything that they sealed, wherever it is. What is left
// is a tombstone of each version. Where the application's table of scopes has a foreign key's cascade to the root keys,
// deleting the scope there does the same; Shred does it without, or first, and leaves that table alone. Other processes
// may use the keys until they see it, 5 s later.
//
// What is deleted is wrapped, but who has an old copy of the database and the external root has the keys: Remains says
// where such copies may be.
//
// Errors: [ErrNotFound] if there is no such scope; an [*InUseError] if rows of the application's still have the id of
// one of its versions, when nothing is deleted; [ErrUnavailable]. It takes four round trips.
func (m *Manager) Shred(ctx context.Context, scope key.Scope) (Shredded, error) {
	return m.shred(ctx, m.committed, scope)
}

// ShredTx is [Manager.Shred] inside the application's transaction. After [ErrUnavailable] and [ErrUnknownOutcome] that
// has to be rolled back.
func (m *Manager) ShredTx(ctx context.Context, tx store.Tx, scope key.Scope) (Shredded, error) {
	return m.shred(ctx, func() reader { return m.inside(tx) }, scope)
}

func (m *Manager) shred(ctx context.Context, read func() reader, scope key.Scope) (Shredded, error) {
	if err := scope.Validate(); err != nil {
		return Shredded{}, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return Shredded{}, err
	}
	defer end()
	r := read()
	defer m.changed("", scope)
	for {
		done, err := r.q.Shred(ctx, r.inst(), scope)
		switch {
		case r.unknown && errors.Is(err, store.ErrNotFound):
			return done, nil // it was done before, and its answer lost
		case !errors.Is(err, store.ErrUnknownOutcome) || r.tx:
			return done, r.known(err)
		}
		if err := again(ctx, &r, err); err != nil {
			return done, fmt.Errorf("shred scope %q: %w", scope, err)
		}
	}
}
