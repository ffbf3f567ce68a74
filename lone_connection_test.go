package keyhold_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// loneKind opens an empty database over a pool of one connection. Its transactions take that connection until they end.
type loneKind func(t *testing.T) (s store.Store, begin func() appTx)

var loneKinds = map[string]loneKind{
	"sqlite": func(t *testing.T) (store.Store, func() appTx) {
		t.Helper()
		s, err := sqlitestore.Create(filepath.Join(t.TempDir(), "keys.db"))
		must(t, err)
		t.Cleanup(func() { must(t, s.Close()) })
		s.DB().SetMaxOpenConns(1)
		return s, func() appTx {
			tx, err := s.DB().BeginTx(t.Context(), nil)
			must(t, err)
			return appTx{s.InTx(tx), func(text string, args ...any) error {
				_, err := tx.ExecContext(t.Context(), text, args...)
				return err
			}, tx.Commit, tx.Rollback}
		}
	},
	"pgx": func(t *testing.T) (store.Store, func() appTx) {
		t.Helper()
		ctx := context.WithoutCancel(t.Context())
		config, err := pgxpool.ParseConfig(keyholdtest.Postgres(t))
		must(t, err)
		config.MaxConns = 1
		pool, err := pgxpool.NewWithConfig(ctx, config)
		must(t, err)
		t.Cleanup(pool.Close)
		s, err := pgstore.New(pool)
		must(t, err)
		return s, func() appTx {
			tx, err := pool.Begin(ctx)
			must(t, err)
			return appTx{s.InTx(tx), func(text string, args ...any) error {
				_, err := tx.Exec(ctx, text, args...)
				return err
			}, func() error { return tx.Commit(ctx) }, func() error { return tx.Rollback(ctx) }}
		}
	},
	"database/sql": func(t *testing.T) (store.Store, func() appTx) {
		t.Helper()
		config, err := pgx.ParseConfig(keyholdtest.Postgres(t))
		must(t, err)
		db := stdlib.OpenDB(*config)
		t.Cleanup(func() { must(t, db.Close()) })
		db.SetMaxOpenConns(1)
		s, err := pgstore.FromSQL(db)
		must(t, err)
		return s, func() appTx {
			tx, err := db.BeginTx(t.Context(), nil)
			must(t, err)
			return appTx{s.InSQLTx(tx), func(text string, args ...any) error {
				_, err := tx.ExecContext(t.Context(), text, args...)
				return err
			}, tx.Commit, tx.Rollback}
		}
	},
}

// No call inside the application's transaction asks for a second connection: with a pool of one it would wait for ever,
// and end here with its context.
func TestTheTransactionsConnectionIsTheOnlyOneThatIsUsed(t *testing.T) {
	for name, kind := range loneKinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, begin := kind(t)
			m := newManager(t, s, newRoot(t))
			for _, scope := range []key.Scope{tenant, "gone"} {
				must(t, m.CreateScope(t.Context(), scope))
			}
			before := sealed(t, m, ref, "before", keyhold.AAD{})
			for _, p := range []key.Purpose{secrets, session} {
				_, err := m.Rotate(t.Context(), key.Ref{Scope: tenant, Purpose: p})
				must(t, err)
			}
			used, unused := ids(t, m, ref)[0], ids(t, m, key.Ref{Scope: tenant, Purpose: session})[0]
			must(t, m.Disable(t.Context(), unused))

			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			tx := begin()
			defer func() { _ = tx.rollback() }() // so that a failed test does not wait for the connection, either
			must(t, tx.exec("create table secret (key_id text references kms_data_key_version (private_id))"))
			must(t, tx.exec("insert into secret values ('"+string(used)+"')"))
			must(t, m.CreateScopeTx(ctx, tx.Tx, "new"))
			must(t, m.CreateScopeTx(ctx, tx.Tx, tenant)) // it is there
			var inside [][]byte
			for _, r := range []key.Ref{ref, {Scope: tenant}, {Scope: "new", Purpose: secrets}} {
				_, err := m.RotateTx(ctx, tx.Tx, r)
				must(t, err)
			}
			n, err := m.RewrapTx(ctx, tx.Tx, tenant)
			if err != nil || n != 7 {
				t.Errorf("rewrapped %d, %v; want 7", n, err)
			}
			for _, r := range []key.Ref{ref, {Scope: "new", Purpose: secrets}} {
				ct, err := m.SealTx(ctx, tx.Tx, r, []byte("inside"), keyhold.AAD{})
				must(t, err)
				_, err = m.OpenTx(ctx, tx.Tx, r, ct, keyhold.AAD{})
				must(t, err)
				id, detached, err := m.SealDetachedTx(ctx, tx.Tx, r, nil, keyhold.AAD{})
				must(t, err)
				_, err = m.OpenDetachedTx(ctx, tx.Tx, r, id, detached, keyhold.AAD{})
				must(t, err)
				inside = append(inside, ct)
			}
			_, err = m.OpenTx(ctx, tx.Tx, ref, before, keyhold.AAD{})
			must(t, err)
			must(t, m.DestroyTx(ctx, tx.Tx, unused))
			_, err = m.ShredTx(ctx, tx.Tx, "gone")
			must(t, err)
			// So it is where the call has to say more than that it was not done.
			_, err = m.ShredTx(ctx, tx.Tx, tenant)
			if _, ok := errors.AsType[*keyhold.InUseError](err); !ok {
				t.Errorf("shred a scope in use: %v", err)
			}
			fails(t, m.DestroyTx(ctx, tx.Tx, used), keyhold.ErrState)
			_, err = m.SealTx(ctx, tx.Tx, key.Ref{Scope: "nobody", Purpose: secrets}, nil, keyhold.AAD{})
			fails(t, err, keyhold.ErrNotFound)
			fails(t, m.RenameScopeTx(ctx, tx.Tx, "nobody", "somebody"), keyhold.ErrNotFound)
			must(t, tx.commit())

			opens(t, m, ref, before, keyhold.AAD{}, "before")
			opens(t, m, ref, inside[0], keyhold.AAD{}, "inside")
			opens(t, m, key.Ref{Scope: "new", Purpose: secrets}, inside[1], keyhold.AAD{}, "inside")
			checked(t, m)
		})
	}
}
