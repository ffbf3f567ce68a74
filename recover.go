package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// A failover may lose what was committed last, and with it the newest version of a key, which instances have sealed
// with already. They notice, since the key's sequence number is lower than they have seen, and seal no more with it.
// Whoever still has the key as it was writes back what was lost, under the next sequence numbers: the versions, with
// the ids that they had, as the next heads; what was disabled; the policy. What is no longer there at all, or was
// destroyed meanwhile, is not brought back.

// wentBack is the buckets whose epochs went back, as those of a database do that lost commits.
func wentBack(before, now *reading) (back store.BucketSet) {
	if before == nil {
		return 0
	}
	for b := range now.Keys {
		if now.Keys[b] < before.Keys[b] {
			back |= 1 << b
		}
	}
	return back
}

// refreshKept reads kept keys again before a call has to wait for that, and to see whether the database has lost
// something of them.
func (m *Manager) refreshKept(ctx context.Context) {
	back := store.BucketSet(m.epochs.back.Swap(0))
	now := m.epochs.known.Load()
	if now == nil {
		return
	}
	for _, ref := range m.cache.toRefresh(now, m.epochs.clock(), m.snapshotLife/5*4, back, refreshAtOnce) {
		err := m.step(ctx, func(ctx context.Context) error {
			_, err := m.hot(opens).fill(ctx, ref, now, false)
			return err
		})
		if isAway(err) || ctx.Err() != nil || m.epochs.clock().since(now.asked) > pollEvery { // the next question comes first
			m.epochs.back.Or(uint32(back)) // the rest is still to be seen
			return
		}
	}
}

// recoverAll writes back what the database has lost of keys that are still kept.
func (s *sweep) recoverAll(ctx context.Context) {
	for _, ref := range s.m.cache.lostRefs() {
		lost, ok := s.m.cache.lostKey(ref)
		if !ok {
			continue
		}
		err := s.m.step(ctx, func(ctx context.Context) error { return s.recoverFamily(ctx, ref, lost) })
		switch {
		case err == nil, errors.Is(err, store.ErrNotFound):
			s.m.cache.found(ref, lost)
		default:
			s.swept.Failed++
			s.m.tell(ctx, Event{Kind: RolledBack, Ref: ref, Err: err})
			if isAway(err) { // it would be so with each
				signal(s.m.cache.work) // so that it is not left for a minute
				return
			}
		}
	}
}

func (s *sweep) recoverFamily(ctx context.Context, ref key.Ref, lost *snapshot) error {
	r := s.m.committed()
	kept := lost.family()
	was := &kept.Family
	for _, of := range []key.Ref{{Scope: ref.Scope}, ref} { // the root key first, as it wraps the other
		rolledBack := false
		for {
			done, err := s.recoverKey(ctx, r, of, was, &rolledBack)
			if done {
				break
			}
			if err := again(ctx, &r, err); err != nil {
				return fmt.Errorf("recover %v: %w", of, err)
			}
		}
	}
	return nil
}

// recoverKey takes one step from what the database has of a key towards what it had, and remembers if it found it older
// than it was.
func (s *sweep) recoverKey(ctx context.Context, r reader, ref key.Ref, was *store.Family, rolledBack *bool) (done bool, err error) {
	fam, err := r.key(ctx, ref)
	if err != nil {
		return false, err
	}
	k, old := &fam.Root, &was.Root
	if !ref.IsRoot() {
		k, old = &fam.Data[0], &was.Data[0]
	}
	if k.ID != old.ID {
		return true, nil
	}
	lost := firstLost(k, old)
	newest := &k.Versions[len(k.Versions)-1]
	switch {
	case k.Seq < s.m.cache.sequence(k.ID):
		*rolledBack = true
		changed := *k
		changed.RotateEvery, changed.MaxMessages = old.RotateEvery, old.MaxMessages
		return false, s.bringForward(ctx, r, ref, k, &changed, store.Update{})
	case newest.State == key.Pending && (lost != nil || wasHead(old, newest.ID)):
		return false, r.activate(ctx, k, newest)
	case lost != nil:
		*rolledBack = true // others may have brought the key forward meanwhile
		return false, s.writeBack(ctx, r, &fam.Family, k, was, old, lost)
	case *rolledBack:
		if changed, u := disabledAgain(k, old); len(u.States) > 0 {
			return false, s.bringForward(ctx, r, ref, k, &changed, u)
		}
	}
	return true, nil
}

// wasHead says whether a version was the head, or had been.
func wasHead(old *store.Key, id key.ID) bool {
	v, ok := versionByID(old, id)
	return ok && v.State != key.Pending
}

// disabledAgain disables what was disabled, or destroyed, which takes a person once more.
func disabledAgain(k, old *store.Key) (changed store.Key, u store.Update) {
	changed = *k
	changed.Versions = slices.Clone(k.Versions)
	for i := range changed.Versions {
		v := &changed.Versions[i]
		if v.State == key.Retired && wasGivenUp(old, v.ID) {
			u.States = append(u.States, store.StateChange{Number: v.Number, From: v.State, To: key.Disabled})
			v.State = key.Disabled
		}
	}
	return changed, u
}

func wasGivenUp(old *store.Key, id key.ID) bool {
	v, ok := versionByID(old, id)
	return ok && v.State == key.Disabled ||
		slices.ContainsFunc(old.Tombstones, func(t store.Tombstone) bool { return t.ID == id })
}

// bringForward writes a key with a sequence number that nobody has seen.
func (s *sweep) bringForward(ctx context.Context, r reader, ref key.Ref, k, changed *store.Key, u store.Update) error {
	err := r.update(ctx, k, changed, u)
	if err == nil {
		s.m.tell(ctx, Event{Kind: Recovered, Ref: ref, Key: k.ID})
	}
	return err
}

// firstLost is the first version of old that the database neither has nor remembers.
func firstLost(k, old *store.Key) *store.Version {
	for i := range old.Versions {
		v := &old.Versions[i]
		_, live := versionByID(k, v.ID)
		dead := slices.ContainsFunc(k.Tombstones, func(t store.Tombstone) bool { return t.ID == v.ID })
		if !live && !dead && v.Alg != key.Imported {
			return v
		}
	}
	return nil
}

// writeBack adds a version that was lost as the next one, pending. It is opened as it was stored, and wrapped anew,
// under what wraps today and for the number that it has from now on.
func (s *sweep) writeBack(
	ctx context.Context, r reader, fam *store.Family, k *store.Key, was *store.Family, old *store.Key, v *store.Version,
) error {
	lost, err := r.unwrap(was, old, v)
	if err != nil {
		return err
	}
	defer lost.Close()
	if err := r.addPending(ctx, fam, k, lost); err != nil {
		return err
	}
	s.m.tell(ctx, Event{Kind: Recovered, Ref: Ref{Scope: fam.Root.Scope, Purpose: k.Purpose}, Key: k.ID, Version: newestNumber(k) + 1, ID: v.ID})
	return nil
}

// hasMore says whether a version of the family is neither in now nor was it destroyed: the database has lost it.
func (fam *family) hasMore(now *family) bool {
	return fam.Root.ID == now.Root.ID && fam.Data[0].ID == now.Data[0].ID &&
		(firstLost(&now.Root, &fam.Root) != nil || firstLost(&now.Data[0], &fam.Data[0]) != nil)
}
