package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// shredded is a scope whose keys are gone, as --json shows it.
type shredded struct {
	Scope    key.Scope `json:"scope"`
	Versions int       `json:"versions"`
	Remains  []string  `json:"remains"`
}

func (a *app) scopeShredCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "shred SCOPE --yes",
		Short: "Delete all keys of a scope for ever",
		Long: `Deletes the root key of a scope and all its data keys for ever, and with them all that they sealed. It refuses, and deletes
nothing, as long as any row has the id of one of the versions, in a column that key references lists. The application's own
row of the scope stays; where keyhold's tables refer to it, deleting that row does the same.

Without --yes it deletes nothing: it lists the keys that would go, and the exit code is 2.

It says where the database may still have the keys, wrapped. Running processes notice within seconds.`,
		Args: args("SCOPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			scope := key.Scope(args[0])
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error {
				if !yes {
					return a.showShreddable(cmd.Context(), s, scope)
				}
				return a.shred(cmd.Context(), s, scope)
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "delete them")
	return c
}

func (a *app) showShreddable(ctx context.Context, s *session, scope key.Scope) error {
	if err := a.listKeys(ctx, s, []key.Scope{scope}); err != nil {
		return err
	}
	return usageError("nothing is deleted without --yes", "with --yes these keys are gone for ever, and so is all that they sealed")
}

func (a *app) shred(ctx context.Context, s *session, scope key.Scope) error {
	done, err := s.Shred(ctx, scope)
	if used, ok := errors.AsType[*keyhold.InUseError](err); ok {
		return failed("in_use", used.Error(), "delete these rows, or write them anew for another scope")
	}
	if err != nil {
		err = a.unsure(ctx, err, fmt.Sprintf("the keys of scope %q may be gone", string(scope)), look(scope))
		return unknown(ctx, s, key.Ref{Scope: scope}, err)
	}
	a.say("the keys of scope %q are gone, and all that they sealed", string(scope))
	for _, where := range done.Remains {
		a.say("wrapped, they may still be in %s", where)
	}
	return a.result(shredded{scope, done.Versions, done.Remains}, func(w io.Writer) {
		line(w, "key versions deleted", done.Versions)
	})
}
