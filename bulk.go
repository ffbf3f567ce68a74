package keyhold

import (
	"cmp"
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Work at many scopes goes in batches. A batch is read and wrapped by all cores while the one before it is written, in
// transactions that are short enough to hold up nobody for long.

// How many scopes are read at once at most, how many first, and how many rows they should have.
const (
	bulkScopes = 250
	readFirst  = 16
	readRows   = 10_000
)

// readPace is how many scopes to read at once, going by how many rows those had that were read last. Those that come
// next may have more: [Manager.readScopes] reads fewer then. The zero value is the first.
type readPace struct{ scopes int }

func (r *readPace) next() int { return cmp.Or(r.scopes, readFirst) }

func (r *readPace) read(families []store.Family) {
	rows := 0
	for i := range families {
		rows += rowsOf(&families[i].Root)
		for j := range families[i].Data {
			rows += rowsOf(&families[i].Data[j])
		}
	}
	if rows > 0 {
		r.scopes = min(max(len(families)*readRows/rows, 1), 2*r.next(), bulkScopes)
	}
}

func rowsOf(k *store.Key) int { return 1 + len(k.Versions) + len(k.Tombstones) }

// unread is a scope that could not be read, and why.
type unread struct {
	scope key.Scope
	err   error
}

// readScopes reads scopes in one question, or, where that fails though the database answers, each half by itself: many
// may take longer than one call may, and one may have rows that nobody understands. The error is of all of them.
func (m *Manager) readScopes(ctx context.Context, scopes []key.Scope) (families []store.Family, bad []unread, err error) {
	err = m.step(ctx, func(ctx context.Context) error {
		families, _, err = m.store.Families(ctx, scopes)
		return err
	})
	switch {
	case err == nil:
		return families, nil, nil
	case ctx.Err() != nil || !m.reachable(ctx):
		return nil, nil, err
	case len(scopes) == 1:
		return nil, []unread{{scopes[0], err}}, nil
	}
	half := len(scopes) / 2
	families, bad, err = m.readScopes(ctx, scopes[:half])
	if err != nil {
		return nil, nil, err
	}
	more, worse, err := m.readScopes(ctx, scopes[half:])
	return append(families, more...), append(bad, worse...), err
}

// How long a transaction should take, and how many rows it may write. What a transaction costs besides its rows is that
// of about a hundred rows: with fewer than paceLeast, a busy machine would only get busier.
const (
	paceTarget = 100 * time.Millisecond
	paceFirst  = 100 // while it is not known how fast the database is
	paceLeast  = 250
	paceMost   = 5000
)

// pace is how many rows the next transaction should write: half as many as the last one if that took too long, twice as
// many if it took less than half the time and was the most that fits into it. The zero value is the first one.
type pace struct{ rows int }

// next is how many rows to write.
func (p *pace) next() int {
	if p.rows == 0 {
		return paceFirst
	}
	return p.rows
}

// took says how long it took to write so many rows. What cut gives is more than half of what it may be, as long as
// there are more items. Of a batch that was smaller, only that it took too long says something, and it never makes
// the next one greater.
func (p *pace) took(rows int, d time.Duration) {
	switch now := p.next(); {
	case d > paceTarget:
		p.rows = min(now, max(min(now, rows)/2, paceLeast))
	case d < paceTarget/2 && rows > now/2:
		p.rows = min(max(2*rows, paceLeast, now), paceMost)
	}
}

// cut is how many of n items, of which each has so many rows, are written next: at least one.
func (p *pace) cut(n int, rows func(i int) int) (items, total int) {
	for items < n && (items == 0 || total+rows(items) <= p.next()) {
		total += rows(items)
		items++
	}
	return items, total
}

// reachable asks the database something that no lock holds up. Where it answers, what could not be done for a scope is
// about that one, of which somebody may have locked rows, and not about all of them.
func (m *Manager) reachable(ctx context.Context) bool {
	return m.step(ctx, func(ctx context.Context) error {
		_, _, err := m.store.Families(ctx, nil)
		return err
	}) == nil
}

// ahead gives what next returns to use, and calls next again meanwhile, until it says that there is no more. It returns
// the first error of either, and after it calls neither again.
func ahead[T any](
	ctx context.Context, next func(context.Context) (batch T, more bool, err error), use func(context.Context, T) error,
) error {
	type made struct {
		batch T
		more  bool
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	batches := make(chan made)
	var producer sync.WaitGroup
	producer.Go(func() {
		defer close(batches)
		for b := (made{more: true}); b.more && b.err == nil; {
			b.batch, b.more, b.err = next(ctx)
			select {
			case batches <- b:
			case <-ctx.Done():
				return
			}
		}
	})
	defer producer.Wait()
	defer cancel()
	for {
		b, ok := <-batches
		if !ok {
			return store.ContextError(ctx)
		}
		if b.err != nil {
			return b.err
		}
		if err := use(ctx, b.batch); err != nil || !b.more {
			return err
		}
	}
}

// inParallel calls do with 0 to n-1, on all cores, and waits for all.
func inParallel(n int, do func(i int)) {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	workers.Wait()
}
