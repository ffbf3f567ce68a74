package keyhold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Raw keys by name. The name of a raw key is its purpose. A key comes into being at its first use, so that a name may
// be known before there is a key of it: how its versions are to be made. Of one that was removed it stays known where
// the numbers of a new key go on, so that what somebody stored with a number never means another key. That is a record
// of its own, with a MAC of its own (docs/format.md, section 7).

// RawKey says how a raw key is made.
type RawKey struct {
	// Generator is the name of what makes its versions, now and at each rotation: one of [Config.Generators], or one
	// that every process has ([DefaultGenerator]). Empty is the default one. Of a key that is there, and of a name that
	// is registered, it never changes.
	Generator string

	// Policy is the new key's. A key that is there keeps its own.
	Policy Policy
}

// RawInfo describes a raw key, or a name that is registered. In a list ([Manager.RawKeys]) nothing of it was checked
// against the key's MAC: for people, and to find what to look at.
type RawInfo struct {
	Name        Purpose
	Generator   string
	Version     Version       // the head; 0 if there is no key yet
	RotateEvery time.Duration // of the key; 0: never
}

// RegisterRaw says by which generator the versions of ref's key are made, empty being the default one. It makes no key,
// so that a process whose root is not the active one may do it. Of a name that is registered, or whose key is there, it
// changes nothing; a name whose key was removed may have a key again afterwards.
//
// It takes one round trip where the key is there, two where the name is registered, four otherwise. Errors: an
// [*InvalidError] for a malformed name; [ErrGenerator]; [ErrNotFound] for an unknown scope; [ErrExists] if the name has
// another generator; [ErrPurpose] if its key is not a raw one; [*IntegrityError]; [ErrUnavailable].
func (m *Manager) RegisterRaw(ctx context.Context, ref Ref, generator string) error {
	if err := m.checkRaw(ref, generator); err != nil {
		return err
	}
	if err := m.hasGenerator(generator); err != nil {
		return err
	}
	generator = storedGenerator(generator)
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r := m.committed()
	for {
		fam, err := r.keyOrName(ctx, ref)
		switch {
		case err != nil && !errors.Is(err, ErrRemoved):
			return r.known(err)
		case err == nil && (fam.made || fam.name.Seq > 0):
			return fam.sameGenerator(ref, generator)
		}
		if err = r.register(ctx, &fam, ref, generator); err == nil {
			return r.known(r.madeBy(ctx, ref, generator))
		}
		if err := again(ctx, &r, err); err != nil {
			return fmt.Errorf("register %v: %w", ref, err)
		}
	}
}

// madeBy is nil unless somebody made the key by another generator while its name was being registered.
func (r reader) madeBy(ctx context.Context, ref Ref, generator string) error {
	fam, err := r.key(ctx, ref)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	n := named{family: fam, made: true}
	return cmp.Or(r.isRaw(&fam.Data[0]), n.sameGenerator(ref, generator))
}

// register stores that a key is made by a generator, where nothing is known of its name, or it was removed.
func (r reader) register(ctx context.Context, fam *named, ref Ref, generator string) error {
	n := fam.name
	n.RootKeyID, n.Purpose, n.Generator, n.Removed = fam.Root.ID, ref.Purpose, generator, false
	n.Seq++
	r.m.signName(&n)
	err := r.m.store.PutName(ctx, r.inst(), fam.name.Seq, n)
	if err == nil {
		fam.name = n
	}
	return err
}

// checkRaw looks at a reference to a raw key, and the name of a generator.
func (m *Manager) checkRaw(ref Ref, generator string) error {
	if err := ref.Validate(); err != nil {
		return err
	}
	if ref.IsRoot() {
		return key.Invalid("purpose", "", "it is empty")
	}
	return checkGenerator(generator)
}

// named is a raw key, or else what is known of its name, with the root key.
type named struct {
	family
	made bool       // whether there is a key: family.Data[0]
	name store.Name // if there is none; with the sequence number 0 if nothing is known
}

