package keyhold

import (
	"context"
	"errors"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// However many need a key at the same time that is not at hand, it is read once, and each of its versions is unwrapped
// once.

// filling is the reading of a key for all who need it.
type filling struct {
	now     *reading      // the epochs that it is read under
	forgets uint64        // of the cache, before
	next    *filling      // that of those who waited for this one in vain
	done    chan struct{} // closed when the rest is there
	family  family
	err     error
}

// filling returns the reading of a key, by its ref or the id of a version, under the given epochs, and whether it is
// the caller who has to do it, and to end it with filled or endFilling. It is one that is over if the key was kept just
// now, as far as kept says that it may be used; and after is what the caller waited for in vain, nil at first.
func (c *cache) filling(of any, now *reading, after *filling, kept func(*snapshot) bool) (f *filling, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var s *snapshot
	var ok bool
	switch of := of.(type) {
	case key.Ref:
		s, ok = c.snapshots.get(of)
	case key.ID:
		s, ok = c.snapshotWithLocked(of)
	}
	if ok && s.epochs == now && kept(s) {
		f = &filling{done: make(chan struct{}), family: s.family()}
		close(f.done)
		return f, false
	}
	if f = c.fills[of]; after != nil && after.next != nil {
		f = after.next // which may be over, and began when the caller waited already
	}
	if f != nil && f.now == now && f.forgets == c.forgets {
		return f, false
	}
	f = &filling{now: now, forgets: c.forgets, done: make(chan struct{})}
	c.fills[of] = f
	if after != nil {
		after.next = f
	}
	return f, true
}

// wait waits for another's reading. It is not ok if that one's context ended it, which is no answer for this caller.
func (f *filling) wait(ctx context.Context) (fam family, ok bool, err error) {
	select {
	case <-f.done:
	case <-ctx.Done():
		return family{}, true, store.ContextError(ctx)
	}
	return f.family, !errors.Is(f.err, context.Canceled) && !errors.Is(f.err, context.DeadlineExceeded), f.err
}

// endFilling ends f, and leaves what is kept as it is.
func (c *cache) endFilling(of any, f *filling) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fills[of] == f {
		delete(c.fills, of)
	}
	close(f.done)
}

// oneOpening is the unwrapping of a version for all who need it.
type oneOpening struct {
	done chan struct{} // closed when the rest is there
	key  opened
	err  error
}

// errNotOpened is left where what was to open a version panicked.
var errNotOpened = errors.New("it was not opened")

// openOnce opens a version with do, which keeps it, or waits for who does so already: however many need it at the same
// time, it is unwrapped once. Nobody waits for anything but computing.
func (c *cache) openOnce(kind key.Kind, is openedRow, do func() (opened, error)) (opened, error) {
	c.mu.Lock()
	if o, ok := c.findLocked(kind, is); ok { // kept just now
		c.mu.Unlock()
		return o, nil
	}
	under := c.openings[is]
	if under == nil {
		mine := &oneOpening{done: make(chan struct{}), err: errNotOpened}
		c.openings[is] = mine
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			delete(c.openings, is)
			c.mu.Unlock()
			close(mine.done)
		}()
		mine.key, mine.err = do()
		return mine.key, mine.err
	}
	c.mu.Unlock()
	<-under.done
	if p := under.key.parent; errors.Is(under.err, errNotOpened) || p != nil && !p.Use() { // it is dropped by now
		return do()
	}
	return under.key, under.err
}
