// Package dekimport reads what go-pg-dek-manager keeps in a PostgreSQL database, and opens its keys.
//
// Theirs are named keys with numbered versions. Each version is a row under one master key (MEK), sealed with it by
// AES-GCM without additional authenticated data, as base64 of nonce, ciphertext and tag. A MEK has a number, and stands
// in a table by its SHA-256. A change of the MEK copies the rows: a version may stand there under several MEKs, and
// instances that still had the old one may have made others meanwhile, with numbers that are in use under the new one.
package dekimport

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"keyhold.example/keyhold/migrate"
)

// What their options have where they are not given.
const (
	DefaultSchema = "public"
	DefaultPrefix = "dek_store"
)

// ErrNoTables says that a database has no tables of go-pg-dek-manager in a schema, under a prefix.
var ErrNoTables = errors.New("no tables of go-pg-dek-manager")

// RefusedError says that what is in the tables cannot be imported as it is, or not with the MEKs given. It is one
// sentence, which names everything that is wrong, and holds nothing secret.
type RefusedError struct {
	Code string // for scripts
	Text string
	Hint string // what to do about it
}

func (e *RefusedError) Error() string { return e.Text }

// Tables is their tables in one database. DB stays the caller's.
type Tables struct {
	DB             *sql.DB
	Schema, Prefix string // any text
}

// Old is what the tables held at one moment. All of it is sealed.
type Old struct {
	meks       []mek             // ascending by id
	generators map[string]string // by name; of names that are registered
	rows       []row             // by name, number and MEK
}

// mek is a master key as the tables know it.
type mek struct {
	id   int64
	hash string // SHA-256 in base64
	rows int
}

// row is one version under one MEK.
type row struct {
	id, mek int64
	name    string
	number  int64
	created time.Time
	sealed  string
}

// Read reads everything, as it was at one moment. It changes nothing. What their clocks said is taken to be of the time
// zone that this session has. Errors: [ErrNoTables]; the database's own.
func (t Tables) Read(ctx context.Context) (*Old, error) {
	tx, err := t.DB.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }() // nothing was changed
	there := map[string]bool{}
	for _, name := range []string{"mek", "dek", "key_info"} {
		is := false
		err := tx.QueryRowContext(ctx, "select to_regclass(quote_ident($1::text) || '.' || quote_ident($2::text)) is not null",
			t.Schema, t.Prefix+"_"+name).Scan(&is)
		if err != nil {
			return nil, err
		}
		there[name] = is
	}
	if !there["mek"] || !there["dek"] {
		return nil, ErrNoTables
	}
	old := &Old{generators: map[string]string{}}
	err = each(ctx, tx, "select id, mek_hash from "+t.table("mek")+" order by id", func(r *sql.Rows) error {
		var m mek
		err := r.Scan(&m.id, &m.hash)
		old.meks = append(old.meks, m)
		return err
	})
	if err == nil && there["key_info"] { // the first generation of the library had none
		err = each(ctx, tx, "select key_name, gen_func_name from "+t.table("key_info"), func(r *sql.Rows) error {
			var name, generator string
			err := r.Scan(&name, &generator)
			old.generators[name] = generator
			return err
		})
	}
	if err == nil {
		err = old.readRows(ctx, tx, t.table("dek"))
	}
	return old, err
}

func (o *Old) readRows(ctx context.Context, tx *sql.Tx, table string) error {
	known := map[int64]*mek{}
	for i := range o.meks {
		known[o.meks[i].id] = &o.meks[i]
	}
	query := `select id, mek_id, key_name, version, floor(extract(epoch from cast(created_at as timestamp with time zone)))::bigint,
		encrypted_dek from ` + table + ` order by key_name collate "C", version, mek_id`
	return each(ctx, tx, query, func(r *sql.Rows) error {
		var v row
		var seconds int64
		if err := r.Scan(&v.id, &v.mek, &v.name, &v.number, &seconds, &v.sealed); err != nil {
			return err
		}
		under := known[v.mek]
		if under == nil {
			return fmt.Errorf("row %d is sealed with MEK %d, which is not there", v.id, v.mek)
		}
		under.rows++
		v.created = time.Unix(seconds, 0).UTC()
		o.rows = append(o.rows, v)
		return nil
	})
}

// table is the quoted name of a table.
func (t Tables) table(name string) string {
	return migrate.Quote(t.Schema) + "." + migrate.Quote(t.Prefix+"_"+name)
}

// each calls f for each row of a query.
func each(ctx context.Context, tx *sql.Tx, query string, f func(*sql.Rows) error) error {
	rows, err := tx.QueryContext(ctx, query)
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
