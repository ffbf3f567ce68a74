package rotor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

// pass lets time pass in a bubble of synctest.
func pass(d time.Duration) { <-time.After(d) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a database in which keys are due, and a record of who worked at them.
type world struct {
	db    *memstore.Store
	calls *faultstore.Store // in front of db
	maker *storetest.Maker

	mu    sync.Mutex
	keys  map[key.ID]store.Key
	order []key.ID // in which they are due
	tries map[key.ID][]time.Time
}

// inWorld runs f in a bubble.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		w := &world{db: memstore.New(), maker: storetest.NewMaker(1), keys: map[key.ID]store.Key{}, tries: map[key.ID][]time.Time{}}
		w.db.Clock = func() time.Time { return time.Now().AddDate(50, 0, 0) } // whatever a Maker makes is due by then
		w.calls = faultstore.New(w.db)
		check(t, w.db.Migrate(t.Context()))
		check(t, w.db.Initialize(t.Context(), w.maker.Installation()))
		f(t, w)
		storetest.Check(t, w.db)
	})
}

// due makes n keys of a bucket, which are due after all that there are.
func (w *world) due(t *testing.T, bucket, n int) {
	t.Helper()
	var keys []store.Key
	for range n {
		k := w.maker.RootKey(key.Scope(fmt.Sprint("s", len(w.order))))
		for store.Bucket(k.ID) != bucket {
			k.ID = w.maker.ID(key.PrefixRootKey)
		}
		k.RotateAt += int64(len(w.order)) - 10_000
		keys, w.order = append(keys, k), append(w.order, k.ID)
		w.keys[k.ID] = k
	}
	made, err := w.db.Create(t.Context(), w.maker.Inst(), keys)
	if check(t, err); made != n {
		t.Fatalf("%d keys were made, want %d", made, n)
	}
}

// sweeper returns one that has nothing in common with others but the database.
func (w *world) sweeper() *Sweeper {
	return &Sweeper{Fleet: w.calls, Owner: w.maker.ID(key.PrefixInstance)}
}

// alone is a Work that works at each key by itself.
func alone(work func(ctx context.Context, d store.Due, under *store.Lease) error) Work {
	return func(ctx context.Context, due []store.Due, under *store.Lease) []error {
		if len(due) == 1 {
			return []error{work(ctx, due[0], under)}
		}
		return slices.Repeat([]error{ErrAlone}, len(due))
	}
}

// try is what every work of these tests does first.
func (w *world) try(d store.Due) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries[d.KeyID] = append(w.tries[d.KeyID], time.Now())
}

// rotate is work, after which the key is not due any more.
func (w *world) rotate(ctx context.Context, d store.Due, under *store.Lease) error {
	w.try(d)
	k := w.keys[d.KeyID]
	u := w.maker.Next(&k)
	u.RotateAt, u.Manifest.RotateEvery, u.Lease = 0, 0, under
	err := w.db.Update(ctx, u)
	if errors.Is(err, store.ErrConflict) {
		return ErrLater
	}
	return err
}

// tried asserts that each key was tried once.
func (w *world) tried(t *testing.T) {
	t.Helper()
	for _, id := range w.order {
		if n := len(w.tries[id]); n != 1 {
			t.Errorf("key %s of bucket %d was tried %d times, want once", id, store.Bucket(id), n)
		}
	}
}

// free says whether nobody has the lease of a bucket.
func (w *world) free(t *testing.T, bucket int) bool {
	t.Helper()
	return w.freeName(t, fmt.Sprintf("keys/%02d", bucket))
}

// freeName says whether nobody has the lease of that name.
func (w *world) freeName(t *testing.T, name string) bool {
	t.Helper()
	other := &Sweeper{Fleet: w.db, Owner: w.maker.ID(key.PrefixInstance)}
	held, ok, err := other.Hold(t.Context(), name)
	if check(t, err); ok {
		held.Release(t.Context())
	}
	return ok
}

