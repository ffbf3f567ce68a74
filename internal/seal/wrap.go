package seal

import (
	"crypto/subtle"
	"fmt"
	"slices"
	"sync/atomic"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// Parent wraps keys and unwraps them again (section 4): the installation key root keys, a root key version the data
// keys of the same root key. It is safe for concurrent use, and works on after the key that it came from is closed. Who
// made it uses it, and whoever else [Parent.Use] said true to; it is gone when each of them has closed it.
type Parent struct {
	opaque
	id    Identity
	kid   key.KID
	xaes  *XAES
	users atomic.Int64
}

// Parent returns k as a parent of data keys. If k is not a root key version, or was imported, the error is a
// [*key.InvalidError]. It derives a key, so it is worth keeping.
func (k *Key) Parent() (*Parent, error) {
	if k.id.Kind != key.KEK || k.id.Alg != key.Message {
		return nil, key.Invalid("parent", string(k.ID()), "only the installation key and root keys made here wrap others")
	}
	return newParent(k.id, k.KID(), k.material.Reveal()), nil
}

func newParent(id Identity, kid key.KID, material []byte) *Parent {
	wrapKey := expand(material, envelope.Tuple("kh1/wrap-key"))
	defer clear(wrapKey)
	p := &Parent{id: id, kid: kid, xaes: newXAES(wrapKey)}
	p.users.Store(1)
	return p
}

// Use says whether p is there for one user more, who is to close it. It is not if all the others have closed it.
func (p *Parent) Use() bool {
	for {
		n := p.users.Load()
		if n == 0 || p.users.CompareAndSwap(n, n+1) {
			return n > 0
		}
	}
}

// Close says that one of the users, who calls it once, needs p no longer. The last of them overwrites the key. A nil p
// has none.
func (p *Parent) Close() {
	if p != nil && p.users.Add(-1) == 0 {
		p.xaes.key.Clear()
	}
}

// Closed says whether the key is overwritten: then wrapping is [ErrClosed], and nothing opens.
func (p *Parent) Closed() bool { return p.xaes.key.Cleared() }

// KID returns the kid of the parent, which what it wraps is bound to.
func (p *Parent) KID() key.KID { return p.kid }

// wraps says whether a key of identity id may be below p.
func (p *Parent) wraps(id Identity) bool {
	if id.validate() != nil || id.Inst != p.id.Inst {
		return false
	}
	if p.id.Kind == key.IK {
		return id.Kind == key.KEK
	}
	return id.Kind == key.DEK && id.RootKeyID == p.id.RootKeyID
}

func validPlace(version key.Version, created int64) bool {
	return version >= 1 && version <= key.MaxVersion && created >= 0
}

func (p *Parent) aad(id Identity, version key.Version, created int64, commit [32]byte) []byte {
	return envelope.Tuple("kh1/wrap",
		id.Inst[:], []byte(id.Kind), []byte(id.RootKeyID), []byte(id.Purpose), envelope.U8(uint8(id.Alg)),
		envelope.U64(uint64(version)), envelope.U64(uint64(created)), commit[:], p.kid[:])
}

// Wrap seals k as the given version, made at created, in seconds since 1970. A key that is not below p, or a version or
// time that is out of range, is a [*key.InvalidError].
func (p *Parent) Wrap(k *Key, version key.Version, created int64) ([]byte, error) {
	switch {
	case k.material.Len() == 0, p.Closed():
		return nil, ErrClosed
	case !p.wraps(k.id):
		return nil, key.Invalid("parent", key.Base32(p.kid[:]), fmt.Sprintf("key version %s does not belong under it", k.ID()))
	case !validPlace(version, created):
		return nil, key.Invalid("key version", fmt.Sprintf("%d made at %d", version, created), "it is out of range")
	}
	plaintext := slices.Concat(k.blind.Reveal(), k.material.Reveal())
	defer clear(plaintext)
	blob := envelope.AppendWrappedHeader(make([]byte, 0, envelope.WrapOverhead+len(plaintext)))
	return p.xaes.Seal(blob, plaintext, p.aad(k.id, version, created, k.commit)), nil
}

// Unwrap opens what [Parent.Wrap] returned for a key of the given identity, version, time and commitment, as the key's
// row has them. That the row's id follows from the commitment is left to the caller ([Key.ID]; an imported id does
// not). The error is [ErrOpen]. blob is only read.
func (p *Parent) Unwrap(id Identity, version key.Version, created int64, commit [32]byte, blob []byte) (*Key, error) {
	sealed, err := envelope.ParseWrapped(blob)
	if err != nil || !p.wraps(id) || !validPlace(version, created) {
		return nil, ErrOpen
	}
	plaintext, err := p.xaes.Open(nil, sealed, p.aad(id, version, created, commit))
	if err != nil {
		return nil, ErrOpen
	}
	var blind, material secret.Bytes
	switch n := len(plaintext); {
	case raw(id.Alg) && n > envelope.CommitKeySize && n <= envelope.CommitKeySize+envelope.MaxRawKey:
		blind = secret.New(plaintext[:envelope.CommitKeySize])
		material = secret.New(plaintext[envelope.CommitKeySize:])
	case !raw(id.Alg) && n == envelope.KeySize:
		material = secret.New(plaintext)
	default:
		clear(plaintext)
		return nil, ErrOpen
	}
	k := newKey(id, blind, material)
	if subtle.ConstantTimeCompare(k.commit[:], commit[:]) != 1 {
		k.Close()
		return nil, ErrOpen
	}
	return k, nil
}
