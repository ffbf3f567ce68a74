package cli

import (
	"context"
	"errors"
	"io"
	"iter"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list [SCOPE]",
		Short: "List the keys of a scope, or of all, with their versions",
		Long: `Lists root keys and data keys with all their versions. Of a key's versions the active one seals; pending, active and retired
ones open, disabled and destroyed ones do not. Of a disabled one it says since when it is. One that is behind is wrapped under
an older version of its root key, which key rewrap changes.`,
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
	show := func(scope keyhold.Scope) error {
		keys, err := s.Keys(ctx, scope)
		if err != nil {
			return err
		}
		return printKeys(list, keys)
	}
	if len(scopes) == 0 {
		return list.end(eachScope(s.Scopes(ctx), show))
	}
	for _, scope := range scopes {
		if err := show(scope); err != nil {
			return list.end(unknown(ctx, s, key.Ref{Scope: scope}, err))
		}
	}
	return list.end(nil)
}

// eachScope calls f with every scope. One that is deleted meanwhile is left out. One whose keys are not as keyhold
// stored them does not stop it: at the end, the first such error is returned, in a [*brokenError] if there were more.
// Any other error ends it.
func eachScope(scopes iter.Seq2[keyhold.Scope, error], f func(scope keyhold.Scope) error) error {
	var first error
	broken := 0
	for scope, err := range scopes {
		if err != nil {
			return err
		}
		err = f(scope)
		switch integrity := (*keyhold.IntegrityError)(nil); {
		case err == nil, errors.Is(err, keyhold.ErrNotFound):
		case errors.As(err, &integrity) && !errors.Is(err, keyhold.ErrUnavailable):
			broken++
			if first == nil {
				first = err
			}
		default:
			return err
		}
	}
	if broken > 1 {
		return &brokenError{first, broken - 1}
	}
	return first
}

// brokenError is the first of several scopes whose keys are not as keyhold stored them.
type brokenError struct {
	error

	more int
}

func (e *brokenError) Unwrap() error { return e.error }

func printKeys(list *stream, keys []keyhold.KeyInfo) error {
	for i := range keys {
		k := &keys[i]
		err := list.add(keyToJSON(k), func(w io.Writer) {
			for _, v := range k.Versions {
				state, rotate := v.State.String(), ""
				if !v.Disabled.IsZero() {
					state += " since " + timeText(v.Disabled)
				}
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
