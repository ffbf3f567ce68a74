package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

const (
	// warmBatch is how many scopes Warm reads in one statement: enough for the round trip to be little beside the rest.
	warmBatch = 500

	// warmTries is how often Warm reads a scope that this process changes meanwhile.
	warmTries = 3
)

// Warm reads all data keys of the given scopes and opens them, so that the first use of each takes no round trip: for a
// process that is about to serve them. Without scopes it does so with all there are. It returns how many data keys are
// ready. It stops when they, or their versions, are [Config.CacheKeys], as it displaces nothing of what it made ready;
// what was used least recently goes for it.
//
// Keys of messages and raw keys are opened: of all of them first the versions that seal, and then, as far as there is
// room, the old ones. A blind index key is read; [Manager.BlindIndex] opens it, which takes no round trip. m counts as
// an instance that seals from then on, as after [Manager.Seal]. What is not used within [Config.CacheFor] is cold
// again; Run reads again what is used, and asks in time whether keys have changed. With [Config.Strict] nothing is
// kept, and Warm does nothing and returns 0.
//
// It changes no keys, calls no external root unless the installation was rekeyed, and may be stopped and repeated. It
// takes one round trip for 500 scopes, two if none are given, and one besides for all; and one for each scope that is
// read again, as the others do that read it. [Config.Timeout] limits each 500, and ctx all of it. Scopes are opened on
// all processors.
//
// What is wrong with one scope does not keep the others from being warmed: the error joins one for each,
// [*IntegrityError], [ErrRolledBack], [*InvalidError] for a malformed name, and [ErrNotFound] for a given scope that is
// not there. After [ErrUnavailable], and the end of ctx, those that it had come to are ready.
func (m *Manager) Warm(ctx context.Context, scopes ...Scope) (int, error) {
	if m.strict {
		return 0, nil
	}
	w := warming{
		m: m, r: m.hot(opens), given: len(scopes) > 0, tries: map[key.Scope]int{},
		keys: map[key.ID]bool{}, versions: map[key.ID]bool{}, ready: map[key.ID]bool{},
	}
	err := w.readAll(ctx, w.pages(scopes))
	if err == nil {
		err = w.openOld(ctx)
	}
	return len(w.ready), errors.Join(append(w.broken, err)...)
}

// warming is one call of Warm.
type warming struct {
	m     *Manager
	r     reader
	given bool // whether the caller said which scopes

	full atomic.Bool // there is no room for more

	mu             sync.Mutex
	keys, versions map[key.ID]bool // that take a place in the cache
	ready          map[key.ID]bool // of the keys
	old            []*family       // data keys that have versions besides those that seal
	again          []key.Scope     // this process changed a key since they were read
	tries          map[key.Scope]int
	broken         []error
	ended          error // why it goes no further
}

// batch is some scopes, as they were read in one statement.
type batch struct {
	families []store.Family
	epochs   store.Epochs // as of the statement

	// As snapshots have them.
	now             *reading
	began           instant
	ring, forgotten uint64
}

// pages returns what lists the scopes, some at a time, and none in the end.
func (w *warming) pages(scopes []key.Scope) func(context.Context) ([]key.Scope, error) {
	if !w.given {
		after := key.Scope("")
		return func(ctx context.Context) ([]key.Scope, error) {
			page, err := w.m.store.Scopes(ctx, after, warmBatch)
			if len(page) > 0 {
				after = page[len(page)-1]
			}
			return page, err
		}
	}
	named := map[key.Scope]bool{}
	return func(context.Context) ([]key.Scope, error) {
		var page []key.Scope
		for len(scopes) > 0 && len(page) < warmBatch {
			scope := scopes[0]
			scopes = scopes[1:]
			if named[scope] {
				continue
			}
			named[scope] = true
			if err := scope.Validate(); err != nil {
				w.wrong(err)
				continue
			}
			page = append(page, scope)
		}
		return page, nil
	}
}

