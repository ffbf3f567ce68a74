package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/store"
)

// finding is something that is wrong, as --json shows it.
type finding struct {
	Subject string `json:"subject"`
	Problem string `json:"problem"`
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Open every key and check every row and manifest",
		Long: `Reads the whole installation: asks the database whether its file, if it is one, and its references are sound, compares the
tables with what the migrations make, down to constraints and triggers that somebody dropped, checks every rule that the
rows have to keep, every manifest, and unwraps every version of every key. It prints what is wrong, one finding on each
line, and changes nothing. The exit code is 3 if there is any. A rekey that is not over is one; that there is no recovery file, or
none that was tried, and that no pin is given, it says on standard error.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings, failure := a.examine(cmd)
			list := a.newStream("")
			for _, f := range findings {
				f.Problem = brokenText(f.Problem)
				if err := list.add(finding{f.Subject, f.Problem}, func(w io.Writer) { line(w, f.Subject+": "+f.Problem) }); err != nil {
					return err
				}
			}
			if err := list.end(failure); err != nil {
				return err
			}
			if len(findings) > 0 {
				a.say("%s", plural(len(findings), "thing is wrong", "things are wrong"))
				return errFound
			}
			a.say("all is well")
			return nil
		},
	}
}

// examine returns what is wrong, also where the installation cannot be opened for it.
func (a *app) examine(cmd *cobra.Command) ([]store.Finding, error) {
	ctx := cmd.Context()
	s, err := a.open(ctx, keyhold.Config{})
	if broken := (*keyhold.IntegrityError)(nil); errors.As(err, &broken) {
		findings := []store.Finding{{Subject: "installation", Problem: broken.Reason}}
		rows, err := a.openStore(ctx, tableFlags{}, false)
		if err != nil {
			return nil, err
		}
		more, err := store.Check(ctx, rows)
		return append(findings, more...), errors.Join(err, rows.Close())
	}
	if err != nil {
		return nil, err
	}
	findings, err := s.Check(ctx)
	if err == nil {
		var more []store.Finding
		more, err = a.examineRoots(ctx, s)
		findings = append(more, findings...)
	}
	return findings, s.close(ctx, err)
}

// examineRoots finds that a rekey is not over, and says what is to be done about roots and recovery files.
func (a *app) examineRoots(ctx context.Context, s *session) (findings []store.Finding, err error) {
	info, err := s.Installation(ctx)
	if err != nil {
		if _, broken := errors.AsType[*keyhold.IntegrityError](err); broken {
			return nil, nil // that was found
		}
		return nil, err
	}
	if info.Rekeyed {
		findings = append(findings, store.Finding{
			Subject: "installation",
			Problem: "it is being rekeyed: keyhold root rekey, with the flags that it was begun with, ends that",
		})
	}
	escrows, err := s.Escrows(ctx)
	if err != nil {
		return nil, err
	}
	a.sayRoots(s.Manager, escrowState(escrows))
	return findings, nil
}
