package pgstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/store"
)

// dbError is an error of the driver's. What a caller gets wraps it, and so the driver's own.
type dbError struct {
	err     error
	state   string // SQLSTATE; empty if the server said nothing, which means that the connection is lost
	connect bool   // the connection was not made
}

func (e *dbError) Error() string { return oneLine(e.err.Error()) }
func (e *dbError) Unwrap() error { return e.err }

// attemptForm is what pgx says of an attempt to connect: perhaps who to what, the address, its host, what came of it.
var attemptForm = regexp.MustCompile("^(connect to `.*`: )?(\\S+) \\((\\S+)\\): (?:dial error: )?(.+)$")

// oneLine is a driver's text on one line. Of a connection that was not made pgx has a line for each address, and for
// each way to connect to it, all of which name the address, some of them twice.
func oneLine(text string) string {
	var said []string
	last := ""
	for line := range strings.Lines(text) {
		// That it did not come about is said by ours.
		if line = strings.TrimPrefix(strings.TrimSpace(line), "failed to "); line == "" || slices.Contains(said, line) {
			continue
		}
		said = append(said, line)
	}
	for i, line := range said {
		m := attemptForm.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		begin, address, host, reason := m[1], m[2], m[3], m[4]
		who, named := address, strings.Contains(reason, address)
		switch {
		case !strings.Contains(address, host) && named:
			who = host
		case !strings.Contains(address, host):
			who = host + " (" + address + ")"
		}
		if who == last || named && who == address {
			said[i] = begin + reason
		} else {
			said[i] = begin + who + ": " + reason
		}
		last = who
	}
	return strings.ReplaceAll(strings.Join(said, "; "), ":; ", ": ")
}

// ErrSetting: the server does not know a setting of the address, or not its value. It comes with
// [store.ErrUnavailable]. Which setting it is, it does not say: what the server repeats may be the end of a password
// with a space in it.
var ErrSetting = errors.New("the server refuses a setting of the address")

// errStandby is what a standby would say if it were asked to write. What is read from one may be long out of date.
var errStandby = &dbError{err: errors.New("it is a standby, and keys are read from the primary"), state: "25006"}

func databaseError(err error) error {
	if err == nil {
		return nil
	}
	var coded interface{ SQLState() string }
	state := ""
	if errors.As(err, &coded) {
		state = coded.SQLState()
	}
	return &dbError{err: err, state: state}
}

func connectError(err error) error {
	e := databaseError(err).(*dbError) //nolint:errorlint // it was made here
	e.connect = true
	switch e.state {
	case "22023", "42601", "42704":
		e.err = ErrSetting
	}
	return e
}

func stateOf(err error) string {
	if e, ok := errors.AsType[*dbError](err); ok {
		return e.state
	}
	return ""
}

const noSavepoint = "3B001"

// class is what an error of PostgreSQL's means for a caller.
type class int

const (
	classOther class = iota // a bug, tampering, or a rule of the tables that refuses
	classForeignKey
	classNoTable
	classLost
	classReadOnly
	classSerialization
	classLocked
	classInterrupted
	classFull
	classDamaged
	classNotLetIn
)

// sentences say what is wrong with the database, where its being unavailable is what a caller has to know.
var sentences = map[class]string{
	classLost:          "the connection cannot be made, or was lost",
	classReadOnly:      "the server is read-only, as a standby is",
	classSerialization: "it was given up in favour of other transactions",
	classLocked:        "another transaction has locked what is needed for too long",
	classInterrupted:   "the statement was interrupted",
	classFull:          "the server has no room, memory or connections left",
	classDamaged:       "the server cannot read its files",
	classNotLetIn:      "the server does not let this user in",
}

// states are SQLSTATEs and their first two characters.
var states = map[string]class{
	"":      classLost,
	"08":    classLost, // connection exception
	"25006": classReadOnly,
	"23001": classForeignKey, // restrict, from PostgreSQL 18 on
	"23503": classForeignKey,
	"40001": classSerialization,
	"40P01": classSerialization, // deadlock detected
	"42P01": classNoTable,
	"53":    classFull, // insufficient resources
	"55P03": classLocked,
	"57014": classInterrupted,
	"57P01": classLost,    // admin shutdown
	"57P02": classLost,    // crash shutdown
	"57P03": classLost,    // cannot connect now
	"57P05": classLost,    // idle session timeout
	"25P03": classLost,    // idle in transaction session timeout
	"25P04": classLost,    // transaction timeout
	"58":    classDamaged, // system error
	"XX001": classDamaged,
	"XX002": classDamaged,
}

