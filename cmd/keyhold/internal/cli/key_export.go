package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// exportedKey is a raw key, as --json shows it.
type exportedKey struct {
	ID      key.ID      `json:"id"`
	Scope   key.Scope   `json:"scope"`
	Purpose key.Purpose `json:"purpose"`
	Version key.Version `json:"version"`
	Key     []byte      `json:"key"` // base64
}

func (a *app) keyExportCommand() *cobra.Command {
	var know bool
	var scope string
	c := &cobra.Command{
		Use:   "export ID...|--scope SCOPE --i-know",
		Short: "Print the bytes of raw keys",
		Long: `Prints the bytes of versions of raw keys, in base64: for checking, and for leaving. Other keys never leave. Whoever sees the
output has these keys for ever: it belongs in no log, no terminal that is recorded, and no file that others may read.
With --i-know you say that you know.

With --scope they are all versions of all raw keys of a scope, but for those that are disabled or destroyed.`,
		Args: func(cmd *cobra.Command, ids []string) error {
			switch given := cmd.Flags().Changed("scope"); {
			case given && len(ids) > 0:
				return usageError("there are ids and --scope", "give the ids of versions, or a scope")
			case !given && len(ids) == 0:
				return args("ID")(cmd, ids)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, ids []string) error {
			if !know {
				return usageError("key export prints keys as they are, and whoever sees them has them for ever", "--i-know says that this is wanted")
			}
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error {
				wanted := as[key.ID](ids)
				if cmd.Flags().Changed("scope") {
					var err error
					if wanted, err = rawVersions(cmd.Context(), s, key.Scope(scope)); err != nil {
						return err
					}
				}
				return a.exportKeys(cmd.Context(), s, wanted)
			})
		},
	}
	c.Flags().StringVar(&scope, "scope", "", "the scope of which all raw keys are to be printed")
	c.Flags().BoolVar(&know, "i-know", false, "the keys are to be printed")
	return c
}

// rawVersions is the ids of the versions of a scope's raw keys that are to be had.
func rawVersions(ctx context.Context, s *session, scope key.Scope) (ids []key.ID, err error) {
	keys, err := s.Keys(ctx, scope)
	for _, k := range keys {
		for _, v := range k.Versions {
			if v.Alg == key.Raw && v.State.Opens() {
				ids = append(ids, v.ID)
			}
		}
	}
	return ids, err
}

// exportKeys prints all of the keys, or none where one of them is not to be had.
func (a *app) exportKeys(ctx context.Context, s *session, ids []key.ID) error {
	var all []exportedKey
	defer func() {
		for _, k := range all {
			clear(k.Key)
		}
	}()
	for _, id := range ids {
		material, ref, number, err := s.ExportRaw(ctx, id)
		if err != nil {
			return notExported(id, err)
		}
		all = append(all, exportedKey{id, ref.Scope, ref.Purpose, number, material})
	}
	list := a.newStream("NAME\tVERSION\tKEY")
	for _, k := range all {
		err := list.add(k, func(w io.Writer) {
			line(w, purposeText(key.Ref{Purpose: k.Purpose}), k.Version, base64.StdEncoding.EncodeToString(k.Key))
		})
		if err != nil {
			return err
		}
	}
	return list.end(nil)
}

func notExported(id key.ID, err error) error {
	_, invalid := errors.AsType[*keyhold.InvalidError](err)
	switch {
	case invalid:
		return notVersion(id, err)
	case errors.Is(err, keyhold.ErrNotFound):
		return unknownVersion(id)
	case errors.Is(err, keyhold.ErrPurpose):
		return failed("purpose", "key version "+string(id)+" is not one of a raw key, and only those leave", "keyhold key list shows the use of each")
	case errors.Is(err, keyhold.ErrDisabled):
		return failed("disabled", "key version "+string(id)+" is disabled or destroyed", "keyhold key enable takes a disabled one into use again")
	}
	return err
}
