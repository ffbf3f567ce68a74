package cli

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// rewrapped is what was done for a scope, as --json shows it.
type rewrapped struct {
	Scope     key.Scope `json:"scope"`
	Rewrapped int       `json:"rewrapped"`
}

func (a *app) keyRewrapCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "rewrap [SCOPE | --all]",
		Short: "Wrap data keys under the newest version of their root key",
		Long: `Wraps every version of a scope's data keys under the newest version of its root key, where it is not yet. The data keys, and
what they sealed, stay the same. It may be interrupted and repeated. It prints for each scope how many versions it wrapped.
With --all, a scope whose keys are not as keyhold stored them is left out, and the exit code is 1.`,
		Args: args("[SCOPE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if all == (len(args) == 1) {
				return usageError("either a scope or --all has to be given", "")
			}
			return a.with(ctx, keyhold.Config{}, func(s *session) error {
				list := a.newStream("SCOPE\tREWRAPPED")
				// What was done is shown also where some of it could not be.
				show := func(scope key.Scope, n int, err error) error {
					if err != nil && n == 0 {
						return err
					}
					return errors.Join(err, list.add(rewrapped{scope, n}, func(w io.Writer) { line(w, scope, n) }))
				}
				if all {
					return list.end(rewrapAll(ctx, s, show))
				}
				scope := key.Scope(args[0])
				n, err := s.Rewrap(ctx, scope)
				return list.end(unknown(ctx, s, key.Ref{Scope: scope}, show(scope, n, err)))
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every scope")
	return c
}

// rewrapAll rewraps all scopes, and then shows what was done for each, in their order. If it ended before that, or
// something else is wrong with one than that it is not as keyhold stored it, it shows those of which something was
// done: of the others it is not known whether there is anything to do.
func rewrapAll(ctx context.Context, s *session, show func(scope key.Scope, n int, err error) error) error {
	type result struct {
		n   int
		err error
	}
	results := map[key.Scope]result{}
	told := true
	_, err := s.RewrapAll(ctx, func(scope key.Scope, n int, err error) {
		results[scope] = result{n, err}
		integrity := (*keyhold.IntegrityError)(nil)
		told = told && (err == nil || errors.As(err, &integrity))
	})
	if told && !errors.Is(err, keyhold.ErrUnavailable) && !errors.Is(err, keyhold.ErrClosed) && ctx.Err() == nil {
		return eachScope(s.Scopes(ctx), func(scope key.Scope) error {
			return show(scope, results[scope].n, results[scope].err)
		})
	}
	for _, scope := range slices.Sorted(maps.Keys(results)) {
		if n := results[scope].n; n > 0 {
			if err := show(scope, n, nil); err != nil {
				return err
			}
		}
	}
	return onlyScopes(err)
}
