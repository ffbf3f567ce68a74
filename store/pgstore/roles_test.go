package pgstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// roles are the three of docs/sql/roles.sql, under names of their own, as all databases of a server share them.
type roles struct {
	prefix string
	rename *strings.Replacer
	grants sync.Mutex // PostgreSQL refuses two that change the rights on one table at the same time
}

var roleNames = []string{"application", "operator", "migration"}

func newRoles(t *testing.T) *roles {
	t.Helper()
	r := &roles{prefix: fmt.Sprintf("kms_%08x_", rand.Uint32())}
	var pairs []string
	for _, name := range roleNames {
		pairs = append(pairs, "kms_"+name, r.prefix+name)
	}
	r.rename = strings.NewReplacer(pairs...)
	admin := keyholdtest.Postgres(t)
	for _, st := range r.statements(t, "roles.sql") {
		if r.ofServer(st) {
			execAs(t, admin, st)
		}
	}
	for _, name := range roleNames {
		execAs(t, admin, fmt.Sprintf("create role %s_user login password 'secret of the test' in role %[1]s", r.prefix+name))
	}
	t.Cleanup(func() { // when the databases of the subtests, which depend on the roles, are gone
		for _, name := range roleNames {
			execAs(t, admin, fmt.Sprintf("drop role %s_user, %[1]s", r.prefix+name))
		}
	})
	return r
}

// statements are those of a file in docs/sql, one by one.
func (r *roles) statements(t testing.TB, file string) (statements []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/sql/" + file)
	must(t, err)
	var lines []string
	for line := range strings.Lines(r.rename.Replace(string(text))) {
		if !strings.HasPrefix(line, "--") {
			lines = append(lines, line)
		}
	}
	for st := range strings.SplitSeq(strings.Join(lines, ""), ";") {
		if st = strings.TrimSpace(st); st != "" {
			statements = append(statements, st)
		}
	}
	return statements
}

// ofServer says whether a statement is about the roles themselves, which no database has for its own.
func (r *roles) ofServer(st string) bool {
	return strings.HasPrefix(st, "create role") || strings.HasPrefix(st, "grant "+r.prefix)
}

// admit lets the roles work in a database.
func (r *roles) admit(t testing.TB, dsn string) {
	t.Helper()
	for _, st := range r.statements(t, "roles.sql") {
		if !r.ofServer(st) {
			execAs(t, dsn, st)
		}
	}
}

// as is the address for a role's user.
func (r *roles) as(t testing.TB, role, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	must(t, err)
	u.User = url.UserPassword(r.prefix+role+"_user", "secret of the test")
	return u.String()
}

// divided is the store of an application, beside those of the roles that do what it may not.
type divided struct {
	*Store

	roles               *roles
	dsn                 string
	operator, migration *Store
}

func (r *roles) open(t testing.TB, how connect, dsn string) *divided {
	t.Helper()
	as := func(role string) *Store { return how(t, Config{}, r.as(t, role, dsn)) }
	return &divided{as("application"), r, dsn, as("operator"), as("migration")}
}

// migrate makes the tables as those who migrate do, and gives the others their rights.
func (r *roles) migrate(ctx context.Context, s *Store) error {
	r.grants.Lock()
	defer r.grants.Unlock()
	if err := s.Migrate(ctx); err != nil {
		return err
	}
	text, err := os.ReadFile("../../docs/sql/grants.sql")
	if err != nil {
		return err
	}
	_, err = s.Pool().Exec(ctx, r.rename.Replace(string(text)), pgx.QueryExecModeSimpleProtocol)
	return err
}

func (s *divided) Migrate(ctx context.Context) error { return s.roles.migrate(ctx, s.migration) }

func (s *divided) Initialize(ctx context.Context, in store.Installation) error {
	return s.operator.Initialize(ctx, in)
}

func (s *divided) ChangeRoots(ctx context.Context, c store.RootsChange) error {
	return s.operator.ChangeRoots(ctx, c)
}

