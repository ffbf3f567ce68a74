package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/dekimport"
	"keyhold.example/keyhold/dekmanager"
	"keyhold.example/keyhold/key"
)

// dekPeriod is how often package dekmanager rotates a key where its options do not say otherwise.
const dekPeriod = 90 * 24 * time.Hour

// dekFlags say where the keys are that are to be imported, and where to.
type dekFlags struct {
	from, schema, prefix string
	mek                  string
	oldMEKs              []string
	scope                string
	dryRun               bool
}

func (a *app) importDEKCommand() *cobra.Command {
	var f dekFlags
	c := &cobra.Command{
		Use:   "dek --from DSN --mek raw:PATH [--old-mek raw:PATH] [--dry-run]",
		Short: "Import the keys of go-pg-dek-manager",
		Long: `Imports all keys from the tables of go-pg-dek-manager into one scope, which is made if it is not there: that of package dekmanager.
Names, versions, generators and bytes stay, and so does when a version was made. Names that are registered and have no key yet
stay registered. The old tables are only read. Whatever uses the old library has to be stopped first: what it makes afterwards
is not here.

A MEK is raw:PATH, a file with its 32 bytes or their base64. All versions are opened with the MEKs before anything is changed. A
version that is there under both with different bytes keeps its place with those of --mek; the others become a version of the
key NAME#mekID, which is not rotated.

It may be interrupted and repeated: what is there already is left as it is, whatever was rotated since, and a key that was
removed here stays removed. No program may start with the keys before it has said that it imported them.

It prints for each key its generator, how many versions it has, and what became of it.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.importDEK(cmd.Context(), f) },
	}
	c.Flags().StringVar(&f.from, "from", "", "the PostgreSQL database with the old tables, postgres://...")
	c.Flags().StringVar(&f.schema, "from-schema", dekimport.DefaultSchema, "the schema of the old tables")
	c.Flags().StringVar(&f.prefix, "from-prefix", dekimport.DefaultPrefix, "what the names of the old tables begin with")
	c.Flags().StringVar(&f.mek, "mek", "", "the MEK that the old system runs with, raw:PATH")
	c.Flags().StringArrayVar(&f.oldMEKs, "old-mek", nil, "a MEK from before, raw:PATH; can be repeated")
	c.Flags().StringVar(&f.scope, "scope", dekmanager.DefaultScope, "the scope that the keys come into")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "change nothing, and say what would be done")
	return c
}

func (f *dekFlags) check() error {
	const fromHint = "it is the PostgreSQL database with the old tables, postgres://..."
	switch {
	case f.from == "":
		return usageError("--from is not given", fromHint)
	case strings.HasPrefix(f.from, "sqlite:"):
		return usageError("--from is an SQLite file, and go-pg-dek-manager keeps its keys in PostgreSQL only", fromHint)
	case f.schema == "":
		return usageError("--from-schema is empty", "leave it out for the default, "+dekimport.DefaultSchema)
	case f.prefix == "":
		return usageError("--from-prefix is empty", "leave it out for the default, "+dekimport.DefaultPrefix)
	case f.mek == "":
		return usageError("--mek is not given", "it is the MEK that the old system runs with, raw:PATH")
	}
	return key.Scope(f.scope).Validate()
}

func (a *app) importDEK(ctx context.Context, f dekFlags) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	meks, err := readMEKs(f)
	defer func() {
		for _, m := range meks {
			m.Key.Clear()
		}
	}()
	if err != nil {
		return err
	}
	old, err := a.readDEKs(ctx, f)
	if err != nil {
		return err
	}
	keys, err := old.Open(ctx, meks[0], meks[1:]...)
	if err != nil {
		return explainDEK(err)
	}
	defer keys.Clear()
	i := dekImport{a: a, scope: key.Scope(f.scope), keys: keys, dryRun: f.dryRun}
	i.sayFound()
	return a.with(ctx, keyhold.Config{Generators: i.generators()}, func(s *session) error {
		if err := i.tryMEK(ctx, s, meks[0], f.mek); err != nil {
			return err
		}
		return i.into(ctx, s)
	})
}

// explainDEK makes a problem of what keeps old keys from being imported.
func explainDEK(err error) error {
	refused, ok := errors.AsType[*dekimport.RefusedError](err)
	switch {
	case !ok:
		return err
	case refused.Code == "usage":
		return usageError(refused.Text, refused.Hint)
	}
	return failed(refused.Code, refused.Text+"; nothing was changed", refused.Hint)
}

// dekImport is old keys on their way into a scope.
type dekImport struct {
	a      *app
	scope  key.Scope
	keys   *dekimport.Keys
	dryRun bool
}

func (i *dekImport) ref(k *dekimport.Key) key.Ref {
	return key.Ref{Scope: i.scope, Purpose: k.Name}
}

// how says how the next versions of a key are made.
func (*dekImport) how(k *dekimport.Key) keyhold.RawKey {
	how := keyhold.RawKey{Generator: k.Generator, Policy: keyhold.Policy{RotateEvery: dekPeriod}}
	if k.Aside {
		how.Policy.RotateEvery = -1 // it is there to be read
	}
	return how
}

// generators stand for those that only the application has: a name can be registered with one of them here, and
// nothing is ever made.
func (i *dekImport) generators() map[string]keyhold.Generator {
	all := map[string]keyhold.Generator{}
	for at := range i.keys.Keys {
		if name := i.keys.Keys[at].Generator; !builtInGenerator(name) {
			all[name] = func(context.Context) ([]byte, error) {
				return nil, errors.New("only the application has this generator")
			}
		}
	}
	return all
}

// builtInGenerator says whether every process has a generator of that name.
func builtInGenerator(name string) bool {
	switch name {
	case "", keyhold.DefaultGenerator, "aes192-random", "aes128-random":
		return true
	}
	return false
}

// bring imports a key, or registers its name, and says whether it was not there.
func (i *dekImport) bring(ctx context.Context, m *keyhold.Manager, k *dekimport.Key) (bool, error) {
	if len(k.Versions) > 0 {
		return m.ImportRaw(ctx, i.ref(k), i.how(k), k.Versions)
	}
	_, err := m.RawInfo(ctx, i.ref(k))
	return errors.Is(err, keyhold.ErrNotFound), m.RegisterRaw(ctx, i.ref(k), k.Generator)
}

// sayFound says what is not as somebody may expect it of the old keys.
func (i *dekImport) sayFound() {
	for _, text := range i.keys.Beside {
		i.a.say("warning: %s", text)
	}
	if n := i.keys.Covered; n > 0 {
		i.a.say("%s under a MEK that was not given: they are there under one that was, too, and nobody looked whether their bytes are the same",
			plural(n, "version is", "versions are"))
	}
	of := map[string]int{}
	due := 0
	for at := range i.keys.Keys {
		k := &i.keys.Keys[at]
		if !builtInGenerator(k.Generator) {
			of[k.Generator]++
		}
		if n := len(k.Versions); n > 0 && !k.Aside && time.Since(k.Versions[n-1].Created) >= dekPeriod {
			due++
		}
	}
	for at := range i.keys.Keys {
		name := i.keys.Keys[at].Generator
		if n := of[name]; n > 0 {
			i.a.say("the generator %s of %s is not built in: the application has to give it, by WithFunction; without it they are not rotated",
				quote(name), plural(n, "key", "keys"))
			delete(of, name)
		}
	}
	if due > 0 {
		i.a.say("%s older than %d days, and will be rotated soon after the application runs with keyhold",
			plural(due, "key has a newest version that is", "keys have newest versions that are"), dekPeriod/(24*time.Hour))
	}
}

const (
	resultRegistered = "registered"
	resultToRegister = "to be registered"
	resultRemoved    = "was removed here"
)

// into imports the keys into an installation that is there.
func (i *dekImport) into(ctx context.Context, s *session) error {
	results, err := i.expected(ctx, s)
	if err != nil {
		return err
	}
	if !i.dryRun {
		if err := s.CreateScope(ctx, i.scope); err != nil {
			return i.unfinished(ctx, err)
		}
	}
	list := i.a.newStream("NAME\tGENERATOR\tVERSIONS\tRESULT")
	counts := map[string]int{}
	step := i.a.steps("importing", len(i.keys.Keys))
	for at := range i.keys.Keys {
		k := &i.keys.Keys[at]
		result := results[at]
		if !i.dryRun && (result == resultToImport || result == resultToRegister) {
			if result, err = i.importKey(ctx, s, k, result); err != nil {
				return i.unfinished(ctx, list.end(err))
			}
		}
		counts[result]++
		if err := list.add(newImportedDEK(k, result)); err != nil {
			return i.unfinished(ctx, err)
		}
		step()
	}
	if err := list.end(nil); err != nil {
		return err
	}
	if n := counts[resultRemoved]; n > 0 {
		i.a.say("%s left out: they were here and were removed", plural(n, "key was", "keys were"))
	}
	if i.dryRun {
		i.a.say("nothing was changed")
		return nil
	}
	i.a.say("imported %s and registered %s in the scope %s, and %d were there already; keyhold doctor looks at everything",
		plural(counts[resultImported], "key", "keys"), plural(counts[resultRegistered], "name", "names"), quote(string(i.scope)), counts[resultThere])
	return nil
}

func (i *dekImport) importKey(ctx context.Context, s *session, k *dekimport.Key, expected string) (string, error) {
	did, err := i.bring(ctx, s.Manager, k)
	switch {
	case errors.Is(err, keyhold.ErrRemoved):
		return resultRemoved, nil
	case err != nil:
		return "", i.otherKey(k, err)
	case !did:
		return resultThere, nil
	case expected == resultToRegister:
		return resultRegistered, nil
	}
	return resultImported, nil
}

func (i *dekImport) otherKey(k *dekimport.Key, err error) error {
	hint := "if nothing was encrypted with the keys of this scope, keyhold scope shred " + shellQuote(string(i.scope)) +
		" deletes them, and the import can begin anew; another --scope, which dekmanager takes by WithScope, or another --prefix takes all"
	where := fmt.Sprintf("in the scope %s there is already ", quote(string(i.scope)))
	switch {
	case errors.Is(err, keyhold.ErrExists):
		return failed("exists", where+fmt.Sprintf("a key %s with other versions or another generator than the old system has", quote(string(k.Name))), hint)
	case errors.Is(err, keyhold.ErrPurpose):
		return failed("exists", where+fmt.Sprintf("a key %s for another use", quote(string(k.Name))), hint)
	}
	return err
}

// importedDEK is what became of a key, as --json shows it.
type importedDEK struct {
	Name      key.Purpose `json:"name"`
	Generator string      `json:"generator"`
	Versions  int         `json:"versions"`
	Result    string      `json:"result"`
}

func newImportedDEK(k *dekimport.Key, result string) (importedDEK, func(io.Writer)) {
	d := importedDEK{k.Name, k.Generator, len(k.Versions), result}
	if d.Generator == "" {
		d.Generator = keyhold.DefaultGenerator
	}
	return d, func(w io.Writer) { line(w, purposeText(key.Ref{Purpose: d.Name}), d.Generator, d.Versions, d.Result) }
}
