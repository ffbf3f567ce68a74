package sqlitestore

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// dueQuery is the pages of each reason, each read from an index up to the limit, put in order. The arguments are what
// it goes on after (when, key, reason), the buckets, and the limit.
var dueQuery = define(dueUnion([]dueBranch{
	{
		at: "k.rotate_at", id: "k.private_id", why: store.Old, scope: "k.scope_id", purpose: "''", head: "k.head_version",
		from: `{prefix}_root_key k where k.rotate_at <= cast(strftime('%s', 'now') as integer)`,
	}, {
		at: "k.rotate_at", id: "k.private_id", why: store.Old, scope: "r.scope_id", purpose: "k.purpose", head: "k.head_version",
		from: `{prefix}_data_key k cross join {prefix}_root_key r on r.private_id = k.root_key_id
        where k.rotate_at <= cast(strftime('%s', 'now') as integer)`,
	}, {
		at: "v.created", id: "v.root_key_id", why: store.Pending, scope: "k.scope_id", purpose: "''", head: "k.head_version",
		from: `{prefix}_root_key_version v cross join {prefix}_root_key k on k.private_id = v.root_key_id
        where v.state = 1
            and not exists (select 1 from {prefix}_root_key_version w where w.root_key_id = v.root_key_id and w.version > v.version)`,
	}, {
		at: "v.created", id: "v.data_key_id", why: store.Pending, scope: "r.scope_id", purpose: "k.purpose", head: "k.head_version",
		from: `{prefix}_data_key_version v cross join {prefix}_data_key k on k.private_id = v.data_key_id
        cross join {prefix}_root_key r on r.private_id = k.root_key_id
        where v.state = 1
            and not exists (select 1 from {prefix}_data_key_version w where w.data_key_id = v.data_key_id and w.version > v.version)`,
	}, {
		at: "u.used_at", id: "k.private_id", why: store.Used, scope: "r.scope_id", purpose: "k.purpose", head: "k.head_version",
		from: `{prefix}_usage u cross join {prefix}_data_key_version v on v.private_id = u.private_id
        cross join {prefix}_data_key k on k.private_id = v.data_key_id and k.head_version = v.version
        cross join {prefix}_root_key r on r.private_id = k.root_key_id
        where u.used_at is not null`,
	},
}))

// dueBranch is one kind of keys that are due for one reason.
type dueBranch struct {
	at, id               string
	why                  store.Why
	scope, purpose, head string
	from                 string // up to its conditions
}

// dueTemplate has every condition but those of a reason.
const dueTemplate = `
    select * from (
        select {at} as at, {id} as id, {why} as why, cast({scope} as text) as scope, {purpose} as purpose, {head} as head
        from {from}
            and {start}
            and (({at}, {id}) > (?1, ?2) or ({at}, {id}) = (?1, ?2) and {why} > ?3)
            and (?4 >> max(0, instr('0123456789abcdefghijklmnopqrstuv', lower(substr({id}, 5, 1))) - 1)) & 1
        order by {at}, {id} limit ?5)`

func dueUnion(branches []dueBranch) string {
	var parts []string
	for _, b := range branches {
		// As many keys may be due since the same second, the index has to find the one to go on after.
		start := "({at}, {id}) >= (?1, ?2)"
		if b.why == store.Used {
			start = "{at} >= ?1" // the index has the versions' ids
		}
		text := strings.ReplaceAll(dueTemplate, "{start}", start)
		parts = append(parts, strings.NewReplacer("{at}", b.at, "{id}", b.id, "{why}", fmt.Sprint(int(b.why)), "{scope}", b.scope,
			"{purpose}", b.purpose, "{head}", b.head, "{from}", b.from).Replace(text))
	}
	return "select at, id, why, scope, purpose, head from (" + strings.Join(parts, "\n    union all") +
		")\norder by at, id, why limit ?5"
}

// Due implements [store.Fleet]. A limit of 0 or less lists none.
func (s *Store) Due(ctx context.Context, buckets store.BucketSet, after store.Due, limit int) ([]store.Due, error) {
	var due []store.Due
	err := rows.CheckAfter(after.KeyID)
	if err == nil {
		args := []any{after.At, string(after.KeyID), int64(after.Why), int64(buckets), max(0, limit)}
		err = s.each(ctx, dueQuery, args, func(r *sql.Rows) error {
			var d store.Due
			if err := r.Scan(&d.At, &d.KeyID, &d.Why, &d.Scope, &d.Purpose, &d.Head); err != nil {
				return &rows.Error{Row: string(d.KeyID), Problem: err.Error()}
			}
			due = append(due, d)
			return nil
		})
	}
	if err != nil {
		return nil, s.tables.explain(ctx, "list the keys that are due", err)
	}
	return due, nil
}

var upcomingQuery = define(`
select cast(strftime('%s', 'now') as integer), coalesce(min(at), 0)
from (
    select min(rotate_at) as at from {prefix}_root_key where rotate_at > cast(strftime('%s', 'now') as integer)
    union all
    select min(rotate_at) from {prefix}_data_key where rotate_at > cast(strftime('%s', 'now') as integer))`)

// Upcoming implements [store.Fleet].
func (s *Store) Upcoming(ctx context.Context) (now, at int64, err error) {
	err = s.each(ctx, upcomingQuery, nil, func(r *sql.Rows) error {
		if err := r.Scan(&now, &at); err != nil {
			return &rows.Error{Row: "rotate_at", Problem: err.Error()}
		}
		return nil
	})
	if err != nil {
		return 0, 0, s.tables.explain(ctx, "look for the next rotation", err)
	}
	return now, at, nil
}

// laggingPage is how many root keys one call of Lagging, or of NotUnder, looks at.
const laggingPage = 2000

// Of a root key that was not rotated, an index says that there is no version but the active one.
var laggingQuery = define(`
select r.private_id,
    case when exists (
        select 1 from {prefix}_root_key_version p
        where p.root_key_id = r.private_id and p.state <> 2
            and exists (select 1 from {prefix}_data_key_version v where v.root_key_version_id = p.private_id))
    then cast(r.scope_id as text) else '' end
from {prefix}_root_key r
where r.private_id > ?1
order by r.private_id limit ?2`)

// Lagging implements [store.Fleet]. A limit of 0 or less lists none.
func (s *Store) Lagging(ctx context.Context, after key.ID, limit int) ([]key.Scope, key.ID, error) {
	var scopes []key.Scope
	var next key.ID
	err := rows.CheckAfter(after)
	if err == nil && limit > 0 {
		scopes, next, err = s.page(ctx, laggingQuery, after, limit)
	}
	if err != nil {
		return nil, "", s.tables.explain(ctx, "list the scopes to rewrap", err)
	}
	return scopes, next, nil
}

// page looks at the next root keys, and lists the scopes of those that the query gives with one.
func (s *Store) page(
	ctx context.Context, q query, after key.ID, limit int, args ...any,
) (scopes []key.Scope, next key.ID, err error) {
	n := 0
	err = s.each(ctx, q, append([]any{string(after), laggingPage}, args...), func(r *sql.Rows) error {
		var id key.ID
		var scope key.Scope
		if err := r.Scan(&id, &scope); err != nil {
			return err
		}
		n++
		if len(scopes) == limit {
			return nil // what follows is the next page's, which goes on after the last one listed
		}
		next = id
		if scope != "" {
			scopes = append(scopes, scope)
		}
		return nil
	})
	if n < laggingPage && len(scopes) < limit {
		next = ""
	}
	return scopes, next, err
}