func (s *divided) AddEscrow(ctx context.Context, inst [16]byte, e store.Escrow) error {
	return s.operator.AddEscrow(ctx, inst, e)
}

func (s *divided) Register(ctx context.Context, c store.Column) error {
	return s.operator.Register(ctx, c)
}

func (s *divided) Unregister(ctx context.Context, c store.Column) error {
	return s.operator.Unregister(ctx, c)
}

func (s *divided) Shred(ctx context.Context, inst [16]byte, scope key.Scope) (store.Shredded, error) {
	return s.operator.Shred(ctx, inst, scope)
}

func (s *divided) RemoveKey(ctx context.Context, inst [16]byte, id key.ID, keyFrom, from uint64, n store.Name) error {
	return s.operator.RemoveKey(ctx, inst, id, keyFrom, from, n)
}

func (s *divided) Update(ctx context.Context, u store.Update) error {
	if len(u.Destroy) > 0 {
		return s.operator.Update(ctx, u)
	}
	return s.Store.Update(ctx, u)
}

// migrated is a fresh database with the tables, which is divided among the roles, and a root for it.
func (r *roles) migrated(t *testing.T) (dsn string, s *divided, root *localroot.Root) {
	t.Helper()
	dsn = keyholdtest.Postgres(t)
	r.admit(t, dsn)
	s = r.open(t, byNew, dsn)
	must(t, s.Migrate(t.Context()))
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	must(t, err)
	return dsn, s, root
}

func TestRolesAreDeniedWhatIsNotTheirs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := newRoles(t)
	dsn, s, root := r.migrated(t)
	config := keyhold.Config{Root: root, Purposes: []key.Purpose{"secrets"}, Initialize: true}

	_, err := keyhold.New(ctx, s.Store, config)
	denied(t, "application", "make the installation", err)
	operator, err := keyhold.New(ctx, s.operator, config)
	must(t, err)
	defer operator.Close()

	// What the application is for, it can do.
	application, err := keyhold.New(ctx, s.Store, config)
	must(t, err)
	defer application.Close()
	ref := key.Ref{Scope: "a", Purpose: "secrets"}
	must(t, application.CreateScope(ctx, ref.Scope))
	_, err = application.Rotate(ctx, ref)
	must(t, err)
	_, err = application.Rotate(ctx, key.Ref{Scope: ref.Scope})
	must(t, err)
	_, err = application.Rewrap(ctx, ref.Scope)
	must(t, err)

	everybody := []string{
		"truncate kms_root_key cascade", "truncate kms_tombstone", "truncate kms_epoch",
		"drop table kms_data_key_version", "drop table kms_tombstone", "alter table kms_root_key drop constraint kms_root_key_head_fkey",
		"alter table kms_data_key_version disable trigger all", "alter table kms_root_key owner to current_user",
		"drop trigger kms_tombstone_kept on kms_tombstone", "create or replace function kms_refuse() returns trigger language plpgsql as 'begin end'",
		"set session_replication_role = replica",
		"create table kms_more (a int)", "create function kms_more() returns int language sql as 'select 1'",
		"create trigger more before update on kms_root_key for each row execute function kms_refuse('x')",
		"update kms_schema_version set version = 2", "insert into kms_schema_version (only_row, version) values (1, 1)",
		"update kms_tombstone set destroyed = 1", "delete from kms_tombstone",
		"delete from kms_installation", "update kms_installation set inst = inst", "delete from kms_root_slot",
		"update kms_root_slot set wrapper_type = 'x'", "update kms_root_slot set retired = 1", "update kms_root_slot set removed = 1",
		"update kms_installation_key set link = link", "truncate kms_escrow", "update kms_escrow set detail = 'x'", "delete from kms_escrow",
		"insert into kms_installation_key select * from kms_installation_key",
		"update kms_root_key set private_id = private_id", "update kms_root_key set created = 1",
		"update kms_data_key set purpose = 'x'", "update kms_data_key set root_key_id = root_key_id", "truncate kms_data_key_name",
		"update kms_data_key_name set purpose = 'x'", "update kms_data_key_name set root_key_id = root_key_id", "delete from kms_data_key_name",
		"update kms_root_key_version set commitment = commitment", "update kms_data_key_version set version = 7",
		"update kms_data_key_version set data_key_id = data_key_id", "update kms_epoch set bucket = 1",
		"update kms_data_key_version set disabled = 1", "truncate kms_usage", "update kms_usage set private_id = 'x'", "delete from kms_lease",
		"update kms_lease set name = 'x'", "update kms_instance set since = 1",
		"update kms_purpose set alg = 2", "delete from kms_purpose", "update kms_reference set table_name = 'x'",
		"insert into kms_epoch (id, bucket, n) overriding system value values (1, 1, 1)",
		"create role more", "copy kms_root_key to program 'cat'",
		"create table secret (key_id text references kms_data_key_version (private_id))",
	}
	for role, statements := range map[string][]string{
		"application": append([]string{
			"insert into kms_installation (only_row, inst, ik_kid, seq, active_slot, mac) select 1, inst, ik_kid, seq, active_slot, mac from kms_installation",
			"update kms_installation set mac = mac", "update kms_installation set seq = seq + 1",
			"insert into kms_root_slot select * from kms_root_slot", "update kms_root_slot set state = 3", "update kms_root_slot set blob = blob",
			"insert into kms_installation_key (ik_kid) select ik_kid from kms_installation_key", "delete from kms_installation_key",
			"insert into kms_escrow (ik_kid, event, detail) select ik_kid, 'verified', '' from kms_installation_key",
			"delete from kms_root_key", "update kms_root_key set scope_id = 'b'", "delete from kms_data_key",
			"delete from kms_root_key_version", "delete from kms_data_key_version",
			"insert into kms_reference values ('s', 't', 'c')", "delete from kms_reference",
			"insert into kms_tombstone select * from kms_tombstone", "set role " + r.prefix + "operator", "set role " + r.prefix + "migration",
		}, everybody...),
		"operator": append([]string{"set role " + r.prefix + "migration"}, everybody...),
		"migration": {
			"create role more", "set session_replication_role = replica", "select pg_read_file('/etc/passwd')", "copy kms_root_key to program 'cat'",
		},
	} {
		for _, st := range statements {
			denied(t, role, st, try(t, r.as(t, role, dsn), st))
		}
	}
	findings, err := application.Check(ctx)
	must(t, err)
	for _, f := range findings {
		t.Errorf("check: %v", f)
	}
}

