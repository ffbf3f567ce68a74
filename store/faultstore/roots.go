package faultstore

import (
	"context"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// ChangeRoots passes on to the store below.
func (s *Store) ChangeRoots(ctx context.Context, c store.RootsChange) error {
	return s.doErr("ChangeRoots", writes, func() error { return s.s.ChangeRoots(ctx, c) })
}

// Rekey passes on to the store below.
func (s *Store) Rekey(ctx context.Context, inst [16]byte, keys []store.Rekey, under *store.Lease) (int, error) {
	return do(s.queries, "Rekey", writes, func() (int, error) { return s.s.Rekey(ctx, inst, keys, under) })
}

// NotUnder passes on to the store below.
func (s *Store) NotUnder(
	ctx context.Context, kid [16]byte, after key.ID, limit int,
) (scopes []key.Scope, next key.ID, err error) {
	err = s.doErr("NotUnder", reads, func() error {
		scopes, next, err = s.s.NotUnder(ctx, kid, after, limit)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return scopes, next, nil
}

// Escrows passes on to the store below.
func (s *Store) Escrows(ctx context.Context) ([]store.Escrow, error) {
	return do(s.queries, "Escrows", reads, func() ([]store.Escrow, error) { return s.s.Escrows(ctx) })
}

// AddEscrow passes on to the store below.
func (s *Store) AddEscrow(ctx context.Context, inst [16]byte, e store.Escrow) error {
	return s.doErr("AddEscrow", writes, func() error { return s.s.AddEscrow(ctx, inst, e) })
}
