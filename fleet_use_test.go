package keyhold_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// fleetUse is when a process last used a version: when the call began, and when it ended.
type fleetUse struct {
	SealBegan, SealEnded time.Time
	OpenBegan, OpenEnded time.Time
}

// fleetRefusal is a call that was refused because the database did not answer.
type fleetRefusal struct {
	Began, Ended time.Time
	Error        string
}

// fleetTimes sets off f again and again, until ctx ends; the i-th of n at its own time.
func fleetTimes(ctx context.Context, every time.Duration, i, n int, f func() error) error {
	select {
	case <-time.After(every * time.Duration(i) / time.Duration(n)):
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := f(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// use seals with each key again and again, and opens what was sealed first, until its version is disabled. It reports
// when it used which version last, which calls were refused, and when it was hindered.
func (c *fleetMember) use(refs []key.Ref, every time.Duration) {
	var mu sync.Mutex
	uses := map[key.ID]fleetUse{}
	var refusals []fleetRefusal
	var watch fleetWatch
	c.count = func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(uses)
	}
	one := func(ctx context.Context, r key.Ref) func() error {
		var first key.ID
		var ct []byte
		refused := false
		return func() error {
			began := time.Now()
			id, sealed, err := c.m.SealDetached(ctx, r, nil, keyhold.AAD{})
			ended := time.Now()
			if errors.Is(err, keyhold.ErrUnavailable) && ctx.Err() == nil {
				mu.Lock()
				defer mu.Unlock()
				refusals = append(refusals, fleetRefusal{began, ended, fmt.Sprintf("seal with %v: %v", r, err)})
				return nil
			}
			if err != nil {
				return ignoreEnd(ctx, fmt.Errorf("seal with %v: %w", r, err))
			}
			if ct == nil {
				first, ct = id, sealed
			}
			mu.Lock()
			u := uses[id]
			u.SealBegan, u.SealEnded = began, ended
			uses[id] = u
			mu.Unlock()
			if refused {
				return nil
			}
			began = time.Now()
			_, err = c.m.OpenDetached(ctx, r, first, ct, keyhold.AAD{})
			ended = time.Now()
			switch {
			case errors.Is(err, keyhold.ErrDisabled):
				refused = true
				return nil
			case errors.Is(err, keyhold.ErrUnavailable):
				return nil // nobody knows; it is not opened
			case err != nil:
				return ignoreEnd(ctx, fmt.Errorf("open with %v: %w", r, err))
			}
			mu.Lock()
			defer mu.Unlock()
			u = uses[first]
			u.OpenBegan, u.OpenEnded = began, ended
			uses[first] = u
			return nil
		}
	}
	c.background(func(ctx context.Context) error { return watch.run(ctx, c.s) }, func(*fleetAnswer) {})
	c.background(func(ctx context.Context) error {
		var wg sync.WaitGroup
		errs := make([]error, len(refs))
		for i, r := range refs {
			wg.Go(func() { errs[i] = fleetTimes(ctx, every, i, len(refs), one(ctx, r)) })
		}
		wg.Wait()
		return errors.Join(errs...)
	}, func(a *fleetAnswer) { a.Uses, a.Refusals, a.Stalls = uses, refusals, watch.lost() })
}

// ignoreEnd is err, unless it is that the process was told to stop.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}

// fleetCall is a call that sealed a message, with its key version's id inserted in a column with a foreign key if that
// was asked for; or that opened the first message again. Error is empty, "stale", or what it says.
type fleetCall struct {
	Opens        bool
	Began, Ended time.Time
	Error        string
	ID           key.ID
	CT           []byte
	Stored       bool
	Over         time.Time // when it was stored, or could not be
}

func fleetError(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, keyhold.ErrStale) && errors.Is(err, keyhold.ErrUnavailable):
		return "stale"
	}
	return err.Error()
}

// write seals messages, which it stores in the application's table secret if it is to, and opens the first again and
// again.
func (c *fleetMember) write(r key.Ref, every time.Duration, stores bool) {
	var seals, opens []fleetCall
	first := make(chan fleetCall, 1)
	c.background(func(ctx context.Context) error {
		return fleetTimes(ctx, every, 0, 1, func() error {
			call := fleetCall{Began: time.Now()}
			var err error
			call.ID, call.CT, err = c.m.SealDetached(ctx, r, []byte("x"), keyhold.AAD{})
			call.Ended, call.Error = time.Now(), fleetError(err)
			if err == nil && len(seals) == 0 {
				first <- call
			}
			if err == nil && stores {
				call.Stored = fleetExec(ctx, c.s, "insert into secret (key_id) values ('"+string(call.ID)+"')") == nil
			}
			call.Over = time.Now()
			if ctx.Err() == nil { // else it may have failed for that
				seals = append(seals, call)
			}
			return nil
		})
	}, func(a *fleetAnswer) { a.Calls = append(a.Calls, seals...) })
	c.background(func(ctx context.Context) error {
		var of fleetCall
		select {
		case of = <-first:
		case <-ctx.Done():
			return nil
		}
		return fleetTimes(ctx, every, 0, 1, func() error {
			call := fleetCall{Opens: true, Began: time.Now()}
			_, err := c.m.OpenDetached(ctx, r, of.ID, of.CT, keyhold.AAD{})
			call.Ended, call.Error = time.Now(), fleetError(err)
			call.Over = call.Ended
			if ctx.Err() == nil {
				opens = append(opens, call)
			}
			return nil
		})
	}, func(a *fleetAnswer) { a.Calls = append(a.Calls, opens...) })
}

// spend seals messages until it may not any more, and returns how many. Each adds a byte to a file, so that those of a
// process that is killed count, too.
func (c *fleetMember) spend(ctx context.Context, r key.Ref, goroutines int) (int, error) {
	f, err := os.OpenFile(fmt.Sprint("spent-", os.Getpid()), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	counts, errs := make([]int, goroutines), make([]error, goroutines)
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for {
				if _, _, err := c.m.SealDetached(ctx, r, nil, keyhold.AAD{}); err != nil {
					errs[i] = err
					return
				}
				if _, err := f.Write([]byte{'x'}); err != nil {
					errs[i] = err
					return
				}
				counts[i]++
			}
		})
	}
	wg.Wait()
	sum := 0
	for i, n := range counts {
		sum += n
		if err := errs[i]; !errors.Is(err, keyhold.ErrUsedUp) || errors.Is(err, keyhold.ErrUnavailable) {
			return sum, fmt.Errorf("the messages came to an end with %w", err)
		}
	}
	return sum, nil
}
