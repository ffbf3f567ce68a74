package seal

import (
	"bytes"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
)

// What the two lines of text begin with that an installation key can be kept as outside the database (section 8).
const (
	RecoveryPrefix = "khi1_"
	SharePrefix    = "khs1_"
)

const (
	instSize     = 16
	sumSize      = 4
	recoverySize = instSize + envelope.KeySize + sumSize
)

// What is wrong with a line that somebody copied or typed. Whoever does that has to learn what to look at, so these are
// told apart, unlike what [ErrOpen] stands for. No error ever holds any part of a line.
var (
	// ErrNotRecovery says that a text is no recovery line, or a cut off one.
	ErrNotRecovery = errors.New("not a recovery line")
	// ErrNotShare says that a text is no share of an installation key, or a cut off one.
	ErrNotShare = errors.New("not a share")
	// ErrMistyped says that a text looks like a recovery line or a share, but some of it was changed.
	ErrMistyped = errors.New("line is mistyped")
)

// Recovery returns the recovery line (section 8): one line of text, without its end, that holds the installation key
// and is all that is needed to open everything. It is the caller's to clear.
func (ik *IK) Recovery() secret.Bytes {
	k := ik.material.Reveal()
	if len(k) == 0 {
		panic(ErrClosed)
	}
	sum := lineSum("kh1/recovery", ik.inst[:], k)
	payload := make([]byte, 0, recoverySize)
	payload = append(append(append(payload, ik.inst[:]...), k...), sum[:]...)
	defer clear(payload)
	return appendLine(RecoveryPrefix, payload)
}

// ParseRecovery returns the installation key that a recovery line holds, for the caller to close. White space around
// the line and a byte order mark before it are ignored. The error is [ErrNotRecovery] or [ErrMistyped].
//
// That a line parses says that it was copied well, and no more: whose key it holds, its [IK.Pin] tells. line stays the
// caller's, and nothing of it is kept.
func ParseRecovery(line []byte) (*IK, error) {
	payload, err := parseLine(line, RecoveryPrefix, recoverySize, ErrNotRecovery)
	if err != nil {
		return nil, err
	}
	defer clear(payload)
	inst, k, sum := payload[:instSize], payload[instSize:instSize+envelope.KeySize], payload[instSize+envelope.KeySize:]
	if want := lineSum("kh1/recovery", inst, k); subtle.ConstantTimeCompare(want[:], sum) != 1 {
		return nil, errChecksum()
	}
	return newIK([instSize]byte(inst), secret.New(bytes.Clone(k))), nil
}

func errChecksum() error {
	return fmt.Errorf("%w: its checksum is wrong, copy it again", ErrMistyped)
}

// lineSum is the checksum of a line whose fields hold a key.
func lineSum(label string, fields ...[]byte) [sumSize]byte {
	tuple := envelope.Tuple(label, fields...)
	defer clear(tuple)
	return Checksum(tuple)
}

// lineDigits is the alphabet of ids, base32hex in lower case, here for secrets, which never become a string.
const lineDigits = "0123456789abcdefghijklmnopqrstuv"

var lineEncoding = base32.NewEncoding(lineDigits).WithPadding(base32.NoPadding)

func appendLine(prefix string, payload []byte) secret.Bytes {
	line := make([]byte, 0, lineLen(prefix, len(payload)))
	return secret.New(lineEncoding.AppendEncode(append(line, prefix...), payload))
}

func lineLen(prefix string, size int) int { return len(prefix) + (size*8+4)/5 }

// parseLine returns the bytes that stand in a line after its prefix, checksum included, for the caller to clear. The
// error wraps ErrMistyped, or not where the text is none of these lines.
func parseLine(line []byte, prefix string, size int, not error) ([]byte, error) {
	line = bytes.TrimSpace(bytes.TrimPrefix(line, []byte("\xef\xbb\xbf")))
	text, ok := bytes.CutPrefix(line, []byte(prefix))
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: it has to begin with %s", not, prefix)
	case bytes.ContainsAny(text, "\r\n"):
		return nil, fmt.Errorf("%w: it has to be one line", not)
	case len(line) != lineLen(prefix, size):
		return nil, fmt.Errorf("%w: the line has %d characters, it has to have %d", not, len(line), lineLen(prefix, size))
	}
	payload, ok := decodeLine(text, size)
	if !ok {
		return nil, fmt.Errorf("%w: after %s there may be only the digits 0 to 9 and the letters a to v, "+
			"the last of which is as it was made", ErrMistyped, prefix)
	}
	return payload, nil
}

// decodeLine is the only reader of base32hex that leaves no copy of the text behind, as the standard library's does.
func decodeLine(text []byte, size int) (payload []byte, ok bool) {
	payload = make([]byte, 0, size)
	var pending uint16 // the bits of the digits so far that have not become bytes
	var bits int
	for _, c := range text {
		var digit byte
		switch {
		case c >= '0' && c <= '9':
			digit = c - '0'
		case c >= 'a' && c <= 'v':
			digit = c - 'a' + 10
		default:
			clear(payload)
			return nil, false
		}
		pending = pending<<5 | uint16(digit)
		if bits += 5; bits >= 8 {
			bits -= 8
			payload = append(payload, byte(pending>>bits))
			pending &= 1<<bits - 1
		}
	}
	if pending != 0 {
		clear(payload)
		return nil, false
	}
	return payload, true
}
