package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// recovered is what root recover did, as --json shows it.
type recovered struct {
	slotJSON

	Changed bool `json:"changed"` // false: --root was the active root already
	Added   bool `json:"added"`   // whether it got its slot just now
}

func (a *app) rootRecoverCommand() *cobra.Command {
	var source sourceFlags
	c := &cobra.Command{
		Use:   "recover [FILE...] [--identity FILE]... [--old-root URL]...",
		Short: "Make --root the active root where the active one is lost",
		Long: `Makes --root the active root of the installation, and gives it a slot if it has none, where nobody has the active one: it is
lost, or newer than the backup that the database was restored from. What opens the installation is a recovery file with its
identity, or as many shares as it takes; FILE may also be a text file with lines as they were typed from paper, and - is
standard input. Without any, it is --root itself or an --old-root that has a slot, active or not.

While the database is one that was being rekeyed, the recovery files of both installation keys are needed.

It prints the slot of --root. Recovering what needs no recovery changes nothing. It is for people, one at a time, and not for a
process to do whenever it starts.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.recover(cmd.Context(), source, args) },
	}
	source.add(c)
	return c
}

func (a *app) recover(ctx context.Context, f sourceFlags, paths []string) error {
	if len(paths) == 0 && len(f.identities) > 0 {
		return usageError("an --identity is given, and no recovery file", "give the recovery file, or leave out --identity to recover with an old root")
	}
	roots, err := a.openRoots(ctx)
	if err != nil {
		return err
	}
	defer roots.end(ctx)
	source := &recoverySource{}
	if len(paths) > 0 {
		if source, err = a.openRecovery(ctx, f, paths); err != nil {
			return err
		}
	}
	defer source.clear()
	pins, err := a.allPins()
	if err != nil {
		return err
	}
	s, err := a.openStore(ctx, tableFlags{}, false)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()

	limited, cancel := a.limited(ctx)
	before, _ := s.Installation(limited) // what is wrong with it, Recover says
	cancel()
	config := keyhold.Config{Pins: pins, Timeout: a.timeout}
	roots.configure(&config)
	if err := keyhold.Recover(ctx, s, config, source.reveal()...); err != nil {
		err = a.unsure(ctx, roots.explain(ctx, s, err), "the root may be the active one now", "repeat it, which does no harm")
		return source.mayBeOfTwo(err)
	}
	m, err := a.manager(ctx, s, keyhold.Config{}, &rootSet{own: roots.own}) // which needs no other now
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	a.warnOfPin(m)
	info, err := m.Installation(ctx)
	if err != nil {
		return err
	}
	slot := activeSlot(&info)
	had := map[key.ID]bool{}
	for _, its := range before.Slots {
		had[its.ID] = true
	}
	done := recovered{slotToJSON(slot), before.ActiveSlot != slot.ID, !had[slot.ID]}
	a.sayRecovered(&info, &done, before.ActiveSlot)
	return a.result(done, func(w io.Writer) { line(w, slot.ID) })
}

func (a *app) sayRecovered(info *keyhold.InstallationInfo, done *recovered, was key.ID) {
	name := fmt.Sprintf("the root %s (%s)", setting(a.root, "KEYHOLD_ROOT"), done.ID)
	if !done.Changed {
		a.say("%s is the active root already, and nothing was changed", name)
		return
	}
	if done.Added {
		a.say("%s has a slot now, and is the active root", name)
	} else {
		a.say("%s is the active root now, by the slot that it had", name)
	}
	a.say("next: keyhold doctor opens every key; then start the processes with this root")
	if old := slotIn(info, was); old != nil && old.State != key.Destroyed {
		a.say("then keyhold root remove %s takes its slot from the root before; if somebody else may have that, or the recovery line, "+
			"keyhold root rekey makes another installation key", was)
	}
}
