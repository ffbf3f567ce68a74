package envelope

import "keyhold.example/keyhold/key"

// Policy says when a key is to be rotated, and how. It is authenticated with the key's manifest (docs/format.md,
// section 7).
type Policy struct {
	RotateEvery uint64 // seconds after a version was made until the next is due; 0: never
	MaxMessages uint64 // messages that one version may seal; 0: unlimited
	Generator   string // by which versions of a raw data key are made; empty, and then not in it, for the default one
}

func (p Policy) tuple() []byte {
	fields := [][]byte{U64(p.RotateEvery), U64(p.MaxMessages)}
	if p.Generator != "" {
		fields = append(fields, []byte(p.Generator))
	}
	return Tuple("policy", fields...)
}

// ManifestVersion is one version in a [Manifest]. The number of a version that an import found missing is there too, as
// destroyed, with everything else zero or empty.
type ManifestVersion struct {
	Version key.Version
	State   key.State
	Alg     key.Alg
	Commit  [32]byte
	ID      key.ID
}

// Manifest is what is authenticated about one root key or data key (section 7).
type Manifest struct {
	Inst     [16]byte
	Kind     key.Kind    // [key.KEK] or [key.DEK]
	Owner    string      // the scope of a root key; the root key's id of a data key
	Purpose  key.Purpose // empty for a root key
	KeyID    key.ID
	Seq      uint64 // grows by one with every change
	Head     key.Version
	Policy   Policy
	Versions []ManifestVersion // every number from 1 to the newest, in that order
}

// Append appends the bytes that the MAC is over to dst. It writes what m says, and checks nothing: a manifest that
// breaks a rule has bytes, but no MAC that was ever made of them.
func (m Manifest) Append(dst []byte) []byte {
	var versions []byte
	for _, v := range m.Versions {
		versions = AppendTuple(versions, "v",
			U64(uint64(v.Version)), U8(uint8(v.State)), U8(uint8(v.Alg)), v.Commit[:], []byte(v.ID))
	}
	return AppendTuple(dst, "kh1/manifest",
		m.Inst[:], []byte(m.Kind), []byte(m.Owner), []byte(m.Purpose), []byte(m.KeyID), U64(m.Seq), U64(uint64(m.Head)),
		m.Policy.tuple(), versions)
}

// NameManifest is what is authenticated about the name of a raw data key (section 7).
type NameManifest struct {
	Inst      [16]byte
	RootKeyID key.ID
	Purpose   key.Purpose
	Seq       uint64 // grows with every change
	Generator string // empty for the default one
	Last      key.Version
	Removed   bool
}

// Append appends the bytes that the MAC is over to dst.
func (m NameManifest) Append(dst []byte) []byte {
	state := key.Active
	if m.Removed {
		state = key.Destroyed
	}
	return AppendTuple(dst, "kh1/name",
		m.Inst[:], []byte(m.RootKeyID), []byte(m.Purpose), U64(m.Seq), []byte(m.Generator), U64(uint64(m.Last)), U8(uint8(state)))
}

// Slot is one root slot in a [SlotsManifest].
type Slot struct {
	ID          key.ID
	WrapperType string
	IKKID       key.KID   // the installation key that is sealed in it
	State       key.State // pending, active or retired; destroyed once it is removed
	BlobHash    [32]byte  // SHA-256 of the blob's bytes; of no bytes for a removed slot, which keeps its row but not its blob
}

// SlotsManifest is what is authenticated about the root slots of an installation (section 7).
type SlotsManifest struct {
	Inst   [16]byte
	Seq    uint64
	Active key.ID
	Slots  []Slot // all of them, removed ones too, in the order in which they were made
}

// Append appends the bytes that the MAC is over to dst. The slots are written in the order in which they stand, which
// is part of what is authenticated: whoever reads them back has to give them in the same order, oldest first.
func (m SlotsManifest) Append(dst []byte) []byte {
	var slots []byte
	for _, s := range m.Slots {
		slots = AppendTuple(slots, "s",
			[]byte(s.ID), []byte(s.WrapperType), s.IKKID[:], U8(uint8(s.State)), s.BlobHash[:])
	}
	return AppendTuple(dst, "kh1/slots", m.Inst[:], U64(m.Seq), []byte(m.Active), slots)
}
