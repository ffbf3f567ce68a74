// Package envelope lays out what keyhold stores, sends and authenticates, byte for byte.
//
// It parses and appends, and does no more: no cryptography, no input or output. The layouts are those of
// docs/format.md, and the section numbers in the comments are that document's. Nothing that a function here returns is
// trusted by that alone: what was parsed is still to be opened, or its MAC to be checked.
package envelope

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Limits of what is sealed (docs/format.md, section 1), in bytes.
const (
	MaxPlaintext = 64 << 20
	MaxContext   = 64 << 10
)

const (
	maxLabel  = 255
	maxFields = 255
)

// ErrMalformed says that bytes are not of the layout that they had to have. What came from outside is wrong, or cut
// off.
var ErrMalformed = errors.New("malformed envelope")

// TooLargeError says that what was to be sealed is beyond a limit. It is the caller's input that must change.
type TooLargeError struct {
	What  string // "plaintext", "context"
	Size  int    // bytes that there are
	Limit int    // bytes that there may be
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s has %d bytes, the limit is %d", e.What, e.Size, e.Limit)
}

// Tuple returns Enc(label, fields...), the only encoding that is ever hashed or authenticated (section 1). It is
// injective: two different calls never give the same bytes. It panics if label is longer than 255 bytes or there are
// more than 255 fields, which only a mistake in the program can bring about.
func Tuple(label string, fields ...[]byte) []byte {
	size := 2 + len(label)
	for _, f := range fields {
		size += 4 + len(f)
	}
	return AppendTuple(make([]byte, 0, size), label, fields...)
}

// AppendTuple appends what [Tuple] returns to dst, and returns the longer slice.
func AppendTuple(dst []byte, label string, fields ...[]byte) []byte {
	if len(label) > maxLabel || len(fields) > maxFields {
		panic(fmt.Sprintf("envelope: tuple with a label of %d bytes and %d fields", len(label), len(fields)))
	}
	dst = append(dst, byte(len(label)))
	dst = append(dst, label...)
	dst = append(dst, byte(len(fields)))
	for _, f := range fields {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(f)))
		dst = append(dst, f...)
	}
	return dst
}

// ParseTuple reads the tuple that b begins with. The fields and the rest after it are parts of b, not copies. The error
// is [ErrMalformed] if b ends before the tuple does; memory is used in proportion to what b holds, not to what it
// claims.
func ParseTuple(b []byte) (label string, fields [][]byte, rest []byte, err error) {
	name, b, ok := cut(b, 1)
	if !ok || len(b) == 0 {
		return "", nil, nil, ErrMalformed
	}
	n := int(b[0])
	b = b[1:]
	if len(b) < 4*n {
		return "", nil, nil, ErrMalformed
	}
	if n > 0 {
		fields = make([][]byte, n)
	}
	for i := range fields {
		if fields[i], b, ok = cut(b, 4); !ok {
			return "", nil, nil, ErrMalformed
		}
	}
	return string(name), fields, b, nil
}

// cut reads a length of the given width and so many bytes after it.
func cut(b []byte, width int) (field, rest []byte, ok bool) {
	if len(b) < width {
		return nil, nil, false
	}
	size := uint64(b[0])
	if width == 4 {
		size = uint64(binary.BigEndian.Uint32(b))
	}
	b = b[width:]
	if uint64(len(b)) < size {
		return nil, nil, false
	}
	return b[:size:size], b[size:], true
}

// U8 is v as a field.
func U8(v uint8) []byte { return []byte{v} }

// U64 is v as a field: 8 bytes, big endian.
func U64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
