package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"keyhold.example/keyhold/key"
)

var (
	// ErrNotFound means that what was asked for is not in the database.
	ErrNotFound = errors.New("not found")

	// ErrConflict means that somebody else was first. Nothing was changed; read again and decide anew.
	ErrConflict = errors.New("changed by somebody else in the meantime")

	// ErrForeignKey means that the application's tables refuse: there is no row for the scope, or a row refers to a
	// version. Nothing was changed. In a [Tx] the application's transaction may have to be rolled back, as its database
	// demands.
	ErrForeignKey = errors.New("a foreign key of the application's tables refuses")

	// ErrUnavailable means that the database did not do its part: it is away, locked for too long, full, or read-only.
	// Nothing was changed, and trying again later may help.
	ErrUnavailable = errors.New("database unavailable")

	// ErrUnknownOutcome means that the database was lost while it answered to a commit, or was waited for no longer:
	// either everything was done or nothing. It is no [ErrUnavailable], whatever ended the wait. Read again.
	ErrUnknownOutcome = errors.New("outcome of the commit unknown")
)

// InUseError says what has the id of a version that was not to be in use any more. It is an [ErrForeignKey], too.
type InUseError struct {
	ID         key.ID
	References []Reference // those with rows
}

func (e *InUseError) Error() string {
	var where []string
	for _, r := range e.References {
		where = append(where, r.String())
	}
	return fmt.Sprintf("key version %s is in use: rows that have its id: %s", e.ID, strings.Join(where, ", "))
}

// Unwrap returns [ErrForeignKey].
func (e *InUseError) Unwrap() error { return ErrForeignKey }

// ContextError is why a context ended, in the words of whoever ended it, and always also what its Err says. It is what
// calls return whose context has ended; nil for one that has not.
func ContextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == nil || errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// NoVersion is [SchemaError.Foreign] of tables that say no version at all.
const NoVersion = "none"

// SchemaError says that the tables are not those that this program works with.
type SchemaError struct {
	Prefix  string // of the tables
	Have    int    // the version found; 0 if there are no tables
	Want    int    // the program's, [SchemaVersion]
	Foreign string // if not empty, the version that tables of another system, under the same names, say they have
}

func (e *SchemaError) Error() string {
	switch {
	case e.Foreign == NoVersion:
		return fmt.Sprintf("there are tables %s_* that are not keyhold's, or not all of them: choose another prefix", e.Prefix)
	case e.Foreign != "":
		return fmt.Sprintf("the tables %s_* belong to another system (its schema version is %s): choose another prefix", e.Prefix, e.Foreign)
	case e.Have == 0:
		return fmt.Sprintf("there are no tables %s_* in this database: run \"keyhold init\"", e.Prefix)
	case e.Have < e.Want:
		return fmt.Sprintf("the tables %s_* have schema version %d, this program needs %d: run \"keyhold migrate up\"", e.Prefix, e.Have, e.Want)
	default:
		return fmt.Sprintf("the tables %s_* have schema version %d, this program knows only %d: use a newer program", e.Prefix, e.Have, e.Want)
	}
}