// Each key that is due is worked at once, under the lease of its bucket, which is given back. Where nothing is due, no
// lease is taken.
func TestASweepWorksOffAllBuckets(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for b := range store.Buckets {
			w.due(t, b, b%3)
		}
		s := w.sweeper()
		report, err := s.Sweep(t.Context(), alone(func(ctx context.Context, d store.Due, under *store.Lease) error {
			b := store.Bucket(d.KeyID)
			if want := fmt.Sprintf("keys/%02d", b); under.Name != want || under.Owner != s.Owner {
				t.Errorf("under the lease %q of %s, want %q of %s", under.Name, under.Owner, want, s.Owner)
			}
			if w.free(t, b) {
				t.Errorf("the lease of bucket %d is not held", b)
			}
			return w.rotate(ctx, d, under)
		}))
		if want := (Report{Done: len(w.order)}); err != nil || report != want {
			t.Errorf("%+v, %v; want %+v", report, err, want)
		}
		w.tried(t)
		for b := range store.Buckets {
			if !w.free(t, b) {
				t.Errorf("the lease of bucket %d was not given back", b)
			}
		}

		before := w.calls.Calls()
		report, err = s.Sweep(t.Context(), alone(w.rotate))
		if err != nil || report != (Report{}) {
			t.Errorf("with nothing due: %+v, %v", report, err)
		}
		if got := w.calls.Log()[before:]; !slices.Equal(got, []string{"Due"}) {
			t.Errorf("with nothing due: %v, want one question", got)
		}
	})
}

// Of several that sweep at once, no two are in the same bucket at a time, so never at the same key either; together
// they are as much faster as they are more.
func TestSweepersShareTheWork(t *testing.T) {
	const inBucket, takes = 4, time.Second
	for _, sweepers := range []int{2, 5} {
		inWorld(t, func(t *testing.T, w *world) {
			for b := range store.Buckets {
				w.due(t, b, inBucket)
			}
			var mu sync.Mutex
			var busy [store.Buckets]int
			began := time.Now()
			var wg sync.WaitGroup
			done := make([]int, sweepers)
			for i := range sweepers {
				s := w.sweeper()
				wg.Go(func() {
					report, err := s.Sweep(t.Context(), alone(func(ctx context.Context, d store.Due, under *store.Lease) error {
						enter := func(n int) {
							mu.Lock()
							defer mu.Unlock()
							if busy[store.Bucket(d.KeyID)] += n; busy[store.Bucket(d.KeyID)] > 1 {
								t.Errorf("two are in bucket %d", store.Bucket(d.KeyID))
							}
						}
						enter(1)
						defer enter(-1)
						pass(takes)
						return w.rotate(ctx, d, under)
					}))
					if err != nil || report.Failed != 0 {
						t.Errorf("%+v, %v", report, err)
					}
					done[i] = report.Done
				})
			}
			wg.Wait()
			took := time.Since(began)
			w.tried(t)
			// When the first has nothing left to do, each other has at most the bucket that it is in.
			limit := takes * time.Duration((len(w.order)+(sweepers-1)*inBucket)/sweepers+1)
			if took > limit || slices.Min(done) == 0 {
				t.Errorf("%d sweepers did %v and took %v, want at most %v", sweepers, done, took, limit)
			}
		})
	}
}

// A list that is longer than a page is gone through to its end, each key once and in order, whether it gets shorter
// meanwhile or not; and a bucket of which nothing is on the first page is not forgotten.
func TestMoreKeysThanOnOnePage(t *testing.T) {
	const busy, last = 7, 9
	for _, n := range []int{page - 1, page, page + 1, 2*page + 50} {
		for name, left := range map[string]bool{"done": false, "left": true} {
			t.Run(fmt.Sprint(n, " ", name), func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.due(t, busy, n)
					w.due(t, last, 1)
					var order []key.ID
					report, err := w.sweeper().Sweep(t.Context(), alone(func(ctx context.Context, d store.Due, under *store.Lease) error {
						if store.Bucket(d.KeyID) == busy {
							order = append(order, d.KeyID)
						}
						if left {
							w.try(d)
							return fmt.Errorf("wait for others: %w", ErrLater)
						}
						return w.rotate(ctx, d, under)
					}))
					want := Report{Done: n + 1}
					if left {
						want = Report{Left: n + 1}
					}
					if err != nil || report != want {
						t.Errorf("%+v, %v; want %+v", report, err, want)
					}
					w.tried(t)
					if !slices.Equal(order, w.order[:n]) {
						t.Error("not in the order in which they are due")
					}
				})
			})
		}
	}
}

