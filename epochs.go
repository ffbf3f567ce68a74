package keyhold

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// What is read of a key is used again without a question to the database as long as the key's epoch is what it was
// before the key was read. The epochs of all keys are read in one statement, by the first call that finds them older
// than epochLife, or by Run before anybody does; so a change that is committed is seen by every process epochLife
// later, and by the time that the statement takes. As the epochs are always older than what is kept with them, an
// answer that arrives late cannot bring an old key back.
//
// Where the database does not answer, what was last known is used for as long as [Config.SealFor] and [Config.OpenFor]
// say.
const (
	epochLife = 5 * time.Second

	// askLimit is how long one question may take; then it is asked again, on another connection, as long as the call
	// may last. So what is known is never older than 7 s where the database answers, and a connection that leads
	// nowhere holds nobody up for long.
	askLimit = 2 * time.Second

	// signEvery is how old an instance's sign may get, or a third of the time for which it may seal. It signs sooner
	// when it has seen a change, so that who waits for that learns of it, and not again for signRetry after a sign that
	// could not be written: a database that somebody else has locked can still be asked.
	signEvery = time.Minute
	signRetry = 10 * time.Second

	// restFor is for how long nobody asks again after a question without an answer, if what is known will do.
	restFor = time.Second

	// renewEvery is how often, at most, epochs are read again because something that is not known is asked for, which
	// anybody can do.
	renewEvery = 100 * time.Millisecond

	// maxDrift is how much further the wall clock may go than the monotonic one, which stands still while a machine is
	// suspended. Where somebody sets the clock forward, the database is asked once more than it had to be.
	maxDrift = time.Second
)

// use is what a key is wanted for.
type use int

const (
	opens use = iota
	seals
)

// instant is a moment by both clocks of the process.
type instant struct {
	mono time.Duration
	wall time.Time
}

// since is how long ago then was, at least: what a suspended machine missed counts.
func (now instant) since(then instant) time.Duration {
	mono, wall := now.mono-then.mono, now.wall.Sub(then.wall)
	if wall-mono > maxDrift {
		return wall
	}
	return mono
}

// clocks returns what tells the time, and what tells the monotonic one alone, which costs half. Only tests use others.
func clocks() (func() instant, func() time.Duration) {
	began := time.Now()
	return func() instant {
		now := time.Now()
		return instant{mono: now.Sub(began), wall: now.Round(0)}
	}, func() time.Duration { return time.Since(began) }
}

// epochs is what a process knows of the epochs in the database. It is safe for concurrent use.
type epochs struct {
	// read asks the database; if it signs, it tells the other instances which epochs this one has seen.
	read      func(ctx context.Context, signs bool, seen [store.Buckets]uint64) (store.Epochs, error)
	slot      func() key.ID // by which this process opened the installation
	clock     func() instant
	mono      func() time.Duration // clock().mono
	lives     [2]time.Duration     // by use: for how long what is known will do without the database
	limit     time.Duration        // of one question
	telemetry *telemetry
	life      context.Context //nolint:containedctx // no call's: it ends when the Manager is closed
	end       context.CancelFunc

	known      atomic.Pointer[reading]
	begun      atomic.Uint64 // questions
	back       atomic.Uint32 // buckets whose epochs went back, and nobody has looked at since
	changes    atomic.Uint64 // after which only what was asked later is known, where the database answers
	signs      atomic.Bool   // whether this process seals, and therefore signs
	runs       atomic.Bool   // whether it has Run at work, and therefore signs, too
	signed     atomic.Pointer[signature]
	registered atomic.Uint64  // how often this process has registered
	retrying   atomic.Bool    // whether a sign is tried again
	sealing    atomic.Int32   // calls that wait for an answer, to seal
	questions  sync.WaitGroup // under way; added to only by calls

	mu       sync.Mutex
	asking   *asking // nil if nobody does
	renewed  time.Time
	failed   outage // of questions that the database did not answer
	unsigned outage // of signs that could not be written
	trouble  error  // as failed, but for whatever reason, and until there is an answer; nobody rests for it
}

// outage is since when something does not work, and why; zero if it does.
type outage struct {
	err         error
	since, last instant
}

// goesOn says that it failed once more, or works again.
func (o *outage) goesOn(now instant, err error) {
	switch {
	case err == nil:
		*o = outage{}
	case o.err == nil:
		*o = outage{err, now, now}
	default:
		o.err, o.last = err, now
	}
}

// reading is an answer of the database. It never changes.
type reading struct {
	store.Epochs
	asked   instant
	number  uint64 // of the question
	changes uint64 // when it was asked for

	// registered is how often this process had registered. While it was not, others did not wait for it, and while it
	// does, they do not yet: what was read before that is read again.
	registered uint64
}

// signature is a sign that was written. It never changes.
type signature struct {
	at     instant
	number uint64 // of the question
	slot   key.ID // by which it opened the installation
	seen   [store.Buckets]uint64
}

// answer is what is known now, and why it is not newer: nil if it is as new as it has to be.
type answer struct {
	*reading
	away error
}

// asking is a question under way, which others wait for, too.
type asking struct {
	done   chan struct{} // closed when there is an answer, or none
	number uint64
	err    error // then, unless there is just no answer in time
	sign   error // why this process could not register, so that it may not seal
}

