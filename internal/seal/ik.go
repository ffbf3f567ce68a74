package seal

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// IK is an opened installation key: the key that root keys are wrapped under, and that manifests are authenticated
// with. It prints as redacted. All methods but Close are safe for concurrent use.
type IK struct {
	opaque
	inst     [16]byte
	material secret.Bytes
	manifest secret.Bytes // the key that manifests are authenticated with
	kid      key.KID
	parent   *Parent
}

// GenerateIK makes the installation key of a new installation, which gets an identifier of its own. The error is that
// of the random source; today's never has one.
func GenerateIK() (*IK, error) {
	var inst [16]byte
	fill(inst[:])
	return newIK(inst, Random(envelope.KeySize)), nil
}

// Next makes another installation key for the same installation, for a rekey.
func (ik *IK) Next() *IK { return newIK(ik.inst, Random(envelope.KeySize)) }

// Clone returns the same key again, which is closed by itself.
func (ik *IK) Clone() *IK { return newIK(ik.inst, secret.New(bytes.Clone(ik.material.Reveal()))) }

func newIK(inst [16]byte, material secret.Bytes) *IK {
	id := Identity{Kind: key.IK, Inst: inst, Alg: key.Message}
	commit := commitment(id, nil, material.Reveal())
	kid := key.KID(commit[:])
	return &IK{
		inst:     inst,
		material: material,
		manifest: Expand(material, envelope.Tuple("kh1/manifest-key", inst[:])),
		kid:      kid,
		parent:   newParent(id, kid, material.Reveal()),
	}
}

// Inst returns the identifier of the installation.
func (ik *IK) Inst() [16]byte { return ik.inst }

// KID returns the first half of the installation key's commitment.
func (ik *IK) KID() key.KID { return ik.kid }

// Pin returns what proves, configured elsewhere, that this is the expected installation key (section 2). It is not
// secret.
func (ik *IK) Pin() [32]byte {
	return [32]byte(expand(ik.material.Reveal(), envelope.Tuple("kh1/pin", ik.inst[:])))
}

// Parent returns the installation key as the parent of root keys.
func (ik *IK) Parent() *Parent { return ik.parent }

// MAC returns the MAC of a manifest (section 7).
func (ik *IK) MAC(manifest []byte) [32]byte { return ik.mac(manifest) }

// Verify says, in a time that depends on no secret, whether mac is the MAC of the manifest.
func (ik *IK) Verify(manifest, mac []byte) bool {
	want := ik.mac(manifest)
	return subtle.ConstantTimeCompare(want[:], mac) == 1
}

// NextMAC returns what tells processes that have this installation key that the one with newPin follows it (section 2).
func (ik *IK) NextMAC(newPin [32]byte) [32]byte {
	return ik.mac(envelope.Tuple("kh1/ik-next", ik.inst[:], newPin[:]))
}

// FollowedBy says, in a time that depends on no secret, whether link is what NextMAC returned for that pin.
func (ik *IK) FollowedBy(newPin [32]byte, link []byte) bool {
	want := ik.NextMAC(newPin)
	return subtle.ConstantTimeCompare(want[:], link) == 1
}

func (ik *IK) mac(b []byte) [32]byte {
	k := ik.manifest.Reveal()
	if len(k) == 0 {
		panic(ErrClosed)
	}
	mac := hmac.New(sha256.New, k)
	mac.Write(b)
	return [32]byte(mac.Sum(nil))
}

// Close overwrites the installation key. Closing again does nothing. It must not run at the same time as another
// method.
func (ik *IK) Close() {
	ik.material.Clear()
	ik.manifest.Clear()
}

// SlotPayload returns what an external root is to seal for the given slot (section 2). It contains the installation
// key, and is the caller's to clear.
func (ik *IK) SlotPayload(slot key.ID, wrapperType string) secret.Bytes {
	return secret.New(envelope.AppendSlotPayload(nil, slotBinding(ik.inst, slot, wrapperType, ik.kid), ik.material.Reveal()))
}

// OpenSlotPayload returns the installation key from what an external root opened for the given slot, if it is the one
// with ikKID, and the payload was made for this slot. The error is [ErrOpen]. payload stays the caller's to clear.
func OpenSlotPayload(
	inst [16]byte, slot key.ID, wrapperType string, ikKID key.KID, payload secret.Bytes,
) (*IK, error) {
	binding, material, err := envelope.ParseSlotPayload(payload.Reveal())
	if err != nil {
		return nil, ErrOpen
	}
	want := slotBinding(inst, slot, wrapperType, ikKID)
	if subtle.ConstantTimeCompare(want[:], binding[:]) != 1 {
		return nil, ErrOpen
	}
	ik := newIK(inst, secret.New(bytes.Clone(material)))
	if subtle.ConstantTimeCompare(ik.kid[:], ikKID[:]) != 1 {
		ik.Close()
		return nil, ErrOpen
	}
	return ik, nil
}

func slotBinding(inst [16]byte, slot key.ID, wrapperType string, ikKID key.KID) [32]byte {
	return sha256.Sum256(envelope.Tuple("kh1/root-slot", inst[:], []byte(slot), []byte(wrapperType), ikKID[:]))
}
