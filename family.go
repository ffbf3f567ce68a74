package keyhold

import (
	"context"
	"errors"
	"fmt"
	"math"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// A family whose manifests were checked is what everything else works with: docs/format.md, section 7. From here on its
// states, numbers, ids and policies are those that keyhold wrote. The wrapped keys in it are checked when they are
// unwrapped.

// reader reads keys from the store or through the caller's transaction.
type reader struct {
	m     *Manager
	q     store.Queries
	tx    bool // inside the caller's transaction
	use   use
	under *store.Lease // what is written is written under it, unless it is nil
	makes bool         // what is not there, so that it is not asked for in vain
	keeps bool         // data keys that it reads, and uses them again while their epochs are the same

	unanswered
}

// unanswered is whether a write of a call is so, so that it is unknown what was done.
type unanswered struct{ unknown bool }

// known is what is known of a call that ends with err: where it could not read again after a commit that was not
// answered, it does not say that nothing was done.
func (u *unanswered) known(err error) error {
	ended := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
	if !u.unknown || !ended && !errors.Is(err, store.ErrUnavailable) {
		return err
	}
	return &wordedError{store.ErrUnknownOutcome.Error() + ": " + err.Error(), []error{store.ErrUnknownOutcome}}
}

func (m *Manager) committed() reader         { return reader{m: m, q: m.store} }
func (m *Manager) inside(tx store.Tx) reader { return reader{m: m, q: tx.Queries, tx: true} }
func (r reader) inst() [16]byte              { return r.m.ring.inst }

// family is a store.Family that was checked. Its data keys carry the scope of their root key too.
type family struct {
	store.Family
	older bool  // a key of it is older than this process has seen it
	roots error // why it is not known which root is the active one; nil if it is
}

// key reads the root key of ref's scope and ref's data key, if ref names one: then Data has just that. [ErrNotFound] if
// either is not there.
func (r reader) key(ctx context.Context, ref key.Ref) (family, error) {
	if err := ref.Validate(); err != nil {
		return family{}, err
	}
	fam, err := r.read(ctx, func(ctx context.Context) (store.Family, error) { return r.q.Key(ctx, ref) })
	return keyIn(fam, ref, err)
}

// keyIn is a family that was read for ref, if it is ref's.
func keyIn(fam family, ref key.Ref, err error) (family, error) {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fam, fmt.Errorf("scope %q: %w", ref.Scope, store.ErrNotFound)
	case err != nil:
		return fam, err
	case fam.Root.Scope != ref.Scope:
		return fam, tampered(&fam.Root, "it was read for another scope")
	case !ref.IsRoot() && len(fam.Data) == 0:
		return fam, fmt.Errorf("purpose %q of scope %q: %w", ref.Purpose, ref.Scope, store.ErrNotFound)
	case !ref.IsRoot() && fam.Data[0].Purpose != ref.Purpose:
		return fam, tampered(&fam.Data[0], "it was read for another purpose")
	}
	return fam, nil
}

// scope reads all keys of a scope.
func (r reader) scope(ctx context.Context, scope key.Scope) (family, error) {
	if err := scope.Validate(); err != nil {
		return family{}, err
	}
	fam, err := r.read(ctx, func(ctx context.Context) (store.Family, error) { return r.q.Scope(ctx, scope) })
	switch {
	case errors.Is(err, store.ErrNotFound):
		return fam, fmt.Errorf("scope %q: %w", scope, store.ErrNotFound)
	case err != nil:
		return fam, err
	case fam.Root.Scope != scope:
		return fam, tampered(&fam.Root, "it was read for another scope")
	}
	return fam, nil
}

// keyOfVersion reads the data key that has the version with the given id.
func (r reader) keyOfVersion(ctx context.Context, id key.ID) (family, error) {
	fam, err := r.read(ctx, func(ctx context.Context) (store.Family, error) { return r.q.KeyOfVersion(ctx, id) })
	if errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("key version %s: %w", id, store.ErrNotFound)
	}
	return fam, err
}

// read asks the database for a family, and checks it.
func (r reader) read(ctx context.Context, ask func(context.Context) (store.Family, error)) (family, error) {
	ctx, sp := r.m.telemetry.span(ctx, "keyhold.read")
	fam, err := r.verified(ctx, func() (store.Family, error) { return ask(ctx) })
	sp.family(&fam, err)
	sp.end(err)
	return fam, err
}

