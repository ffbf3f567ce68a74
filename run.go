package keyhold

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"keyhold.example/keyhold/internal/rotor"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// The times of Run; internal/rotor says what they are for.
const (
	pollEvery  = 4500 * time.Millisecond // before epochLife is over
	sweepEvery = time.Minute
	sweepSoon  = 2 * time.Second  // while something is to be gone on with
	sweepAgain = 10 * time.Second // after one that the database ended

	// idleFor is how long a key that nobody uses stays open, and at most as long again. Where it is needed later, it is
	// unwrapped once more.
	idleFor = time.Hour

	// workLimit is how long one key may take, besides Config.Timeout: another may be locked by somebody's transaction,
	// which must not hold up the rest.
	workLimit = 15 * time.Second

	// activateAfter is how old a pending version is when it is made the head though not every instance has said that
	// it has seen it: those whose questions are answered have.
	activateAfter = 8
)

// Swept is what a sweep did and found.
type Swept struct {
	Rotated   int // versions that were made the head
	Pending   int // versions that wait for the other instances, and keys that others are working at
	Failed    int // keys at which something failed, now or lately; the events say what
	Rewrapped int // versions
	Disabled  int // versions given up by cleanup, as [Manager.Disable] does
	Destroyed int // versions given up by cleanup, as [Manager.Destroy] does
}

