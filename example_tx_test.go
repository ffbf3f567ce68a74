package keyhold_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/sqlitestore"
)

// The second example of the README: keys beside the application's own rows.
func ExampleManager_CreateScopeTx() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "keyhold")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := localroot.Generate(filepath.Join(dir, "root.key"))
	if err != nil {
		log.Fatal(err)
	}
	db, err := sqlitestore.Config{ScopeTable: "tenant", ScopeColumn: "id"}.Create(filepath.Join(dir, "app.db"))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	keys, err := keyhold.New(ctx, db, keyhold.Config{
		Root: root, Purposes: []keyhold.Purpose{"client-secrets"}, Initialize: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = keys.Close() }()
	if _, err := db.DB().ExecContext(ctx, `
create table tenant (id text primary key);
create table oidc_client (
    id integer primary key,
    tenant text not null references tenant (id) on delete cascade,
    key_version_id text not null references kms_data_key_version (private_id),
    secret blob not null
);`); err != nil {
		log.Fatal(err)
	}
	if err := addTenant(ctx, db, keys, "org_42", []byte("s3cret")); err != nil {
		log.Fatal(err)
	}

	_, err = db.DB().ExecContext(ctx, `delete from kms_root_key where scope_id = 'org_42'`)
	fmt.Println("keys in use cannot be deleted:", err != nil)
	_, err = db.DB().ExecContext(ctx, `delete from tenant where id = 'org_42'`)
	fmt.Println("with their tenant they can:", err == nil)
	// Output:
	// keys in use cannot be deleted: true
	// with their tenant they can: true
}

// addTenant adds a tenant with its keys and a first sealed row.
func addTenant(ctx context.Context, db *sqlitestore.Store, keys *keyhold.Manager, tenant string, plaintext []byte) error {
	// README: begin
	tx, err := db.DB().BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `insert into tenant (id) values (?)`, tenant); err != nil {
		return err
	}
	if err := keys.CreateScopeTx(ctx, db.InTx(tx), keyhold.Scope(tenant)); err != nil {
		return err
	}
	ref := keyhold.Ref{Scope: keyhold.Scope(tenant), Purpose: "client-secrets"}
	version, secret, err := keys.SealDetachedTx(ctx, db.InTx(tx), ref, plaintext, keyhold.Context("oidc_client", "7"))
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `insert into oidc_client (id, tenant, key_version_id, secret) values (7, ?, ?, ?)`,
		tenant, version, secret); err != nil {
		return err
	}
	return tx.Commit()
	// README: end
}
