package key

import "fmt"

// State is what a key version may be used for (docs/format.md, section 7). The numbers are stored. Zero is no state.
type State uint8

// The states, and what a version does in each.
const (
	Pending   State = 1 // opens, does not seal yet
	Active    State = 2 // the head: opens, and is the only one that seals
	Retired   State = 3 // opens
	Disabled  State = 4 // neither opens nor seals; can be enabled again
	Destroyed State = 5 // gone; only its number, id and commitment are kept
)

// String is the state's name in lower case.
func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Active:
		return "active"
	case Retired:
		return "retired"
	case Disabled:
		return "disabled"
	case Destroyed:
		return "destroyed"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Opens says whether a version in state s may open what was sealed with it.
func (s State) Opens() bool { return s == Pending || s == Active || s == Retired }

// CanBecome says whether a version may go from s to next. Active to retired goes only together with another version of
// the same key becoming active.
func (s State) CanBecome(next State) bool {
	switch s {
	case Pending:
		return next == Active || next == Destroyed
	case Active:
		return next == Retired
	case Retired:
		return next == Disabled
	case Disabled:
		return next == Retired || next == Destroyed
	case Destroyed:
		return false
	}
	return false
}

// Kind is which level of the hierarchy a key is on.
type Kind string

// The kinds, as they are written in what is authenticated.
const (
	IK  Kind = "ik"  // installation key
	KEK Kind = "kek" // root key of a scope
	DEK Kind = "dek" // data key
)

// Alg is what a key version is for (docs/format.md, section 3). The numbers are stored. It is fixed when a version is
// made.
type Alg uint8

// The algorithms.
const (
	Imported   Alg = 0x00 // opens what go-kms-wrapping's AES-GCM sealed before an import; never seals, never a parent
	Message    Alg = 0x01 // XAES-256-GCM: messages, and every installation and root key
	Raw        Alg = 0x02 // 1 to 1024 bytes handed to the application
	BlindIndex Alg = 0x03 // HMAC-SHA256 of values to search for
)

// String is the algorithm's name in lower case.
func (a Alg) String() string {
	switch a {
	case Imported:
		return "imported"
	case Message:
		return "message"
	case Raw:
		return "raw"
	case BlindIndex:
		return "blind-index"
	}
	return fmt.Sprintf("alg 0x%02x", uint8(a))
}

// Known says whether a is an algorithm of this format version.
func (a Alg) Known() bool { return a <= BlindIndex }
