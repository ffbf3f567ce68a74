package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/escrow"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
)

// aRecipient says what a recovery file is sealed to.
const aRecipient = "age-keygen makes an identity, to be kept apart from whoever runs the application, and prints its recipient; " +
	"with -pq, one that resists quantum computers"

// escrowFlags say what recovery files are written.
type escrowFlags struct {
	file       string
	recipients []string
	shares     int
}

// add adds the flags. Where the file is an argument, flag is false.
func (f *escrowFlags) add(c *cobra.Command, flag bool) {
	if flag {
		c.Flags().StringVar(&f.file, "escrow", "", "write a recovery file, which opens the installation without any root")
	}
	c.Flags().StringArrayVar(&f.recipients, "recipient", nil,
		"who can open the recovery file: an age recipient, age1... or age1pq1..., or @FILE with one on each line; can be repeated")
	c.Flags().IntVar(&f.shares, "shares", 0,
		"write a file for each --recipient, FILE-1-of-N and so on, of which so many are needed together (default one file, for any of them)")
}

// prepare checks all that can be checked before there is a key.
func (f *escrowFlags) prepare(given func(flag string) bool) (*recoveryFiles, error) {
	switch {
	case given("escrow") && f.file == "":
		return nil, usageError("--escrow is empty", "give the name of the recovery file to write")
	case f.file == "" && (given("recipient") || given("shares")):
		return nil, usageError("no recovery file is named", "give --escrow FILE")
	case f.file == "":
		return &recoveryFiles{}, nil
	case withoutSecrets(f.file) != f.file: // it would be stored in the database
		return nil, usageError("a recovery line, a share, a root or an identity is given where the name of a file belongs",
			"give the name of the recovery file to write; and take it for known to others")
	case len(f.recipients) == 0:
		return nil, usageError("nobody is named who could open the recovery file", "give --recipient R; "+aRecipient)
	case given("shares") && f.shares < 2:
		return nil, usageError("--shares has to be 2 at least", "leave it out for one file, which any of the recipients can open alone")
	}
	plan, err := escrow.Prepare(f.file, f.recipients, f.shares)
	if err != nil {
		return nil, err
	}
	if err := canMakeFiles(filepath.Dir(f.file)); err != nil {
		return nil, err
	}
	return &recoveryFiles{plan: plan, flags: *f}, nil
}

// canMakeFiles tries whether files can be made in a folder, and be made to outlast a crash, for which it has to be
// readable too: there is no recovery file to write before there is a key, which is too late to find that out.
func canMakeFiles(folder string) error {
	dir, err := os.Open(folder)
	if err == nil {
		err = dir.Close()
	}
	var tried *os.File
	if err == nil {
		tried, err = os.CreateTemp(folder, ".keyhold-*")
	}
	if err == nil {
		err = errors.Join(tried.Close(), os.Remove(tried.Name()))
	}
	if err != nil {
		return failed("file", "cannot write a recovery file into the folder "+folder+": "+pathReason(err), "")
	}
	return nil
}

// recoveryFiles are recovery files that can be written; the zero value is none.
type recoveryFiles struct {
	plan  *escrow.Plan
	flags escrowFlags
	done  bool // they are written
}

// wanted says whether there are any. Nil is none.
func (r *recoveryFiles) wanted() bool { return r != nil && r.plan != nil }

// write is a [keyhold.EscrowFunc].
func (r *recoveryFiles) write(line []byte) (string, error) {
	if err := r.plan.Write(line); err != nil {
		return "", err
	}
	r.done = true
	return r.detail(), nil
}

// classicRecipient is how long age's recipients are that do not resist quantum computers. These do not fit whole.
const classicRecipient = 62

// mostNamed is how many recipients are stored by name with what was written.
const mostNamed = 20

// detail is what is stored of it, for people.
func (r *recoveryFiles) detail() string {
	names := make([]string, 0, mostNamed)
	for _, recipient := range r.flags.recipients[:min(len(r.flags.recipients), mostNamed)] {
		names = append(names, cutTo(recipient, classicRecipient))
	}
	to := strings.Join(names, ", ")
	if n := len(r.flags.recipients) - len(names); n > 0 {
		to += fmt.Sprintf(" and %d more", n)
	}
	if r.flags.shares > 0 {
		return fmt.Sprintf("%s, %d shares of which %d are needed, to %s", cutTo(r.flags.file, 200), len(r.plan.Files()), r.flags.shares, to)
	}
	return cutTo(r.flags.file, 200) + ", to any of " + to
}

