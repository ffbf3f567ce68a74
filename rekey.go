package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// A rekey gives the installation another installation key: docs/format.md, section 2. First every root gets a slot for
// the new key, and the new key's row says that whoever had the old one made it. From then on both are there, and who
// meets a row that names the new one opens it with its root. Then each scope is moved by itself: its root key's
// versions are wrapped, and its manifests made, under the new key. When nothing names the old key any more, which the
// database itself holds, its slots and its row go, and it is forgotten. So it may be stopped and gone on with anywhere.

// Rekeyed is what a rekey did.
type Rekeyed struct {
	Pin  string // of the new installation key, for [Config.Pins]
	Keys int    // how many manifests this call moved
}

// Rekey makes a new installation key, wraps all root keys under it, and makes all manifests anew, for when a root or a
// recovery file is no longer trusted: the installation key that was had with those opens nothing any more that is
// stored. The root keys and data keys that were had stay as they are: [Manager.Rotate] and [Manager.Rewrap] end that.
// First remove the slots of roots that are not to have the new key, as all others get it: m's own root, which has to be
// the active one, and [Config.OldRoots], among which each other slot's root has to be.
//
// escrow is called with the recovery line of the new key before anything is changed, and has to write it; [NoEscrow]
// does not. If it fails, nothing is changed. A rekey that was begun before, by anybody, is gone on with; then it is
// called only if nothing was written yet. Once it is over, another call makes
// another rekey: after an error, [Manager.Installation] says whether it still lasts.
//
// Other processes follow while they work, each with one call to its root, in whatever call meets the new key first,
// also one inside a transaction of the application's. One that is stopped for all of it follows afterwards. The pin is
// another one then: see [Config.Pins]. Backups from before go on opening with the roots and the recovery files of then,
// and with nothing else.
//
// It calls each root to seal, and to open a few times, takes a round trip for each 250 scopes or 10 000 rows, and two
// for each batch of keys, which is as large as a transaction of about 100 ms allows; [Config.Timeout] limits each step.
// It may be stopped anywhere: the next call goes on. Scopes that are not as keyhold stored them, or that somebody has
// locked for longer than [Config.Timeout], are left out; the error joins what is wrong with each, and the rekey is not
// over before they are repaired, free or gone. Other errors: [ErrNoEscrow]; [ErrPin] if more than one is configured
// when it begins; [ErrState] if a slot's root is not configured; those of [Manager.AddRoot].
func (m *Manager) Rekey(ctx context.Context, escrow EscrowFunc) (Rekeyed, error) {
	if escrow == nil {
		return Rekeyed{}, ErrNoEscrow
	}
	kid, err := m.beginRekey(ctx, escrow)
	if err != nil {
		return Rekeyed{}, fmt.Errorf("begin to rekey: %w", err)
	}
	total := 0
	for {
		n, err := m.moveAll(ctx, kid)
		if err == nil {
			err = m.moveNames(ctx, kid)
		}
		total += n
		if err != nil {
			return Rekeyed{Pin: m.Pin(), Keys: total}, fmt.Errorf("rekey: %w", err)
		}
		err = m.step(ctx, func(ctx context.Context) error { return m.endRekey(ctx, kid) })
		// Who had not heard of it may have written something under the old key meanwhile.
		if err == nil || !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknownOutcome) || ctx.Err() != nil {
			if err != nil {
				err = fmt.Errorf("end the rekey: %w", err)
			}
			return Rekeyed{Pin: m.Pin(), Keys: total}, err
		}
	}
}

// beginRekey makes the new installation key, unless there is one, and says which it is.
func (m *Manager) beginRekey(ctx context.Context, escrow EscrowFunc) (key.KID, error) {
	for {
		kid, err := m.newInstallationKey(ctx, escrow)
		// Somebody else was first, and nothing is to be destroyed.
		if !errors.Is(err, store.ErrConflict) || errors.Is(err, ErrState) || ctx.Err() != nil {
			return kid, err
		}
	}
}

