package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// doomed is a version that would be destroyed, as --json shows it.
type doomed struct {
	stateJSON

	Created    *time.Time      `json:"created"`
	References []referenceJSON `json:"references"`
}

func (a *app) keyDestroyCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "destroy ID --yes",
		Short: "Delete a disabled version for ever",
		Long: `Deletes a disabled version for ever, and with it all that it sealed. It refuses, and destroys nothing, as long as any row has
the version's id, in a column that key references lists. Repeating it is harmless. It prints the version with its state.

Without --yes it destroys nothing: it prints what would be destroyed and what refers to it, and the exit code is 2.

The database's log, its replicas and its backups may still have the version afterwards.`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return a.showDoomed(cmd.Context(), key.ID(args[0]))
			}
			return a.changeVersion(cmd.Context(), key.ID(args[0]), func(ctx context.Context, s *session, v *version) error {
				if err := s.Destroy(ctx, v.ID); err != nil {
					return v.explain("destroy", err)
				}
				v.State = key.Destroyed
				a.say("version %d of the %v is destroyed; the database's log, its replicas and its backups may still have it", v.Number, v.Ref)
				return nil
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "destroy it")
	return c
}

// showDoomed prints what would be destroyed and what refers to it. It ends in an error that says that nothing was.
func (a *app) showDoomed(ctx context.Context, id key.ID) error {
	return a.with(ctx, keyhold.Config{}, func(s *session) error {
		v, err := a.findVersion(ctx, s, id)
		if err != nil {
			return err
		}
		refs, err := s.References(ctx, id)
		if err != nil {
			return err
		}
		d := doomed{stateJSON: v.toJSON(), Created: timeOrNil(v.Created), References: referencesToJSON(refs)}
		err = a.result(d, func(w io.Writer) {
			line(w, "key version", v.ID)
			line(w, "is", fmt.Sprintf("version %d of the %v", v.Number, v.Ref))
			line(w, "state", v.State)
			line(w, "created", timeText(v.Created))
			if len(refs) == 0 {
				line(w, "referred to by", "no column that keyhold knows of")
			}
			for _, r := range d.References {
				line(w, "referred to by", fmt.Sprintf("%s.%s, %s, %s", r.tableText(), nameText(r.Column), r.how(), plural(int(r.Rows), "row", "rows")))
			}
		})
		if err != nil {
			return err
		}
		return usageError("nothing is destroyed without --yes", v.beforeDestroying(refs))
	})
}

// beforeDestroying says what has to be done before a version can be destroyed, or what destroying it means.
func (v *version) beforeDestroying(refs []keyhold.Reference) string {
	inUse := slices.ContainsFunc(refs, func(r keyhold.Reference) bool { return r.Rows > 0 })
	switch {
	case v.State == key.Destroyed:
		return "it is destroyed already"
	case inUse && (v.State == key.Disabled || v.State == key.Retired && v.Ref.IsRoot()): // that cannot even be disabled
		return v.inUseHint(refs)
	case v.State != key.Disabled:
		return v.stateHint("destroy")
	}
	if v.Ref.IsRoot() {
		return "it wraps no data key any more; with --yes it is gone for ever, and so is all that the application itself wrapped with it"
	}
	return "with --yes it is gone for ever, and so is all that it sealed"
}
