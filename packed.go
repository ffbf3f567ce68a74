package keyhold

import (
	"encoding/binary"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// packed is a family of one data key in one piece, with everything that its rows have, in less than half of the room:
// numbers are as short as they can be, and what is there already is referred to. It never changes.
//
// It begins with the ids and names of the keys, which are looked at most. The rest is only read by [packed.family].
type packed string

// pack puts a family of one data key into one piece.
func pack(fam *store.Family) packed {
	root, data := &fam.Root, &fam.Data[0]
	const ofVersion = 192 // usually less
	size := 512 + (len(root.Versions)+len(data.Versions))*ofVersion
	p := packer{b: make([]byte, 0, size), at: make(map[string]int, 16)}
	for _, s := range []string{string(root.ID), string(data.ID), string(root.Scope), string(data.Purpose)} {
		p.number(uint64(len(s)))
		p.at[s] = len(p.b)
		p.b = append(p.b, s...)
	}
	for _, n := range []uint64{fam.Epoch, root.Seq, data.Seq} {
		p.number(n)
	}
	for _, n := range []int64{fam.Now, newestCreated(root), newestCreated(data)} {
		p.signed(n)
	}
	p.number(fam.Roots)
	p.key(root)
	p.key(data)
	return packed(p.b)
}

// cut returns the text that p begins with, and what comes after it.
func (p packed) cut() (text, rest packed) {
	n, rest := p.number()
	return rest[:n], rest[n:]
}

func (p packed) number() (n uint64, rest packed) {
	for shift := 0; ; shift += 7 {
		b := p[shift/7]
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return n, p[shift/7+1:]
		}
	}
}

func (p packed) signed() (n int64, rest packed) {
	u, rest := p.number()
	return int64(u>>1) ^ -int64(u&1), rest
}

// ids are those of the root key and of the data key.
func (p packed) ids() (root, data key.ID) {
	a, p := p.cut()
	b, _ := p.cut()
	return key.ID(a), key.ID(b)
}

// ref is what the data key is found by.
func (p packed) ref() key.Ref {
	_, p = p.cut()
	_, p = p.cut()
	scope, p := p.cut()
	purpose, _ := p.cut()
	return key.Ref{Scope: key.Scope(scope), Purpose: key.Purpose(purpose)}
}

// names skips what [packed.ids] and [packed.ref] are cut from.
func (p packed) names() (rest packed) {
	for range 4 {
		_, p = p.cut()
	}
	return p
}

func (p packed) epoch() uint64 {
	n, _ := p.names().number()
	return n
}

func (p packed) seqs() (root, data uint64) {
	_, p = p.names().number()
	root, p = p.number()
	data, _ = p.number()
	return root, data
}

// times are what the database's clock said when it was read, and when the newest versions of the keys were made.
func (p packed) times() (now, root, data int64) {
	p = p.names()
	for range 3 {
		_, p = p.number()
	}
	now, p = p.signed()
	root, p = p.signed()
	data, _ = p.signed()
	return now, root, data
}

// family is what was packed. Its slices belong to the caller, but some of them may share their bytes; its texts belong
// to p.
func (p packed) family() store.Family {
	u := unpacker{whole: p, rest: p.names(), bytes: []byte(p)}
	fam := store.Family{Epoch: u.number(), Data: make([]store.Key, 1)}
	fam.Root.Seq, fam.Data[0].Seq, fam.Now = u.number(), u.number(), u.signed()
	u.signed()
	u.signed()
	fam.Roots = u.number()
	u.key(&fam.Root)
	u.key(&fam.Data[0])
	return fam
}

type packer struct {
	b  []byte
	at map[string]int // where the texts are that may come again
}

func (p *packer) number(n uint64) { p.b = binary.AppendUvarint(p.b, n) }
func (p *packer) signed(n int64)  { p.b = binary.AppendVarint(p.b, n) }

// text appends a length, which is odd if the text is further in front already, and the text, or where that is.
func (p *packer) text(s string) {
	const worthIt = 4
	if at, ok := p.at[s]; ok && len(s) >= worthIt {
		p.number(uint64(len(s))<<1 | 1)
		p.number(uint64(at))
		return
	}
	packOnce(p, s)
	p.at[s] = len(p.b) - len(s)
}

