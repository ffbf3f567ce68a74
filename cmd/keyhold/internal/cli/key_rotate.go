package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// rotated is a key that was rotated, as --json shows it.
type rotated struct {
	Scope   key.Scope   `json:"scope"`
	Kind    string      `json:"kind"`
	Purpose key.Purpose `json:"purpose,omitempty"`
	Version key.Version `json:"version"`
}

func (a *app) keyRotateCommand() *cobra.Command {
	var purpose string
	var rewrap bool
	var wait waitFlags
	c := &cobra.Command{
		Use:   "rotate SCOPE [--purpose P] [--rewrap] [--wait]",
		Short: "Add a version to a key and make it the one that seals",
		Long: `Adds a version to the data key for a purpose, or without --purpose to the root key and then to every data key of the scope.
What was sealed before opens as it did. It prints each key with its new version, also those that were rotated before an error.
With --rewrap it then does what key rewrap does, which goes on where that is interrupted.`,
		Args: args("SCOPE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := wait.check(cmd); err != nil {
				return err
			}
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error {
				ref := key.Ref{Scope: key.Scope(args[0]), Purpose: key.Purpose(purpose)}
				if err := a.rotate(cmd, s, ref, !cmd.Flags().Changed("purpose"), rewrap); err != nil || !wait.wait {
					return err
				}
				return a.await(cmd.Context(), s, &wait, "the rotation is done")
			})
		},
	}
	c.Flags().StringVar(&purpose, "purpose", "", "the data key to rotate")
	c.Flags().BoolVar(&rewrap, "rewrap", false, "wrap the scope's data keys under the newest version of its root key afterwards")
	wait.add(c, "end when no process seals with the old version any more")
	return c
}

func (a *app) rotate(cmd *cobra.Command, s *session, ref key.Ref, all, rewrap bool) error {
	ctx := cmd.Context()
	if !all {
		// An empty purpose would name the root key.
		if err := ref.Purpose.Validate(); err != nil {
			return err
		}
	}
	keys, err := s.Keys(ctx, ref.Scope)
	if err != nil {
		return unknown(ctx, s, key.Ref{Scope: ref.Scope}, err)
	}
	list := a.newStream("SCOPE\tPURPOSE\tVERSION")
	found := false
	for _, k := range keys { // the root key is the first
		if !all && k.Ref != ref {
			continue
		}
		found = true
		if err := a.rotateOne(ctx, s, &k, list); err != nil {
			return list.end(unknown(ctx, s, k.Ref, err))
		}
	}
	if !found {
		return unknown(ctx, s, ref, keyhold.ErrNotFound)
	}
	switch {
	case rewrap:
		return list.end(a.rewrapRotated(ctx, s, ref.Scope))
	case all:
		a.say("keyhold key rewrap %s brings what is wrapped under the old root key under the new one", argument(string(ref.Scope)))
	}
	return list.end(nil)
}

func (a *app) rotateOne(ctx context.Context, s *session, k *keyhold.KeyInfo, list *stream) error {
	version, err := s.Rotate(ctx, k.Ref)
	if err != nil {
		return a.unsure(ctx, err, fmt.Sprintf("the rotation of the %v may have been done", k.Ref),
			look(k.Ref.Scope)+"; the next rotation, or keyhold run, makes a pending version the head")
	}
	if k.Versions[len(k.Versions)-1].Alg == key.BlindIndex {
		a.say("the key %q makes blind indexes: new ones differ from those that are stored until they are written anew", string(k.Ref.Purpose))
	}
	return list.add(rotated{k.Ref.Scope, kindOf(k.Ref), k.Ref.Purpose, version}, func(w io.Writer) {
		line(w, k.Ref.Scope, purposeText(k.Ref), version)
	})
}

// rewrapRotated wraps a scope's data keys anew, and says how many versions, also where some could not be.
func (a *app) rewrapRotated(ctx context.Context, s *session, scope key.Scope) error {
	n, err := s.Rewrap(ctx, scope)
	if err == nil || n > 0 {
		a.say("wrapped %s under the newest version of the root key", plural(n, "version of a data key", "versions of data keys"))
	}
	return unknown(ctx, s, key.Ref{Scope: scope}, err)
}
