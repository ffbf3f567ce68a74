package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/stdlib"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/dekimport"
	"keyhold.example/keyhold/cmd/keyhold/internal/roots"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/migrate"
)

// readMEKs reads the MEKs, the current one first. Those that were read are returned with an error, too.
func readMEKs(f dekFlags) (meks []dekimport.MEK, err error) {
	for i, given := range append([]string{f.mek}, f.oldMEKs...) {
		flag := "--mek"
		if i > 0 {
			flag = "--old-mek"
		}
		b, err := roots.ReadRaw(given)
		switch {
		case errors.Is(err, roots.ErrAddress):
			return meks, usageError(flag+" is no MEK: "+firstLine(err), "a MEK is raw:PATH, a file with its 32 bytes or their base64")
		case err != nil:
			return meks, failed("root", "cannot use "+flag+" "+given+": "+firstLine(err), "")
		}
		meks = append(meks, dekimport.MEK{Shown: flag + " (" + given + ")", Key: secret.New(b)})
	}
	return meks, nil
}

// readDEKs reads the old tables.
func (a *app) readDEKs(ctx context.Context, f dekFlags) (_ *dekimport.Old, err error) {
	ctx, cancel := a.limited(ctx)
	defer cancel()
	where, err := parseAddress(f.from)
	if err != nil {
		return nil, err
	}
	its := *a // with the database of the old tables as its own
	its.db, its.prefix, its.schema = f.from, f.prefix, f.schema
	// Which tables it is opened for does not matter: only its pool is used.
	d, err := its.openPostgres(ctx, where.dsn, migrate.Options{})
	if err != nil {
		return nil, its.explain(ctx, err)
	}
	db := stdlib.OpenDBFromPool(d.(*postgresDatabase).Pool())
	defer func() { err = errors.Join(err, db.Close(), d.Close()) }()
	old, err := dekimport.Tables{DB: db, Schema: f.schema, Prefix: f.prefix}.Read(ctx)
	switch {
	case errors.Is(err, dekimport.ErrNoTables):
		return nil, failed("no_tables", "there are no tables "+its.tables()+" of go-pg-dek-manager in "+its.where(),
			"--from-schema and --from-prefix are what WithSchemaName and WithTablePrefix had there")
	case err != nil:
		return nil, its.explain(ctx, err)
	}
	return old, nil
}

// expected is the result for each key if it is not imported yet, [resultThere] if it is there, or [resultRemoved]. It
// is an error if one is there that is another.
func (i *dekImport) expected(ctx context.Context, s *session) ([]string, error) {
	results := make([]string, len(i.keys.Keys))
	for at := range i.keys.Keys {
		results[at] = resultToImport
		if len(i.keys.Keys[at].Versions) == 0 {
			results[at] = resultToRegister
		}
	}
	if there, err := s.HasScope(ctx, i.scope); err != nil || !there {
		return results, err
	}
	step := i.a.steps("looking", len(i.keys.Keys))
	for at := range i.keys.Keys {
		k := &i.keys.Keys[at]
		info, err := s.RawInfo(ctx, i.ref(k))
		switch {
		case errors.Is(err, keyhold.ErrRemoved):
			results[at] = resultRemoved
		case errors.Is(err, keyhold.ErrNotFound):
		case err != nil:
			return nil, i.otherKey(k, err)
		default:
			if results[at], err = i.compare(ctx, s, k, info, results[at]); err != nil {
				return nil, i.otherKey(k, err)
			}
		}
		step()
	}
	return results, nil
}

// compare looks whether what is there of a name is the key.
func (i *dekImport) compare(ctx context.Context, s *session, k *dekimport.Key, info keyhold.RawInfo, expected string) (string, error) {
	generator := k.Generator
	if generator == "" {
		generator = keyhold.DefaultGenerator
	}
	switch {
	case info.Generator != generator:
		return "", fmt.Errorf("it has the generator %q: %w", info.Generator, keyhold.ErrExists)
	case info.Version == 0 && len(k.Versions) > 0:
		return expected, nil // registered, as it was to be there
	}
	for _, v := range k.Versions {
		have, err := s.RawVersion(ctx, i.ref(k), v.Number)
		same := bytes.Equal(have, v.Key)
		clear(have)
		switch {
		case errors.Is(err, keyhold.ErrDisabled): // since
		case errors.Is(err, keyhold.ErrNotFound), err == nil && !same:
			return "", fmt.Errorf("version %d: %w", v.Number, keyhold.ErrExists)
		case err != nil:
			return "", err
		}
	}
	return resultThere, nil
}

// tryMEK warns if package dekmanager, which has the MEK as its root, would be refused, or could not rotate.
func (i *dekImport) tryMEK(ctx context.Context, s *session, mek dekimport.MEK, given string) error {
	root, err := localroot.FromBytes(mek.Key.Reveal())
	if err != nil {
		return err
	}
	m, err := keyhold.New(ctx, s.store, keyhold.Config{Root: root, Timeout: i.a.timeout})
	switch {
	case errors.Is(err, keyhold.ErrRoot):
		i.a.say("warning: the MEK is no root of the installation in %s, so that dekmanager is refused with it: keyhold root add %s gives it a slot, "+
			"and keyhold root activate ID makes it the active root", i.a.shown(), shellQuote(given))
		return nil
	case err != nil:
		return err
	}
	if m.Health().Root != nil {
		i.a.say("warning: the MEK is not the active root of the installation in %s, so that dekmanager makes and rotates no key with it: "+
			"keyhold root activate ID makes it that, and keyhold root list shows its ID", i.a.shown())
	}
	return m.Close()
}

// unfinished says with an error that ended the import what is to be done about what is there already.
func (i *dekImport) unfinished(ctx context.Context, err error) error {
	if err == nil || i.dryRun {
		return err
	}
	p := *i.a.explain(ctx, err)
	if p.Hint != "" {
		p.Hint += "; "
	}
	p.Hint += "what was imported stays: repeat the command to its end before any program starts with these keys"
	return &p
}
