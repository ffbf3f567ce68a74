package keyhold_test

import (
	"context"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store/pgstore"
)

// onPostgres makes a tenant with its keys on PostgreSQL, through the application's own pool.
func onPostgres(ctx context.Context, dsn string, root wrapping.Wrapper, tenant string) error {
	// README: begin
	pool, err := pgxpool.New(ctx, dsn) // the application's own; or pgstore.Open(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	db, err := pgstore.Config{ScopeTable: "tenant", ScopeColumn: "id"}.New(pool)
	if err != nil {
		return err
	}
	keys, err := keyhold.New(ctx, db, keyhold.Config{Root: root, Purposes: []keyhold.Purpose{"client-secrets"}, Initialize: true})
	if err != nil {
		return err
	}
	defer keys.Close()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `insert into tenant (id) values ($1)`, tenant); err != nil {
			return err
		}
		return keys.CreateScopeTx(ctx, db.InTx(tx), keyhold.Scope(tenant))
	})
	// README: end
	return err
}

func TestTheExampleOnPostgres(t *testing.T) {
	ctx := t.Context()
	dsn := keyholdtest.Postgres(t)
	conn, err := pgx.Connect(ctx, dsn)
	must(t, err)
	defer func() { must(t, conn.Close(context.WithoutCancel(ctx))) }()
	_, err = conn.Exec(ctx, "create table tenant (id text primary key)")
	must(t, err)
	root := newRoot(t)
	must(t, onPostgres(ctx, dsn, root, "org_42"))
	if err := onPostgres(ctx, dsn, root, "org_42"); err == nil {
		t.Error("the same tenant twice: no error")
	}
	keys := newManager(t, openPostgres(t, dsn), root)
	sealed(t, keys, keyhold.Ref{Scope: "org_42", Purpose: "client-secrets"}, "x", keyhold.AAD{})
	_, err = conn.Exec(ctx, "delete from tenant")
	must(t, err)
	scopes := 0
	for _, err := range keys.Scopes(ctx) {
		must(t, err)
		scopes++
	}
	if scopes != 0 {
		t.Errorf("%d scopes after the tenant was deleted", scopes)
	}
}
