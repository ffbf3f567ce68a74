package keyhold

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// snapshot is a data key as it was read, with its root key, and epochs that are older than that. Nothing of it changes
// but whether it was used.
type snapshot struct {
	rows   packed
	roots  error       // as of a family
	epochs *reading    // nil if the key was changed here, so that it has to be read again
	read   stamp       // before
	begun  uint64      // and after: how many questions had begun
	ring   uint64      // and before: how often there were other installation keys
	used   atomic.Bool // since it was read
}

// stamp is an instant, in less room.
type stamp struct {
	mono time.Duration
	wall int64 // nanoseconds since 1970
}

func (s stamp) instant() instant { return instant{mono: s.mono, wall: time.Unix(0, s.wall)} }

// keep is the snapshot of a data key that was read, and is not older than what was seen; nobody has used it.
func (fam *family) keep(epochs *reading, read instant, begun, ring uint64) *snapshot {
	return &snapshot{rows: pack(&fam.Family), roots: fam.roots, epochs: epochs, read: stamp{read.mono, read.wall.UnixNano()}, begun: begun, ring: ring}
}

// family is what was read. It belongs to the caller.
func (s *snapshot) family() family { return family{Family: s.rows.family(), roots: s.roots} }

func (s *snapshot) key() key.Ref { return s.rows.ref() }

// hasMore says whether the database has lost something of the snapshot since, as far as now tells.
func (s *snapshot) hasMore(now *family) bool {
	was := s.family()
	return was.hasMore(now)
}

const (
	// defaultSnapshotLife is how long a key is used without being read again, whatever its epoch says, where the
	// database answers: whoever can write to it can hide a change of a key from the epochs. After four fifths of it Run
	// reads a key again that is in use.
	defaultSnapshotLife = 10 * time.Minute

	// refreshAtOnce is how many keys Run reads between two questions, so that a change of many does not become a flood
	// of reads: those that need the others read them.
	refreshAtOnce = 200
)

// valid says whether no key of the snapshot has changed since, as far as the epochs now say. They have to be those of
// before the key was read, and those that it was read with: of a change between the two that a failover lost, the
// former would not tell. Before this process registered, nobody waited for it with what must not seal any more.
func (s *snapshot) valid(now *reading, u use) bool {
	if s.epochs == now {
		return true
	}
	root, data := s.rows.ids()
	return s.epochs != nil && (u == opens || s.epochs.registered == now.registered) &&
		bytes.Equal(s.epochs.Inst, now.Inst) &&
		s.sameBucket(now, root) && s.sameBucket(now, data) && s.rows.epoch() == now.Of(root, data)
}

// toCompare is s as it is kept when it is not to be used before it was read again.
func (s *snapshot) toCompare() *snapshot {
	c := &snapshot{rows: s.rows, roots: s.roots, read: s.read, begun: s.begun}
	c.used.Store(s.used.Load())
	return c
}

// isOf says whether fam is the same state of the same key.
func (s *snapshot) isOf(fam *family) bool {
	root, data := s.rows.ids()
	rootSeq, dataSeq := s.rows.seqs()
	return root == fam.Root.ID && rootSeq == fam.Root.Seq && data == fam.Data[0].ID && dataSeq == fam.Data[0].Seq
}

func (s *snapshot) sameBucket(now *reading, id key.ID) bool {
	b := store.Bucket(id)
	return s.epochs.Keys[b] == now.Keys[b]
}

// hot is a reader that uses again what it has read, unless [Config.Strict] is set.
func (m *Manager) hot(u use) reader {
	r := m.committed()
	r.keeps, r.use = !m.strict, u
	return r
}

// dataKey reads ref's data key, or returns what is kept of it, and says which. A ref that names a root key is refused,
// as root keys are not for data.
func (r reader) dataKey(ctx context.Context, ref key.Ref) (fam family, kept bool, err error) {
	if ref.IsRoot() {
		return family{}, false, key.Invalid("purpose", "", "it is empty")
	}
	if !r.keeps {
		fam, err = r.key(ctx, ref)
		return fam, false, err
	}
	fam, now, err := r.snapshotOf(ctx, ref)
	return fam, now != nil, err
}

