package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/seal"
)

// rekeyed is what root rekey did, as --json shows it.
type rekeyed struct {
	Pin           string   `json:"pin"`  // the new one
	Keys          int      `json:"keys"` // that this command brought under the new installation key
	RecoveryFiles []string `json:"recovery_files"`
}

func (a *app) rootRekeyCommand() *cobra.Command {
	var escrow escrowFlags
	var none bool
	c := &cobra.Command{
		Use:   "rekey {--escrow FILE --recipient R... [--shares K] | --no-escrow} [--old-root URL]...",
		Short: "Make another installation key, as when a root or a recovery file is no longer trusted",
		Long: `Makes another installation key, wraps all root keys under it, and makes all manifests anew. When it is over, what was once had
with a root or a recovery file that is no longer trusted opens nothing that is stored. First take its slot from such a root, with
root remove: all that have one get the new key, so each of them has to be given, --root and the others as --old-root.

Recovery files of the old installation key open nothing of what is stored afterwards, so it writes one, unless --no-escrow says
that there is to be none. It says the new pin on standard error as soon as there is one, and prints it at the end. A process that
has pins and starts while it lasts needs the one before, and afterwards the new one; it may have both. Those that run follow by
themselves.

It may be interrupted anywhere: the same command goes on. Where the rekey was over, and nobody was told, it says that none is under
way, and since when there is the pin of now. Backups from before go on opening with the roots and the recovery files of then.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			files, err := escrow.prepare(cmd.Flags().Changed)
			// Where a rekey is gone on with, its recovery file may be there.
			switch exists := isThere(err); {
			case err != nil && !exists:
				return err
			case none && (files.wanted() || exists):
				return usageError("--no-escrow and --escrow are both given", "")
			case !none && !files.wanted() && !exists:
				return usageError("a rekey makes all recovery files worthless, and no new one is asked for",
					"give --escrow FILE --recipient R, or --no-escrow if there is to be none; "+aRecipient)
			}
			ctx := cmd.Context()
			return a.with(ctx, keyhold.Config{}, func(s *session) error { return a.rekey(ctx, s, files, err) })
		},
	}
	escrow.add(c, true)
	c.Flags().BoolVar(&none, "no-escrow", false, "write no recovery file: who loses every root loses every key")
	return c
}

// rekey writes the recovery files, if any are wanted. unwritable is why they cannot be, which matters only to a rekey
// that is begun here.
func (a *app) rekey(ctx context.Context, s *session, files *recoveryFiles, unwritable error) error {
	a.warnOfPin(s.Manager)
	before, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	pins, err := a.allPins()
	if err != nil {
		return err
	}
	write := keyhold.NoEscrow
	switch {
	case len(pins) > 1 && !before.Rekeyed: // the new one would have to be among them
		return usageError("more than one pin is given, and a rekey begins with one, as nobody knows the new one yet", "give --pin "+before.Pin+" alone")
	case files.wanted():
		write = files.write
	case unwritable != nil && before.Rekeyed:
		write = func([]byte) (string, error) { return "", unwritable }
	case unwritable != nil:
		p := a.explain(ctx, unwritable)
		return failed(p.Code, p.Message+"; no rekey is under way: "+pinSince(&before),
			"if that pin is of the rekey that this was to go on with, it is over; another name for --escrow begins another rekey")
	}
	if before.Rekeyed {
		a.say("the installation is being rekeyed already: this goes on with it; its new pin is %s", before.Pin)
	} else {
		a.say("no rekey is under way, and this begins one: %s", pinSince(&before))
		write = a.announced(write)
	}
	done, err := s.Rekey(ctx, write)
	if err != nil {
		return a.rekeyProblem(ctx, s, &before, files, err)
	}
	a.sayWritten(files)
	a.say("the installation has another installation key, and the pin below: give that instead of the one before")
	a.say("backups from before still open with the roots and the recovery files of then; of what is stored now, those recovery files open nothing")
	if escrows, err := s.Escrows(ctx); err == nil && escrowState(escrows) == "none" {
		a.sayNone()
	}
	if a.json {
		return writeError(encode(a.out, rekeyed{done.Pin, done.Keys, files.files()}))
	}
	return a.table(func(w io.Writer) { line(w, done.Pin) })
}

// announced says the new pin as soon as it is known.
func (a *app) announced(write keyhold.EscrowFunc) keyhold.EscrowFunc {
	return func(recovery []byte) (string, error) {
		next, err := seal.ParseRecovery(recovery)
		if err != nil {
			return "", err
		}
		defer next.Close()
		detail, err := write(recovery)
		if err == nil {
			a.say("the new pin is going to be %x: give it now to what has the one before, besides that, "+
				"which does only until this is over", next.Pin())
		}
		return detail, err
	}
}

// pinSince says which pin the installation has, and since when.
func pinSince(info *keyhold.InstallationInfo) string {
	var since time.Time
	active := activeSlot(info)
	for i := range info.Roots {
		r := &info.Roots[i]
		if r.InstallationKey == active.InstallationKey && (since.IsZero() || r.Created.Before(since)) {
			since = r.Created
		}
	}
	return "the pin is " + info.Pin + ", since " + timeText(since)
}

// rekeyProblem is an error of a rekey, which may have begun. before is what was there.
func (a *app) rekeyProblem(ctx context.Context, s *session, before *keyhold.InstallationInfo, files *recoveryFiles, err error) error {
	p := a.explain(ctx, err)
	switch {
	case before.Rekeyed && isThere(err):
		return failed("exists", p.Message+", and it is not stored that it was written in this rekey, which is not over",
			"give another --escrow name, or --no-escrow: the key in that file is of this rekey if keyhold root verify-escrow opens it when this is over")
	case errors.Is(err, keyhold.ErrState) && strings.Contains(firstLine(err), ": give its root"):
		text, _, _ := strings.Cut(strings.TrimPrefix(firstLine(err), "begin to rekey: "), ": give its root")
		p = &problem{
			Code: "root_missing", Message: text, exit: exitFailed,
			Hint: "give that root as --old-root, and it gets the new installation key too; or take its slot from it, with keyhold root remove",
		}
	}
	// A recovery line that opens nothing is told below, by the names of its files.
	if _, why, found := strings.Cut(p.Message, keyhold.ErrState.Error()+": "); found {
		p.Message = "no rekey was begun: " + why
	}
	limited, cancel := a.limited(ctx)
	defer cancel()
	in, inErr := s.store.Installation(limited)
	same := activeSlot(before).InstallationKey
	switch {
	case inErr == nil && len(in.Keys) == 1 && bytes.Equal(in.IKKID, same[:]):
		if written := files.files(); len(written) > 0 {
			p.also("nothing was changed, and " + strings.Join(written, ", ") + " opens nothing: destroy it")
		}
	case inErr == nil && len(in.Keys) == 1:
		a.sayWritten(files)
		p.also("the rekey is over all the same, and the pin is " + s.Pin())
	case inErr == nil:
		a.sayWritten(files)
		p.also("the rekey is not over: the same command goes on with it")
	default:
		p.also("the rekey may have begun, or be over: keyhold root list shows it, and the same command goes on with one that is not over; " +
			"what recovery file it wrote is to be kept until then")
	}
	return p
}

// also adds to the hint.
func (p *problem) also(hint string) { p.Hint = strings.TrimPrefix(p.Hint+"; "+hint, "; ") }
