package keyhold

import (
	"encoding/binary"
	"fmt"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// open opens the wrapped key of a version of the root key or of a data key of fam, whatever its state: that its row,
// with its time and place, is what keyhold wrote. What a transaction of the application's shows is never kept, as it
// may be rolled back; release says that it is no longer needed.
func (r reader) open(fam *store.Family, k *store.Key, v *store.Version) (opened, error) {
	is, err := rowOf(fam, k, v)
	if err != nil {
		return opened{}, err
	}
	if o, ok := r.m.cache.find(k.Kind, is); ok {
		return o, nil
	}
	if r.tx {
		o, err := r.openCold(is, fam, k, v)
		return opened{openedKey: o}, err
	}
	return r.m.cache.openOnce(k.Kind, is, func() (opened, error) {
		o, err := r.openCold(is, fam, k, v)
		if err != nil {
			return opened{}, err
		}
		return r.m.cache.keep(k.Kind, o), nil
	})
}

// openCold opens a version that is not at hand.
func (r reader) openCold(is openedRow, fam *store.Family, k *store.Key, v *store.Version) (openedKey, error) {
	unwrapped, err := r.unwrap(fam, k, v)
	if err != nil {
		return openedKey{}, err
	}
	defer unwrapped.Close()
	o := openedKey{openedRow: is}
	switch {
	case v.Alg == key.Raw:
		o.raw = secret.NewShared(unwrapped.Bytes().Reveal())
	case v.Alg != key.Message:
	case k.Kind == key.KEK:
		o.parent, err = unwrapped.Parent()
	default:
		o.messages, err = unwrapped.Messages()
	}
	if err != nil {
		return openedKey{}, fmt.Errorf("key version %s: %w", v.ID, err)
	}
	return o, nil
}

// openedRow tells the row of a version from any other, the row of what wraps it included: a version that is at hand
// does not open either if that was changed. What the manifest vouches for, its state, is not in it. Of what wrapped a
// root key, which may be over since then, nothing else is to be known.
type openedRow struct {
	kid    key.KID
	digest [seal.DigestSize]byte
}

// openedKey is a version whose wrapped key opened, by its row then, with what it is ready for.
type openedKey struct {
	openedRow
	parent   *seal.Parent     // of a root key version made here
	messages *seal.MessageKey // of a data key version for messages
	raw      *secret.Shared   // of a data key version of raw bytes
}

func (o openedKey) key() key.KID { return o.kid }

func (o openedKey) close() { closeKeys([]openedKey{o}) }

// closeKeys closes many at little more than the cost of one.
func closeKeys(all []openedKey) {
	var messages []*seal.MessageKey
	for _, o := range all {
		o.parent.Close()
		o.raw.Clear()
		if o.messages != nil {
			messages = append(messages, o.messages)
		}
	}
	seal.CloseAll(messages)
}

// handOut is o, which the cache has, for one user more.
func (o openedKey) handOut() opened {
	if o.parent != nil {
		o.parent.Use() // the cache has not closed it
	}
	return opened{openedKey: o, kept: true}
}

// opened is an openedKey as it is handed out.
type opened struct {
	openedKey
	kept bool // whether it is in the cache, and others may be using it
}

// rowOf is v's, a version of k. That its commitment has 32 bytes was checked with the manifest.
func rowOf(fam *store.Family, k *store.Key, v *store.Version) (openedRow, error) {
	var buf [512]byte
	b := appendRow(buf[:0], v)
	if k.Kind == key.DEK {
		parent, err := parentRow(fam, v.Parent)
		if err != nil {
			return openedRow{}, err
		}
		b = appendRow(b, parent)
	}
	return openedRow{key.KID(v.Commit), seal.Digest(b)}, nil
}

// appendRow appends what a version's row says of its wrapped key, so that no two rows look alike.
func appendRow(b []byte, v *store.Version) []byte {
	b = binary.AppendUvarint(b, uint64(len(v.ID)))
	b = append(b, v.ID...)
	b = binary.AppendUvarint(b, uint64(len(v.Parent)))
	b = append(b, v.Parent...)
	for _, field := range [...][]byte{v.Commit, v.Blob, v.IKKID} {
		b = binary.AppendUvarint(b, uint64(len(field)))
		b = append(b, field...)
	}
	b = binary.AppendUvarint(b, uint64(v.Number))
	b = binary.AppendUvarint(b, uint64(v.Alg))
	return binary.AppendVarint(b, v.Created)
}

// release closes what open returned, unless it is in the cache, where others use it too. That closes the keys of data
// it has when it drops them; a parent goes on for those who have not released it.
func (o *opened) release() {
	if o.kept {
		o.parent.Close()
		return
	}
	o.close()
}

// parent returns a root key version that may wrap and unwrap others; to be closed.
func (r reader) parent(fam *store.Family, id key.ID) (*seal.Parent, error) {
	if err := usableParent(fam, id); err != nil {
		return nil, err
	}
	return r.anyParent(fam, id)
}

func usableParent(fam *store.Family, id key.ID) error {
	v, ok := versionByID(&fam.Root, id)
	switch {
	case !ok:
		return tampered(&fam.Root, fmt.Sprintf("version %s is missing, which wraps a data key", id))
	case !v.State.Opens():
		return fmt.Errorf("root key version %s is %v: %w", id, v.State, ErrDisabled)
	}
	return nil
}

// parentRow returns a root key version that wraps a data key.
func parentRow(fam *store.Family, id key.ID) (*store.Version, error) {
	v, ok := versionByID(&fam.Root, id)
	if !ok {
		return nil, tampered(&fam.Root, fmt.Sprintf("version %s is missing, which wraps a data key", id))
	}
	return v, nil
}

// anyParent returns a root key version whatever its state; to be closed.
func (r reader) anyParent(fam *store.Family, id key.ID) (*seal.Parent, error) {
	v, err := parentRow(fam, id)
	if err != nil {
		return nil, err
	}
	o, err := r.open(fam, &fam.Root, v)
	if err != nil {
		return nil, err
	}
	if o.parent == nil {
		o.release()
		return nil, tampered(&fam.Root, fmt.Sprintf("version %s, which wraps a data key, is of alg %v", id, v.Alg))
	}
	return o.parent, nil
}

// messages returns a data key version for sealing and opening messages; to be released. From the cache it may be closed
// by now.
func (r reader) messages(fam *store.Family, data *store.Key, v *store.Version) (opened, error) {
	if v.Alg != key.Message {
		return opened{}, fmt.Errorf("%s is of alg %v: %w", describe(data), v.Alg, ErrPurpose)
	}
	if err := usableParent(fam, v.Parent); err != nil {
		return opened{}, err
	}
	return r.open(fam, data, v)
}

// ownMessages is messages for a version that was looked at already, in no cache.
func (r reader) ownMessages(fam *store.Family, data *store.Key, v *store.Version) (opened, error) {
	k, err := r.unwrap(fam, data, v)
	if err != nil {
		return opened{}, err
	}
	defer k.Close()
	messages, err := k.Messages()
	return opened{openedKey: openedKey{messages: messages}}, err
}

// unwrap opens the wrapped key itself, whatever is in the cache of it. The caller closes what it gets.
func (r reader) unwrap(fam *store.Family, k *store.Key, v *store.Version) (*seal.Key, error) {
	parent, err := r.parentOf(fam, k, v)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return r.unwrapUnder(parent, fam, k, v)
}

// parentOf returns what wraps a version, whatever its state; to be closed.
func (r reader) parentOf(fam *store.Family, k *store.Key, v *store.Version) (*seal.Parent, error) {
	if k.Kind == key.DEK {
		return r.anyParent(fam, v.Parent)
	}
	parent, ok := r.m.ring.parentOf(v.IKKID)
	if !ok || !parent.Use() {
		return nil, tampered(k, fmt.Sprintf("version %d is wrapped under another installation key", v.Number))
	}
	return parent, nil
}

func (r reader) unwrapUnder(parent *seal.Parent, fam *store.Family, k *store.Key, v *store.Version) (*seal.Key, error) {
	// That the commitment has 32 bytes, and that the id follows from it, was checked with the manifest.
	id := seal.Identity{Kind: k.Kind, Inst: r.inst(), RootKeyID: fam.Root.ID, Purpose: k.Purpose, Alg: v.Alg}
	unwrapped, err := parent.Unwrap(id, v.Number, v.Created, [32]byte(v.Commit), v.Blob)
	if err != nil {
		return nil, tampered(k, fmt.Sprintf("the wrapped key of version %d does not open", v.Number))
	}
	return unwrapped, nil
}
