package rows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Day is how long, in seconds, an instance is kept after it was gone.
const Day = 86400

// PackEpochs is epochs as they are stored: 256 bytes, each number in eight of them, big endian.
func PackEpochs(epochs *[store.Buckets]uint64) []byte {
	b := make([]byte, 0, 8*store.Buckets)
	for _, n := range epochs {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

// UnpackEpochs reads what [PackEpochs] wrote. The error is an [*Error] about the row.
func UnpackEpochs(row string, b []byte) (epochs [store.Buckets]uint64, err error) {
	if len(b) != 8*store.Buckets {
		return epochs, &Error{row, fmt.Sprintf("its epochs have %d bytes, not %d", len(b), 8*store.Buckets)}
	}
	for i := range epochs {
		epochs[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	return epochs, nil
}

// IsID says whether a row can have the id: 1 to [key.MaxIDLen] bytes of ASCII, none of them zero. No database is asked
// about another, as some refuse the question.
func IsID(id key.ID) bool { return isASCII(string(id)) && len(id) <= key.MaxIDLen }

// CheckAfter looks at where a list is to go on: an id, or nothing.
func CheckAfter(id key.ID) error {
	if id != "" && !IsID(id) {
		return fmt.Errorf("no list goes on after %q", string(id))
	}
	return nil
}

// CheckInstance looks at the rules for an instance that signs.
func CheckInstance(in *store.Instance) error {
	switch {
	case !IsID(in.ID):
		return fmt.Errorf("%q is not the id of an instance", string(in.ID))
	case len(in.Name) > 255 || !utf8.ValidString(in.Name) || strings.Contains(in.Name, "\x00"):
		return errors.New("the name of an instance is at most 255 bytes of UTF-8, none of them zero")
	case in.Life < 0:
		return fmt.Errorf("an instance cannot live for %d seconds", in.Life)
	case in.Slot != "" && !IsID(in.Slot):
		return fmt.Errorf("%q is not the id of a root slot", string(in.Slot))
	}
	for bucket, n := range in.Seen {
		if n > math.MaxInt64 {
			return fmt.Errorf("no epoch is %d, as that of bucket %d was", n, bucket)
		}
	}
	return nil
}

// CheckEscrow looks at the rules for what is stored of an installation key's copies.
func CheckEscrow(e *store.Escrow) error {
	switch {
	case len(e.IKKID) != 16:
		return fmt.Errorf("the installation key's id has %d bytes, not 16", len(e.IKKID))
	case e.Event != "written" && e.Event != "verified":
		return fmt.Errorf("an installation key is written or verified, not %q", e.Event)
	case len(e.Detail) > 4096 || !utf8.ValidString(e.Detail) || strings.Contains(e.Detail, "\x00"):
		return errors.New("the detail is at most 4096 bytes of UTF-8, none of them zero")
	}
	return nil
}

// CheckUpdates looks at the rules for changes that are made together.
func CheckUpdates(updates []store.Update) error {
	named := make(map[key.ID]bool, len(updates))
	for i := range updates {
		u := &updates[i]
		off := slices.ContainsFunc(u.States, func(c store.StateChange) bool { return c.To == key.Disabled })
		switch {
		case u.Kind != key.KEK && u.Kind != key.DEK:
			return fmt.Errorf("key %s cannot be of kind %q", u.KeyID, u.Kind)
		case named[u.KeyID]:
			return fmt.Errorf("key %s is named twice", u.KeyID)
		case len(u.Destroy) > 0 || off:
			return fmt.Errorf("key %s: a version is destroyed or disabled by a change of its key alone", u.KeyID)
		case u.Inst != updates[0].Inst || u.Lease != updates[0].Lease:
			return fmt.Errorf("key %s: it is changed for another installation, or under another lease, than the first", u.KeyID)
		}
		named[u.KeyID] = true
	}
	return nil
}

// IsLeaseName says whether a lease can have the name: 1 to 64 bytes of ASCII, none of them zero.
func IsLeaseName(name string) bool { return isASCII(name) && len(name) <= 64 }

// CheckLease looks at the rules for a lease that is asked for.
func CheckLease(name string, owner key.ID, seconds int64) error {
	switch {
	case !IsLeaseName(name):
		return fmt.Errorf("%q is not the name of a lease: it has to be 1 to 64 bytes of ASCII", name)
	case !IsID(owner):
		return fmt.Errorf("%q is not the id of an owner", string(owner))
	case seconds < 0 || seconds > math.MaxInt32:
		return fmt.Errorf("a lease cannot be given for %d seconds", seconds)
	}
	return nil
}

// CheckTake looks at the rules for what is taken of a version.
func CheckTake(n, limit uint64) error {
	switch {
	case n > math.MaxInt64:
		return fmt.Errorf("nobody takes %d messages", n)
	case limit == 0 || limit > math.MaxInt64:
		return fmt.Errorf("a version cannot have a limit of %d messages", limit)
	}
	return nil
}

// UsedFrom is how many messages of a limit have to be taken for the key to be due.
func UsedFrom(limit uint64) uint64 { return limit - limit/5 }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] == 0 || s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return s != ""
}
