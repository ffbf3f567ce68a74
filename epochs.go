package keyhold

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// What is read of a key is used again without a question to the database as long as the key's epoch is what it was
// before the key was read. The epochs of all keys are read in one query, by the first call that finds them older than
// epochLife; so a change that is committed is seen by every process epochLife later, and by the time that query takes.
// As the epochs are always older than what is kept with them, an answer that arrives late cannot bring an old key back.
const (
	epochLife = 5 * time.Second

	// askLimit is how long one question may take; then it is asked again, on another connection, as long as the call
	// may last. So what is known is never older than 7 s, and a connection that leads nowhere holds nobody up for long.
	askLimit = 2 * time.Second

	// renewEvery is how often, at most, epochs are read again because something that is not known is asked for, which
	// anybody can do.
	renewEvery = 100 * time.Millisecond
)

// epochs is what a process knows of the epochs in the database. It is safe for concurrent use.
type epochs struct {
	read func(context.Context) (store.Epochs, error)

	known   atomic.Pointer[reading]
	changes atomic.Uint64 // after which only what was asked later is known

	mu      sync.Mutex
	asking  *asking // nil if nobody does
	renewed time.Time
}

// reading is an answer of the database. It never changes.
type reading struct {
	store.Epochs
	asked   time.Time
	changes uint64 // when it was asked for
}

// asking is a question under way, which others wait for, too.
type asking struct {
	done chan struct{} // closed when there is an answer
	err  error         // then, unless a context ended first
}

