package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

func (a *app) keyCommand() *cobra.Command {
	return group("key", "Root keys, data keys and their versions",
		a.keyListCommand(), a.keyRotateCommand(), a.keyRewrapCommand(), a.keyDisableCommand(), a.keyEnableCommand(), a.keyDestroyCommand(),
		a.keyReferencesCommand(), a.keyPolicyCommand(), a.keyExportCommand())
}

// keyJSON is a key as --json shows it.
type keyJSON struct {
	Scope       key.Scope     `json:"scope"`
	Kind        string        `json:"kind"` // root or data
	Purpose     key.Purpose   `json:"purpose,omitempty"`
	ID          key.ID        `json:"id"`
	Head        key.Version   `json:"head"`
	RotateEvery int64         `json:"rotate_every_seconds"` // 0: never
	MaxMessages uint64        `json:"max_messages"`         // that one version seals; 0: no limit
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

	DisabledSince *time.Time `json:"disabled_since,omitempty"`
}

func keyToJSON(k *keyhold.KeyInfo) keyJSON {
	j := keyJSON{
		Scope: k.Ref.Scope, Kind: kindOf(k.Ref), Purpose: k.Ref.Purpose, ID: k.ID, Head: k.Head,
		RotateEvery: int64(k.RotateEvery / time.Second), MaxMessages: k.MaxMessages, RotateAt: timeOrNil(k.RotateAt), Due: k.Due,
	}
	for _, v := range k.Versions {
		j.Versions = append(j.Versions, versionJSON{
			Version: v.Number, ID: v.ID, State: v.State.String(), Alg: v.Alg.String(), Created: timeOrNil(v.Created),
			Parent: v.Parent, Behind: v.Behind, DisabledSince: timeOrNil(v.Disabled),
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

// version is a key version, and whose it is.
type version struct {
	keyhold.VersionInfo

	Ref    key.Ref
	prefix string // of keyhold's tables
	family store.Family
}

// stateJSON is a version with its state, as --json shows it.
type stateJSON struct {
	Scope   key.Scope   `json:"scope"`
	Kind    string      `json:"kind"`
	Purpose key.Purpose `json:"purpose,omitempty"`
	Version key.Version `json:"version"`
	ID      key.ID      `json:"id"`
	State   string      `json:"state"`
}

func (v *version) toJSON() stateJSON {
	return stateJSON{v.Ref.Scope, kindOf(v.Ref), v.Ref.Purpose, v.Number, v.ID, v.State.String()}
}

// may says what may have become of the version.
func (v *version) may(done string) string {
	return fmt.Sprintf("version %d of the %v may be %s", v.Number, v.Ref, done)
}

func (v *version) print(w io.Writer) {
	line(w, "SCOPE", "PURPOSE", "VERSION", "STATE", "ID")
	line(w, v.Ref.Scope, purposeText(v.Ref), v.Number, v.State, v.ID)
}

// findVersion reads the version with an id, also one that was destroyed.
func (a *app) findVersion(ctx context.Context, s *session, id key.ID) (version, error) {
	if err := id.Validate(); err != nil {
		return version{}, notVersion(id, err)
	}
	family, err := a.keyOfVersion(ctx, s, id)
	if err != nil {
		return version{}, err
	}
	// The rows alone are not trusted; what Keys returns was checked.
	scope := family.Root.Scope
	keys, err := s.Keys(ctx, scope)
	if err != nil {
		return version{}, unknown(ctx, s, key.Ref{Scope: scope}, err)
	}
	for _, k := range keys {
		for _, v := range k.Versions {
			if v.ID == id {
				return version{v, k.Ref, a.prefix, family}, nil
			}
		}
	}
	return version{}, unknownVersion(id)
}

// keyOfVersion reads the key that has, or had, a version with the id.
func (a *app) keyOfVersion(ctx context.Context, s *session, id key.ID) (store.Family, error) {
	ctx, cancel := a.limited(ctx)
	defer cancel()
	family, err := s.store.KeyOfVersion(ctx, id)
	if errors.Is(err, keyhold.ErrNotFound) {
		return store.Family{}, unknownVersion(id)
	}
	return family, err
}

// notVersion says of a word that is no id of a version where there are some; that of a key is taken for one easily.
func notVersion(id key.ID, err error) error {
	hint := "keyhold key list shows the ids of all versions"
	if strings.HasPrefix(string(id), key.PrefixRootKey) || strings.HasPrefix(string(id), key.PrefixDataKey) {
		hint = "that is the id of a key; " + hint
	}
	return &problem{Code: "invalid", Message: err.Error(), Hint: hint, exit: exitUsage}
}

func unknownVersion(id key.ID) error {
	return failed("unknown_version", "there is no key version "+quote(string(id)), "keyhold key list shows the ids of all versions")
}

// explain says why a version cannot be disabled, enabled or destroyed, and what to do about it.
func (v *version) explain(doing string, err error) error {
	used, inUse := errors.AsType[*keyhold.InUseError](err)
	switch {
	case inUse:
		return failed("in_use", used.Error(), v.inUseHint(used.References))
	case errors.Is(err, keyhold.ErrForeignKey):
		return failed("in_use", fmt.Sprintf("%s key version %s: a row had its id a moment ago", doing, v.ID), "repeat it")
	case errors.Is(err, keyhold.ErrState):
		text := strings.NewReplacer(keyhold.ErrState.Error()+": ", "", " (Config.Grace)", "").Replace(firstLine(err))
		return failed("state", text, v.stateHint(doing))
	case errors.Is(err, keyhold.ErrNotFound):
		return unknownVersion(v.ID)
	}
	return err
}

// inUseHint says what to do about rows that have the version's id.
func (v *version) inUseHint(refs []keyhold.Reference) string {
	wraps, others := false, false
	for _, r := range refs {
		ours := v.Ref.IsRoot() && r.Table == v.prefix+"_data_key_version" && r.Column.Column == "root_key_version_id"
		wraps, others = wraps || ours && r.Rows > 0, others || !ours && r.Rows > 0
	}
	const anew = "write these rows anew, so that the newest version seals them, or delete them"
	// The scope may have to be the last word of a command.
	rewrap := "keyhold key rewrap " + argument(string(v.Ref.Scope)) + " brings what it wraps under the newest version"
	switch {
	case wraps && others:
		return rewrap + ", but not what the application has in other tables: " + anew
	case wraps:
		return rewrap
	}
	return anew
}

// stateHint says what has to be done to the version before it can be disabled, enabled or destroyed.
func (v *version) stateHint(doing string) string {
	disable := "keyhold key disable " + string(v.ID)
	switch v.State {
	case key.Active:
		if doing == "destroy" {
			return v.rotateCommand() + " && " + disable
		}
		return v.rotateCommand() + " makes another version the head"
	case key.Pending:
		return v.rotateCommand() + " ends the rotation that made it"
	case key.Retired:
		if v.Ref.IsRoot() {
			return disable + "; what the application itself wrapped with it, which no rewrap moves, will be missed before it is gone"
		}
		return disable + "; whoever misses what it sealed will say so before it is gone"
	case key.Disabled:
		return graceHint
	case key.Destroyed:
	}
	return ""
}

const graceHint = "wait until then, or give a shorter --grace if nobody can miss what it sealed"

// look says where it can be seen whether what was asked for a key of the scope was done.
func look(scope key.Scope) string {
	return "keyhold key list " + argument(string(scope)) + " shows whether it was"
}

// rotateCommand is the command that adds a version to the version's key, to be copied into a shell.
func (v *version) rotateCommand() string {
	flags := "--purpose " + shellQuote(string(v.Ref.Purpose))
	if v.Ref.IsRoot() {
		flags = "--rewrap"
	}
	return "keyhold key rotate " + flags + " " + argument(string(v.Ref.Scope))
}
