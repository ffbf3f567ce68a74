package cli

import (
	"context"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func (a *app) keyDisableCommand() *cobra.Command {
	var wait waitFlags
	c := &cobra.Command{
		Use:   "disable ID [--wait]",
		Short: "Take a version out of use, until it is enabled",
		Long: `Takes a retired version of a key out of use: nothing that it sealed opens until key enable, in other processes after 7 s at
most. That is how a version is given up: what nobody misses while it is disabled may be destroyed. The version that seals, the
head, cannot be disabled, nor can a version of a root key that still wraps data keys. Repeating it is harmless. It prints the
version with its state.`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := wait.check(cmd); err != nil {
				return err
			}
			return a.changeVersion(cmd.Context(), keyhold.Config{}, key.ID(args[0]), func(ctx context.Context, s *session, v *version) error {
				if err := s.Disable(ctx, v.ID); err != nil {
					return v.explain("disable", a.unsure(ctx, err, v.may("disabled"), look(v.Ref.Scope)))
				}
				v.State = key.Disabled
				what := "sealed"
				if v.Ref.IsRoot() {
					what = "wrapped for the application itself"
				}
				a.say("nothing that version %d of the %v %s opens, until keyhold key enable %s", v.Number, v.Ref, what, v.ID)
				if err := a.result(v.toJSON(), v.print); err != nil || !wait.wait {
					return err
				}
				return a.await(ctx, s, &wait, "the version is disabled")
			})
		},
	}
	wait.add(c, "end when every process that seals has seen it")
	return c
}

func (a *app) keyEnableCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "enable ID",
		Short: "Take a disabled version into use again, to open with",
		Long: `Makes a disabled version a retired one again, which opens what it sealed. A version that is not disabled stays as it is. It
prints the version with its state.`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeVersion(cmd.Context(), keyhold.Config{}, key.ID(args[0]), func(ctx context.Context, s *session, v *version) error {
				if err := s.Enable(ctx, v.ID); err != nil {
					return v.explain("enable", a.unsure(ctx, err, v.may("enabled"), look(v.Ref.Scope)))
				}
				if v.State == key.Disabled {
					v.State = key.Retired
				}
				return a.result(v.toJSON(), v.print)
			})
		},
	}
}

// changeVersion lets change do something to a version, and print it as it is then.
func (a *app) changeVersion(
	ctx context.Context, config keyhold.Config, id key.ID, change func(context.Context, *session, *version) error,
) error {
	return a.with(ctx, config, func(s *session) error {
		v, err := a.findVersion(ctx, s, id)
		if err != nil {
			return err
		}
		return change(ctx, s, &v)
	})
}
