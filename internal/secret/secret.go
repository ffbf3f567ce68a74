// Package secret holds bytes that no way of printing shows.
package secret

import (
	"fmt"
	"io"
	"log/slog"
)

// Redacted is what stands wherever secret bytes would have been printed.
const Redacted = "[redacted]"

// Bytes is a handle on secret bytes: copies of it share them, and clearing one clears all. Formatted with any verb,
// logged, or marshalled as JSON, text, binary or gob it is [Redacted]. As an unexported field of another struct, where
// the fmt package calls no methods, it shows the address of a function and nothing else.
//
// The zero value holds nothing, and all methods work on it. Reading from several goroutines at once is safe;
// [Bytes.Clear] must not run at the same time as anything that uses the bytes.
type Bytes struct {
	// A function, because fmt and packages that print by reflection follow pointers and slices, but not this.
	do func(clear bool) []byte
}

// New returns a handle on b, which it owns from then on: the caller must neither keep nor change b.
func New(b []byte) Bytes {
	return Bytes{do: func(wipe bool) []byte {
		if wipe {
			clear(b)
			b = nil
		}
		return b
	}}
}

// Reveal returns the bytes themselves, not a copy. They stay owned by s: the caller must not change them, nor use them
// after [Bytes.Clear]. It returns nil when s is the zero value or has been cleared.
func (s Bytes) Reveal() []byte {
	if s.do == nil {
		return nil
	}
	return s.do(false)
}

// Len returns the number of bytes, 0 once they are cleared.
func (s Bytes) Len() int { return len(s.Reveal()) }

// Clear overwrites the bytes with zeros and lets go of them. Clearing again does nothing. What the runtime or a cipher
// has copied from them is out of its reach.
func (s Bytes) Clear() {
	if s.do != nil {
		s.do(true)
	}
}

// Format implements [fmt.Formatter] for all verbs.
func (Bytes) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, Redacted) }

// String returns [Redacted].
func (Bytes) String() string { return Redacted }

// GoString returns [Redacted].
func (Bytes) GoString() string { return Redacted }

// LogValue implements [slog.LogValuer].
func (Bytes) LogValue() slog.Value { return slog.StringValue(Redacted) }

// MarshalJSON returns [Redacted] as a JSON string.
func (Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }

// MarshalText returns [Redacted].
func (Bytes) MarshalText() ([]byte, error) { return []byte(Redacted), nil }

// MarshalBinary returns [Redacted]; gob uses it too.
func (Bytes) MarshalBinary() ([]byte, error) { return []byte(Redacted), nil }