// verified reads a family and checks it. What does not fit is read once more before it is an error: the reader may have
// met a slow writer's transaction on a database that shows parts of it. So is what is older than what was seen, as
// another goroutine may have seen a newer state while this one waited for its answer; the second answer is compared
// with what had been seen before it was asked for, so that what is older then was rolled back.
//
// Inside a transaction of the application's nothing is compared or remembered: it may rightly see an older snapshot,
// and what it writes may never be committed.
func (r reader) verified(ctx context.Context, read func() (store.Family, error)) (family, error) {
	fam, err := r.named(read())
	if err != nil {
		return fam, err
	}
	if err := r.follow(ctx, &fam); err != nil {
		return fam, err
	}
	seen := r.seen(&fam)
	if r.verify(&fam) == nil && !isOlder(&fam, seen) {
		r.saw(&fam)
		return fam, nil
	}
	if fam, err = r.named(read()); err != nil {
		return fam, err
	}
	if err := r.follow(ctx, &fam); err != nil {
		return fam, err
	}
	if err := r.verify(&fam); err != nil {
		return fam, err
	}
	fam.older = isOlder(&fam, seen)
	r.saw(&fam)
	return fam, nil
}

// named gives the data keys of what was read the name of their scope, for people.
func (reader) named(read store.Family, err error) (family, error) {
	for i := range read.Data {
		read.Data[i].Scope = read.Root.Scope
	}
	return family{Family: read}, err
}

// allKeys is all keys of a family, the root key first.
func allKeys(fam *store.Family) []*store.Key {
	all := []*store.Key{&fam.Root}
	for i := range fam.Data {
		all = append(all, &fam.Data[i])
	}
	return all
}

// seen is the highest sequence number that this process has seen of each key of the family.
func (r reader) seen(fam *family) map[key.ID]uint64 {
	if r.tx {
		return nil
	}
	seen := make(map[key.ID]uint64, 1+len(fam.Data))
	for _, k := range allKeys(&fam.Family) {
		seen[k.ID] = r.m.cache.sequence(k.ID)
	}
	return seen
}

func (r reader) saw(fam *family) {
	if r.tx {
		return
	}
	for _, k := range allKeys(&fam.Family) {
		r.m.cache.saw(k.ID, k.Seq)
	}
}

func isOlder(fam *family, seen map[key.ID]uint64) bool {
	for _, k := range allKeys(&fam.Family) {
		if k.Seq < seen[k.ID] {
			return true
		}
	}
	return false
}

func (r reader) verify(fam *family) error {
	for _, k := range allKeys(&fam.Family) {
		if k.Kind == key.DEK && k.RootKeyID != fam.Root.ID {
			return tampered(k, "it belongs to another root key")
		}
		if err := r.m.verifyKey(k); err != nil {
			return err
		}
	}
	return nil
}

// notOlder is what everything that seals with a key or changes it asks first.
func (fam *family) notOlder() error {
	if fam.older {
		return fmt.Errorf("scope %q: %w", fam.Root.Scope, ErrRolledBack)
	}
	return nil
}

// timely opens the newest version of a key, since only that shows that its time is right, and with it when the key is
// due: the manifest does not have it.
func (r reader) timely(fam *store.Family, k *store.Key) error {
	o, err := r.open(fam, k, &k.Versions[len(k.Versions)-1])
	o.release()
	return err
}

// stillOurs is for a caller whose change was not made: if the installation is another one now, trying again is no use;
// if it has another installation key, that is known afterwards.
func (r reader) stillOurs(ctx context.Context) error {
	return r.adopt(ctx, nil)
}

func replaced() error {
	return &IntegrityError{Subject: "the installation", Reason: "it was replaced by another, or is gone"}
}

