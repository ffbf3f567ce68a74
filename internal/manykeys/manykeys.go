// Package manykeys fills the tables of an installation with so many keys that a question which reads all of them takes
// long. It is for tests and benchmarks.
//
// The rows are as long as those of real keys, and their ids as random, but nothing vouches for them: who uses one of
// these keys finds that it was tampered with. None of them is due before the year 2096.
package manykeys

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"
)

// PerScope is how many data keys a scope has, and Versions how many versions each of them.
const (
	PerScope = 10
	Versions = 3
)

// The scopes are many_1, many_2 and so on, and their purposes purpose-1 and so on. Words in braces are what the
// databases have no common word for; {n} is random characters of an id, {b} random bytes.
var statements = []string{`
insert into kms_root_key (private_id, scope_id, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac)
select 'krk_' || {n}, 'many_' || s.n, 1, 1, 31536000, 0, 4000000000 + s.n, i.ik_kid, {b32}
from {scopes} s cross join kms_installation i`, `
insert into kms_root_key_version (private_id, root_key_id, version, state, alg, commitment, key, created, ik_kid)
select 'krkv_' || {n}, r.private_id, 1, 2, 1, {b32}, {b93}, 1700000000, r.ik_kid
from kms_root_key r where r.scope_id > 'many_' and r.scope_id < 'many~'`, `
insert into kms_data_key
    (private_id, root_key_id, purpose, seq, head_version, rotate_every, max_messages, rotate_at, ik_kid, mac)
select 'kdk_' || {n}, r.private_id, 'purpose-' || p.n, 5, 3, 7776000, 0, 4000000000 + r.rotate_at * 7919 % 7776000, r.ik_kid, {b32}
from kms_root_key r cross join {purposes} p where r.scope_id > 'many_' and r.scope_id < 'many~'`, `
insert into kms_data_key_version
    (private_id, data_key_id, version, state, alg, commitment, key, created, root_key_version_id)
select 'kdkv_' || {n}, d.private_id, v.n, case v.n when 3 then 2 else 3 end, 1, {b32}, {b93}, 1700000000 + v.n, rv.private_id
from kms_root_key r
join kms_root_key_version rv on rv.root_key_id = r.private_id and rv.version = 1
join kms_data_key d on d.root_key_id = r.private_id
cross join {versions} v where r.scope_id > 'many_' and r.scope_id < 'many~'`}

// Postgres fills the tables of a pgstore with the default prefix with n data keys, rounded up to whole scopes, and
// analyzes them. exec runs a statement on a connection, always the same, of a superuser. A million keys take a minute
// or two, and 2.5 GB.
func Postgres(ctx context.Context, exec func(ctx context.Context, text string) error, n int) error {
	series := func(last string) string { return "(select n from generate_series(1, " + last + ") n)" }
	words := strings.NewReplacer(
		"{n}", `substr('0123456789abcdefghijklmnopqrstuv', 1 + floor(random() * 32)::int, 1)
    || left(replace(gen_random_uuid()::text, '-', ''), 25)`,
		"{b32}", "uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())",
		"{b93}", "decode(repeat(replace(gen_random_uuid()::text, '-', ''), 5) || repeat('00', 13), 'hex')",
		"{scopes}", series(scopes(n)), "{purposes}", series(strconv.Itoa(PerScope)), "{versions}", series(strconv.Itoa(Versions)),
	)
	// Neither triggers nor foreign keys would find anything wrong. Indexes are made anew in a tenth of the time that it
	// takes to insert so many rows into them.
	err := exec(ctx, "set session_replication_role = replica")
	for _, statement := range statements {
		table := strings.Fields(statement)[2]
		for _, text := range []string{
			"update pg_index set indisready = false, indisvalid = false where indrelid = '" + table + "'::regclass",
			words.Replace(statement), "reindex table " + table, "analyze " + table,
		} {
			if err == nil {
				err = exec(ctx, text)
			}
		}
	}
	return errors.Join(err, exec(ctx, "reset session_replication_role"))
}

// SQLite fills the tables of a sqlitestore with the default prefix with n data keys, rounded up to whole scopes, and
// analyzes them if analyzed is set, which no store does by itself. A million keys take two minutes, and 2 GB.
func SQLite(ctx context.Context, db *sql.DB, n int, analyzed bool) (err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	exec := func(text string) {
		if err == nil {
			_, err = conn.ExecContext(ctx, text)
		}
	}
	triggers, err := triggersOf(ctx, conn)
	if err != nil {
		return err
	}
	series := func(last string) string {
		return "(with recursive c (n) as (select 1 union all select n + 1 from c where n < " + last + ") select n from c)"
	}
	words := strings.NewReplacer(
		"{n}", "substr('0123456789abcdefghijklmnopqrstuv', 1 + (random() & 31), 1) || substr(lower(hex(randomblob(13))), 1, 25)",
		"{b32}", "randomblob(32)", "{b93}", "randomblob(93)",
		"{scopes}", series(scopes(n)), "{purposes}", series(strconv.Itoa(PerScope)), "{versions}", series(strconv.Itoa(Versions)),
	)
	exec("pragma foreign_keys = off")
	exec("pragma cache_size = -2000000")
	exec("begin immediate")
	for name := range triggers {
		exec("drop trigger " + name)
	}
	for _, statement := range statements {
		exec(words.Replace(statement))
	}
	for _, text := range triggers {
		exec(text)
	}
	if analyzed {
		exec("analyze")
	}
	exec("commit")
	exec("pragma wal_checkpoint(truncate)")
	exec("pragma cache_size = -2000")
	exec("pragma foreign_keys = on")
	return err
}

// triggersOf is the triggers' texts, by name. Each would be run for each row.
func triggersOf(ctx context.Context, conn *sql.Conn) (_ map[string]string, err error) {
	rows, err := conn.QueryContext(ctx, "select name, sql from sqlite_master where type = 'trigger'")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	triggers := map[string]string{}
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return nil, err
		}
		triggers[name] = text
	}
	return triggers, rows.Err()
}

func scopes(n int) string { return strconv.Itoa((n + PerScope - 1) / PerScope) }
