package storetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// The policy and the time of everything that a [Maker] makes.
const (
	RotateEvery = 90 * 24 * 3600
	Created     = 1_750_000_000
)

// Maker makes rows of the right shape without any cryptography: ids follow from commitments, sizes are right, and what
// would be sealed or authenticated is random. Equal seeds make equal rows. It is safe for concurrent use.
type Maker struct {
	mu    sync.Mutex
	rnd   *rand.ChaCha8
	inst  [16]byte
	ikKID []byte
}

// NewMaker returns a maker for an installation of its own.
func NewMaker(seed uint64) *Maker {
	var s [32]byte
	binary.BigEndian.PutUint64(s[:], seed)
	m := &Maker{rnd: rand.NewChaCha8(s)}
	m.inst = [16]byte(m.Bytes(16))
	m.ikKID = m.Bytes(16)
	return m
}

// Bytes returns n pseudo-random bytes.
func (m *Maker) Bytes(n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := make([]byte, n)
	_, _ = m.rnd.Read(b) // never fails
	return b
}

// ID returns a new id with the prefix.
func (m *Maker) ID(prefix string) key.ID { return key.NewID(prefix, [16]byte(m.Bytes(16))) }

// Inst is the installation that everything is made for.
func (m *Maker) Inst() [16]byte { return m.inst }

// IKKID is the installation key that everything is made under: a random one, until Use.
func (m *Maker) IKKID() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.ikKID)
}

// Use names the installation key that everything is made under from now on.
func (m *Maker) Use(kid []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ikKID = bytes.Clone(kid)
}

// Installation returns the installation with an active and a retired slot, other ones at each call.
func (m *Maker) Installation() store.Installation {
	kid := m.IKKID()
	in := store.Installation{Inst: bytes.Clone(m.inst[:]), IKKID: kid, Seq: 1, MAC: m.Bytes(32)}
	in.Slots = []store.Slot{m.Slot(kid, key.Active), m.Slot(kid, key.Retired)}
	in.ActiveSlot = in.Slots[0].ID
	in.Keys = []store.InstallationKey{{KID: kid}}
	return in
}

// Slot returns a new slot of the installation key with the given kid.
func (m *Maker) Slot(kid []byte, state key.State) store.Slot {
	return store.Slot{
		ID:           m.ID(key.PrefixRootSlot),
		WrapperType:  "keyhold-local",
		WrapperKeyID: "khr_example",
		IKKID:        bytes.Clone(kid),
		State:        state,
		Blob:         m.Bytes(150),
	}
}

// NextRoots returns a change of in that changes the slots' manifest alone.
func (m *Maker) NextRoots(in *store.Installation) store.RootsChange {
	c := store.RootsChange{Inst: m.inst, From: in.Seq, Seq: in.Seq + 1, MAC: m.Bytes(32)}
	c.IKKID, c.ActiveSlot = bytes.Clone(in.IKKID), in.ActiveSlot
	return c
}

// AddKey returns a change of in that adds an installation key with an active slot, and puts the manifest under it.
func (m *Maker) AddKey(in *store.Installation) store.RootsChange {
	c := m.NextRoots(in)
	newest := in.Keys[len(in.Keys)-1]
	c.AddKey = &store.InstallationKey{KID: m.Bytes(16), Previous: bytes.Clone(newest.KID), Link: m.Bytes(32)}
	c.Add = []store.Slot{m.Slot(c.AddKey.KID, key.Active)}
	c.IKKID, c.ActiveSlot = c.AddKey.KID, c.Add[0].ID
	return c
}

// DropKey returns a change of in that removes the slots of another installation key than the manifest's, and the key.
func (m *Maker) DropKey(in *store.Installation, kid []byte) store.RootsChange {
	c := m.NextRoots(in)
	c.Drop = bytes.Clone(kid)
	for _, s := range in.Slots {
		if bytes.Equal(s.IKKID, kid) && s.State != key.Destroyed {
			c.States = append(c.States, store.SlotChange{ID: s.ID, From: s.State, To: key.Destroyed})
		}
	}
	return c
}

