// Package kmsimport reads what go-kms-wrapping's extras/kms keeps in a database, opens its keys, and puts keyhold's
// tables in the place of its own.
//
// Theirs is a hierarchy like ours: versions of root keys, each sealed by the external root, and versions of data keys,
// each sealed with a root key's version by AES-GCM. A sealed key is a marshalled BlobInfo, without additional
// authenticated data. A revoked version is a row that is gone.
package kmsimport

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
)

// SchemaVersion is the only version of their tables that is known here.
const SchemaVersion = "v0.0.2"

// ErrNoTables says that a database has no tables of extras/kms under a prefix.
var ErrNoTables = errors.New("no tables of go-kms-wrapping's extras/kms")

// VersionError says that tables have the right names, and another version than [SchemaVersion].
type VersionError struct{ Have string }

func (e *VersionError) Error() string {
	return fmt.Sprintf("the schema version is %q, and only %q of extras/kms is known", e.Have, SchemaVersion)
}

// Tables is their tables in one database. DB stays the caller's.
type Tables struct {
	DB       *sql.DB
	Postgres bool   // or SQLite
	Prefix   string // as WithTableNamePrefix had it; any text
}

// The tables, of which each refers only to those before it.
var tableNames = []string{"schema_version", "collection_version", "root_key", "root_key_version", "data_key", "data_key_version"}

// Scope is a root key and its data keys as they are stored.
type Scope struct {
	Scope key.Scope
	Keys  []Key // the root key, then the data keys by purpose
}

// Key is a root key or a data key.
type Key struct {
	ID       key.ID
	Purpose  key.Purpose
	Versions []Version // ascending by number
}

// Version is one version of a key.
type Version struct {
	ID      key.ID
	Number  key.Version
	Created time.Time
	Blob    []byte // a marshalled BlobInfo, which names the key that it is sealed with
}

// querier is what a [*sql.DB], a [*sql.Conn] and a [*sql.Tx] have in common.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Read reads everything, as it was at one moment, in the order of the scopes. It changes nothing. Errors:
// [ErrNoTables]; [*VersionError]; the database's own.
func (t Tables) Read(ctx context.Context) (scopes []Scope, err error) {
	var options sql.TxOptions
	if t.Postgres {
		options = sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
	}
	tx, err := t.DB.BeginTx(ctx, &options)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // nothing was changed
	if err := t.check(ctx, tx); err != nil {
		return nil, err
	}
	return t.read(ctx, tx)
}

// Now is the time of the database, in seconds since 1970.
func (t Tables) Now(ctx context.Context) (now int64, err error) {
	query := "select cast(strftime('%s', 'now') as integer)"
	if t.Postgres {
		query = "select cast(floor(extract(epoch from statement_timestamp())) as bigint)"
	}
	err = t.DB.QueryRowContext(ctx, query).Scan(&now)
	return now, err
}

// table is the quoted name of a table.
func (t Tables) table(name string) string { return migrate.Quote(t.Prefix + "_" + name) }

// check says whether the tables are there, and are theirs.
func (t Tables) check(ctx context.Context, q querier) error {
	exists := "select exists (select 1 from sqlite_master where type = 'table' and name = $1)"
	if t.Postgres {
		exists = "select to_regclass(quote_ident($1::text)) is not null"
	}
	there := map[string]bool{}
	for _, name := range tableNames {
		is := false
		if err := q.QueryRowContext(ctx, exists, t.Prefix+"_"+name).Scan(&is); err != nil {
			return err
		}
		there[name] = is
	}
	if !there["schema_version"] || !there["root_key"] {
		return ErrNoTables
	}
	var version string
	err := q.QueryRowContext(ctx, "select cast(version as text) from "+t.table("schema_version")).Scan(&version)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return &VersionError{}
	case err != nil:
		return err
	case version != SchemaVersion:
		return &VersionError{version}
	}
	for _, name := range tableNames {
		if !there[name] {
			return fmt.Errorf("%w: %s_%s is not there", ErrNoTables, t.Prefix, name)
		}
	}
	return nil
}

func (t Tables) read(ctx context.Context, q querier) ([]Scope, error) {
	byID := map[key.ID]*Scope{} // of the root key
	err := each(ctx, q, "select cast(private_id as text), cast(scope_id as text) from "+t.table("root_key"), func(r *sql.Rows) error {
		var id key.ID
		var scope key.Scope
		err := r.Scan(&id, &scope)
		byID[id] = &Scope{Scope: scope, Keys: []Key{{ID: id}}}
		return err
	})
	if err != nil {
		return nil, err
	}
	ofKey := map[key.ID]*Key{}
	err = each(ctx, q, "select cast(private_id as text), cast(root_key_id as text), cast(purpose as text) from "+t.table("data_key"),
		func(r *sql.Rows) error {
			var root key.ID
			var k Key
			if err := r.Scan(&k.ID, &root, &k.Purpose); err != nil {
				return err
			}
			s := byID[root]
			if s == nil {
				return fmt.Errorf("data key %s is of the root key %s, which is not there", k.ID, root)
			}
			s.Keys = append(s.Keys, k)
			return nil
		})
	if err != nil {
		return nil, err
	}
	var scopes []Scope
	for _, s := range byID {
		slices.SortFunc(s.Keys[1:], func(a, b Key) int { return strings.Compare(string(a.Purpose), string(b.Purpose)) })
		for i := range s.Keys {
			ofKey[s.Keys[i].ID] = &s.Keys[i]
		}
		scopes = append(scopes, *s) // its keys are those in the map
	}
	slices.SortFunc(scopes, func(a, b Scope) int { return strings.Compare(string(a.Scope), string(b.Scope)) })

	err = t.readVersions(ctx, q, ofKey, "root_key_version", "root_key_id")
	if err == nil {
		err = t.readVersions(ctx, q, ofKey, "data_key_version", "data_key_id")
	}
	return scopes, err
}

func (t Tables) readVersions(ctx context.Context, q querier, ofKey map[key.ID]*Key, table, keyID string) error {
	created := "cast(strftime('%s', create_time) as integer)"
	if t.Postgres {
		created = "cast(floor(extract(epoch from create_time)) as bigint)"
	}
	query := fmt.Sprintf("select cast(private_id as text), cast(%s as text), version, %s, key from %s order by version",
		keyID, created, t.table(table))
	return each(ctx, q, query, func(r *sql.Rows) error {
		var v Version
		var of key.ID
		var number, seconds sql.NullInt64
		if err := r.Scan(&v.ID, &of, &number, &seconds, &v.Blob); err != nil {
			return err
		}
		switch k := ofKey[of]; {
		case k == nil:
			return fmt.Errorf("version %s is of the key %s, which is not there", v.ID, of)
		case number.Int64 < 1 || number.Int64 > key.MaxVersion:
			return fmt.Errorf("version %s has the number %d, and numbers go from 1 to %d", v.ID, number.Int64, key.MaxVersion)
		default:
			v.Number, v.Created = key.Version(number.Int64), time.Unix(seconds.Int64, 0).UTC()
			k.Versions = append(k.Versions, v)
			return nil
		}
	})
}

// each calls f for each row of a query.
func each(ctx context.Context, q querier, query string, f func(*sql.Rows) error, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := f(rows); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}
