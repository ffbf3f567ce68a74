package keyhold

import (
	"bytes"
	"encoding/hex"
	"slices"
	"sync"
	"sync/atomic"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
)

// keyring is the installation keys that rows may name: one, or two while the installation is rekeyed. It is safe for
// concurrent use.
type keyring struct {
	inst [16]byte

	mu   sync.RWMutex // only computing is done under it
	keys []*seal.IK   // oldest first; the last is the one that is written under
	pin  string       // of that; it outlasts close

	changes atomic.Uint64 // how often there were others
}

// newKeyring takes over the keys, of which there is at least one.
func newKeyring(keys []*seal.IK) *keyring {
	r := &keyring{inst: keys[0].Inst()}
	r.set(keys)
	return r
}

// set replaces the keys, takes over the new ones, and closes those that it had. What wraps with one goes on, and
// nothing that is stored will open.
func (r *keyring) set(keys []*seal.IK) {
	pin := keys[len(keys)-1].Pin()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ik := range r.keys {
		ik.Close()
	}
	r.keys, r.pin = keys, hex.EncodeToString(pin[:])
	r.changes.Add(1)
}

func (r *keyring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ik := range r.keys {
		ik.Close()
	}
	r.keys = nil
}

// clones are the keys, for the caller to close.
func (r *keyring) clones() []*seal.IK {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var clones []*seal.IK
	for _, ik := range r.keys {
		clones = append(clones, ik.Clone())
	}
	return clones
}

func closeAll(iks []*seal.IK) {
	for _, ik := range iks {
		ik.Close()
	}
}

// pinText is the pin of the key that is written under.
func (r *keyring) pinText() string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.pin
}

// parent is the key that is written under, as the parent of root keys.
func (r *keyring) parent() *seal.Parent {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.keys[len(r.keys)-1].Parent()
}

// parentOf is the key that a row names, as the parent of root keys.
func (r *keyring) parentOf(kid []byte) (*seal.Parent, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if ik := keyOf(r.keys, kid); ik != nil {
		return ik.Parent(), true
	}
	return nil, false
}

func (r *keyring) has(kid []byte) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return keyOf(r.keys, kid) != nil
}

// hasJust says whether these are all keys that there are.
func (r *keyring) hasJust(kids [][]byte) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(kids) == len(r.keys) && !slices.ContainsFunc(kids, func(kid []byte) bool { return keyOf(r.keys, kid) == nil })
}

// sign is the MAC of a manifest, and the key that it is under.
func (r *keyring) sign(manifest []byte) (kid key.KID, mac [32]byte) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ik := r.keys[len(r.keys)-1]
	return ik.KID(), ik.MAC(manifest)
}

// verify says whether the key that a row names has made the MAC; not if there is no such key.
func (r *keyring) verify(kid, manifest, mac []byte) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ik := keyOf(r.keys, kid)
	return ik != nil && ik.Verify(manifest, mac)
}

func keyOf(iks []*seal.IK, kid []byte) *seal.IK {
	for _, ik := range iks {
		if its := ik.KID(); bytes.Equal(its[:], kid) {
			return ik
		}
	}
	return nil
}
