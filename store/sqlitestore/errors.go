package sqlitestore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"

	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/rows"
)

// class is what an error of SQLite's means for a caller.
type class int

const (
	classOther class = iota // a bug, tampering, or a rule of the tables that refuses
	classForeignKey
	classUnique
	classLocked
	classReadOnly
	classIO
	classDamaged
	classFull
	classNoMemory
	classCannotOpen
	classNotADatabase
	classInterrupted
	classLost
	classNoTable
)

// sentences say what is wrong with the database, where its being unavailable is what a caller has to know.
var sentences = map[class]string{
	classLocked:       "another process has locked it for too long",
	classReadOnly:     "the file, or its folder, is read-only",
	classIO:           "reading or writing the file does not work; the disk may be full",
	classDamaged:      "the file is damaged",
	classFull:         "the disk is full",
	classNoMemory:     "SQLite gets no more memory",
	classCannotOpen:   "the file cannot be opened; it, its folder or its disk may be read-only",
	classNotADatabase: "the file is not an SQLite database",
	classInterrupted:  "the statement was interrupted",
	classLost:         "the connection was lost",
}

// classes are SQLite's result codes.
var classes = map[int]class{
	3:  classCannotOpen, // SQLITE_PERM
	5:  classLocked,     // SQLITE_BUSY
	6:  classLocked,     // SQLITE_LOCKED
	7:  classNoMemory,   // SQLITE_NOMEM
	8:  classReadOnly,
	9:  classInterrupted,
	10: classIO,
	11: classDamaged,
	13: classFull,
	14: classCannotOpen,
	15: classLocked, // SQLITE_PROTOCOL
	23: classCannotOpen,
	26: classNotADatabase,
}

// texts are SQLite's own words in a message, for drivers that do not show the code as modernc.org/sqlite does.
var texts = []struct {
	text  string
	class class
}{
	{"FOREIGN KEY constraint failed", classForeignKey},
	{"UNIQUE constraint failed", classUnique},
	{"database is locked", classLocked},
	{"database table is locked", classLocked},
	{"attempt to write a readonly database", classReadOnly},
	{"disk I/O error", classIO},
	{"database disk image is malformed", classDamaged},
	{"database or disk is full", classFull},
	{"out of memory", classNoMemory},
	{"unable to open database file", classCannotOpen},
	{"file is not a database", classNotADatabase},
}

func classify(err error) class {
	var row *rows.Error
	if err == nil || errors.As(err, &row) {
		return classOther
	}
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) {
		return classLost
	}
	if strings.Contains(err.Error(), "no such table: ") {
		return classNoTable
	}
	var coded interface{ Code() int }
	if errors.As(err, &coded) {
		switch coded.Code() {
		case 787: // SQLITE_CONSTRAINT_FOREIGNKEY
			return classForeignKey
		case 2067, 1555: // SQLITE_CONSTRAINT_UNIQUE, SQLITE_CONSTRAINT_PRIMARYKEY
			return classUnique
		}
		return classes[coded.Code()&0xff]
	}
	for _, t := range texts {
		if strings.Contains(err.Error(), t.text) {
			return t.class
		}
	}
	return classOther
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
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, store.ContextError(ctx))
	}
	c := classify(err)
	switch {
	case strings.Contains(err.Error(), t.options.Prefix+"_data_key_named: "):
		return fmt.Errorf("%s: %w (%w)", doing, store.ErrConflict, err) // a key of the name was removed meanwhile
	case strings.Contains(err.Error(), t.options.Prefix+"_data_key_version_parent_usable_"):
		return fmt.Errorf("%s: %w (%w)", doing, store.ErrConflict, err) // it was read before the parent was disabled
	case c == classForeignKey:
		return fmt.Errorf("%s: %w", doing, store.ErrForeignKey)
	case c == classNoTable && strings.Contains(err.Error(), "no such table: "+t.options.Prefix+"_"):
		return fmt.Errorf("%s: %w", doing, &store.SchemaError{Prefix: t.options.Prefix, Want: store.SchemaVersion})
	case sentences[c] != "":
		return fmt.Errorf("%s: %w: %s (%w)", doing, store.ErrUnavailable, sentences[c], err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
