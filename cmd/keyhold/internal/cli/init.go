package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/localroot"
)

func (a *app) initCommand() *cobra.Command {
	var tables tableFlags
	var escrow escrowFlags
	c := &cobra.Command{
		Use:   "init [--escrow FILE --recipient R... [--shares K]]",
		Short: "Make tables, installation key and first root slot; print the pin",
		Long: `Makes what is not there yet: the database file, the tables, the installation key, and its first slot, which the external
root seals. It prints the installation's pin. Where there is an installation already, it changes nothing, prints the same
pin, and the exit code is 0 too. With a pin given, or an old root, it makes nothing.

With --escrow it writes a recovery file, too, which opens the installation without any root: root escrow does that later. It
makes nothing where that file is there already or a recipient is none.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			files, err := escrow.prepare(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return a.runInit(cmd, tables, files)
		},
	}
	tables.add(c)
	escrow.add(c, true)
	return c
}

func (a *app) runInit(cmd *cobra.Command, tables tableFlags, files *recoveryFiles) error {
	ctx := cmd.Context()
	roots, err := a.openRoots(ctx)
	if err != nil {
		return err
	}
	defer roots.end(ctx)
	pins, err := a.allPins()
	if err != nil {
		return err
	}
	// With a pin, or an old root, the installation is expected to be there.
	create := len(pins) == 0 && len(roots.old) == 0
	s, err := a.openStore(ctx, tables, create)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()

	m, err := a.manager(ctx, s, keyhold.Config{Initialize: len(roots.old) == 0}, roots)
	if err != nil {
		return a.nothingToTakeOver(roots, err)
	}
	defer func() { _ = m.Close() }()
	where, err := a.address()
	if err != nil {
		return err
	}
	info, err := m.Installation(ctx)
	if err != nil {
		return err
	}
	if files.wanted() {
		if err := m.Escrow(ctx, files.write); err != nil {
			there := "the installation is there"
			if m.Made() {
				there = "the installation was made"
			}
			return a.noEscrow(ctx, there+" and has the pin "+m.Pin(), files, err)
		}
	}
	if err := a.sayInit(ctx, m, roots.own, files); err != nil {
		return err
	}
	if a.json {
		return writeError(encode(a.out, map[string]any{
			"created": m.Made(), "database": where.shown, "installation": info.ID, "pin": info.Pin,
			"prefix": a.prefix, "recovery_files": files.files(), "root": roots.own.given, "schema": a.schema,
		}))
	}
	return a.write([]byte(info.Pin + "\n"))
}

// nothingToTakeOver says of an old root that there is no installation that it could open.
func (a *app) nothingToTakeOver(roots *rootSet, err error) error {
	schema, ok := errors.AsType[*keyhold.SchemaError](err)
	missing := ok && schema.Have == 0 && schema.Foreign == ""
	if len(roots.old) == 0 || !missing && !errors.Is(err, keyhold.ErrNotInitialized) {
		return err
	}
	return failed("not_initialized", "there is no installation in "+a.where()+", with tables "+a.tables()+
		", and an old root says that there is one: nothing was made", lookAtDatabase)
}

const lookAtDatabase = "look at --db; without --old-root and KEYHOLD_OLD_ROOT, keyhold init makes one"

// sayInit says what init did, and what follows from that.
func (a *app) sayInit(ctx context.Context, m *keyhold.Manager, own *root, files *recoveryFiles) error {
	if !m.Made() {
		a.say("the installation in %s is there already, and was not changed; its pin is below", a.shown())
		a.sayWritten(files)
		return nil
	}
	a.say("made a new installation in %s, with the tables %s", a.shown(), a.tables())
	a.sayWritten(files)
	local, err := isLocal(ctx, own)
	switch {
	case err != nil:
		return err
	case files.wanted() && local:
		a.say("its root is %s; keep a copy of that, too, in a safe place, apart from the database's backups", own.given)
	case files.wanted():
		a.say("its root is %s", own.given)
	case local:
		a.say("its root is %s; whoever loses it loses every key in this database, so keep a copy in a safe place, "+
			"apart from the database's backups; or have keyhold root escrow FILE --recipient R write a recovery file, which does without it", own.given)
	default:
		a.say("its root is %s; without it every key in this database is lost: keyhold root add URL gives it another one besides, "+
			"and keyhold root escrow FILE --recipient R writes a recovery file, which does without", own.given)
	}
	a.say("the pin below is not secret: give it as --pin or KEYHOLD_PIN, and nobody can put another installation in this one's place")
	return nil
}

// isLocal says whether a root is in a file, or in a variable of the environment.
func isLocal(ctx context.Context, r *root) (bool, error) {
	its, err := r.Type(ctx)
	return its == localroot.WrapperType || its == localroot.RawWrapperType, err
}
