package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
)

// Finding is something in the tables that no correct program and no legal change can have left there.
type Finding struct {
	Subject string // what it is about, as `version 3 of key "sessions" of scope "org_42"`
	Problem string // what is wrong with it; neither of the two holds anything secret
}

// String is the finding as one line for people.
func (f Finding) String() string { return f.Subject + ": " + f.Problem }

// checkPage is how many scopes are listed at once.
const checkPage = 500

// Check reads everything, one scope after the other, and returns what breaks a rule of this package or of
// docs/format.md and can be seen without a key; whether manifests and wrapped keys are genuine cannot. What Integrity
// says is in it, too. Tables without an installation are well as long as there are no keys. It may run beside anything
// else; of what changes meanwhile only a scope that is renamed may be reported, as a double of itself, and an
// installation key that came and went. The error is that of a read that failed, and what was found until then is
// returned with it. It keeps every id, about 150 bytes for each version, and every name, about 250 bytes for each.
func Check(ctx context.Context, s Store) ([]Finding, error) {
	c := checker{ids: map[key.ID]string{}, namedIKs: map[string]string{}, names: map[key.ID][]Name{}}
	if err := c.check(ctx, s); err != nil {
		return c.found, fmt.Errorf("check the tables: %w", err)
	}
	return c.found, nil
}

type checker struct {
	found []Finding
	ids   map[key.ID]string // of keys, versions and tombstones, and what has it
	// namedIKs has the installation keys that something names, and the first that does. Which of them are there, and
	// which the slots hold, is looked at in the end, as such may come while the keys are read.
	namedIKs map[string]string
	names    map[key.ID][]Name // by their root keys
}

func (c *checker) add(subject, format string, args ...any) {
	c.found = append(c.found, Finding{subject, fmt.Sprintf(format, args...)})
}

func (c *checker) check(ctx context.Context, s Store) error {
	if err := s.CheckSchema(ctx); err != nil {
		return err
	}
	sentences, err := s.Integrity(ctx)
	if err != nil {
		return err
	}
	for _, sentence := range sentences {
		c.add("database", "%s", sentence)
	}
	before, err := s.Installation(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err == nil {
		c.installation(&before)
	}
	if err := c.readNames(ctx, s); err != nil {
		return err
	}
	n, err := c.scopes(ctx, s)
	if err != nil {
		return err
	}
	after, err := s.Installation(ctx)
	switch {
	case err == nil:
		c.installationKeys(&before, &after)
	case !errors.Is(err, ErrNotFound):
		return err
	case n > 0:
		c.add("installation", "there are keys and no installation")
	}
	return nil
}

// scopes looks at the keys of every scope and says how many scopes there are.
func (c *checker) scopes(ctx context.Context, s Store) (n int, err error) {
	var after key.Scope
	for {
		scopes, err := s.Scopes(ctx, after, checkPage)
		if err != nil || len(scopes) == 0 {
			return n, err
		}
		for _, scope := range scopes {
			f, err := s.Scope(ctx, scope)
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return n, err
			}
			c.family(scope, &f)
			if err := c.namesOf(ctx, s, scope, &f); err != nil {
				return n, err
			}
			n++
		}
		after = scopes[len(scopes)-1]
	}
}

func (c *checker) installation(in *Installation) {
	const subject = "installation"
	c.length(subject, "inst", in.Inst, 16)
	c.length(subject, "installation key id", in.IKKID, 16)
	c.length(subject, "MAC", in.MAC, 32)
	if in.Seq < 1 {
		c.add(subject, "the sequence number is 0")
	}
	c.keys(subject, in.Keys)
	active := map[string]int{} // by the installation key
	for i := range in.Slots {
		slot := &in.Slots[i]
		subject := fmt.Sprintf("root slot %s", slot.ID)
		c.slot(subject, slot)
		if slot.State == key.Active {
			active[string(slot.IKKID)]++
		}
		chosen := slot.State == key.Active && bytes.Equal(slot.IKKID, in.IKKID)
		if chosen != (slot.ID == in.ActiveSlot) {
			c.add(subject, "it is %v and the installation says that %q is active", slot.State, in.ActiveSlot)
		}
		if slot.State != key.Destroyed && !has(in.Keys, slot.IKKID) {
			c.add(subject, "what it holds, %s, is no key of the installation", key.Base32(slot.IKKID))
		}
	}
	if n := active[string(in.IKKID)]; n != 1 {
		c.add(subject, "%d root slots are active, not 1", n)
	}
	for _, kid := range slices.Sorted(maps.Keys(active)) {
		if n := active[kid]; n > 1 && kid != string(in.IKKID) {
			c.add(subject, "%d root slots of installation key %s are active, not 1", n, key.Base32([]byte(kid)))
		}
	}
	c.namesIK(subject, in.IKKID)
}

