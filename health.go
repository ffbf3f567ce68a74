package keyhold

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/store"
)

// Health is what a [Manager] knows of its own state: what its calls and [Manager.Run] have seen last.
type Health struct {
	// Answered is when the question was asked that the database answered last: whether any key has changed. Zero if
	// there was none yet, since New asks something else.
	Answered time.Time

	// SealUntil and OpenUntil are until when keys that were used before seal and open if the database does not answer
	// any more. What is past is over. Zero means that nothing is done without the database: before its first answer,
	// with [Config.Strict], and of SealUntil as long as this process has not sealed.
	SealUntil, OpenUntil time.Time

	// Database is why the last question has no answer; nil if it has one. A question that its caller ended does not
	// count.
	Database error

	// Swept is when the last sweep of Run or Sweep ended, zero if there was none yet. Sweep is its error, and what was
	// wrong when versions were last rewrapped and cleaned up, which Run does each hour; nil if nothing was. A sweep
	// that was ended by its context does not count.
	Swept time.Time
	Sweep error

	// Failing is at how many keys something failed when they were to be rotated or recovered: at the last sweep, or
	// before, if it left them alone for now. Events say at which, and what.
	Failing int

	// Root is [ErrOldRoot], with which root is the active one, if the process's is not it; nil if it is. Such a process
	// seals and opens, so it is not in Err.
	Root error

	err error
}

// Err is nil if a readiness probe should say yes: the calls of this process do, as far as it knows, what they are for.
// That is so as long as keys that were used before seal, whether or not the database answers; in a process that has not
// sealed yet, as long as they open. What is not known is taken for right: after New, and in a process that asks nothing
// because nobody calls it, until a question has no answer.
//
// Otherwise it is [ErrClosed], also while Close waits; [ErrStale], with [ErrUnavailable], after the time that
// [Config.SealFor] or [Config.OpenFor] says; and while there is nothing to go on with, why the last question has no
// answer, such as ErrUnavailable. Failing rotations and sweeps are for people to look at, and not in it.
//
// Without [Manager.Run], only calls ask the database. A probe that keeps all calls away from such a process would never
// see it come back, so it should make one itself.
func (h Health) Err() error { return h.err }

// Health says how m is. It does no I/O, waits for nothing, and is safe for concurrent use, also while and after m is
// closed.
func (m *Manager) Health() Health {
	e := m.epochs
	now := e.clock()
	h := Health{err: ErrClosed}
	if m.mu.TryRLock() { // nobody but Close holds it for writing, or waits to
		if !m.closed {
			h.err = nil
		}
		m.mu.RUnlock()
	}
	e.mu.Lock()
	h.Database = e.trouble
	if h.Database == nil && e.signs.Load() {
		h.Database = e.unsigned.err
	}
	known := e.known.Load()
	e.mu.Unlock()
	if known != nil {
		age := now.since(known.asked)
		h.Answered = now.wall.Add(-age)
		if !m.strict {
			h.OpenUntil = h.Answered.Add(e.lives[opens])
		}
		if s := e.signed.Load(); !m.strict && s != nil && e.signs.Load() {
			h.SealUntil = now.wall.Add(e.lives[seals] - max(age, now.since(s.at)))
		}
	}
	if h.err == nil && h.Database != nil {
		h.err = m.outage(h, now)
	}
	h.Root = m.slots.Load().oldRoot()
	if s := m.watch.swept.Load(); s != nil {
		h.Swept, h.Sweep, h.Failing = s.ended, s.err, s.failed
	}
	h.Sweep = errors.Join(h.Sweep, m.watch.maintained.error(), m.watch.tidied.error())
	return h
}

// outage is nil if what is known will do without the database.
func (m *Manager) outage(h Health, now instant) error {
	u, until := opens, h.OpenUntil
	if m.epochs.signs.Load() {
		u, until = seals, h.SealUntil
	}
	switch {
	case !errors.Is(h.Database, store.ErrUnavailable) && !errors.Is(h.Database, store.ErrUnknownOutcome):
		return h.Database // calls do not go on with what is known
	case until.IsZero():
		return h.Database
	case !now.wall.Before(until):
		return m.epochs.stale(u, h.Database)
	}
	return nil
}

// watch is what the last sweeps of a process did and saw, for people and probes. Nothing else is decided by it.
type watch struct {
	swept      atomic.Pointer[swept]
	maintained outcome
	tidied     outcome
	upcoming   atomic.Pointer[upcoming]
}

// swept is how a sweep ended.
type swept struct {
	ended                 time.Time
	done, pending, failed int // keys
	err                   error
}

// upcoming is when a key was going to be due.
type upcoming struct {
	in    time.Duration
	none  bool // no key is ever due
	asked instant
}

// sweep remembers how a sweep ended, unless its context ended it. One that the database ended says nothing of the keys.
func (w *watch) sweep(ctx context.Context, m *Manager, began instant, s swept) {
	if ctx.Err() != nil {
		return
	}
	now := m.epochs.clock()
	m.telemetry.swept(ctx, now.since(began), s.err)
	if last := w.swept.Load(); s.err != nil && last != nil {
		s.done, s.pending, s.failed = last.done, last.pending, last.failed
	}
	s.ended = now.wall
	w.swept.Store(&s)
}

// outcome is what became of something the last time. The zero value is nil.
type outcome struct{ err atomic.Pointer[error] }

// tell remembers err, unless ctx ended what it is about.
func (o *outcome) tell(ctx context.Context, err error) {
	if ctx.Err() == nil {
		o.err.Store(&err)
	}
}

func (o *outcome) error() error {
	if err := o.err.Load(); err != nil {
		return *err
	}
	return nil
}

// next is how long until a key is due.
func (w *watch) next(now instant) (time.Duration, bool) {
	u := w.upcoming.Load()
	if u == nil || u.none {
		return 0, false
	}
	return u.in - now.since(u.asked), true
}
