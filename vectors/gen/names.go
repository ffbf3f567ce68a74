package main

import (
	"strings"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/vectors"
)

// generated makes manifests of a raw key with a generator, the second of a name that had a key of two versions before.
func (g *generator) generated(owner string, id key.ID, k *seal.Key) {
	m := envelope.Manifest{
		Inst: g.ik.Inst(), Kind: key.DEK, Owner: owner, Purpose: k.Identity().Purpose, KeyID: id, Seq: 1, Head: 1,
		Policy:   envelope.Policy{RotateEvery: 86_400, Generator: "aes128-random"},
		Versions: []envelope.ManifestVersion{{Version: 1, State: key.Active, Alg: key.Raw, Commit: k.Commit(), ID: k.ID()}},
	}
	good := g.manifestEntry("with a generator", m)
	other, none := good, good
	other.Note, other.Valid, other.Generator = "generator changed", false, "aes192-random"
	none.Note, none.Valid, none.Generator = "generator taken out", false, ""
	g.out.Manifest = append(g.out.Manifest, good, other, none)

	head := m.Versions[0]
	m.Head, head.Version = 3, 3
	m.Versions = []envelope.ManifestVersion{
		{Version: 1, State: key.Destroyed, Alg: key.Raw}, {Version: 2, State: key.Destroyed, Alg: key.Raw}, head,
	}
	g.out.Manifest = append(g.out.Manifest, g.manifestEntry("after a removed key", m))
}

func (g *generator) names() error {
	root, err := seal.RandomID(key.PrefixRootKey)
	if err != nil {
		return err
	}
	for _, m := range []envelope.NameManifest{
		{Purpose: "tokens", Seq: 1},
		{Purpose: "tokens", Seq: 2, Last: 1, Removed: true},
		{Purpose: "rechnungen ü", Seq: 3, Generator: "aes192-random", Last: key.MaxVersion},
		{Purpose: key.Purpose(strings.Repeat("p", key.MaxPurposeLen)), Seq: 1 << 62, Generator: strings.Repeat("g", 255), Removed: true},
	} {
		m.Inst, m.RootKeyID = g.ik.Inst(), root
		mac := g.ik.MAC(m.Append(nil))
		good := vectors.Name{
			Note: "as made", Valid: true, IK: bytesOf(g.ik), RootKeyID: string(root), Purpose: string(m.Purpose), Seq: m.Seq,
			Generator: m.Generator, Last: uint32(m.Last), State: uint8(key.Active), MAC: mac[:],
		}
		if m.Removed {
			good.State = uint8(key.Destroyed)
		}
		g.out.Name = append(g.out.Name, good)
		bad := func(note string, change func(*vectors.Name)) {
			v := good
			v.Note, v.Valid = note, false
			change(&v)
			g.out.Name = append(g.out.Name, v)
		}
		bad("another state", func(v *vectors.Name) { v.State ^= uint8(key.Active) ^ uint8(key.Destroyed) })
		bad("another last number", func(v *vectors.Name) { v.Last ^= 1 })
		bad("another generator", func(v *vectors.Name) { v.Generator += "x" })
		bad("newer seq", func(v *vectors.Name) { v.Seq++ })
	}
	return nil
}
