// Package escrow writes and opens recovery files: an installation key outside the database, sealed to people.
//
// A recovery file is an age file (age-encryption.org/v1, armored) that holds one line of docs/format.md, section 8: the
// recovery line, for any one of its recipients to open, or one custodian's share, of which so many are needed.
// [Prepare] checks what can be checked before there is a key, and [Plan.Write] writes; [Source.Open] gives the recovery
// line back, from recovery files or from lines that somebody typed.
//
// Lines are cleared where they pass through here. What age has copied of them is left to the garbage collector.
package escrow

import (
	"crypto/fips140"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/getsops/sops/v3/shamir"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
)

// What a caller can decide on. Besides these there are the errors of package seal on lines and shares, and those of
// files, such as [os.ErrExist]. No error holds any part of a line, an identity or a passphrase.
var (
	// ErrFIPS says that the program runs with approved algorithms only, of which age uses none: it seals with X25519
	// and ChaCha20-Poly1305. Lines that were typed can be read all the same.
	ErrFIPS = errors.New("recovery files by age are not possible in FIPS-only mode")
	// ErrRecipients says that those who are to be able to open a recovery file are not named as they have to be.
	ErrRecipients = errors.New("recipients are not usable")
	// ErrIdentity says that a recovery file was not opened, as none of the given identities is one of its recipients'.
	ErrIdentity = errors.New("no given identity opens this file")
	// ErrDamaged says that a recovery file was changed or cut off, or is no recovery file.
	ErrDamaged = errors.New("damaged, or not a recovery file")
)

// maxFile is more than a recovery file for seal.MaxShares hybrid recipients has, and than a file of so many identities.
const maxFile = 1 << 20

// available says whether age can be used. It is asked first: in FIPS-only mode age gives errors for some keys, and
// tries for ever to make sense of others.
func available() error {
	if fips140.Enforced() {
		return ErrFIPS
	}
	return nil
}

// readFile reads a file for the caller to clear, and no more of it than a file of ours can have.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := readAll(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func readAll(r io.Reader) ([]byte, error) {
	r = io.LimitReader(r, maxFile+1)
	b := make([]byte, 4<<10)
	for n := 0; ; {
		m, err := io.ReadFull(r, b[n:])
		n += m
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			if n <= maxFile {
				return b[:n], nil
			}
			clear(b)
			return nil, fmt.Errorf("%w: it has more than %d bytes", ErrDamaged, maxFile)
		case err != nil:
			clear(b)
			return nil, err
		}
		// Not by append, which leaves what it copies behind.
		longer := make([]byte, 4*len(b))
		copy(longer, b)
		clear(b)
		b = longer
	}
}

// split returns the lines of n shares of the key in a recovery line, of which k give it back.
func split(line []byte, k, n int) ([]secret.Bytes, error) {
	ik, err := seal.ParseRecovery(line)
	if err != nil {
		return nil, err
	}
	defer ik.Close()
	return ik.Shares(k, n, shamir.Split)
}

// join is the reverse of split.
func join(shares []secret.Bytes) (secret.Bytes, error) {
	ik, err := seal.JoinShares(shares, shamir.Combine)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer ik.Close()
	return ik.Recovery(), nil
}