// snapshotOf returns ref's data key as it is kept, with the answer that allowed it; or reads it, and returns no answer.
func (r reader) snapshotOf(ctx context.Context, ref key.Ref) (fam family, _ *answer, err error) {
	now, err := r.m.epochs.current(ctx, r.use)
	if err != nil {
		return family{}, nil, err
	}
	s, ok := r.m.cache.snapshot(ref)
	if ok && !s.used.Load() { // a line that is only read stays with every core
		s.used.Store(true)
	}
	ok = ok && s.valid(now.reading, r.use)
	// What names an installation key that is over cannot be opened once more.
	ok = ok && (now.away != nil || s.ring == r.m.ring.changes.Load())
	if ok && (now.away != nil || r.m.epochs.clock().since(s.read.instant()) < r.m.snapshotLife) {
		r.m.telemetry.hits.add()
		fam = s.family()
		return fam, &now, r.durable(ctx, headIDOf(&fam), s.begun)
	}
	r.m.telemetry.misses.add()
	fam, err = r.fill(ctx, ref, now.reading, true)
	switch {
	case err == nil && !fam.older:
		return fam, nil, r.durable(ctx, headIDOf(&fam), r.m.epochs.begun.Load())
	case ok && errors.Is(err, store.ErrUnavailable) && r.m.epochs.clock().since(s.read.instant()) < r.m.epochs.lives[r.use]:
		now.away = err
		fam = s.family()
		return fam, &now, r.durable(ctx, headIDOf(&fam), s.begun)
	}
	return fam, nil, err
}

// fill reads ref's data key and keeps it. Of those who need it at the same time one reads for all who know the same
// epochs.
func (r reader) fill(ctx context.Context, ref key.Ref, now *reading, uses bool) (family, error) {
	var f *filling
	for {
		var mine bool
		if f, mine = r.m.cache.filling(ref, now, f, r.isFresh); mine {
			return r.fillIn(ctx, f, ref, now, uses)
		}
		if fam, ok, err := f.wait(ctx); ok {
			return fam, err
		}
	}
}

// isFresh says whether a snapshot may be used whose epochs are those of now.
func (r reader) isFresh(s *snapshot) bool {
	return s.ring == r.m.ring.changes.Load() && r.m.epochs.clock().since(s.read.instant()) < r.m.snapshotLife
}

func (r reader) fillIn(ctx context.Context, f *filling, ref key.Ref, now *reading, uses bool) (family, error) {
	var s *snapshot
	f.err = context.Canceled // if the store panics, which is no answer for the others
	defer func() { r.m.cache.filled(ref, f, s) }()
	began, ring := r.m.epochs.clock(), r.m.ring.changes.Load()
	f.family, f.err = r.coldKey(ctx, ref)
	if f.err == nil && !f.family.older {
		s = f.family.keep(now, began, r.m.epochs.begun.Load(), ring)
		s.used.Store(uses)
	}
	return f.family, f.err
}

// coldKey reads a key that anybody may have asked for.
func (r reader) coldKey(ctx context.Context, ref key.Ref) (family, error) {
	if r.makes {
		return r.key(ctx, ref)
	}
	if err := r.m.unknownRefs.begin(ctx); err != nil {
		return family{}, err
	}
	inVain := true
	defer func() { r.m.unknownRefs.end(inVain) }()
	fam, err := r.key(ctx, ref)
	inVain = errors.Is(err, store.ErrNotFound)
	return fam, err
}

// coldVersion reads the key of a version that anybody may have asked for.
func (r reader) coldVersion(ctx context.Context, id key.ID) (family, error) {
	if err := r.m.unknownIDs.begin(ctx); err != nil {
		return family{}, err
	}
	inVain := true
	defer func() { r.m.unknownIDs.end(inVain) }()
	fam, err := r.keyOfVersion(ctx, id)
	inVain = errors.Is(err, store.ErrNotFound)
	return fam, err
}

func headIDOf(fam *family) key.ID {
	head, _ := headOf(&fam.Data[0])
	return head.ID
}

// durable returns when the version with the given id, which was read, cannot be lost by a failover, if that matters: a
// commit of this process's own was acknowledged that began when it had been read, which is when so many questions had
// begun. Nothing is to be sealed with it before.
func (r reader) durable(ctx context.Context, id key.ID, begun uint64) error {
	if r.use != seals || r.tx || r.m.isDurable(id, begun) {
		return nil
	}
	if err := r.m.epochs.acknowledged(ctx); err != nil {
		return err
	}
	r.m.cache.keepDurable(id)
	return nil
}

// isDurable says whether durable has nothing to wait for.
func (m *Manager) isDurable(id key.ID, begun uint64) bool {
	if m.durability != Acknowledged {
		return true
	}
	s := m.epochs.signed.Load()
	return s != nil && s.number > begun || m.cache.isDurable(id)
}

