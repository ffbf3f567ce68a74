package cli

import (
	"context"
	"os"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/kmsimport"
)

// takePlace makes the old database and prefix the command's own, and refuses others.
func (a *app) takePlace(f kmsFlags) error {
	pins, err := a.allPins()
	switch {
	case err != nil:
		return err
	case a.db != "" && !sameDatabase(a.db, f.from):
		return usageError("with --in-place the keys stay in the database of --from, and --db is another", "leave out --db or --in-place")
	case a.schema != "":
		return usageError("with --in-place the tables stay in their schema", "leave out --schema")
	case a.given("prefix") && a.prefix != f.prefix:
		return usageError("with --in-place the tables keep their prefix, which is that of --from-prefix, and --prefix is another", "leave out --prefix")
	case len(pins) > 0:
		return usageError("with --in-place a new installation is made, which no pin is known of", "leave out --pin, and unset KEYHOLD_PIN")
	}
	a.db, a.prefix = f.from, f.prefix
	return nil
}

// sameDatabase says whether two addresses are the same, or name one SQLite file.
func sameDatabase(one, other string) bool {
	if one == other {
		return true
	}
	a, err1 := parseAddress(one)
	b, err2 := parseAddress(other)
	if err1 != nil || err2 != nil || a.isPostgres() || b.isPostgres() {
		return false
	}
	fileA, err1 := os.Stat(a.path)
	fileB, err2 := os.Stat(b.path)
	return err1 == nil && err2 == nil && os.SameFile(fileA, fileB)
}

// importInPlace puts keyhold's tables in the place of the old ones.
func (a *app) importInPlace(
	ctx context.Context, old *oldTables, root *root, scopes []kmsimport.Scope, opened []kmsimport.Keys, dryRun bool,
) error {
	now, err := old.tables.Now(ctx)
	if err != nil {
		return old.explain(ctx, err)
	}
	stage, err := kmsimport.NewStage(ctx, keyhold.Config{Root: root, Timeout: a.timeout}, a.prefix, now)
	if err != nil {
		return err
	}
	defer func() { _ = stage.Close() }() // it is in memory
	if err := cannotImport(stage.Import(ctx, opened)); err != nil {
		return err
	}
	result := resultToImport
	if dryRun {
		err = old.tables.CanReplace(ctx)
	} else {
		result = resultImported
		err = old.tables.Replace(ctx, scopes, stage, max(a.timeout, 0))
	}
	if err != nil {
		return old.explain(ctx, err)
	}
	list := a.newStream(importedHeader)
	for _, k := range opened {
		if err := list.add(newImported(k, result)); err != nil {
			return err
		}
	}
	if err := list.end(nil); err != nil {
		return err
	}
	if dryRun {
		a.say("nothing was changed")
		return nil
	}
	a.say("the tables %s are keyhold's now, with a new installation whose root is %s; keyhold doctor looks at everything", a.tables(), root.given)
	a.say("whoever loses the root loses every key in this database, so keep a copy in a safe place, apart from the database's backups")
	a.say("its pin, which is not secret, is %s", stage.Pin())
	if old.tables.Postgres {
		a.say("other roles than the owner of the tables need their rights on them again: docs/operations.md (Roles)")
	}
	return nil
}
