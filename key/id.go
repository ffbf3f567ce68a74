package key

import (
	"encoding/base32"
	"strings"
)

// ID is the text id of something that is stored: the private_id of its row. It never changes, and never names two
// things.
type ID string

// The prefixes of ids, one for each kind of row (docs/format.md, section 3).
const (
	PrefixRootKey        = "krk_"
	PrefixRootKeyVersion = "krkv_"
	PrefixDataKey        = "kdk_"
	PrefixDataKeyVersion = "kdkv_"
	PrefixRootSlot       = "kr_"
	PrefixInstance       = "ki_"
)

// MaxIDLen is the longest id that is accepted, in bytes. Ids made here have at most 31; imported ones are kept as they
// were.
const MaxIDLen = 64

// KID identifies a key by what it is: the first 16 bytes of its commitment. An id of a version made here is its kid as
// text.
type KID [16]byte

var base32hex = base32.HexEncoding.WithPadding(base32.NoPadding)

// Base32 is b as ids have it: base32hex, lower case, without padding.
func Base32(b []byte) string { return strings.ToLower(base32hex.EncodeToString(b)) }

// ParseBase32 reads what [Base32] wrote, and nothing else: no upper case, no padding, no bits that are not zero at the
// end.
func ParseBase32(s string) ([]byte, bool) {
	b, err := base32hex.DecodeString(strings.ToUpper(s))
	if err != nil || Base32(b) != s {
		return nil, false
	}
	return b, true
}

// NewID returns the id of a root key, data key, root slot or instance made from 16 random bytes.
func NewID(prefix string, random [16]byte) ID { return ID(prefix + Base32(random[:])) }

// VersionID returns the id of the version of a root key ([KEK]) or data key ([DEK]) with the given kid.
func VersionID(kind Kind, kid KID) ID {
	if kind == KEK {
		return ID(PrefixRootKeyVersion + Base32(kid[:]))
	}
	return ID(PrefixDataKeyVersion + Base32(kid[:]))
}

// Kind says what the id's prefix says: [KEK] for a root key or a version of one, [DEK] for a data key or a version of
// one. ok is false for any other text.
func (id ID) Kind() (kind Kind, ok bool) {
	s := string(id)
	switch {
	case strings.HasPrefix(s, PrefixRootKeyVersion), strings.HasPrefix(s, PrefixRootKey):
		return KEK, true
	case strings.HasPrefix(s, PrefixDataKeyVersion), strings.HasPrefix(s, PrefixDataKey):
		return DEK, true
	}
	return "", false
}

// KID returns the kid that the version id is the text of. ok is false if it is not of that form, as an imported id is
// not.
func (id ID) KID() (kid KID, ok bool) {
	s, found := strings.CutPrefix(string(id), PrefixRootKeyVersion)
	if !found {
		s, found = strings.CutPrefix(string(id), PrefixDataKeyVersion)
	}
	if !found {
		return KID{}, false
	}
	// As ParseBase32 does, without an allocation: every message in the detached form is looked for by it.
	if len(s) != base32hex.EncodedLen(len(kid)) {
		return KID{}, false
	}
	acc, bits, n := uint32(0), 0, 0
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'v':
			c -= 'a' - 10
		default:
			return KID{}, false
		}
		acc, bits = acc<<5|uint32(c), bits+5
		if bits >= 8 {
			bits -= 8
			kid[n] = byte(acc >> bits)
			n++
		}
	}
	if acc&(1<<bits-1) != 0 { // another text of the same bytes
		return KID{}, false
	}
	return kid, true
}

// Validate says whether id may be the id of a key version, made here or imported: one of the two prefixes, then 1 or
// more letters and digits, at most [MaxIDLen] bytes in all. The error is an [*InvalidError].
func (id ID) Validate() error {
	s, found := strings.CutPrefix(string(id), PrefixRootKeyVersion)
	if !found {
		s, found = strings.CutPrefix(string(id), PrefixDataKeyVersion)
	}
	if !found || s == "" || len(id) > MaxIDLen {
		return Invalid("key version id", string(id), "it has to be kdkv_ or krkv_ and letters and digits")
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return Invalid("key version id", string(id), "it has to be kdkv_ or krkv_ and letters and digits")
		}
	}
	return nil
}
