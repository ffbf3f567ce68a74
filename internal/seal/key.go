package seal

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"slices"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// Identity is what a key's commitment binds besides the key itself: what kind of key it is, whose, and what for
// (section 3). The number of its version is not in it.
type Identity struct {
	Kind      key.Kind
	Inst      [16]byte
	RootKeyID key.ID      // empty for an installation key
	Purpose   key.Purpose // empty unless Kind is [key.DEK]
	Alg       key.Alg
}

// validate says why there can be no key of this identity, as a [*key.InvalidError].
func (id Identity) validate() error {
	switch {
	case id.Kind != key.KEK && id.Kind != key.DEK:
		return key.Invalid("kind of key", string(id.Kind), "it has to be kek or dek")
	case id.RootKeyID == "" || len(id.RootKeyID) > key.MaxIDLen:
		return key.Invalid("root key id", string(id.RootKeyID), fmt.Sprintf("it has to have 1 to %d bytes", key.MaxIDLen))
	case !id.Alg.Known():
		return key.Invalid("algorithm", id.Alg.String(), "it is unknown")
	case id.Kind == key.DEK:
		return id.Purpose.Validate()
	case id.Purpose != "":
		return key.Invalid("purpose", string(id.Purpose), "a root key has none")
	case id.Alg != key.Message && id.Alg != key.Imported:
		return key.Invalid("algorithm", id.Alg.String(), "a root key is for wrapping, or was imported")
	}
	return nil
}

// raw says whether keys of the algorithm may be short or guessable, and so carry bytes that hide them in their
// commitment.
func raw(alg key.Alg) bool { return alg == key.Imported || alg == key.Raw }

// Key is an opened root key or data key version. It prints as redacted. All methods but Close are safe for concurrent
// use.
type Key struct {
	opaque
	id       Identity
	blind    secret.Bytes // 32 random bytes that hide a raw key in its commitment; of other keys nothing
	material secret.Bytes // the key itself
	commit   [32]byte
}

// Generate makes a key of 32 random bytes. The algorithm may be any but [key.Imported]. An identity that no key can
// have is a [*key.InvalidError].
func Generate(id Identity) (*Key, error) {
	if err := id.validate(); err != nil {
		return nil, err
	}
	switch {
	case id.Alg == key.Imported:
		return nil, key.Invalid("algorithm", id.Alg.String(), "keys of it are imported, never made")
	case raw(id.Alg):
		return newKey(id, Random(envelope.CommitKeySize), Random(envelope.KeySize)), nil
	}
	return newKey(id, secret.Bytes{}, Random(envelope.KeySize)), nil
}

// FromBytes makes a key of algorithm [key.Raw] or [key.Imported] from bytes that exist already, 1 to 1024 of them. It
// copies them: material stays the caller's. Another algorithm, or another length, is a [*key.InvalidError].
func FromBytes(id Identity, material secret.Bytes) (*Key, error) {
	if err := id.validate(); err != nil {
		return nil, err
	}
	if !raw(id.Alg) {
		return nil, key.Invalid("algorithm", id.Alg.String(), "keys of it are made at random, never from given bytes")
	}
	if n := material.Len(); n < 1 || n > envelope.MaxRawKey {
		return nil, key.Invalid("key", fmt.Sprintf("of %d bytes", n), fmt.Sprintf("it has to have 1 to %d", envelope.MaxRawKey))
	}
	return newKey(id, Random(envelope.CommitKeySize), secret.New(slices.Clone(material.Reveal()))), nil
}

func newKey(id Identity, blind, material secret.Bytes) *Key {
	return &Key{id: id, blind: blind, material: material, commit: commitment(id, blind.Reveal(), material.Reveal())}
}

// commitment is what identifies a key (section 3).
func commitment(id Identity, blind, material []byte) [32]byte {
	label, prk := "kh1/commit", material
	fields := [][]byte{
		[]byte(id.Kind), id.Inst[:], []byte(id.RootKeyID), []byte(id.Purpose), envelope.U8(uint8(id.Alg)),
	}
	if raw(id.Alg) {
		label, prk = "kh1/commit-raw", blind
		fields = append(fields, material)
	}
	info := envelope.Tuple(label, fields...)
	defer clear(info)
	return [32]byte(expand(prk, info))
}

// Identity returns what the key is.
func (k *Key) Identity() Identity { return k.id }

// Commit returns the commitment, which is not secret.
func (k *Key) Commit() [32]byte { return k.commit }

// KID returns the first half of the commitment, which messages name the key by.
func (k *Key) KID() key.KID { return key.KID(k.commit[:]) }

// ID returns the id of a version made here. Of an imported version the id is another, its old one.
func (k *Key) ID() key.ID { return key.VersionID(k.id.Kind, k.KID()) }

// Bytes returns the key's own bytes, shared with k: they are gone once it is closed.
func (k *Key) Bytes() secret.Bytes { return k.material }

// Close overwrites the key. Closing again does nothing. It must not run at the same time as another method; what was
// made from the key before, a [Parent] or a [MessageKey], goes on working.
func (k *Key) Close() {
	k.blind.Clear()
	k.material.Clear()
}

// BlindIndex returns n bytes from which a value that is equal can be found, and nothing else can be told (section 6).
// name is 1 to 255 bytes, n is 4 to 32; anything else, or a key that is not of algorithm [key.BlindIndex], is a
// [*key.InvalidError].
func (k *Key) BlindIndex(name string, value []byte, n int) ([]byte, error) {
	switch {
	case k.id.Alg != key.BlindIndex:
		return nil, key.Invalid("algorithm", k.id.Alg.String(), "the key is not for a blind index")
	case name == "" || len(name) > 255:
		return nil, key.Invalid("index name", name, "it has to have 1 to 255 bytes")
	case n < 4 || n > sha256.Size:
		return nil, key.Invalid("index size", fmt.Sprint(n), "it has to be 4 to 32 bytes")
	}
	indexKey := expand(k.material.Reveal(), envelope.Tuple("kh1/index-key"))
	defer clear(indexKey)
	mac := hmac.New(sha256.New, indexKey)
	mac.Write(envelope.Tuple("kh1/index", []byte(name), value))
	return mac.Sum(nil)[:n], nil
}

// OpenImported opens what go-kms-wrapping's AES-GCM wrapper sealed before an import: nonce of 12 bytes, ciphertext,
// tag. The result is a new slice. The error is [ErrOpen], also for a key that is not of algorithm [key.Imported], or
// not of a length that AES has.
func (k *Key) OpenImported(ciphertext, aad []byte) ([]byte, error) {
	switch k.material.Len() {
	case 16, 24, 32:
	default:
		return nil, ErrOpen
	}
	if k.id.Alg != key.Imported || len(ciphertext) < gcmOverhead || len(ciphertext) > envelope.MaxPlaintext+gcmOverhead {
		return nil, ErrOpen
	}
	plaintext, err := randomNonceGCM(k.material.Reveal()).Open(nil, nil, ciphertext, aad)
	if err != nil {
		return nil, ErrOpen
	}
	return plaintext, nil
}