// keyOrName reads ref's key if it is there, and its name if it is not. [ErrRemoved], with all that is known, if it was
// removed.
func (r reader) keyOrName(ctx context.Context, ref Ref) (named, error) {
	fam, err := r.key(ctx, ref)
	switch {
	case err == nil:
		return named{family: fam, made: true}, r.isRaw(&fam.Data[0])
	case !errors.Is(err, ErrNotFound) || fam.Root.ID == "":
		return named{}, err
	}
	n, err := r.nameOf(ctx, ref)
	if err == nil && n.name.Removed {
		err = fmt.Errorf("%v: %w", ref, ErrRemoved)
	}
	return n, err
}

// nameOf reads what is known of a name, and checks it. In a rekey it may be under another installation key than the
// keys of the scope.
func (r reader) nameOf(ctx context.Context, ref Ref) (named, error) {
	for known := false; ; known = true {
		n := named{}
		var err error
		n.family, err = r.read(ctx, func(ctx context.Context) (fam store.Family, err error) {
			fam, n.name, err = r.q.Name(ctx, ref)
			return fam, err
		})
		switch {
		case err != nil:
			return named{}, err
		case n.Root.Scope != ref.Scope:
			return named{}, tampered(&n.Root, "it was read for another scope")
		case n.name.Seq == 0:
			return n, nil
		case !known && !r.m.ring.has(n.name.IKKID):
			if err := r.adopt(ctx, [][]byte{n.name.IKKID}); err != nil {
				return named{}, err
			}
			continue
		}
		return n, r.m.verifyName(&n.name, n.Root.ID, ref)
	}
}

// isRaw is nil if a key is one of raw bytes.
func (reader) isRaw(k *store.Key) error {
	if head, _ := headOf(k); head.Alg != key.Raw {
		return fmt.Errorf("%s is of alg %v: %w", describe(k), head.Alg, ErrPurpose)
	}
	return nil
}

func (n *named) sameGenerator(ref Ref, generator string) error {
	has := n.name.Generator
	if n.made {
		has = n.Data[0].Generator
	}
	if has != generator {
		return fmt.Errorf("%v is registered with the generator %q, not %q: %w", ref, shownGenerator(has), shownGenerator(generator), ErrExists)
	}
	return nil
}

func nameManifest(inst [16]byte, n *store.Name) []byte {
	return envelope.NameManifest{
		Inst: inst, RootKeyID: n.RootKeyID, Purpose: n.Purpose, Seq: n.Seq, Generator: n.Generator, Last: n.Last, Removed: n.Removed,
	}.Append(nil)
}

// signName sets the MAC of what is known of a name, and the installation key that it is under.
func (m *Manager) signName(n *store.Name) {
	kid, mac := m.ring.sign(nameManifest(m.ring.inst, n))
	n.IKKID, n.MAC = kid[:], mac[:]
}

func (m *Manager) verifyName(n *store.Name, root key.ID, ref Ref) error {
	subject := func(reason string) error {
		return &IntegrityError{Subject: fmt.Sprintf("what is known of the name %q of scope %q", ref.Purpose, ref.Scope), Reason: reason}
	}
	switch {
	case n.RootKeyID != root || n.Purpose != ref.Purpose:
		return subject("it was read for another name")
	case !m.nameFits(n):
		return subject("its MAC does not fit")
	}
	return nil
}

func (m *Manager) nameFits(n *store.Name) bool {
	return m.ring.verify(n.IKKID, nameManifest(m.ring.inst, n), n.MAC)
}

