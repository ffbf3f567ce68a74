package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
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
that there is to be none. It prints the new pin. While it lasts, a process that starts needs both pins, if any. Those that run
follow by themselves.

It may be interrupted anywhere: the same command goes on. Backups from before go on opening with the roots and the recovery
files of then.`,
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
	write := keyhold.NoEscrow
	switch {
	case files.wanted():
		write = files.write
	case unwritable != nil && before.Rekeyed:
		write = func([]byte) (string, error) { return "", unwritable }
	case unwritable != nil:
		return unwritable
	}
	if before.Rekeyed {
		a.say("the installation is being rekeyed already: this goes on with it")
	}
	done, err := s.Rekey(ctx, write)
	if err != nil {
		return a.rekeyProblem(ctx, s, &before, files, err)
	}
	a.sayWritten(files)
	a.say("the installation has another installation key, and the pin below: give that instead of the one before")
	a.say("backups from before still open with the roots and the recovery files of then; of what is stored now, those recovery files open nothing")
	if !files.wanted() && unwritable == nil {
		a.sayNone()
	}
	if a.json {
		return writeError(encode(a.out, rekeyed{done.Pin, done.Keys, files.files()}))
	}
	return a.table(func(w io.Writer) { line(w, done.Pin) })
}

// rekeyProblem is an error of a rekey, which may have begun. before is what was there.
func (a *app) rekeyProblem(ctx context.Context, s *session, before *keyhold.InstallationInfo, files *recoveryFiles, err error) error {
	p := a.explain(ctx, err)
	if errors.Is(err, keyhold.ErrState) {
		text := strings.TrimPrefix(sentence(err, keyhold.ErrState), "begin to rekey: ")
		text, _, _ = strings.Cut(text, ": give its root")
		p = &problem{
			Code: "root_missing", Message: text, exit: exitFailed,
			Hint: "give that root as --old-root, and it gets the new installation key too; or take its slot from it, with keyhold root remove",
		}
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
	case inErr == nil:
		a.sayWritten(files)
		p.also("the rekey is not over: the same command goes on with it")
	default:
		p.also("the rekey may have begun: the same command goes on with it, and what recovery file it wrote is to be kept until then")
	}
	return p
}

// also adds to the hint.
func (p *problem) also(hint string) { p.Hint = strings.TrimPrefix(p.Hint+"; "+hint, "; ") }
