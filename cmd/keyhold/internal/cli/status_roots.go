package cli

import (
	"context"
	"io"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// kindInstallation is the kind of what is about no scope.
const kindInstallation = "installation"

// lookAtRoots reads what there is to say of roots and recovery files.
func (a *app) lookAtRoots(ctx context.Context, s *session, info *keyhold.InstallationInfo, st *status) error {
	for i := range info.Roots {
		st.Roots = append(st.Roots, slotToJSON(&info.Roots[i]))
	}
	st.Rekeyed = info.Rekeyed
	if info.Rekeyed {
		what := "it is being rekeyed"
		begun := rekeyBegan(info)
		if !begun.IsZero() && st.now.Sub(begun) > overdueAfter {
			st.Stuck = true
			what = "overdue: " + what + " since " + timeText(begun)
		}
		st.add(attention{Kind: kindInstallation, What: what + ": keyhold root rekey, with the flags that it was begun with, ends that"})
	}
	if err := s.Health().Root; err != nil {
		st.OldRoot = true
		st.add(attention{Kind: kindInstallation, What: oldRootText(err)})
	}
	pins, err := a.allPins()
	if err != nil {
		return err
	}
	st.PinGiven = len(pins) > 0
	escrows, err := s.Escrows(ctx)
	if err != nil {
		return err
	}
	st.Escrow = escrowState(escrows)
	for _, e := range escrows {
		if e.Current {
			st.lastEscrow = e
		}
	}
	return nil
}

// rekeyBegan is when the slots for the next installation key were made.
func rekeyBegan(info *keyhold.InstallationInfo) (first time.Time) {
	active := activeSlot(info)
	for i := range info.Roots {
		r := &info.Roots[i]
		if r.InstallationKey != active.InstallationKey && r.State != key.Destroyed && (first.IsZero() || r.Created.Before(first)) {
			first = r.Created
		}
	}
	return first
}

func (st *status) printRoots(w io.Writer) {
	for i := range st.Roots {
		r := &st.Roots[i]
		if r.Removed != nil {
			continue // root list has it
		}
		text := r.Type + " " + r.KeyID + "  " + r.State
		if r.Active {
			text += "  (in use)"
		}
		if st.Rekeyed {
			text += "  installation key " + r.InstallationKey[:8]
		}
		line(w, "root", text)
	}
	switch last := timeText(st.lastEscrow.At) + ": " + st.lastEscrow.Detail; st.Escrow {
	case "none":
		line(w, "recovery file", "none")
	case "written":
		line(w, "recovery file", "never verified, written "+last)
	default:
		line(w, "recovery file", escrowLast(st.lastEscrow.Verified)+" "+last)
	}
}

func escrowLast(verified bool) string {
	if verified {
		return "verified"
	}
	return "verified before, written"
}

// sayRoots says what is to be done about roots and recovery files.
func (a *app) sayRoots(m *keyhold.Manager, escrow string) {
	a.warnOfPin(m)
	switch escrow {
	case "none":
		a.sayNone()
	case "written":
		a.say("the recovery file was never tried: keyhold root verify-escrow FILE --identity FILE does, and changes nothing")
	}
}