// MakeRaw makes ref's key, with its first version, and says whether it did: not where it is there, however many call it
// at once. A registered name has its generator already, and how.Generator does not count; another one is registered
// with that.
//
// It takes three round trips, four where the name was not registered, one where the key is there, and calls the
// generator. Errors: an [*InvalidError] for a malformed name, and for a key of a length that cannot be; [ErrGenerator];
// [ErrNotFound] for an unknown scope; [ErrRemoved]; [ErrPurpose] if the key that is there is not a raw one;
// [ErrOldRoot]; [ErrRolledBack]; [*IntegrityError]; [ErrUnavailable]; [ErrUnknownOutcome]; those of the generator.
func (m *Manager) MakeRaw(ctx context.Context, ref Ref, how RawKey) (made bool, err error) {
	if err := m.checkRaw(ref, how.Generator); err != nil {
		return false, err
	}
	policy, err := how.Policy.check(key.DEK, key.Raw)
	if err != nil {
		return false, err
	}
	policy.Generator = storedGenerator(how.Generator)
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return false, err
	}
	defer end()
	ctx, sp := m.telemetry.span(ctx, "keyhold.make_raw")
	defer func() { sp.end(err) }()
	r := m.committed()
	var next madeKey
	var by string // which generator made it
	defer func() { next.drop() }()
	for {
		fam, err := r.keyOrName(ctx, ref)
		if err != nil {
			return false, r.known(err)
		}
		if fam.made {
			return next.Key != nil && fam.Data[0].Versions[0].ID == next.ID(), nil
		}
		if err := errors.Join(r.mayRotate(ctx, &fam.family), fam.notOlder()); err != nil {
			return false, r.known(err)
		}
		if fam.name.Seq > 0 {
			policy.Generator = fam.name.Generator
		}
		if next.of != fam.Root.ID || by != policy.Generator {
			next.drop()
			if next.Key, err = m.generate(ctx, m.rawIdentity(fam.Root.ID, ref), policy.Generator); err != nil {
				return false, r.known(fmt.Errorf("make %v: %w", ref, err))
			}
			next.of, by = fam.Root.ID, policy.Generator
		}
		if fam.name.Seq == 0 { // so that nobody registers it with another one meanwhile
			err = r.register(ctx, &fam, ref, policy.Generator)
		}
		if err == nil {
			err = r.createRaw(ctx, &fam, ref, policy, next.Key)
		}
		if err == nil {
			return true, nil
		}
		if err := again(ctx, &r, err); err != nil {
			return false, fmt.Errorf("make %v: %w", ref, err)
		}
	}
}

func (m *Manager) rawIdentity(root key.ID, ref Ref) seal.Identity {
	return seal.Identity{Kind: key.DEK, Inst: m.ring.inst, RootKeyID: root, Purpose: ref.Purpose, Alg: key.Raw}
}

// createRaw stores a raw key that is not there, with a version of the given key, after those that the name has had.
func (r reader) createRaw(ctx context.Context, fam *named, ref Ref, policy store.Manifest, first *seal.Key) error {
	row, err := r.rawRow(fam, ref, policy, first)
	if err != nil {
		return err
	}
	n, err := r.q.Create(ctx, r.inst(), []store.Key{row})
	if err == nil && n == 0 {
		err = store.ErrConflict // somebody else made it
	}
	return err
}

func (r reader) rawRow(fam *named, ref Ref, policy store.Manifest, first *seal.Key) (store.Key, error) {
	if fam.name.Last >= key.MaxVersion {
		return store.Key{}, key.Invalid("version", fmt.Sprint(fam.name.Last+1), fmt.Sprintf("a name has at most %d versions", key.MaxVersion))
	}
	id, err := seal.RandomID(key.PrefixDataKey)
	if err != nil {
		return store.Key{}, err
	}
	head, _ := headOf(&fam.Root)
	parent, err := r.parent(&fam.Family, head.ID)
	if err != nil {
		return store.Key{}, err
	}
	defer parent.Close()
	v, err := newVersion(first, parent, head.ID, fam.name.Last+1, fam.Now)
	if err != nil {
		return store.Key{}, err
	}
	v.State = key.Active
	k := store.Key{ID: id, Kind: key.DEK, RootKeyID: fam.Root.ID, Purpose: ref.Purpose, Versions: []store.Version{v}, Manifest: policy}
	k.Tombstones = missing(1, fam.name.Last)
	k.Seq, k.Head = 1, v.Number
	k.RotateAt = due(&k)
	return k, r.m.sign(&k)
}

// missing is tombstones of the numbers from first to last, which no version of this key has.
func missing(first, last key.Version) (dead []store.Tombstone) {
	for n := first; n <= last; n++ {
		dead = append(dead, store.Tombstone{Number: n, Alg: key.Raw, Commit: make([]byte, 32)})
	}
	return dead
}

