package pgstore

import (
	"context"
	"fmt"
)

var (
	// A foreign key, as queries for rows on its one side that the other lacks.
	orphansQuery = define(`
select 'root slot ' || i.active_slot || ', which the installation names,'
from {schema}{prefix}_installation i left join {schema}{prefix}_root_slot s on s.private_id = i.active_slot
where s.private_id is null
union all
select 'installation key ' || encode(n.ik_kid, 'hex') || ', which ' || n.what || ' names,'
from (
    select ik_kid, 'the installation' as what from {schema}{prefix}_installation
    union all
    select ik_kid, 'root slot ' || private_id from {schema}{prefix}_root_slot where state <> 5
    union all
    select ik_kid, 'key ' || private_id from {schema}{prefix}_root_key
    union all
    select ik_kid, 'version ' || private_id from {schema}{prefix}_root_key_version
    union all
    select ik_kid, 'key ' || private_id from {schema}{prefix}_data_key
    union all
    select ik_kid, 'name ' || purpose || ' of root key ' || root_key_id from {schema}{prefix}_data_key_name) n
left join {schema}{prefix}_installation_key i on i.ik_kid = n.ik_kid
where i.ik_kid is null
union all
select 'the active head of key ' || k.private_id
from {schema}{prefix}_root_key k left join {schema}{prefix}_root_key_version v
    on v.root_key_id = k.private_id and v.version = k.head_version and v.state = 2
where v.private_id is null
union all
select 'the active head of key ' || k.private_id
from {schema}{prefix}_data_key k left join {schema}{prefix}_data_key_version v
    on v.data_key_id = k.private_id and v.version = k.head_version and v.state = 2
where v.private_id is null
union all
select 'key ' || v.root_key_id || ' of version ' || v.private_id
from {schema}{prefix}_root_key_version v left join {schema}{prefix}_root_key k on k.private_id = v.root_key_id
where k.private_id is null
union all
select 'key ' || v.data_key_id || ' of version ' || v.private_id
from {schema}{prefix}_data_key_version v left join {schema}{prefix}_data_key k on k.private_id = v.data_key_id
where k.private_id is null
union all
select 'root key ' || d.root_key_id || ' of data key ' || d.private_id
from {schema}{prefix}_data_key d left join {schema}{prefix}_root_key k on k.private_id = d.root_key_id
where k.private_id is null
union all
select 'root key ' || n.root_key_id || ' of name ' || n.purpose
from {schema}{prefix}_data_key_name n left join {schema}{prefix}_root_key k on k.private_id = n.root_key_id
where k.private_id is null
union all
select 'version ' || v.root_key_version_id || ', which wraps version ' || v.private_id || ','
from {schema}{prefix}_data_key_version v left join {schema}{prefix}_root_key_version p on p.private_id = v.root_key_version_id
where p.private_id is null
union all
select 'version ' || u.private_id || ', of which messages were taken,'
from {schema}{prefix}_usage u left join {schema}{prefix}_data_key_version v on v.private_id = u.private_id
where v.private_id is null
order by 1`)

	// Each of these is refused by a trigger, which whoever owns the tables can turn off.
	gapsQuery = define(`
with numbers (key_id, version) as (
    select root_key_id, version from {schema}{prefix}_root_key_version
    union all
    select data_key_id, version from {schema}{prefix}_data_key_version
    union all
    select t.key_id, t.version from {schema}{prefix}_tombstone t
    where exists (select 1 from {schema}{prefix}_root_key where private_id = t.key_id)
        or exists (select 1 from {schema}{prefix}_data_key where private_id = t.key_id))
select key_id from numbers group by key_id
having min(version) <> 1 or max(version) <> count(*) or count(distinct version) <> count(*)
order by key_id`)

	strangeParentsQuery = define(`
select v.private_id
from {schema}{prefix}_data_key_version v
join {schema}{prefix}_data_key k on k.private_id = v.data_key_id
join {schema}{prefix}_root_key_version p on p.private_id = v.root_key_version_id
where p.root_key_id <> k.root_key_id or p.alg <> 1
order by v.private_id`)

	strayNamesQuery = define(`
select k.private_id
from {schema}{prefix}_data_key k
join {schema}{prefix}_data_key_name n on n.root_key_id = k.root_key_id and n.purpose = k.purpose
where n.removed = 1
order by k.private_id`)

	// The catalogue has each check as an expression in parentheses.
	checksQuery = define(`
select conrelid::regclass::text, conname::text, pg_get_expr(conbin, conrelid) from pg_constraint
where conrelid = any ($1::text[]::regclass[]) and contype = 'c'
order by conname`)
)

