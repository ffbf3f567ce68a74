package seal

import (
	"fmt"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// names changes what is known of names, and puts the MAC of each to every other, those of the same name at an earlier
// time among them.
func (c *tampering) names(ik *IK) {
	other, err := GenerateIK()
	if err != nil {
		c.t.Fatal(err)
	}
	all := []envelope.NameManifest{
		{RootKeyID: "krk_a", Purpose: "tokens", Seq: 1, Generator: "aes128-random"},
		{RootKeyID: "krk_a", Purpose: "tokens", Seq: 2, Generator: "aes128-random", Last: 3, Removed: true},
		{RootKeyID: "krk_a", Purpose: "tokens", Seq: 3, Generator: "aes192-random", Last: 3},
		{RootKeyID: "krk_a", Purpose: "invoices", Seq: 1},
		{RootKeyID: "krk_b", Purpose: "tokens", Seq: 1, Generator: "aes128-random"},
	}
	for i := range all {
		all[i].Inst = ik.Inst()
	}
	for i, n := range all {
		b := n.Append(nil)
		mac := ik.MAC(b)
		if err := verify(ik, b, mac[:]); err != nil {
			c.t.Fatal("the name does not verify untouched")
		}
		what := fmt.Sprintf("name %d", i)
		c.bits(what, b, func(b []byte) error { return verify(ik, b, mac[:]) })
		c.bits(what+" MAC", mac[:], func(mac []byte) error { return verify(ik, b, mac) })
		c.refused(func() string { return what + " under another installation key" }, func() error { return verify(other, b, mac[:]) })
		for j, from := range all {
			if i == j {
				continue
			}
			mac := ik.MAC(from.Append(nil))
			c.refused(func() string { return fmt.Sprintf("name %d with the MAC of %d", i, j) }, func() error { return verify(ik, b, mac[:]) })
		}
		for name, change := range nameChanges() {
			changed := n
			change(&changed)
			c.refused(func() string { return what + ": " + name }, func() error { return verify(ik, changed.Append(nil), mac[:]) })
		}
	}
}

func nameChanges() map[string]func(*envelope.NameManifest) {
	return map[string]func(*envelope.NameManifest){
		"another installation": func(n *envelope.NameManifest) { n.Inst[0] ^= 1 },
		"another root key":     func(n *envelope.NameManifest) { n.RootKeyID += "x" },
		"another name":         func(n *envelope.NameManifest) { n.Purpose += "x" },
		"older seq":            func(n *envelope.NameManifest) { n.Seq-- },
		"newer seq":            func(n *envelope.NameManifest) { n.Seq++ },
		"another generator":    func(n *envelope.NameManifest) { n.Generator += "x" },
		"fewer numbers":        func(n *envelope.NameManifest) { n.Last-- },
		"more numbers":         func(n *envelope.NameManifest) { n.Last += 256 },
		"removed or not":       func(n *envelope.NameManifest) { n.Removed = !n.Removed },
		"name and root key":    func(n *envelope.NameManifest) { n.RootKeyID, n.Purpose = key.ID(n.Purpose), key.Purpose(n.RootKeyID) },
		"generator and name": func(n *envelope.NameManifest) {
			n.Generator, n.Purpose = string(n.Purpose), key.Purpose(n.Generator)
		},
		"one letter further": func(n *envelope.NameManifest) {
			n.RootKeyID, n.Purpose = n.RootKeyID+key.ID(n.Purpose[:1]), n.Purpose[1:]
		},
	}
}
