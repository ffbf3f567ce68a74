package keyhold_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// estate is an installation of three scopes with three purposes and three versions of every key, and a message under
// each data key version.
type estate struct {
	store    *memstore.Store
	root     wrapping.Wrapper
	messages map[key.Ref][3][]byte
	warm     *keyhold.Manager // one that has opened everything before it was changed, and reads it anew
	hot      *keyhold.Manager // one that uses what it read then
}

var (
	estateScopes   = []key.Scope{"one", "two", "three"}
	estatePurposes = []key.Purpose{"a", "b", "c"}
)

func newEstate(t *testing.T) *estate {
	t.Helper()
	e := &estate{store: memstore.New(), root: newRoot(t), messages: map[key.Ref][3][]byte{}}
	m := e.open(t, true)
	for _, scope := range estateScopes {
		must(t, m.CreateScope(t.Context(), scope))
		for i := range 3 {
			for _, purpose := range estatePurposes {
				r := key.Ref{Scope: scope, Purpose: purpose}
				cts := e.messages[r]
				cts[i] = sealed(t, m, r, "x", keyhold.AAD{})
				e.messages[r] = cts
			}
			// The root key first, so that its version i wraps version i of each data key.
			for _, purpose := range append([]key.Purpose{""}, estatePurposes...) {
				if i < 2 {
					_, err := m.Rotate(t.Context(), key.Ref{Scope: scope, Purpose: purpose})
					must(t, err)
				}
			}
		}
	}
	checked(t, m)
	e.warm, e.hot = m, e.open(t, false)
	for r, cts := range e.messages {
		for _, ct := range cts {
			opens(t, e.warm, r, ct, keyhold.AAD{}, "x")
			opens(t, e.hot, r, ct, keyhold.AAD{}, "x")
		}
	}
	return e
}

// open returns a manager that has seen nothing yet.
func (e *estate) open(t *testing.T, strict bool) *keyhold.Manager {
	t.Helper()
	m, err := keyhold.New(t.Context(), e.store, keyhold.Config{
		Root: e.root, Purposes: estatePurposes, Initialize: true, Strict: strict,
	})
	must(t, err)
	return m
}

// refuses asserts that after an edit ref's key seals nothing, opens nothing that was sealed with the given versions,
// and that Check says so; then it undoes the edit. Who goes on with what was read before opens what was sealed, or
// refuses it too.
func (e *estate) refuses(t *testing.T, name string, r key.Ref, versions []int, seals bool, edit func(*memstore.Data)) {
	t.Helper()
	var before memstore.Data
	e.store.Edit(func(d *memstore.Data) {
		before = memstore.Data{Schema: d.Schema, Installation: d.Installation, Keys: slices.Clone(d.Keys), Graves: d.Graves}
		for i := range before.Keys {
			before.Keys[i].Versions = slices.Clone(d.Keys[i].Versions)
			for j := range before.Keys[i].Versions {
				v := &before.Keys[i].Versions[j]
				v.Blob, v.Commit = slices.Clone(v.Blob), slices.Clone(v.Commit)
			}
		}
	})
	defer e.store.Edit(func(d *memstore.Data) { *d = before })
	e.store.Edit(edit)

	fresh := e.open(t, false)
	defer fresh.Close()
	refused := func(what string, err error) {
		t.Helper()
		if _, ok := errors.AsType[*keyhold.IntegrityError](err); !ok {
			t.Errorf("%s: %s: got %v, want an IntegrityError", name, what, err)
		}
	}
	for _, m := range []*keyhold.Manager{fresh, e.warm} {
		if !seals {
			_, err := m.Seal(t.Context(), r, nil, keyhold.AAD{})
			refused("seal", err)
		}
		for _, i := range versions {
			_, err := m.Open(t.Context(), r, e.messages[r][i], keyhold.AAD{})
			refused("open", err)
		}
	}
	for _, i := range versions {
		if pt, err := e.hot.Open(t.Context(), r, e.messages[r][i], keyhold.AAD{}); err != nil {
			refused("open with what was read", err)
		} else if string(pt) != "x" {
			t.Errorf("%s: opened %q", name, pt)
		}
	}
	findings, err := fresh.Check(t.Context())
	if err != nil || len(findings) == 0 {
		t.Errorf("%s: check found %d, %v", name, len(findings), err)
	}
}

var all = []int{0, 1, 2}

