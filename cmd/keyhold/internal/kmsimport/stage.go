package kmsimport

import (
	"context"
	"database/sql"
	"errors"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/sqlitestore"
)

// Stage is an installation in memory, into which everything is imported before anything is changed: what cannot be
// imported shows there; and its rows are what takes the place of theirs.
type Stage struct {
	*keyhold.Manager
	db    *sql.DB
	store *sqlitestore.Store
}

// NewStage makes an installation of its own. config is as for [keyhold.New]; now is the time of the database that it is
// for, in seconds since 1970.
func NewStage(ctx context.Context, config keyhold.Config, prefix string, now int64) (*Stage, error) {
	db, err := sql.Open("sqlite", "file::memory:?_pragma=foreign_keys(1)&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // each connection has a memory of its own
	s, err := sqlitestore.Config{Prefix: prefix}.New(db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	config.Initialize, config.Pins = true, nil
	m, err := keyhold.New(ctx, clocked{s, now}, config)
	if err != nil {
		return nil, errors.Join(err, s.Close(), db.Close())
	}
	return &Stage{m, db, s}, nil
}

// Close forgets all of it.
func (s *Stage) Close() error { return errors.Join(s.Manager.Close(), s.store.Close(), s.db.Close()) }

// Import imports all scopes.
func (s *Stage) Import(ctx context.Context, scopes []Keys) error {
	for _, k := range scopes {
		if _, err := s.ImportScope(ctx, k.Scope, k.Keys); err != nil {
			return err
		}
	}
	return nil
}

// clocked is a store in which it is another time.
type clocked struct {
	store.Store
	now int64
}

// Scope is where the Manager learns what time it is.
func (c clocked) Scope(ctx context.Context, scope key.Scope) (store.Family, error) {
	f, err := c.Store.Scope(ctx, scope)
	f.Now = c.now
	return f, err
}
