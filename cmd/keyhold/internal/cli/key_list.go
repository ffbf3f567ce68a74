package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list [SCOPE]",
		Short: "List the keys of a scope, or of all, with their versions",
		Long: `Lists root keys and data keys with all their versions. Of a key's versions the active one seals; pending, active and retired
ones open. One that is behind is wrapped under an older version of its root key, which key rewrap changes.`,
		Args: args("[SCOPE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error {
				return a.listKeys(cmd.Context(), s, as[keyhold.Scope](args))
			})
		},
	}
}

// listKeys prints the keys of the given scopes, or of all if none is given.
func (a *app) listKeys(ctx context.Context, s *session, scopes []keyhold.Scope) error {
	list := a.newStream("SCOPE\tPURPOSE\tVERSION\tSTATE\tUSE\tCREATED\tROTATE AT\tID")
	for _, scope := range scopes {
		keys, err := s.Keys(ctx, scope)
		if err != nil {
			return unknown(ctx, s, key.Ref{Scope: scope}, err)
		}
		if err := printKeys(list, keys); err != nil {
			return err
		}
	}
	if len(scopes) == 0 {
		err := eachScope(ctx, s, func(scope keyhold.Scope) error {
			keys, err := s.Keys(ctx, scope)
			if err != nil {
				return err
			}
			return printKeys(list, keys)
		})
		if err != nil {
			return err
		}
	}
	return list.end()
}

// eachScope calls f with every scope. One that is deleted meanwhile is left out.
func eachScope(ctx context.Context, s *session, f func(scope keyhold.Scope) error) error {
	for scope, err := range s.Scopes(ctx) {
		if err != nil {
			return err
		}
		if err := f(scope); err != nil && !errors.Is(err, keyhold.ErrNotFound) {
			return err
		}
	}
	return nil
}

func printKeys(list *stream, keys []keyhold.KeyInfo) error {
	for i := range keys {
		k := &keys[i]
		err := list.add(keyToJSON(k), func(w io.Writer) {
			for _, v := range k.Versions {
				state, rotate := v.State.String(), ""
				if v.Behind {
					state += ", behind"
				}
				if v.Number == k.Head {
					rotate = timeText(k.RotateAt)
				}
				line(w, k.Ref.Scope, purposeText(k.Ref), v.Number, state, v.Alg, timeText(v.Created), rotate, v.ID)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}