// Who only opens needs no right but to read, as whoever seals has to say that they do. The application's role may do
// everything that processes of a fleet do.
func TestRolesInAFleet(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := newRoles(t)
	dsn, s, root := r.migrated(t)
	config := keyhold.Config{
		Root: root, Purposes: []key.Purpose{"secrets"}, Initialize: true,
		Policies: map[key.Purpose]keyhold.Policy{"secrets": {MaxMessages: 1000}},
	}
	operator, err := keyhold.New(ctx, s.operator, config)
	must(t, err)
	defer operator.Close()
	application, err := keyhold.New(ctx, s.Store, config)
	must(t, err)
	defer application.Close()
	ref := key.Ref{Scope: "a", Purpose: "secrets"}
	must(t, application.CreateScope(ctx, ref.Scope))
	sealed, err := application.Seal(ctx, ref, []byte("plain"), keyhold.AAD{})
	must(t, err)
	_, err = application.Sweep(ctx)
	must(t, err)

	reader := r.prefix + "reader"
	execAs(t, dsn, "create role "+reader+" login password 'secret of the test'")
	execAs(t, dsn, "grant usage on schema public to "+reader)
	execAs(t, dsn, "grant select on kms_schema_version, kms_installation, kms_root_slot, kms_root_key, kms_root_key_version, "+
		"kms_data_key, kms_data_key_version, kms_tombstone, kms_epoch, kms_installation_key to "+reader)
	t.Cleanup(func() {
		execAs(t, dsn, "drop owned by "+reader)
		execAs(t, dsn, "drop role "+reader)
	})
	u, err := url.Parse(dsn)
	must(t, err)
	u.User = url.UserPassword(reader, "secret of the test")
	opening := byNew(t, Config{}, u.String())
	opener, err := keyhold.New(ctx, opening, config)
	must(t, err)
	plain, err := opener.Open(ctx, ref, sealed, keyhold.AAD{})
	if err != nil || string(plain) != "plain" {
		t.Errorf("opened by who only opens: %q, %v", plain, err)
	}
	must(t, opener.Close()) // it has never signed

	m := storetest.NewMaker(1)
	in := m.Instance()
	fam, err := s.Key(ctx, ref)
	must(t, err)
	for what, call := range map[string]func(s *Store) error{
		"Sign":    func(s *Store) error { _, err := s.Sign(ctx, in); return err },
		"Lease":   func(s *Store) error { _, _, err := s.Lease(ctx, "a", in.ID, 1); return err },
		"Release": func(s *Store) error { return s.Release(ctx, store.Lease{Name: "a", Owner: in.ID, Fence: 1}) },
		"Take":    func(s *Store) error { _, err := s.Take(ctx, fam.Data[0].Versions[0].ID, 1, 1000); return err },
		"Tidy":    func(s *Store) error { _, err := s.Tidy(ctx); return err },
		"Leave":   func(s *Store) error { return s.Leave(ctx, in.ID) },
	} {
		if err := call(s.Store); err != nil {
			t.Errorf("%s as the application role: %v", what, err)
		}
		denied(t, "reader's", what, call(opening))
	}
	for role, s := range map[string]*Store{"application": s.Store, "reader's": opening} {
		heard, ended, stop := listening(t, s)
		must(t, s.Notify(ctx))
		await(t, heard)
		stop()
		if err := await(t, ended); !errors.Is(err, context.Canceled) {
			t.Errorf("Listen as the %s role: %v", role, err)
		}
	}
}

