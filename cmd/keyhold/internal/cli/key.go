package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func (a *app) keyCommand() *cobra.Command {
	return group("key", "Root keys, data keys and their versions", a.keyListCommand(), a.keyRotateCommand(), a.keyRewrapCommand())
}

// keyJSON is a key as --json shows it.
type keyJSON struct {
	Scope       key.Scope     `json:"scope"`
	Kind        string        `json:"kind"` // root or data
	Purpose     key.Purpose   `json:"purpose,omitempty"`
	ID          key.ID        `json:"id"`
	Head        key.Version   `json:"head"`
	RotateEvery int64         `json:"rotate_every_seconds"` // 0: never
	RotateAt    *time.Time    `json:"rotate_at"`
	Due         bool          `json:"due"`
	Versions    []versionJSON `json:"versions"`
}

type versionJSON struct {
	Version key.Version `json:"version"`
	ID      key.ID      `json:"id"`
	State   string      `json:"state"`
	Alg     string      `json:"alg"`
	Created *time.Time  `json:"created"`
	Parent  key.ID      `json:"parent,omitempty"`
	Behind  bool        `json:"behind"` // a rewrap is in order
}

func keyToJSON(k *keyhold.KeyInfo) keyJSON {
	j := keyJSON{
		Scope: k.Ref.Scope, Kind: kindOf(k.Ref), Purpose: k.Ref.Purpose, ID: k.ID, Head: k.Head,
		RotateEvery: int64(k.RotateEvery / time.Second), RotateAt: timeOrNil(k.RotateAt), Due: k.Due,
	}
	for _, v := range k.Versions {
		j.Versions = append(j.Versions, versionJSON{
			Version: v.Number, ID: v.ID, State: v.State.String(), Alg: v.Alg.String(), Created: timeOrNil(v.Created),
			Parent: v.Parent, Behind: v.Behind,
		})
	}
	return j
}

// kindOf is a key's kind, as --json shows it.
func kindOf(ref key.Ref) string {
	if ref.IsRoot() {
		return "root"
	}
	return "data"
}

// purposeText is what a table shows for a key's purpose. One that looks like what stands for a root key, or like a
// quoted one, is quoted.
func purposeText(ref key.Ref) string {
	purpose := string(ref.Purpose)
	switch {
	case ref.IsRoot():
		return "(root key)"
	case strings.HasPrefix(purpose, "("), strings.HasPrefix(purpose, `"`):
		return quote(purpose)
	}
	return purpose
}

// unknown says of an error that a scope or a purpose is not there which of the two, and what there is instead.
func unknown(ctx context.Context, s *session, ref key.Ref, err error) error {
	if !errors.Is(err, keyhold.ErrNotFound) {
		return err
	}
	keys, listErr := s.Keys(ctx, ref.Scope)
	if errors.Is(listErr, keyhold.ErrNotFound) || listErr != nil || ref.IsRoot() {
		return failed("unknown_scope", fmt.Sprintf("there is no scope %q", string(ref.Scope)),
			"keyhold scope list shows them, keyhold scope create makes one")
	}
	var purposes []string
	for _, k := range keys {
		if !k.Ref.IsRoot() {
			purposes = append(purposes, fmt.Sprintf("%q", string(k.Ref.Purpose)))
		}
	}
	hint := "it has none for any purpose"
	if len(purposes) > 0 {
		hint = "it has keys for " + strings.Join(purposes, ", ")
	}
	return failed("unknown_purpose", fmt.Sprintf("scope %q has no key for the purpose %q", string(ref.Scope), string(ref.Purpose)), hint)
}