// slot looks at a slot by itself. Its times are the database's, whose clock may be set back: it can happen that a later
// step has the earlier one.
func (c *checker) slot(subject string, slot *Slot) {
	c.id(subject, slot.ID, key.PrefixRootSlot)
	c.length(subject, "installation key id", slot.IKKID, 16)
	if slot.WrapperType == "" {
		c.add(subject, "the wrapper type is empty")
	}
	switch slot.State {
	case key.Active, key.Retired:
		if len(slot.Blob) == 0 {
			c.add(subject, "the sealed installation key is empty")
		}
		if slot.Removed != 0 {
			c.add(subject, "it is %v and has a time of removal", slot.State)
		}
	case key.Destroyed:
		if len(slot.Blob) != 0 {
			c.add(subject, "it is removed and still has a sealed installation key")
		}
		if slot.Removed <= 0 {
			c.add(subject, "it is removed and has no time of removal")
		}
	case key.Pending, key.Disabled:
		fallthrough
	default:
		c.add(subject, "a slot cannot be in %v", slot.State)
	}
	if slot.Created <= 0 {
		c.add(subject, "it was made at %d", slot.Created)
	}
	if slot.Activated < 0 || slot.Activated == 0 && slot.State == key.Active {
		c.add(subject, "it is %v and was activated at %d", slot.State, slot.Activated)
	}
	if slot.Retired < 0 || (slot.Retired == 0) != (slot.State == key.Active) {
		c.add(subject, "it is %v and was retired at %d", slot.State, slot.Retired)
	}
}

// keys looks for one installation key, or two of which the second follows the first.
func (c *checker) keys(subject string, keys []InstallationKey) {
	if len(keys) < 1 || len(keys) > 2 {
		c.add(subject, "there are %d installation keys, not 1, or 2 while it is rekeyed", len(keys))
	}
	for i := range keys {
		k := &keys[i]
		subject := fmt.Sprintf("installation key %s", key.Base32(k.KID))
		c.length(subject, "id", k.KID, 16)
		if k.Created <= 0 {
			c.add(subject, "it was made at %d", k.Created)
		}
		if i > 0 && bytes.Equal(k.KID, keys[i-1].KID) {
			c.add(subject, "it comes twice")
		}
		if i > 0 && !bytes.Equal(k.Previous, keys[i-1].KID) {
			c.add(subject, "it does not follow the one before it, %s", key.Base32(keys[i-1].KID))
		}
		if len(k.Previous) == 0 && len(k.Link) == 0 {
			continue // it is the first
		}
		c.length(subject, "previous installation key's id", k.Previous, 16)
		c.length(subject, "link to the previous installation key", k.Link, 32)
	}
}

// has says whether a list of keys has the one with the given kid.
func has(keys []InstallationKey, kid []byte) bool {
	return slices.ContainsFunc(keys, func(k InstallationKey) bool { return bytes.Equal(k.KID, kid) })
}

func (c *checker) family(scope key.Scope, f *Family) {
	root := &f.Root
	subject := key.Ref{Scope: scope}.String()
	c.keyID(subject, root.ID, key.PrefixRootKey, root)
	if err := scope.Validate(); err != nil {
		c.add(subject, "%v", err)
	}
	if root.Kind != key.KEK || root.Scope != scope || root.RootKeyID != "" || root.Purpose != "" {
		c.add(subject, "it was read as a key of kind %q, scope %q, root key %q and purpose %q", root.Kind, root.Scope, root.RootKeyID, root.Purpose)
	}
	c.key(subject, root, root)
	for i := range f.Data {
		k := &f.Data[i]
		subject := fmt.Sprintf("key %q of scope %q", string(k.Purpose), string(scope))
		c.keyID(subject, k.ID, key.PrefixDataKey, root)
		if err := k.Purpose.Validate(); err != nil {
			c.add(subject, "%v", err)
		}
		if k.Kind != key.DEK || k.Scope != "" || k.RootKeyID != root.ID {
			c.add(subject, "it was read as a key of kind %q, scope %q and root key %q", k.Kind, k.Scope, k.RootKeyID)
		}
		if i > 0 && k.Purpose <= f.Data[i-1].Purpose {
			c.add(subject, "it comes twice, or not in the order of the purposes")
		}
		c.key(subject, k, root)
	}
}

