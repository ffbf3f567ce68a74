package cli

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
)

func (a *app) scopeCommand() *cobra.Command {
	return group("scope", "Scopes, such as tenants",
		a.scopeCreateCommand(), a.scopeListCommand(), a.scopeRenameCommand(), a.scopeReconcileCommand(),
		a.scopeShredCommand())
}

// purposeFlags are the purposes of data keys, by what the keys are for.
type purposeFlags struct{ message, raw, index []string }

func (f *purposeFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.message, "purpose", nil, "what a data key for messages is for; can be repeated")
	c.Flags().StringArrayVar(&f.raw, "raw-purpose", nil,
		"what a data key of raw bytes is for, which the application uses itself; can be repeated")
	c.Flags().StringArrayVar(&f.index, "index-purpose", nil, "what a data key for blind indexes is for; can be repeated")
}

func (f *purposeFlags) config() (keyhold.Config, error) {
	given := slices.Sorted(slices.Values(slices.Concat(f.message, f.raw, f.index)))
	if len(given) == 0 {
		return keyhold.Config{}, usageError("no purpose is given", "give --purpose, --raw-purpose or --index-purpose, each as often as needed")
	}
	for i := 1; i < len(given); i++ {
		if given[i] == given[i-1] {
			return keyhold.Config{}, usageError("the purpose "+quote(given[i])+" is given twice", "one data key is for one use")
		}
	}
	return keyhold.Config{
		Purposes:      as[keyhold.Purpose](f.message),
		RawPurposes:   as[keyhold.Purpose](f.raw),
		IndexPurposes: as[keyhold.Purpose](f.index),
	}, nil
}

func (a *app) scopeCreateCommand() *cobra.Command {
	var purposes purposeFlags
	c := &cobra.Command{
		Use:   "create SCOPE --purpose P...",
		Short: "Make the keys of a scope",
		Long: `Makes the root key of a scope and a data key for each purpose. Where the scope is there already, it makes the data keys
that are missing. It prints the scope's keys, as key list does.`,
		Args: args("SCOPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := purposes.config()
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), config, func(s *session) error {
				scope := keyhold.Scope(args[0])
				if err := s.CreateScope(cmd.Context(), scope); err != nil {
					return a.unsure(cmd.Context(), err, fmt.Sprintf("scope %q may have its keys", args[0]), look(scope))
				}
				a.say("scope %q has its keys", args[0])
				return a.listKeys(cmd.Context(), s, []keyhold.Scope{scope})
			})
		},
	}
	purposes.add(c)
	return c
}

func (a *app) scopeListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all scopes, one on each line",
		Args:  args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error {
				list := a.newStream("")
				return list.end(eachScope(s.Scopes(cmd.Context()), func(scope keyhold.Scope) error {
					return list.add(map[string]keyhold.Scope{"scope": scope}, func(w io.Writer) { line(w, scope) })
				}))
			})
		},
	}
}

// as gives a list of words their type.
func as[T ~string](words []string) []T {
	list := make([]T, 0, len(words))
	for _, w := range words {
		list = append(list, T(w))
	}
	return list
}