// cutTo is the beginning of a text, in UTF-8.
func cutTo(text string, most int) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}

// files are the names of what was written.
func (r *recoveryFiles) files() []string {
	if !r.wanted() || !r.done {
		return []string{}
	}
	return r.plan.Files()
}

// sayWritten says what was written, if anything was.
func (a *app) sayWritten(r *recoveryFiles) {
	files := r.files()
	if len(files) == 0 {
		return
	}
	a.say("wrote %s; with the database it opens everything, so give each to whom it is sealed to, and keep none here", strings.Join(files, ", "))
	a.say("keyhold root verify-escrow, where the identities are, shows that it does")
}

// sayNone says what it means that there is no recovery file.
func (a *app) sayNone() {
	a.say("there is no recovery file: who loses every root loses every key; keyhold root escrow FILE --recipient R writes one")
}

// sourceFlags say where an installation key is to be had from, besides the files.
type sourceFlags struct{ identities []string }

func (f *sourceFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.identities, "identity", nil,
		"a file of age identities that open the recovery files, in the clear or with a passphrase; can be repeated")
}

// recoverySource is what an installation key was had from.
type recoverySource struct {
	lines  []secret.Bytes
	shares int // that a line was joined from
}

func (r *recoverySource) clear() {
	for i := range r.lines {
		r.lines[i].Clear()
	}
}

// reveal is the lines themselves, which are cleared with r.
func (r *recoverySource) reveal() [][]byte {
	lines := make([][]byte, 0, len(r.lines))
	for i := range r.lines {
		lines = append(lines, r.lines[i].Reveal())
	}
	return lines
}

// openRecovery opens recovery files, each whole, or shares that belong together. While an installation is rekeyed, it
// takes two that are whole.
func (a *app) openRecovery(ctx context.Context, f sourceFlags, files []string) (*recoverySource, error) {
	for _, file := range files {
		if withoutSecrets(file) != file {
			return nil, usageError("a recovery line or an identity is given as an argument, where others can see it",
				"put it in a file that only you can read, or give - and write it to standard input; and take it for known to others")
		}
	}
	var typed []byte
	if slices.Contains(files, "-") {
		var err error
		if typed, err = readAll(ctx, a.in, mostTyped); err != nil {
			return nil, err
		}
		defer clear(typed)
	}
	open := func(files ...string) (*escrow.Opened, error) {
		source := escrow.Source{Files: files, Identities: f.identities, Stdin: bytes.NewReader(typed), Passphrase: askPassphrase}
		return source.Open()
	}
	opened, err := open(files...)
	switch {
	case err == nil:
		return &recoverySource{[]secret.Bytes{opened.Line}, opened.Shares}, nil
	case !errors.Is(err, seal.ErrMixed) || len(files) != 2:
		return nil, err
	}
	both := &recoverySource{}
	for _, file := range files {
		one, oneErr := open(file)
		if oneErr != nil {
			both.clear()
			return nil, err
		}
		both.lines = append(both.lines, one.Line)
	}
	return both, nil
}

// mostTyped is more than anybody types.
const mostTyped = 1 << 16

// askPassphrase asks whoever sits at the terminal.
func askPassphrase(path string) (secret.Bytes, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return secret.Bytes{}, failed("passphrase", path+" is sealed with a passphrase, and there is no terminal to ask for it at",
			"open it with age --decrypt, into a file in memory, and give that")
	}
	defer tty.Close()
	_, _ = fmt.Fprintf(tty, "passphrase of %s: ", visible(path))
	typed, err := term.ReadPassword(int(tty.Fd()))
	_, _ = fmt.Fprintln(tty)
	if err != nil {
		clear(typed)
		return secret.Bytes{}, failed("passphrase", "cannot read the passphrase of "+path+" from the terminal", "")
	}
	return secret.New(typed), nil
}

