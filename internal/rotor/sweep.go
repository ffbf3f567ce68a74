package rotor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Times and sizes of a sweep.
const (
	// DefaultLease is how long a lease lasts. It is prolonged after a third, so that one key may take the rest.
	DefaultLease = time.Minute

	page         = 200
	releaseLimit = 2 * time.Second

	firstBackoff = time.Minute
	lastBackoff  = time.Hour
	maxFailing   = 65_536 // keys that are remembered as failing, about 100 bytes each
)

// ErrLater means that there is nothing wrong, but something left to do at the key.
var ErrLater = errors.New("to be gone on with")

// Work does what is due at one key, under a lease. [ErrLater] if it has to be looked at again soon; any other error is
// a failure, after which the key is left alone for a while.
type Work func(ctx context.Context, d store.Due, under *store.Lease) error

// Report is what became of a sweep.
type Report struct {
	Done   int // keys at which all was done
	Left   int // keys and buckets that have to be looked at again soon, or are being worked at by others
	Failed int // keys at which something failed, now or lately
}

// Sweeper does what is due. It is not safe for concurrent use.
type Sweeper struct {
	Fleet store.Fleet
	Owner key.ID
	Lease time.Duration // how long each lasts, at least 10 s; 0 is DefaultLease

	failing map[key.ID]failure
}

// failure is when a key may be tried again.
type failure struct {
	times int
	until time.Time
}

// Sweep goes once through all keys that are due, bucket by bucket, each under a lease that nobody else has, and in an
// order of its own, so that several share the work. The error is that of the database; what work failed at is counted.
func (s *Sweeper) Sweep(ctx context.Context, work Work) (Report, error) {
	var report Report
	buckets, err := s.buckets(ctx)
	if err != nil {
		return report, err
	}
	for _, b := range rand.Perm(store.Buckets) { //nolint:gosec // it only has to differ from others' orders
		if !buckets.Has(b) {
			continue
		}
		if err := s.bucket(ctx, b, work, &report); err != nil {
			return report, err
		}
	}
	return report, nil
}

// buckets is those in which something is due, or all, if that is much.
func (s *Sweeper) buckets(ctx context.Context) (store.BucketSet, error) {
	list, err := s.Fleet.Due(ctx, store.AllBuckets, store.Due{}, page)
	if err != nil {
		return 0, err
	}
	if len(list) == page {
		return store.AllBuckets, nil
	}
	var set store.BucketSet
	for _, d := range list {
		set |= 1 << store.Bucket(d.KeyID)
	}
	return set, nil
}

func (s *Sweeper) bucket(ctx context.Context, b int, work Work, report *Report) error {
	held, ok, err := s.Hold(ctx, fmt.Sprintf("keys/%02d", b))
	if err != nil {
		return err
	}
	if !ok {
		report.Left++
		return nil
	}
	defer held.Release(ctx)
	for after := (store.Due{}); ; {
		list, err := s.Fleet.Due(ctx, 1<<b, after, page)
		if err != nil {
			return err
		}
		for _, d := range list {
			if err := held.Prolong(ctx); errors.Is(err, ErrLost) {
				report.Left++
				return nil
			} else if err != nil {
				return err
			}
			s.one(ctx, d, work, held, report)
			if ctx.Err() != nil {
				return store.ContextError(ctx)
			}
		}
		if len(list) < page {
			return nil
		}
		after = list[len(list)-1]
	}
}

func (s *Sweeper) one(ctx context.Context, d store.Due, work Work, held *Held, report *Report) {
	if f, ok := s.failing[d.KeyID]; ok && time.Now().Before(f.until) {
		report.Failed++
		return
	}
	switch err := work(ctx, d, &held.lease); {
	case err == nil:
		delete(s.failing, d.KeyID)
		report.Done++
	case errors.Is(err, ErrLater):
		report.Left++
	case ctx.Err() != nil:
	default:
		s.failed(d.KeyID)
		report.Failed++
	}
}

// failed puts a key off, for twice as long as the last time.
func (s *Sweeper) failed(id key.ID) {
	if s.failing == nil || len(s.failing) >= maxFailing {
		s.failing = map[key.ID]failure{}
	}
	f := s.failing[id]
	wait := min(firstBackoff<<min(f.times, 10), lastBackoff)
	s.failing[id] = failure{times: f.times + 1, until: time.Now().Add(Jitter(wait))}
}

// Held is a lease that its owner has.
type Held struct {
	fleet store.Fleet
	lease store.Lease
	since time.Time
	lasts time.Duration
}

// Lease is what writes under it say.
func (h *Held) Lease() *store.Lease { return &h.lease }

// Hold takes the lease of that name, if nobody else has it.
func (s *Sweeper) Hold(ctx context.Context, name string) (*Held, bool, error) {
	h := &Held{fleet: s.Fleet, since: time.Now(), lasts: cmp.Or(s.Lease, DefaultLease)}
	var ok bool
	var err error
	if h.lease, ok, err = s.Fleet.Lease(ctx, name, s.Owner, int64(h.lasts/time.Second)); err != nil {
		return nil, false, err
	}
	return h, ok, nil
}

// ErrLost means that the lease was over, and somebody else may have had it.
var ErrLost = errors.New("it was lost to somebody else")

// Prolong makes sure that the lease does not end soon. An error if it was lost.
func (h *Held) Prolong(ctx context.Context) error {
	if time.Since(h.since) < h.lasts/3 {
		return nil
	}
	began := time.Now()
	l, ok, err := h.fleet.Lease(ctx, h.lease.Name, h.lease.Owner, int64(h.lasts/time.Second))
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("prolong lease %q: %w", h.lease.Name, ErrLost)
	case l.Fence != h.lease.Fence: // it was over, and is another now, which is given back
		h.lease = l
		return fmt.Errorf("prolong lease %q: %w", h.lease.Name, ErrLost)
	}
	h.lease, h.since = l, began
	return nil
}

// Release gives the lease back, also after the end of the context that it was taken under. Where that fails, it ends by
// itself.
func (h *Held) Release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseLimit)
	defer cancel()
	_ = h.fleet.Release(ctx, h.lease)
}

// Jitter is d, a fifth longer or shorter, so that instances that were started together do not stay together.
func Jitter(d time.Duration) time.Duration {
	fifth := int64(d / 5)
	if fifth == 0 {
		return d
	}
	return d - time.Duration(fifth) + time.Duration(rand.Int64N(2*fifth)) //nolint:gosec // it only has to differ from what others wait
}