// What the rows of a key say can be changed in no way that is accepted.
func TestChangedRowsAreRefused(t *testing.T) {
	e := newEstate(t)
	r := key.Ref{Scope: "one", Purpose: "a"}
	edits := map[string]func(k *store.Key){
		"older head":                func(k *store.Key) { k.Head = 2; k.Versions[1].State, k.Versions[2].State = key.Active, key.Retired },
		"head column alone":         func(k *store.Key) { k.Head = 2 },
		"no such head":              func(k *store.Key) { k.Head = 9 },
		"older sequence number":     func(k *store.Key) { k.Seq-- },
		"newer sequence number":     func(k *store.Key) { k.Seq++ },
		"period":                    func(k *store.Key) { k.RotateEvery *= 10 },
		"never to be rotated":       func(k *store.Key) { k.RotateEvery, k.RotateAt = 0, 0 },
		"rotation put off":          func(k *store.Key) { k.RotateAt++ },
		"rotation put off for ever": func(k *store.Key) { k.RotateAt = 0 },
		"rotation put off very far": func(k *store.Key) { k.RotateAt = 1<<63 - 1 },
		"message limit":             func(k *store.Key) { k.MaxMessages = 1 },
		"MAC":                       func(k *store.Key) { k.MAC = append([]byte{k.MAC[0] ^ 1}, k.MAC[1:]...) },
		"MAC cut off":               func(k *store.Key) { k.MAC = k.MAC[:31] },
		"no MAC":                    func(k *store.Key) { k.MAC = nil },
		"another installation key":  func(k *store.Key) { k.IKKID = make([]byte, 16) },
		"key id":                    func(k *store.Key) { k.ID = "kdk_00000000000000000000000000" },
		"newest version hidden":     func(k *store.Key) { k.Versions = k.Versions[:2]; k.Head = 2; k.Versions[1].State = key.Active },
		"oldest version hidden":     func(k *store.Key) { k.Versions = k.Versions[1:] },
		"middle version hidden":     func(k *store.Key) { k.Versions = append(k.Versions[:1:1], k.Versions[2]) },
		"all versions hidden":       func(k *store.Key) { k.Versions = nil },
		"retired made disabled":     func(k *store.Key) { k.Versions[0].State = key.Disabled },
		"retired made active":       func(k *store.Key) { k.Versions[0].State = key.Active },
		"head made retired":         func(k *store.Key) { k.Versions[2].State = key.Retired },
		"no such state":             func(k *store.Key) { k.Versions[0].State = 9 },
		"another algorithm":         func(k *store.Key) { k.Versions[0].Alg = key.Raw },
		"made an import":            func(k *store.Key) { k.Versions[0].Alg = key.Imported },
		"ids swapped":               func(k *store.Key) { k.Versions[0].ID, k.Versions[1].ID = k.Versions[1].ID, k.Versions[0].ID },
		"commitments swapped": func(k *store.Key) {
			k.Versions[0].Commit, k.Versions[1].Commit = k.Versions[1].Commit, k.Versions[0].Commit
		},
		"commitment cut off":        func(k *store.Key) { k.Versions[0].Commit = k.Versions[0].Commit[:16] },
		"numbers swapped":           func(k *store.Key) { k.Versions[0], k.Versions[1] = k.Versions[1], k.Versions[0] },
		"version renumbered":        func(k *store.Key) { k.Versions[2].Number = 4 },
		"a tombstone for a version": func(k *store.Key) { bury(k, 0) },
		"a tombstone more": func(k *store.Key) {
			k.Tombstones = append(k.Tombstones, store.Tombstone{Number: 4, Commit: make([]byte, 32)})
		},
		"a tombstone of no number": func(k *store.Key) { k.Tombstones = append(k.Tombstones, store.Tombstone{Commit: make([]byte, 32)}) },
		"a version more":           func(k *store.Key) { v := k.Versions[0]; v.Number = 4; k.Versions = append(k.Versions, v) },
		"a version twice":          func(k *store.Key) { k.Versions = append(k.Versions, k.Versions[2]) },
	}
	for name, edit := range edits {
		e.refuses(t, name, r, all, false, func(d *memstore.Data) { edit(d.Key(r)) })
		e.refuses(t, name+" of the root key", r, all, false, func(d *memstore.Data) { edit(d.Key(key.Ref{Scope: r.Scope})) })
	}

	other, theirs := key.Ref{Scope: "one", Purpose: "b"}, key.Ref{Scope: "two", Purpose: "a"}
	root, theirRoot := key.Ref{Scope: "one"}, key.Ref{Scope: "two"}
	for name, edit := range map[string]func(d *memstore.Data){
		"versions of another key": func(d *memstore.Data) { d.Key(r).Versions = d.Key(other).Versions },
		"manifest of another key": func(d *memstore.Data) { d.Key(r).Manifest = d.Key(other).Manifest },
		"row of another purpose": func(d *memstore.Data) {
			d.Key(r).Purpose, d.Key(other).Purpose = "swapped", "a"
		},
		"row of another scope": func(d *memstore.Data) {
			a, b := d.Key(r), d.Key(theirs)
			a.RootKeyID, b.RootKeyID = b.RootKeyID, a.RootKeyID
		},
		"root key's owner": func(d *memstore.Data) {
			a, b := d.Key(root), d.Key(theirRoot)
			a.Scope, b.Scope = b.Scope, a.Scope
		},
		"root key's state":    func(d *memstore.Data) { d.Key(root).Versions[0].State = key.Disabled },
		"root key's manifest": func(d *memstore.Data) { d.Key(root).Manifest = d.Key(theirRoot).Manifest },
		"all rows of another tenant": func(d *memstore.Data) {
			a, b := d.Key(r), d.Key(theirs)
			a.Manifest, a.Versions, a.Tombstones = b.Manifest, b.Versions, b.Tombstones
		},
	} {
		e.refuses(t, name, r, all, false, edit)
	}
}

