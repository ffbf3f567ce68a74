package keyhold

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// What the messages that a version may still seal are counted in. The database gives a process a block of them, as many
// as it has taken before, from one to a sixty-fourth of all: so a process that ends leaves at most as many unused as it
// has sealed. The process deals a block out in chunks to shards, so that two cores that seal seldom write to one cache
// line. What a shard holds comes from a block, and no block is given twice, so that the limit holds over all instances
// whatever becomes of them.
const (
	budgetShards = 8
	budgetChunk  = 64
	budgetBlock  = 8192
	budgetParts  = 64
)

// budget is what one process may still seal with one version. It is safe for concurrent use.
type budget struct {
	id     key.ID
	shards [budgetShards]budgetShard
	lock   chan struct{} // holds a token while somebody deals out, or asks the database
	block  uint64        // what is left of it; guarded by lock, and so are
	part   uint64        // how many it was to have
	taken  uint64        // how many all of them had
	none   nothing

	// wanted is the key, if somebody had to take a message of it in a transaction of the application's for want of a
	// block.
	wanted atomic.Pointer[store.Key]
}

// nothing is that there was nothing left of so many messages at that time.
type nothing struct {
	of uint64
	at time.Time
}

type budgetShard struct {
	left atomic.Int64
	_    [120]byte // two cache lines, as they are read in pairs
}

func (b *budget) key() key.ID { return b.id }

func newBudget(id key.ID) *budget { return &budget{id: id, lock: make(chan struct{}, 1)} }

// anyShard spreads what many cores count.
func anyShard() int { return rand.IntN(budgetShards) } //nolint:gosec // it only spreads what is counted

// take takes one message of those that the version, data's head, may seal over all instances. [ErrUsedUp] if there is
// none.
func (b *budget) take(ctx context.Context, m *Manager, data *store.Key) error {
	first := anyShard()
	if b.shards[first].take() {
		return nil
	}
	select {
	case b.lock <- struct{}{}:
	case <-ctx.Done():
		return store.ContextError(ctx)
	}
	defer func() { <-b.lock }()
	if b.shards[first].take() { // somebody dealt out meanwhile
		return nil
	}
	if b.block == 0 {
		if b.fromAny() {
			return nil
		}
		if b.none.of == data.MaxMessages && time.Since(b.none.at) < restFor { // refusing is no load
			return fmt.Errorf("key version %s: %w", b.id, ErrUsedUp)
		}
		if err := b.takeBlock(ctx, m, data); err != nil {
			return err
		}
	}
	if b.block == 0 {
		b.none = nothing{data.MaxMessages, time.Now()}
		return fmt.Errorf("key version %s: %w", b.id, ErrUsedUp)
	}
	n := min(b.block, max(1, min(budgetChunk, b.part/budgetShards)))
	b.block -= n
	b.shards[first].left.Add(int64(n) - 1)
	return nil
}

// takeKept takes one message of those that this process has, and says whether there was one.
func (b *budget) takeKept() bool {
	if b.shards[anyShard()].take() || b.fromAny() {
		return true
	}
	select {
	case b.lock <- struct{}{}:
	default:
		return false
	}
	defer func() { <-b.lock }()
	if b.block == 0 {
		return false
	}
	b.block--
	return true
}

// refill gets a block for whoever wanted one in a transaction.
func (b *budget) refill(ctx context.Context, m *Manager) error {
	data := b.wanted.Swap(nil)
	if data == nil {
		return nil
	}
	select {
	case b.lock <- struct{}{}:
	case <-ctx.Done():
		return store.ContextError(ctx)
	}
	defer func() { <-b.lock }()
	if b.block > 0 {
		return nil
	}
	return b.takeBlock(ctx, m, data)
}

// takeBlock asks the database for messages.
func (b *budget) takeBlock(ctx context.Context, m *Manager, data *store.Key) (err error) {
	ctx, sp := m.telemetry.span(ctx, "keyhold.take")
	defer func() { sp.end(err) }()
	sp.key(data, data.Head)
	b.part = max(1, min(b.taken, budgetBlock, (data.MaxMessages-1)/budgetParts+1))
	if b.block, err = m.store.Take(ctx, b.id, b.part, data.MaxMessages); err != nil {
		return fmt.Errorf("key version %s: %w", b.id, noneLeft(err))
	}
	b.taken += b.block
	signal(m.cache.work) // it may have been the last of four fifths
	if b.block > 0 {
		m.telemetry.count(ctx, m.telemetry.blocks, 1, attrPurpose.String(string(data.Purpose)))
	}
	return nil
}

// noneLeft says of a database that is away that this process has nothing left to seal with, either. The version may
// have.
func noneLeft(err error) error {
	if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknownOutcome) {
		return &wordedError{
			"this process has used up its part of the messages, and the database, which has the rest, is away: " + err.Error(),
			[]error{ErrUsedUp, ErrUnavailable, err},
		}
	}
	return err
}

// fromAny takes what is left in any shard.
func (b *budget) fromAny() bool {
	for i := range b.shards {
		if b.shards[i].take() {
			return true
		}
	}
	return false
}

func (s *budgetShard) take() bool {
	for {
		left := s.left.Load()
		if left <= 0 {
			return false
		}
		if s.left.CompareAndSwap(left, left-1) {
			return true
		}
	}
}

// spend takes one message of those that data's head may seal, if there is a limit. Inside the application's transaction
// it is one that this process has, which counts whatever becomes of the transaction; or, where it has none, one that is
// taken in that transaction, and then Run gets some more.
func (r reader) spend(ctx context.Context, data *store.Key, head *store.Version) error {
	if data.MaxMessages == 0 {
		return nil
	}
	b := r.m.cache.budget(head.ID)
	if !r.tx {
		return b.take(ctx, r.m, data)
	}
	if b.takeKept() {
		return nil
	}
	b.wanted.Store(data)
	signal(r.m.cache.work)
	n, err := r.q.Take(ctx, head.ID, 1, data.MaxMessages)
	switch {
	case err != nil:
		return fmt.Errorf("key version %s: %w", head.ID, err)
	case n == 0:
		return fmt.Errorf("key version %s: %w", head.ID, ErrUsedUp)
	}
	return nil
}
