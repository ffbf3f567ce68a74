// Gen prints a file of vectors with random values, of the form that package vectors reads.
//
//	go run ./vectors/gen >FILE
//	KEYHOLD_VECTORS=FILE go test -count=1 ./vectors/...
package main

import (
	"context"
	"crypto/fips140"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/v2/aead"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/vectors"
)

func main() {
	g := &generator{out: &vectors.File{Format: "keyhold v1"}}
	for _, step := range []func() error{g.tuples, g.installation, g.scopes, g.names, g.localRoot, g.rawRoot, g.recovery} {
		if err := step(); err != nil {
			fmt.Fprintln(os.Stderr, "make vectors:", err)
			os.Exit(1)
		}
	}
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", " ")
	if err := enc.Encode(g.out); err != nil {
		fmt.Fprintln(os.Stderr, "print vectors:", err)
		os.Exit(1)
	}
}

type generator struct {
	out *vectors.File
	ik  *seal.IK
}

func random(n int) []byte { return seal.Random(n).Reveal() }

func (g *generator) tuples() error {
	for _, fields := range [][]vectors.Hex{nil, {random(2), {}}, {random(1), random(300)}, {random(8), random(1), random(16)}} {
		v := vectors.Enc{Label: "kh1/x", Fields: fields}
		var b [][]byte
		for _, f := range fields {
			b = append(b, f)
		}
		v.Enc = envelope.Tuple(v.Label, b...)
		g.out.Enc = append(g.out.Enc, v)
	}
	for _, n := range []int{1, 2, 3, 255} {
		var v vectors.Context
		var parts []string
		for i := range n {
			part := random(i%5 + 1)
			v.Parts = append(v.Parts, part)
			parts = append(parts, string(part))
		}
		made, err := envelope.Context(parts...)
		if err != nil {
			return err
		}
		v.Context = []byte(made)
		g.out.Context = append(g.out.Context, v)
	}
	return nil
}

// bytesOf is the installation key itself, which is the last part of any slot's payload.
func bytesOf(ik *seal.IK) []byte {
	const headerSize = 33
	return ik.SlotPayload("", "").Reveal()[headerSize:]
}

func (g *generator) installation() (err error) {
	if g.ik, err = seal.GenerateIK(); err != nil {
		return err
	}
	inst, kid, pin := g.ik.Inst(), g.ik.KID(), g.ik.Pin()
	g.out.Inst, g.out.IK, g.out.IKKID, g.out.Pin = inst[:], bytesOf(g.ik), kid[:], pin[:]

	var slots []envelope.Slot
	for i, wrapperType := range []string{"aead", "keyhold-local", "awskms"} {
		id, err := seal.RandomID(key.PrefixRootSlot)
		if err != nil {
			return err
		}
		v := vectors.RootSlot{
			SlotID: string(id), WrapperType: wrapperType, IKKID: kid[:], State: uint8(key.Active) + uint8(i%2),
			Payload: g.ik.SlotPayload(id, wrapperType).Reveal(), Blob: random(90),
		}
		g.out.RootSlot = append(g.out.RootSlot, v)
		slots = append(slots, envelope.Slot{
			ID: id, WrapperType: wrapperType, IKKID: kid, State: key.State(v.State), BlobHash: seal.BlobHash(v.Blob),
		})
	}
	m := envelope.SlotsManifest{Inst: inst, Seq: 7, Active: slots[0].ID, Slots: slots}
	mac := g.ik.MAC(m.Append(nil))
	g.out.SlotsManifest = vectors.SlotsManifest{Seq: m.Seq, Active: string(m.Active), MAC: mac[:]}
	return g.next(inst)
}

// next makes what announces a second installation key of the same installation.
func (g *generator) next(inst [16]byte) error {
	next := random(envelope.KeySize)
	pin := seal.Expand(secret.New(next), envelope.Tuple("kh1/pin", inst[:])).Reveal()
	mac := g.ik.NextMAC([32]byte(pin))
	g.out.IKNext = vectors.IKNext{NewIK: next, NewPin: pin, MAC: mac[:]}
	return nil
}