// denied asserts that it was the rights that were not there.
func denied(t *testing.T, role, what string, err error) {
	t.Helper()
	if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "42501" {
		t.Errorf("%s as the %s role: %v, want it denied", what, role, err)
	}
}

// An application deletes and renames its tenants by the cascade of its own foreign key, without any right to delete
// or rename keys.
func TestCascadesNeedNoRights(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	r := newRoles(t)
	dsn := keyholdtest.Postgres(t)
	r.admit(t, dsn)
	s := r.open(t, byNew, dsn)
	must(t, s.Migrate(ctx))
	owner, user := r.as(t, "migration", dsn), r.as(t, "application", dsn)
	execAs(t, owner, "create table tenant (id text primary key)")
	execAs(t, owner, "alter table kms_root_key add foreign key (scope_id) references tenant (id) on delete cascade on update cascade")
	execAs(t, owner, "grant select, insert, update, delete on tenant to "+r.prefix+"application")
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	must(t, err)
	config := keyhold.Config{Root: root, Purposes: []key.Purpose{"secrets"}, Initialize: true}
	operator, err := keyhold.New(ctx, s.operator, config)
	must(t, err)
	defer operator.Close()
	m, err := keyhold.New(ctx, s.Store, config)
	must(t, err)
	defer m.Close()

	execAs(t, user, "insert into tenant (id) values ('a')")
	must(t, m.CreateScope(ctx, "a"))
	execAs(t, user, "update tenant set id = 'b'")
	if _, err := s.Scope(ctx, "b"); err != nil {
		t.Errorf("after renaming the tenant: %v", err)
	}
	execAs(t, user, "delete from tenant")
	if _, err := s.Scope(ctx, "b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after deleting the tenant: %v, want ErrNotFound", err)
	}
	var tombstones int
	must(t, s.Pool().QueryRow(ctx, "select count(*) from kms_tombstone").Scan(&tombstones))
	if tombstones != 2 {
		t.Errorf("%d tombstones, want one for each version", tombstones)
	}
}
