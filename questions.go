package keyhold

import (
	"context"
	"errors"
	"fmt"
	"time"

	"keyhold.example/keyhold/store"
)

// A question is asked by a goroutine of its own, so that it ends as it does whatever becomes of the call that needed it
// first: one with little time must not take the answer from those that come after it.

// ask starts a question if none is under way, and returns the one that is. e.mu is held.
func (e *epochs) ask(ctx context.Context, sign bool) *asking {
	if e.asking != nil {
		return e.asking
	}
	r := &reading{asked: e.clock(), number: e.begun.Add(1), changes: e.changes.Load(), registered: e.registered.Load()}
	a := &asking{done: make(chan struct{}), number: r.number}
	e.asking = a
	ctx = context.WithoutCancel(ctx)
	e.questions.Go(func() { e.question(ctx, a, r, sign) })
	return a
}

// question reads the epochs. That there is no answer in time is no error, but while it lasts nobody asks if something
// is usable.
func (e *epochs) question(ctx context.Context, a *asking, r *reading, sign bool) {
	ctx, sp := e.telemetry.span(ctx, "keyhold.epochs")
	last := e.known.Load()
	late, err := e.answer(ctx, a, r, last, sign)
	if err == nil {
		e.back.Or(uint32(wentBack(last, r)))
		e.known.Store(r)
	}
	if !late {
		a.err = err
	}
	e.mu.Lock()
	e.asking, e.trouble = nil, err
	if err == nil || late || isAway(err) {
		e.failed.goesOn(e.clock(), err)
	}
	e.mu.Unlock()
	e.telemetry.asked(ctx, err)
	sp.end(err)
	close(a.done)
	if err == nil {
		e.signAgain(ctx)
	}
}

// signAgain tries a sign again that could not be written, while nobody waits for that.
func (e *epochs) signAgain(ctx context.Context) {
	e.mu.Lock()
	failed := e.unsigned
	e.mu.Unlock()
	if failed.err == nil || e.clock().since(failed.last) < signRetry || !e.retrying.CompareAndSwap(false, true) {
		return
	}
	defer e.retrying.Store(false)
	r := &reading{asked: e.clock(), number: e.begun.Add(1)}
	_, _ = e.sign(ctx, e.limit, r, e.known.Load().Keys) // it is remembered
}

// answer reads the epochs into r, and signs, if it is time to or if it has to be. A sign that cannot be written is
// tried again later; what is read does without it. Late is that there was no answer in time.
func (e *epochs) answer(ctx context.Context, a *asking, r, last *reading, sign bool) (late bool, err error) {
	var seen [store.Buckets]uint64
	if last != nil {
		seen = last.Keys
	}
	registered := e.maySeal()
	if !e.mustSign(sign, registered, seen) {
		r.Epochs, late, err = e.within(ctx, e.limit, false, seen)
		return late, err
	}
	limit := e.limit
	if registered && !sign {
		limit /= 2 // what is read next has the rest
	}
	late, err = e.sign(ctx, limit, r, seen)
	if err == nil {
		return false, nil
	}
	unsigned, unsignedLate := err, late
	switch {
	case registered && sign: // others have to see changes meanwhile
		r.asked = e.clock()
		if !unsignedLate {
			a.sign = unsigned
		}
	case registered:
		limit = e.limit - limit
	}
	if r.Epochs, late, err = e.within(ctx, limit, false, seen); err != nil || registered {
		return late, err
	}
	if !unsignedLate && isAway(unsigned) { // it was a connection that had been lost meanwhile
		if unsignedLate, unsigned = e.sign(ctx, e.limit, r, seen); unsigned == nil {
			return false, nil
		}
	}
	if !unsignedLate { // otherwise who seals asks again, as long as the call lasts
		a.sign = fmt.Errorf("register this process in the database: %w", unsigned)
	}
	return false, nil
}

// mustSign says whether a question is to be a sign, too.
func (e *epochs) mustSign(sign, registered bool, seen [store.Buckets]uint64) bool {
	switch {
	case !e.registers():
		return false
	case sign, !registered && e.sealing.Load() > 0:
		return true
	}
	e.mu.Lock()
	failed := e.unsigned.err
	e.mu.Unlock()
	if failed != nil {
		return false // signAgain does
	}
	now, s := e.clock(), e.signed.Load()
	return !registered || now.since(s.at) >= min(signEvery, e.lives[seals]/3) || s.seen != seen || s.slot != e.slot()
}

// sign writes a sign, reads the epochs into r, and remembers what became of it.
func (e *epochs) sign(ctx context.Context, limit time.Duration, r *reading, seen [store.Buckets]uint64) (late bool, err error) {
	registers, slot := !e.maySeal(), e.slot()
	epochs, late, err := e.within(ctx, limit, true, seen)
	if err == nil {
		r.Epochs = epochs
		if registers {
			r.registered = e.registered.Add(1)
		}
		e.signed.Store(&signature{at: r.asked, number: r.number, slot: slot, seen: seen})
	}
	e.mu.Lock()
	e.unsigned.goesOn(e.clock(), err)
	e.mu.Unlock()
	return late, err
}

// within asks the database, and waits no longer than limit.
func (e *epochs) within(ctx context.Context, limit time.Duration, signs bool, seen [store.Buckets]uint64) (_ store.Epochs, late bool, _ error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v: %w", limit, store.ErrUnavailable))
	defer cancel()
	defer context.AfterFunc(e.life, cancel)()
	epochs, err := e.read(ctx, signs, seen)
	if err != nil && ctx.Err() != nil {
		return epochs, e.life.Err() == nil, store.ContextError(ctx)
	}
	return epochs, false, err
}

// close ends the questions that are under way. No call may be.
func (e *epochs) close() {
	e.end()
	e.questions.Wait()
}

// isAway says of an error that the database was not reached, or did not say what it did.
func isAway(err error) bool {
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome)
}

// refresh asks now, however new what is known is.
func (e *epochs) refresh(ctx context.Context) error {
	return e.after(ctx, false, func(begun uint64) bool {
		r := e.known.Load()
		return r != nil && r.number > begun
	})
}

// acknowledged signs now, however new the last sign is.
func (e *epochs) acknowledged(ctx context.Context) error {
	e.signs.Store(true)
	return e.after(ctx, true, func(begun uint64) bool {
		s := e.signed.Load()
		return s != nil && s.number > begun
	})
}

// after asks until there is what a question that began now has.
func (e *epochs) after(ctx context.Context, sign bool, there func(begun uint64) bool) error {
	began := e.begun.Load()
	for {
		e.mu.Lock()
		if there(began) {
			e.mu.Unlock()
			return nil
		}
		a := e.ask(ctx, sign)
		e.mu.Unlock()
		err := wait(ctx, a, false)
		if err == nil && sign {
			err = a.sign
		}
		if err != nil && (ctx.Err() != nil || a.number > began) {
			return err
		}
	}
}

// once asks one question, unless one was asked after so many had begun.
func (e *epochs) once(ctx context.Context, began uint64) error {
	for {
		if r := e.known.Load(); r != nil && r.number > began {
			return nil
		}
		e.mu.Lock()
		a := e.ask(ctx, false)
		e.mu.Unlock()
		err := wait(ctx, a, false)
		switch {
		case ctx.Err() != nil:
			return err
		case a.number <= began: // it was asked before
		case err != nil:
			return err
		case e.known.Load() == nil || e.known.Load().number <= began:
			return errImpatient
		}
	}
}