// Rekey returns k's manifest, and its wrapped keys if it is a root key, under the installation key with the given kid.
func (m *Maker) Rekey(k *store.Key, kid []byte) store.Rekey {
	r := store.Rekey{Kind: k.Kind, KeyID: k.ID, From: k.Seq, Seq: k.Seq + 1, IKKID: bytes.Clone(kid), MAC: m.Bytes(32)}
	for i := range k.Versions {
		if k.Kind == key.KEK {
			rewrap := m.Rewrap(&k.Versions[i], "")
			rewrap.IKKID = bytes.Clone(kid)
			r.Versions = append(r.Versions, rewrap)
		}
	}
	return r
}

// Version returns a version of a root key ([key.KEK], without a parent) or a data key.
func (m *Maker) Version(kind key.Kind, n key.Version, state key.State, alg key.Alg, parent key.ID) store.Version {
	size := 73
	if alg == key.Raw || alg == key.Imported {
		size += 32
	}
	v := store.Version{Number: n, State: state, Alg: alg, Commit: m.Bytes(32), Blob: m.Blob(size), Parent: parent, Created: Created + int64(n)}
	v.ID = key.VersionID(kind, key.KID(v.Commit[:16]))
	if kind == key.KEK {
		v.IKKID = m.IKKID()
	}
	return v
}

// Blob returns what a wrapped key of n bytes in all looks like.
func (m *Maker) Blob(n int) []byte { return append([]byte{0x01}, m.Bytes(n-1)...) }

// Manifest returns a manifest with the maker's policy.
func (m *Maker) Manifest(seq uint64, head key.Version) store.Manifest {
	return store.Manifest{Seq: seq, Head: head, RotateEvery: RotateEvery, MaxMessages: 1 << 40, IKKID: m.IKKID(), MAC: m.Bytes(32)}
}

// Instance returns a new instance that has seen nothing yet.
func (m *Maker) Instance() store.Instance {
	return store.Instance{ID: m.ID(key.PrefixInstance), Name: "host program 1", Life: 960, Slot: m.ID(key.PrefixRootSlot)}
}

// RootKey returns a new root key with one version.
func (m *Maker) RootKey(scope key.Scope) store.Key {
	return m.withVersion(store.Key{ID: m.ID(key.PrefixRootKey), Kind: key.KEK, Scope: scope},
		m.Version(key.KEK, 1, key.Active, key.Message, ""))
}

// DataKey returns a new data key under the head of root, with one version.
func (m *Maker) DataKey(root *store.Key, purpose key.Purpose, alg key.Alg) store.Key {
	return m.withVersion(store.Key{ID: m.ID(key.PrefixDataKey), Kind: key.DEK, RootKeyID: root.ID, Purpose: purpose},
		m.Version(key.DEK, 1, key.Active, alg, head(root).ID))
}

// Name returns what is known at first of the name of a raw data key: that it is registered with a generator.
func (m *Maker) Name(root key.ID, purpose key.Purpose) store.Name {
	return m.NextName(store.Name{RootKeyID: root, Purpose: purpose, Generator: "aes128-random"})
}

// NextName returns n with the next sequence number.
func (m *Maker) NextName(n store.Name) store.Name {
	n.Seq, n.IKKID, n.MAC = n.Seq+1, m.IKKID(), m.Bytes(32)
	return n
}

// Removed returns what is known of the name of k after n, when k was removed. A zero n is a name of which nothing is
// known.
func (m *Maker) Removed(k *store.Key, n store.Name) store.Name {
	n.RootKeyID, n.Purpose, n.Last, n.Removed = k.RootKeyID, k.Purpose, newest(k), true
	return m.NextName(n)
}