func (g *generator) scopes() error {
	for i, scope := range []string{"tenant-1", "mandant ü", strings.Repeat("x", key.MaxScopeLen)} {
		root, err := seal.RandomID(key.PrefixRootKey)
		if err != nil {
			return err
		}
		created := int64(1_800_000_000 + i)
		kek, err := seal.Generate(seal.Identity{Kind: key.KEK, Inst: g.ik.Inst(), RootKeyID: root, Alg: key.Message})
		if err != nil {
			return err
		}
		if err := g.wrap(g.ik.Parent(), bytesOf(g.ik), kek, 1, created); err != nil {
			return err
		}
		if err := g.manifest(scope, root, kek); err != nil {
			return err
		}
		parent, err := kek.Parent()
		if err != nil {
			return err
		}
		for _, alg := range []key.Alg{key.Message, key.Raw, key.BlindIndex, key.Imported} {
			if err := g.dataKey(parent, kek, alg, key.Version(i+1), created); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *generator) dataKey(parent *seal.Parent, kek *seal.Key, alg key.Alg, version key.Version, created int64) error {
	id := kek.Identity()
	id.Kind, id.Alg, id.Purpose = key.DEK, alg, key.Purpose(fmt.Sprintf("purpose %d", alg))
	var dek *seal.Key
	var err error
	if alg == key.Imported {
		dek, err = seal.FromBytes(id, seal.Random(32))
	} else {
		dek, err = seal.Generate(id)
	}
	if err != nil {
		return err
	}
	if err := g.wrap(parent, kek.Bytes().Reveal(), dek, version, created); err != nil {
		return err
	}
	keyID, err := seal.RandomID(key.PrefixDataKey)
	if err != nil {
		return err
	}
	if err := g.manifest(string(id.RootKeyID), keyID, dek); err != nil {
		return err
	}
	switch alg {
	case key.Message:
		return g.messages(dek)
	case key.BlindIndex:
		v := vectors.BlindIndex{Alg: uint8(alg), DEK: dek.Bytes().Reveal(), Index: "email", Value: random(9), Size: 4 + 4*int(version)}
		v.Out, err = dek.BlindIndex(v.Index, v.Value, v.Size)
		g.out.BlindIndex = append(g.out.BlindIndex, v)
		return err
	case key.Imported:
		return g.legacy(dek)
	case key.Raw:
		g.generated(string(id.RootKeyID), keyID, dek)
	}
	return nil
}

func (g *generator) wrap(parent *seal.Parent, parentBytes []byte, k *seal.Key, version key.Version, created int64) error {
	blob, err := parent.Wrap(k, version, created)
	if err != nil {
		return err
	}
	id, commit, kid := k.Identity(), k.Commit(), parent.KID()
	good := vectors.Wrap{
		Note: "as made", Valid: true, Kind: string(id.Kind), RootKeyID: string(id.RootKeyID), Purpose: string(id.Purpose),
		Alg: uint8(id.Alg), Version: uint32(version), Created: created, Parent: parentBytes, ParentKID: kid[:], Commit: commit[:],
		Blob: blob, ID: string(k.ID()), Key: k.Bytes().Reveal(),
	}
	g.out.Wrap = append(g.out.Wrap, good)
	bad := func(note string, change func(*vectors.Wrap)) {
		v := good
		v.Note, v.Valid, v.ID, v.Key = note, false, "", nil
		change(&v)
		g.out.Wrap = append(g.out.Wrap, v)
	}
	bad("another version", func(v *vectors.Wrap) { v.Version++ })
	bad("another time of creation", func(v *vectors.Wrap) { v.Created++ })
	bad("another algorithm", func(v *vectors.Wrap) { v.Alg ^= 2 })
	bad("truncated", func(v *vectors.Wrap) { v.Blob = v.Blob[:len(v.Blob)-1] })
	bad("another commitment", func(v *vectors.Wrap) { v.Commit = random(32) })
	return nil
}

func (g *generator) manifest(owner string, id key.ID, k *seal.Key) error {
	m := envelope.Manifest{
		Inst: g.ik.Inst(), Kind: k.Identity().Kind, Owner: owner, Purpose: k.Identity().Purpose, KeyID: id, Seq: 3, Head: 2,
		Policy: envelope.Policy{RotateEvery: 7_776_000, MaxMessages: 1 << 32},
		Versions: []envelope.ManifestVersion{
			{Version: 1, State: key.Destroyed},
			{Version: 2, State: key.Active, Alg: k.Identity().Alg, Commit: k.Commit(), ID: k.ID()},
		},
	}
	good := g.manifestEntry("as made", m)
	bad := good
	bad.Note, bad.Valid, bad.Seq = "older seq", false, good.Seq-1
	g.out.Manifest = append(g.out.Manifest, good, bad)
	return nil
}

func (g *generator) manifestEntry(note string, m envelope.Manifest) vectors.Manifest {
	mac := g.ik.MAC(m.Append(nil))
	e := vectors.Manifest{
		Note: note, Valid: true, IK: bytesOf(g.ik), Kind: string(m.Kind), Owner: m.Owner, Purpose: string(m.Purpose),
		KeyID: string(m.KeyID), Seq: m.Seq, Head: uint32(m.Head), RotateEvery: m.Policy.RotateEvery,
		MaxMessages: m.Policy.MaxMessages, Generator: m.Policy.Generator, MAC: mac[:],
	}
	for _, v := range m.Versions {
		e.Versions = append(e.Versions, vectors.ManifestVersion{
			Version: uint32(v.Version), State: uint8(v.State), Alg: uint8(v.Alg), Commit: v.Commit[:], ID: string(v.ID),
		})
	}
	return e
}

func (g *generator) messages(dek *seal.Key) error {
	m, err := dek.Messages()
	if err != nil {
		return err
	}
	id := dek.Identity()
	for i, sealer := range []func(_, _ []byte, _ *envelope.Parts, _ time.Duration) ([]byte, error){m.Seal, m.SealDetached} {
		for _, size := range []int{0, 5, 1000} {
			plaintext, c := vectors.Hex(random(size)), string(random(size%7))
			parts := envelope.WholeContext(c)
			ciphertext, err := sealer(nil, plaintext, &parts, 0)
			if err != nil {
				return err
			}
			good := vectors.Message{
				Note: []string{"attached", "detached"}[i], Valid: true, RootKeyID: string(id.RootKeyID), Purpose: string(id.Purpose),
				DEK: dek.Bytes().Reveal(), Context: []byte(c), Ciphertext: ciphertext, Plaintext: &plaintext,
			}
			bad := good
			bad.Note, bad.Valid, bad.Plaintext = "another context", false, nil
			bad.Context = append([]byte(c), 0)
			g.out.Message = append(g.out.Message, good, bad)
		}
	}
	return nil
}

// legacy seals with go-kms-wrapping itself. It chooses its nonces, which the FIPS 140-3 module does not approve of, so
// enforcement is suspended for it.
func (g *generator) legacy(dek *seal.Key) error {
	v := vectors.Legacy{Key: dek.Bytes().Reveal(), AAD: random(6), Plaintext: random(20)}
	var blob *wrapping.BlobInfo
	var err error
	fips140.WithoutEnforcement(func() {
		old := aead.NewWrapper()
		if err = old.SetAesGcmKeyBytes(v.Key); err == nil {
			blob, err = old.Encrypt(context.Background(), v.Plaintext, wrapping.WithAad(v.AAD))
		}
	})
	if err != nil {
		return fmt.Errorf("seal with go-kms-wrapping: %w", err)
	}
	v.Ciphertext = blob.GetCiphertext()
	g.out.Legacy = append(g.out.Legacy, v)
	return nil
}

func (g *generator) localRoot() error {
	dir, err := os.MkdirTemp("", "keyhold-vectors-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "root.key")
	root, err := localroot.Generate(path)
	if err != nil {
		return err
	}
	line, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	v := vectors.LocalRoot{File: strings.TrimSpace(string(line)), AAD: random(4), Plaintext: random(12)}
	b, _ := key.ParseBase32(strings.TrimPrefix(v.File, "khr1_"))
	v.KeyID, v.Key = b[:8], b[8:40]
	blob, err := root.Encrypt(context.Background(), v.Plaintext, wrapping.WithAad(v.AAD))
	if err != nil {
		return err
	}
	v.Ciphertext, v.Nonce, v.WrapperKeyID = blob.GetCiphertext(), blob.GetCiphertext()[:24], blob.GetKeyInfo().GetKeyId()
	g.out.LocalRoot = v
	return nil
}

func (g *generator) rawRoot() error {
	for i := range 3 {
		k := random(envelope.KeySize)
		root, err := localroot.FromBytes(k)
		if err != nil {
			return err
		}
		good := vectors.RawRoot{Note: "as made", Valid: true, Key: k, AAD: random(4), Plaintext: random(12 + i)}
		good.File = base64.StdEncoding.AppendEncode(nil, k)
		if i == 0 {
			good.File = k
		}
		blob, err := root.Encrypt(context.Background(), good.Plaintext, wrapping.WithAad(good.AAD))
		if err != nil {
			return err
		}
		good.Ciphertext, good.Nonce, good.WrapperKeyID = blob.GetCiphertext(), blob.GetCiphertext()[:24], blob.GetKeyInfo().GetKeyId()
		bad := good
		bad.Note, bad.Valid, bad.Plaintext, bad.AAD = "another AAD", false, nil, append(random(1), good.AAD...)
		g.out.RawRoot = append(g.out.RawRoot, good, bad,
			vectors.RawRoot{Note: "a file that is too short", File: good.File[:len(good.File)-1]})
	}
	return nil
}

func (g *generator) recovery() error {
	inst := g.ik.Inst()
	line := string(g.ik.Recovery().Reveal())
	g.out.Recovery = []vectors.Recovery{
		{Note: "as made", Valid: true, Line: line, Inst: inst[:], IK: bytesOf(g.ik)},
		{Note: "truncated", Line: line[:len(line)-1]},
	}

	lines, err := g.ik.Shares(2, 3, split2of3)
	if err != nil {
		return err
	}
	var shares []string
	for _, l := range lines {
		shares = append(shares, string(l.Reveal()))
	}
	for i, note := range []string{"2 and 3", "1 and 3", "1 and 2"} {
		two := slices.Delete(slices.Clone(shares), i, i+1)
		g.out.Shares = append(g.out.Shares, vectors.Shares{Note: note, Valid: true, Lines: two, IK: bytesOf(g.ik)})
	}
	g.out.Shares = append(g.out.Shares,
		vectors.Shares{Note: "all", Valid: true, Lines: shares, IK: bytesOf(g.ik)}, vectors.Shares{Note: "too few", Lines: shares[:1]})
	return nil
}

// split2of3 is Shamir's scheme for this case alone, where multiplying by the numbers of the shares is doubling and
// adding.
func split2of3(k []byte, _, _ int) ([][]byte, error) {
	parts := [][]byte{{}, {}, {}}
	for _, constant := range k {
		slope := random(1)[0]
		double := slope<<1 ^ 0x1b*(slope>>7)
		for i, product := range []byte{slope, double, double ^ slope} {
			parts[i] = append(parts[i], constant^product)
		}
	}
	for i := range parts {
		parts[i] = append(parts[i], byte(i+1))
	}
	return parts, nil
}
