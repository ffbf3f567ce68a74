package demo

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// place is a database with keyhold's tables and the application's.
type place struct {
	store   store.Store
	db      *sql.DB                   // the application's
	inTx    func(tx *sql.Tx) store.Tx // is keyhold's tables in a transaction of the application's
	refused func(err error) bool      // says whether a foreign key refused a statement of the application's
	close   func() error
}

// connect opens the database, and makes the SQLite file if that is not there.
func (w *walk) connect(ctx context.Context) (*place, error) {
	if w.Postgres != "" {
		return w.connectPostgres(ctx)
	}
	s, err := sqlitestore.Config{Prefix: w.names.prefix, ScopeTable: w.names.tenant, ScopeColumn: "id"}.Create(w.Database)
	if err != nil {
		return nil, err
	}
	return &place{
		store: s, db: s.DB(), inTx: s.InTx, close: s.Close,
		refused: func(err error) bool { return strings.Contains(err.Error(), "FOREIGN KEY constraint failed") },
	}, nil
}

func (w *walk) connectPostgres(ctx context.Context) (*place, error) {
	s, err := pgstore.Config{Schema: w.names.schema, Prefix: w.names.prefix}.Open(ctx, w.Postgres)
	if err != nil {
		return nil, err
	}
	db := stdlib.OpenDBFromPool(s.Pool())
	return &place{
		store: s, db: db, inTx: s.InSQLTx,
		close: func() error { return errors.Join(db.Close(), s.Close()) },
		refused: func(err error) bool {
			said, ok := errors.AsType[*pgconn.PgError](err)
			return ok && said.Code == "23503" // foreign key violation
		},
	}, nil
}

// limited is ctx with the time that a call may take.
func (w *walk) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	switch {
	case w.Timeout < 0:
		return ctx, func() {}
	case w.Timeout == 0:
		return context.WithTimeout(ctx, keyhold.DefaultTimeout)
	}
	return context.WithTimeout(ctx, w.Timeout)
}