// bury makes the version at index i a tombstone.
func bury(k *store.Key, i int) {
	v := k.Versions[i]
	k.Versions = slices.Delete(slices.Clone(k.Versions), i, i+1)
	k.Tombstones = append(k.Tombstones, store.Tombstone{ID: v.ID, Number: v.Number, Alg: v.Alg, Commit: v.Commit})
}

// A wrapped key opens in its own place only: each is moved to the place of each other, with everything that may go with
// it.
func TestWrappedKeysOpenNowhereElse(t *testing.T) {
	e := newEstate(t)
	cases := 0
	for _, into := range estateRefs() {
		for i := range 3 {
			for _, from := range estateRefs() {
				for j := range 3 {
					if into == from && i == j {
						continue
					}
					name := fmt.Sprintf("version %d of %v into version %d of %v", j+1, from, i+1, into)
					r := into
					if into.IsRoot() {
						r.Purpose = "a"
					}
					e.refuses(t, name, r, []int{i}, i != 2, func(d *memstore.Data) {
						a, b := &d.Key(into).Versions[i], d.Key(from).Versions[j]
						a.Blob = b.Blob
						if into.IsRoot() == from.IsRoot() {
							a.Created = b.Created
						}
					})
					cases++
				}
			}
		}
	}
	if want := 36 * 35; cases != want {
		t.Errorf("%d cases, want %d", cases, want)
	}
}

func estateRefs() []key.Ref {
	var refs []key.Ref
	for _, scope := range estateScopes {
		refs = append(refs, key.Ref{Scope: scope})
		for _, purpose := range estatePurposes {
			refs = append(refs, key.Ref{Scope: scope, Purpose: purpose})
		}
	}
	return refs
}

// Every bit of a stored wrapped key counts, and so do its time, its parent, and its length.
func TestChangedWrappedKeysAreRefused(t *testing.T) {
	e := newEstate(t)
	r := key.Ref{Scope: "one", Purpose: "a"}
	for bit := range 73 * 8 {
		e.refuses(t, fmt.Sprint("bit ", bit), r, []int{2}, false, func(d *memstore.Data) { d.Key(r).Versions[2].Blob[bit/8] ^= 1 << (bit % 8) })
	}
	older, foreign := e.rootVersion(t, "one", 0), e.rootVersion(t, "two", 2)
	for name, edit := range map[string]func(v *store.Version){
		"earlier":         func(v *store.Version) { v.Created-- },
		"empty":           func(v *store.Version) { v.Blob = nil },
		"two bytes":       func(v *store.Version) { v.Blob = v.Blob[:2] },
		"cut off":         func(v *store.Version) { v.Blob = v.Blob[:72] },
		"longer":          func(v *store.Version) { v.Blob = append(v.Blob, 0) },
		"no parent":       func(v *store.Version) { v.Parent = "" },
		"no such parent":  func(v *store.Version) { v.Parent = "krkv_00000000000000000000000000" },
		"another version": func(v *store.Version) { v.Parent = older },
		"another tenant":  func(v *store.Version) { v.Parent = foreign },
	} {
		e.refuses(t, name, r, []int{2}, false, func(d *memstore.Data) { edit(&d.Key(r).Versions[2]) })
	}
}

func (e *estate) rootVersion(t *testing.T, scope key.Scope, i int) key.ID {
	t.Helper()
	fam, err := e.store.Scope(t.Context(), scope)
	must(t, err)
	return fam.Root.Versions[i].ID
}