// key looks at k, which is root or one of its data keys.
func (c *checker) key(subject string, k, root *Key) {
	c.length(subject, "installation key id", k.IKKID, 16)
	c.namesIK(subject, k.IKKID)
	c.length(subject, "MAC", k.MAC, 32)
	if k.Seq < 1 {
		c.add(subject, "the sequence number is 0")
	}
	c.generator(subject, k.Generator)
	if k.Kind == key.KEK && k.Generator != "" {
		c.add(subject, "a root key has the generator %q", k.Generator)
	}
	c.numbers(subject, k)
	for i := range k.Versions {
		v := &k.Versions[i]
		subject := fmt.Sprintf("version %d of %s", v.Number, subject)
		c.version(subject, v, k.Kind)
		if k.Kind == key.KEK {
			if v.Parent != "" {
				c.add(subject, "a root key's version has the parent %s", v.Parent)
			}
			c.length(subject, "installation key id", v.IKKID, 16)
			c.namesIK(subject, v.IKKID)
			continue
		}
		if len(v.IKKID) != 0 {
			c.add(subject, "a data key's version has an installation key id")
		}
		c.parent(subject, v.Parent, root)
	}
	for i := range k.Tombstones {
		t := &k.Tombstones[i]
		c.tombstone(fmt.Sprintf("tombstone %d of %s", t.Number, subject), t, k.Kind)
	}
	c.rotateAt(subject, k)
}

// numbers looks at versions and tombstones together: dense from 1, and one active, which is the head.
func (c *checker) numbers(subject string, k *Key) {
	versions, tombstones, active := k.Versions, k.Tombstones, 0
	for next := key.Version(1); len(versions)+len(tombstones) > 0; next++ {
		if next > key.MaxVersion {
			c.add(subject, "there are more than %d versions", key.MaxVersion)
			return
		}
		live := len(versions) > 0 && versions[0].Number == next
		dead := len(tombstones) > 0 && tombstones[0].Number == next
		if live == dead {
			problem := "is not there, or the numbers are not ascending"
			if live {
				problem = "is there live and as a tombstone"
			}
			c.add(subject, "version %d %s", next, problem)
			return
		}
		if dead {
			tombstones = tombstones[1:]
			continue
		}
		if (versions[0].State == key.Active) != (next == k.Head) {
			c.add(subject, "version %d is %v and the head is %d", next, versions[0].State, k.Head)
		}
		if versions[0].State == key.Active {
			active++
		}
		versions = versions[1:]
	}
	if active != 1 {
		c.add(subject, "%d versions are active, not 1", active)
	}
}

func (c *checker) version(subject string, v *Version, kind key.Kind) {
	c.identity(subject, v.ID, kind, v.Alg, v.Commit)
	switch v.State {
	case key.Pending, key.Active, key.Retired, key.Disabled:
	case key.Destroyed:
		fallthrough
	default:
		c.add(subject, "a version cannot be in %v", v.State)
	}
	if v.Created <= 0 {
		c.add(subject, "it was made at %d", v.Created)
	}
	if v.Disabled < 0 || (v.Disabled != 0) != (v.State == key.Disabled) {
		c.add(subject, "it is %v and was disabled at %d", v.State, v.Disabled)
	}
	// Sizes of docs/format.md, section 4: first byte, nonce and tag around a key of 32 bytes, or around 32 and 1 to
	// 1024.
	const around = 1 + 24 + 16
	least, most := around+32, around+32
	if v.Alg == key.Raw || v.Alg == key.Imported {
		least, most = around+32+1, around+32+1024
	}
	if n := len(v.Blob); n < least || n > most {
		c.add(subject, "the wrapped key has %d bytes, which %v does not have", n, v.Alg)
	}
	if len(v.Blob) > 0 && v.Blob[0] != 0x01 {
		c.add(subject, "the wrapped key begins with 0x%02x", v.Blob[0])
	}
}

func (c *checker) parent(subject string, id key.ID, root *Key) {
	for i := range root.Versions {
		p := &root.Versions[i]
		if p.ID != id {
			continue
		}
		if p.Alg != key.Message {
			c.add(subject, "its parent %s is of %v, which wraps nothing", id, p.Alg)
		}
		if p.State == key.Disabled {
			c.add(subject, "its parent %s is disabled, so that it does not open: enable that, and rewrap", id)
		}
		return
	}
	c.add(subject, "its parent %q is no version of the scope's root key", id)
}

func (c *checker) tombstone(subject string, t *Tombstone, kind key.Kind) {
	if t.Destroyed <= 0 {
		c.add(subject, "it was destroyed at %d", t.Destroyed)
	}
	if t.ID == "" && bytes.Equal(t.Commit, make([]byte, 32)) {
		if !t.Alg.Known() {
			c.add(subject, "%v is not known", t.Alg)
		}
		return
	}
	c.identity(subject, t.ID, kind, t.Alg, t.Commit)
}

