// Package cli is the commands of the keyhold program, one file for each.
package cli

import (
	"context"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/migrate"
)

// Exit codes. They are a promise to scripts.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitFound  = 3
)

const about = `keyhold keeps the encryption keys of an application in the database that the application already runs.

Start with "keyhold demo": the whole life of a key, on real data, in seconds. Then:

  keyhold root keygen root.key
  export KEYHOLD_DB=sqlite:keys.db KEYHOLD_ROOT=file:root.key
  keyhold init
  keyhold scope create org_42 --purpose client-secrets
  keyhold seal --scope org_42 --purpose client-secrets <secret >sealed
  keyhold open <sealed

Keys that are due are rotated by the application's processes, with Manager.Run, or by "keyhold run"; key policy says when.

Where things are: --db, --root and --pin, or else the environment's KEYHOLD_DB, KEYHOLD_ROOT and KEYHOLD_PIN (pins
separated by commas). A database is sqlite:PATH; or postgres://USER@HOST/DATABASE, or keywords and values such as
"service=app", both as PostgreSQL's own programs read them: what an address does not say comes from the PG* variables, the
service file and the password file, so that postgres:// alone will do, and no password has to be in it. A root is file:PATH;
env:NAME, an environment variable that holds the root's line; raw:PATH, a file with 32 bytes of your own, or their base64; or the
key of a KMS, an HSM or a Vault: transit:, awskms:, gcpckms:, azurekeyvault:, ocikms:, alicloudkms: or pkcs11:, as docs/roots.md
has them, whose credentials come from where that vendor's own programs have them. Only init, migrate up and demo make a database
file that is not there; databases of PostgreSQL they do not make.

To move to another root, give it as --root, and the one before as --old-root or in KEYHOLD_OLD_ROOT (several separated by white
space), or use root add and root activate. With a root that is not the active one, everything works but rotating keys and changing
roots.

What comes where: data on standard output, words on standard error. With --json a result is one value, or an array with one
element on each line, and there are no words; an error is one line on standard error,
{"error":{"code":"not_found","message":"...","hint":"..."}}, after whatever was printed of the result. What seal, open and
help print stays as it is. Standard input or output that is closed counts as /dev/null: empty, and lost.

Exit codes: 0 done; 1 failed; 2 wrong use; 3 done, and found something (status, doctor, migrate status).`

// app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer

	db, root, prefix, schema string
	pins, oldRoots           []string
	timeout                  time.Duration
	json                     bool

	given    func(flag string) bool // whether the command line has it
	commands *regexp.Regexp         // see pasted
}

// Main runs the program with the given arguments, which do not include its name, and returns its exit code. After
// ctx has ended it returns soon, with an error.
func Main(ctx context.Context, args []string, in io.Reader, out, err io.Writer) int {
	a := &app{in: in, out: out, err: err}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(err)
	failure := root.ExecuteContext(ctx)
	if failure != nil && a.explain(ctx, failure).exit == exitUsage && slices.Contains(args, "--json") {
		a.json = true // what is wrong may have kept the flag from being parsed
	}
	return a.report(ctx, failure)
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:               "keyhold",
		Short:             "Encryption keys of an application, in its own database",
		Long:              about,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return a.checkFlags(c) },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(err.Error(), cmd.CommandPath()+" --help lists the flags")
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.db, "db", "", "the database, sqlite:PATH or postgres://... (or KEYHOLD_DB)")
	flags.StringVar(&a.root, "root", "", "the external root: file:PATH, env:NAME, raw:PATH, transit:..., awskms:... and others (or KEYHOLD_ROOT)")
	flags.StringArrayVar(&a.oldRoots, "old-root", nil,
		"a root that --root takes the place of; can be repeated (or KEYHOLD_OLD_ROOT, separated by white space)")
	flags.StringArrayVar(&a.pins, "pin", nil, "a pin that the installation may have, as init printed it; can be repeated (or KEYHOLD_PIN)")
	flags.StringVar(&a.prefix, "prefix", migrate.DefaultPrefix, "what the names of the tables begin with")
	flags.StringVar(&a.schema, "schema", "", "on PostgreSQL, the schema of the tables (default where the search_path finds them)")
	a.timeout = keyhold.DefaultTimeout
	flags.Var((*limit)(&a.timeout), "timeout", "how long one call to the database or the root may take; negative is for ever, 0 is refused")
	flags.BoolVar(&a.json, "json", false, "print JSON")

	root.SetHelpCommand(helpCommand())
	root.AddCommand(
		a.demoCommand(), a.rootCommand(), a.initCommand(), a.scopeCommand(), a.keyCommand(), a.sealCommand(), a.openCommand(),
		a.runCommand(), a.statusCommand(), a.doctorCommand(), a.migrateCommand(), a.importCommand(), a.versionCommand(),
	)
	a.commands = commandsOf(root)
	return root
}

// helpCommand is cobra's, but a command that is not there is wrong use.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Say how a command is used",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError("there is no command "+quote(strings.Join(args, " ")), "keyhold help lists the commands")
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError(cmd.CommandPath()+" needs a command", cmd.CommandPath()+" --help lists them")
			}
			return usageError(cmd.CommandPath()+" has no command "+quote(args[0]), cmd.CommandPath()+" --help lists them")
		},
	}
	c.AddCommand(commands...)
	return c
}

// args checks the number of arguments; names are theirs, in brackets where one may be left out.
func args(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		required := 0
		for _, n := range names {
			if !strings.HasPrefix(n, "[") {
				required++
			}
		}
		switch hint := cmd.CommandPath() + " --help shows how it is used"; {
		case len(given) < required:
			return usageError(cmd.CommandPath()+" needs "+names[len(given)], hint)
		case len(given) > len(names):
			return usageError("unexpected argument "+quote(given[len(names)]), hint)
		}
		return nil
	}
}
