package keyhold

import (
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Errors that say what can be done about them. Test for them with [errors.Is]; they come wrapped in what they are
// about.
var (
	// ErrNotInitialized: the database has no installation. Run "keyhold init", or set [Config.Initialize].
	ErrNotInitialized = errors.New(`no installation in this database: run "keyhold init" or set Config.Initialize`)

	// ErrRoot: the external root does not open this installation. Nothing else is wrong. It comes with
	// [ErrRootUnavailable] if trying again may help; otherwise configure the right root.
	ErrRoot = errors.New("external root does not open this installation")

	// ErrRootUnavailable: the external root failed or did not answer, and nothing says that it is another one than
	// sealed the installation key; of one that has a key of another id, it never comes. Trying again may help. If it
	// does not, see whether the root still lets this process decrypt, and whether the slot's row is damaged.
	ErrRootUnavailable = errors.New("external root failed or did not answer")

	// ErrOldRoot: the process's external root opens the installation and is not the active one, so that it seals and
	// opens, and neither rotates keys nor changes roots. The error's text says which one is.
	ErrOldRoot = errors.New("the external root of this process is not the active one")

	// ErrRecovery: a recovery line does not open this installation. It is mistyped, or of another installation or
	// another installation key; the error's text says which.
	ErrRecovery = errors.New("recovery line does not open this installation")

	// ErrNoEscrow: a recovery line has to be kept, or somebody has to say that it is not to be, by [NoEscrow].
	ErrNoEscrow = errors.New("no recovery line would be kept: give a function that keeps it, or NoEscrow")

	// ErrPin: the database holds another installation than the configured pin names, or none. It may have been
	// replaced.
	ErrPin = errors.New("installation does not have the configured pin")

	// ErrNotFound: there is no such scope, no key for that purpose, or no such key version.
	ErrNotFound = store.ErrNotFound

	// ErrOpen: a ciphertext does not open. It is damaged, not a keyhold ciphertext, or was sealed in another place:
	// another scope, purpose, context or installation. Which of these is not said, as it would help those who try.
	ErrOpen = errors.New("ciphertext does not open here: damaged, or of another scope, purpose, context or installation")

	// ErrDisabled: the ciphertext's key version is disabled or destroyed.
	ErrDisabled = errors.New("key version is not to be used")

	// ErrState: the state of a key version, or of a root's slot, does not allow what was asked for; the error's text
	// says what has to be done before.
	ErrState = errors.New("its state does not allow it")

	// ErrPurpose: the key is for something else, such as blind indexes where messages were to be sealed.
	ErrPurpose = errors.New("key is for another use")

	// ErrRemoved: the raw key of that name was removed, and the name was not registered since. It is an [ErrNotFound],
	// too. [Manager.RegisterRaw] allows a new key, whose numbers go on where those of the removed one ended.
	ErrRemoved = fmt.Errorf("the key of that name was removed: %w", ErrNotFound)

	// ErrGenerator: a raw key's versions are made by a generator that this process does not have. Give it in
	// [Config.Generators]. What is there can be had without it.
	ErrGenerator = errors.New("no such generator in Config.Generators")

	// ErrTooLarge: a plaintext of more than 64 MiB or a context of more than 64 KiB. Nothing was sealed.
	ErrTooLarge = errors.New("too large to seal")

	// ErrRolledBack: the database holds an older state of the key than this process has seen, as after a failover or
	// a restored backup. Sealing with the key is refused, opening goes on.
	ErrRolledBack = errors.New("key is older in the database than it was: a failover or a restored backup")

	// ErrStale: the database has not answered for longer than [Config.SealFor] or [Config.OpenFor] allow. It comes
	// with [ErrUnavailable], and goes by itself when the database is back.
	ErrStale = errors.New("the database has been away for longer than keys are used without it")

	// ErrUsedUp: the head has sealed as many messages as its policy allows, or this process has used up its part of
	// them and the database, which has more, is away: then it comes with [ErrUnavailable]. Rotate the key, or let
	// [Manager.Run] do so in time.
	ErrUsedUp = errors.New("the key version has sealed all the messages that its policy allows")

	// ErrForeignKey: the application's tables refuse: the scope has no row there, or something refers to a key
	// version.
	ErrForeignKey = store.ErrForeignKey

	// ErrUnavailable: the database did not do its part and nothing was changed. Trying again may help.
	ErrUnavailable = store.ErrUnavailable

	// ErrUnknownOutcome: the database did not answer to a commit, so that everything was done or nothing. Keyhold reads
	// again and finds out, as long as the call may last and the database answers; otherwise whoever called has to. A
	// transaction of the application's own has to be rolled back.
	ErrUnknownOutcome = store.ErrUnknownOutcome

	// ErrUnsupported: a part of go-kms-wrapping's interface that makes no sense for a key that keyhold manages.
	ErrUnsupported = errors.New("not supported by a key in the database")

	// ErrClosed: the [Manager] was closed.
	ErrClosed = errors.New("manager is closed")
)

// SchemaError says that the tables have another version than this program needs, or belong to something else.
type SchemaError = store.SchemaError

// InvalidError says which of the caller's names or texts is not of the form it has to be, and why.
type InvalidError = key.InvalidError

// IntegrityError says that what the database holds of a key is not what keyhold wrote: somebody or something changed
// it behind its back. Nothing is sealed or opened with the key until it is right again. It is also the error of a scope
// that the application renamed, until "keyhold scope rename" or [Manager.RenameScope] confirms that.
type IntegrityError struct {
	Subject string // the key, as people name it
	ID      key.ID // of the key; empty if it is the installation
	Reason  string
}

func (e *IntegrityError) Error() string {
	subject := e.Subject
	if e.ID != "" {
		subject += " (" + string(e.ID) + ")"
	}
	return subject + " is not as keyhold stored it: " + e.Reason
}

// wordedError is an error in words of its own that is also others, where their texts would say something else.
type wordedError struct {
	text string
	is   []error
}

func (e *wordedError) Error() string   { return e.text }
func (e *wordedError) Unwrap() []error { return e.is }
