package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/migrate"
	"keyhold.example/keyhold/store"
)

// problem is an error as the user reads it: one sentence, and what to do about it where that can be said. None
// holds anything secret.
type problem struct {
	Code    string `json:"code"` // for scripts; the codes are those in this file
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`

	exit int
}

func (p *problem) Error() string { return p.Message }

func usageError(message, hint string) error {
	return &problem{Code: "usage", Message: message, Hint: hint, exit: exitUsage}
}

func failed(code, message, hint string) error {
	return &problem{Code: code, Message: message, Hint: hint, exit: exitFailed}
}

// errFound ends a command that did what it was asked and found something. Nothing more is printed.
var errFound = errors.New("found something")

// report prints the error that a command returned and says what the exit code is.
func (a *app) report(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errFound):
		return exitFound
	}
	p := a.explain(ctx, err)
	p.Message, p.Hint = withoutSecrets(p.Message), withoutSecrets(a.pasted(p.Hint))
	if a.json {
		a.printJSON(a.err, map[string]*problem{"error": p})
		return p.exit
	}
	// If standard error cannot be written to, there is nowhere to say so.
	_, _ = fmt.Fprintf(a.err, "keyhold: error: %s\n", p.Message)
	if p.Hint != "" {
		_, _ = fmt.Fprintf(a.err, "keyhold: hint: %s\n", p.Hint)
	}
	return p.exit
}

// explain makes one sentence of a chain of errors.
func (a *app) explain(ctx context.Context, err error) *problem {
	var (
		said      *problem
		invalid   *keyhold.InvalidError
		option    *migrate.OptionError
		schema    *keyhold.SchemaError
		integrity *keyhold.IntegrityError
		rootInUse *keyhold.InUseRootError
		unseen    *keyhold.UnseenError
		used      *keyhold.InUseError
	)
	fail := func(code, message, hint string) *problem {
		return &problem{Code: code, Message: message, Hint: hint, exit: exitFailed}
	}
	switch {
	case errors.As(err, &said):
		return said
	case errors.Is(err, store.ErrUnknownOutcome):
		return fail("unknown_outcome", a.unsureWhy(ctx, err)+": what was asked may have been done, or not",
			"keyhold migrate status, keyhold scope list and keyhold key list show what there is; repeat it if it was not done")
	case ctx.Err() != nil:
		return fail("interrupted", "interrupted", "")
	case errors.As(err, &invalid):
		message := invalid.Error()
		if invalid.What == "context" {
			message = "invalid context: " + invalid.Reason // there is no value to show, as it is of many parts
		}
		hint := ""
		if invalid.What == "purpose for cleanup" {
			hint = "keyhold key list shows what there is"
		}
		return &problem{Code: "invalid", Message: message, Hint: hint, exit: exitUsage}
	case errors.As(err, &option):
		return &problem{Code: "invalid", Message: option.Error(), exit: exitUsage}
	case errors.As(err, &schema):
		return fail("schema", schema.Error(), schemaHint(schema))
	case errors.Is(err, keyhold.ErrNotInitialized):
		return fail("not_initialized", "there is no installation in "+a.where()+", with tables "+a.tables(), "keyhold init makes one")
	case errors.Is(err, keyhold.ErrPin):
		return fail("pin", err.Error(), "it was rekeyed, which keyhold root list shows when it is given this pin, or it is another database, "+
			"or one that was replaced: compare with the pin that keyhold init or root rekey printed for yours")
	case errors.As(err, &integrity):
		message := brokenText(integrity.Error())
		if broken := (*brokenError)(nil); errors.As(err, &broken) {
			message += "; so is it with keys of " + plural(broken.more, "more scope", "more scopes")
		}
		return fail("integrity", message, "keyhold doctor looks at everything")
	case errors.Is(err, keyhold.ErrOpen):
		return fail("open", "the ciphertext does not open here: it is damaged or cut off, or of another scope, purpose, context or installation",
			"--scope, --purpose and --context have to be those that it was sealed with")
	case errors.Is(err, keyhold.ErrDisabled):
		return fail("disabled", "the ciphertext's key version is disabled or destroyed",
			"keyhold key list shows which version it may be; keyhold key enable ID takes a disabled one into use again")
	case errors.Is(err, keyhold.ErrPurpose):
		return fail("purpose", sentence(err, keyhold.ErrPurpose)+", which is for another use", "keyhold key list shows what each key is for")
	case errors.Is(err, keyhold.ErrGenerator):
		return fail("generator", "the key's versions are made by a generator that only the application has: "+generatorOf(err),
			"the application rotates it: by Run when it is due, or by Rotate")
	case errors.Is(err, keyhold.ErrTooLarge):
		return fail("too_large", sentence(err, keyhold.ErrTooLarge), "")
	case errors.Is(err, keyhold.ErrOldRoot):
		return fail("old_root", oldRootText(err), "give the active root as --root")
	case errors.As(err, &rootInUse):
		return fail("root_in_use", rootInUseText(rootInUse), rootInUseHint)
	case errors.Is(err, keyhold.ErrRecovery):
		return fail("recovery", recoveryText(err), "keyhold root list shows which recovery files were written")
	case explainEscrow(err) != nil:
		return explainEscrow(err)
	case errors.Is(err, keyhold.ErrRoot) && !errors.Is(err, keyhold.ErrPin):
		return fail("root", firstLine(err), "")
	case errors.Is(err, keyhold.ErrRolledBack):
		return fail("rolled_back", err.Error(), "keyhold doctor looks at everything")
	case errors.As(err, &unseen):
		return fail("unseen", unseenText(unseen.Instances), "")
	case errors.Is(err, keyhold.ErrUsedUp):
		return fail("used_up", sentence(err, keyhold.ErrUsedUp)+" has sealed all the messages that its policy allows",
			"keyhold key rotate SCOPE --purpose P adds a version; keyhold run adds it in time; "+
				"keyhold key policy SCOPE --purpose P --max-messages N allows another number")
	case errors.Is(err, keyhold.ErrStale):
		return fail("stale", a.where()+" has been away for longer than keys are used without it", "it goes on by itself when the database is back")
	case errors.As(err, &used):
		return fail("in_use", used.Error(), "")
	case errors.Is(err, keyhold.ErrForeignKey):
		return fail("foreign_key", sentence(err, keyhold.ErrForeignKey)+": the application's tables refuse",
			"the application's row for the scope has to be there first")
	case timedOut(err):
		return fail("timeout", a.noAnswer(), "--timeout allows more")
	case a.explainPostgres(err) != nil:
		return a.explainPostgres(err)
	case errors.Is(err, keyhold.ErrUnavailable):
		return fail("unavailable", "cannot use "+a.where()+": "+a.reason(err), "")
	case errors.Is(err, keyhold.ErrNotFound):
		return fail("not_found", sentence(err, keyhold.ErrNotFound)+" is not there", "")
	case strings.Contains(firstLine(err), ", which was registered, "):
		return fail("registered", firstLine(err), "keyhold key references --unregister TABLE.COLUMN forgets it")
	case isCobraUsage(err):
		hint := "keyhold help lists the commands"
		if _, words, found := strings.Cut(err.Error(), "Did you mean this?"); found {
			hint = "did you mean " + strings.Join(strings.Fields(words), " or ") + "?"
		}
		return &problem{Code: "usage", Message: firstLine(err), Hint: hint, exit: exitUsage}
	}
	return fail("failed", firstLine(err), "")
}

// timedOut says whether the time that --timeout gives was over. A database that is unavailable may also have let
// another limit pass, such as the address's connect_timeout; the manager's own says that it is.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) &&
		(!errors.Is(err, keyhold.ErrUnavailable) || ownTimeout(err))
}

func ownTimeout(err error) bool { return strings.Contains(err.Error(), "(Config.Timeout)") }

func (a *app) noAnswer() string { return "no answer within " + periodText(a.timeout) }

// unsure says of an error of a call that changes something that this may have been done all the same: it was cut off,
// or nobody knows what became of its commit. Any other error it returns as it is. may says what may be, look where that
// shows.
func (a *app) unsure(ctx context.Context, err error, may, look string) error {
	if err == nil || !errors.Is(err, store.ErrUnknownOutcome) && !timedOut(err) && ctx.Err() == nil {
		return err
	}
	code := "unknown_outcome"
	if ctx.Err() != nil {
		code = "interrupted"
	}
	return failed(code, a.unsureWhy(ctx, err)+": "+may+", or not", look)
}

func (a *app) unsureWhy(ctx context.Context, err error) string {
	switch {
	case ctx.Err() != nil:
		return "interrupted"
	case timedOut(err), ownTimeout(err): // of an unknown outcome, the time that was over is not always in the chain
		return a.noAnswer()
	}
	return "the database was lost at the commit"
}

// generatorOf is the name of a generator that is not there, in quotes.
func generatorOf(err error) string {
	_, name, _ := strings.Cut(firstLine(err), keyhold.ErrGenerator.Error()+": ")
	return name
}

// oldRootText says that a root is not the active one, and which is.
func oldRootText(err error) string {
	text := firstLine(err)
	if i := strings.Index(text, keyhold.ErrOldRoot.Error()); i >= 0 {
		text = text[i:]
	}
	return strings.TrimSuffix(text, ": configure that")
}

// where names the database as the user gave it.
func (a *app) where() string {
	if where, err := a.address(); err == nil {
		return "the database " + where.shown
	}
	return "the database"
}

// shown is the database's address as it may be shown.
func (a *app) shown() string { return strings.TrimPrefix(a.where(), "the database ") }

// brokenText is what is wrong with a key in the words of the library, without its methods where there is a command.
func brokenText(text string) string { return strings.ReplaceAll(text, " or Manager.RenameScope", "") }

const makesRoot = "keyhold root keygen FILE makes a new one; without the old one nothing that it protects opens"

// explainRoot makes a problem of an error of a local root.
func explainRoot(given string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failed("root", "there is no root "+given, makesRoot)
	case errors.Is(err, localroot.ErrNotLocalRoot):
		return failed("root", given+" is not a keyhold root, or is cut off",
			"a root is one line that begins with khr1_, as keyhold root keygen writes it")
	case errors.Is(err, localroot.ErrMistyped):
		return failed("root", given+" is mistyped: its checksum is wrong", "copy it again")
	case errors.Is(err, localroot.ErrUnset):
		_, name, _ := strings.Cut(given, ":")
		return failed("root", "the environment variable of "+given+" is not set",
			"it has to hold the root's line, which keyhold root keygen writes to a file: export "+name+`="$(cat FILE)"`)
	}
	return failed("root", "cannot read the root "+given+": "+pathReason(err), "")
}

// sentence is what an error says before the sentinel that it wraps.
func sentence(err, sentinel error) string {
	text := firstLine(err)
	before, _, found := strings.Cut(text, ": "+sentinel.Error())
	if !found || before == "" {
		return text
	}
	return before
}

// reason is what a store says after [store.ErrUnavailable]. Where the file cannot be opened, the system says best why.
func (a *app) reason(err error) string {
	said := storeReason(err)
	where, wrong := a.address()
	if wrong != nil || where.isPostgres() || !strings.HasPrefix(said, "the file cannot be opened") {
		return said
	}
	file, openErr := os.Open(where.path) // nothing holds a lock on it any more, which closing it would release
	if openErr != nil {
		return pathReason(openErr)
	}
	_ = file.Close()
	return said
}

// storeReason is what a store says after [store.ErrUnavailable], without the words of the driver.
func storeReason(err error) string {
	text := firstLine(err)
	unavailable := store.ErrUnavailable.Error()
	if _, after, found := strings.Cut(text, unavailable+": "); found {
		if path, ok := errors.AsType[*fs.PathError](err); ok {
			return path.Err.Error()
		}
		after, _, _ = strings.Cut(after, " (")
		return after
	}
	before := strings.TrimSuffix(text, ": "+unavailable)
	if i := strings.LastIndex(before, ": "); i >= 0 {
		return before[i+2:]
	}
	return before
}

// pathReason is why a file could not be used, without its name.
func pathReason(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err.Error()
	}
	return firstLine(err)
}

func firstLine(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}

// isCobraUsage says whether the error is one that the parser of the command line makes without a type.
func isCobraUsage(err error) bool {
	for _, text := range []string{"unknown command ", "flag needs an argument"} {
		if strings.HasPrefix(err.Error(), text) {
			return true
		}
	}
	return false
}

// quote is a word of the user's as a message has it.
func quote(s string) string {
	text, _ := json.Marshal(s)
	return string(text)
}
