package escrow

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"filippo.io/age/armor"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
)

// Source is where an installation key is to be had from.
type Source struct {
	// Files are recovery files, and files with lines that somebody typed: one recovery line, or shares, one a line. "-"
	// is Stdin, for such lines.
	Files []string

	// Identities are files of age identities, as age-keygen makes them, hybrid ones too, in the clear or sealed with a
	// passphrase by age -p. For lines that were typed there is no need of any.
	Identities []string

	Stdin io.Reader // nil: "-" is refused

	// Passphrase asks for the passphrase of a file of identities, for Open to clear. nil: such a file is refused.
	Passphrase func(path string) (secret.Bytes, error)
}

// Opened is an installation key from outside the database.
type Opened struct {
	Line   secret.Bytes // the recovery line, for the caller to clear
	Shares int          // how many shares it was joined from, 0 where it was whole
}

// Open opens the files and returns the recovery line that they hold, or that their shares give. It changes nothing.
//
// The line is in order, but it need not be that of the installation: its pin has to be compared. Where Shares is the
// very number that it took and the pin is not right, the shares may be of two different times.
//
// The error is [ErrIdentity], [ErrDamaged], [ErrFIPS], one of package seal on a line or on shares ([seal.ErrMixed] also
// for a recovery line beside anything else), or one of reading a file. It names the file that it is about, or the share
// by its place in the order of the files.
func (s *Source) Open() (*Opened, error) {
	lines, err := s.lines()
	defer func() {
		for _, l := range lines {
			l.Clear()
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("open escrow: %w", err)
	}
	whole, shares := 0, 0
	for _, l := range lines {
		if isShare(l) {
			shares++
		} else {
			whole++
		}
	}
	switch {
	case len(lines) == 0:
		return nil, fmt.Errorf("open escrow: %w: nothing was given", seal.ErrNotRecovery)
	case whole == 0:
		line, err := join(lines)
		if err != nil {
			return nil, fmt.Errorf("open escrow: %w", err)
		}
		return &Opened{Line: line, Shares: shares}, nil
	case whole+shares > 1:
		return nil, fmt.Errorf("open escrow: %w: a recovery line is complete, give it alone", seal.ErrMixed)
	}
	ik, err := seal.ParseRecovery(lines[0].Reveal())
	if err != nil {
		return nil, fmt.Errorf("open escrow: %w", err)
	}
	defer ik.Close()
	return &Opened{Line: ik.Recovery()}, nil
}

func isShare(line secret.Bytes) bool {
	return bytes.HasPrefix(line.Reveal(), []byte(seal.SharePrefix))
}

// lines returns all lines of all files, also those before an error, for the caller to clear.
func (s *Source) lines() (lines []secret.Bytes, err error) {
	var identities []age.Identity
	for _, path := range s.Files {
		content, err := s.read(path)
		if err != nil {
			return lines, err
		}
		if !isAge(content) {
			found, err := typed(content)
			clear(content)
			lines = append(lines, found...)
			if err != nil {
				return lines, fmt.Errorf("%s: %w", path, err)
			}
			continue
		}
		if identities == nil {
			if identities, err = s.identities(); err != nil {
				return lines, err
			}
		}
		line, err := decrypt(content, identities)
		if err != nil {
			return lines, fmt.Errorf("%s: %w", path, err)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func (s *Source) read(path string) ([]byte, error) {
	if path != "-" {
		return readFile(path)
	}
	if s.Stdin == nil {
		return nil, errors.New("there is no standard input to read a line from")
	}
	b, err := readAll(s.Stdin)
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	return b, nil
}

// byteOrderMark is what some editors put before a text.
var byteOrderMark = []byte("\ufeff")

// isAge says whether a file is an age file, armored or not.
func isAge(content []byte) bool {
	content = bytes.TrimSpace(bytes.TrimPrefix(content, byteOrderMark))
	return bytes.HasPrefix(content, []byte(armor.Header)) || bytes.HasPrefix(content, []byte("age-encryption.org/"))
}

// typed returns copies of the lines of a text that are not empty, also those before an error.
func typed(text []byte) (lines []secret.Bytes, err error) {
	number := 0
	for line := range bytes.Lines(bytes.TrimPrefix(text, byteOrderMark)) {
		number++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if !bytes.HasPrefix(line, []byte(seal.RecoveryPrefix)) && !bytes.HasPrefix(line, []byte(seal.SharePrefix)) {
			return lines, fmt.Errorf("%w: line %d begins with neither %s nor %s",
				seal.ErrNotRecovery, number, seal.RecoveryPrefix, seal.SharePrefix)
		}
		lines = append(lines, secret.New(bytes.Clone(line)))
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("%w: it is empty", seal.ErrNotRecovery)
	}
	return lines, nil
}

// maxLine is more than a line has, with its end.
const maxLine = 256

// decrypt returns the one line that a recovery file holds. What age says about a file that it does not open can quote
// it, and is left out.
func decrypt(content []byte, identities []age.Identity) (secret.Bytes, error) {
	r, err := age.Decrypt(ageReader(content), identities...)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none):
		return secret.Bytes{}, ErrIdentity
	case err != nil:
		return secret.Bytes{}, ErrDamaged
	}
	buf := make([]byte, maxLine)
	defer clear(buf)
	n, err := io.ReadFull(r, buf)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		return secret.Bytes{}, ErrDamaged
	}
	lines, err := typed(buf[:n])
	if err != nil || len(lines) != 1 {
		for _, l := range lines {
			l.Clear()
		}
		return secret.Bytes{}, fmt.Errorf("%w: it has to hold one line", ErrDamaged)
	}
	return lines[0], nil
}

func ageReader(content []byte) io.Reader {
	content = bytes.TrimPrefix(content, byteOrderMark)
	if bytes.HasPrefix(bytes.TrimSpace(content), []byte(armor.Header)) {
		return armor.NewReader(bytes.NewReader(content))
	}
	return bytes.NewReader(content)
}

// identities reads all files of identities.
func (s *Source) identities() (all []age.Identity, err error) {
	if err := available(); err != nil {
		return nil, err
	}
	for _, path := range s.Identities {
		text, err := readFile(path)
		if err != nil {
			return nil, fmt.Errorf("read identities: %w", err)
		}
		found, err := s.parseIdentities(path, text)
		clear(text)
		if err != nil {
			return nil, fmt.Errorf("read identities: %s: %w", path, err)
		}
		all = append(all, found...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: none was given", ErrIdentity)
	}
	return all, nil
}

// parseIdentities leaves out what age says about what it cannot parse, which can hold a character of an identity.
func (s *Source) parseIdentities(path string, text []byte) ([]age.Identity, error) {
	var r io.Reader = bytes.NewReader(bytes.TrimPrefix(text, byteOrderMark))
	if isAge(text) {
		if s.Passphrase == nil {
			return nil, fmt.Errorf("%w: it is sealed with a passphrase, and there is nobody to ask for it", ErrIdentity)
		}
		passphrase, err := s.Passphrase(path)
		if err != nil {
			return nil, err
		}
		defer passphrase.Clear()
		id, err := age.NewScryptIdentity(string(passphrase.Reveal()))
		if err != nil {
			return nil, fmt.Errorf("%w: the passphrase is empty", ErrIdentity)
		}
		if r, err = age.Decrypt(ageReader(text), id); err != nil {
			return nil, fmt.Errorf("%w: its passphrase is another one, or it is damaged", ErrIdentity)
		}
	}
	b, err := readAll(r)
	defer clear(b)
	if err != nil {
		return nil, fmt.Errorf("%w: it is damaged, or too long", ErrIdentity)
	}
	found, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%w: it does not hold what age-keygen writes, or what it holds is mistyped", ErrIdentity)
	}
	return found, nil
}