// dataKeyWith reads ref's data key and the version of it that has the id, if that may open. Where what is kept says
// that it may not, the database is asked, as another process may have made it a moment ago.
func (r reader) dataKeyWith(ctx context.Context, ref key.Ref, id key.ID) (family, *store.Version, error) {
	fam, kept, err := r.dataKey(ctx, ref)
	if err != nil {
		return fam, nil, err
	}
	v, err := opening(&fam.Data[0], id)
	if err == nil || !kept {
		return fam, v, err
	}
	if err := r.m.epochs.renew(ctx); err != nil {
		return fam, nil, err // nobody knows
	}
	fam, now, err := r.snapshotOf(ctx, ref)
	if err != nil {
		return fam, nil, err
	}
	v, err = opening(&fam.Data[0], id)
	if err != nil && now != nil && now.away != nil {
		err = now.away // nobody knows
	}
	return fam, v, err
}

// keyOfOpening reads the data key that has the version with the given id, and that version, if it may open.
func (r reader) keyOfOpening(ctx context.Context, id key.ID) (family, *store.Version, error) {
	var now answer
	if r.keeps {
		var err error
		if now, err = r.m.epochs.current(ctx, r.use); err != nil {
			return family{}, nil, err
		}
		if fam, v, ok := r.keptOpening(id, now); ok {
			r.m.telemetry.hits.add()
			return fam, v, nil
		}
		r.m.telemetry.misses.add()
	}
	fam, err := r.keyOf(ctx, id, now.reading)
	if err != nil {
		return fam, nil, err
	}
	v, err := opening(&fam.Data[0], id)
	return fam, v, err
}

// keyOf reads the data key that has the version with the given id, and keeps it, as fill does: one for all.
func (r reader) keyOf(ctx context.Context, id key.ID, now *reading) (family, error) {
	if !r.keeps {
		return r.readKeyOf(ctx, id, nil)
	}
	var f *filling
	kept := func(s *snapshot) bool {
		fam := s.rows.family()
		_, err := opening(&fam.Data[0], id)
		return err == nil && r.isFresh(s)
	}
	for {
		var mine bool
		if f, mine = r.m.cache.filling(id, now, f, kept); mine {
			f.err = context.Canceled // if the store panics
			defer r.m.cache.endFilling(id, f)
			f.family, f.err = r.readKeyOf(ctx, id, now)
			return f.family, f.err
		}
		if fam, ok, err := f.wait(ctx); ok {
			return fam, err
		}
	}
}

// readKeyOf keeps what it read if it is given epochs from before.
func (r reader) readKeyOf(ctx context.Context, id key.ID, now *reading) (family, error) {
	began, forgotten, ring := r.m.epochs.clock(), r.m.cache.forgotten(), r.m.ring.changes.Load()
	fam, err := r.coldVersion(ctx, id)
	if err != nil {
		return fam, err
	}
	if len(fam.Data) != 1 {
		return fam, tampered(&fam.Root, "version "+string(id)+" is not one of its data keys'")
	}
	ref := key.Ref{Scope: fam.Root.Scope, Purpose: fam.Data[0].Purpose}
	if !r.tx { // which may rightly see less
		r.m.cache.compare(ref, &fam)
	}
	if _, err := opening(&fam.Data[0], id); err == nil && now != nil && !fam.older {
		s := fam.keep(now, began, r.m.epochs.begun.Load(), ring)
		s.used.Store(true)
		r.m.cache.keepSnapshot(s, forgotten)
		r.m.cache.keepRef(id, ref)
	}
	return fam, nil
}

// keptOpening is the version with the given id, if its key is kept and may be used.
func (r reader) keptOpening(id key.ID, now answer) (family, *store.Version, bool) {
	// Of a version in use, its key is known, though nobody may have asked whose it is before.
	if kid, ok := id.KID(); ok {
		if h := r.m.hotKeys.find(&hotName{what: versionWithKID, kid: kid}); h != nil {
			if s, ok := r.m.cache.snapshot(h.ref); ok {
				if fam, v, ok := r.openingIn(s, id, now); ok {
					return fam, v, true
				}
			}
		}
	}
	s, ok := r.m.cache.snapshotWith(id)
	if !ok {
		return family{}, nil, false
	}
	return r.openingIn(s, id, now)
}

// openingIn is the version with the given id, if it is one of the snapshot's key, and that may be used.
func (r reader) openingIn(s *snapshot, id key.ID, now answer) (family, *store.Version, bool) {
	if !s.valid(now.reading, r.use) ||
		now.away == nil && (s.ring != r.m.ring.changes.Load() || r.m.epochs.clock().since(s.read.instant()) >= r.m.snapshotLife) {
		return family{}, nil, false
	}
	fam := s.family()
	v, err := opening(&fam.Data[0], id)
	if err != nil {
		return family{}, nil, false
	}
	if !s.used.Load() {
		s.used.Store(true)
	}
	return fam, v, true
}