// ownTables are those with rules.
var ownTables = []string{
	"schema_version", "installation_key", "root_slot", "installation", "escrow", "tombstone", "epoch", "purpose", "reference",
	"instance", "lease", "root_key", "root_key_version", "data_key", "data_key_version", "usage",
	"data_key_name",
}

func (t *tables) ownTables() []string {
	var names []string
	for _, name := range ownTables {
		names = append(names, t.table(name))
	}
	return names
}

// Integrity implements [store.Store]. It compares what the catalogue has with the migrations: of the tables, of their
// columns, constraints, indexes and triggers, and of the functions. Conditions and defaults are compared as the server
// itself understands them, so that it does not matter which version wrote them down. For that it takes some 20 round
// trips and no right but to read the tables. What it asks to be explained is planned and not run, but planning
// evaluates functions that say that they are immutable; and rows are counted that break a condition, with whatever
// functions that calls. What is damaged below the tables, as in an index, PostgreSQL's own amcheck finds.
func (s *Store) Integrity(ctx context.Context) ([]string, error) {
	found, err := s.integrity(ctx)
	if err != nil {
		return nil, s.tables.explain(ctx, "check the integrity", err)
	}
	return found, nil
}

func (q queries) integrity(ctx context.Context) (found []string, err error) {
	found, readable, err := q.differences(ctx)
	if err != nil || !readable {
		return found, err
	}
	names := q.tables.ownTables()
	var checks []statement
	for _, c := range []struct {
		st  statement
		say string
	}{
		{q.tables.statement(orphansQuery), "%s is not there"},
		{q.tables.statement(gapsQuery), "the versions of key %s are not numbered 1, 2, 3 and so on"},
		{q.tables.statement(strangeParentsQuery), "version %s is wrapped under what is no version of its root key that wraps"},
		{q.tables.statement(strayNamesQuery), "key %s is there, and its name says that it was removed"},
	} {
		list, err := q.list(ctx, c.st, c.say)
		if err != nil {
			return nil, err
		}
		found = append(found, list...)
	}
	st := q.tables.statement(checksQuery, names)
	st.start = func() { checks = nil }
	st.row = func(scan func(...any) error) error {
		var table, name, condition string
		if err := scan(&table, &name, &condition); err != nil {
			return err
		}
		rows := 0
		checks = append(checks, statement{
			text: fmt.Sprintf("select count(*) from %s where not (%s)", table, condition),
			row:  func(scan func(...any) error) error { return scan(&rows) },
			done: func(int) error {
				if rows > 0 {
					found = append(found, fmt.Sprintf("rows that break the constraint %s: %d", name, rows))
				}
				return nil
			},
		})
		return nil
	}
	if err := q.view.read(ctx, st); err != nil {
		return nil, err
	}
	for _, check := range checks {
		if err := q.view.read(ctx, check); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (q queries) list(ctx context.Context, st statement, format string) (found []string, err error) {
	st.start = func() { found = nil }
	st.row = func(scan func(...any) error) error {
		var text string
		err := scan(&text)
		found = append(found, fmt.Sprintf(format, text))
		return err
	}
	err = q.view.read(ctx, st)
	return found, err
}
