package cli

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

func (a *app) migrateCommand() *cobra.Command {
	return group("migrate", "The tables, without the keys; needs no root",
		a.migrateUpCommand(), a.migrateStatusCommand(), a.migratePrintCommand())
}

func (a *app) migrateUpCommand() *cobra.Command {
	var tables tableFlags
	c := &cobra.Command{
		Use:   "up",
		Short: "Make the tables, or bring them to this program's version",
		Long: `Applies the migrations that the database does not have yet, all or none; where there are none it changes nothing. It makes the
database file if it is not there. init does it too.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd.Context(), tables, true, func(ctx context.Context, s database) error {
				before, err := s.migrations(ctx)
				if err != nil {
					return err
				}
				if err := s.Migrate(ctx); err != nil {
					return err
				}
				after, err := s.migrations(ctx)
				if err != nil {
					return err
				}
				// Somebody else may have applied them at the same time.
				a.say("the tables have %s, %d of them new", plural(applied(after), "migration", "migrations"), applied(after)-applied(before))
				return a.printMigrations(after)
			})
		},
	}
	tables.add(c)
	return c
}

func (a *app) migrateStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "List the migrations and which the database has",
		Long:  "Lists the migrations. The exit code is 3 if the database does not have all of them.",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd.Context(), tableFlags{}, false, func(ctx context.Context, s database) error {
				list, err := s.migrations(ctx)
				if err != nil {
					return err
				}
				if err := a.printMigrations(list); err != nil {
					return err
				}
				if applied(list) < len(list) {
					return errFound
				}
				return nil
			})
		},
	}
}

func (a *app) migratePrintCommand() *cobra.Command {
	var tables tableFlags
	c := &cobra.Command{
		Use:   "print",
		Short: "Print the SQL of the migrations; needs no database",
		Long: `Prints the SQL for databases of the kind that --db or KEYHOLD_DB names, which need not be there; SQLite's if neither is
set. With --db postgres:// it is PostgreSQL's.`,
		Args: args(),
		RunE: func(*cobra.Command, []string) error {
			options, err := tables.options(a)
			if err != nil {
				return err
			}
			render := sqlitestore.Migrations
			if setting(a.db, "KEYHOLD_DB") != "" {
				where, err := a.address()
				if err != nil {
					return err
				}
				if where.isPostgres() {
					render = pgstore.Migrations
				}
			}
			fsys, err := render(options)
			if err != nil {
				return err
			}
			files, err := migrate.List(fsys)
			if err != nil {
				return err
			}
			list := a.newStream("")
			for _, f := range files {
				text, err := fs.ReadFile(fsys, f.File)
				if err != nil {
					return err
				}
				v := map[string]any{"number": f.Number, "name": f.Name, "file": f.File, "sql": string(text)}
				if a.json {
					err = list.add(v, nil)
				} else {
					// As it is, without the alignment of tables.
					err = a.write(fmt.Appendf(nil, "-- %s\n\n%s\n", f.File, text))
				}
				if err != nil {
					return err
				}
			}
			return list.end(nil)
		},
	}
	tables.add(c)
	return c
}

// withStore opens the database without its installation, and limits the time of all that f does.
func (a *app) withStore(
	ctx context.Context, tables tableFlags, create bool, f func(context.Context, database) error,
) error {
	ctx, cancel := a.limited(ctx)
	defer cancel()
	s, err := a.openStore(ctx, tables, create)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }() // nothing is under way any more
	return f(ctx, s)
}

func applied(list []migration) int {
	n := 0
	for _, m := range list {
		if m.Applied {
			n++
		}
	}
	return n
}

func (a *app) printMigrations(migrations []migration) error {
	list := a.newStream("NUMBER\tNAME\tAPPLIED")
	for _, m := range migrations {
		v := map[string]any{"number": m.Number, "name": m.Name, "applied": m.Applied}
		if err := list.add(v, func(w io.Writer) { line(w, m.Number, m.Name, m.Applied) }); err != nil {
			return err
		}
	}
	return list.end(nil)
}
