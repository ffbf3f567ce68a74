package seal

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// tampering counts attempts that were refused, and reports all others.
type tampering struct {
	t     *testing.T
	cases int
}

// refused expects that an attempt gives exactly ErrOpen, and nothing else.
func (c *tampering) refused(what func() string, attempt func() error) {
	c.t.Helper()
	c.cases++
	defer func() {
		if r := recover(); r != nil {
			c.t.Errorf("%s: panic: %v", what(), r)
		}
	}()
	if err := attempt(); !isErrOpen(err) {
		c.t.Errorf("%s: error is %v, want ErrOpen", what(), err)
	}
}

// bits makes an attempt with each bit of b changed, and with each of its beginnings, and with a byte more.
func (c *tampering) bits(name string, b []byte, attempt func(b []byte) error) {
	c.t.Helper()
	for i := range 8 * len(b) {
		changed := bytes.Clone(b)
		changed[i/8] ^= 1 << (i % 8)
		c.refused(func() string { return fmt.Sprintf("%s with bit %d changed", name, i) }, func() error { return attempt(changed) })
	}
	for n := range b {
		c.refused(func() string { return fmt.Sprintf("%s cut to %d bytes", name, n) }, func() error { return attempt(bytes.Clone(b[:n])) })
	}
	c.refused(func() string { return name + " with a byte more" }, func() error { return attempt(append(bytes.Clone(b), 0)) })
}

// row is a wrapped key as a database has it.
type row struct {
	id      Identity
	version key.Version
	created int64
	commit  [32]byte
	blob    []byte
	parent  *Parent
	opened  *Key
}

func (r row) String() string {
	return fmt.Sprintf("%s %s/%q version %d", r.id.Kind, r.id.RootKeyID, r.id.Purpose, r.version)
}

func (r row) unwrap() error {
	_, err := r.parent.Unwrap(r.id, r.version, r.created, r.commit, r.blob)
	return err
}

func newRow(t *testing.T, parent *Parent, id Identity, version key.Version) row {
	t.Helper()
	k, err := Generate(id)
	if id.Alg == key.Imported {
		k, err = FromBytes(id, Random(32))
	}
	if err != nil {
		t.Fatal(err)
	}
	const created = 1_800_000_000
	blob, err := parent.Wrap(k, version, created)
	if err != nil {
		t.Fatal(err)
	}
	r := row{id: id, version: version, created: created, commit: k.Commit(), blob: blob, parent: parent, opened: k}
	if err := r.unwrap(); err != nil {
		t.Fatalf("%v does not unwrap untouched: %v", r, err)
	}
	return r
}

var (
	scopeKeys = []key.ID{"krk_a", "krk_b", "krk_c"}
	purposes  = []key.Purpose{"client-secrets", "database", "s"}
)

// installation makes root keys and data keys of 3 scopes, 3 purposes and 3 versions.
func installation(t *testing.T, ik *IK) (keks, deks []row) {
	t.Helper()
	for _, scope := range scopeKeys {
		var parents []*Parent
		for version := key.Version(1); version <= 3; version++ {
			id := Identity{Kind: key.KEK, Inst: ik.Inst(), RootKeyID: scope, Alg: key.Message}
			keks = append(keks, newRow(t, ik.Parent(), id, version))
			parents = append(parents, mustParent(t, keks[len(keks)-1].opened))
		}
		for _, purpose := range purposes {
			for version := key.Version(1); version <= 3; version++ {
				id := Identity{Kind: key.DEK, Inst: ik.Inst(), RootKeyID: scope, Purpose: purpose, Alg: key.Message}
				deks = append(deks, newRow(t, parents[version-1], id, version))
			}
		}
	}
	return keks, deks
}

func TestTamperingIsRefusedEverywhereWithTheSameError(t *testing.T) {
	ik, err := GenerateIK()
	if err != nil {
		t.Fatal(err)
	}
	keks, deks := installation(t, ik)
	var all int
	for _, part := range []struct {
		name string
		run  func(*tampering)
	}{
		{"wrapped keys", func(c *tampering) { c.wrapped(keks, deks) }},
		{"transplants", func(c *tampering) { c.transplants(keks, deks) }},
		{"messages", func(c *tampering) { c.messages(deks) }},
		{"imported", (*tampering).imported},
		{"slots", func(c *tampering) { c.slots(ik) }},
		{"manifests", func(c *tampering) { c.manifests(ik, keks, deks) }},
		{"names", func(c *tampering) { c.names(ik) }},
	} {
		t.Run(part.name, func(t *testing.T) {
			c := &tampering{t: t}
			part.run(c)
			t.Logf("%d cases", c.cases)
			all += c.cases
		})
	}
	if all < 20_000 {
		t.Errorf("%d cases, want at least 20 000", all)
	}
	t.Logf("%d cases in all", all)
}

