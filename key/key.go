// Package key holds the nouns that name and describe keys: scopes, purposes, references, versions, states, ids.
//
// Nothing here holds key material, and everything may be printed and logged. Limits and text forms are those of
// docs/format.md, sections 1 and 3.
package key

import (
	"fmt"
	"unicode"
	"unicode/utf8"
)

// Limits of names and numbers (docs/format.md, section 1).
const (
	MaxScopeLen   = 512   // bytes of a scope
	MaxPurposeLen = 255   // bytes of a purpose
	MaxVersion    = 65535 // the highest version number of one key
)

// Scope is a rotation boundary, such as a tenant, an organisation or a project: the application's own id for it.
// Two scopes are the same exactly if their bytes are; nothing is normalised.
type Scope string

// Validate says whether s may be a scope: 1 to [MaxScopeLen] bytes of valid UTF-8 without control characters.
// The error is an [*InvalidError].
func (s Scope) Validate() error { return validate("scope", string(s), MaxScopeLen, false) }

// Purpose is what a data key is for, such as "client-secrets".
type Purpose string

// Validate says whether p may be a purpose: 1 to [MaxPurposeLen] bytes of valid UTF-8 without control characters, and
// no white space at either end. The error is an [*InvalidError].
func (p Purpose) Validate() error { return validate("purpose", string(p), MaxPurposeLen, true) }

// Ref names one key: the data key of a scope for a purpose, or, with an empty purpose, the root key of the scope.
// It is comparable, and is the map key wherever a key is looked up by name.
type Ref struct {
	Scope   Scope
	Purpose Purpose
}

// IsRoot says whether r names a scope's root key.
func (r Ref) IsRoot() bool { return r.Purpose == "" }

// Validate checks the scope and, unless r names a root key, the purpose. The error is an [*InvalidError].
func (r Ref) Validate() error {
	if err := r.Scope.Validate(); err != nil || r.IsRoot() {
		return err
	}
	return r.Purpose.Validate()
}

// String is r for people: both names quoted, so that no two references look alike.
func (r Ref) String() string {
	if r.IsRoot() {
		return fmt.Sprintf("root key of scope %q", string(r.Scope))
	}
	return fmt.Sprintf("key %q of scope %q", string(r.Purpose), string(r.Scope))
}

// Version numbers the versions of one key, from 1 to [MaxVersion] without gaps. Zero is no version.
type Version uint32

// InvalidError says why a name or a text is not of the form it has to be. It is the caller's input that must change.
type InvalidError struct {
	What   string // what the text was to be: "scope", "purpose", "key version id"
	Value  string // the text, cut to a printable length
	Reason string // the rule that it breaks
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("invalid %s %q: %s", e.What, e.Value, e.Reason)
}

// Invalid returns an [*InvalidError]; of a long value only the beginning is kept.
func Invalid(what, value, reason string) error {
	const keep = 64
	if len(value) > keep {
		value = value[:keep] + "…"
	}
	return &InvalidError{What: what, Value: value, Reason: reason}
}

func validate(what, s string, limit int, trimmed bool) error {
	switch {
	case s == "":
		return Invalid(what, s, "it is empty")
	case len(s) > limit:
		return Invalid(what, s, fmt.Sprintf("it has %d bytes, the limit is %d", len(s), limit))
	case !utf8.ValidString(s):
		return Invalid(what, s, "it is not valid UTF-8")
	}
	for _, r := range s {
		// U+0000 to 1F and 7F to 9F are exactly Unicode's category Cc.
		if unicode.IsControl(r) {
			return Invalid(what, s, fmt.Sprintf("it contains the control character %U", r))
		}
	}
	if !trimmed {
		return nil
	}
	first, _ := utf8.DecodeRuneInString(s)
	last, _ := utf8.DecodeLastRuneInString(s)
	if unicode.IsSpace(first) || unicode.IsSpace(last) {
		return Invalid(what, s, "it begins or ends with white space")
	}
	return nil
}
