package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// EscrowFunc keeps the recovery line of an installation key somewhere: 89 characters from which everything can be
// opened, with the database and without any root. It has to seal it, as "keyhold root escrow" does, to somebody
// who is not among those who run the application. recovery is cleared when it returns, and must not be kept. detail
// says, for people, what was written and to whom it was sealed; it is stored, and must not be secret. If it is empty,
// nothing was written.
type EscrowFunc func(recovery []byte) (detail string, err error)

// NoEscrow is an [EscrowFunc] that keeps nothing: without a root, nothing will be opened.
func NoEscrow([]byte) (string, error) { return "", nil }

const (
	escrowWritten  = "written"
	escrowVerified = "verified"
)

// EscrowInfo says that a recovery line was kept, or tried.
type EscrowInfo struct {
	Verified bool   // whether it was tried, and not written
	Current  bool   // whether it is of an installation key that the installation has
	Detail   string // what the [EscrowFunc] said
	At       time.Time
}

// Escrows lists what was kept and tried of the installation's recovery lines, oldest first. It takes one round trip.
// The database does not vouch for it.
func (m *Manager) Escrows(ctx context.Context) ([]EscrowInfo, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	rows, err := m.store.Escrows(ctx)
	if err != nil {
		return nil, err
	}
	var infos []EscrowInfo
	for _, e := range rows {
		infos = append(infos, EscrowInfo{
			Verified: e.Event == escrowVerified, Current: m.ring.has(e.IKKID), Detail: e.Detail, At: time.Unix(e.At, 0).UTC(),
		})
	}
	return infos, nil
}

// Escrow keeps the recovery line of the installation key by write, and stores that it did. While the installation is
// rekeyed, that is the new one's. Whoever may call it has everything, so that it does not ask which root is the active
// one. It takes one round trip.
func (m *Manager) Escrow(ctx context.Context, write EscrowFunc) error {
	if write == nil {
		return ErrNoEscrow
	}
	if err := m.isOpen(ctx); err != nil {
		return err
	}
	iks := m.ring.clones()
	defer closeAll(iks)
	if len(iks) == 0 {
		return ErrClosed
	}
	newest := iks[len(iks)-1]
	line := newest.Recovery()
	detail, err := write(line.Reveal())
	line.Clear()
	if err != nil {
		return fmt.Errorf("write a recovery file: %w", err)
	}
	return m.step(ctx, func(ctx context.Context) error { return m.recordEscrow(ctx, newest.KID(), escrowWritten, detail) })
}

// escrowOnce keeps the newest installation key's recovery line, unless somebody has.
func (m *Manager) escrowOnce(ctx context.Context, kid key.KID, write EscrowFunc) error {
	written := false
	err := m.step(ctx, func(ctx context.Context) error {
		rows, err := m.store.Escrows(ctx)
		written = slices.ContainsFunc(rows, func(e store.Escrow) bool { return e.Event == escrowWritten && bytes.Equal(e.IKKID, kid[:]) })
		return err
	})
	if err != nil || written {
		return err
	}
	return m.Escrow(ctx, write)
}

func (m *Manager) recordEscrow(ctx context.Context, kid key.KID, event, detail string) error {
	if detail == "" {
		return nil
	}
	err := m.store.AddEscrow(ctx, m.ring.inst, store.Escrow{IKKID: kid[:], Event: event, Detail: detail})
	if err != nil {
		return fmt.Errorf("store that a recovery file was %s: %w", event, err)
	}
	return nil
}

// rehearsed is how many scopes a rehearsal opens.
const rehearsed = 100

// VerifyRecovery tries whether the recovery line would do: that it is of the installation in s, and opens every key of
// its first hundred scopes, of which it says how many there were. It changes nothing, but stores that it was done, with
// detail, unless that is empty. Of cfg only Pins and Timeout matter; no root is needed. line stays the caller's.
//
// Errors: [ErrRecovery]; [ErrPin]; an [*IntegrityError] for what is not as keyhold stored it; [ErrNotInitialized];
// [*SchemaError]; [ErrUnavailable].
func VerifyRecovery(ctx context.Context, s store.Store, cfg Config, line []byte, detail string) (scopes int, err error) {
	m, ctx, end, err := recovering(ctx, s, cfg, [][]byte{line})
	if err != nil {
		return 0, err
	}
	defer end()
	names, err := m.store.Scopes(ctx, "", rehearsed)
	if err != nil {
		return 0, err
	}
	for _, scope := range names {
		found, err := m.checkScope(ctx, scope)
		if err != nil {
			return scopes, err
		}
		if len(found) > 0 {
			return scopes, &IntegrityError{Subject: found[0].Subject, Reason: found[0].Problem}
		}
		scopes++
	}
	return scopes, m.recordEscrow(ctx, m.ring.parent().KID(), escrowVerified, detail)
}