// After returns a new raw data key under the head of root, whose numbers go on where those of n ended.
func (m *Maker) After(root *store.Key, n store.Name) store.Key {
	k := m.DataKey(root, n.Purpose, key.Raw)
	k.Generator, k.Head, k.Versions[0].Number = n.Generator, n.Last+1, n.Last+1
	for i := range n.Last {
		k.Tombstones = append(k.Tombstones, store.Tombstone{Number: i + 1, Alg: key.Raw, Commit: make([]byte, 32)})
	}
	return k
}

func (m *Maker) withVersion(k store.Key, v store.Version) store.Key {
	k.Manifest = m.Manifest(1, v.Number)
	k.Versions = []store.Version{v}
	k.RotateAt = v.Created + RotateEvery
	return k
}

// Scope returns a root key and a data key for each purpose, in the order that Create takes them.
func (m *Maker) Scope(scope key.Scope, purposes ...key.Purpose) []store.Key {
	keys := []store.Key{m.RootKey(scope)}
	for _, p := range purposes {
		keys = append(keys, m.DataKey(&keys[0], p, key.Message))
	}
	return keys
}

// Next returns an update of k that changes its manifest alone.
func (m *Maker) Next(k *store.Key) store.Update {
	next := m.Manifest(k.Seq+1, k.Head)
	next.Generator = k.Generator
	return store.Update{Inst: m.inst, Kind: k.Kind, KeyID: k.ID, From: k.Seq, Manifest: next, RotateAt: k.RotateAt}
}

// Add returns an update that adds a pending version to k, under the head of root if k is a data key.
func (m *Maker) Add(k, root *store.Key) store.Update {
	u := m.Next(k)
	var parent key.ID
	if k.Kind == key.DEK {
		parent = head(root).ID
	}
	v := m.Version(k.Kind, newest(k)+1, key.Pending, head(k).Alg, parent)
	u.Add, u.RotateAt = &v, v.Created+RotateEvery
	return u
}

// Activate returns an update that makes the pending version n of k its head.
func (m *Maker) Activate(k *store.Key, n key.Version) store.Update {
	u := m.Next(k)
	u.Manifest.Head = n
	u.States = []store.StateChange{
		{Number: n, From: key.Pending, To: key.Active},
		{Number: k.Head, From: key.Active, To: key.Retired},
	}
	return u
}

// Step returns an update that changes the state of version n of k.
func (m *Maker) Step(k *store.Key, n key.Version, to key.State) store.Update {
	u := m.Next(k)
	for _, v := range k.Versions {
		if v.Number == n {
			u.States = []store.StateChange{{Number: n, From: v.State, To: to}}
		}
	}
	return u
}

// Destroy returns an update that destroys versions of k.
func (m *Maker) Destroy(k *store.Key, versions ...key.Version) store.Update {
	u := m.Next(k)
	u.Destroy = versions
	if rest := slices.DeleteFunc(slices.Clone(k.Versions), func(v store.Version) bool {
		return slices.Contains(versions, v.Number)
	}); len(rest) > 0 {
		u.RotateAt = rest[len(rest)-1].Created + RotateEvery
	}
	return u
}

// Rewrap returns the replacement of the wrapped key of v, under parent if it is a data key's.
func (m *Maker) Rewrap(v *store.Version, parent key.ID) store.Rewrap {
	r := store.Rewrap{ID: v.ID, Old: bytes.Clone(v.Blob), Blob: m.Blob(len(v.Blob)), Parent: parent}
	if parent == "" {
		r.IKKID = m.IKKID()
	}
	return r
}

func head(k *store.Key) *store.Version {
	for i := range k.Versions {
		if k.Versions[i].Number == k.Head {
			return &k.Versions[i]
		}
	}
	panic(fmt.Sprintf("key %s has no head", k.ID))
}

// newest is the highest number of k's versions and tombstones.
func newest(k *store.Key) (n key.Version) {
	for _, v := range k.Versions {
		n = max(n, v.Number)
	}
	for _, t := range k.Tombstones {
		n = max(n, t.Number)
	}
	return n
}
