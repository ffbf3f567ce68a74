package cli

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/kmsimport"
	"keyhold.example/keyhold/migrate"
)

// oldTables is the tables of extras/kms in an open database.
type oldTables struct {
	a      *app // with the database of these tables as its own
	tables kmsimport.Tables
	close  func() error
}

// openOld opens the database with the old tables. In place it is to be written to, else only read.
func (a *app) openOld(ctx context.Context, f kmsFlags) (*oldTables, error) {
	where, err := parseAddress(f.from)
	if err != nil {
		return nil, err
	}
	its := *a
	its.db, its.prefix, its.schema = f.from, f.prefix, ""
	old := &oldTables{a: &its, tables: kmsimport.Tables{Postgres: where.isPostgres(), Prefix: f.prefix}}
	if where.isPostgres() {
		ctx, cancel := a.limited(ctx)
		defer cancel()
		// Which tables it is opened for does not matter: only its pool is used.
		d, err := its.openPostgres(ctx, where.dsn, migrate.Options{})
		if err != nil {
			return nil, old.explain(ctx, err)
		}
		pool := d.(*postgresDatabase).Pool()
		old.tables.DB = stdlib.OpenDBFromPool(pool)
		old.close = func() error { return errors.Join(old.tables.DB.Close(), d.Close()) }
		return old, nil
	}
	if _, err := os.Stat(where.path); err != nil {
		return nil, failed("no_database", "cannot use the database "+where.shown+": "+pathReason(err), "")
	}
	old.tables.DB, err = sql.Open("sqlite", oldFile(where.path, f.inPlace && !f.dryRun))
	if err != nil {
		return nil, err
	}
	old.close = old.tables.DB.Close
	return old, nil
}

// oldFile is the data source of an SQLite file that is there. Foreign keys are off, as the tables are to be exchanged
// below those of the application's.
func oldFile(path string, write bool) string {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	mode := "ro"
	if write {
		mode = "rw"
	}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path)}
	u.RawQuery = url.Values{"mode": {mode}, "_pragma": {"busy_timeout(5000)", "foreign_keys(0)", "secure_delete(1)", "synchronous(FULL)"}}.Encode()
	return u.String()
}

// explain makes a problem of what went wrong with the old tables.
func (o *oldTables) explain(ctx context.Context, err error) error {
	tables := o.a.prefix + "_* in " + o.a.where()
	version, isVersion := errors.AsType[*kmsimport.VersionError](err)
	cannot, isCannot := errors.AsType[*kmsimport.CannotReplaceError](err)
	root, isRoot := errors.AsType[*kmsimport.RootError](err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kmsimport.ErrNoTables):
		return failed("no_tables", "there are no tables "+tables+" of go-kms-wrapping's extras/kms, or not all",
			"--from-prefix is what the names of its tables begin with, if it is not kms")
	case isVersion && strings.Trim(version.Have, "0123456789") == "" && version.Have != "":
		return failed("schema", "the tables "+tables+" are keyhold's already", "keyhold status shows what is in them")
	case isVersion:
		return failed("schema", "the tables "+tables+": "+version.Error(), "bring it to that version with the migrations of extras/kms first")
	case errors.Is(err, kmsimport.ErrChanged):
		return failed("changed", err.Error()+"; nothing was changed", "")
	case isCannot:
		return failed("in_place", cannot.Error()+"; nothing was changed", "without --in-place the keys come into another installation")
	case isLocked(err):
		return failed("locked", "somebody else uses the tables "+tables+"; nothing was changed", "stop what uses the old library, and try again")
	case isRoot && ctx.Err() == nil:
		return failed("root", root.Error(), "--from-root has to be the root that the old system had; nothing was changed ("+firstLine(root.Err)+")")
	}
	return o.a.explain(ctx, err)
}

// explainRow is explain for what is wrong with rows, which is told before anything is changed.
func (o *oldTables) explainRow(ctx context.Context, err error) error {
	err = o.explain(ctx, err)
	if p, ok := errors.AsType[*problem](err); ok && p.Code == "failed" {
		return failed(p.Code, p.Message+"; nothing was changed", p.Hint)
	}
	return err
}

// isLocked says whether others did not let go of a table in time.
func isLocked(err error) bool {
	const lockNotAvailable, busy = "55P03", 5
	if said, ok := errors.AsType[*pgconn.PgError](err); ok {
		return said.Code == lockNotAvailable
	}
	var coded interface{ Code() int }
	return errors.As(err, &coded) && coded.Code()&0xff == busy
}

// schemaHint says what can be done about tables of extras/kms.
func schemaHint(err *keyhold.SchemaError) string {
	if err.Foreign == kmsimport.SchemaVersion {
		return "keyhold import kms brings in the keys of go-kms-wrapping's extras/kms, whose tables they seem to be"
	}
	return ""
}
