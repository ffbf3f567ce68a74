package pgstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"keyhold.example/keyhold/store"
)

// How long a commit, and what tidies up after a call, may take besides the call's context. Cutting a commit off
// would only leave its outcome unknown.
const (
	commitTimeout   = 5 * time.Second
	rollbackTimeout = time.Second
	closeTimeout    = time.Second
)

// view is where statements run: a [Store], each call on its own, or the application's transaction.
type view interface {
	read(ctx context.Context, st statement) error
	// write calls f, whose changes stay only if it returns nil. f may be called several times, each time for a fresh
	// transaction. Whatever happens, no transaction or savepoint is left open.
	write(ctx context.Context, f func(*writer) error) error
}

var (
	beginTransaction    = define(`begin isolation level read committed`)
	commitTransaction   = define(`commit`)
	rollbackTransaction = define(`rollback`)

	beginSavepoint   = define(`savepoint keyhold`)
	releaseSavepoint = define(`release savepoint keyhold`)
	// One text, because an aborted transaction takes no prepared statement, and not even the preparing of one.
	undoSavepoint = define(`rollback to savepoint keyhold; release savepoint keyhold`)
)

// writer runs the statements of one write.
type writer struct {
	tables    *tables
	session   session
	savepoint bool // it is inside the application's transaction, in a savepoint; otherwise in a transaction of its own
	began     bool
	ended     bool
}

// run runs statements whose results decide what comes next. The beginning goes with the first of them, in one round
// trip.
func (w *writer) run(ctx context.Context, batch ...statement) error {
	if !w.began {
		w.began = true
		begin := beginTransaction
		if w.savepoint {
			begin = beginSavepoint
		}
		batch = append([]statement{w.tables.statement(begin)}, batch...)
	}
	return w.session.run(ctx, batch...)
}

// last runs the last statements, none of whose results would take anything back. So a savepoint's end goes with
// them. A commit does not: if the connection were lost on the way, nobody would know whether the server had come to
// it.
func (w *writer) last(ctx context.Context, batch ...statement) error {
	if !w.savepoint {
		return w.run(ctx, batch...)
	}
	err := w.run(ctx, append(batch, w.tables.statement(releaseSavepoint))...)
	w.ended = err == nil
	return err
}

// write is one transaction on a connection of its own.
func (s *Store) write(ctx context.Context, f func(*writer) error) error {
	return s.retry(ctx, func() error {
		c, release, err := s.acquire(ctx)
		if err != nil {
			return err
		}
		w := &writer{tables: s.tables, session: c}
		broken := true // unless something says otherwise, such as no panic
		defer func() { release(broken) }()
		if err = f(w); err == nil {
			err = ctx.Err()
		}
		switch {
		case !w.began:
			broken = false
		case err != nil:
			broken = isLost(err) || s.rollback(ctx, c) != nil
		default:
			err = s.commit(ctx, c)
			broken = err != nil
		}
		return err
	})
}

// commit says [store.ErrUnknownOutcome] unless the server says what became of the transaction.
func (s *Store) commit(ctx context.Context, c session) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	err := acknowledged(ctx, c.run(ctx, s.tables.statement(commitTransaction)))
	if err != nil && !refused(err) {
		return fmt.Errorf("%w: %w", store.ErrUnknownOutcome, err)
	}
	return err
}

// acknowledged takes no success for one that came when ctx had ended: the driver may have asked the server to give up
// waiting for its standbys, which the server answers as if they had answered.
func acknowledged(ctx context.Context, err error) error {
	if err == nil {
		return databaseError(ctx.Err())
	}
	return err
}

// alone runs a statement that writes, and that may be done twice, as a transaction of its own, and tries again what is
// worth it. It takes one round trip less than write, and its commit waits no longer than ctx allows. It says
// [store.ErrUnknownOutcome] unless the server says what became of it each time that it was sent.
func (s *Store) alone(ctx context.Context, st statement) error {
	unknown := false
	err := s.retry(ctx, func() error {
		sent, err := s.once(ctx, st)
		if sent {
			err = acknowledged(ctx, err)
			_, driver := errors.AsType[*dbError](err)
			unknown = unknown || driver && !refused(err)
		}
		return err
	})
	if err != nil && unknown {
		return fmt.Errorf("%w: %w", store.ErrUnknownOutcome, err)
	}
	return err
}

func (s *Store) rollback(ctx context.Context, c session) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	return c.run(ctx, s.tables.statement(rollbackTransaction))
}

// attempts is how often a call is tried in all, and firstWait what is waited for on average before the second time.
const (
	attempts  = 6
	firstWait = 25 * time.Millisecond
)

// retry calls f until it succeeds, or trying again is no use or too late.
func (s *Store) retry(ctx context.Context, f func() error) error {
	for n := 1; ; n++ {
		err := f()
		if err == nil || n == attempts || !worthRetrying(err) || ctx.Err() != nil {
			return err
		}
		wait := s.wait << (n - 1)
		wait = wait/2 + rand.N(wait) //nolint:gosec // it only has to differ from what others wait
		if until, ok := ctx.Deadline(); ok && time.Until(until) < wait {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		if isLost(err) {
			s.discardLost(ctx)
		}
	}
}

// discardLost closes the pool's idle connections that are lost, up to the first that answers. A server that was
// restarted leaves as many of them as were idle, and each would cost an attempt.
func (s *Store) discardLost(ctx context.Context) {
	for ctx.Err() == nil {
		c, release, err := s.acquire(ctx)
		if err != nil {
			return
		}
		err = c.run(ctx, statement{text: "select 1"})
		release(isLost(err))
		if !isLost(err) {
			return
		}
	}
}

// inTx is the application's transaction.
type inTx struct {
	tables  *tables
	session session
}

func (v *inTx) read(ctx context.Context, st statement) error { return v.session.run(ctx, st) }

func (v *inTx) write(ctx context.Context, f func(*writer) error) (err error) {
	w := &writer{tables: v.tables, session: v.session, savepoint: true}
	defer func() {
		if !w.began || w.ended {
			return
		}
		if undoErr := v.undo(ctx); undoErr != nil {
			err = fmt.Errorf("%w (%w)", undoErr, err)
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f(w); err != nil || !w.began || w.ended {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err = v.session.run(ctx, v.tables.statement(releaseSavepoint))
	w.ended = err == nil
	return err
}

// undo takes back what the call did. Where the connection is lost, the server does.
func (v *inTx) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	err := v.session.run(ctx, v.tables.statement(undoSavepoint))
	if err == nil || isLost(err) || stateOf(err) == noSavepoint {
		return nil
	}
	return fmt.Errorf("%w: undo the call: roll back the whole transaction: %w", store.ErrUnavailable, err)
}
