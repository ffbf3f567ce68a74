package cli

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
)

// referenceJSON is a column that has ids of key versions in it, as --json shows it.
type referenceJSON struct {
	Schema     string `json:"schema,omitempty"`
	Table      string `json:"table"`
	Column     string `json:"column"`
	ForeignKey bool   `json:"foreign_key"` // otherwise it is registered
	Rows       int64  `json:"rows"`
}

func referencesToJSON(refs []keyhold.Reference) []referenceJSON {
	list := make([]referenceJSON, 0, len(refs))
	for _, r := range refs {
		list = append(list, referenceJSON{r.Schema, r.Table, r.Column.Column, r.ForeignKey, r.Rows})
	}
	return list
}

// how is how the column is known.
func (r *referenceJSON) how() string {
	if r.ForeignKey {
		return "foreign key"
	}
	return "registered"
}

func (r *referenceJSON) tableText() string {
	if r.Schema != "" {
		return nameText(r.Schema) + "." + nameText(r.Table)
	}
	return nameText(r.Table)
}

// nameText is a name as parseColumn takes it.
func nameText(name string) string {
	if strings.ContainsAny(name, `."`) {
		return migrate.Quote(name)
	}
	return name
}

func (a *app) keyReferencesCommand() *cobra.Command {
	var register, unregister []string
	c := &cobra.Command{
		Use:   "references [ID] [--register TABLE.COLUMN]... [--unregister TABLE.COLUMN]...",
		Short: "List the columns that have ids of key versions in them",
		Long: `Lists the columns of the application's tables that have ids of data key versions in them, and counts the rows: those with
the id of one version, or without ID, with any. It finds the columns with a foreign key to the table of versions by itself, in
every schema; others have to be registered. While a row has its id, a version is not destroyed. For a version of a root key it
lists what has a foreign key to the table of those: what the version wraps, in keyhold's own table, and columns of the
application's. Those cannot be registered.

Before it lists, --unregister forgets columns, and --register adds such as have ids without a foreign key. A column is
TABLE.COLUMN or SCHEMA.TABLE.COLUMN, with names as the database has them; one with a dot in it stands in double quotes.`,
		Args: args("[ID]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			on, err := parseColumns(register)
			if err != nil {
				return err
			}
			off, err := parseColumns(unregister)
			if err != nil {
				return err
			}
			id := key.ID("")
			if len(args) > 0 {
				id = key.ID(args[0])
				if err := id.Validate(); err != nil {
					return notVersion(id, err)
				}
			}
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error {
				if err := a.register(cmd.Context(), s, on, off); err != nil {
					return err
				}
				return a.listReferences(cmd.Context(), s, id)
			})
		},
	}
	c.Flags().StringArrayVar(&register, "register", nil, "a column that has ids of key versions in it, TABLE.COLUMN; can be repeated")
	c.Flags().StringArrayVar(&unregister, "unregister", nil, "a column that has none any more, or is gone; can be repeated")
	return c
}

// register forgets columns and then registers others.
func (a *app) register(ctx context.Context, s *session, on, off []keyhold.Column) error {
	for _, c := range off {
		err := s.Unregister(ctx, c)
		if errors.Is(err, keyhold.ErrNotFound) {
			return failed("not_registered", "the column "+quote(c.String())+" is not registered",
				"keyhold key references lists those that are; one with a foreign key is known without")
		}
		if err != nil {
			return err
		}
		a.say("the column %s is not registered any more", quote(c.String()))
	}
	for _, c := range on {
		err := s.Register(ctx, c)
		if errors.Is(err, keyhold.ErrNotFound) {
			return failed("unknown_column", "there is no column "+quote(c.String())+" in a table",
				"give it as TABLE.COLUMN or SCHEMA.TABLE.COLUMN, with names as the database has them")
		}
		if err != nil {
			return err
		}
		a.say("the column %s is registered", quote(c.String()))
	}
	return nil
}

func (a *app) listReferences(ctx context.Context, s *session, id key.ID) error {
	refs, err := s.References(ctx, id)
	if err != nil {
		return err
	}
	var rows int64
	for _, r := range refs {
		rows += r.Rows
	}
	if id != "" && rows == 0 {
		// Where nothing has its id, it may have been mistyped.
		if _, err := a.keyOfVersion(ctx, s, id); err != nil {
			return err
		}
	}
	list := a.newStream("TABLE\tCOLUMN\tKNOWN BY\tROWS")
	for _, r := range referencesToJSON(refs) {
		if err := list.add(r, func(w io.Writer) { line(w, r.tableText(), nameText(r.Column), r.how(), r.Rows) }); err != nil {
			return err
		}
	}
	if len(refs) == 0 {
		a.say("no column has a foreign key to the table of key versions, and none is registered")
	}
	return list.end(nil)
}

func parseColumns(given []string) ([]keyhold.Column, error) {
	var list []keyhold.Column
	for _, text := range given {
		c, ok := parseColumn(text)
		if !ok {
			return nil, usageError("the column "+quote(text)+" is not of the form TABLE.COLUMN or SCHEMA.TABLE.COLUMN",
				`a name with a dot or a double quote in it stands in double quotes, and a double quote in it twice, as in "a.b".key_id`)
		}
		list = append(list, c)
	}
	return list, nil
}

// parseColumn reads TABLE.COLUMN or SCHEMA.TABLE.COLUMN.
func parseColumn(text string) (c keyhold.Column, ok bool) {
	var names []string
	for more := true; more; {
		var name string
		if name, text, ok = cutName(text); !ok {
			return keyhold.Column{}, false
		}
		names = append(names, name)
		if text, more = strings.CutPrefix(text, "."); !more && text != "" {
			return keyhold.Column{}, false
		}
	}
	switch len(names) {
	case 2:
		return keyhold.Column{Table: names[0], Column: names[1]}, true
	case 3:
		return keyhold.Column{Schema: names[0], Table: names[1], Column: names[2]}, true
	}
	return keyhold.Column{}, false
}

// cutName takes the first name off a text: up to the next dot, or what stands in double quotes.
func cutName(text string) (name, rest string, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		end := strings.IndexAny(text, `."`)
		if end < 0 {
			end = len(text)
		}
		return text[:end], text[end:], end > 0
	}
	for rest = text[1:]; ; {
		part, after, found := strings.Cut(rest, `"`)
		if !found {
			return "", "", false
		}
		name += part
		if rest, found = strings.CutPrefix(after, `"`); !found {
			return name, after, name != ""
		}
		name += `"`
	}
}
