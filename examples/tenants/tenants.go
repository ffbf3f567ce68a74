package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// purpose is what each tenant's data key is for.
const purpose keyhold.Purpose = "client-secrets"

// Errors of tenants, besides keyhold's. What is not there is keyhold.ErrNotFound, whosever table it is missing in.
var (
	errExists = errors.New("there is a tenant of that name")
	errInUse  = errors.New("it still has client secrets: delete them first")
)

// tenants is what the service does. It is safe for concurrent use.
type tenants struct {
	db   *database
	keys *keyhold.Manager
}

// credentials are what a tenant's identity provider knows the service by.
type credentials struct {
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
}

// ref names the key of a tenant.
func ref(tenant keyhold.Scope) keyhold.Ref { return keyhold.Ref{Scope: tenant, Purpose: purpose} }

// place is what a client's secret belongs to: table, column, row. The tenant is not in it: the key is the tenant's
// already, and what was sealed has to open after the tenant was renamed.
func place(client string) keyhold.AAD { return keyhold.Context("oidc", "client_secret", client) }

// putClient gives a client another secret if it has one.
const putClient = `
insert into oidc (scope_id, client_id, client_secret, key_id) values ($1, $2, $3, $4)
on conflict (scope_id, client_id) do update set client_secret = excluded.client_secret, key_id = excluded.key_id`

// create makes a tenant, its keys and, unless first is nil, its first client: all of it or nothing. The name of a
// tenant that was deleted or renamed should rest for 7 s, as [keyhold.Manager.CreateScope] says.
func (t *tenants) create(ctx context.Context, tenant keyhold.Scope, first *credentials) error {
	if err := tenant.Validate(); err != nil {
		return err
	}
	if first != nil {
		if err := first.check(); err != nil {
			return err
		}
	}
	err := t.db.transaction(ctx, func(tx *sql.Tx, keys store.Tx) error {
		if _, err := tx.ExecContext(ctx, `insert into scope (id) values ($1)`, string(tenant)); err != nil {
			return asExists(err)
		}
		if err := t.keys.CreateScopeTx(ctx, keys, tenant); err != nil {
			return err
		}
		if first == nil {
			return nil
		}
		// With the keys that this transaction sees: until it is committed, nobody else does.
		keyID, sealed, err := t.keys.SealDetachedTx(ctx, keys, ref(tenant), []byte(first.ClientSecret), place(first.ClientID))
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, putClient, string(tenant), first.ClientID, sealed, string(keyID))
		return err
	})
	return explain(err, "create tenant %q", tenant)
}

// rename changes a tenant's name, in the table and, by its cascade, in those that refer to it, and confirms to keyhold
// that this was meant. All secrets open as before, under the new name.
func (t *tenants) rename(ctx context.Context, old, renamed keyhold.Scope) error {
	if err := renamed.Validate(); err != nil {
		return err
	}
	err := t.db.transaction(ctx, func(tx *sql.Tx, keys store.Tx) error {
		result, err := tx.ExecContext(ctx, `update scope set id = $1 where id = $2`, string(renamed), string(old))
		if err := found(result, asExists(err)); err != nil {
			return err
		}
		return t.keys.RenameScopeTx(ctx, keys, old, renamed)
	})
	return explain(err, "rename tenant %q to %q", old, renamed)
}

// remove deletes a tenant, and by the cascade its keys. What they sealed never opens again, so the database refuses
// while there is any of it.
func (t *tenants) remove(ctx context.Context, tenant keyhold.Scope) error {
	result, err := t.db.ExecContext(ctx, `delete from scope where id = $1`, string(tenant))
	if err = refused(err); errors.Is(err, errReference) {
		err = errInUse
	}
	return explain(found(result, err), "delete tenant %q", tenant)
}

// rotate adds a version to a tenant's key, which seals from now on. Secrets stay as they are, and open.
func (t *tenants) rotate(ctx context.Context, tenant keyhold.Scope) (keyhold.Version, error) {
	return t.keys.Rotate(ctx, ref(tenant))
}

// versions lists the versions of a tenant's key.
func (t *tenants) versions(ctx context.Context, tenant keyhold.Scope) ([]keyhold.VersionInfo, error) {
	keys, err := t.keys.Keys(ctx, tenant)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.Ref.Purpose == purpose {
			return k.Versions, nil
		}
	}
	return nil, fmt.Errorf("%v: %w", ref(tenant), keyhold.ErrNotFound)
}

// put stores a client, its secret sealed with the newest version of the tenant's key, and returns that version's id.
func (t *tenants) put(ctx context.Context, tenant keyhold.Scope, c credentials) (key.ID, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	// No transaction is needed: the foreign keys refuse the row if the tenant or the key version is gone by now.
	keyID, sealed, err := t.keys.SealDetached(ctx, ref(tenant), []byte(c.ClientSecret), place(c.ClientID))
	if err != nil {
		return "", err
	}
	_, err = t.db.ExecContext(ctx, putClient, string(tenant), c.ClientID, sealed, string(keyID))
	if err = refused(err); errors.Is(err, errReference) {
		err = keyhold.ErrNotFound
	}
	return keyID, explain(err, "store client %q of tenant %q", c.ClientID, tenant)
}

// client opens a client's secret, and says with which key version it was sealed.
func (t *tenants) client(ctx context.Context, tenant keyhold.Scope, id string) (c credentials, keyID key.ID, err error) {
	var sealed, secret []byte
	err = t.db.QueryRowContext(ctx, `select client_secret, key_id from oidc where scope_id = $1 and client_id = $2`,
		string(tenant), id).Scan(&sealed, &keyID)
	if errors.Is(err, sql.ErrNoRows) {
		err = keyhold.ErrNotFound
	}
	if err == nil {
		secret, err = t.keys.OpenDetached(ctx, ref(tenant), keyID, sealed, place(id))
	}
	return credentials{id, string(secret)}, keyID, explain(err, "read client %q of tenant %q", id, tenant)
}

// removeClient deletes a client.
func (t *tenants) removeClient(ctx context.Context, tenant keyhold.Scope, id string) error {
	result, err := t.db.ExecContext(ctx, `delete from oidc where scope_id = $1 and client_id = $2`, string(tenant), id)
	return explain(found(result, err), "delete client %q of tenant %q", id, tenant)
}

func (c credentials) check() error {
	if c.ClientSecret == "" {
		return key.Invalid("client secret", "", "it is empty")
	}
	return checkClient(c.ClientID)
}

func checkClient(id string) error {
	if id == "" || len(id) > 255 || !utf8.ValidString(id) || strings.ContainsFunc(id, unicode.IsControl) {
		return key.Invalid("client id", id, "it has to be 1 to 255 bytes of text without control characters")
	}
	return nil
}

func asExists(err error) error {
	if err = refused(err); errors.Is(err, errDuplicate) {
		return errExists
	}
	return err
}

// found is keyhold.ErrNotFound if a statement that changes one row found none.
func found(result sql.Result, err error) error {
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err == nil && n == 0 {
		return keyhold.ErrNotFound
	}
	return err
}

func explain(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
