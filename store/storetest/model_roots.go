package storetest

import (
	"errors"
	"fmt"

	"pgregory.net/rapid"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Roots and installation keys are the whole database's, and so one history of them goes through all sequences of calls.

func (m *model) changeRoots() {
	in := m.installation()
	c := m.env.m.NextRoots(&in)
	changes := []string{"manifest", "add", "activate", "remove", "add key", "use key", "drop key"}
	change := rapid.SampledFrom(changes).Draw(m.T, "change")
	switch slot := rapid.SampledFrom(in.Slots).Draw(m.T, "slot"); change {
	case "add":
		if len(in.Slots) > 12 {
			return
		}
		state := rapid.SampledFrom([]key.State{key.Active, key.Retired}).Draw(m.T, "state")
		c.Add = []store.Slot{m.env.m.Slot(slot.IKKID, state)}
	case "activate":
		c.States = m.activeOf(in, slot.IKKID, key.Retired)
		c.States = append(c.States, store.SlotChange{ID: slot.ID, From: slot.State, To: key.Active})
		if string(slot.IKKID) == string(in.IKKID) {
			c.ActiveSlot = slot.ID
		}
	case "remove":
		// What the last slot of a key holds could never be opened again, which is for the caller to see to.
		if live(in, slot.IKKID) == 1 && string(slot.IKKID) != string(in.IKKID) {
			return
		}
		c.States = []store.SlotChange{{ID: slot.ID, From: slot.State, To: key.Destroyed}}
	case "add key":
		c = m.env.m.AddKey(&in)
	case "use key":
		c.IKKID = rapid.SampledFrom(in.Keys).Draw(m.T, "key").KID
		for _, s := range m.activeOf(in, c.IKKID, key.Retired) {
			c.ActiveSlot = s.ID
		}
	case "drop key":
		c = m.env.m.DropKey(&in, rapid.SampledFrom(in.Keys).Draw(m.T, "key").KID)
	}
	if m.rarely("stale") {
		c.From--
	}
	c.Inst = m.inst()
	m.sameRoots("ChangeRoots, "+change, c)
}

// live is how many slots of an installation key are not removed.
func live(in store.Installation, kid []byte) (n int) {
	for _, s := range in.Slots {
		if s.State != key.Destroyed && string(s.IKKID) == string(kid) {
			n++
		}
	}
	return n
}

// activeOf are the steps that the active slot of an installation key would take to another state.
func (m *model) activeOf(in store.Installation, kid []byte, to key.State) (list []store.SlotChange) {
	for _, s := range in.Slots {
		if s.State == key.Active && string(s.IKKID) == string(kid) {
			list = append(list, store.SlotChange{ID: s.ID, From: key.Active, To: to})
		}
	}
	return list
}

// installation reads it from the specification. What is made from then on is under its manifest's key, but rarely.
func (m *model) installation() store.Installation {
	in, err := m.spec.Installation(m.ctx())
	if err != nil {
		m.Fatalf("Installation: %v", err)
	}
	m.env.m.Use(in.IKKID)
	if m.rarely("another installation key") {
		m.env.m.Use(rapid.SampledFrom(in.Keys).Draw(m.T, "key").KID)
	}
	if m.noIK = m.rarely("no installation key"); m.noIK {
		m.env.m.Use(m.env.m.Bytes(16))
	}
	return in
}

func (m *model) sameRoots(what string, c store.RootsChange) {
	m.Helper()
	m.same(what, 0, m.env.s.ChangeRoots(m.ctx(), c), 0, m.spec.ChangeRoots(m.ctx(), c))
	got, err := m.env.s.Installation(m.ctx())
	want, specErr := m.spec.Installation(m.ctx())
	m.same("Installation", 0, err, 0, specErr)
	if d := diff(want, got); d != "" {
		m.Fatalf("Installation after %s (-specification +store):\n%s", what, d)
	}
	for i, s := range got.Slots {
		for what, times := range map[string][2]int64{
			"activated": {s.Activated, want.Slots[i].Activated}, "retired": {s.Retired, want.Slots[i].Retired},
			"removed": {s.Removed, want.Slots[i].Removed},
		} {
			if (times[0] == 0) != (times[1] == 0) {
				m.Fatalf("slot %d is %v and was %s at %d; the specification: %d", i, s.State, what, times[0], times[1])
			}
		}
	}
}

func (m *model) rekey() {
	in := m.installation()
	kid := rapid.SampledFrom(in.Keys).Draw(m.T, "under").KID
	var batch []store.Rekey
	for _, p := range modelPurposes {
		k, _ := m.key(key.Ref{Scope: m.scope(), Purpose: p})
		r := m.env.m.Rekey(&k, kid)
		switch {
		case m.rarely("stale"):
			r.From--
		case m.rarely("nobody's installation key"):
			r.IKKID = m.env.m.Bytes(16)
		case len(r.Versions) > 0 && m.rarely("without a version"):
			r.Versions = r.Versions[1:]
		}
		batch = append(batch, r)
	}
	inst := m.inst()
	n, err := m.env.s.Rekey(m.ctx(), inst, batch, nil)
	specN, specErr := m.spec.Rekey(m.ctx(), inst, batch, nil)
	m.same("Rekey", n, err, specN, specErr)
	for _, scope := range m.scopes {
		m.compareScope(scope)
	}
}

// rekeyAll lists what is not under the manifest's key, and rarely puts it there and drops the other one.
func (m *model) rekeyAll() {
	m.notUnder()
	in := m.installation()
	if len(in.Keys) < 2 || !m.rarely("rekey all") {
		return
	}
	var after key.ID
	for {
		scopes, next, err := m.spec.NotUnder(m.ctx(), [16]byte(in.IKKID), after, 100)
		if err != nil {
			m.Fatalf("NotUnder: %v", err)
		}
		var batch []store.Rekey
		for _, scope := range scopes {
			f, err := m.spec.Scope(m.ctx(), scope)
			if err != nil {
				m.Fatalf("Scope: %v", err)
			}
			batch = append(batch, m.env.rekeys(&f, in.IKKID)...)
		}
		n, err := m.env.s.Rekey(m.ctx(), m.env.m.Inst(), batch, nil)
		specN, specErr := m.spec.Rekey(m.ctx(), m.env.m.Inst(), batch, nil)
		if m.same("Rekey of all", n, err, specN, specErr); err != nil || n != len(batch) {
			m.Fatalf("Rekey of all: %d, %v; want %d", n, err, len(batch))
		}
		if after = next; next == "" {
			break
		}
	}
	m.notUnder()
	m.rekeyNames(in.IKKID)
	for _, k := range in.Keys {
		if string(k.KID) != string(in.IKKID) {
			m.sameRoots("ChangeRoots that drops what nothing names", m.env.m.DropKey(&in, k.KID))
		}
	}
	if after := m.installation(); len(after.Keys) != 1 {
		m.Fatalf("%d installation keys are left, want 1", len(after.Keys))
	}
}

func (m *model) notUnder() {
	in := m.installation()
	kid := [16]byte(rapid.SampledFrom(in.Keys).Draw(m.T, "under").KID)
	got, err := listNotUnder(m, m.env.s, kid)
	want, specErr := listNotUnder(m, m.spec, kid)
	m.same("NotUnder", 0, err, 0, specErr)
	if d := diff(want, got); d != "" {
		m.Fatalf("NotUnder (-specification +store):\n%s", d)
	}
}

func listNotUnder(m *model, s store.Store, kid [16]byte) (list []key.Scope, err error) {
	var after key.ID
	for range 10_000 {
		scopes, next, err := s.NotUnder(m.ctx(), kid, after, 50)
		if err != nil {
			return nil, fmt.Errorf("after %q: %w", after, err)
		}
		list = append(list, scopes...)
		if after = next; next == "" {
			return list, nil
		}
	}
	return nil, errors.New("the list has no end")
}