// readAll makes ready what seals, of all scopes. While one batch is opened, the next is read.
func (w *warming) readAll(ctx context.Context, next func(context.Context) ([]key.Scope, error)) error {
	var opening sync.WaitGroup
	defer opening.Wait()
	for over := false; !w.full.Load(); {
		call, end, err := w.m.begin(ctx)
		if err != nil {
			return err
		}
		var page []key.Scope
		if !over {
			page, err = next(call)
			over = len(page) == 0
		}
		if over && err == nil {
			opening.Wait()
			page = w.toRepeat()
		}
		var all []*batch
		if err == nil && len(page) > 0 {
			all, err = w.read(call, page)
		}
		opening.Wait()
		if err == nil {
			err = w.end()
		}
		if err != nil || len(page) == 0 {
			end()
			return err
		}
		opening.Go(func() {
			defer end()
			for _, b := range all {
				w.each(len(b.families), func(i int) { w.scope(call, b, b.families[i]) })
			}
		})
	}
	opening.Wait()
	return w.end()
}

// read reads scopes, in one statement if nothing is wrong with any of them; otherwise each half by itself, but for what
// is no matter of the scopes.
func (w *warming) read(ctx context.Context, scopes []key.Scope) ([]*batch, error) {
	now, err := w.m.epochs.current(ctx, seals)
	if err != nil {
		return nil, err
	}
	b := &batch{
		now: now.reading, began: w.m.epochs.clock(),
		ring: w.m.ring.changes.Load(), forgotten: w.m.cache.forgotten(),
	}
	b.families, b.epochs, err = w.m.store.Families(ctx, scopes)
	switch {
	case err == nil:
		w.missing(scopes, b.families)
		return []*batch{b}, nil
	case isAway(err), ctx.Err() != nil:
		return nil, err
	}
	if _, _, none := w.m.store.Families(ctx, nil); none != nil {
		return nil, err
	}
	if len(scopes) == 1 {
		w.wrong(err)
		return nil, nil
	}
	half := len(scopes) / 2
	first, err := w.read(ctx, scopes[:half])
	if err != nil {
		return nil, err
	}
	second, err := w.read(ctx, scopes[half:])
	return append(first, second...), err
}

// missing says which of the scopes that the caller named are not there.
func (w *warming) missing(scopes []key.Scope, read []store.Family) {
	if !w.given || len(scopes) == len(read) {
		return
	}
	there := map[key.Scope]bool{}
	for i := range read {
		there[read[i].Root.Scope] = true
	}
	for _, scope := range scopes {
		if !there[scope] {
			w.wrong(fmt.Errorf("scope %q: %w", scope, store.ErrNotFound))
		}
	}
}

// each calls f with 0 to n-1, on all processors, until it goes no further.
func (w *warming) each(n int, f func(int)) {
	inParallel(n, func(i int) {
		if w.end() == nil {
			f(i)
		}
	})
}

// scope checks what was read of a scope, keeps it, and opens what seals.
func (w *warming) scope(ctx context.Context, b *batch, read store.Family) {
	scope, epochs, first := read.Root.Scope, b.epochs, true
	fam, err := w.r.verified(ctx, func() (store.Family, error) {
		if first {
			first = false
			return read, nil
		}
		list, e, err := w.m.store.Families(ctx, []key.Scope{scope})
		if err == nil && len(list) == 0 {
			err = fmt.Errorf("scope %q: %w", scope, store.ErrNotFound)
		}
		if err != nil {
			return store.Family{}, err
		}
		epochs = e
		return list[0], nil
	})
	switch {
	case err == nil:
	case errors.Is(err, store.ErrNotFound) && !w.given: // it was deleted meanwhile
		return
	case isAway(err), ctx.Err() != nil:
		w.stop(err)
		return
	default:
		w.wrong(err)
		return
	}
	if fam.Root.Scope != scope {
		w.wrong(tampered(&fam.Root, "it was read for another scope"))
		return
	}
	begun := w.m.epochs.begun.Load()
	for i := range fam.Data {
		data := &fam.Data[i]
		w.key(b, begun, &family{older: fam.older, roots: fam.roots, Family: store.Family{
			Now: fam.Now, Epoch: epochs.Of(fam.Root.ID, data.ID), Roots: fam.Roots, Root: fam.Root, Data: []store.Key{*data},
		}})
	}
	if err := fam.notOlder(); err != nil {
		w.wrong(err)
	}
}

