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

	// together is how long working at several keys at once is to take. That is two or three transactions, during which
	// others may have to wait.
	together = 300 * time.Millisecond
	first    = 16 // keys

	firstBackoff = time.Minute
	lastBackoff  = time.Hour
	maxFailing   = 65_536 // keys that are remembered as failing, about 100 bytes each
)

// What work says of a key.
var (
	// ErrLater means that there is nothing wrong, but something left to do at the key.
	ErrLater = errors.New("to be gone on with")

	// ErrAlone means that the key is to be worked at by itself, because of something that holds up the others or is not
	// known to be its own.
	ErrAlone = errors.New("to be tried alone")
)

// Work does what is due at keys, each of which comes once for each reason, under a lease, and says what became of each.
// [ErrLater] if it has to be looked at again soon; [ErrAlone] if work is to be called with it alone, and never then;
// any other error is a failure, after which the key is left alone for a while.
type Work func(ctx context.Context, due []store.Due, under *store.Lease) []error

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
	size    int // how many keys are worked at together
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
	s.size = cmp.Or(s.size, first)
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
		for rest := list; len(rest) > 0; {
			n := min(max(s.size, 1), len(rest))
			if err := s.some(ctx, rest[:n], work, held, report); errors.Is(err, ErrLost) {
				report.Left++
				return nil
			} else if err != nil {
				return err
			}
			rest = rest[n:]
		}
		if len(list) < page {
			return nil
		}
		after = list[len(list)-1]
	}
}

// some works at keys together, and alone at those for which that is no use.
func (s *Sweeper) some(ctx context.Context, list []store.Due, work Work, held *Held, report *Report) error {
	due := list[:0:0]
	for _, d := range list {
		if f, ok := s.failing[d.KeyID]; ok && time.Now().Before(f.until) {
			report.Failed++
			continue
		}
		due = append(due, d)
	}
	if len(due) == 0 {
		return nil
	}
	if err := held.Prolong(ctx); err != nil {
		return err
	}
	began := time.Now()
	errs := work(ctx, due, &held.lease)
	s.adapt(len(due), time.Since(began))
	for i, d := range due {
		if errors.Is(errs[i], ErrAlone) && ctx.Err() == nil {
			if err := held.Prolong(ctx); err != nil {
				return err
			}
			errs[i] = work(ctx, due[i:i+1], &held.lease)[0]
		}
		s.one(ctx, d, errs[i], report)
	}
	if ctx.Err() != nil {
		return store.ContextError(ctx)
	}
	return nil
}

// adapt makes the next round as large as fits into the time, but at most twice as large as this one.
func (s *Sweeper) adapt(keys int, took time.Duration) {
	size := max(s.size, 2*keys)
	if took > together/2 {
		size = int(time.Duration(keys) * together / took)
	}
	s.size = min(max(size, 1), page)
}

func (s *Sweeper) one(ctx context.Context, d store.Due, err error, report *Report) {
	switch {
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