// Run does what keys need over time, until ctx ends: it rotates those that are due, rewraps the versions of data keys
// when their root key was rotated, gives up old versions as [Config.Cleanup] says, removes what the tables need no
// more, and keeps what this process knows of the keys new, so that no call waits for that. Any number of instances may
// run at once, and share the work; none is needed for another's. It returns ctx's error, or [ErrClosed].
//
// In a process whose root is not the active one it rotates, rewraps and gives up nothing, and does the rest; see
// [ErrOldRoot].
//
// A key at which something fails is tried again after a minute, then after two, and so on up to an hour, and holds up
// no other. Nothing is lost when Run ends anywhere.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := m.isOpen(ctx); err != nil {
		return err
	}
	for _, e := range m.warnings() {
		m.hand(ctx, e) // New has logged it
	}
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context) error{m.pollLoop, m.listenLoop, m.notifyLoop, m.sweepLoop, m.maintainLoop} {
		wg.Go(func() {
			if err := loop(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// Sweep does once what [Manager.Run] does all the time, and returns when that is done. A version that the other
// instances have to see first is left pending, for the next sweep.
func (m *Manager) Sweep(ctx context.Context) (Swept, error) {
	s := m.newSweep()
	err := s.rotate(ctx)
	if err == nil {
		err = errors.Join(s.maintain(ctx), s.tidy(ctx))
	}
	return s.swept, err
}

// signal says something to whoever looks at c next, unless it was said already.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits, at most until somebody says something on wake, and says whether to go on: not when ctx has ended.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// pollLoop asks for the epochs before anybody has to wait for them, and signs.
func (m *Manager) pollLoop(ctx context.Context) error {
	dropped := m.epochs.clock()
	m.epochs.runs.Store(true)
	for {
		if now := m.epochs.clock(); now.since(dropped) >= idleFor {
			dropped = now
			m.cache.dropIdle()
		}
		err := m.step(ctx, m.epochs.refresh)
		if errors.Is(err, ErrClosed) {
			return err
		}
		if err == nil {
			m.refreshRoots(ctx)
			m.refreshKept(ctx)
		}
		// Whoever can connect can say that something has changed, as often as they like.
		if !pause(ctx, notifyEvery, nil) || !pause(ctx, pollEvery-notifyEvery, m.heard) {
			return nil
		}
	}
}

// refreshRoots learns of changes of the roots before a call needs to.
func (m *Manager) refreshRoots(ctx context.Context) {
	now := m.epochs.known.Load()
	known := m.slots.Load()
	if now == nil || now.Seq == known.Seq && m.ring.hasJust(kidsOf(&known.Installation)) {
		return
	}
	_ = m.step(ctx, func(ctx context.Context) error { return m.adopt(ctx) }) // the call that needs to says it
}

// listener is a store whose instances can tell each other when a key has changed.
type listener interface {
	Listen(ctx context.Context, heard func()) error
	Notify(ctx context.Context) error
}

// notifyEvery is how often, at most, an instance tells the others.
const notifyEvery = 100 * time.Millisecond

// notifyLoop tells the others soon after m has changed a key, and once of many.
func (m *Manager) notifyLoop(ctx context.Context) error {
	l, ok := m.store.(listener)
	if !ok {
		return nil
	}
	for {
		select {
		case <-m.ownChange:
		case <-ctx.Done():
			return nil
		}
		_ = m.step(ctx, l.Notify) // they will ask anyway
		if !pause(ctx, notifyEvery, nil) {
			return nil
		}
	}
}

// listenLoop makes changes known sooner than the next question would, where the database can say so. Nothing depends on
// it.
func (m *Manager) listenLoop(ctx context.Context) error {
	l, ok := m.store.(listener)
	if !ok {
		return nil
	}
	for {
		if err := l.Listen(ctx, func() { signal(m.heard) }); errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		if !pause(ctx, rotor.Jitter(sweepEvery), nil) {
			return nil
		}
	}
}

func (m *Manager) sweepLoop(ctx context.Context) error {
	s := m.newSweep()
	for {
		s.swept = Swept{}
		s.expect(ctx)
		err := s.rotate(ctx)
		if errors.Is(err, ErrClosed) {
			return err
		}
		// Who says all the time that there is work has it looked for every sweepSoon.
		next := s.next(ctx, err)
		soon := min(next, sweepSoon)
		if !pause(ctx, soon, nil) || !pause(ctx, next-soon, m.cache.work) {
			return nil
		}
	}
}

// expect asks, before a sweep, which key will come due first of those that are not.
func (s *sweep) expect(ctx context.Context) {
	s.expected = 0
	_ = s.m.step(ctx, func(ctx context.Context) (err error) {
		_, s.expected, err = s.m.store.Upcoming(ctx)
		return err
	})
}

// next is how long to wait for the next sweep.
func (s *sweep) next(ctx context.Context, err error) time.Duration {
	wait := rotor.Jitter(sweepEvery)
	switch {
	case err != nil:
		wait = rotor.Jitter(sweepAgain)
	case s.swept.Pending > 0:
		wait = rotor.Jitter(sweepSoon)
	}
	var now, at int64
	asked := s.m.epochs.clock()
	err = s.m.step(ctx, func(ctx context.Context) (err error) {
		now, at, err = s.m.store.Upcoming(ctx)
		return err
	})
	if err == nil {
		s.m.watch.upcoming.Store(&upcoming{in: time.Duration(at-now) * time.Second, none: at == 0, asked: asked})
	}
	// One that came due meanwhile may have done so after the sweep had looked.
	if err == nil && s.expected != 0 && s.expected <= now {
		wait = min(wait, rotor.Jitter(sweepSoon))
	}
	if err == nil && at > now {
		wait = min(wait, time.Duration(at-now)*time.Second+rotor.Jitter(time.Second/2))
	}
	return wait
}

// sweep is one goroutine's work.
type sweep struct {
	m       *Manager
	sweeper rotor.Sweeper
	swept   Swept

	expected int64 // when the first key was to be due of those that were not when the sweep began; 0 if none was
}

func (m *Manager) newSweep() *sweep {
	return &sweep{m: m, sweeper: rotor.Sweeper{Fleet: m.store, Owner: m.self.ID, Lease: m.leaseFor}}
}

func (s *sweep) rotate(ctx context.Context) (err error) {
	if err := s.m.isOpen(ctx); err != nil {
		return err
	}
	began := s.m.epochs.clock()
	ctx, sp := s.m.telemetry.span(ctx, "keyhold.sweep")
	defer func() { sp.end(err) }()
	s.recoverAll(ctx)
	if s.m.slots.Load().isOld() { // those with the active root do the rest
		return nil
	}
	report, err := s.sweeper.Sweep(ctx, s.work)
	s.refill(ctx)
	s.swept.Pending = report.Left
	s.swept.Failed += report.Failed
	s.m.watch.sweep(ctx, s.m, began, swept{done: report.Done, pending: report.Left, failed: s.swept.Failed, err: err})
	if err != nil {
		s.m.tell(ctx, Event{Kind: SweepFailed, Err: err})
	}
	return err
}

// refillLimit is how long all blocks together may take: the transaction that wanted one may still have its row locked.
const refillLimit = time.Second

// refill gets blocks of messages for those who wanted them in transactions. The next that seals tries again, and gets
// the error.
func (s *sweep) refill(ctx context.Context) {
	wanted := s.m.cache.wanted()
	if len(wanted) == 0 {
		return
	}
	_ = s.m.step(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, refillLimit)
		defer cancel()
		for _, b := range wanted {
			if err := b.refill(ctx, s.m); ctx.Err() != nil {
				return err
			}
		}
		return nil
	})
}

// work does what is due at keys: at several together, as far as that goes, and at one alone.
func (s *sweep) work(ctx context.Context, due []store.Due, under *store.Lease) []error {
	if len(due) == 1 {
		return []error{s.workAlone(ctx, due[0], under)}
	}
	return s.workTogether(ctx, due, under)
}

// workAlone does what is due at one key, and tells whoever traces.
func (s *sweep) workAlone(ctx context.Context, d store.Due, under *store.Lease) error {
	ctx, sp := s.span(ctx, d)
	err := s.workAt(ctx, d, under)
	if errors.Is(err, rotor.ErrLater) {
		sp.end(nil)
	} else {
		sp.end(err)
	}
	return err
}

func (s *sweep) span(ctx context.Context, d store.Due) (context.Context, span) {
	return s.m.telemetry.span(ctx, "keyhold.rotate",
		attrPurpose.String(string(d.Purpose)), attrKey.String(string(d.KeyID)), attrVersion.Int64(int64(d.Head)))
}

// errLocked ends the work at a key that somebody else seems to have locked.
var errLocked = fmt.Errorf("no end within %v: %w", workLimit, store.ErrUnavailable)

// workAt does what is due at one key: docs/rotation.md.
func (s *sweep) workAt(ctx context.Context, d store.Due, under *store.Lease) error {
	ref := key.Ref{Scope: d.Scope, Purpose: d.Purpose}
	rotated := false
	err := s.m.step(ctx, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, workLimit, errLocked)
		defer cancel()
		rotated, err = s.rotateDue(ctx, ref, d, under)
		return err
	})
	return s.after(ctx, ref, d, rotated, err, under)
}

