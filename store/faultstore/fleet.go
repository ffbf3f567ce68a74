package faultstore

import (
	"context"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Sign passes on to the store below.
func (s *Store) Sign(ctx context.Context, in store.Instance) (store.Epochs, error) {
	return do(s.queries, "Sign", writes, func() (store.Epochs, error) { return s.s.Sign(ctx, in) })
}

func (q queries) Roll(ctx context.Context) (store.Roll, error) {
	return do(q, "Roll", reads, func() (store.Roll, error) { return q.q.Roll(ctx) })
}

// Leave passes on to the store below.
func (s *Store) Leave(ctx context.Context, id key.ID) error {
	return s.doErr("Leave", writes, func() error { return s.s.Leave(ctx, id) })
}

// Due passes on to the store below.
func (s *Store) Due(ctx context.Context, buckets store.BucketSet, after store.Due, limit int) ([]store.Due, error) {
	return do(s.queries, "Due", reads, func() ([]store.Due, error) { return s.s.Due(ctx, buckets, after, limit) })
}

// Upcoming passes on to the store below.
func (s *Store) Upcoming(ctx context.Context) (now, at int64, err error) {
	err = s.doErr("Upcoming", reads, func() error {
		now, at, err = s.s.Upcoming(ctx)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return now, at, nil
}

// Lagging passes on to the store below.
func (s *Store) Lagging(ctx context.Context, after key.ID, limit int) (scopes []key.Scope, next key.ID, err error) {
	err = s.doErr("Lagging", reads, func() error {
		scopes, next, err = s.s.Lagging(ctx, after, limit)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return scopes, next, nil
}

// Lease passes on to the store below.
func (s *Store) Lease(ctx context.Context, name string, owner key.ID, seconds int64) (l store.Lease, ok bool, err error) {
	err = s.doErr("Lease", writes, func() error {
		l, ok, err = s.s.Lease(ctx, name, owner, seconds)
		return err
	})
	if err != nil {
		return store.Lease{}, false, err
	}
	return l, ok, nil
}

// Release passes on to the store below.
func (s *Store) Release(ctx context.Context, l store.Lease) error {
	return s.doErr("Release", writes, func() error { return s.s.Release(ctx, l) })
}

func (q queries) Take(ctx context.Context, id key.ID, n, limit uint64) (uint64, error) {
	return do(q, "Take", writes, func() (uint64, error) { return q.q.Take(ctx, id, n, limit) })
}

// Tidy passes on to the store below.
func (s *Store) Tidy(ctx context.Context) (more bool, err error) {
	return do(s.queries, "Tidy", writes, func() (bool, error) { return s.s.Tidy(ctx) })
}
