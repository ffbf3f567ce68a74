package kmsimport

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/migrate"
)

const (
	// Both directions between their tables and others'. A partition's foreign key is that of its table. Definitions
	// name everything with its schema, as the search_path is empty for as long as this statement takes.
	foreignKeysQuery = `
select n.nspname, r.relname, c.conname, c.conrelid = any($1::text::oid[]), pg_get_constraintdef(c.oid), pg_has_role(r.relowner, 'usage'),
    array_to_string(array(select attname from pg_attribute where attrelid = c.conrelid and attnum = any(c.conkey)), ',')
from pg_constraint c
join pg_class r on r.oid = c.conrelid
join pg_namespace n on n.oid = r.relnamespace
where c.contype = 'f' and c.conparentid = 0
    and (c.conrelid = any($1::text::oid[])) <> (c.confrelid = any($1::text::oid[]))
order by n.nspname, r.relname, c.conname`

	// What has to be dropped before the tables can be, such as views. Foreign keys and triggers are not among it, nor
	// what goes with a table though it names its columns, too, such as a rule on it or a policy.
	dependentsQuery = `
select distinct pg_describe_object(d.classid, d.objid, 0)
from pg_depend d
where d.deptype = 'n' and d.classid not in ('pg_constraint'::regclass, 'pg_trigger'::regclass) and (
    d.refclassid = 'pg_class'::regclass and d.refobjid = any($1::text::oid[])
    or d.refclassid = 'pg_type'::regclass and d.refobjid in (select reltype from pg_class where oid = any($1::text::oid[])))
    and not exists (
        select 1 from pg_depend own
        where own.classid = d.classid and own.objid = d.objid and own.deptype in ('a', 'i')
            and own.refclassid = 'pg_class'::regclass and own.refobjid = any($1::text::oid[]))
order by 1`

	// Functions of the tables' triggers and domains of their columns, by the names that extras/kms gives them.
	functionsQuery = `
select distinct p.oid::bigint, 'function ' || p.oid::regprocedure::text, p.proname
from pg_trigger t
join pg_proc p on p.oid = t.tgfoid
where t.tgrelid = any($1::text::oid[]) and not t.tgisinternal`

	domainsQuery = `
select distinct t.oid::bigint, 'domain ' || t.oid::regtype::text, t.typname
from pg_attribute a
join pg_type t on t.oid = a.atttypid
where a.attrelid = any($1::text::oid[]) and a.attnum > 0 and not a.attisdropped and t.typtype = 'd'`
)

// theirObjects is what the names of their functions and domains are after the prefix, which is kms where nobody edited
// the files.
var theirObjects = []string{
	"immutable_columns", "default_create_time", "version_column", "update_time_column", "private_id", "scope_id", "timestamp", "version",
}

