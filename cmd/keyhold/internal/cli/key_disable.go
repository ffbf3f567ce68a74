package cli

import (
	"context"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func (a *app) keyDisableCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "disable ID",
		Short: "Take a version out of use, until it is enabled",
		Long: `Takes a retired version of a key out of use: nothing that it sealed opens until key enable, in other processes after 7 s at
most. That is how a version is given up: what nobody misses while it is disabled may be destroyed. The version that seals, the
head, cannot be disabled, nor can a version of a root key that still wraps data keys. Repeating it is harmless. It prints the
version with its state.`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeVersion(cmd.Context(), key.ID(args[0]), func(ctx context.Context, s *session, v *version) error {
				if err := s.Disable(ctx, v.ID); err != nil {
					return v.explain("disable", err)
				}
				v.State = key.Disabled
				what := "sealed"
				if v.Ref.IsRoot() {
					what = "wrapped for the application itself"
				}
				a.say("nothing that version %d of the %v %s opens, until keyhold key enable %s", v.Number, v.Ref, what, v.ID)
				return nil
			})
		},
	}
}

func (a *app) keyEnableCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "enable ID",
		Short: "Take a disabled version into use again, to open with",
		Long: `Makes a disabled version a retired one again, which opens what it sealed. A version that is not disabled stays as it is. It
prints the version with its state.`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeVersion(cmd.Context(), key.ID(args[0]), func(ctx context.Context, s *session, v *version) error {
				if err := s.Enable(ctx, v.ID); err != nil {
					return v.explain("enable", err)
				}
				if v.State == key.Disabled {
					v.State = key.Retired
				}
				return nil
			})
		},
	}
}

// changeVersion lets change do something to a version, and prints the version as it is then.
func (a *app) changeVersion(ctx context.Context, id key.ID, change func(context.Context, *session, *version) error) error {
	return a.with(ctx, keyhold.Config{}, func(s *session) error {
		v, err := a.findVersion(ctx, s, id)
		if err != nil {
			return err
		}
		if err := change(ctx, s, &v); err != nil {
			return err
		}
		return a.result(v.toJSON(), v.print)
	})
}