func (m *Manager) newInstallationKey(ctx context.Context, escrow EscrowFunc) (kid key.KID, err error) {
	var next *seal.IK
	var c *store.RootsChange
	var now *slots
	err = m.step(ctx, func(ctx context.Context) (err error) {
		if now, err = m.rootsToChange(ctx); err != nil || now.rekeyed() {
			return err
		}
		if len(m.pins) > 1 { // which would say that the new key is to have one of them
			return fmt.Errorf("%w: a rekey begins with the pin of the installation alone, or none, and here are %d", ErrPin, len(m.pins))
		}
		next, c, err = m.nextKeyOf(ctx, now)
		return err
	})
	if err != nil {
		return kid, err
	}
	if now.rekeyed() {
		kid = key.KID(now.Keys[1].KID)
		return kid, m.escrowOnce(ctx, kid, escrow)
	}
	defer next.Close()
	kid = next.KID()
	line := next.Recovery()
	detail, err := escrow(line.Reveal())
	line.Clear()
	if err != nil {
		return kid, fmt.Errorf("write a recovery file: %w", err)
	}
	written := store.ErrConflict // unless it is tried: then nothing was written
	err = m.step(ctx, func(ctx context.Context) error {
		written = m.writeSlots(ctx, now, c)
		if written != nil && !errors.Is(written, store.ErrUnknownOutcome) {
			return written
		}
		if err := m.adopt(ctx); err != nil {
			return errors.Join(written, err)
		}
		if !m.ring.has(kid[:]) {
			return errors.Join(written, store.ErrUnknownOutcome)
		}
		written = nil
		return m.recordEscrow(ctx, kid, escrowWritten, detail)
	})
	switch {
	case err == nil, detail == "", written == nil:
		return kid, err
	case errors.Is(written, store.ErrUnknownOutcome):
		return kid, fmt.Errorf("whether the new installation key was stored is unknown, so keep the recovery line and call again: %w", err)
	}
	return kid, fmt.Errorf("the recovery line that was written opens nothing, so destroy it; then call again: %w: %w", ErrState, err)
}

// rootsToChange is the slots as they are now, if m may change them.
func (m *Manager) rootsToChange(ctx context.Context) (*slots, error) {
	if err := m.adopt(ctx); err != nil {
		return nil, err
	}
	now := m.slots.Load()
	return now, now.mayChange()
}

// nextKeyOf makes a new installation key, and seals it with every root that has a slot.
func (m *Manager) nextKeyOf(ctx context.Context, now *slots) (_ *seal.IK, _ *store.RootsChange, err error) {
	iks := m.ring.clones()
	defer closeAll(iks)
	next := iks[len(iks)-1].Next()
	defer func() {
		if err != nil {
			next.Close()
		}
	}()
	kid := next.KID()
	link := iks[len(iks)-1].NextMAC(next.Pin())
	c := &store.RootsChange{
		ActiveSlot: now.ActiveSlot,
		AddKey:     &store.InstallationKey{KID: kid[:], Previous: now.IKKID, Link: link[:]},
	}
	for i := range now.Slots {
		was := &now.Slots[i]
		if was.State == key.Destroyed {
			continue
		}
		root, err := m.rootOf(ctx, now, was)
		if err != nil {
			return nil, nil, err
		}
		slot, err := m.sealSlot(ctx, root, next)
		if err != nil {
			return nil, nil, err
		}
		slot.State = was.State
		c.Add = append(c.Add, slot)
	}
	return next, c, nil
}

// rootOf is the configured root that opens a slot.
func (m *Manager) rootOf(ctx context.Context, now *slots, slot *store.Slot) (wrapping.Wrapper, error) {
	if slot.ID == now.own {
		return m.root, nil
	}
	var errs []error
	for _, root := range m.oldRoots {
		ik, err := m.openSlot(ctx, root, [16]byte(now.Inst), *slot)
		if err == nil {
			ik.Close()
			return root, nil
		}
		errs = append(errs, err)
	}
	err := fmt.Errorf("none of the configured roots opens slot %s (%s): give its root, which then gets the new key too, or remove the slot: %w",
		slot.ID, rootName(slot.WrapperType, slot.WrapperKeyID), ErrState)
	for _, why := range errs {
		err = fmt.Errorf("%w; %w", err, why)
	}
	return nil, err
}