func (t Tables) postgresCatalogue(ctx context.Context, q querier, lock bool) (catalogue, error) {
	var c catalogue
	var names, oids []string
	for _, name := range tableNames {
		var oid, schema string
		var owns, creates bool
		err := q.QueryRowContext(ctx, `select c.oid::text, n.nspname, pg_has_role(c.relowner, 'usage'), has_schema_privilege(n.oid, 'create')
			from pg_class c join pg_namespace n on n.oid = c.relnamespace
			where c.oid = to_regclass(quote_ident($1::text))`, t.Prefix+"_"+name).Scan(&oid, &schema, &owns, &creates)
		switch {
		case err != nil:
			return c, err
		case !owns:
			return c, notOwner(schema, t.Prefix+"_"+name)
		case !creates:
			return c, &CannotReplaceError{fmt.Sprintf("the import's user may not make tables in the schema %s", schema)}
		}
		if c.schema != "" && schema != c.schema {
			return c, &CannotReplaceError{fmt.Sprintf("the tables are in different schemas: %s and %s", c.schema, schema)}
		}
		c.schema = schema
		oids = append(oids, oid)
		names = append(names, qualified(schema, t.Prefix+"_"+name))
	}
	c.options = migrate.Options{Prefix: t.Prefix, Schema: c.schema}
	if lock {
		if _, err := q.ExecContext(ctx, "lock table "+strings.Join(names, ", ")+" in access exclusive mode"); err != nil {
			return c, err
		}
	}
	theirs := "{" + strings.Join(oids, ",") + "}"

	var path string
	if err := q.QueryRowContext(ctx, "show search_path").Scan(&path); err != nil {
		return c, err
	}
	if _, err := q.ExecContext(ctx, "set local search_path = ''"); err != nil {
		return c, err
	}
	var dependents []string
	err := each(ctx, q, dependentsQuery, func(r *sql.Rows) error {
		var what string
		err := r.Scan(&what)
		dependents = append(dependents, strings.TrimPrefix(what, "rule _RETURN on "))
		return err
	}, theirs)
	if err != nil {
		return c, err
	}
	if len(dependents) > 0 {
		return c, inTheWay("what depends on the tables: " + strings.Join(dependents, ", "))
	}
	err = each(ctx, q, foreignKeysQuery, func(r *sql.Rows) error { return c.foreignKey(r, t.Prefix) }, theirs)
	if err != nil {
		return c, err
	}
	c.before = append(c.before, "drop table "+strings.Join(names, ", "))
	// What is checked at the end of the transaction would be in the way of the foreign keys.
	c.after = slices.Insert(c.after, 0, "set constraints all immediate")
	for class, query := range map[string]string{"pg_proc": functionsQuery, "pg_type": domainsQuery} {
		objects, err := t.objects(ctx, q, query, theirs)
		if err != nil {
			return c, err
		}
		for _, o := range objects {
			c.before = append(c.before, dropUnused(o, class))
		}
	}
	_, err = q.ExecContext(ctx, "select set_config('search_path', $1::text, true)", path)
	return c, err
}

// foreignKey has a foreign key dropped before and made again after keyhold's tables are there.
func (c *catalogue) foreignKey(r *sql.Rows, prefix string) error {
	var schema, table, name, definition, columns string
	var ofTheirs, owns bool
	if err := r.Scan(&schema, &table, &name, &ofTheirs, &definition, &owns, &columns); err != nil {
		return err
	}
	on := qualified(schema, table)
	switch {
	case !owns:
		return notOwner(schema, table)
	case !ofTheirs:
		c.before = append(c.before, fmt.Sprintf("alter table %s drop constraint %s", on, migrate.Quote(name)))
	case table != prefix+"_root_key" || columns != "scope_id":
		return &CannotReplaceError{fmt.Sprintf("the foreign key %s of %s (%s) is one that keyhold's table cannot have", name, table, columns)}
	default:
		name = prefix + "_root_key_scope_id_fkey" // as keyhold calls it
	}
	c.after = append(c.after, fmt.Sprintf("alter table %s add constraint %s %s", on, migrate.Quote(name), definition))
	return nil
}

// notOwner says that somebody has to own a table, which is to be dropped, or has a foreign key that is made again.
func notOwner(schema, table string) error {
	return &CannotReplaceError{fmt.Sprintf("the import's user does not own the table %s.%s, which only its owner can change", schema, table)}
}

// object is a function or a domain.
type object struct {
	oid  int64
	name string // with its kind, as drop takes it
}

func (t Tables) objects(ctx context.Context, q querier, query, theirs string) (objects []object, err error) {
	err = each(ctx, q, query, func(r *sql.Rows) error {
		var o object
		var name string
		err := r.Scan(&o.oid, &o.name, &name)
		prefix, _ := strings.CutPrefix(name, t.Prefix+"_")
		other, _ := strings.CutPrefix(name, migrate.DefaultPrefix+"_")
		if slices.Contains(theirObjects, prefix) || slices.Contains(theirObjects, other) {
			objects = append(objects, o)
		}
		return err
	}, theirs)
	return objects, err
}

// dropUnused drops an object if, with their tables gone, nothing depends on it.
func dropUnused(o object, class string) string {
	return fmt.Sprintf(`do $keyhold$ begin
	if not exists (select 1 from pg_depend where refobjid = %d and refclassid = '%s'::regclass and deptype = 'n') then
		drop %s;
	end if;
end $keyhold$`, o.oid, class, o.name)
}
