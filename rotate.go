package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Rotating a key is two transactions: one adds the next version, pending, one makes it the head. Between them it was
// read back, committed, so that nothing seals with a version that is not durably there. The unique (key, number) and
// the sequence number of the manifest decide every race; whoever finds another's pending version makes it the head, so
// that a process that died in between holds up nobody.

// Rotate adds a version to ref's key, or to the root key of its scope if the purpose is empty, and makes it the head,
// which seals from now on. It returns its number. Earlier versions go on opening. Rotating a root key does not touch
// its data keys; [Manager.Rewrap] does.
//
// Every call adds a version, however many race. After an error the version may have been added or not, and may be
// pending; the next rotation ends what was begun. It takes four round trips where nobody interferes. Errors:
// [ErrNotFound], [ErrOldRoot], [ErrRolledBack], [*IntegrityError], [ErrUnavailable], [ErrUnknownOutcome].
func (m *Manager) Rotate(ctx context.Context, ref key.Ref) (key.Version, error) {
	return m.rotate(ctx, m.committed, ref, 0)
}

// RotateTx is [Manager.Rotate] inside the application's transaction: the new version is there, and the head, when that
// is committed. Until then, only calls inside that transaction seal with it; afterwards every other process does 5 s
// later, as after any rotation. After [ErrUnavailable] and [ErrUnknownOutcome] it has to be rolled back.
//
// Until that transaction ends, others wait who change keys of the same scope, or make missing ones there and, with
// [Manager.Reconcile], in others at the same time. On PostgreSQL, where the tenant may be deleted meanwhile, it locks
// the tenant's row before it rotates (SELECT ... FOR KEY SHARE), as the deletion does: otherwise the two may wait for
// each other, and PostgreSQL gives one up.
func (m *Manager) RotateTx(ctx context.Context, tx store.Tx, ref key.Ref) (key.Version, error) {
	return m.rotate(ctx, func() reader { return m.inside(tx) }, ref, 0)
}

// RotateIf rotates as [Manager.Rotate] does, but only if head is still the head of ref's key. It returns the number of
// the head there is afterwards. Of any number of callers with the same head, one adds a version, and all return its
// number.
func (m *Manager) RotateIf(ctx context.Context, ref key.Ref, head key.Version) (key.Version, error) {
	if head == 0 || head > key.MaxVersion {
		return 0, key.Invalid("version", fmt.Sprint(head), "it has to be the number of a head")
	}
	return m.rotate(ctx, m.committed, ref, head)
}

func (m *Manager) rotate(
	ctx context.Context, read func() reader, ref key.Ref, onlyAfter key.Version,
) (head key.Version, err error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	ctx, sp := m.telemetry.span(ctx, "keyhold.rotate")
	defer func() { sp.end(err) }()

	r := read()
	r.use = seals
	var next madeKey // the version that this call adds, once it is made
	defer func() { next.drop() }()
	for {
		fam, k, err := r.forRotation(ctx, ref)
		read := m.epochs.begun.Load()
		if err != nil {
			return 0, r.known(err)
		}
		sp.key(k, newestNumber(k))
		if onlyAfter != 0 && k.Head != onlyAfter {
			return k.Head, nil
		}
		if k.ID != next.of { // not made yet, or the name's key is another one by now
			next.drop()
		}
		newest := &k.Versions[len(k.Versions)-1]
		switch mine := ownVersion(k, next.Key); {
		case mine != nil && mine.State != key.Pending:
			return mine.Number, nil
		case newest.State == key.Pending:
			if err = r.durable(ctx, newest.ID, read); err == nil {
				err = r.activate(ctx, k, newest)
			}
			if err == nil && (onlyAfter != 0 || mine != nil) {
				return newest.Number, nil
			}
		default:
			if next.Key == nil {
				if next.Key, err = m.nextKey(ctx, fam, k); err != nil {
					return 0, fmt.Errorf("rotate %v: %w", ref, err)
				}
				next.of = k.ID
			}
			err = r.addPending(ctx, fam, k, next.Key)
		}
		if err := again(ctx, &r, err); err != nil {
			return 0, fmt.Errorf("rotate %v: %w", ref, err)
		}
	}
}