// moves is the moving of all scopes to the installation key with the given kid.
type moves struct {
	m      *Manager
	kid    key.KID
	reads  readPace
	pace   pace
	moved  int
	broken []error
}

// movedScope is a scope's keys under the new installation key.
type movedScope struct {
	scope key.Scope
	keys  []store.Rekey
}

// movedScopes are some scopes that are not under the new installation key, and what is wrong with others.
type movedScopes struct {
	scopes []movedScope
	broken []error
}

// moveAll moves all scopes that are not under the newest installation key, and says how many keys it moved.
func (m *Manager) moveAll(ctx context.Context, kid key.KID) (total int, err error) {
	w := &moves{m: m, kid: kid}
	scopes := pages(&w.reads, func(ctx context.Context, after key.ID) (scopes []key.Scope, next key.ID, err error) {
		err = m.step(ctx, func(ctx context.Context) error {
			scopes, next, err = m.store.NotUnder(ctx, kid, after, lagPage)
			return err
		})
		return scopes, next, err
	})
	err = ahead(ctx, func(ctx context.Context) (movedScopes, bool, error) {
		list, more, err := scopes(ctx)
		if err != nil || len(list) == 0 {
			return movedScopes{}, more, err
		}
		moved, err := w.prepare(ctx, list)
		return moved, more, err
	}, func(ctx context.Context, moved movedScopes) error {
		w.broken = append(w.broken, moved.broken...)
		return w.write(ctx, moved.scopes)
	})
	if err == nil {
		err = errors.Join(w.broken...)
	}
	return w.moved, err
}

// rekeysTo is nil as long as the installation key with the given kid is the newest. Another one is not of this rekey.
func (m *Manager) rekeysTo(kid key.KID) error {
	if m.ring.parent().KID() != kid {
		return &IntegrityError{Subject: "the installation", Reason: "its new installation key is another one than that of this rekey"}
	}
	return nil
}

// prepare reads some scopes, and makes their keys anew.
func (w *moves) prepare(ctx context.Context, scopes []key.Scope) (moved movedScopes, err error) {
	families, bad, err := w.m.readScopes(ctx, scopes)
	if err != nil {
		return moved, err
	}
	w.reads.read(families)
	for _, b := range bad {
		moved.broken = append(moved.broken, fmt.Errorf("rekey scope %q: %w", b.scope, b.err))
	}
	err = w.m.step(ctx, func(ctx context.Context) error {
		rows, errs := make([][]store.Rekey, len(families)), make([]error, len(families))
		inParallel(len(families), func(i int) { rows[i], errs[i] = w.m.committed().moved(ctx, families[i]) })
		for i, err := range errs {
			switch {
			case err == nil && len(rows[i]) > 0:
				moved.scopes = append(moved.scopes, movedScope{families[i].Root.Scope, rows[i]})
			case err == nil, errors.Is(err, store.ErrNotFound): // it was deleted meanwhile
			case isAway(err), ctx.Err() != nil:
				return err
			default:
				moved.broken = append(moved.broken, err)
			}
		}
		return w.m.rekeysTo(w.kid)
	})
	return moved, err
}

func (w *moves) write(ctx context.Context, scopes []movedScope) error {
	for len(scopes) > 0 {
		n, rows := w.pace.cut(len(scopes), func(i int) (rows int) {
			for _, k := range scopes[i].keys {
				rows += 1 + len(k.Versions)
			}
			return rows
		})
		began := w.m.epochs.clock()
		if err := w.store(ctx, scopes[:n]); err != nil {
			return err
		}
		w.pace.took(rows, w.m.epochs.clock().since(began))
		scopes = scopes[n:]
	}
	return nil
}