// verifyKey checks everything about a key but its wrapped keys.
func (m *Manager) verifyKey(k *store.Key) error {
	manifest, err := m.manifestOf(k)
	if err != nil {
		return err
	}
	if !m.ring.has(k.IKKID) {
		return tampered(k, "its manifest is under another installation key")
	}
	if !m.ring.verify(k.IKKID, manifest.Append(nil), k.MAC) {
		reason := "its manifest does not fit"
		if k.Kind == key.KEK {
			reason += `; if the application renamed the scope, confirm that with "keyhold scope rename" or Manager.RenameScope`
		}
		return tampered(k, reason)
	}
	// What the manifest vouches for was consistent when it was written; these catch a writer's mistake before it does
	// harm.
	newest := newestCreated(k)
	switch head, ok := headOf(k); {
	case !ok || head.State != key.Active:
		return tampered(k, "its head is not an active version")
	case k.RotateEvery == 0 && k.RotateAt != 0:
		return tampered(k, "it is due at a time although it is never to be rotated")
	case k.RotateEvery > 0 && (k.RotateAt <= 0 || k.RotateEvery > math.MaxInt64 || k.RotateAt-newest > int64(k.RotateEvery)):
		return tampered(k, "its next rotation was put off")
	}
	return nil
}

// manifestOf puts together what the rows say, as it is authenticated. It fails if they cannot be what keyhold wrote.
func (m *Manager) manifestOf(k *store.Key) (envelope.Manifest, error) {
	manifest := envelope.Manifest{
		Inst: m.ring.inst, Kind: k.Kind, KeyID: k.ID, Purpose: k.Purpose, Seq: k.Seq, Head: k.Head,
		Policy: envelope.Policy{RotateEvery: k.RotateEvery, MaxMessages: k.MaxMessages, Generator: k.Generator},
	}
	switch k.Kind {
	case key.KEK:
		manifest.Owner = string(k.Scope)
	case key.DEK:
		manifest.Owner = string(k.RootKeyID)
	default:
		return envelope.Manifest{}, tampered(k, "it is of an unknown kind")
	}

	live, dead := k.Versions, k.Tombstones
	for n := key.Version(1); len(live) > 0 || len(dead) > 0; n++ {
		var v envelope.ManifestVersion
		var commit []byte
		switch {
		case len(live) > 0 && live[0].Number == n:
			v = envelope.ManifestVersion{Version: n, State: live[0].State, Alg: live[0].Alg, ID: live[0].ID}
			commit, live = live[0].Commit, live[1:]
		case len(dead) > 0 && dead[0].Number == n:
			v = envelope.ManifestVersion{Version: n, State: key.Destroyed, Alg: dead[0].Alg, ID: dead[0].ID}
			commit, dead = dead[0].Commit, dead[1:]
		default:
			return envelope.Manifest{}, tampered(k, fmt.Sprintf("version %d is missing", n))
		}
		if len(commit) != len(v.Commit) {
			return envelope.Manifest{}, tampered(k, fmt.Sprintf("the commitment of version %d has %d bytes", n, len(commit)))
		}
		v.Commit = [32]byte(commit)
		if v.State != key.Destroyed && v.Alg != key.Imported && v.ID != key.VersionID(k.Kind, key.KID(commit[:16])) {
			return envelope.Manifest{}, tampered(k, fmt.Sprintf("the id of version %d is not that of its key", n))
		}
		manifest.Versions = append(manifest.Versions, v)
	}
	return manifest, nil
}

func tampered(k *store.Key, reason string) error {
	return &IntegrityError{Subject: describe(k), ID: k.ID, Reason: reason}
}

// describe names a key for people.
func describe(k *store.Key) string {
	if k.Kind == key.KEK {
		return fmt.Sprintf("root key of scope %q", k.Scope)
	}
	if k.Scope == "" {
		return fmt.Sprintf("data key %q of %s", k.Purpose, k.RootKeyID)
	}
	return fmt.Sprintf("data key %q of scope %q", k.Purpose, k.Scope)
}

// headOf returns the version that the key's row names as its head.
func headOf(k *store.Key) (*store.Version, bool) { return versionOf(k, k.Head) }

func versionOf(k *store.Key, n key.Version) (*store.Version, bool) {
	for i := range k.Versions {
		if k.Versions[i].Number == n {
			return &k.Versions[i], true
		}
	}
	return nil, false
}

func versionByID(k *store.Key, id key.ID) (*store.Version, bool) {
	for i := range k.Versions {
		if k.Versions[i].ID == id {
			return &k.Versions[i], true
		}
	}
	return nil, false
}

// newestCreated is when the newest version that is left was made.
func newestCreated(k *store.Key) int64 {
	if len(k.Versions) == 0 {
		return 0
	}
	return k.Versions[len(k.Versions)-1].Created
}