// after does what comes after the rotation of a key that ended with err, and says what became of it.
func (s *sweep) after(
	ctx context.Context, ref key.Ref, d store.Due, rotated bool, err error, under *store.Lease,
) error {
	if err == nil && rotated && ref.IsRoot() {
		err = s.rewrap(ctx, ref.Scope, under)
	}
	switch {
	case err == nil, errors.Is(err, rotor.ErrLater):
		return err
	case errors.Is(err, store.ErrNotFound):
		return nil // it was deleted meanwhile
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrUnknownOutcome), errors.Is(err, ErrOldRoot):
		return rotor.ErrLater // somebody else was first, or is to do it, or nobody knows: look again
	}
	s.m.telemetry.rotated(ctx, d.Purpose, err)
	s.m.tell(ctx, Event{Kind: RotationFailed, Ref: ref, Key: d.KeyID, Err: err})
	return err
}

func (s *sweep) rotateDue(ctx context.Context, ref key.Ref, d store.Due, under *store.Lease) (rotated bool, err error) {
	r := s.m.committed()
	r.use, r.under = seals, under
	for {
		fam, k, err := r.forRotation(ctx, ref)
		read := s.m.epochs.begun.Load()
		if err != nil {
			return rotated, err
		}
		if err := r.timely(fam, k); err != nil {
			return rotated, err
		}
		newest := &k.Versions[len(k.Versions)-1]
		due := k.RotateAt != 0 && k.RotateAt <= fam.Now
		used := d.Why == store.Used && d.Head == k.Head
		switch {
		case k.ID != d.KeyID:
			return rotated, nil // another key has the name by now
		case newest.State == key.Pending:
			if err := s.mayActivate(ctx, k, newest, fam.Now, due || used); err != nil {
				return rotated, err
			}
			if err := r.durable(ctx, newest.ID, read); err != nil {
				return rotated, err
			}
			if err := r.activate(ctx, k, newest); err != nil {
				return rotated, err
			}
			rotated = true
			s.swept.Rotated++
			s.m.tell(ctx, Event{Kind: Rotated, Ref: ref, Key: k.ID, Version: newest.Number, ID: newest.ID})
		case due || used:
			if err := s.add(ctx, r, fam, k); err != nil {
				return rotated, err
			}
		default:
			return rotated, nil
		}
	}
}

func (s *sweep) add(ctx context.Context, r reader, fam *store.Family, k *store.Key) error {
	c, err := s.adding(ctx, r, fam, k)
	if err != nil {
		return err
	}
	return r.make(ctx, c)
}

func (s *sweep) adding(ctx context.Context, r reader, fam *store.Family, k *store.Key) (keyChange, error) {
	next, err := s.m.nextKey(ctx, fam, k)
	if err != nil {
		return keyChange{}, err
	}
	defer next.Close()
	return r.adding(fam, k, next)
}

// mayActivate says whether a pending version may become the head: when every live instance has seen it, or had the time
// to; at once, if the key is due again meanwhile or its head is used up. Otherwise it is [rotor.ErrLater].
func (s *sweep) mayActivate(ctx context.Context, k *store.Key, v *store.Version, now int64, atOnce bool) error {
	if atOnce || now-v.Created >= activateAfter {
		return nil
	}
	roll, err := s.m.store.Roll(ctx)
	if err != nil {
		return err
	}
	return s.seenByAll(&roll, k)
}

// seenByAll is [rotor.ErrLater] unless every live instance has seen what k is now.
func (s *sweep) seenByAll(roll *store.Roll, k *store.Key) error {
	if s.m.unseen(*roll, bucketOf(rootOf(k))|bucketOf(k.ID), roll.Epochs) != nil {
		return rotor.ErrLater
	}
	return nil
}

// isOpen is [ErrClosed] if m is.
func (m *Manager) isOpen(ctx context.Context) error {
	return m.step(ctx, func(context.Context) error { return nil })
}