// RawKeys lists the raw keys of a scope, and the names that are registered and have no key yet, by name. A scope that
// is not there has none. It reads them in pages, so that one that is made or removed meanwhile may be among them or
// not. After an error, which comes with a zero RawInfo, it ends.
func (m *Manager) RawKeys(ctx context.Context, scope Scope) iter.Seq2[RawInfo, error] {
	const page = 1000
	return func(yield func(RawInfo, error) bool) {
		var after Purpose
		for {
			var list []store.Named
			err := m.step(ctx, func(ctx context.Context) (err error) {
				list, err = m.store.Named(ctx, scope, after, page)
				return err
			})
			if err != nil {
				yield(RawInfo{}, err)
				return
			}
			for _, n := range list {
				if !yield(RawInfo{n.Purpose, shownGenerator(n.Generator), n.Head, time.Duration(n.RotateEvery) * time.Second}, nil) {
					return
				}
			}
			if len(list) < page {
				return
			}
			after = list[len(list)-1].Purpose
		}
	}
}

// RawInfo describes ref's key, which is checked, or its registered name. It takes one round trip, two where there is no
// key. Errors: [*InvalidError]; [ErrNotFound], also for a name that was never registered; [ErrRemoved]; [ErrPurpose];
// [*IntegrityError]; [ErrUnavailable].
func (m *Manager) RawInfo(ctx context.Context, ref Ref) (RawInfo, error) {
	if err := m.checkRaw(ref, ""); err != nil {
		return RawInfo{}, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return RawInfo{}, err
	}
	defer end()
	fam, err := m.committed().keyOrName(ctx, ref)
	switch {
	case err != nil:
		return RawInfo{}, err
	case fam.made:
		k := &fam.Data[0]
		return RawInfo{ref.Purpose, shownGenerator(k.Generator), k.Head, time.Duration(k.RotateEvery) * time.Second}, nil
	case fam.name.Seq == 0:
		return RawInfo{}, fmt.Errorf("purpose %q of scope %q: %w", ref.Purpose, ref.Scope, ErrNotFound)
	}
	return RawInfo{Name: ref.Purpose, Generator: shownGenerator(fam.name.Generator)}, nil
}

