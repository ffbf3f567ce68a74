package storetest

import (
	"context"
	"fmt"

	"pgregory.net/rapid"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

var modelTests = []test{
	{"any sequence of calls does what the specification does", initialized(func(e *env) {
		spec := memstore.New()
		if err := spec.Migrate(e.ctx); err != nil {
			e.Fatalf("Migrate: %v", err)
		}
		if err := spec.Initialize(e.ctx, e.installation()); err != nil {
			e.Fatalf("Initialize: %v", err)
		}
		// One database for all sequences, as opening one is slow in some: each sequence has scopes of its own.
		sequence := 0
		rapid.Check(e.T, func(t *rapid.T) {
			m := model{T: t, env: e, spec: spec, inSpec: spec, inReal: e.s}
			for range 3 {
				m.scopes = append(m.scopes, e.scope(sequence))
				sequence++
			}
			m.run()
		})
		Check(e.T, spec)
	})},
}

// model does the same to the store and to the specification, and compares what comes of it.
type model struct {
	*rapid.T

	env    *env
	spec   *memstore.Store
	scopes []key.Scope
	ids    []key.ID // of all versions that were ever made
	tx     bool     // the calls are inside a transaction
	noIK   bool     // what is made is under an installation key that is not there

	inReal, inSpec store.Queries
}

var modelPurposes = []key.Purpose{"", "one", "two"}

func (m *model) run() {
	actions := map[string]func(*rapid.T){}
	add := func(name string, action func()) {
		actions[name] = func(t *rapid.T) {
			m.T = t
			action()
		}
	}
	calls := []func(){m.create, m.create, m.update, m.update, m.update, m.rewrap, m.take, m.readVersion}
	add("create", m.create)
	add("update", m.update)
	add("update again", m.update)
	add("rewrap", m.rewrap)
	add("take", m.take)
	add("name", m.putName)
	add("remove", m.removeKey)
	add("roots", m.changeRoots)
	add("rekey", m.rekey)
	add("rekey all", m.rekeyAll)
	add("read", m.readVersion)
	if m.env.h.Begin != nil {
		add("transaction", func() { m.transaction(calls) })
	}
	if m.env.h.DeleteScope != nil {
		add("delete", m.deleteScope)
	}
	if m.env.h.RenameScope != nil {
		add("rename", m.renameScope)
	}
	m.installation()
	m.Repeat(actions)
	for _, scope := range m.scopes {
		m.compareScope(scope)
	}
}

func (m *model) ctx() context.Context { return m.env.ctx }

func (m *model) scope() key.Scope { return rapid.SampledFrom(m.scopes).Draw(m.T, "scope") }

func (m *model) ref() key.Ref {
	return key.Ref{Scope: m.scope(), Purpose: rapid.SampledFrom(modelPurposes).Draw(m.T, "purpose")}
}

// rarely is true once in about 12 draws.
func (m *model) rarely(what string) bool { return rapid.IntRange(0, 11).Draw(m.T, what) == 11 }

func (m *model) inst() [16]byte {
	if m.rarely("another installation") {
		return NewMaker(99).Inst()
	}
	return m.env.m.Inst()
}

// same compares the outcomes of one call. Of a call with several faults it is open which the error is about.
func (m *model) same(call string, n int, err error, specN int, specErr error) {
	m.Helper()
	if m.noIK && err != nil && specErr != nil {
		return
	}
	if n != specN || class(err) != class(specErr) {
		m.Fatalf("%s: %d, %v; the specification: %d, %v", call, n, err, specN, specErr)
	}
}

func (m *model) compareScope(scope key.Scope) {
	m.Helper()
	got, err := m.inReal.Scope(m.ctx(), scope)
	want, specErr := m.inSpec.Scope(m.ctx(), scope)
	m.same("Scope", 0, err, 0, specErr)
	if d := diff(want, got); d != "" {
		m.Fatalf("Scope (-specification +store):\n%s", d)
	}
	m.compareNames(scope)
}

// key reads a key from the specification. Where there is none it makes up one that was never stored.
func (m *model) key(ref key.Ref) (k, root store.Key) {
	f, err := m.inSpec.Key(m.ctx(), ref)
	if err != nil {
		f.Root = m.env.m.RootKey(ref.Scope)
	}
	switch {
	case ref.IsRoot():
		return f.Root, f.Root
	case len(f.Data) == 1:
		return f.Data[0], f.Root
	default:
		return m.env.m.DataKey(&f.Root, ref.Purpose, key.Message), f.Root
	}
}

func (m *model) create() {
	ref := m.ref()
	var keys []store.Key
	_, root := m.key(key.Ref{Scope: ref.Scope})
	alg := rapid.SampledFrom([]key.Alg{key.Message, key.Raw, key.BlindIndex}).Draw(m.T, "alg")
	switch {
	case ref.IsRoot():
		keys = m.env.m.Scope(ref.Scope, modelPurposes[1:rapid.IntRange(1, 3).Draw(m.T, "purposes")]...)
	case alg == key.Raw:
		keys = []store.Key{m.after(ref)}
	default:
		keys = []store.Key{m.env.m.DataKey(&root, ref.Purpose, alg)}
	}
	spoiled := m.rarely("spoil")
	if spoiled {
		keys[len(keys)-1].Versions[0].Blob = nil
	}
	for _, k := range keys {
		m.ids = append(m.ids, k.Versions[0].ID)
	}
	inst := m.inst()
	n, err := m.inReal.Create(m.ctx(), inst, keys)
	specN, specErr := m.inSpec.Create(m.ctx(), inst, keys)
	if !spoiled || err == nil || specErr == nil {
		m.same("Create of "+ref.String(), n, err, specN, specErr)
	}
	m.compareScope(ref.Scope)
}

func (m *model) update() {
	ref := m.ref()
	k, root := m.key(ref)
	v := rapid.SampledFrom(k.Versions).Draw(m.T, "version")
	var u store.Update
	change := rapid.SampledFrom([]string{"add", "activate", "step", "destroy", "add and step", "manifest"}).Draw(m.T, "change")
	switch change {
	case "add":
		u = m.env.m.Add(&k, &root)
	case "activate":
		u = m.env.m.Activate(&k, newest(&k))
	case "step":
		u = m.env.m.Step(&k, v.Number, m.state())
	case "destroy":
		// Whether something is wrapped under a root key's may be found out only when the transaction is committed.
		if m.tx && (ref.IsRoot() || m.env.h.NoDestroyInTx) {
			return
		}
		u = m.env.m.Destroy(&k, v.Number)
	case "add and step":
		u = m.env.m.Add(&k, &root)
		u.States = m.env.m.Step(&k, v.Number, m.state()).States
	default:
		u = m.env.m.Next(&k)
		if !ref.IsRoot() {
			u.Manifest.Generator = m.generator()
		}
	}
	if u.Add != nil {
		m.ids = append(m.ids, u.Add.ID)
	}
	if m.rarely("stale") {
		u.From--
	}
	u.Inst = m.inst()
	m.same(fmt.Sprintf("Update (%s) of version %d of %v", change, v.Number, ref),
		0, m.inReal.Update(m.ctx(), u), 0, m.inSpec.Update(m.ctx(), u))
	m.compareScope(ref.Scope)
}

func (m *model) state() key.State {
	return rapid.SampledFrom([]key.State{key.Pending, key.Active, key.Retired, key.Disabled}).Draw(m.T, "state")
}

func (m *model) rewrap() {
	ref := m.ref()
	k, _ := m.key(ref)
	_, root := m.key(key.Ref{Scope: m.scopeOr(ref.Scope)})
	var rows []store.Rewrap
	for i := range k.Versions {
		var parent key.ID
		if !ref.IsRoot() {
			parent = rapid.SampledFrom(root.Versions).Draw(m.T, "parent").ID
		}
		r := m.env.m.Rewrap(&k.Versions[i], parent)
		if m.rarely("stale") {
			r.Old = flipped(r.Old)
		}
		rows = append(rows, r)
	}
	inst := m.inst()
	n, err := m.inReal.Rewrap(m.ctx(), inst, rows, nil)
	specN, specErr := m.inSpec.Rewrap(m.ctx(), inst, rows, nil)
	m.same("Rewrap of "+ref.String(), n, err, specN, specErr)
	m.compareScope(ref.Scope)
}

// scopeOr is mostly the scope itself, and rarely any.
func (m *model) scopeOr(scope key.Scope) key.Scope {
	if m.rarely("another scope") {
		return m.scope()
	}
	return scope
}

func (m *model) take() {
	if len(m.ids) == 0 {
		return
	}
	id := rapid.SampledFrom(m.ids).Draw(m.T, "id")
	n, limit := rapid.Uint64Range(0, 9).Draw(m.T, "n"), rapid.Uint64Range(0, 20).Draw(m.T, "limit")
	got, err := m.inReal.Take(m.ctx(), id, n, limit)
	want, specErr := m.inSpec.Take(m.ctx(), id, n, limit)
	m.same(fmt.Sprintf("Take of %d of %d", n, limit), int(got), err, int(want), specErr)
}

func (m *model) readVersion() {
	if len(m.ids) == 0 {
		return
	}
	id := rapid.SampledFrom(m.ids).Draw(m.T, "id")
	got, err := m.inReal.KeyOfVersion(m.ctx(), id)
	want, specErr := m.inSpec.KeyOfVersion(m.ctx(), id)
	m.same("KeyOfVersion", 0, err, 0, specErr)
	if d := diff(want, got); d != "" {
		m.Fatalf("KeyOfVersion (-specification +store):\n%s", d)
	}
}

func (m *model) transaction(calls []func()) {
	tx, commit, rollback := m.env.h.Begin(m.env.T, m.env.s)
	specTx := m.spec.Begin()
	m.tx, m.inReal, m.inSpec = true, tx, m.spec.InTx(specTx)
	over := false
	defer func() {
		if !over {
			_, _ = rollback(), specTx.Rollback()
		}
		m.tx, m.inReal, m.inSpec = false, m.env.s, m.spec
	}()
	for range rapid.IntRange(1, 6).Draw(m.T, "calls") {
		rapid.SampledFrom(calls).Draw(m.T, "call")()
	}
	specEnd, end := specTx.Commit, commit
	if rapid.Bool().Draw(m.T, "roll back") {
		specEnd, end = specTx.Rollback, rollback
	}
	over = true
	m.same("end of the transaction", 0, end(), 0, specEnd())
	m.inReal, m.inSpec = m.env.s, m.spec
	for _, scope := range m.scopes {
		m.compareScope(scope)
	}
}

func (m *model) deleteScope() {
	scope := m.scope()
	m.env.h.DeleteScope(m.env.T, m.env.s, scope)
	if err := m.spec.DeleteScope(m.ctx(), scope); err != nil {
		m.Fatalf("DeleteScope: %v", err)
	}
	m.compareScope(scope)
}

func (m *model) renameScope() {
	old, renamed := m.scope(), m.scope()
	if _, err := m.spec.Key(m.ctx(), key.Ref{Scope: renamed}); err == nil {
		return // the name is taken
	}
	m.env.h.RenameScope(m.env.T, m.env.s, old, renamed)
	if err := m.spec.RenameScope(m.ctx(), old, renamed); err != nil {
		m.Fatalf("RenameScope: %v", err)
	}
	m.compareScope(old)
	m.compareScope(renamed)
}
