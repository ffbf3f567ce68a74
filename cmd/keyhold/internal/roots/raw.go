package roots

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"strings"

	"keyhold.example/keyhold/localroot"
)

const keyInAddress = "a key itself is given where the path of its file belongs, as raw:PATH: take it for known to others; " +
	"if it is a path, write it as raw:./PATH"

// openRaw opens the raw root in a file. Its errors do not name the file.
func openRaw(path, given string) (*Root, error) {
	raw, err := localroot.FromRawFile(path)
	if err != nil {
		return nil, rawProblem(err)
	}
	return &Root{Shown: given, vendor: vendor{wrapper: raw, inline: true}}, nil
}

// ReadRaw returns the 32 bytes of the raw root at an address, raw:PATH, for who opens with them what was not sealed by
// such a root. They are the caller's, who should clear them. The errors are those of [Open].
func ReadRaw(given string) ([]byte, error) {
	scheme, path, _ := strings.Cut(given, ":")
	switch {
	case scheme == "raw" && Printable(given):
	case scheme == "raw" && isRawKey(path), isRawKey(given):
		return nil, problem(ErrAddress, keyInAddress)
	default:
		return nil, problem(ErrAddress, "it is not of the form raw:PATH, a file with 32 bytes or their base64")
	}
	mek, err := localroot.ReadRaw(path)
	if err != nil {
		return nil, rawProblem(err)
	}
	return mek, nil
}

func rawProblem(err error) error {
	text := "it cannot be read"
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		text = pathErr.Err.Error()
	} else if _, why, found := strings.Cut(err.Error(), localroot.ErrNotLocalRoot.Error()+": "); found {
		text = why
	}
	return problem(err, text)
}

// isRawKey says whether what stands where the path of a raw root's file belongs may be the key itself: as it is, in
// base64 or in hexadecimal digits. A path with a dot is none of these.
func isRawKey(path string) bool {
	switch len(path) {
	case 32:
		return !strings.ContainsAny(path, "/.")
	case 43, 44:
		text := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimSuffix(path, "="))
		b, err := base64.RawStdEncoding.DecodeString(text)
		defer clear(b)
		return err == nil && len(b) == 32 && !strings.HasPrefix(path, "/")
	case 64:
		b, err := hex.DecodeString(path)
		defer clear(b)
		return err == nil
	}
	return false
}