// key keeps a data key that was read, and opens what seals with it.
func (w *warming) key(b *batch, begun uint64, fam *family) {
	c, data := w.m.cache, &fam.Data[0]
	ref := key.Ref{Scope: fam.Root.Scope, Purpose: data.Purpose}
	c.compare(ref, fam)
	if fam.older || !w.place(w.keys, data.ID) {
		return
	}
	s := fam.keep(b.now, b.began, begun, b.ring)
	if kept, ok := c.peek(ref); ok {
		s.used.Store(kept.used.Load())
	}
	if !c.keepSnapshot(s, b.forgotten) {
		w.repeat(ref.Scope)
		return
	}
	head, _ := headOf(data)
	sealing := []*store.Version{head, &data.Versions[len(data.Versions)-1]} // whose time is looked at, too
	if sealing[1] == head {
		sealing = sealing[:1]
	}
	for _, v := range sealing {
		switch opened, err := w.open(fam, v); {
		case err != nil:
			w.wrong(err)
			return
		case !opened:
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready[data.ID] = true
	if len(data.Versions) > len(sealing) {
		w.old = append(w.old, fam)
	}
}

// open opens a version if there is room for it.
func (w *warming) open(fam *family, v *store.Version) (bool, error) {
	data := &fam.Data[0]
	if v.Alg != key.Message && v.Alg != key.Raw {
		parent, err := w.r.anyParent(&fam.Family, v.Parent)
		parent.Close()
		return err == nil, err
	}
	if !w.place(w.versions, v.ID) {
		return false, nil
	}
	_, err := w.r.open(&fam.Family, data, v)
	if err == nil && v.Alg == key.Message {
		w.m.cache.keepRef(v.ID, key.Ref{Scope: fam.Root.Scope, Purpose: data.Purpose})
	}
	return err == nil, err
}

// openOld opens versions that do not seal, the newest of each key first.
func (w *warming) openOld(ctx context.Context) error {
	for keys := range slices.Chunk(w.old, warmBatch) {
		err := w.m.step(ctx, func(ctx context.Context) error {
			w.each(len(keys), func(i int) {
				if ctx.Err() != nil {
					w.stop(store.ContextError(ctx))
				}
				w.openOldOf(keys[i])
			})
			return w.end()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *warming) openOldOf(fam *family) {
	data := &fam.Data[0]
	for i := len(data.Versions) - 1; i >= 0 && !w.full.Load(); i-- {
		v := &data.Versions[i]
		if !v.State.Opens() || usableParent(&fam.Family, v.Parent) != nil {
			continue
		}
		if _, err := w.open(fam, v); err != nil {
			w.wrong(err)
		}
	}
}

// place takes a place for the key or version, if it has none and there is one left.
func (w *warming) place(taken map[key.ID]bool, id key.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !taken[id] && len(taken) >= w.m.cache.limit {
		w.full.Store(true)
		return false
	}
	taken[id] = true
	return true
}

// repeat has a scope read again that this process changed after it was read, unless it does so again and again.
func (w *warming) repeat(scope key.Scope) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tries[scope]++; w.tries[scope] < warmTries && !slices.Contains(w.again, scope) {
		w.again = append(w.again, scope)
	}
}

func (w *warming) toRepeat() []key.Scope {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.again), warmBatch)
	page := w.again[:n:n]
	w.again = w.again[n:]
	return page
}

func (w *warming) wrong(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, err)
}

func (w *warming) stop(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended == nil {
		w.ended = err
	}
}

func (w *warming) end() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}