func (c *tampering) wrapped(keks, deks []row) {
	rows := []row{keks[0], deks[0], deks[13], deks[26]}
	for _, alg := range []key.Alg{key.Raw, key.BlindIndex, key.Imported} {
		id := deks[0].id
		id.Alg = alg
		rows = append(rows, newRow(c.t, deks[0].parent, id, 1))
	}
	for _, r := range rows {
		name := r.String() + " " + r.id.Alg.String()
		c.bits(name, r.blob, func(b []byte) error { r := r; r.blob = b; return r.unwrap() })
		c.fields(name, r)
	}
}

// fields changes each bit of all that a wrapped key is authenticated with.
func (c *tampering) fields(name string, r row) {
	each := func(field string, bits int, change func(r *row, i int)) {
		for i := range bits {
			changed := r
			change(&changed, i)
			c.refused(func() string { return fmt.Sprintf("%s: %s, bit %d", name, field, i) }, changed.unwrap)
		}
	}
	flip := func(s string, i int) string {
		b := []byte(s)
		b[i/8] ^= 1 << (i % 8)
		return string(b)
	}
	each("installation", 128, func(r *row, i int) { r.id.Inst[i/8] ^= 1 << (i % 8) })
	each("kind", 24, func(r *row, i int) { r.id.Kind = key.Kind(flip(string(r.id.Kind), i)) })
	each("root key", 8*len(r.id.RootKeyID), func(r *row, i int) { r.id.RootKeyID = key.ID(flip(string(r.id.RootKeyID), i)) })
	each("purpose", 8*len(r.id.Purpose), func(r *row, i int) { r.id.Purpose = key.Purpose(flip(string(r.id.Purpose), i)) })
	each("algorithm", 8, func(r *row, i int) { r.id.Alg ^= 1 << i })
	each("version", 32, func(r *row, i int) { r.version ^= 1 << i })
	each("created", 64, func(r *row, i int) { r.created ^= 1 << i })
	each("commitment", 256, func(r *row, i int) { r.commit[i/8] ^= 1 << (i % 8) })
	other := r
	other.id.Kind = map[key.Kind]key.Kind{key.KEK: key.DEK, key.DEK: key.KEK}[r.id.Kind]
	c.refused(func() string { return name + ": the other kind" }, other.unwrap)
}

// transplants puts each wrapped key into the place of every other, with its commitment and without, and under every
// parent.
func (c *tampering) transplants(keks, deks []row) {
	rows := slices.Concat(keks, deks)
	for i, from := range rows {
		for j, to := range rows {
			if i == j {
				continue
			}
			what := func() string { return fmt.Sprintf("%v in the place of %v", from, to) }
			moved := to
			moved.blob = from.blob
			c.refused(what, moved.unwrap)
			moved.commit = from.commit
			c.refused(what, moved.unwrap)
			moved = to
			moved.commit = from.commit
			c.refused(func() string { return fmt.Sprintf("commitment of %v in %v", from, to) }, moved.unwrap)
			moved = from
			moved.parent = to.parent
			if moved.parent != from.parent {
				c.refused(func() string { return fmt.Sprintf("%v under the parent of %v", from, to) }, moved.unwrap)
			}
		}
	}
}

