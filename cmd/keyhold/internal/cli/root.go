package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

func (a *app) rootCommand() *cobra.Command {
	return group("root", "External roots, and recovery files that do without",
		a.rootKeygenCommand(), a.rootListCommand(), a.rootAddCommand(), a.rootActivateCommand(), a.rootRemoveCommand(), a.rootRekeyCommand(),
		a.rootEscrowCommand(), a.rootVerifyEscrowCommand(), a.rootRecoverCommand())
}

// slotJSON is a root slot, as --json shows it.
type slotJSON struct {
	ID              key.ID     `json:"id"`
	Type            string     `json:"type"`
	KeyID           string     `json:"key_id"`
	State           string     `json:"state"` // active, retired or removed
	Active          bool       `json:"active"`
	Own             bool       `json:"own"` // whether --root has opened the installation by it
	Created         *time.Time `json:"created"`
	Activated       *time.Time `json:"activated"`
	Retired         *time.Time `json:"retired"`
	Removed         *time.Time `json:"removed"`
	InstallationKey string     `json:"installation_key"`
}

func slotToJSON(r *keyhold.RootInfo) slotJSON {
	return slotJSON{
		r.ID, r.Type, r.KeyID, slotState(r), r.Active, r.Own, timeOrNil(r.Created), timeOrNil(r.Activated), timeOrNil(r.Retired),
		timeOrNil(r.Removed), hex.EncodeToString(r.InstallationKey[:]),
	}
}

// slotState is a slot's state in the words of the commands.
func slotState(r *keyhold.RootInfo) string {
	if r.State == key.Destroyed {
		return "removed"
	}
	return r.State.String()
}

// slotName is a slot's root with its id.
func slotName(r *keyhold.RootInfo) string {
	return strings.TrimSpace(r.Type+" "+r.KeyID) + ", slot " + string(r.ID)
}

func slotIn(info *keyhold.InstallationInfo, id key.ID) *keyhold.RootInfo {
	i := slices.IndexFunc(info.Roots, func(r keyhold.RootInfo) bool { return r.ID == id })
	if i < 0 {
		return nil
	}
	return &info.Roots[i]
}

func activeSlot(info *keyhold.InstallationInfo) *keyhold.RootInfo {
	i := slices.IndexFunc(info.Roots, func(r keyhold.RootInfo) bool { return r.Active })
	if i < 0 {
		return &keyhold.RootInfo{} // the library lets no installation through that has none
	}
	return &info.Roots[i]
}

const noSlotHint = "keyhold root list shows the slots"

// slotID is an argument as the id of a slot. Anything else may be a root or a recovery line, and is not repeated.
func slotID(given string) (key.ID, error) {
	rest, found := strings.CutPrefix(given, key.PrefixRootSlot)
	if !found || len(rest) > 64 || strings.ContainsFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'v') }) {
		return "", usageError("the argument is no id of a root slot", noSlotHint)
	}
	return key.ID(given), nil
}

// slotProblem says why a slot could not be changed, in one sentence with what to do.
func (a *app) slotProblem(ctx context.Context, s *session, id key.ID, err error) error {
	if errors.Is(err, keyhold.ErrNotFound) {
		return failed("unknown_root", "there is no root slot "+string(id), noSlotHint)
	}
	if !errors.Is(err, keyhold.ErrState) {
		return a.unsure(ctx, err, "root slot "+string(id)+" may have been changed", "keyhold root list shows whether it was")
	}
	info, infoErr := s.Installation(ctx)
	if infoErr != nil {
		return infoErr
	}
	switch slot := slotIn(&info, id); {
	case slot == nil:
	case slot.State == key.Destroyed:
		return failed("root_removed", "root slot "+string(id)+" was removed", "root add gives its root another one")
	case info.Rekeyed:
		return failed("rekeyed", "the installation is being rekeyed, and no root slot can be changed before that is over",
			"keyhold root rekey, with the flags that it was begun with, ends it")
	case slot.Active:
		return failed("root_active", "root slot "+string(id)+" is that of the active root, without which nothing could be changed",
			"keyhold root activate makes another one active")
	}
	return err
}

const rootInUseHint = "start them with the active root, or wait until they are gone"

// rootInUseText names the instances that depend on a root.
func rootInUseText(err *keyhold.InUseRootError) string {
	var names []string
	for i := range err.Instances {
		if in := &err.Instances[i]; in.Self {
			names = append(names, "this command itself")
		} else {
			names = append(names, signText(in))
		}
	}
	return "root slot " + string(err.Slot) + " is not removed: these processes have opened the installation by it: " + strings.Join(names, ", ")
}

// liveBySlot is the live instances by the slot that they opened the installation by.
func liveBySlot(ctx context.Context, s *session) (map[key.ID][]keyhold.InstanceInfo, error) {
	instances, err := s.Instances(ctx)
	if err != nil {
		return nil, err
	}
	live := map[key.ID][]keyhold.InstanceInfo{}
	for _, in := range instances {
		if !in.Gone && !in.Self {
			live[in.Slot] = append(live[in.Slot], in)
		}
	}
	return live, nil
}

// sayWhoHas says how many live processes have which root.
func (a *app) sayWhoHas(ctx context.Context, s *session, info *keyhold.InstallationInfo) error {
	live, err := liveBySlot(ctx, s)
	if err != nil {
		return err
	}
	for i := range info.Roots {
		if r := &info.Roots[i]; len(live[r.ID]) > 0 {
			a.say("%s the root %s", plural(len(live[r.ID]), "live process has", "live processes have"), slotName(r))
		}
	}
	if n := len(live[""]); n > 0 {
		a.say("%s not say which root", plural(n, "live process does", "live processes do"))
	}
	if len(live) == 0 {
		a.say("no live process has registered; one that only opens, outside of Manager.Run and keyhold run, does not")
	}
	return nil
}

// processNames are the names of instances.
func processNames(instances []keyhold.InstanceInfo) []string {
	names := make([]string, 0, len(instances))
	for i := range instances {
		names = append(names, instanceName(&instances[i]))
	}
	return names
}

// shortKey is enough of an installation key's id to tell it from another.
func shortKey(r *keyhold.RootInfo) string { return hex.EncodeToString(r.InstallationKey[:4]) }
