package cli

import (
	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
)

func (a *app) initCommand() *cobra.Command {
	var tables tableFlags
	c := &cobra.Command{
		Use:   "init",
		Short: "Make tables, installation key and first root slot; print the pin",
		Long: `Makes what is not there yet: the database file, the tables, the installation key, and its first slot, which the external
root seals. It prints the installation's pin. Where there is an installation already, it changes nothing, prints the same
pin, and the exit code is 0 too. With a pin given it makes nothing.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runInit(cmd, tables) },
	}
	tables.add(c)
	return c
}

func (a *app) runInit(cmd *cobra.Command, tables tableFlags) error {
	ctx := cmd.Context()
	root, given, err := a.openRoot()
	if err != nil {
		return err
	}
	pins, err := a.allPins()
	if err != nil {
		return err
	}
	// With a pin, the installation is expected to be there.
	s, err := a.openStore(ctx, tables, len(pins) == 0)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()

	m, err := a.manager(ctx, s, keyhold.Config{Root: root, Initialize: true}, given)
	if err != nil {
		return err
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
	if m.Made() {
		a.say("made a new installation in %s, with the tables %s", where.shown, a.tables())
		a.say("its root is %s; "+
			"whoever loses it loses every key in this database, so keep a copy in a safe place, apart from the database's backups", given)
		a.say("the pin below is not secret: give it as --pin or KEYHOLD_PIN, and nobody can put another installation in this one's place")
	} else {
		a.say("the installation in %s is there already, and was not changed; its pin:", where.shown)
	}
	if a.json {
		return writeError(encode(a.out, map[string]any{
			"created": m.Made(), "database": where.shown, "installation": info.ID, "pin": info.Pin,
			"prefix": a.prefix, "root": given, "schema": a.schema,
		}))
	}
	return a.write([]byte(info.Pin + "\n"))
}