// madeKey is a key that was made to become a version of another; nil if none was yet.
type madeKey struct {
	*seal.Key
	of key.ID
}

func (k *madeKey) drop() {
	if k.Key != nil {
		k.Close()
	}
	*k = madeKey{}
}

// again says whether to read again what is in the database and decide anew, as somebody else was first or it is unknown
// what was done: then it returns nil. Otherwise it says why not. What is unknown inside a transaction of the
// application's is for the application to decide: it has to roll back.
func again(ctx context.Context, r *reader, err error) error {
	switch {
	case errors.Is(err, store.ErrConflict) && r.under != nil:
		return err // the lease may be somebody else's by now
	case errors.Is(err, store.ErrConflict):
		err = r.stillOurs(ctx)
	case errors.Is(err, store.ErrUnknownOutcome) && !r.tx:
		r.unknown = true
		err = nil
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return r.known(err)
}

// forChange reads ref's key to change it, with its family. A key that was rolled back is not changed: that would hide
// what happened.
func (r reader) forChange(ctx context.Context, ref key.Ref) (*store.Family, *store.Key, error) {
	fam, err := r.key(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	return fam.forChange(ref)
}

// forRotation is forChange for what only a process with the active root does.
func (r reader) forRotation(ctx context.Context, ref key.Ref) (*store.Family, *store.Key, error) {
	fam, err := r.key(ctx, ref)
	return r.rotatable(ctx, fam, ref, err)
}

func (r reader) rotatable(ctx context.Context, fam family, ref key.Ref, err error) (*store.Family, *store.Key, error) {
	if err == nil {
		err = r.mayRotate(ctx, &fam)
	}
	if err != nil {
		return nil, nil, err
	}
	return fam.forChange(ref)
}

func (fam *family) forChange(ref key.Ref) (*store.Family, *store.Key, error) {
	if err := fam.notOlder(); err != nil {
		return nil, nil, err
	}
	if ref.IsRoot() {
		return &fam.Family, &fam.Root, nil
	}
	return &fam.Family, &fam.Data[0], nil
}

// nextKey makes the key of the next version, for the same use as the head's.
func (m *Manager) nextKey(ctx context.Context, fam *store.Family, k *store.Key) (*seal.Key, error) {
	head, _ := headOf(k)
	alg := head.Alg
	if alg == key.Imported {
		alg = key.Message
	}
	id := seal.Identity{Kind: k.Kind, Inst: m.ring.inst, RootKeyID: fam.Root.ID, Purpose: k.Purpose, Alg: alg}
	if alg == key.Raw {
		return m.generate(ctx, id, k.Generator)
	}
	return seal.Generate(id)
}

// ownVersion returns the version of k that next became, or nil.
func ownVersion(k *store.Key, next *seal.Key) *store.Version {
	if next == nil {
		return nil
	}
	v, ok := versionByID(k, next.ID())
	if !ok {
		return nil
	}
	return v
}

// addPending adds next as the version after k's newest.
func (r reader) addPending(ctx context.Context, fam *store.Family, k *store.Key, next *seal.Key) error {
	c, err := r.adding(fam, k, next)
	if err != nil {
		return err
	}
	return r.make(ctx, c)
}

// activate makes the pending version v the head of k.
func (r reader) activate(ctx context.Context, k *store.Key, v *store.Version) error {
	c, err := r.activating(k, v)
	if err == nil {
		err = r.make(ctx, c)
	}
	if err == nil && !r.tx {
		r.m.telemetry.rotated(ctx, k.Purpose, nil)
	}
	return err
}

// keyChange is what makes a key, as it was read, into another.
type keyChange struct {
	from, to *store.Key
	update   store.Update
}

// adding is the change that adds next as the version after k's newest. From then on the key is due again as the policy
// says, counted from now.
func (r reader) adding(fam *store.Family, k *store.Key, next *seal.Key) (keyChange, error) {
	n := newestNumber(k) + 1
	if n > key.MaxVersion {
		return keyChange{}, key.Invalid("version", fmt.Sprint(n), fmt.Sprintf("a key has at most %d versions", key.MaxVersion))
	}
	parent, parentID := r.m.ring.parent(), key.ID("")
	if k.Kind == key.DEK {
		rootHead, _ := headOf(&fam.Root)
		var err error
		if parent, err = r.parent(fam, rootHead.ID); err != nil {
			return keyChange{}, err
		}
		defer parent.Close()
		parentID = rootHead.ID
	}
	v, err := newVersion(next, parent, parentID, n, fam.Now)
	if err != nil {
		return keyChange{}, err
	}
	changed := *k
	changed.Versions = append(append([]store.Version(nil), k.Versions...), v)
	return r.change(k, &changed, store.Update{Add: &v})
}

// activating is the change that makes the pending version v the head of k.
func (r reader) activating(k *store.Key, v *store.Version) (keyChange, error) {
	changed := *k
	changed.Versions = append([]store.Version(nil), k.Versions...)
	changed.Head = v.Number
	for i := range changed.Versions {
		switch changed.Versions[i].Number {
		case k.Head:
			changed.Versions[i].State = key.Retired
		case v.Number:
			changed.Versions[i].State = key.Active
		}
	}
	return r.change(k, &changed, store.Update{States: []store.StateChange{
		{Number: k.Head, From: key.Active, To: key.Retired},
		{Number: v.Number, From: key.Pending, To: key.Active},
	}})
}

// change is what makes k into changed, which gets the next manifest.
func (r reader) change(k, changed *store.Key, u store.Update) (keyChange, error) {
	changed.Seq = max(k.Seq, r.seenSeq(k.ID)) + 1
	changed.RotateAt = due(changed)
	if err := r.m.sign(changed); err != nil {
		return keyChange{}, err
	}
	u.Inst, u.Kind, u.KeyID, u.From = r.inst(), k.Kind, k.ID, k.Seq
	u.Manifest, u.RotateAt, u.Lease = changed.Manifest, changed.RotateAt, r.under
	return keyChange{k, changed, u}, nil
}

// update writes what makes k into changed.
func (r reader) update(ctx context.Context, k, changed *store.Key, u store.Update) error {
	c, err := r.change(k, changed, u)
	if err != nil {
		return err
	}
	return r.make(ctx, c)
}

func (r reader) make(ctx context.Context, c keyChange) (err error) {
	// Inside a transaction it is only what the next call asks: when that is committed, nobody says.
	defer func() {
		if mayHaveChanged(err) {
			r.m.changedKey(c.from)
		}
	}()
	err = r.q.Update(ctx, c.update)
	if err == nil && !r.tx {
		r.m.cache.saw(c.from.ID, c.to.Seq)
	}
	return err
}

// mayHaveChanged says of a write that ended with err whether anything may have been written. What is kept of a key goes
// on where the database is away and nothing was.
func mayHaveChanged(err error) bool {
	return !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome)
}

// seenSeq is the highest sequence number that this process has seen of a key. It is higher than the stored one only
// while what a failover lost is written back.
func (r reader) seenSeq(id key.ID) uint64 {
	if r.tx {
		return 0
	}
	return r.m.cache.sequence(id)
}

// newestNumber is the highest number that k has used.
func newestNumber(k *store.Key) key.Version {
	newest := k.Versions[len(k.Versions)-1].Number
	if len(k.Tombstones) > 0 {
		newest = max(newest, k.Tombstones[len(k.Tombstones)-1].Number)
	}
	return newest
}

// rootOf is the id of the root key that k is, or belongs to.
func rootOf(k *store.Key) key.ID {
	if k.Kind == key.KEK {
		return k.ID
	}
	return k.RootKeyID
}
