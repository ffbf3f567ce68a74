package cli

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// reconciled is what was done and found, as --json shows it.
type reconciled struct {
	Created int           `json:"created"` // data keys
	Dropped []key.Purpose `json:"dropped"` // purposes of the installation that were not given
}

func (a *app) scopeReconcileCommand() *cobra.Command {
	var purposes purposeFlags
	c := &cobra.Command{
		Use:   "reconcile --purpose P... [--raw-purpose P]... [--index-purpose P]...",
		Short: "Make the data keys that scopes lack",
		Long: `Gives every scope the data keys that it lacks of the purposes given, which are all that the application has; they are stored
as the installation's. It prints how many keys it made. Purposes that were stored before and are not given now are reported, on
standard error, and with --json as "dropped"; their keys stay as they are. It may be interrupted, repeated, and run by several
at once. A scope that lacks a key and whose keys are not as keyhold stored them is left out, and the exit code is 1; keyhold
doctor looks at all scopes.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := purposes.config()
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), config, func(s *session) error {
				done, err := s.Reconcile(cmd.Context())
				err = onlyScopes(err)
				if err != nil && done.Created == 0 {
					return err
				}
				for _, p := range done.Dropped {
					a.say("the purpose %q, which was given before, is not given now: its keys stay as they are", string(p))
				}
				result := reconciled{done.Created, append([]key.Purpose{}, done.Dropped...)}
				return errors.Join(err, a.result(result, func(w io.Writer) { line(w, "data keys created", done.Created) }))
			})
		},
	}
	purposes.add(c)
	return c
}

// onlyScopes makes one error of those that [keyhold.Manager.Reconcile] joins: what ended it; or if nothing did, the
// first of the scopes that it left out, with how many more there are. Each is in it once for every purpose that it
// lacks.
func onlyScopes(err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	all := joined.Unwrap()
	broken := map[string]bool{}
	for _, err := range all {
		integrity, ok := errors.AsType[*keyhold.IntegrityError](err)
		if !ok || errors.Is(err, keyhold.ErrUnavailable) {
			return err
		}
		broken[integrity.Subject] = true
	}
	if len(broken) > 1 {
		return &brokenError{all[0], len(broken) - 1}
	}
	return all[0]
}