// identity looks at what never changes of a version, live or destroyed.
func (c *checker) identity(subject string, id key.ID, kind key.Kind, alg key.Alg, commit []byte) {
	c.unique(subject, id)
	if !alg.Known() || kind == key.KEK && alg != key.Message && alg != key.Imported {
		c.add(subject, "it cannot be of %v", alg)
	}
	if !c.length(subject, "commitment", commit, 32) {
		return
	}
	made := key.VersionID(kind, key.KID(commit[:16]))
	switch idKind, _ := id.Kind(); {
	case id == made:
	case id.Validate() != nil:
		c.add(subject, "%q is no id of a version", id)
	case idKind != kind:
		c.add(subject, "the id %s is one of the other kind", id)
	default:
		// An imported version keeps its old id, unless that has the form of one made here, which says what it has to
		// be.
		if _, ok := id.KID(); ok || alg != key.Imported {
			c.add(subject, "the id %s does not follow from the commitment", id)
		}
	}
}

func (c *checker) rotateAt(subject string, k *Key) {
	switch {
	case k.RotateEvery == 0:
		if k.RotateAt != 0 {
			c.add(subject, "its rotation is due at %d and it has no period", k.RotateAt)
		}
		return
	case k.RotateEvery > math.MaxInt64:
		c.add(subject, "its period of %d s is out of range", k.RotateEvery)
		return
	case k.RotateAt <= 0:
		c.add(subject, "its rotation is never due and its period is %d s", k.RotateEvery)
		return
	case len(k.Versions) == 0:
		return
	}
	// A sum of two times could overflow, their difference cannot: both are positive.
	created := k.Versions[len(k.Versions)-1].Created
	if created > 0 && k.RotateAt > created && uint64(k.RotateAt-created) > k.RotateEvery {
		c.add(subject, "its rotation is due at %d, later than %d s after its newest version of %d", k.RotateAt, k.RotateEvery, created)
	}
}

func (c *checker) id(subject string, id key.ID, prefix string) {
	c.unique(subject, id)
	text, ok := strings.CutPrefix(string(id), prefix)
	if b, form := key.ParseBase32(text); !ok || !form || len(b) != 16 {
		c.add(subject, "the id %q is not %s and 16 bytes in base32hex", id, prefix)
	}
}

// keyID looks at the id of a root key or data key of root's scope. One that an import brought keeps its old id.
func (c *checker) keyID(subject string, id key.ID, prefix string, root *Key) {
	imported := slices.ContainsFunc(root.Versions, func(v Version) bool { return v.Alg == key.Imported }) ||
		slices.ContainsFunc(root.Tombstones, func(t Tombstone) bool { return t.Alg == key.Imported })
	text, ok := strings.CutPrefix(string(id), prefix)
	// The rest of such an id is as that of a version's.
	if imported && ok && len(id) <= key.MaxIDLen && key.ID(key.PrefixRootKeyVersion+text).Validate() == nil {
		c.unique(subject, id)
		return
	}
	c.id(subject, id, prefix)
}

func (c *checker) unique(subject string, id key.ID) {
	if other, taken := c.ids[id]; taken {
		c.add(subject, "%s has the id %s, too", other, id)
		return
	}
	c.ids[id] = subject
}

func (c *checker) namesIK(subject string, kid []byte) {
	if _, known := c.namedIKs[string(kid)]; !known {
		c.namedIKs[string(kid)] = subject
	}
}

// installationKeys looks for the installation keys that something names and that are not there, or that no slot holds,
// so that nothing can open them.
func (c *checker) installationKeys(before, after *Installation) {
	keys := slices.Concat(before.Keys, after.Keys)
	held := map[string]bool{}
	for _, slot := range slices.Concat(before.Slots, after.Slots) {
		if slot.State != key.Destroyed {
			held[string(slot.IKKID)] = true
		}
	}
	for _, kid := range slices.Sorted(maps.Keys(c.namedIKs)) {
		if !has(keys, []byte(kid)) {
			c.add(c.namedIKs[kid], "it names %s, which is no key of the installation", key.Base32([]byte(kid)))
		}
		if !held[kid] {
			c.add(c.namedIKs[kid], "no root slot holds its installation key %s", key.Base32([]byte(kid)))
		}
	}
}

func (c *checker) length(subject, name string, b []byte, want int) bool {
	if len(b) != want {
		c.add(subject, "its %s has %d bytes, not %d", name, len(b), want)
	}
	return len(b) == want
}