// RemoveRaw deletes ref's raw key with all its versions, for ever, and with it whatever the application sealed with
// them, or takes back that its name was registered. What is left is tombstones, and the number of the last version,
// after which a new key of that name counts on, once it is registered again. Copies that processes have in use last for
// 7 s, and those that the application has for as long as it keeps them. A purpose of [Config.RawPurposes] cannot be
// removed by a process that has it configured.
//
// It takes two round trips to read and those that the deletion takes, up to four. Errors: [*InvalidError];
// [ErrNotFound], with [ErrRemoved] if it was removed before; an
// [*InUseError] if a row of the application's has the id of a version; [ErrState] for a configured purpose;
// [ErrPurpose]; [ErrOldRoot]; [ErrRolledBack]; [*IntegrityError]; [ErrUnavailable]; [ErrUnknownOutcome].
func (m *Manager) RemoveRaw(ctx context.Context, ref Ref) error {
	if err := m.checkRaw(ref, ""); err != nil {
		return err
	}
	if slices.ContainsFunc(m.purposes, func(p purposeOf) bool { return p.purpose == ref.Purpose }) {
		return fmt.Errorf("remove %v: %w: it is one of the purposes of Config, which every scope has", ref, ErrState)
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r := m.committed()
	var tried removal
	for unsure := false; ; {
		next, err := r.removal(ctx, ref)
		if unsure && (errors.Is(err, ErrRemoved) || errors.Is(err, ErrNotFound) || err == nil && next.after(&tried)) {
			return nil // it was done
		}
		if err == nil {
			tried = next
			err = r.remove(ctx, &tried)
		}
		if err == nil {
			return nil
		}
		unsure = unsure || errors.Is(err, store.ErrUnknownOutcome)
		if err := again(ctx, &r, err); err != nil {
			return fmt.Errorf("remove %v: %w", ref, err)
		}
	}
}

// removal is what is stored to remove a key, or a registered name.
type removal struct {
	key  *store.Key // nil if there is none
	from uint64     // the sequence number of the name
	name store.Name
}

// after says whether d would remove what came into being when t was done. A rekey raises the number of a name by one.
func (d *removal) after(t *removal) bool {
	if t.key != nil {
		return d.key == nil || d.key.ID != t.key.ID
	}
	return d.from > t.name.Seq
}

func (r reader) removal(ctx context.Context, ref Ref) (removal, error) {
	fam, err := r.keyOrName(ctx, ref)
	switch {
	case err != nil:
		return removal{}, err
	case !fam.made && fam.name.Seq == 0:
		return removal{}, fmt.Errorf("purpose %q of scope %q: %w", ref.Purpose, ref.Scope, ErrNotFound)
	}
	if err := errors.Join(r.mayRotate(ctx, &fam.family), fam.notOlder()); err != nil {
		return removal{}, err
	}
	d := removal{name: fam.name}
	if fam.made {
		known, err := r.nameOf(ctx, ref)
		switch {
		case err != nil:
			return removal{}, err
		case known.Root.ID != fam.Root.ID:
			return removal{}, store.ErrConflict // the scope was made anew just now
		}
		d.key, d.name = &fam.Data[0], known.name
		d.name.Generator, d.name.Last = d.key.Generator, max(d.name.Last, newestNumber(d.key))
	}
	d.from = d.name.Seq
	d.name.RootKeyID, d.name.Purpose, d.name.Removed = fam.Root.ID, ref.Purpose, true
	d.name.Seq++
	r.m.signName(&d.name)
	return d, nil
}

func (r reader) remove(ctx context.Context, d *removal) error {
	if d.key == nil {
		return r.m.store.PutName(ctx, r.inst(), d.from, d.name)
	}
	err := r.m.store.RemoveKey(ctx, r.inst(), d.key.ID, d.key.Seq, d.from, d.name)
	if mayHaveChanged(err) {
		r.m.changedKey(d.key)
	}
	return err
}

// moveNames makes what is known of names under the newest installation key, in a rekey.
func (m *Manager) moveNames(ctx context.Context, kid key.KID) error {
	for stuck := false; ; {
		var names []store.Name
		err := m.step(ctx, func(ctx context.Context) (err error) {
			names, err = m.store.NamesNotUnder(ctx, kid, lagPage)
			return err
		})
		if err != nil || len(names) == 0 {
			return err
		}
		moved := 0
		for i := range names {
			switch err = m.moveName(ctx, names[i]); {
			case err == nil:
				moved++
			case !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknownOutcome) || ctx.Err() != nil:
				return err
			}
		}
		// Of somebody who changes them at the same time the next look shows more; of a row that breaks a rule, none
		// does.
		if stuck && moved == 0 {
			return fmt.Errorf("name %q under %s: %w", names[0].Purpose, names[0].RootKeyID, err)
		}
		stuck = moved == 0
	}
}

func (m *Manager) moveName(ctx context.Context, n store.Name) error {
	if !m.nameFits(&n) {
		return &IntegrityError{Subject: fmt.Sprintf("what is known of the name %q under %s", n.Purpose, n.RootKeyID), Reason: "its MAC does not fit"}
	}
	from := n.Seq
	n.Seq++
	m.signName(&n)
	return m.step(ctx, func(ctx context.Context) error { return m.store.PutName(ctx, m.ring.inst, from, n) })
}

// missingRaw makes a raw key that a scope has to have and lacks.
func (r reader) missingRaw(ctx context.Context, ref Ref, policy store.Manifest) (store.Key, error) {
	fam, err := r.keyOrName(ctx, ref)
	switch {
	case err != nil:
		return store.Key{}, err
	case fam.made:
		return store.Key{}, store.ErrConflict // by somebody else, just now
	}
	policy.Generator = fam.name.Generator
	next, err := r.m.generate(ctx, r.m.rawIdentity(fam.Root.ID, ref), policy.Generator)
	if err != nil {
		return store.Key{}, err
	}
	defer next.Close()
	return r.rawRow(&fam, ref, policy, next)
}
