package storetest

import (
	"pgregory.net/rapid"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var modelGenerators = []string{"", "aes128-random", "other-function"}

func (m *model) generator() string { return rapid.SampledFrom(modelGenerators).Draw(m.T, "generator") }

// name reads a name, and the key if there is one, from the specification.
func (m *model) name(ref key.Ref) (n store.Name, root store.Key, k *store.Key) {
	f, n, err := m.inSpec.Name(m.ctx(), ref)
	if err != nil {
		f.Root = m.env.m.RootKey(ref.Scope)
	}
	n.RootKeyID, n.Purpose = f.Root.ID, ref.Purpose
	if f, err := m.inSpec.Key(m.ctx(), ref); err == nil && len(f.Data) == 1 {
		k = &f.Data[0]
	}
	return n, f.Root, k
}

// oftener is true once in about 3 draws, for what can seldom be drawn at all.
func (m *model) oftener(what string) bool { return rapid.IntRange(0, 2).Draw(m.T, what) == 2 }

func (m *model) nameRef() key.Ref {
	return key.Ref{Scope: m.scope(), Purpose: rapid.SampledFrom(modelPurposes[1:]).Draw(m.T, "name")}
}

// after is a key of a name of whose numbers something may be known, mostly with the next one.
func (m *model) after(ref key.Ref) store.Key {
	n, root, _ := m.name(ref)
	n.Generator = m.generator()
	if n.Last > 0 && m.oftener("a number that was used") {
		n.Last--
	}
	return m.env.m.After(&root, n)
}

func (m *model) putName() {
	ref := m.nameRef()
	n, _, k := m.name(ref)
	from := n.Seq
	n = m.env.m.NextName(n)
	n.Generator, n.Removed = m.generator(), rapid.Bool().Draw(m.T, "removed")
	if n.Removed && k == nil && n.Last < 9 {
		n.Last++
	}
	inst := m.env.m.Inst()
	switch {
	case m.rarely("stale"):
		from++
		n.Seq++
	case m.rarely("another installation"):
		inst[0] ^= 1
	case from > 0 && !n.Removed && m.rarely("the same sequence number"):
		n.Seq = from
	case n.Last > 0 && !n.Removed && m.oftener("a lower number"):
		n.Last--
	}
	m.same("PutName of "+ref.String(), 0, m.env.s.PutName(m.ctx(), inst, from, n),
		0, m.spec.PutName(m.ctx(), inst, from, n))
	m.compareScope(ref.Scope)
}

func (m *model) removeKey() {
	ref := m.nameRef()
	n, root, there := m.name(ref)
	k := m.env.m.DataKey(&root, ref.Purpose, key.Raw)
	if there != nil {
		k = *there
	}
	from, keyFrom, inst := n.Seq, k.Seq, m.env.m.Inst()
	n = m.env.m.Removed(&k, n)
	switch {
	case m.rarely("stale key"):
		keyFrom--
	case m.rarely("stale name"):
		from++
		n.Seq++
	case m.rarely("another installation"):
		inst[0] ^= 1
	case m.rarely("a number more"):
		n.Last++
	}
	m.same("RemoveKey of "+ref.String(), 0, m.env.s.RemoveKey(m.ctx(), inst, k.ID, keyFrom, from, n),
		0, m.spec.RemoveKey(m.ctx(), inst, k.ID, keyFrom, from, n))
	for _, v := range k.Versions {
		got, err := m.env.s.WasDestroyed(m.ctx(), v.ID)
		want, specErr := m.spec.WasDestroyed(m.ctx(), v.ID)
		if m.same("WasDestroyed", 0, err, 0, specErr); got != want {
			m.Fatalf("WasDestroyed after RemoveKey of %v: %v; the specification: %v", ref, got, want)
		}
	}
	m.compareScope(ref.Scope)
}

// compareNames compares what is known of the names of a scope and, outside a transaction, how they are listed.
func (m *model) compareNames(scope key.Scope) {
	m.Helper()
	for _, p := range modelPurposes[1:] {
		_, got, err := m.inReal.Name(m.ctx(), key.Ref{Scope: scope, Purpose: p})
		_, want, specErr := m.inSpec.Name(m.ctx(), key.Ref{Scope: scope, Purpose: p})
		if m.same("Name", 0, err, 0, specErr); want.Seq == 0 {
			want, got = store.Name{}, store.Name{Seq: got.Seq}
		}
		if d := diff(want, got); d != "" {
			m.Fatalf("Name of %q (-specification +store):\n%s", p, d)
		}
	}
	if m.tx {
		return
	}
	for after, limit := range map[key.Purpose]int{"": 1, "one": 10} {
		got, err := m.env.s.Named(m.ctx(), scope, after, limit)
		want, specErr := m.spec.Named(m.ctx(), scope, after, limit)
		m.same("Named", 0, err, 0, specErr)
		if d := diff(want, got); d != "" {
			m.Fatalf("Named after %q (-specification +store):\n%s", after, d)
		}
	}
}

// rekeyNames puts all names under the installation key with the given kid.
func (m *model) rekeyNames(kid []byte) {
	for {
		list, err := m.spec.NamesNotUnder(m.ctx(), [16]byte(kid), 50)
		if err != nil {
			m.Fatalf("NamesNotUnder: %v", err)
		}
		got, err := m.env.s.NamesNotUnder(m.ctx(), [16]byte(kid), 50)
		if err != nil || len(got) != len(list) {
			m.Fatalf("NamesNotUnder: %d, %v; the specification: %d", len(got), err, len(list))
		}
		if len(list) == 0 {
			return
		}
		for _, n := range list {
			next := m.env.m.NextName(n)
			next.IKKID = kid
			m.same("PutName under another installation key", 0, m.env.s.PutName(m.ctx(), m.env.m.Inst(), n.Seq, next),
				0, m.spec.PutName(m.ctx(), m.env.m.Inst(), n.Seq, next))
		}
	}
}