// store stores some scopes. What somebody changes at the same time is left for the next look: it divides those among
// which something of the kind is. One that somebody has locked is stored, and waited for, by itself.
func (w *moves) store(ctx context.Context, scopes []movedScope) error {
	var keys []store.Rekey
	for i := range scopes {
		keys = append(keys, scopes[i].keys...)
	}
	var n int
	err := w.m.step(ctx, func(ctx context.Context) (err error) {
		if err := w.m.rekeysTo(w.kid); err != nil {
			return err
		}
		n, err = w.m.store.Rekey(ctx, w.m.ring.inst, keys, nil)
		return err
	})
	w.moved += n
	half := len(scopes) / 2
	switch {
	case errors.Is(err, store.ErrConflict) && half > 0:
		if err := w.store(ctx, scopes[:half]); err != nil {
			return err
		}
		return w.store(ctx, scopes[half:])
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrUnknownOutcome):
		return nil
	case err != nil && (!errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil || !w.m.reachable(ctx)):
		return err
	case err != nil && len(scopes) == 1:
		w.broken = append(w.broken, fmt.Errorf("rekey scope %q: %w", scopes[0].scope, err))
		return nil
	case err == nil && (n == len(keys) || len(scopes) == 1):
		return nil
	}
	for i := range scopes {
		if err := w.store(ctx, scopes[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// moved is the keys of a scope under the newest installation key, as far as they are not.
func (r reader) moved(ctx context.Context, read store.Family) ([]store.Rekey, error) {
	fam, err := r.once(ctx, read)
	if err != nil {
		return nil, err
	}
	if err := fam.notOlder(); err != nil {
		return nil, err
	}
	parent := r.m.ring.parent()
	kid := parent.KID()
	var rows []store.Rekey
	for _, k := range allKeys(&fam.Family) {
		changed, under := *k, bytes.Equal(k.IKKID, kid[:])
		row := store.Rekey{Kind: k.Kind, KeyID: k.ID, From: k.Seq}
		for i := range k.Versions {
			v := &k.Versions[i]
			if k.Kind != key.KEK {
				break
			}
			if bytes.Equal(v.IKKID, kid[:]) {
				row.Versions = append(row.Versions, store.Rewrap{ID: v.ID, Old: v.Blob, Blob: v.Blob, IKKID: kid[:]})
				continue
			}
			blob, err := r.wrapUnder(&fam.Family, k, v, parent)
			if err != nil {
				return nil, err
			}
			under = false
			row.Versions = append(row.Versions, store.Rewrap{ID: v.ID, Old: v.Blob, Blob: blob, IKKID: kid[:]})
		}
		if under {
			continue
		}
		changed.Seq = max(k.Seq, r.seenSeq(k.ID)) + 1
		if err := r.m.sign(&changed); err != nil {
			return nil, err
		}
		row.Seq, row.IKKID, row.MAC = changed.Seq, changed.IKKID, changed.MAC
		rows = append(rows, row)
	}
	return rows, nil
}

// once checks a family that was read with others, and reads it by itself if it does not fit.
func (r reader) once(ctx context.Context, read store.Family) (family, error) {
	first := true
	return r.verified(ctx, func() (store.Family, error) {
		if first {
			first = false
			return read, nil
		}
		return r.q.Scope(ctx, read.Root.Scope)
	})
}

// endRekey drops the old installation key, which the database refuses while anything names it.
func (m *Manager) endRekey(ctx context.Context, kid key.KID) error {
	now, err := m.rootsToChange(ctx)
	if err == nil {
		err = m.rekeysTo(kid)
	}
	if err != nil || !now.rekeyed() {
		return err
	}
	c := &store.RootsChange{IKKID: kid[:], Drop: now.IKKID}
	for _, slot := range now.Slots {
		switch {
		case slot.State == key.Destroyed:
		case bytes.Equal(slot.IKKID, now.IKKID):
			c.States = append(c.States, store.SlotChange{ID: slot.ID, From: slot.State, To: key.Destroyed})
		case slot.State == key.Active && bytes.Equal(slot.IKKID, kid[:]):
			c.ActiveSlot = slot.ID
		}
	}
	if err := m.writeSlots(ctx, now, c); err != nil {
		return err
	}
	_ = m.adopt(ctx) // whoever was told that it is not over would begin another; the next call learns of it
	return nil
}
