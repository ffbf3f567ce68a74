package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/kmsimport"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
)

func (a *app) importCommand() *cobra.Command {
	return group("import", "Bring in the keys of another system", a.importKMSCommand(), a.importDEKCommand())
}

// kmsFlags say where the keys are that are to be imported.
type kmsFlags struct {
	from, prefix, root string
	inPlace, dryRun    bool
}

func (a *app) importKMSCommand() *cobra.Command {
	var f kmsFlags
	c := &cobra.Command{
		Use:   "kms --from DSN [--from-prefix P] --from-root URL [--in-place] [--dry-run]",
		Short: "Import the keys of go-kms-wrapping's extras/kms",
		Long: `Imports all scopes from the tables of go-kms-wrapping's extras/kms, schema ` + kmsimport.SchemaVersion + `. All ids stay; what was sealed
with those keys opens, and nothing has to be sealed anew. Every key gets a new version, which seals from now on. A version
that was revoked there is a destroyed one here, without an id.

Without --in-place the keys come into the installation in --db, which may be the same database if --prefix is another, and
the old tables stay. It may be interrupted and repeated: what is there already is left as it is, and a scope that was there
and was shredded since, or deleted with its tenant, or renamed, is left out. With --in-place the old
tables become keyhold's in one transaction, with a new installation whose root is --root; the application's foreign keys
to and from them stay, and the old triggers and functions go. Nobody may use the old tables meanwhile, nor the old
library afterwards.

--from-root is the external root of the old system: file:PATH, env:NAME, or aead:PATH#KEYID for go-kms-wrapping's aead wrapper,
with its base64 key in a file. All keys are opened with it before anything is changed.

It prints for each scope how many keys, versions and revoked versions it has, and what became of it.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.importKMS(cmd.Context(), f) },
	}
	c.Flags().StringVar(&f.from, "from", "", "the database with the old tables, sqlite:PATH or postgres://...")
	c.Flags().StringVar(&f.prefix, "from-prefix", migrate.DefaultPrefix, "what the names of the old tables begin with")
	c.Flags().StringVar(&f.root, "from-root", "", "the old external root, file:PATH, env:NAME or aead:PATH#KEYID")
	c.Flags().BoolVar(&f.inPlace, "in-place", false, "make the old tables keyhold's")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "change nothing, and say what would be done")
	return c
}

func (a *app) importKMS(ctx context.Context, f kmsFlags) (err error) {
	if f.from == "" {
		return usageError("--from is not given", "it is the database with the old tables, sqlite:PATH or postgres://...")
	}
	if f.prefix == "" {
		return usageError("--from-prefix is empty", "leave it out for the default, "+migrate.DefaultPrefix)
	}
	if f.inPlace {
		if err := a.takePlace(f); err != nil {
			return err
		}
	}
	oldRoot, err := a.openOldRoot(ctx, f.root)
	if err != nil {
		return err
	}
	root, err := a.openRoot(ctx)
	if err != nil {
		return err
	}
	defer closeRoots(ctx, root)
	old, err := a.openOld(ctx, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.close()) }()

	scopes, opened, err := a.openOldKeys(ctx, old, oldRoot)
	defer func() {
		for _, k := range opened {
			k.Clear()
		}
	}()
	if err != nil {
		return err
	}
	if f.inPlace {
		return a.importInPlace(ctx, old, root, scopes, opened, f.dryRun)
	}
	if err := a.rehearse(ctx, root, opened); err != nil {
		return err
	}
	err = a.with(ctx, keyhold.Config{}, func(s *session) error { return a.importInto(ctx, s, opened, f.dryRun) })
	if schema, ok := errors.AsType[*keyhold.SchemaError](err); ok && schema.Foreign == kmsimport.SchemaVersion {
		return failed("schema", "the tables "+a.tables()+" in "+a.where()+" are those of extras/kms, and the keys are to come into an installation",
			"--in-place makes keyhold's of them; an installation beside them has another --prefix, with which keyhold init makes it")
	}
	return err
}

// openOldRoot opens the external root of the old system.
func (a *app) openOldRoot(ctx context.Context, given string) (kmsimport.Root, error) {
	const hint = "--from-root is an address as --root takes it, or aead:PATH#KEYID for a file with the aead wrapper's key in base64"
	scheme, rest, _ := strings.Cut(given, ":")
	switch scheme {
	case "aead":
		at := strings.LastIndex(rest, "#")
		if at <= 0 {
			return nil, usageError("an aead root is aead:PATH#KEYID", hint)
		}
		if b, err := base64.StdEncoding.DecodeString(rest[:at]); err == nil && len(b) >= 16 {
			return nil, usageError("a root's key itself is given where its place belongs", hint)
		}
		w, err := kmsimport.AEADRoot(rest[:at], rest[at+1:])
		if err != nil {
			return nil, failed("root", "cannot use the old root aead:"+rest[:at]+": "+pathReason(err), hint)
		}
		return w, nil
	case "":
		return nil, usageError("--from-root is not given", hint)
	}
	return a.openRootAt(ctx, given)
}

// openOldKeys reads the old tables and opens all keys in them. Those that were opened are returned with an error, too.
func (a *app) openOldKeys(ctx context.Context, old *oldTables, root kmsimport.Root) ([]kmsimport.Scope, []kmsimport.Keys, error) {
	limited, cancel := a.limited(ctx)
	defer cancel()
	scopes, err := old.tables.Read(limited)
	if err != nil {
		return nil, nil, old.explainRow(ctx, err)
	}
	var opened []kmsimport.Keys
	step := a.steps("opening keys", len(scopes))
	for _, s := range scopes {
		k, err := a.openOldScope(ctx, s, root)
		if err != nil {
			return scopes, opened, old.explainRow(ctx, err)
		}
		opened = append(opened, k)
		step()
	}
	return scopes, opened, nil
}

func (a *app) openOldScope(ctx context.Context, s kmsimport.Scope, root kmsimport.Root) (kmsimport.Keys, error) {
	ctx, cancel := a.limited(ctx)
	defer cancel()
	return s.Open(ctx, root)
}

// steps shows on a terminal how far something is: what it returns is to be called after each step.
func (a *app) steps(what string, n int) func() {
	if show := a.progress(); show != nil {
		return show(what, n)
	}
	return func() {}
}

// rehearse imports everything into an installation in memory, so that what cannot be imported is told before anything
// is changed.
func (a *app) rehearse(ctx context.Context, root wrapping.Wrapper, opened []kmsimport.Keys) error {
	stage, err := kmsimport.NewStage(ctx, keyhold.Config{Root: root, Timeout: a.timeout}, migrate.DefaultPrefix, 1)
	if err != nil {
		return err
	}
	return errors.Join(cannotImport(stage.Import(ctx, opened)), stage.Close())
}

// cannotImport makes a problem of a name or a number that keyhold does not take.
func cannotImport(err error) error {
	if _, invalid := errors.AsType[*keyhold.InvalidError](err); invalid {
		return failed("invalid", firstLine(err), "change it in the old system first; nothing was imported")
	}
	return err
}

// importInto imports scopes into an installation that is there.
func (a *app) importInto(ctx context.Context, s *session, opened []kmsimport.Keys, dryRun bool) error {
	results := map[key.Scope]string{}
	for _, k := range opened {
		expected, err := a.expected(ctx, s, k)
		if err != nil {
			return err
		}
		results[k.Scope] = expected
	}
	list := a.newStream(importedHeader)
	counts := map[string]int{}
	step := a.steps("importing", len(opened))
	for _, k := range opened {
		result := results[k.Scope]
		if !dryRun && result != resultRenamed {
			did, err := s.ImportScope(ctx, k.Scope, k.Keys)
			switch {
			case errors.Is(err, keyhold.ErrState):
				result = resultShredded
			case err != nil:
				return list.end(otherKeys(k.Scope, err))
			case did:
				result = resultImported
			default:
				result = resultThere
			}
		}
		counts[result]++
		if err := list.add(newImported(k, result)); err != nil {
			return err
		}
		step()
	}
	if err := list.end(nil); err != nil {
		return err
	}
	if n := counts[resultShredded]; n > 0 {
		a.say("%s left out: the keys were here and were destroyed, with the scope or its tenant, and do not come back",
			plural(n, "scope was", "scopes were"))
	}
	if n := counts[resultRenamed]; n > 0 {
		a.say("%s left out: the keys are here already, under another name", plural(n, "scope was", "scopes were"))
	}
	if dryRun {
		a.say("nothing was changed")
		return nil
	}
	a.say("imported %s, and %d were there already; keyhold doctor looks at everything",
		plural(counts[resultImported], "scope", "scopes"), counts[resultThere])
	if refs, err := s.References(ctx, ""); err == nil && len(refs) == 0 {
		a.say("nothing refers to these tables yet: as long as no foreign key does, nor a column is registered, a version in use can be destroyed")
	}
	return nil
}

// expected is the result for a scope that is not imported yet, resultThere if all its ids are there, resultRenamed if
// they are there under another name, or resultShredded.
// It is an error if the scope has other keys.
func (a *app) expected(ctx context.Context, s *session, k kmsimport.Keys) (string, error) {
	infos, err := s.Keys(ctx, k.Scope)
	if errors.Is(err, keyhold.ErrNotFound) {
		limited, cancel := a.limited(ctx)
		defer cancel()
		// The first of any: all of a scope are destroyed together.
		was, err := s.store.WasDestroyed(limited, k.Keys[0].Versions[0].ID)
		if was || err != nil {
			return resultShredded, err
		}
		switch fam, err := s.store.KeyOfVersion(limited, k.Keys[0].Versions[0].ID); {
		case errors.Is(err, keyhold.ErrNotFound):
			return resultToImport, nil
		case err == nil && fam.Root.Scope != k.Scope:
			return resultRenamed, nil
		default:
			return resultToImport, err
		}
	}
	if err != nil {
		return "", err
	}
	have := map[key.ID]bool{}
	for _, info := range infos {
		have[info.ID] = true
		for _, v := range info.Versions {
			have[v.ID] = true
		}
	}
	for _, from := range k.Keys {
		missing := !have[from.ID]
		for _, v := range from.Versions {
			missing = missing || !have[v.ID]
		}
		if missing {
			return "", otherKeys(k.Scope, keyhold.ErrExists)
		}
	}
	return resultThere, nil
}

func otherKeys(scope key.Scope, err error) error {
	if !errors.Is(err, keyhold.ErrExists) {
		return err
	}
	return failed("exists", fmt.Sprintf("the scope %q is there already, with other keys than the old system has", string(scope)),
		"an installation that is new, such as one with another --prefix, takes all")
}

const (
	importedHeader = "SCOPE\tKEYS\tVERSIONS\tREVOKED\tRESULT"

	resultImported = "imported"
	resultThere    = "already there"
	resultToImport = "to be imported"
	resultShredded = "was shredded here"
	resultRenamed  = "was renamed here"
)

// imported is what became of a scope, as --json shows it.
type imported struct {
	Scope    key.Scope `json:"scope"`
	Keys     int       `json:"keys"`
	Versions int       `json:"versions"`
	Revoked  int       `json:"revoked"`
	Result   string    `json:"result"`
}

func newImported(k kmsimport.Keys, result string) (imported, func(io.Writer)) {
	i := imported{Scope: k.Scope, Keys: len(k.Keys), Result: result}
	for _, from := range k.Keys {
		n := len(from.Versions)
		i.Versions += n
		if n > 0 {
			i.Revoked += int(from.Versions[n-1].Number) - n
		}
	}
	return i, func(w io.Writer) { line(w, i.Scope, i.Keys, i.Versions, i.Revoked, i.Result) }
}