// current returns epochs that are at most epochLife old, and newer than the last change of this process's own.
func (e *epochs) current(ctx context.Context) (*reading, error) {
	changes := e.changes.Load()
	for {
		if r := e.fresh(changes); r != nil {
			return r, nil
		}
		e.mu.Lock()
		a := e.asking
		if a == nil {
			if r := e.fresh(changes); r != nil { // an answer came in between
				e.mu.Unlock()
				return r, nil
			}
			a = &asking{done: make(chan struct{})}
			e.asking = a
			e.mu.Unlock()
			if err := e.ask(ctx, a); err != nil {
				return nil, err
			}
			continue // what was long in coming is too old
		}
		e.mu.Unlock()
		select {
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (e *epochs) fresh(changes uint64) *reading {
	if r := e.known.Load(); r != nil && r.changes >= changes && time.Since(r.asked) < epochLife {
		return r
	}
	return nil
}

// ask reads the epochs. That the database took too long is no error.
func (e *epochs) ask(ctx context.Context, a *asking) error {
	defer func() {
		e.mu.Lock()
		e.asking = nil
		e.mu.Unlock()
		close(a.done)
	}()
	limited, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	r := &reading{asked: time.Now(), changes: e.changes.Load()}
	var err error
	if r.Epochs, err = e.read(limited); err != nil {
		switch {
		case ctx.Err() != nil:
			return store.ContextError(ctx) // whichever of the two ended first
		case limited.Err() != nil:
			return nil
		}
		a.err = err
		return err
	}
	e.known.Store(r)
	return nil
}

// changed says that this process has changed a key, or may have.
func (e *epochs) changed() { e.changes.Add(1) }

// renew makes sure that what [epochs.current] returns next was asked for after this call began. It may have to wait,
// for renewEvery at most.
func (e *epochs) renew(ctx context.Context) error {
	for began := time.Now(); ; {
		e.mu.Lock()
		wait := renewEvery - time.Since(e.renewed)
		switch {
		case e.renewed.After(began):
			e.mu.Unlock()
			return nil
		case wait <= 0:
			e.renewed = time.Now()
			e.changed()
			e.mu.Unlock()
			return nil
		}
		e.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// snapshot is a data key as it was read, with its root key, and epochs that are older than that. It never changes.
type snapshot struct {
	family family
	epochs *reading
	read   time.Time
}

// snapshotLife is how long a key is used without being read again, whatever its epoch says: whoever can write to the
// database can hide a change of a key from the epochs.
const snapshotLife = 10 * time.Minute

// valid says whether no key of the snapshot has changed since, as far as the epochs now say.
func (s *snapshot) valid(now *reading) bool {
	return s.epochs == now || bytes.Equal(s.epochs.Inst, now.Inst) && s.epochs.Seq == now.Seq &&
		s.sameBucket(now, s.family.Root.ID) && s.sameBucket(now, s.family.Data[0].ID)
}

func (s *snapshot) sameBucket(now *reading, id key.ID) bool {
	b := store.Bucket(id)
	return s.epochs.Keys[b] == now.Keys[b]
}

// hot is a reader that uses again what it has read, unless [Config.Strict] is set.
func (m *Manager) hot() reader {
	r := m.committed()
	r.keeps = !m.strict
	return r
}

// dataKey reads ref's data key, or returns what is kept of it, and says which. A ref that names a root key is refused,
// as root keys are not for data.
func (r reader) dataKey(ctx context.Context, ref key.Ref) (fam family, kept bool, err error) {
	if ref.IsRoot() {
		return family{}, false, key.Invalid("purpose", "", "it is empty")
	}
	if !r.keeps {
		fam, err = r.key(ctx, ref)
		return fam, false, err
	}
	now, err := r.m.epochs.current(ctx)
	if err != nil {
		return family{}, false, err
	}
	if s, ok := r.m.cache.snapshot(ref); ok && s.valid(now) && time.Since(s.read) < snapshotLife {
		return s.family, true, nil
	}
	began := time.Now()
	if fam, err = r.key(ctx, ref); err != nil || fam.older {
		r.m.cache.dropSnapshot(ref)
		return fam, false, err
	}
	r.m.cache.keepSnapshot(ref, &snapshot{fam, now, began})
	return fam, false, nil
}

// dataKeyWith reads ref's data key and the version of it that has the id, if that may open. Where what is kept says
// that it may not, the database is asked, as another process may have made it a moment ago.
func (r reader) dataKeyWith(ctx context.Context, ref key.Ref, id key.ID) (family, *store.Version, error) {
	fam, kept, err := r.dataKey(ctx, ref)
	if err != nil {
		return fam, nil, err
	}
	v, err := opening(&fam.Data[0], id)
	if err == nil || !kept {
		return fam, v, err
	}
	if err := r.m.epochs.renew(ctx); err != nil {
		return fam, nil, err
	}
	if fam, _, err = r.dataKey(ctx, ref); err != nil {
		return fam, nil, err
	}
	v, err = opening(&fam.Data[0], id)
	return fam, v, err
}

// keyOfOpening reads the data key that has the version with the given id, and that version, if it may open.
func (r reader) keyOfOpening(ctx context.Context, id key.ID) (family, *store.Version, error) {
	var now *reading
	if r.keeps {
		var err error
		if now, err = r.m.epochs.current(ctx); err != nil {
			return family{}, nil, err
		}
		if ref, ok := r.m.cache.refOf(id); ok {
			if s, ok := r.m.cache.snapshot(ref); ok && s.valid(now) && time.Since(s.read) < snapshotLife {
				if v, err := opening(&s.family.Data[0], id); err == nil {
					return s.family, v, nil
				}
			}
		}
	}
	began := time.Now()
	fam, err := r.keyOfVersion(ctx, id)
	if err != nil {
		return fam, nil, err
	}
	if len(fam.Data) != 1 {
		return fam, nil, tampered(&fam.Root, "version "+string(id)+" is not one of its data keys'")
	}
	v, err := opening(&fam.Data[0], id)
	if err == nil && now != nil && !fam.older {
		ref := key.Ref{Scope: fam.Root.Scope, Purpose: fam.Data[0].Purpose}
		r.m.cache.keepSnapshot(ref, &snapshot{fam, now, began})
		r.m.cache.keepRef(id, ref)
	}
	return fam, v, err
}
