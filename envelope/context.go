package envelope

import "fmt"

const (
	contextLabel = "kh1/context"
	fewParts     = 4 // parts that Parts holds as they are
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
func PartsOf(parts ...string) (Parts, error) {
	p := Parts{n: len(parts)}
	switch {
	case p.n == 0:
		return p, nil
	case p.n > maxFields:
		return Parts{}, &ContextError{Reason: fmt.Sprintf("it has %d parts, the limit is %d", p.n, maxFields)}
	case p.n == 1:
		if beginsLikeParts(parts[0]) {
			return Parts{}, &ContextError{Reason: "its only part begins like the encoding of several"}
		}
		p.size = len(parts[0])
	default:
		p.size = 2 + len(contextLabel)
		for _, part := range parts {
			p.size += 4 + len(part)
		}
	}
	if p.size > MaxContext {
		return Parts{}, &TooLargeError{What: "context", Size: p.size, Limit: MaxContext}
	}
	if copy(p.few[:], parts) < p.n {
		p.few = [fewParts]string{string(appendParts(make([]byte, 0, p.size), parts))}
		p.n = 1
	}
	return p, nil
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
	dst = append(dst, byte(len(contextLabel)))
	dst = append(dst, contextLabel...)
	dst = append(dst, byte(len(parts)))
	for _, part := range parts {
		n := len(part)
		dst = append(dst, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		dst = append(dst, part...)
	}
	return dst
}

func beginsLikeParts(s string) bool {
	return len(s) > len(contextLabel) && s[0] == byte(len(contextLabel)) && s[1:1+len(contextLabel)] == contextLabel
}

// ContextError says why parts make no context. It is the caller's input that must change.
type ContextError struct {
	Reason string
}

func (e *ContextError) Error() string { return "invalid context: " + e.Reason }
