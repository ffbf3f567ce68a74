package keyhold

import (
	"context"

	"keyhold.example/keyhold/key"
)

// Find returns which key has the version with the given id, live or destroyed, for who kept a ciphertext's key id and
// not whose it is. Of a root key's version the purpose is empty.
//
// It takes one round trip. Errors: [*InvalidError]; [ErrNotFound]; [*IntegrityError]; [ErrUnavailable].
func (m *Manager) Find(ctx context.Context, id key.ID) (Ref, error) {
	if err := id.Validate(); err != nil {
		return Ref{}, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return Ref{}, err
	}
	defer end()
	fam, err := m.committed().keyOfVersion(ctx, id)
	if err != nil {
		return Ref{}, err
	}
	ref := Ref{Scope: fam.Root.Scope}
	if kind, _ := id.Kind(); kind == key.DEK {
		ref.Purpose = fam.Data[0].Purpose
	}
	return ref, nil
}