func classify(err error) class {
	e, ok := errors.AsType[*dbError](err)
	if !ok {
		return classOther
	}
	if errors.Is(err, pgx.ErrTxClosed) || errors.Is(err, sql.ErrTxDone) {
		return classOther // the application ended its transaction
	}
	c, known := states[e.state]
	if !known && len(e.state) > 2 {
		c = states[e.state[:2]]
	}
	if c == classOther && e.connect {
		return classNotLetIn
	}
	return c
}

// isLost says whether the connection is of no more use: it is gone, or leads to a server that was replaced.
func isLost(err error) bool {
	c := classify(err)
	return c == classLost || c == classReadOnly
}

// worthRetrying says whether the whole transaction may succeed if it is run again. Of a commit it never says so,
// unless the server said that it did not take place.
func worthRetrying(err error) bool {
	if errors.Is(err, store.ErrUnknownOutcome) {
		return false
	}
	switch classify(err) {
	case classLost, classReadOnly, classSerialization:
		return true
	case classFull:
		return stateOf(err) == "53300" // too many connections
	case classForeignKey:
		// The root key was there when the statement looked, and is deleted since.
		return strings.Contains(err.Error(), "_data_key_root_key_fkey")
	case classOther, classNoTable, classLocked, classInterrupted, classDamaged, classNotLetIn:
		return false
	}
	return false
}

// refused says whether the server answered, to a statement with which a transaction ends, that nothing was committed.
func refused(err error) bool {
	state, c := stateOf(err), classify(err)
	return state != "" && state != "40003" && c != classLost && c != classDamaged && !strings.HasPrefix(state, "XX")
}

// ownReferences are the foreign keys that say that a caller broke a rule. The one from a version to its parent is
// not among them: that one refuses to let a parent go.
var ownReferences = []string{
	"installation_active_slot_fkey", "root_key_head_fkey", "root_key_version_key_fkey",
	"data_key_head_fkey", "data_key_root_key_fkey", "data_key_version_key_fkey", "data_key_name_root_key_fkey",
}

// keyReferences are the foreign keys to installation keys. They refuse what names one that is gone, and to let one go
// that something names: it was read before.
var keyReferences = []string{
	"installation_ik_kid_fkey", "root_key_ik_kid_fkey", "root_key_version_ik_kid_fkey", "data_key_ik_kid_fkey",
	"data_key_name_ik_kid_fkey",
}

// raced are the triggers that refuse what was right when it was read.
var raced = []string{
	"data_key_version_parent_usable_insert", "data_key_version_parent_usable_update", "data_key_named", "data_key_name_free",
}

func (t *tables) isOneOf(names []string, err error) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		// Quoted as the server's language has it.
		return regexp.MustCompile(`\b` + regexp.QuoteMeta(t.options.Prefix+"_"+name) + `\b`).MatchString(err.Error())
	})
}

// explain gives an error its context and, if a caller can decide on it, the contract's type. A nil error stays nil.
func (t *tables) explain(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	for _, known := range []error{store.ErrUnavailable, store.ErrUnknownOutcome, store.ErrForeignKey, store.ErrConflict, store.ErrNotFound} {
		if errors.Is(err, known) {
			return fmt.Errorf("%s: %w", doing, err)
		}
	}
	c := classify(err)
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, store.ContextError(ctx))
	}
	switch {
	case stateOf(err) == "23514" && t.isOneOf(raced, err):
		return fmt.Errorf("%s: %w (%w)", doing, store.ErrConflict, err)
	case c == classForeignKey && t.isOneOf(keyReferences, err):
		return fmt.Errorf("%s: %w (%w)", doing, store.ErrConflict, err)
	case c == classForeignKey && !t.isOneOf(ownReferences, err):
		return fmt.Errorf("%s: %w (%w)", doing, store.ErrForeignKey, err)
	case c == classNoTable && strings.Contains(err.Error(), t.options.Prefix+"_"):
		return fmt.Errorf("%s: %w", doing, &store.SchemaError{Prefix: t.options.Prefix, Want: store.SchemaVersion})
	case sentences[c] != "":
		return fmt.Errorf("%s: %w: %s (%w)", doing, store.ErrUnavailable, sentences[c], err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
