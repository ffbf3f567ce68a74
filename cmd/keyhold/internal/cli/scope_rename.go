package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
)

func (a *app) scopeRenameCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rename OLD NEW",
		Short: "Confirm that the application renamed a scope",
		Long: `Confirms that the application renamed a scope, whose keys are refused until then. It does not rename: the application's own
update does, which its foreign key carries to the keys, or where there is none, an update of the scope_id of the root key.

Who confirms vouches for the new name: from then on whoever uses the scope NEW has the keys that were OLD's. Take OLD from
whoever renamed, not from the database, where somebody may have given one tenant's keys to another. Repeating it is
harmless. It prints the scope's keys, as key list does.`,
		Args: args("OLD", "NEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error {
				old, renamed := keyhold.Scope(args[0]), keyhold.Scope(args[1])
				_, before := s.Keys(cmd.Context(), renamed)
				if err := s.RenameScope(cmd.Context(), old, renamed); err != nil {
					return a.explainRename(cmd.Context(), s, old, renamed, err)
				}
				switch _, other := s.Keys(cmd.Context(), old); {
				case before == nil && other == nil:
					a.say("scope %q was confirmed under this name already, and scope %q is another one: nothing was changed", args[1], args[0])
				case before == nil:
					a.say("scope %q was confirmed under this name already: nothing was changed", args[1])
				default:
					a.say("scope %q is confirmed under this name", args[1])
				}
				return a.listKeys(cmd.Context(), s, []keyhold.Scope{renamed})
			})
		},
	}
}

// explainRename says what to do about a scope that cannot be confirmed.
func (a *app) explainRename(ctx context.Context, s *session, old, renamed keyhold.Scope, err error) error {
	if broken, ok := errors.AsType[*keyhold.IntegrityError](err); ok {
		return failed("integrity", brokenText(broken.Error()),
			"OLD has to be the name that the scope had when its keys were made or when it was last confirmed; keyhold doctor looks at everything")
	}
	if !errors.Is(err, keyhold.ErrNotFound) {
		return a.unsure(ctx, err, fmt.Sprintf("scope %q may be confirmed under this name", string(renamed)), look(renamed))
	}
	_, err = s.Keys(ctx, old)
	if _, broken := errors.AsType[*keyhold.IntegrityError](err); err != nil && !broken {
		return unknown(ctx, s, keyhold.Ref{Scope: renamed}, keyhold.ErrNotFound)
	}
	update := fmt.Sprintf("update %sroot_key set scope_id = %s where scope_id = %s",
		strings.TrimSuffix(a.tables(), "*"), literal(string(renamed)), literal(string(old)))
	return failed("not_renamed", fmt.Sprintf("there is no scope %q yet, scope %q still has its old name", string(renamed), string(old)),
		"rename it in the application's table of scopes, or where none is tied to the keys: "+update)
}

// literal is a word as SQL has it.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
