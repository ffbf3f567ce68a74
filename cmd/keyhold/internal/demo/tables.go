package demo

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
)

// names are the tables of a demo. All are letters and underscores, and need no quotes.
type names struct{ schema, prefix, tenant, record string }

var (
	embeddedNames = names{"", migrate.DefaultPrefix, "tenant", "record"}
	guestNames    = names{"", "khdemo", "khdemo_tenant", "khdemo_record"}
	schemaNames   = names{"keyhold_demo", migrate.DefaultPrefix, "tenant", "record"}
)

// The application's statements. The two foreign keys are what keyhold asks of applications: see the comments.
const (
	createTables = `
create table {tenant} (
    id text not null primary key -- {prefix}_root_key.scope_id references it, on delete cascade on update cascade
);
create table {record} (
    id integer not null primary key,
    tenant_id text not null references {tenant} (id) on delete cascade on update cascade,
    fields text not null, -- the other columns, as JSON
    sealed {bytes} not null,
    key_version_id text not null references {prefix}_data_key_version (private_id) -- a key in use cannot be deleted
);
create index {index}_tenant_id on {record} (tenant_id);
create index {index}_key_version_id on {record} (key_version_id);`

	// On SQLite it is made with the table.
	addReference = `
alter table {prefix}_root_key add foreign key (scope_id) references {tenant} (id) on delete cascade on update cascade;`

	takeLock      = `update {tenant} set id = id where false`
	insertTenant  = `insert into {tenant} (id) values (?)`
	insertRecord  = `insert into {record} (id, tenant_id, fields, sealed, key_version_id) values (?, ?, ?, ?, ?)`
	updateRecord  = `update {record} set sealed = ?, key_version_id = ? where id = ?`
	selectRecords = `select id, tenant_id, key_version_id, sealed from {record} where tenant_id = ? or ? = '' order by id`
	selectRecord  = `select id, tenant_id, key_version_id, sealed from {record} where id = ?`
	countRecords  = `select count(*) from {record} where tenant_id = ? or ? = ''`
	countTenant   = `select count(*) from {tenant} where id = ?`
	deleteTenant  = `delete from {tenant} where id = ?`
	deleteKeys    = `delete from {prefix}_root_key where scope_id = ?`
	countKeys     = `select count(*) from {prefix}_data_key_version v
		join {prefix}_data_key k on k.private_id = v.data_key_id
		join {prefix}_root_key r on r.private_id = k.root_key_id
		where r.scope_id = ?`
)

// sql fills in the names, on PostgreSQL with their schema and with its own words for parameters and bytes.
func (n names) sql(template string) string {
	schema, bytes := "", "blob"
	if n.schema != "" {
		schema, bytes = n.schema+".", "bytea"
		parts := strings.Split(template, "?")
		template = parts[0]
		for i, part := range parts[1:] {
			template += "$" + strconv.Itoa(i+1) + part
		}
	}
	return strings.NewReplacer("{prefix}", schema+n.prefix, "{tenant}", schema+n.tenant, "{record}", schema+n.record,
		"{index}", n.record, "{bytes}", bytes).Replace(template)
}

// absent is [ErrExists] if any table of the demo's is there.
func (n names) absent(ctx context.Context, db *sql.DB) error {
	query, args := `select coalesce(min(name), '') from sqlite_master where type = 'table' and (name in (?, ?) or name glob ?)`,
		[]any{n.tenant, n.record, n.prefix + "_*"}
	if n.schema != "" {
		// A schema that is empty may have been made for a user who may not make any.
		query, args = `select coalesce(min(relname), '') from pg_class where relnamespace = to_regnamespace($1::text)`, []any{n.schema}
	}
	there := ""
	err := db.QueryRowContext(ctx, query, args...).Scan(&there)
	if err == nil && there != "" {
		return fmt.Errorf("table %s: %w", there, ErrExists)
	}
	return err
}

func (n names) create(ctx context.Context, db *sql.DB) error {
	text := createTables
	if n.schema != "" {
		text += addReference
	}
	_, err := db.ExecContext(ctx, n.sql(text))
	return err
}

func (n names) lock(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, n.sql(takeLock))
	return err
}

// sealedRow is a row as it is stored.
type sealedRow struct {
	id         int
	tenant     key.Scope
	keyVersion key.ID
	sealed     []byte
}

func (r *sealedRow) scan(scan func(...any) error) error {
	return scan(&r.id, &r.tenant, &r.keyVersion, &r.sealed)
}

// rows reads the rows of a tenant, or of all if it is empty.
func (n names) rows(ctx context.Context, db *sql.DB, tenant key.Scope) (list []sealedRow, err error) {
	rows, err := db.QueryContext(ctx, n.sql(selectRecords), tenant, tenant)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r sealedRow
		if err := r.scan(rows.Scan); err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, rows.Err()
}

func (n names) row(ctx context.Context, db *sql.DB, id int) (r sealedRow, err error) {
	err = r.scan(db.QueryRowContext(ctx, n.sql(selectRecord), id).Scan)
	return r, err
}

func (n names) countRows(ctx context.Context, db *sql.DB, tenant key.Scope) (count int, err error) {
	err = db.QueryRowContext(ctx, n.sql(countRecords), tenant, tenant).Scan(&count)
	return count, err
}

func (n names) countTenants(ctx context.Context, db *sql.DB, tenant key.Scope) (count int, err error) {
	err = db.QueryRowContext(ctx, n.sql(countTenant), tenant).Scan(&count)
	return count, err
}

func (n names) countVersions(ctx context.Context, db *sql.DB, tenant key.Scope) (count int, err error) {
	err = db.QueryRowContext(ctx, n.sql(countKeys), tenant).Scan(&count)
	return count, err
}

// put overwrites what is stored of a row.
func (n names) put(ctx context.Context, db *sql.DB, id int, sealed []byte, keyVersion key.ID) error {
	_, err := db.ExecContext(ctx, n.sql(updateRecord), sealed, keyVersion, id)
	return err
}
