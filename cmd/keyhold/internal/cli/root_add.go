package cli

import (
	"context"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// addedRoot is what root add did, as --json shows it.
type addedRoot struct {
	slotJSON

	Added         bool     `json:"added"` // false: it had the slot already
	RecoveryFiles []string `json:"recovery_files"`
}

func (a *app) rootAddCommand() *cobra.Command {
	var escrow escrowFlags
	c := &cobra.Command{
		Use:   "add URL [--escrow FILE --recipient R... [--shares K]]",
		Short: "Give another external root a slot, so that it opens the installation",
		Long: `Seals the installation key with the external root at URL, and keeps that in a slot of its own: from then on whoever has that
root opens the installation, however many keys there are, and nothing else changes. It is not the active root before root
activate. A root that has a slot keeps it. It prints the slot's id, and says which roots the live processes have.

With --escrow it writes a recovery file, too, as root escrow does.`,
		Args: args("URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := escrow.prepare(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return a.addRoot(cmd.Context(), args[0], files)
		},
	}
	escrow.add(c, true)
	return c
}

func (a *app) addRoot(ctx context.Context, given string, files *recoveryFiles) error {
	added, err := a.openRootAt(ctx, given)
	if err != nil {
		return err
	}
	defer closeRoots(ctx, added)
	return a.with(ctx, keyhold.Config{}, func(s *session) error {
		a.warnOfPin(s.Manager)
		before, err := s.Installation(ctx)
		if err != nil {
			return err
		}
		slot, err := s.AddRoot(ctx, added)
		if err != nil {
			return a.unsure(ctx, s.roots.ofOther(given, err), "the root "+given+" may have a slot", "keyhold root list shows whether it has")
		}
		had := slices.ContainsFunc(before.Roots, func(r keyhold.RootInfo) bool { return r.ID == slot.ID })
		if had {
			a.say("the root %s has a slot already, %s", given, slot.ID)
		} else {
			a.say("the root %s opens the installation now, by slot %s", given, slot.ID)
		}
		if files.wanted() {
			if err := s.Escrow(ctx, files.write); err != nil {
				return a.noEscrow(ctx, "the root "+given+" opens the installation, by slot "+string(slot.ID), files, err)
			}
			a.sayWritten(files)
		}
		after, err := s.Installation(ctx)
		if err != nil {
			return err
		}
		if err := a.sayWhoHas(ctx, s, &after); err != nil {
			return err
		}
		if !slot.Active {
			a.say("keyhold root activate %s makes it the active one; processes that are to rotate keys need it as their root then", slot.ID)
		}
		return a.result(addedRoot{slotToJSON(&slot), !had, files.files()}, func(w io.Writer) { line(w, slot.ID) })
	})
}

// changedRoot is a slot that was changed, as --json shows it.
type changedRoot struct {
	slotJSON

	Was key.ID `json:"was_active,omitempty"` // of root activate, the slot that was the active one until now
}

func (a *app) rootActivateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "activate ID",
		Short: "Make another root the active one",
		Long: `Makes the root that has the slot ID the active one, with which keys are rotated and roots changed. Processes that have another
root go on sealing and opening, and do neither of that; so does this program from then on, with --root as it was. No root is
called. Repeating it is harmless.`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := slotID(args[0])
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			return a.with(ctx, keyhold.Config{}, func(s *session) error { return a.activateRoot(ctx, s, id) })
		},
	}
}

func (a *app) activateRoot(ctx context.Context, s *session, id key.ID) error {
	a.warnOfPin(s.Manager)
	before, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	if err := s.ActivateRoot(ctx, id); err != nil {
		return a.slotProblem(ctx, s, id, err)
	}
	after, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	now, was := activeSlot(&after), activeSlot(&before)
	changed := changedRoot{slotJSON: slotToJSON(now)}
	if was.ID == now.ID {
		a.say("%s is the active root already", slotName(now))
	} else {
		changed.Was = was.ID
		a.say("the active root is %s now, and no more %s", slotName(now), slotName(was))
		a.say("next: give the processes, and this program, the new one as --root; when none is left with the old one, root remove %s", was.ID)
		if err := a.sayWhoHas(ctx, s, &after); err != nil {
			return err
		}
	}
	return a.result(changed, func(w io.Writer) { line(w, now.ID, slotState(now)) })
}

func (a *app) rootRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "Take its slot from a root, so that it opens the installation no more",
		Long: `Deletes the installation key that is sealed in the slot ID; the slot stays as a record. Its root opens the installation no more.
It refuses for the active root, and as long as a live process has opened the installation by it. Repeating it is harmless.

Backups from before still open with that root, and whoever had it and the database has had the installation key: root rekey
makes another one.`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := slotID(args[0])
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			return a.with(ctx, keyhold.Config{}, func(s *session) error { return a.removeRoot(ctx, s, id) })
		},
	}
}

func (a *app) removeRoot(ctx context.Context, s *session, id key.ID) error {
	a.warnOfPin(s.Manager)
	before, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	if err := s.RemoveRoot(ctx, id); err != nil {
		return a.slotProblem(ctx, s, id, err)
	}
	after, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	slot := slotIn(&after, id)
	if slot == nil {
		return a.slotProblem(ctx, s, id, keyhold.ErrNotFound)
	}
	if was := slotIn(&before, id); was != nil && was.State == key.Destroyed {
		a.say("%s was removed before", slotName(slot))
	} else {
		a.say("%s is removed: that root opens the installation no more", slotName(slot))
		a.say("backups from before still open with it, and whoever had it and the database has had the installation key: " +
			"if it is no longer trusted, keyhold root rekey makes another one")
	}
	return a.result(changedRoot{slotJSON: slotToJSON(slot)}, func(w io.Writer) { line(w, slot.ID, slotState(slot)) })
}