// Recover makes cfg.Root the active root of the installation in s, and gives it a slot if it has none, where no process
// with the active root can do so, since that is lost, or newer than the backup that the database was made from. What
// opens the installation is the recovery line; without one, the first of cfg.Root and cfg.OldRoots that has a slot,
// whether or not that is the active one. While the installation is rekeyed there are two installation keys, and the
// lines of both are needed. Recovering what needs no recovery changes nothing. lines stay the caller's.
//
// It is for people, one at a time: a process that calls it whenever it starts would take the root back from those of a
// newer deployment. Errors: [ErrRecovery] for a line; [ErrRoot] and [ErrRootUnavailable] about the roots; the others
// are those of [New].
func Recover(ctx context.Context, s store.Store, cfg Config, lines ...[]byte) error {
	if _, err := cfg.check(true); err != nil {
		return err
	}
	m, ctx, end, err := recovering(ctx, s, cfg, lines)
	if err != nil {
		return err
	}
	defer end()
	_, err = m.changeSlots(ctx, func(now *slots) (*store.RootsChange, key.ID, error) {
		iks, ids, err := m.openSlots(ctx, m.root, now.Installation)
		closeAll(iks)
		switch {
		case err == nil:
			return activation(now, ids), ids[len(ids)-1], nil
		case !errors.Is(err, ErrRoot), ctx.Err() != nil:
			return nil, "", err
		}
		return m.newSlots(ctx, m.root, now, key.Active, err)
	})
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	return nil
}

// activation makes the slots of one root the active ones, one for each installation key; nil if they are.
func activation(now *slots, ids []key.ID) *store.RootsChange {
	c := &store.RootsChange{ActiveSlot: now.ActiveSlot}
	for _, id := range ids {
		slot := slotOf(&now.Installation, id)
		if slot.State == key.Active {
			continue
		}
		activateNew(c, now, slot)
		c.States = append(c.States, store.SlotChange{ID: id, From: slot.State, To: key.Active})
	}
	if len(c.States) == 0 {
		return nil
	}
	return c
}

// recovering opens an installation by recovery lines, or by any root that has a slot. What it returns is no whole
// Manager, and end closes it.
func recovering(ctx context.Context, s store.Store, cfg Config, lines [][]byte) (*Manager, context.Context, func(), error) {
	m, err := prepared(s, cfg, len(lines) == 0)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := m.bound(ctx)
	end := func() {
		m.epochs.close()
		if m.ring != nil {
			m.ring.close()
		}
		cancel()
	}
	m.initialize = false
	in, err := m.installation(ctx)
	if err == nil {
		err = wellFormed(&in)
	}
	if err == nil {
		err = m.unlock(ctx, &in, lines)
	}
	if err != nil {
		end()
		return nil, nil, nil, err
	}
	return m, ctx, end, nil
}

// unlock gives m the keys of the installation.
func (m *Manager) unlock(ctx context.Context, in *store.Installation, lines [][]byte) error {
	var iks []*seal.IK
	var err error
	if len(lines) > 0 {
		iks, err = keysOfLines(in, lines)
	} else {
		iks, err = m.keysOfRoots(ctx, in)
	}
	if err == nil {
		err = m.trust(in, iks)
	}
	if err != nil {
		closeAll(iks)
		return err
	}
	m.ring = newKeyring(iks)
	m.slots.Store(&slots{Installation: *in})
	return nil
}

// keysOfLines is the installation keys that recovery lines hold, in the order of their rows.
func keysOfLines(in *store.Installation, lines [][]byte) (now []*seal.IK, err error) {
	var iks []*seal.IK
	defer func() {
		for _, ik := range iks {
			if err != nil || !slices.Contains(now, ik) {
				ik.Close()
			}
		}
	}()
	for _, line := range lines {
		ik, err := seal.ParseRecovery(line)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
		}
		iks = append(iks, ik)
		if inst := ik.Inst(); !bytes.Equal(inst[:], in.Inst) {
			return nil, fmt.Errorf("%w: it is of another installation (%x, and this one is %x)", ErrRecovery, inst, in.Inst)
		}
	}
	for _, k := range in.Keys {
		ik := keyOf(iks, k.KID)
		switch {
		case ik != nil:
			now = append(now, ik)
		case len(in.Keys) > 1:
			return nil, fmt.Errorf("%w: the installation was being rekeyed when the database was in this state, and has two installation keys: "+
				"the recovery lines of both are needed", ErrRecovery)
		default:
			return nil, fmt.Errorf("%w: it is of an installation key that this database does not have, from before a rekey or after it", ErrRecovery)
		}
	}
	return now, nil
}

// keysOfRoots opens the installation by the first root that can.
func (m *Manager) keysOfRoots(ctx context.Context, in *store.Installation) ([]*seal.IK, error) {
	iks, _, err := m.openKeys(ctx, m.root, *in)
	for _, old := range m.oldRoots {
		if err == nil {
			break
		}
		var oldErr error
		if iks, _, oldErr = m.openKeys(ctx, old, *in); oldErr == nil {
			return iks, nil
		}
		err = fmt.Errorf("%w; and of an old root: %w", err, oldErr)
	}
	return iks, err
}