// A key whose work fails is tried again after a minute, then after twice as long each time, up to an hour, each a fifth
// longer or shorter. It holds up no other, and is counted while it is put off. When it was done, that is forgotten.
func TestAKeyThatFailsIsTriedEverLessOften(t *testing.T) {
	const every = 5 * time.Second
	inWorld(t, func(t *testing.T, w *world) {
		w.due(t, 3, 5)
		w.due(t, 4, 1)
		bad := w.order[1] // others of its bucket come after it
		s := w.sweeper()
		broken := true
		work := func(ctx context.Context, d store.Due, under *store.Lease) error {
			if d.KeyID == bad && broken {
				w.try(d)
				return errors.New("the root key does not open")
			}
			return w.rotate(ctx, d, under)
		}
		sweep := func(want Report) {
			t.Helper()
			if report, err := s.Sweep(t.Context(), alone(work)); err != nil || report != want {
				t.Fatalf("%+v, %v; want %+v", report, err, want)
			}
			pass(every)
		}
		sweep(Report{Done: 5, Failed: 1})
		for began := time.Now(); time.Since(began) < 24*time.Hour; {
			sweep(Report{Failed: 1})
		}
		wait := time.Minute
		for i, at := range w.tries[bad][1:] {
			gap := at.Sub(w.tries[bad][i])
			if least, most := wait-wait/5, wait+wait/5+every; gap < least || gap > most {
				t.Errorf("try %d came %v after the one before, want %v to %v", i+2, gap, least, most)
			}
			wait = min(2*wait, time.Hour)
		}
		if n := len(w.tries[bad]); n < 24 || n > 36 {
			t.Errorf("%d tries in a day", n)
		}

		broken = false
		for n := len(w.tries[bad]); len(w.tries[bad]) == n; {
			if report, err := s.Sweep(t.Context(), alone(work)); err != nil || report.Done+report.Failed != 1 {
				t.Fatalf("%+v, %v", report, err)
			}
			pass(every)
		}
		sweep(Report{})
		broken = true
		w.db.Edit(func(d *memstore.Data) {
			for i := range d.Keys {
				if d.Keys[i].ID == bad {
					d.Keys[i].RotateAt, d.Keys[i].RotateEvery = 1, 1
				}
			}
		})
		sweep(Report{Failed: 1})
		n := len(w.tries[bad])
		pass(72 * time.Second)
		sweep(Report{Failed: 1})
		if len(w.tries[bad]) != n+1 {
			t.Error("after a success it is put off as if there had been none")
		}
	})
}

// Keys that fail take a bounded amount of memory.
func TestFailuresAreForgottenWhenThereAreTooMany(t *testing.T) {
	s := &Sweeper{}
	for i := range maxFailing {
		s.failed(key.ID(fmt.Sprint(i)))
	}
	if len(s.failing) != maxFailing {
		t.Errorf("%d are remembered, want %d", len(s.failing), maxFailing)
	}
	s.failed("one more")
	if _, ok := s.failing["one more"]; !ok || len(s.failing) > maxFailing {
		t.Errorf("%d are remembered, the last one: %v", len(s.failing), ok)
	}
}

// What is left to do is no failure: the next sweep tries it again, however soon that comes.
func TestWhatIsLeftIsTriedAgainAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.due(t, 0, 2)
		s := w.sweeper()
		for range 3 {
			report, err := s.Sweep(t.Context(), alone(func(_ context.Context, d store.Due, _ *store.Lease) error {
				w.try(d)
				return fmt.Errorf("wait for others: %w", ErrLater)
			}))
			if want := (Report{Left: 2}); err != nil || report != want {
				t.Errorf("%+v, %v; want %+v", report, err, want)
			}
		}
		if n := len(w.tries[w.order[0]]); n != 3 {
			t.Errorf("tried %d times in three sweeps", n)
		}
	})
}

// A bucket that another is at is left to that one, and looked at again.
func TestABucketOfAnotherIsLeftAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.due(t, 3, 2)
		w.due(t, 4, 1)
		one, other := w.sweeper(), w.sweeper()
		held, ok, err := other.Hold(t.Context(), "keys/03")
		if check(t, err); !ok {
			t.Fatal("a lease that nobody has was not given")
		}
		report, err := one.Sweep(t.Context(), alone(w.rotate))
		if want := (Report{Done: 1, Left: 1}); err != nil || report != want {
			t.Errorf("%+v, %v; want %+v", report, err, want)
		}
		held.Release(t.Context())
		report, err = one.Sweep(t.Context(), alone(w.rotate))
		if want := (Report{Done: 2}); err != nil || report != want {
			t.Errorf("when it is free: %+v, %v; want %+v", report, err, want)
		}
		w.tried(t)
	})
}

// Sweeps go through the buckets in orders of their own, so that those that begin together do not stay together.
func TestSweepsHaveOrdersOfTheirOwn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for b := range store.Buckets {
			w.due(t, b, 1)
		}
		var orders [2][]int
		for i := range orders {
			_, err := w.sweeper().Sweep(t.Context(), alone(func(_ context.Context, d store.Due, _ *store.Lease) error {
				orders[i] = append(orders[i], store.Bucket(d.KeyID))
				return ErrLater
			}))
			check(t, err)
		}
		if len(orders[0]) != store.Buckets || slices.Equal(orders[0], orders[1]) {
			t.Errorf("both in the order %v", orders[0])
		}
	})
}
