package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
)

// isThere says whether a recovery file is there that would be written.
func isThere(err error) bool { return errors.Is(err, fs.ErrExist) }

func (a *app) rootEscrowCommand() *cobra.Command {
	var escrow escrowFlags
	c := &cobra.Command{
		Use:   "escrow FILE --recipient R... [--shares K]",
		Short: "Write a recovery file, which opens the installation without any root",
		Long: `Writes a recovery file: with the database it opens everything, when every root is lost. It is an age file, and any one of the
recipients can open it; with --shares K there is one file for each --recipient, and any K of them are needed. What was written
before goes on opening. It stores that it was written, and to whom, and prints the names of the files.

A recipient is not to be among those who run the application, and to keep the identity apart from the database. Try it: root
verify-escrow.`,
		Args: args("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			escrow.file = args[0]
			if escrow.file == "" {
				return usageError("FILE is empty", "")
			}
			files, err := escrow.prepare(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			return a.with(ctx, keyhold.Config{}, func(s *session) error {
				a.warnOfPin(s.Manager)
				if err := s.Escrow(ctx, files.write); err != nil {
					return files.unrecorded("", err)
				}
				a.sayWritten(files)
				return a.result(map[string][]string{"recovery_files": files.files()}, func(w io.Writer) {
					for _, file := range files.files() {
						line(w, file)
					}
				})
			})
		},
	}
	escrow.add(c, false)
	return c
}

// unrecorded is an error after which the files may be there all the same. done is what else was done, and ends in "; ".
func (r *recoveryFiles) unrecorded(done string, err error) error {
	if err == nil || !r.done {
		return err
	}
	return failed("escrow", done+strings.Join(r.plan.Files(), ", ")+" was written and opens the installation, but that is not stored: "+
		strings.TrimPrefix(firstLine(err), "store that a recovery file was written: "), "keep it, or destroy it and write another one")
}

// noEscrow says what there is although the recovery file could not be written, or that not be stored.
func (a *app) noEscrow(ctx context.Context, there string, files *recoveryFiles, err error) error {
	if files.done {
		return files.unrecorded(there+"; ", err)
	}
	p := a.explain(ctx, err)
	return failed(p.Code, there+", but there is no recovery file: "+p.Message, "keyhold root escrow FILE --recipient R writes one")
}

// verified is what root verify-escrow found, as --json shows it.
type verified struct {
	Scopes int `json:"scopes"`
	Shares int `json:"shares"` // that the recovery line was joined from; 0 if it was whole
}

func (a *app) rootVerifyEscrowCommand() *cobra.Command {
	var source sourceFlags
	c := &cobra.Command{
		Use:   "verify-escrow FILE... [--identity FILE]...",
		Short: "Try a recovery file, and change nothing",
		Long: `Opens the recovery file with the identities, or as many of the files with shares as it takes, and every key of the first hundred
scopes with that. It needs --db and no root, and checks --pin, if there is one. Nothing is changed but that it is stored that
it was done. FILE may also be a text file with a recovery line or shares as they were typed from paper; with - it reads such
from standard input.`,
		Args: someArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verifyEscrow(cmd.Context(), source, args) },
	}
	source.add(c)
	return c
}

// someArgs is at least one argument.
func someArgs(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if len(given) == 0 {
			return args(name)(cmd, given)
		}
		return nil
	}
}

func (a *app) verifyEscrow(ctx context.Context, f sourceFlags, paths []string) error {
	source, err := a.openRecovery(ctx, f, paths)
	if err != nil {
		return err
	}
	defer source.clear()
	pins, err := a.allPins()
	if err != nil {
		return err
	}
	if len(source.lines) != 1 {
		return usageError("one recovery file is tried at a time", "")
	}
	s, err := a.openStore(ctx, tableFlags{}, false)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	config := keyhold.Config{Pins: pins, Timeout: a.timeout}
	scopes, err := keyhold.VerifyRecovery(ctx, s, config, source.lines[0].Reveal(), cutTo(strings.Join(paths, ", "), 1000))
	opened := fmt.Sprintf("the recovery %s this installation: every key of %s was opened", source.what("opens", "open"), plural(scopes, "scope", "scopes"))
	switch {
	case err != nil && strings.HasPrefix(err.Error(), "store that "):
		p := a.explain(ctx, err)
		return failed(p.Code, opened+", but that it was tried is not stored: "+strings.TrimPrefix(p.Message, "store that a recovery file was verified: "),
			"the file is good; where that is to be known, try it again as somebody who may write to the table "+a.prefix+"_escrow")
	case err != nil:
		return source.mayBeOfTwo(err)
	}
	a.say("%s", opened)
	if len(pins) == 0 {
		a.say("warning: no pin is given, so that it may be another installation than yours, with its own recovery file")
	}
	return a.result(verified{scopes, source.shares}, func(w io.Writer) { line(w, "scopes opened", scopes) })
}

// what says what it was that does something.
func (r *recoverySource) what(does, do string) string {
	switch {
	case r.shares > 0:
		return "shares " + do
	case len(r.lines) > 1:
		return "files " + do
	}
	return "file " + does
}

// mayBeOfTwo says of a recovery line that was joined and is not the right one that its shares may not belong together.
func (r *recoverySource) mayBeOfTwo(err error) error {
	if r.shares == 0 || !errors.Is(err, keyhold.ErrRecovery) {
		return err
	}
	return failed("recovery", recoveryText(err)+", or its shares are of two times", "give all the shares that there are: those that do not belong show")
}
