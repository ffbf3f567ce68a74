package keyhold

import (
	"bytes"
	"context"
	"crypto/fips140"
	"errors"
	"reflect"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/v2/aead"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// These tests reach for what no call can bring about yet, or ever should: states that only later operations set, rows
// that fit their MAC and still break a rule, and a store that answers with something else than it was asked for.

var inner = key.Ref{Scope: "org_42", Purpose: "client-secrets"}

func innerManager(t *testing.T, s store.Store) *Manager {
	t.Helper()
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	m, err := New(t.Context(), s, Config{Root: root, Purposes: []Purpose{inner.Purpose}, Initialize: true})
	check(t, err)
	check(t, m.CreateScope(t.Context(), inner.Scope))
	return m
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// step changes the state of a version with everything that belongs to it, or makes it a tombstone.
func step(t *testing.T, m *Manager, ref key.Ref, n key.Version, to key.State) {
	t.Helper()
	r := m.committed()
	_, k, err := r.forChange(t.Context(), ref)
	check(t, err)
	changed := *k
	changed.Versions = nil
	var u store.Update
	for _, v := range k.Versions {
		switch {
		case v.Number != n:
		case to == key.Destroyed:
			changed.Tombstones = append(changed.Tombstones, store.Tombstone{ID: v.ID, Number: n, Alg: v.Alg, Commit: v.Commit})
			u.Destroy = []key.Version{n}
			continue
		default:
			u.States = []store.StateChange{{Number: n, From: v.State, To: to}}
			v.State = to
		}
		changed.Versions = append(changed.Versions, v)
	}
	check(t, r.update(t.Context(), k, &changed, u))
}

func TestDisabledAndDestroyedVersionsDoNotOpen(t *testing.T) {
	m := innerManager(t, memstore.New())
	ctx := t.Context()
	ct, err := m.Seal(ctx, inner, []byte("x"), AAD{})
	check(t, err)
	_, err = m.Rotate(ctx, inner)
	check(t, err)

	refused := func(what string) {
		t.Helper()
		if _, err := m.Open(ctx, inner, ct, AAD{}); !errors.Is(err, ErrDisabled) {
			t.Errorf("%s: open: %v, want ErrDisabled", what, err)
		}
		if _, _, err := m.OpenAny(ctx, ct, AAD{}); !errors.Is(err, ErrDisabled) {
			t.Errorf("%s: open any: %v, want ErrDisabled", what, err)
		}
	}
	step(t, m, inner, 1, key.Disabled)
	refused("disabled")
	step(t, m, inner, 1, key.Retired)
	if pt, err := m.Open(ctx, inner, ct, AAD{}); err != nil || string(pt) != "x" {
		t.Errorf("enabled again: %q, %v", pt, err)
	}
	step(t, m, inner, 1, key.Disabled)
	step(t, m, inner, 1, key.Destroyed)
	refused("destroyed")

	keys, err := m.Keys(ctx, inner.Scope)
	check(t, err)
	if v := keys[1].Versions[0]; v.State != key.Destroyed || v.ID == "" || len(keys[1].Versions) != 2 {
		t.Errorf("listed as %+v", keys[1].Versions)
	}
	if n, err := m.Rotate(ctx, inner); err != nil || n != 3 {
		t.Errorf("rotated to %d, %v", n, err)
	}
	findings, err := m.Check(ctx)
	if err != nil || len(findings) > 0 {
		t.Errorf("check: %v, %v", findings, err)
	}
}

// A version whose root key version is disabled, which no store does, does not open, also where both are in the cache.
func TestDisabledParentKeepsItsKeysFromOpening(t *testing.T) {
	s := memstore.New()
	m := innerManager(t, s)
	ctx := t.Context()
	ct, err := m.Seal(ctx, inner, []byte("x"), AAD{})
	check(t, err)
	_, err = m.Rotate(ctx, key.Ref{Scope: inner.Scope})
	check(t, err)
	s.Edit(func(d *memstore.Data) {
		k := d.Key(key.Ref{Scope: inner.Scope})
		k.Versions[0].State = key.Disabled
		k.Seq++
		check(t, m.sign(k))
	})
	m.epochs.changed()
	if _, err := m.Open(ctx, inner, ct, AAD{}); !errors.Is(err, ErrDisabled) {
		t.Errorf("open: %v, want ErrDisabled", err)
	}
	if _, err := m.Rewrap(ctx, inner.Scope); !errors.Is(err, ErrDisabled) {
		t.Errorf("rewrap: %v, want ErrDisabled", err)
	}
}

// A newest number that was destroyed is not given out again.
func TestDestroyedNumberIsNotUsedAgain(t *testing.T) {
	m := innerManager(t, memstore.New())
	r := m.committed()
	fam, k, err := r.forChange(t.Context(), inner)
	check(t, err)
	next, err := m.nextKey(t.Context(), fam, k)
	check(t, err)
	check(t, r.addPending(t.Context(), fam, k, next))
	step(t, m, inner, 2, key.Destroyed)
	if n, err := m.Rotate(t.Context(), inner); err != nil || n != 3 {
		t.Errorf("rotated to %d, %v, want 3", n, err)
	}
}

// Rows whose MAC fits can still break a rule, if a program with a mistake wrote them.
func TestWellSignedRowsStillKeepTheRules(t *testing.T) {
	for name, edit := range map[string]func(k *store.Key){
		"due although never rotated": func(k *store.Key) { k.RotateEvery, k.RotateAt = 0, 1 },
		"rotation put off":           func(k *store.Key) { k.RotateAt = k.Versions[0].Created + int64(k.RotateEvery) + 1 },
		"never due":                  func(k *store.Key) { k.RotateAt = 0 },
		"endless period":             func(k *store.Key) { k.RotateEvery = 1<<64 - 1 },
		"head not active":            func(k *store.Key) { k.Versions[0].State = key.Retired },
		"no head":                    func(k *store.Key) { k.Head = 2 },
	} {
		s := memstore.New()
		m := innerManager(t, s)
		s.Edit(func(d *memstore.Data) {
			k := d.Key(inner)
			edit(k)
			check(t, m.sign(k))
		})
		_, err := m.Seal(t.Context(), inner, nil, AAD{})
		if _, ok := errors.AsType[*IntegrityError](err); !ok {
			t.Errorf("%s: got %v, want an IntegrityError", name, err)
		}
	}
	// Due is counted from the newest version, which need not be the head.
	s := memstore.New()
	m := innerManager(t, s)
	r := m.committed()
	fam, k, err := r.forChange(t.Context(), inner)
	check(t, err)
	next, err := m.nextKey(t.Context(), fam, k)
	check(t, err)
	check(t, r.addPending(t.Context(), fam, k, next))
	s.Edit(func(d *memstore.Data) {
		k := d.Key(inner)
		k.Versions[1].Created += 1 << 30
		k.RotateAt += 1 << 30
	})
	_, err = m.Seal(t.Context(), inner, nil, AAD{})
	if _, ok := errors.AsType[*IntegrityError](err); !ok {
		t.Errorf("newest version made later: seal: got %v, want an IntegrityError", err)
	}
	_, err = m.Keys(t.Context(), inner.Scope)
	if _, ok := errors.AsType[*IntegrityError](err); !ok {
		t.Errorf("newest version made later: list: got %v, want an IntegrityError", err)
	}

	s = memstore.New()
	m = innerManager(t, s)
	s.Edit(func(d *memstore.Data) {
		k := d.Key(inner)
		k.RotateEvery, k.RotateAt = 0, 0
		check(t, m.sign(k))
	})
	if _, err := m.Seal(t.Context(), inner, nil, AAD{}); err != nil {
		t.Errorf("never to be rotated: %v", err)
	}
	if keys, err := m.Keys(t.Context(), inner.Scope); err != nil || keys[1].Due || !keys[1].RotateAt.IsZero() {
		t.Errorf("never to be rotated: %+v, %v", keys, err)
	}
}

// lyingStore answers a question about one key with another.
type lyingStore struct {
	store.Store
	scope   func(key.Scope) key.Scope
	purpose func(key.Purpose) key.Purpose
}

func (s lyingStore) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	if ref.Purpose != "" && s.purpose != nil {
		ref.Purpose = s.purpose(ref.Purpose)
	}
	return s.Store.Key(ctx, key.Ref{Scope: s.scope(ref.Scope), Purpose: ref.Purpose})
}

func (s lyingStore) Scope(ctx context.Context, scope key.Scope) (store.Family, error) {
	return s.Store.Scope(ctx, s.scope(scope))
}

// A database that finds another scope's rows, for instance because it folds names, gets nobody another's key.
func TestAnotherKeyThanTheOneAskedForIsRefused(t *testing.T) {
	mem := memstore.New()
	m := innerManager(t, mem)
	ctx := t.Context()
	m.purposes = append(m.purposes, purposeOf{purpose: "sessions", alg: key.Message})
	check(t, m.CreateScope(ctx, inner.Scope))
	check(t, m.CreateScope(ctx, "other"))
	same := func(s key.Scope) key.Scope { return s }
	for name, lying := range map[string]lyingStore{
		"scope":   {Store: mem, scope: func(key.Scope) key.Scope { return "other" }},
		"purpose": {Store: mem, scope: same, purpose: func(key.Purpose) key.Purpose { return "sessions" }},
	} {
		m.store = lying
		_, err := m.Seal(ctx, inner, nil, AAD{})
		if _, ok := errors.AsType[*IntegrityError](err); !ok {
			t.Errorf("%s: seal: got %v, want an IntegrityError", name, err)
		}
	}
	m.store = lyingStore{Store: mem, scope: func(key.Scope) key.Scope { return "other" }}
	if _, err := m.Keys(ctx, inner.Scope); err == nil {
		t.Error("another scope's keys were listed")
	}
}

// What is opened inside a transaction is not kept: the transaction may be rolled back.
func TestCacheHoldsNothingOfTransactions(t *testing.T) {
	s := memstore.New()
	m := innerManager(t, s)
	m.cache.clear()
	tx := s.Begin()
	inside := s.InTx(tx)
	check(t, m.CreateScopeTx(t.Context(), inside, "new"))
	ct, err := m.SealTx(t.Context(), inside, key.Ref{Scope: "new", Purpose: inner.Purpose}, nil, AAD{})
	check(t, err)
	_, err = m.OpenTx(t.Context(), inside, key.Ref{Scope: "new", Purpose: inner.Purpose}, ct, AAD{})
	check(t, err)
	check(t, tx.Rollback())
	if n, seen := m.cache.opened.len()+m.cache.parents.len(), m.cache.seen.len(); n != 0 || seen != 0 {
		t.Errorf("the cache holds %d keys and %d sequence numbers of a transaction that was rolled back", n, seen)
	}
}

// The cache finds what is there by its row as it was, keeps the first of two that race, and forgets the least recently
// used.
func TestCache(t *testing.T) {
	c := newCache(2)
	fam := &store.Family{}
	row := func(kid byte, blob ...byte) openedRow {
		is, err := rowOf(fam, &store.Key{Kind: key.KEK}, &store.Version{Commit: append([]byte{kid}, make([]byte, 31)...), Blob: blob})
		check(t, err)
		return is
	}
	keep := func(is openedRow, messages *seal.MessageKey) *seal.MessageKey {
		return c.keep(key.DEK, openedKey{openedRow: is, messages: messages}).messages
	}
	has := func(is openedRow) bool {
		_, ok := c.find(key.DEK, is)
		return ok
	}

	keep(row('a'), nil)
	if !has(row('a')) || has(row('a', 1)) {
		t.Error("a is not there, or is another")
	}
	if _, ok := c.find(key.KEK, row('a')); ok {
		t.Error("a is among the root keys")
	}
	keep(row('b'), nil)
	has(row('a'))
	keep(row('c'), nil)
	if has(row('b')) {
		t.Error("b is there, and was the least recently used")
	}
	if !has(row('a')) || c.opened.len() != 2 {
		t.Error("a is not there, or the cache is not bounded")
	}

	first, second := innerMessages(t), innerMessages(t)
	if keep(row('d'), first) != first || keep(row('d'), second) != first {
		t.Error("the second of two displaced the first")
	}
	if keep(row('d', 1), second) != first {
		t.Error("a rewrapped key lost its sealing state")
	}
	if !has(row('d', 1)) || has(row('d')) {
		t.Error("the new row is not there, or the old one is")
	}
	third := innerMessages(t)
	if keep(row('e'), third) != third {
		t.Error("another key has the sealing state of the first")
	}

	c.clear()
	if _, err := third.Seal(nil, nil, &envelope.Parts{}, 0); err == nil {
		t.Error("a key that was dropped seals")
	}
}

// No row is taken for another, whatever of it differs, or of the row of what wraps it; but for a version's state, which
// its manifest vouches for.
func TestNoRowIsTakenForAnother(t *testing.T) {
	fresh := func() (*store.Family, *store.Version, *store.Version) {
		fam := &store.Family{Root: store.Key{Kind: key.KEK}, Data: []store.Key{{Kind: key.DEK}}}
		for _, k := range allKeys(fam) {
			v := store.Version{ID: "kdkv_a", Number: 300, State: key.Active, Alg: key.Message, Created: 300, Disabled: 5}
			v.Commit, v.Blob, v.IKKID = bytes.Repeat([]byte{1}, 32), []byte{2, 3}, []byte{4, 5}
			if k.Kind == key.KEK {
				v.ID = "krkv_a"
			}
			v.Parent = "krkv_a"
			k.Versions = []store.Version{v}
		}
		return fam, &fam.Root.Versions[0], &fam.Data[0].Versions[0]
	}
	is := func(fam *store.Family) openedRow {
		row, err := rowOf(fam, &fam.Data[0], &fam.Data[0].Versions[0])
		check(t, err)
		return row
	}
	fam, _, _ := fresh()
	seen := map[openedRow]string{is(fam): "nothing"}
	changes := map[string]func(v *store.Version){
		"id":        func(v *store.Version) { v.ID += "b" },
		"number":    func(v *store.Version) { v.Number++ },
		"algorithm": func(v *store.Version) { v.Alg = key.Raw },
		"time":      func(v *store.Version) { v.Created++ },
		"parent":    func(v *store.Version) { v.Parent += "b" },
		"no parent": func(v *store.Version) { v.Parent = "" },
		"commit":    func(v *store.Version) { v.Commit[31]++ },
		"kid":       func(v *store.Version) { v.Commit[0]++ },
		"blob":      func(v *store.Version) { v.Blob[1]++ },
		"longer":    func(v *store.Version) { v.Blob = append(v.Blob, 2, 4, 5) },
		"shorter":   func(v *store.Version) { v.Blob, v.IKKID = v.Blob[:1], append(v.Blob[1:], v.IKKID...) },
		"IK":        func(v *store.Version) { v.IKKID[0]++ },
		"no IK":     func(v *store.Version) { v.IKKID = nil },
	}
	for name, change := range changes {
		for _, ofRoot := range []bool{false, true} {
			fam, root, data := fresh()
			v, what := data, name
			if ofRoot {
				v, what = root, name+" of what wraps it"
			}
			change(v)
			if root.ID != data.Parent && ofRoot {
				continue // it is another's parent then
			}
			root.ID = data.Parent
			row := is(fam)
			if other, ok := seen[row]; ok {
				t.Errorf("a row with another %s is taken for one with another %s", what, other)
			}
			seen[row] = what
		}
	}
	fam, root, data := fresh()
	root.State, data.State, data.Disabled = key.Disabled, key.Retired, 7
	if seen[is(fam)] == "" {
		t.Error("a version in another state is taken for another")
	}
	root.ID = "krkv_b"
	if _, err := rowOf(fam, &fam.Data[0], data); err == nil {
		t.Error("a version whose parent is missing has a row")
	}
	if n := reflect.TypeFor[store.Version]().NumField(); n != 10 {
		t.Errorf("a version has %d fields, and this was written when it had 10", n)
	}
}

// innerMessages makes a key for messages.
func innerMessages(t *testing.T) *seal.MessageKey {
	t.Helper()
	k, err := seal.Generate(seal.Identity{Kind: key.DEK, RootKeyID: "krk_0", Purpose: inner.Purpose, Alg: key.Message})
	check(t, err)
	messages, err := k.Messages()
	check(t, err)
	return messages
}

// imported makes version 1 of inner's key one that an import brought, and returns what was sealed with it before.
func imported(t *testing.T, s *memstore.Store, m *Manager) (blob *wrapping.BlobInfo) {
	t.Helper()
	ctx := t.Context()
	_, err := m.Rotate(ctx, inner)
	check(t, err)
	r := m.committed()
	fam, err := r.key(ctx, inner)
	check(t, err)
	material := make([]byte, 32)
	material[0] = 7
	old, err := seal.FromBytes(seal.Identity{
		Kind: key.DEK, Inst: r.inst(), RootKeyID: fam.Root.ID, Purpose: inner.Purpose, Alg: key.Imported,
	}, secret.New(material))
	check(t, err)
	head, _ := headOf(&fam.Root)
	parent, err := r.parent(&fam.Family, head.ID)
	check(t, err)
	v, err := newVersion(old, parent, head.ID, 1, fam.Now)
	check(t, err)
	v.ID, v.State = "kdkv_2bGIs8JSfV", key.Retired
	s.Edit(func(d *memstore.Data) {
		k := d.Key(inner)
		k.Versions[0] = v
		check(t, m.sign(k))
	})

	w := aead.NewWrapper()
	_, err = w.SetConfig(ctx, wrapping.WithKeyId(string(v.ID)))
	check(t, err)
	check(t, w.SetAesGcmKeyBytes(material))
	blob, err = w.Encrypt(ctx, []byte("sealed before"), wrapping.WithAad([]byte("row")))
	check(t, err)
	return blob
}

// A blob that names an imported version opens as what go-kms-wrapping sealed, with its AAD, and nothing else does.
func TestImportedVersionsOpenWhatTheySealed(t *testing.T) {
	if fips140.Enforced() {
		t.Skip("go-kms-wrapping's aead wrapper makes the nonces of GCM itself, which GODEBUG=fips140=only refuses")
	}
	s := memstore.New()
	m := innerManager(t, s)
	ctx := t.Context()
	blob := imported(t, s, m)
	w, err := m.Wrapper(ctx, inner)
	check(t, err)
	pt, err := w.Decrypt(ctx, blob, wrapping.WithAad([]byte("row")))
	if err != nil || string(pt) != "sealed before" {
		t.Errorf("%q, %v", pt, err)
	}
	if n, err := m.Rotate(ctx, inner); err != nil || n != 3 {
		t.Errorf("rotated to %d, %v", n, err)
	}
	findings, err := m.Check(ctx)
	if err != nil || len(findings) > 0 {
		t.Errorf("check: %v, %v", findings, err)
	}

	mine, err := w.Encrypt(ctx, nil)
	check(t, err)
	id := key.ID(blob.GetKeyInfo().GetKeyId())
	for name, try := range map[string]func() error{
		"another AAD": func() error { _, err := w.Decrypt(ctx, blob); return err },
		"two bytes": func() error {
			_, err := w.Decrypt(ctx, &wrapping.BlobInfo{Ciphertext: []byte{1, 2}, KeyInfo: blob.GetKeyInfo()})
			return err
		},
		"a version that was made here": func() error {
			_, err := w.Decrypt(ctx, &wrapping.BlobInfo{
				Ciphertext: blob.GetCiphertext(), KeyInfo: &wrapping.KeyInfo{KeyId: mine.GetKeyInfo().GetKeyId()},
			}, wrapping.WithAad([]byte("row")))
			return err
		},
		"as a message": func() error {
			_, err := m.OpenDetached(ctx, inner, id, mine.GetCiphertext(), AAD{})
			return err
		},
	} {
		if err := try(); !errors.Is(err, ErrOpen) {
			t.Errorf("%s: got %v, want ErrOpen", name, err)
		}
	}
}

// Of several slots the one that names the root's own key is tried first, so that opening takes one call.
func TestSlotOfTheRootsOwnKeyIsTriedFirst(t *testing.T) {
	s := memstore.New()
	first := innerManager(t, s)
	root, err := localroot.Generate(t.TempDir() + "/second.key")
	check(t, err)
	counted := &counting{Wrapper: root}
	second := &Manager{}
	slot, err := second.sealSlot(t.Context(), counted, first.ring.keys[0])
	check(t, err)
	slot.State, slot.Created = key.Retired, 1
	s.Edit(func(d *memstore.Data) {
		in := d.Installation
		in.Slots = append(in.Slots, slot)
		manifest, err := slotsManifest(*in)
		check(t, err)
		mac := first.ring.keys[0].MAC(manifest.Append(nil))
		in.MAC = mac[:]
	})
	counted.decrypts = 0
	m, err := New(t.Context(), s, Config{Root: counted})
	check(t, err)
	if counted.decrypts != 1 || m.Pin() != first.Pin() {
		t.Errorf("%d calls", counted.decrypts)
	}
	info, err := m.Installation(t.Context())
	if err != nil || len(info.Roots) != 2 || !info.Roots[0].Active || info.Roots[1].Active {
		t.Errorf("roots %+v, %v", info.Roots, err)
	}
}

type counting struct {
	wrapping.Wrapper
	decrypts int
}

func (c *counting) Decrypt(ctx context.Context, in *wrapping.BlobInfo, o ...wrapping.Option) ([]byte, error) {
	c.decrypts++
	return c.Wrapper.Decrypt(ctx, in, o...)
}

// A key has at most as many versions as its numbers can count.
func TestNumbersEnd(t *testing.T) {
	m := innerManager(t, memstore.New())
	r := m.committed()
	fam, k, err := r.forChange(t.Context(), inner)
	check(t, err)
	next, err := m.nextKey(t.Context(), fam, k)
	check(t, err)
	full := *k
	full.Tombstones = []store.Tombstone{{Number: key.MaxVersion}}
	err = r.addPending(t.Context(), fam, &full, next)
	if _, ok := errors.AsType[*InvalidError](err); !ok {
		t.Errorf("got %v, want an InvalidError", err)
	}
}

// tornStore shows the first reader of a key something that does not fit together.
type tornStore struct {
	store.Store
	torn int
}

func (s *tornStore) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	fam, err := s.Store.Key(ctx, ref)
	if s.torn > 0 {
		s.torn--
		fam.Root.Seq++
	}
	return fam, err
}

// What does not fit is read once more before it is an error, and only once.
func TestWhatDoesNotFitIsReadOnceMore(t *testing.T) {
	torn := &tornStore{Store: memstore.New()}
	m := innerManager(t, torn)
	m.strict = true
	torn.torn = 1
	if _, err := m.Seal(t.Context(), inner, nil, AAD{}); err != nil {
		t.Errorf("torn once: %v", err)
	}
	torn.torn = 2
	_, err := m.Seal(t.Context(), inner, nil, AAD{})
	if _, ok := errors.AsType[*IntegrityError](err); !ok || torn.torn != 0 {
		t.Errorf("torn twice: got %v, want an IntegrityError", err)
	}
}