// current returns epochs that are at most epochLife old, and newer than the last change of this process's own; or, if
// the database does not answer, those that it has, as long as they will do for u.
func (e *epochs) current(ctx context.Context, u use) (answer, error) {
	if u == seals && !e.signs.Load() {
		e.signs.Store(true)
	}
	changes := e.changes.Load()
	if r := e.fresh(u, changes); r != nil {
		return answer{reading: r}, nil
	}
	if u == seals {
		e.sealing.Add(1)
		defer e.sealing.Add(-1)
	}
	for {
		e.mu.Lock()
		if r := e.fresh(u, changes); r != nil { // an answer came in between
			e.mu.Unlock()
			return answer{reading: r}, nil
		}
		usable := e.usable(u)
		if away := e.away(u, usable); away != nil {
			e.mu.Unlock()
			if usable == nil {
				return answer{}, e.stale(u, away)
			}
			return answer{usable, away}, nil
		}
		a := e.ask(ctx, false)
		e.mu.Unlock()
		err := wait(ctx, a, usable != nil)
		if err == nil && u == seals {
			err = a.sign
		}
		switch {
		case errors.Is(err, errImpatient):
			return answer{usable, err}, nil
		case err != nil && (ctx.Err() != nil || usable == nil):
			return answer{}, e.stale(u, err)
		case err != nil && !isAway(err):
			return answer{}, err
		}
	}
}

// away is why the database does not answer, or takes no sign, where that is known well enough not to wait for it once
// more. While it lasts one caller a second asks, and the others go on with what is usable; or, if that is long over,
// are refused at once. e.mu is held.
func (e *epochs) away(u use, usable *reading) error {
	now := e.clock()
	resting := func(o *outage) bool {
		return o.err != nil && now.since(o.last) < restFor+e.askingFor() &&
			(usable != nil || e.known.Load() != nil && now.since(o.since) >= epochLife)
	}
	switch {
	case resting(&e.failed):
		return e.failed.err
	case u == seals && usable == nil && e.signed.Load() != nil && resting(&e.unsigned):
		return e.unsigned.err
	}
	return nil
}

// askingFor is how much later than the last failure the answer to the question under way may come, if that began soon
// after; 0 if there is none. What failed long ago says nothing of it. e.mu is held.
func (e *epochs) askingFor() time.Duration {
	if e.asking == nil {
		return 0
	}
	return 3 * e.limit
}

// errImpatient means that the caller has no time to wait for the database, and need not.
var errImpatient = fmt.Errorf("no answer in time: %w", store.ErrUnavailable)

// wait waits for a question, which goes on without who has no more time.
func wait(ctx context.Context, a *asking, usable bool) error {
	var impatient <-chan time.Time
	if until, ok := ctx.Deadline(); ok && usable {
		timer := time.NewTimer(time.Until(until) / 2)
		defer timer.Stop()
		impatient = timer.C
	}
	select {
	case <-a.done:
		return a.err
	case <-impatient:
		return errImpatient
	case <-ctx.Done():
		return store.ContextError(ctx)
	}
}

func (e *epochs) fresh(u use, changes uint64) *reading {
	if r := e.known.Load(); r != nil && r.changes >= changes && (u != seals || e.mayServe(r)) && e.clock().since(r.asked) < epochLife {
		return r
	}
	return nil
}

// usable is what is known, if it will do for u without the database.
func (e *epochs) usable(u use) *reading {
	if r := e.known.Load(); r != nil && (u != seals || e.mayServe(r)) && e.clock().since(r.asked) < e.lives[u] {
		return r
	}
	return nil
}

// mayServe says whether one may seal after r: others know that this process seals, and did when r was asked for.
func (e *epochs) mayServe(r *reading) bool {
	return e.maySeal() && r.registered == e.registered.Load()
}

// registers says whether the others know of this process, or are to.
func (e *epochs) registers() bool { return e.signs.Load() || e.runs.Load() }

// maySeal says whether the others know that this process seals, and have to.
func (e *epochs) maySeal() bool {
	s := e.signed.Load()
	return s != nil && e.clock().since(s.at) < e.lives[seals]
}

// stale says that what is known is too old for u, or the last sign for sealing, where it is.
func (e *epochs) stale(u use, err error) error {
	r := e.known.Load()
	if r == nil || !isAway(err) {
		return err
	}
	what, age := "answer", e.clock().since(r.asked)
	if s := e.signed.Load(); u == seals && s != nil && age < e.lives[u] {
		what, age = "sign of this instance", e.clock().since(s.at)
	}
	if age < e.lives[u] {
		return err
	}
	return fmt.Errorf("%w: the last %s is %v old: %w", ErrStale, what, age.Round(time.Second), err)
}

// changed says that this process has changed a key, or may have.
func (e *epochs) changed() { e.changes.Add(1) }

// renew has what is known read anew. It may have to wait for its turn, for renewEvery at most. Others do not have to
// wait for its answer.
func (e *epochs) renew(ctx context.Context) error {
	begun := e.begun.Load()
	for began := time.Now(); ; {
		e.mu.Lock()
		wait := renewEvery - time.Since(e.renewed)
		mine := wait <= 0
		if mine {
			e.renewed = time.Now()
		}
		shared := e.renewed.After(began)
		e.mu.Unlock()
		if mine || shared {
			return e.once(ctx, begun)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}
