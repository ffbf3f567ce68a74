package seal

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

const (
	partSize  = envelope.KeySize + 1 // the values of 32 polynomials, and the number of the share, where they are taken
	shareSize = instSize + 2 + partSize + sumSize

	// MaxShares is how many shares an installation key can have.
	MaxShares = 255
)

// Why shares that are in order one by one give no installation key together.
var (
	// ErrSameShare says that one share was given twice.
	ErrSameShare = errors.New("the same share was given twice")
	// ErrMixed says that shares belong to different installations, or were made at different times.
	ErrMixed = errors.New("shares do not belong together")
)

// TooFewSharesError says that more shares are needed than were given.
type TooFewSharesError struct {
	Have int // shares that were given
	Need int // shares that it takes
}

func (e *TooFewSharesError) Error() string {
	return fmt.Sprintf("there are too few shares: %d given, %d needed", e.Have, e.Need)
}

// share is one custodian's part of an installation key.
type share struct {
	inst [instSize]byte
	k, n uint8
	part secret.Bytes // as Shamir's scheme has it: 32 values, then the number of the share, 1 to n
}

func (s *share) number() uint8 { return s.part.Reveal()[envelope.KeySize] }

func (s *share) line() secret.Bytes {
	part := s.part.Reveal()
	sum := lineSum("kh1/share", s.inst[:], envelope.U8(s.k), envelope.U8(s.n), part)
	payload := make([]byte, 0, shareSize)
	payload = append(append(append(append(payload, s.inst[:]...), s.k, s.n), part...), sum[:]...)
	defer clear(payload)
	return appendLine(SharePrefix, payload)
}

// parseShare reads a line, around which there may be what ParseRecovery ignores. The error is ErrNotShare or
// ErrMistyped.
func parseShare(line []byte) (*share, error) {
	payload, err := parseLine(line, SharePrefix, shareSize, ErrNotShare)
	if err != nil {
		return nil, err
	}
	defer clear(payload)
	inst, k, n := payload[:instSize], payload[instSize], payload[instSize+1]
	part, sum := payload[instSize+2:instSize+2+partSize], payload[instSize+2+partSize:]
	want := lineSum("kh1/share", inst, envelope.U8(k), envelope.U8(n), part)
	if subtle.ConstantTimeCompare(want[:], sum) != 1 {
		return nil, errChecksum()
	}
	if number := part[envelope.KeySize]; k < 2 || k > n || number < 1 || number > n {
		return nil, fmt.Errorf("%w: it says to be number %d of %d, of which %d are needed", ErrNotShare, number, n, k)
	}
	return &share{inst: [instSize]byte(inst), k: k, n: n, part: secret.New(bytes.Clone(part))}, nil
}

// Shares splits the installation key among n custodians, of whom any k can give it back and fewer learn nothing, and
// returns the line of each (section 8), in the order of their numbers. The lines are the caller's to clear. k is at
// least 2 and at most n, n at most [MaxShares]; otherwise the error is a [*key.InvalidError].
//
// split is Shamir's scheme over the field of section 8: it returns n parts, of one byte for each byte of k and then
// their number, 1 to n. It must not keep the key, and its error is returned as it is.
func (ik *IK) Shares(k, n int, split func(key []byte, n, k int) ([][]byte, error)) ([]secret.Bytes, error) {
	if k < 2 || k > n || n > MaxShares {
		return nil, key.Invalid("shares", fmt.Sprintf("%d of %d", k, n),
			fmt.Sprintf("it has to take at least 2 of them, and there can be as many as that to %d", MaxShares))
	}
	material := ik.material.Reveal()
	if len(material) == 0 {
		panic(ErrClosed)
	}
	parts, err := split(material, n, k)
	if err != nil {
		return nil, err
	}
	var lines []secret.Bytes
	for i, part := range parts {
		s := share{inst: ik.inst, k: uint8(k), n: uint8(n), part: secret.New(part)}
		if len(part) != partSize || s.number() != uint8(i+1) {
			return nil, fmt.Errorf("split an installation key: share %d is not of the form that shares have", i+1)
		}
		lines = append(lines, s.line())
		s.part.Clear()
	}
	if len(lines) != n {
		return nil, fmt.Errorf("split an installation key: there are %d shares and not %d", len(lines), n)
	}
	return lines, nil
}

// JoinShares returns the installation key that shares give, for the caller to close. The lines stay the caller's. There
// may be more of them than it takes, and in any order; white space around them is ignored as [ParseRecovery] does.
// combine is the reverse of what [IK.Shares] takes.
//
// The error is [ErrNotShare], [ErrMistyped], [ErrSameShare], [ErrMixed] or a [*TooFewSharesError], and for the first
// three says which share it is, by its place among the lines. Shares show whether they belong together where more are
// given than it takes, or where their installation or their numbers differ. Otherwise, what those of two splits give is
// some key, and only its [IK.Pin] shows that it is not the one.
func JoinShares(lines []secret.Bytes, combine func(parts [][]byte) ([]byte, error)) (*IK, error) {
	var shares []*share
	defer func() {
		for _, s := range shares {
			s.part.Clear()
		}
	}()
	for i, line := range lines {
		s, err := parseShare(line.Reveal())
		if err != nil {
			return nil, fmt.Errorf("read share %d of those given: %w", i+1, err)
		}
		if err := belongs(s, shares); err != nil {
			s.part.Clear()
			return nil, fmt.Errorf("read share %d of those given: %w", i+1, err)
		}
		shares = append(shares, s)
	}
	if len(shares) == 0 {
		return nil, &TooFewSharesError{Need: 2}
	}
	k := int(shares[0].k)
	if len(shares) < k {
		return nil, &TooFewSharesError{Have: len(shares), Need: k}
	}
	return join(shares, k, combine)
}

// belongs says why s cannot be one more of the others, nil if it can.
func belongs(s *share, others []*share) error {
	if len(others) > 0 && others[0].inst != s.inst {
		return fmt.Errorf("%w: this one is of another installation", ErrMixed)
	}
	if len(others) > 0 && (others[0].k != s.k || others[0].n != s.n) {
		return fmt.Errorf("%w: this one is for %d of %d, those before it for %d of %d",
			ErrMixed, s.k, s.n, others[0].k, others[0].n)
	}
	i := slices.IndexFunc(others, func(o *share) bool { return o.number() == s.number() })
	switch {
	case i < 0:
		return nil
	case subtle.ConstantTimeCompare(others[i].part.Reveal(), s.part.Reveal()) == 1:
		return fmt.Errorf("%w: this one is share %d again", ErrSameShare, i+1)
	}
	return fmt.Errorf("%w: this one has the number of share %d, and is another", ErrMixed, i+1)
}

// join checks the shares that it would not take against those that it does.
func join(shares []*share, k int, combine func([][]byte) ([]byte, error)) (*IK, error) {
	var parts [][]byte
	for _, s := range shares {
		parts = append(parts, s.part.Reveal())
	}
	material, err := combine(parts[:k])
	if err != nil {
		return nil, err
	}
	if len(material) != envelope.KeySize {
		clear(material)
		return nil, errors.New("join shares: what they give is no installation key")
	}
	if len(parts) > k {
		all, err := combine(parts)
		same := err == nil && subtle.ConstantTimeCompare(all, material) == 1
		clear(all)
		if !same {
			clear(material)
			return nil, fmt.Errorf("%w: they were made at different times", ErrMixed)
		}
	}
	return newIK(shares[0].inst, secret.New(material)), nil
}