// explainEscrow makes a problem of an error about recovery files, nil of others.
func explainEscrow(err error) *problem {
	fail := func(code, hint string) *problem {
		return &problem{Code: code, Message: escrowText(err), Hint: hint, exit: exitFailed}
	}
	few, tooFew := errors.AsType[*seal.TooFewSharesError](err)
	switch {
	case errors.Is(err, escrow.ErrRecipients):
		p := fail("usage", aRecipient)
		p.exit = exitUsage
		return p
	case errors.Is(err, escrow.ErrFIPS):
		return fail("fips", "without FIPS-only mode they are, on a machine that need not have the application")
	case errors.Is(err, escrow.ErrIdentity):
		return fail("identity", "--identity FILE is a custodian's file of age identities")
	case tooFew:
		return &problem{Code: "shares", Message: few.Error(), Hint: "give more custodians' files, with an --identity for each", exit: exitFailed}
	case errors.Is(err, escrow.ErrDamaged), errors.Is(err, seal.ErrNotRecovery), errors.Is(err, seal.ErrNotShare), errors.Is(err, seal.ErrMistyped),
		errors.Is(err, seal.ErrSameShare), errors.Is(err, seal.ErrMixed):
		return fail("recovery", "")
	case strings.Contains(firstLine(err), "escrow: "):
		return explainFile(err)
	}
	return nil
}

// explainFile is about a file that could not be read or written.
func explainFile(err error) *problem {
	at, ok := errors.AsType[*fs.PathError](err)
	switch {
	case !ok:
		return &problem{Code: "file", Message: escrowText(err), exit: exitFailed}
	case errors.Is(err, fs.ErrExist):
		return &problem{
			Code: "exists", Message: at.Path + " is there already, and was not touched",
			Hint: "a recovery file that is lost cannot be made again: choose another name", exit: exitFailed,
		}
	case at.Op == "create", at.Op == "write", at.Op == "sync":
		return &problem{Code: "file", Message: "cannot write " + at.Path + ": " + at.Err.Error(), exit: exitFailed}
	}
	return &problem{Code: "file", Message: "cannot use " + at.Path + ": " + at.Err.Error(), exit: exitFailed}
}

var escrowSteps = regexp.MustCompile(`^.*(?:prepare|write|open) escrow: `)

// escrowText is the sentence of an error about recovery files.
func escrowText(err error) string { return escrowSteps.ReplaceAllString(firstLine(err), "") }

// recoveryText says why a recovery line is not the right one.
func recoveryText(err error) string {
	text := firstLine(err)
	if i := strings.Index(text, keyhold.ErrRecovery.Error()); i > 0 {
		text = text[i:]
	}
	return strings.Replace(text, keyhold.ErrRecovery.Error()+": it is ", "the recovery line is ", 1)
}

// secretText finds what nobody should have given where it stands: a recovery line, a share, a local root, an identity.
var secretText = regexp.MustCompile(`(?i)(khi1_|khs1_|khr1_|AGE-SECRET-KEY-(?:PQ-)?1)[0-9a-z]{8,}`)

// withoutSecrets is a text without such.
func withoutSecrets(text string) string { return secretText.ReplaceAllString(text, "${1}[redacted]") }

// escrowJSON is what is known of a recovery file, as --json shows it.
type escrowJSON struct {
	What    string `json:"what"` // written or verified
	Current bool   `json:"current"`
	Detail  string `json:"detail"`
	At      string `json:"at"`
}

func escrowsToJSON(list []keyhold.EscrowInfo) []escrowJSON {
	all := make([]escrowJSON, 0, len(list))
	for _, e := range list {
		what := "written"
		if e.Verified {
			what = "verified"
		}
		all = append(all, escrowJSON{what, e.Current, e.Detail, timeText(e.At)})
	}
	return all
}

// escrowState says in a word what became of the recovery files of the installation key: none, written, or verified.
func escrowState(list []keyhold.EscrowInfo) string {
	state := "none"
	for _, e := range list {
		switch {
		case !e.Current:
		case e.Verified:
			return "verified"
		default:
			state = "written"
		}
	}
	return state
}
