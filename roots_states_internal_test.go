package keyhold

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// Whoever has the old installation key, and can write to the database, announces another new one than the one that is
// expected: a list of two pins says which that is.
func TestRekeyToAThirdKeyIsRefused(t *testing.T) {
	s, root := memstore.New(), newStub(t)
	m := openedBy(t, s, root, nil)
	check(t, m.CreateScope(t.Context(), inner.Scope))
	a := m.ring.clones()[0]
	pins := []string{m.Pin(), begun(t, s, root).Pin()}
	running := openedBy(t, s, root, func(c *Config) { c.Pins = pins })
	other := a.Next()
	kid, theirs := a.KID(), other.KID()
	slot, err := m.sealSlot(t.Context(), root, other)
	check(t, err)
	s.Edit(func(d *memstore.Data) {
		in := d.Installation
		link := a.NextMAC(other.Pin())
		in.Keys = []store.InstallationKey{in.Keys[0], {KID: theirs[:], Previous: kid[:], Link: link[:], Created: 1}}
		slot.Created, slot.Activated = 1, 1
		in.Slots = append(in.Slots[:1], slot)
		resign(t, in, a)
	})
	_, err = New(t.Context(), s, Config{Root: root, Pins: pins})
	wants(t, err, ErrPin)
	_, err = running.Installation(t.Context())
	wantsIntegrity(t, err)
	if running.Pin() != pins[1] {
		t.Error("the running process took it over")
	}
}

// Of two pins one would have to be that of the key that is yet to be made.
func TestRekeyBeginsWithOnePin(t *testing.T) {
	s, root := memstore.New(), newStub(t)
	pin := openedBy(t, s, root, nil).Pin()
	m := openedBy(t, s, root, func(c *Config) { c.Pins = []string{pin, strings.Repeat("0", 64)} })
	_, err := m.Rekey(t.Context(), func([]byte) (string, error) {
		t.Error("a recovery file was to be written")
		return "", nil
	})
	wants(t, err, ErrPin)
	if in, err := s.Installation(t.Context()); err != nil || len(in.Keys) != 1 || in.Seq != 1 {
		t.Errorf("it was begun: %+v, %v", in, err)
	}
	rekeyed(t, openedBy(t, s, root, func(c *Config) { c.Pins = []string{pin} }))
}

// An instance that has not followed a rekey yet will do so by its root's new slot, which is therefore in use; as soon
// as it has followed, it says so.
func TestRootsThatAreNeededToFollowAreInUse(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s, first, second := memstore.New(), newStub(t), newStub(t)
		m := openedBy(t, s, first, func(c *Config) { c.OldRoots = append(c.OldRoots, second) })
		check(t, m.CreateScope(ctx, inner.Scope))
		_, err := m.AddRoot(ctx, second)
		check(t, err)
		user := openedBy(t, s, second, nil)
		check(t, usable(t, user))
		_, err = m.Rekey(ctx, NoEscrow)
		check(t, err)
		now := m.slots.Load().Slots
		last := now[len(now)-1].ID
		removed := func() []InstanceInfo {
			inUse, _ := errors.AsType[*InUseRootError](m.RemoveRoot(ctx, last))
			if inUse == nil {
				return nil
			}
			return inUse.Instances
		}
		if in := removed(); len(in) != 1 || in[0].Slot == last {
			t.Errorf("in use by %+v, want the instance that has not followed", in)
		}
		stop := running(t, user)
		pass(10 * time.Second)
		if in := removed(); len(in) != 1 || in[0].Slot != last {
			t.Errorf("in use by %+v, want the instance by its new slot", in)
		}
		check(t, usable(t, user))
		stop()
	})
}

// What a failover loses of a rekey, the processes that had followed it forget.
func TestRekeyThatAFailoverLost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s, root := memstore.New(), newStub(t)
		m := openedBy(t, s, root, nil)
		for _, scope := range []Scope{inner.Scope, "other"} {
			check(t, m.CreateScope(ctx, scope))
		}
		var before memstore.Data
		backup(t, s).Edit(func(d *memstore.Data) { before = *d })
		check(t, begun(t, s, root).CreateScope(ctx, "new"))
		_, err := m.Keys(ctx, "new")
		check(t, err)
		s.Edit(func(d *memstore.Data) { *d = before })
		_, err = m.Rotate(ctx, Ref{Scope: "other", Purpose: inner.Purpose})
		check(t, err)
		check(t, m.Health().Root)
		_, err = m.AddRoot(ctx, newStub(t))
		wants(t, err, ErrRolledBack)
	})
}

// A root whose slot was removed, and that got another, is known by that to processes that had the first.
func TestRootsThatAreRemovedAndAddedAgain(t *testing.T) {
	ctx := t.Context()
	s, first, second := memstore.New(), newStub(t), newStub(t)
	m := openedBy(t, s, first, nil)
	check(t, m.CreateScope(ctx, inner.Scope))
	info, err := m.AddRoot(ctx, second)
	check(t, err)
	idle := openedBy(t, s, second, nil)
	check(t, m.RemoveRoot(ctx, info.ID))
	_, err = idle.Rotate(ctx, inner)
	wants(t, err, ErrOldRoot)
	info, err = m.AddRoot(ctx, second)
	check(t, err)
	check(t, m.ActivateRoot(ctx, info.ID))
	_, err = idle.Rotate(ctx, inner)
	check(t, err)
	if own := idle.slots.Load().own; own != info.ID || slotOf(&idle.slots.Load().Installation, own).State != key.Active {
		t.Errorf("its slot is %s, want %s", own, info.ID)
	}
}