// packOnce is text for what comes once, of which there may be thousands.
func packOnce[T ~string | ~[]byte](p *packer, s T) {
	p.number(uint64(len(s)) << 1)
	p.b = append(p.b, s...)
}

// key appends what was not appended before.
func (p *packer) key(k *store.Key) {
	for _, s := range []string{string(k.ID), string(k.Kind), string(k.Scope), string(k.RootKeyID), string(k.Purpose), k.Generator} {
		p.text(s)
	}
	p.text(string(k.IKKID))
	packOnce(p, k.MAC)
	for _, n := range []uint64{uint64(k.Head), k.RotateEvery, k.MaxMessages} {
		p.number(n)
	}
	p.signed(k.RotateAt)
	p.number(uint64(len(k.Versions)))
	for i := range k.Versions {
		v := &k.Versions[i]
		if k.Kind == key.KEK { // it may be a parent
			p.text(string(v.ID))
		} else {
			packOnce(p, v.ID)
		}
		p.text(string(v.Parent))
		packOnce(p, v.Commit)
		packOnce(p, v.Blob)
		p.text(string(v.IKKID))
		for _, n := range []uint64{uint64(v.Number), uint64(v.State), uint64(v.Alg)} {
			p.number(n)
		}
		p.signed(v.Created)
		p.signed(v.Disabled)
	}
	p.number(uint64(len(k.Tombstones)))
	for i := range k.Tombstones {
		t := &k.Tombstones[i]
		packOnce(p, t.ID)
		packOnce(p, t.Commit)
		p.number(uint64(t.Number))
		p.number(uint64(t.Alg))
		p.signed(t.Destroyed)
	}
}

type unpacker struct {
	whole, rest packed
	bytes       []byte // those of whole, for the slices
}

func (u *unpacker) number() (n uint64) {
	n, u.rest = u.rest.number()
	return n
}

func (u *unpacker) signed() (n int64) {
	n, u.rest = u.rest.signed()
	return n
}

// span is where the next text is.
func (u *unpacker) span() (from, to int) {
	n := u.number()
	if n&1 == 1 {
		from = int(u.number())
	} else {
		from = len(u.whole) - len(u.rest)
		u.rest = u.rest[n>>1:]
	}
	return from, from + int(n>>1)
}

func (u *unpacker) text() string {
	from, to := u.span()
	return string(u.whole[from:to])
}

func (u *unpacker) slice() []byte {
	from, to := u.span()
	if from == to {
		return nil
	}
	return u.bytes[from:to:to]
}

func (u *unpacker) key(k *store.Key) {
	k.ID, k.Kind, k.Scope = key.ID(u.text()), key.Kind(u.text()), key.Scope(u.text())
	k.RootKeyID, k.Purpose, k.Generator = key.ID(u.text()), key.Purpose(u.text()), u.text()
	k.IKKID, k.MAC = u.slice(), u.slice()
	k.Head, k.RotateEvery, k.MaxMessages = key.Version(u.number()), u.number(), u.number()
	k.RotateAt = u.signed()
	if n := u.number(); n > 0 {
		k.Versions = make([]store.Version, n)
	}
	for i := range k.Versions {
		k.Versions[i] = store.Version{
			ID: key.ID(u.text()), Parent: key.ID(u.text()), Commit: u.slice(), Blob: u.slice(), IKKID: u.slice(),
			Number: key.Version(u.number()), State: key.State(u.number()), Alg: key.Alg(u.number()),
			Created: u.signed(), Disabled: u.signed(),
		}
	}
	if n := u.number(); n > 0 {
		k.Tombstones = make([]store.Tombstone, n)
	}
	for i := range k.Tombstones {
		k.Tombstones[i] = store.Tombstone{
			ID: key.ID(u.text()), Commit: u.slice(),
			Number: key.Version(u.number()), Alg: key.Alg(u.number()), Destroyed: u.signed(),
		}
	}
}
