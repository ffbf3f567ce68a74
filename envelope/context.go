package envelope

import (
	"encoding/binary"
	"fmt"
	"strings"
)

const (
	severalParts = "\x0bkh1/context" // what the encoding of several parts begins with: a tuple's label
	fewParts     = 4                 // parts that Parts holds as they are
)

// Parts is a context (section 5) that is encoded where it is needed, so that up to four parts need no memory of their
// own. It holds the strings that it was made of, not the slice that they came in. The zero value is the empty context.
// Reading it from several goroutines at once is safe.
type Parts struct {
	n    int // parts; 1 also for what was encoded before
	size int // bytes that Append appends
	few  [fewParts]string
}

// PartsOf makes a context of the given parts: nothing of none, the bytes of a single part as they are, and an encoding
// of two to 255 parts that no other parts have. Parts are bytes, and nothing is normalised. Of five parts and more the
// encoding is allocated at once.
//
// A single part that begins like the encoding of several is refused with a [*ContextError], and so are more than 255
// parts; an encoding longer than [MaxContext] with a [*TooLargeError].
func PartsOf(parts ...string) (p Parts, err error) {
	if n := len(parts); n >= 2 && n <= fewParts {
		size := len(severalParts) + 1
		for i, part := range parts { // with copy, the compiler would have all strings on the heap
			p.few[i] = part
			size += 4 + len(part)
		}
		if size > MaxContext {
			return Parts{}, &TooLargeError{What: "context", Size: size, Limit: MaxContext}
		}
		p.n, p.size = n, size
		return p, nil
	}
	return otherParts(parts)
}

// otherParts is PartsOf for other numbers of parts, which messages have seldom.
func otherParts(parts []string) (Parts, error) {
	switch n := len(parts); {
	case n == 0:
		return Parts{}, nil
	case n > maxFields:
		return Parts{}, &ContextError{Reason: fmt.Sprintf("it has %d parts, the limit is %d", n, maxFields)}
	case n == 1:
		if beginsLikeParts(parts[0]) {
			return Parts{}, &ContextError{Reason: "its only part begins like the encoding of several"}
		}
		if len(parts[0]) > MaxContext {
			return Parts{}, &TooLargeError{What: "context", Size: len(parts[0]), Limit: MaxContext}
		}
		return WholeContext(parts[0]), nil
	}
	size := len(severalParts) + 1
	for _, part := range parts {
		size += 4 + len(part)
	}
	if size > MaxContext {
		return Parts{}, &TooLargeError{What: "context", Size: size, Limit: MaxContext}
	}
	return WholeContext(string(appendParts(make([]byte, 0, size), parts))), nil
}

// WholeContext returns the context that consists of these bytes, as [Context] returned them or as they are kept
// elsewhere. Nothing is checked: sealing refuses what is too long, and opening does not open it.
func WholeContext(text string) Parts {
	return Parts{n: 1, size: len(text), few: [fewParts]string{text}}
}

// Context returns the bytes of the context that [PartsOf] makes of the given parts, with its errors.
func Context(parts ...string) (string, error) {
	p, err := PartsOf(parts...)
	if err != nil || p.n <= 1 {
		return p.few[0], err
	}
	return string(p.Append(make([]byte, 0, p.size))), nil
}

// Len returns how many bytes the context has.
func (p *Parts) Len() int { return p.size }

// Append appends the bytes of the context to dst, and returns the longer slice.
func (p *Parts) Append(dst []byte) []byte {
	if p.n <= 1 {
		return append(dst, p.few[0]...)
	}
	return appendParts(dst, p.few[:p.n])
}

func appendParts(dst []byte, parts []string) []byte {
	dst = append(dst, severalParts...)
	dst = append(dst, byte(len(parts)))
	for _, part := range parts {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(part)))
		dst = append(dst, part...)
	}
	return dst
}

func beginsLikeParts(s string) bool {
	return strings.HasPrefix(s, severalParts)
}

// ContextError says why parts make no context. It is the caller's input that must change.
type ContextError struct {
	Reason string
}

func (e *ContextError) Error() string { return "invalid context: " + e.Reason }