// A transaction that meets a new installation key does not wait for a call outside of it, which may wait for its
// connection.
func TestFollowInsideATransactionWaitsForNobody(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ctx := t.Context()
		rekeyed(t, w.other)
		read := make(chan struct{})
		w.calls.Hook(func(call string) {
			if call == "Installation" {
				<-read
			}
		})
		outside := make(chan error, 1)
		go func() { _, err := w.Installation(ctx); outside <- err }()
		synctest.Wait()
		began := time.Now()
		tx := w.store.Begin()
		_, err := w.SealTx(ctx, w.store.InTx(tx), inner, nil, AAD{})
		check(t, err)
		check(t, tx.Rollback())
		if time.Since(began) != 0 {
			t.Errorf("it waited for %v", time.Since(began))
		}
		close(read)
		check(t, <-outside)
	})
}

// lateChange answers to the first change of roots that nobody knows what it did, and does it when it is told to.
type lateChange struct {
	store.Store
	late *store.RootsChange
}

func (l *lateChange) ChangeRoots(ctx context.Context, c store.RootsChange) error {
	if l.late == nil {
		l.late = &c
		return store.ErrUnknownOutcome
	}
	return l.Store.ChangeRoots(ctx, c)
}

// A commit that was not answered may come later: what was written for it is kept until somebody knows.
func TestRekeyWhoseBeginningIsCommittedLate(t *testing.T) {
	ctx := t.Context()
	s, root := memstore.New(), newStub(t)
	check(t, openedBy(t, s, root, nil).CreateScope(ctx, inner.Scope))
	late := &lateChange{Store: s}
	m := openedBy(t, late, root, nil)
	written := 0
	file := func([]byte) (string, error) { written++; return "a file", nil }
	_, err := m.Rekey(ctx, file)
	wants(t, err, ErrUnknownOutcome)
	if !strings.Contains(err.Error(), "keep the recovery line") {
		t.Errorf("it says %v", err)
	}
	check(t, s.ChangeRoots(ctx, *late.late))
	_, err = m.Rekey(ctx, file)
	check(t, err)
	if rows, err := m.Escrows(ctx); err != nil || written != 2 || len(rows) != 1 {
		t.Errorf("%d files written, %d known, %v", written, len(rows), err)
	}
	clean(t, s, root)
}

// A change that was written, and could not be read again, is not told as if nothing were changed.
func TestRootsThatWereChangedAndNotReadAgain(t *testing.T) {
	ctx := t.Context()
	s, root, second := memstore.New(), newStub(t), newStub(t)
	faulty := faultstore.New(s)
	m := openedBy(t, faulty, root, nil)
	faulty.Fail(2, faultstore.Before)
	_, err := m.AddRoot(ctx, second)
	wants(t, err, ErrUnknownOutcome)
	if errors.Is(err, ErrUnavailable) {
		t.Errorf("it says that nothing was changed: %v", err)
	}
	_, err = m.AddRoot(ctx, second)
	check(t, err)
	if n := len(m.slots.Load().Slots); n != 2 {
		t.Errorf("%d slots", n)
	}
}

// Close waits for the step of a rekey that is under way, and ends the rest.
func TestRekeyEndsWhenTheManagerIsClosed(t *testing.T) {
	for _, at := range []string{"Installation", "ChangeRoots", "AddEscrow", "NotUnder", "Families", "Rekey"} {
		s, root := memstore.New(), newStub(t)
		check(t, openedBy(t, s, root, nil).CreateScope(t.Context(), inner.Scope))
		calls := faultstore.New(s)
		m, err := New(t.Context(), calls, Config{Root: root})
		check(t, err)
		closed := make(chan error, 1)
		var once sync.Once
		calls.Hook(func(call string) {
			if call != at {
				return
			}
			once.Do(func() {
				go func() { closed <- m.Close() }()
				for m.mu.TryRLock() { // until it waits
					m.mu.RUnlock()
					runtime.Gosched()
				}
			})
		})
		_, err = m.Rekey(t.Context(), func([]byte) (string, error) { return "a file", nil })
		wants(t, err, ErrClosed)
		check(t, <-closed)
		_, err = openedBy(t, s, root, nil).Rekey(t.Context(), NoEscrow)
		check(t, err)
		clean(t, s, root)
	}
}

