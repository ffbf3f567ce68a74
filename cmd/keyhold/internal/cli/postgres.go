package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store/pgstore"
)

// postgresDatabase is tables in a PostgreSQL database.
type postgresDatabase struct {
	*pgstore.Store

	opened *pgstore.Store // whose pool it is
	config pgstore.Config
}

func (a *app) openPostgres(ctx context.Context, dsn string, o migrate.Options) (database, error) {
	config := pgstore.Config{
		Prefix: o.Prefix, Schema: o.Schema, ScopeType: o.ScopeType, ScopeTable: o.ScopeTable, ScopeColumn: o.ScopeColumn,
	}
	s, err := openWithin(ctx, config, dsn)
	switch {
	case err == nil:
		return &postgresDatabase{s, s, config}, nil
	case errors.Is(err, keyhold.ErrUnavailable), ctx.Err() != nil:
		return nil, err
	}
	// Nobody was asked yet: the address itself is wrong, and the store says how, without its password.
	return nil, usageError(strings.TrimPrefix(firstLine(err), "open database: "), "")
}

// openWithin opens a database, which has to be done soon after ctx has ended.
func openWithin(ctx context.Context, config pgstore.Config, dsn string) (*pgstore.Store, error) {
	var s *pgstore.Store
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, err = config.Open(ctx, dsn)
	}()
	if !ended(ctx, done) {
		return nil, ctx.Err()
	}
	return s, err
}

func (d *postgresDatabase) Close() error { return closeSoon(d.opened.Close) }

func (d *postgresDatabase) migrations(ctx context.Context) ([]migration, error) {
	list, err := d.MigrationStatus(ctx)
	all := make([]migration, 0, len(list))
	for _, m := range list {
		all = append(all, migration(m))
	}
	return all, err
}

// rootKeys is the table of root keys as to_regclass takes it.
func (d *postgresDatabase) rootKeys() string {
	name := d.config.Prefix + "_root_key"
	if d.config.Schema != "" {
		name = migrate.Quote(d.config.Schema) + "." + name
	}
	return name
}

func (d *postgresDatabase) scopeType(ctx context.Context) (migrate.ScopeType, error) {
	var declared string
	err := d.Pool().QueryRow(ctx, `select coalesce((select format_type(atttypid, null) from pg_attribute
		where attrelid = to_regclass($1::text) and attname = 'scope_id'), '')`, d.rootKeys()).Scan(&declared)
	if err != nil {
		return "", errors.Join(d.CheckSchema(ctx), err) // the store says best what is wrong with the database
	}
	switch t := migrate.ScopeType(declared); t {
	case "", migrate.UUID, migrate.BigInt:
		return t, nil
	default:
		return migrate.Text, nil
	}
}

func (d *postgresDatabase) refersTo(ctx context.Context, table, column string) (refers bool, err error) {
	err = d.Pool().QueryRow(ctx, `select exists (
		select 1 from pg_constraint c
		join pg_attribute ours on ours.attrelid = c.conrelid and array[ours.attnum] = c.conkey
		join pg_attribute theirs on theirs.attrelid = c.confrelid and array[theirs.attnum] = c.confkey
		where c.contype = 'f' and c.conrelid = to_regclass($1::text) and ours.attname = 'scope_id'
			and c.confrelid = to_regclass(quote_ident($2::text)) and theirs.attname = $3::text)`,
		d.rootKeys(), table, column).Scan(&refers)
	return refers, err
}

func (d *postgresDatabase) addReference(table, column string) string {
	return fmt.Sprintf("alter table %s add foreign key (scope_id) references %s (%s) on delete cascade on update cascade",
		d.rootKeys(), migrate.Quote(table), migrate.Quote(column))
}

func (d *postgresDatabase) withScopeType(t migrate.ScopeType) (database, error) {
	d.config.ScopeType = t
	s, err := d.config.New(d.Pool())
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &postgresDatabase{s, d.opened, d.config}, nil
}

// explainPostgres makes a problem of what a server says, or of what keeps one from saying anything; nil if it is
// neither. Of the server's words only those are repeated in which nothing is that the user did not give as a name.
func (a *app) explainPostgres(err error) *problem {
	fail := func(code, message, hint string) *problem {
		return &problem{Code: code, Message: message, Hint: hint, exit: exitFailed}
	}
	cannot := "cannot use " + a.where() + ": "
	said, asked := errors.AsType[*pgconn.PgError](err)
	switch {
	case !asked && errors.Is(err, keyhold.ErrUnavailable):
		if reason := noConnection(err); reason != "" {
			return fail("unavailable", cannot+reason, "")
		}
		return nil
	case !asked:
		return nil
	}
	switch said.Code {
	case "28P01", "28000": // invalid password, invalid authorization
		if said.Code == "28P01" {
			return fail("unavailable", cannot+"the server does not accept the user's password",
				"PGPASSWORD or the password file, ~/.pgpass, can have it")
		}
		return fail("unavailable", cannot+"the server does not let this user in from here",
			"its pg_hba.conf says which user may use which database from where, and whether encrypted; its log says what was asked for")
	case "3D000": // invalid catalog name
		return fail("no_database", cannot+"there is no such database on the server", "createdb makes one")
	case "42501": // insufficient privilege
		return fail("permission", cannot+"its user may not do that: "+said.Message,
			"docs/operations.md (Roles; Giving up versions) says which role may do what; keyhold migrate up needs the one that owns the tables")
	case "08P01": // protocol violation
		return fail("unavailable", cannot+"what is before the server, such as pgbouncer, refuses the user, the password, the database or a setting",
			"settings such as search_path do not go through pgbouncer; --schema does")
	}
	return nil
}

// noConnection says why no connection was made, or nothing if that is not known.
func noConnection(err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return "the host " + dns.Name + " cannot be found"
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Addr != nil {
			return fmt.Sprintf("no server listens on %v", op.Addr)
		}
	}
	if certificate, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the server's certificate is not accepted: " + certificate.Err.Error()
	}
	if errors.Is(err, pgstore.ErrSetting) {
		return "the server does not know a setting in the address, or not its value"
	}
	if strings.Contains(err.Error(), "server refused TLS connection") { // the driver has no name for it
		return "the server has no encrypted connections, which sslmode asks for"
	}
	return ""
}
