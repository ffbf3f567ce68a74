package cli

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
)

// rootList is what the command prints, as --json shows it.
type rootList struct {
	Installation string       `json:"installation"`
	Pin          string       `json:"pin"`
	Rekeyed      bool         `json:"rekeyed"` // whether it gets another installation key just now
	Roots        []listedRoot `json:"roots"`
	Escrow       []escrowJSON `json:"escrow"` // oldest first
	keys         []*keyhold.RootInfo
}

// listedRoot is a slot, and who depends on it.
type listedRoot struct {
	slotJSON

	Instances []string `json:"instances"` // live, by host, program and process id
}

func (a *app) rootListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the root slots, who uses them, and the recovery files",
		Long: `Lists the slots of the external roots that open the installation, or did until they were removed: the root's type and what it
calls its key; its state, whether it is in use, which is said of the active root of the moment, and whether it is the one that
--root names (own); when it got the slot, since when it is the active one or when it last was, and when it was removed; and how
many live processes opened the installation by it, of those that have registered: those that seal, and those in Manager.Run or
keyhold run. With --json these have names.

The states: active is the root with which keys are rotated and roots changed; retired is one that opens the installation and is
not the active one, as it was added for later, or was the active one before; removed is one whose slot is only a record.

Below stand the pin and what was written and tried of recovery files. While the installation is rekeyed, each root has two
slots, which the first digits of their installation keys tell apart.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error { return a.listRoots(cmd.Context(), s) })
		},
	}
}

func (a *app) listRoots(ctx context.Context, s *session) error {
	info, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	live, err := liveBySlot(ctx, s)
	if err != nil {
		return err
	}
	escrows, err := s.Escrows(ctx)
	if err != nil {
		return err
	}
	list := rootList{Installation: info.ID, Pin: info.Pin, Rekeyed: info.Rekeyed, Roots: []listedRoot{}, Escrow: escrowsToJSON(escrows)}
	for i := range info.Roots {
		r := &info.Roots[i]
		list.Roots = append(list.Roots, listedRoot{slotToJSON(r), processNames(live[r.ID])})
		list.keys = append(list.keys, r)
	}
	if a.json {
		return writeError(encode(a.out, list))
	}
	if err := a.table(list.printRoots); err != nil {
		return err
	}
	if err := a.table(list.printRest); err != nil {
		return err
	}
	if info.Rekeyed {
		a.say("the installation is being rekeyed: keyhold root rekey, with the flags that it was begun with, ends that")
	}
	if escrowState(escrows) == "none" {
		a.sayNone()
	}
	return nil
}

func (l *rootList) printRoots(w io.Writer) {
	header := []any{"SLOT", "TYPE", "KEY", "STATE", "MADE", "LAST ACTIVE", "REMOVED", "PROCESSES"}
	if l.Rekeyed {
		header = append(header, "INSTALLATION KEY")
	}
	line(w, header...)
	for i, r := range l.keys {
		state := []string{slotState(r)}
		if r.Active {
			state = append(state, "in use")
		}
		if r.Own {
			state = append(state, "own")
		}
		last := timeText(r.Retired)
		switch {
		case r.Activated.IsZero():
			last = "-"
		case r.Retired.IsZero():
			last = "since " + timeText(r.Activated)
		}
		cells := []any{
			r.ID, r.Type, r.KeyID, strings.Join(state, ", "), timeText(r.Created), last, timeText(r.Removed), len(l.Roots[i].Instances),
		}
		if l.Rekeyed {
			cells = append(cells, shortKey(r))
		}
		line(w, cells...)
	}
}

func (l *rootList) printRest(w io.Writer) {
	line(w, "pin", l.Pin)
	for _, e := range l.Escrow {
		of := "opens what is there now"
		if !e.Current {
			of = "of an installation key from before a rekey"
		}
		line(w, "recovery file "+e.What, e.At, e.Detail, of)
	}
}
