package localroot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

const (
	linePrefix  = "khr1_"
	idPrefix    = "khr_"
	keyIDSize   = 8
	lineBytes   = keyIDSize + envelope.KeySize + 4 // before they become text
	lineLen     = len(linePrefix) + (lineBytes*8+4)/5
	maxFileSize = 4096
)

// What is wrong with a line that is no local root. No error ever holds any part of the line.
var (
	// ErrNotLocalRoot says that a text is something else than a local root, or cut off.
	ErrNotLocalRoot = errors.New("not a local root")
	// ErrMistyped says that a text looks like a local root, but its checksum shows that some of it was changed.
	ErrMistyped = errors.New("local root is mistyped")
	// ErrUnset says that an environment variable that was to hold a local root does not exist or is empty.
	ErrUnset = errors.New("environment variable is not set")
)

// Parse opens the local root that text is. White space around the line, such as the newline at its end, is ignored. The
// error is [ErrNotLocalRoot] or [ErrMistyped].
func Parse(text string) (*Root, error) {
	line := strings.TrimSpace(text)
	payload, ok := strings.CutPrefix(line, linePrefix)
	if !ok {
		return nil, fmt.Errorf("%w: it has to begin with %s", ErrNotLocalRoot, linePrefix)
	}
	if len(line) != lineLen {
		return nil, fmt.Errorf("%w: the line has %d characters, it has to have %d", ErrNotLocalRoot, len(line), lineLen)
	}
	b, ok := key.ParseBase32(payload)
	if !ok {
		return nil, fmt.Errorf("%w: after %s there may be only the digits 0 to 9 and the letters a to v, "+
			"the last of which is as it was made", ErrMistyped, linePrefix)
	}
	defer clear(b)
	keyID, k, sum := b[:keyIDSize], b[keyIDSize:keyIDSize+envelope.KeySize], b[keyIDSize+envelope.KeySize:]
	if want := checksum(keyID, k); !bytes.Equal(want[:], sum) {
		return nil, fmt.Errorf("%w: its checksum is wrong, copy it again", ErrMistyped)
	}
	return newRoot(bytes.Clone(keyID), secret.New(k)), nil
}

func checksum(keyID, k []byte) [4]byte {
	tuple := envelope.Tuple("kh1/root-file", keyID, k)
	defer clear(tuple)
	return seal.Checksum(tuple)
}

// Open opens the local root in a file, which holds its line and nothing else. The errors are those of reading the file,
// such as [os.ErrNotExist], and those of [Parse].
//
// The permissions of the file are not looked at: in a container, where orchestrators mount secrets as files that all
// may read, they say nothing. [Generate] makes files that only their owner can read.
func Open(path string) (*Root, error) {
	text, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read local root: %w", err)
	}
	defer clear(text)
	root, err := Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("read local root from %s: %w", path, err)
	}
	return root, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFileSize))
}

// FromEnv opens the local root that is the value of an environment variable. The error is [ErrUnset], or one of those
// of [Parse].
func FromEnv(name string) (*Root, error) {
	text := os.Getenv(name)
	if text == "" {
		return nil, fmt.Errorf("read local root from %s: %w", name, ErrUnset)
	}
	root, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("read local root from %s: %w", name, err)
	}
	return root, nil
}

// Generate makes a new local root and writes its line to a new file that only its owner can read. When it returns, the
// file will be there after a crash too; for that, the folder has to be one that this user can read. A file that exists
// already is never touched: the error is then [os.ErrExist]. After any other error there is no file.
func Generate(path string) (*Root, error) {
	b := make([]byte, 0, lineBytes)
	defer func() { clear(b[:cap(b)]) }()
	keyID, k := seal.Random(keyIDSize), seal.Random(envelope.KeySize)
	defer k.Clear()
	sum := checksum(keyID.Reveal(), k.Reveal())
	b = append(append(append(b, keyID.Reveal()...), k.Reveal()...), sum[:]...)

	if err := write(path, linePrefix+key.Base32(b)+"\n", (*os.File).Sync); err != nil {
		return nil, fmt.Errorf("write local root: %w", err)
	}
	return newRoot(keyID.Reveal(), k), nil
}

// write makes the file, and has sync make its content and then its name in the folder durable.
func write(path, text string, sync func(*os.File) error) (err error) {
	// Before the file is made: a folder that cannot be read cannot be synchronized.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("open its folder: %w", err)
	}
	defer dir.Close()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	_, err = f.WriteString(text)
	if err == nil {
		err = sync(f)
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return sync(dir)
}