// An old root goes after its time also where a rekey has given it another slot meanwhile.
func TestRekeyKeepsWhatIsDueToBeRemoved(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, first, second := memstore.New(), newStub(t), newStub(t)
		check(t, openedBy(t, s, first, nil).CreateScope(t.Context(), inner.Scope))
		m := openedBy(t, s, second, func(c *Config) { c.OldRoots, c.RemoveRootsAfter = append(c.OldRoots, first), time.Hour })
		pass(10 * time.Minute)
		rekeyed(t, m)
		stop := running(t, m)
		pass(4 * time.Hour)
		stop()
		if now := m.slots.Load().Slots; now[2].State != key.Destroyed || now[3].State != key.Active {
			t.Errorf("slots %+v", now)
		}
	})
}

// After a failover that lost the end of a rekey, a process that had seen it says what happened. Whoever has the old
// installation key could feign it, so it does not go back by itself.
func TestRekeyWhoseEndAFailoverLost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx := t.Context()
		s, root := memstore.New(), newStub(t)
		m := openedBy(t, s, root, nil)
		for _, scope := range []Scope{inner.Scope, "cold"} {
			check(t, m.CreateScope(ctx, scope))
		}
		r := begun(t, s, root)
		var before memstore.Data
		backup(t, s).Edit(func(d *memstore.Data) { before = *d })
		rekeyed(t, r)
		check(t, usable(t, m))
		s.Edit(func(d *memstore.Data) { *d = before })
		_, err := m.Keys(ctx, "cold")
		wantsIntegrity(t, err)
		if !strings.Contains(err.Error(), "of before its last rekey again, as after a failover") {
			t.Errorf("it says %v", err)
		}
		check(t, usable(t, openedBy(t, s, root, nil)))
	})
}

// A root whose slot was removed is let in again by people alone: not by an old deployment, though the root that it
// calls the old one is the active one.
func TestRootsThatWereRemovedDoNotComeBack(t *testing.T) {
	ctx := t.Context()
	s, first, leaked := memstore.New(), newStub(t), newStub(t)
	m := openedBy(t, s, first, nil)
	info, err := m.AddRoot(ctx, leaked)
	check(t, err)
	check(t, m.RemoveRoot(ctx, info.ID))
	_, err = m.Rekey(ctx, NoEscrow)
	check(t, err)
	wants(t, takeOver(ctx, s, first, leaked), ErrRoot)
	for _, slot := range m.slots.Load().Slots {
		if slot.WrapperKeyID == info.KeyID && slot.State != key.Destroyed {
			t.Errorf("it has slot %+v", slot)
		}
	}
	_, err = m.AddRoot(ctx, leaked)
	check(t, err)
}

// Nothing that is stored is computed from a root's own key, so that there is nothing to test guesses of it against but
// the seal.
func TestNothingStoredTellsOfTheRootsKey(t *testing.T) {
	s := memstore.New()
	path := t.TempDir() + "/root.key"
	root, err := localroot.Generate(path)
	check(t, err)
	openedBy(t, s, root, nil)
	text, err := os.ReadFile(path)
	check(t, err)
	raw, err := base32.HexEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(strings.TrimPrefix(strings.TrimSpace(string(text)), "khr1_")))
	check(t, err)
	its := raw[8:40]
	in, err := s.Installation(t.Context())
	check(t, err)
	if id := "khr_" + key.Base32(raw[:8]); id != in.Slots[0].WrapperKeyID || !bytes.Contains(in.Slots[0].Blob, []byte(id)) {
		t.Fatalf("the key is not where it was looked for: %s, and the slot's root is %s", id, in.Slots[0].WrapperKeyID)
	}
	stored := fmt.Appendf(nil, "%+v %s", in, bytes.Join([][]byte{in.Slots[0].Blob, in.MAC, in.IKKID, in.Inst}, nil))
	for name, sum := range map[string][]byte{
		"itself": its, "SHA-256": sum256(its), "SHA-256 of the text": sum256(bytes.TrimSpace(text)), "SHA-256 of id and key": sum256(raw[:40]),
	} {
		if bytes.Contains(stored, sum) || bytes.Contains(stored, fmt.Appendf(nil, "%v", sum)) {
			t.Errorf("%s is stored", name)
		}
	}
}

func sum256(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// renamedRoot is a root whose key has got another id since it sealed, as a cloud's does when it rotates.
type renamedRoot struct{ *stubRoot }

func (renamedRoot) KeyId(context.Context) (string, error) { return "another", nil } //nolint:revive // the interface's spelling

// A root whose key has another id by now, and that fails once, is not taken for another root.
func TestRootsWhoseKeysHaveOtherIDsTakeNoSecondSlot(t *testing.T) {
	ctx := t.Context()
	s, first, second := memstore.New(), newStub(t), newStub(t)
	openedBy(t, s, first, nil)
	check(t, takeOver(ctx, s, first, second))
	failed := 0
	first.does(func(_ context.Context, call string) error {
		if call != "Decrypt" {
			return nil
		}
		if failed++; failed == 1 {
			return errRootAway
		}
		return nil
	})
	check(t, takeOver(ctx, s, second, renamedRoot{first}))
	if in, err := s.Installation(ctx); err != nil || len(in.Slots) != 2 || in.ActiveSlot != in.Slots[1].ID || failed < 2 {
		t.Errorf("after %d calls, slots %+v, %v", failed, in.Slots, err)
	}
}