func (c *tampering) messages(deks []row) {
	const context = "users/42/email"
	keys := make([]*MessageKey, len(deks))
	for i, r := range deks {
		var err error
		if keys[i], err = r.opened.Messages(); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, f := range forms {
		for _, plaintext := range []string{"", "five!", "a plaintext of more than one block of the cipher"} {
			sealed := f.mustSeal(c.t, keys[0], []byte(plaintext), context)
			open := func(m *MessageKey, b []byte, context string) error {
				_, err := f.open(m, nil, b, context)
				return err
			}
			c.bits(f.name, sealed, func(b []byte) error { return open(keys[0], b, context) })
			c.bits(f.name+" context", []byte(context), func(b []byte) error { return open(keys[0], sealed, string(b)) })
			for i, m := range keys[1:] {
				c.refused(func() string { return fmt.Sprintf("%s with the key of %v", f.name, deks[i+1]) },
					func() error { return open(m, sealed, context) })
				if f.name != "attached" {
					continue
				}
				kid := m.KID()
				relabelled := bytes.Clone(sealed)
				copy(relabelled[2:], kid[:])
				c.refused(func() string { return fmt.Sprintf("relabelled as one of %v", deks[i+1]) },
					func() error { return open(m, relabelled, context) })
				c.refused(func() string { return fmt.Sprintf("relabelled as one of %v, with its own key", deks[i+1]) },
					func() error { return open(keys[0], relabelled, context) })
			}
		}
	}
}

func (c *tampering) imported() {
	k := newTestKey(c.t, key.Imported)
	aad := []byte("aad")
	sealed := randomNonceGCM(k.Bytes().Reveal()).Seal(nil, nil, []byte("old plaintext"), aad)
	if _, err := k.OpenImported(sealed, aad); err != nil {
		c.t.Fatal(err)
	}
	c.bits("imported", sealed, func(b []byte) error { _, err := k.OpenImported(b, aad); return err })
	c.bits("AAD of imported", aad, func(b []byte) error { _, err := k.OpenImported(sealed, b); return err })
}

func (c *tampering) slots(ik *IK) {
	const slot, wrapperType = "kr_a", "awskms"
	inst, kid := ik.Inst(), ik.KID()
	payload := ik.SlotPayload(slot, wrapperType).Reveal()
	open := func(inst, kid []byte, slot, wrapperType string, payload []byte) error {
		_, err := OpenSlotPayload([16]byte(inst), key.ID(slot), wrapperType, key.KID(kid), secret.New(payload))
		return err
	}
	c.bits("payload", payload, func(b []byte) error { return open(inst[:], kid[:], slot, wrapperType, b) })
	c.bits("slot", []byte(slot), func(b []byte) error { return open(inst[:], kid[:], string(b), wrapperType, payload) })
	c.bits("wrapper type", []byte(wrapperType), func(b []byte) error { return open(inst[:], kid[:], slot, string(b), payload) })
	for i := range 128 {
		inst, kid := inst, kid
		inst[i/8] ^= 1 << (i % 8)
		c.refused(func() string { return "another installation" },
			func() error { return open(inst[:], kid[:], slot, wrapperType, payload) })
		inst = ik.Inst()
		kid[i/8] ^= 1 << (i % 8)
		c.refused(func() string { return "another installation key" },
			func() error { return open(inst[:], kid[:], slot, wrapperType, payload) })
	}
}

// verify makes the answer of a MAC an error like the others.
func verify(ik *IK, manifest, mac []byte) error {
	if ik.Verify(manifest, mac) {
		return nil
	}
	return ErrOpen
}

func (c *tampering) manifests(ik *IK, keks, deks []row) {
	other, err := GenerateIK()
	if err != nil {
		c.t.Fatal(err)
	}
	all := []envelope.Manifest{
		manifestOf(ik, "tenant-1", "krk_a", keks[:3]),
		manifestOf(ik, "krk_a", "kdk_a", deks[:3]),
		manifestOf(ik, "krk_a", "kdk_b", deks[3:6]),
		manifestOf(ik, "krk_a", "kdk_c", deks[6:9]),
	}
	all[3].Policy.Generator = "aes128-random"
	var macs [][]byte
	for _, m := range all {
		mac := ik.MAC(m.Append(nil))
		macs = append(macs, mac[:])
	}
	for i, m := range all {
		b, mac := m.Append(nil), macs[i]
		if err := verify(ik, b, mac); err != nil {
			c.t.Fatal("the manifest does not verify untouched")
		}
		c.bits(string(m.KeyID)+" manifest", b, func(b []byte) error { return verify(ik, b, mac) })
		c.bits(string(m.KeyID)+" MAC", mac, func(mac []byte) error { return verify(ik, b, mac) })
		c.refused(func() string { return "under another installation key" }, func() error { return verify(other, b, mac) })
		for j := range all {
			if i != j {
				c.refused(func() string { return "the MAC of another manifest" }, func() error { return verify(ik, b, macs[j]) })
			}
		}
		for name, change := range manifestChanges() {
			changed := m
			changed.Versions = slices.Clone(m.Versions)
			change(&changed)
			c.refused(func() string { return string(m.KeyID) + ": " + name },
				func() error { return verify(ik, changed.Append(nil), mac) })
		}
	}
	slots := envelope.SlotsManifest{Inst: ik.Inst(), Seq: 1, Active: "kr_a", Slots: []envelope.Slot{
		{ID: "kr_a", WrapperType: "aead", IKKID: ik.KID(), State: key.Active, BlobHash: BlobHash([]byte("a"))},
		{ID: "kr_b", WrapperType: "aead", IKKID: ik.KID(), State: key.Destroyed, BlobHash: BlobHash(nil)},
	}}
	b := slots.Append(nil)
	mac := ik.MAC(b)
	c.bits("slots", b, func(b []byte) error { return verify(ik, b, mac[:]) })
	slices.Reverse(slots.Slots)
	c.refused(func() string { return "slots in another order" }, func() error { return verify(ik, slots.Append(nil), mac[:]) })
}

func manifestOf(ik *IK, owner string, id key.ID, rows []row) envelope.Manifest {
	m := envelope.Manifest{
		Inst: ik.Inst(), Kind: rows[0].id.Kind, Owner: owner, Purpose: rows[0].id.Purpose, KeyID: id, Seq: 5, Head: 3,
		Policy: envelope.Policy{RotateEvery: 7_776_000, MaxMessages: 1 << 32},
	}
	for i, r := range rows {
		m.Versions = append(m.Versions, envelope.ManifestVersion{
			Version: r.version, State: []key.State{key.Destroyed, key.Retired, key.Active}[i], Alg: r.id.Alg, Commit: r.commit,
			ID: r.opened.ID(),
		})
	}
	return m
}

func manifestChanges() map[string]func(*envelope.Manifest) {
	changes := map[string]func(*envelope.Manifest){
		"older head":         func(m *envelope.Manifest) { m.Head-- },
		"older seq":          func(m *envelope.Manifest) { m.Seq-- },
		"never rotated":      func(m *envelope.Manifest) { m.Policy.RotateEvery = 0 },
		"without limit":      func(m *envelope.Manifest) { m.Policy.MaxMessages = 0 },
		"policies swapped":   func(m *envelope.Manifest) { m.Policy = envelope.Policy{RotateEvery: 1 << 32, MaxMessages: 7_776_000} },
		"other generator":    func(m *envelope.Manifest) { m.Policy.Generator += "x" },
		"generator or none":  func(m *envelope.Manifest) { m.Policy.Generator = map[string]string{"": "x"}[m.Policy.Generator] },
		"owner and id":       func(m *envelope.Manifest) { m.Owner, m.KeyID = string(m.KeyID), key.ID(m.Owner) },
		"no version":         func(m *envelope.Manifest) { m.Versions = nil },
		"newest missing":     func(m *envelope.Manifest) { m.Versions = m.Versions[:2] },
		"tombstone missing":  func(m *envelope.Manifest) { m.Versions = m.Versions[1:] },
		"tombstone revived":  func(m *envelope.Manifest) { m.Versions[0].State = key.Disabled },
		"tombstone emptied":  func(m *envelope.Manifest) { m.Versions[0] = envelope.ManifestVersion{Version: 1, State: key.Destroyed} },
		"version more":       func(m *envelope.Manifest) { m.Versions = append(m.Versions, envelope.ManifestVersion{Version: 4}) },
		"versions reordered": func(m *envelope.Manifest) { slices.Reverse(m.Versions) },
	}
	for i := range 3 {
		for state := range key.State(7) {
			changes[fmt.Sprintf("state of %d is %d", i, state)] = func(m *envelope.Manifest) {
				if m.Versions[i].State == state {
					state = 99
				}
				m.Versions[i].State = state
			}
		}
		for j := range i {
			changes[fmt.Sprintf("ids of %d and %d", i, j)] = func(m *envelope.Manifest) {
				m.Versions[i].ID, m.Versions[j].ID = m.Versions[j].ID, m.Versions[i].ID
			}
			changes[fmt.Sprintf("commitments of %d and %d", i, j)] = func(m *envelope.Manifest) {
				m.Versions[i].Commit, m.Versions[j].Commit = m.Versions[j].Commit, m.Versions[i].Commit
			}
			changes[fmt.Sprintf("states of %d and %d", i, j)] = func(m *envelope.Manifest) {
				m.Versions[i].State, m.Versions[j].State = m.Versions[j].State, m.Versions[i].State
			}
		}
	}
	return changes
}
