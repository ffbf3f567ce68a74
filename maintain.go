package keyhold

import (
	"context"
	"errors"
	"fmt"
	"time"

	"keyhold.example/keyhold/internal/rotor"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// What is to be done now and then is done by one instance of all each time: whoever finds that the last time is long
// enough ago, by a lease that lasts until the next. So it makes no difference how long a process lives.
const (
	maintainEvery = time.Hour
	tidyEvery     = 5 * time.Minute
	turnAgain     = 10 * time.Minute // at the earliest, after something failed
)

// turn is something to be done now and then.
type turn struct {
	name  string
	every time.Duration
	do    func(context.Context) error
	of    func() bool // whether this process is to do it
	next  instant     // not before; this process's clock
	taken bool        // by this process, at least once
}

func (m *Manager) maintainLoop(ctx context.Context) error {
	s := m.newSweep()
	turns := []*turn{
		{name: "maintain", every: m.maintainEvery, do: s.maintain, of: func() bool { return !s.m.slots.Load().isOld() }},
		{name: "tidy", every: tidyEvery, do: s.tidy, of: func() bool { return true }},
	}
	for {
		if !pause(ctx, rotor.Jitter(sweepEvery), nil) {
			return nil
		}
		for _, t := range turns {
			if err := s.take(ctx, t); errors.Is(err, ErrClosed) {
				return err
			}
		}
	}
}

// take does it if it is time to. The lease is not given back, unless it failed.
func (s *sweep) take(ctx context.Context, t *turn) error {
	now := s.m.epochs.clock()
	if t.taken && now.mono < t.next.mono || !t.of() {
		return nil
	}
	var lease store.Lease
	ok := false
	err := s.m.step(ctx, func(ctx context.Context) (err error) {
		lease, ok, err = s.m.store.Lease(ctx, "turn/"+t.name, s.m.self.ID, int64(t.every/time.Second))
		return err
	})
	if err != nil || !ok {
		return err
	}
	// A second later than the lease is over: who has it is only given more of it.
	t.taken, t.next.mono = true, now.mono+t.every+time.Second
	if err = t.do(ctx); err == nil || ctx.Err() != nil {
		return err
	}
	// It is somebody's turn again sooner.
	again := min(turnAgain, t.every)
	t.next.mono = s.m.epochs.clock().mono + again + time.Second
	return errors.Join(err, s.m.step(ctx, func(ctx context.Context) error {
		_, _, err := s.m.store.Lease(ctx, lease.Name, lease.Owner, int64(again/time.Second))
		return err
	}))
}

// maintain rewraps what a rotation of a root key left, and gives up old versions.
func (s *sweep) maintain(ctx context.Context) (err error) {
	if err := s.m.isOpen(ctx); err != nil {
		return err
	}
	if s.m.slots.Load().isOld() {
		return nil
	}
	ctx, sp := s.m.telemetry.span(ctx, "keyhold.maintain")
	defer func() { sp.end(err) }()
	err = errors.Join(
		s.alone(ctx, "rewrap", s.rewrapAll),
		s.alone(ctx, "cleanup", s.cleanup),
		s.removeOldRoots(ctx),
	)
	s.m.watch.maintained.tell(ctx, err)
	return err
}

// tidy removes what the tables need no more.
func (s *sweep) tidy(ctx context.Context) (err error) {
	ctx, sp := s.m.telemetry.span(ctx, "keyhold.tidy")
	defer func() { sp.end(err) }()
	for more := true; more && err == nil; {
		err = s.m.step(ctx, func(ctx context.Context) (err error) {
			more, err = s.m.store.Tidy(ctx)
			return err
		})
	}
	if err != nil {
		s.m.tell(ctx, Event{Kind: SweepFailed, Err: err})
	}
	s.m.watch.tidied.tell(ctx, err)
	return err
}

// alone does something under a lease, unless somebody else is at it.
func (s *sweep) alone(ctx context.Context, name string, do func(context.Context, *rotor.Held) error) error {
	held, ok, err := s.sweeper.Hold(ctx, name)
	if err != nil || !ok {
		return err
	}
	defer held.Release(ctx)
	if err := do(ctx, held); err != nil {
		s.m.tell(ctx, Event{Kind: SweepFailed, Err: err})
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// lagPage is how many root keys are looked at in one statement.
const lagPage = 1000

func (s *sweep) rewrapAll(ctx context.Context, held *rotor.Held) error {
	prolonged := func(ctx context.Context) (*store.Lease, error) {
		err := held.Prolong(ctx)
		return held.Lease(), err
	}
	return s.m.rewrapAll(ctx, prolonged, func(scope key.Scope, n int, err error) {
		s.rewrapped(ctx, scope, n)
		if err != nil {
			s.swept.Failed++
			s.m.tell(ctx, Event{Kind: RewrapFailed, Ref: key.Ref{Scope: scope}, Err: err})
		}
	})
}

// rewrap wraps a scope's data keys under its root key's head. It is [store.ErrConflict] if somebody else was at it, or
// has the lease by now.
func (s *sweep) rewrap(ctx context.Context, scope key.Scope, under *store.Lease) error {
	r := s.m.committed()
	r.under = under
	n, err := r.rewrap(ctx, scope)
	s.rewrapped(ctx, scope, n)
	return err
}

// rewrapped counts versions that were rewrapped, and tells of them.
func (s *sweep) rewrapped(ctx context.Context, scope key.Scope, n int) {
	s.swept.Rewrapped += n
	if n > 0 {
		s.m.tell(ctx, Event{Kind: Rewrapped, Ref: key.Ref{Scope: scope}, Count: n})
	}
}
