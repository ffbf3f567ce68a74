package pgstore

import (
	"context"
	"sync"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// tidy tidies up until there is no more to do.
func tidy(t *testing.T, s *Store) {
	t.Helper()
	for more := true; more; {
		var err error
		more, err = s.Tidy(context.WithoutCancel(t.Context()))
		must(t, err)
	}
}

// rowsOfABucket is how many rows there are at most of one epoch.
func rowsOfABucket(t *testing.T, s *Store) (n int) {
	t.Helper()
	must(t, s.Pool().QueryRow(t.Context(), "select max(n) from (select count(*) as n from kms_epoch group by bucket) b").Scan(&n))
	return n
}

// Each call ends soon, however much there is to do, and what it did stays. It is not run in parallel, nor is the next:
// what other tests delete stays for as long as its transactions last.
func TestTidyDoesABoundedAmountAndSaysWhetherThereIsMore(t *testing.T) {
	ctx := t.Context()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	m := storetest.NewMaker(1)
	sqltest.Initialized(t, s, m)
	mustExec(t, s, "insert into {prefix}_epoch (bucket, n) select i % 3, i from generate_series(1, 100001) i")
	mustExec(t, s, "insert into {prefix}_epoch (bucket, n) values (31, 7)")
	mustExec(t, s, "insert into {prefix}_instance (private_id, name, seen, life, since, signed) "+
		"select 'ki_' || i, '', decode(repeat('00', 256), 'hex'), 60, 1, 1 from generate_series(1, 50001) i")
	before, err := s.Epochs(ctx)
	must(t, err)
	for i, want := range []struct {
		epochs, instances int
		more              bool
	}{{50_005, 1, true}, {8, 0, true}, {4, 0, false}, {4, 0, false}} {
		more, err := s.Tidy(ctx)
		must(t, err)
		got := want
		got.more = more
		must(t, s.Pool().QueryRow(ctx, "select (select count(*) from kms_epoch), (select count(*) from kms_instance)").
			Scan(&got.epochs, &got.instances))
		if got != want {
			t.Errorf("call %d left %+v, want %+v", i+1, got, want)
		}
	}
	after, err := s.Epochs(ctx)
	if must(t, err); after.Keys != before.Keys {
		t.Errorf("%v before, %v after", before, after)
	}
}

// Two at once share the work, and who reads meanwhile sees nothing of it.
func TestTidyAtOnceIsNeverSeen(t *testing.T) {
	ctx := t.Context()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	sqltest.Initialized(t, s, storetest.NewMaker(1))
	mustExec(t, s, "insert into {prefix}_epoch (bucket, n) select i % 32, i from generate_series(1, 150000) i")
	want, err := s.Epochs(ctx)
	must(t, err)
	var tidying, reading sync.WaitGroup
	for range 2 {
		tidying.Go(func() {
			for more := true; more; {
				var err error
				if more, err = s.Tidy(ctx); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	reading.Go(func() {
		for {
			if got, err := s.Epochs(ctx); err != nil || got.Keys != want.Keys {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	tidying.Wait()
	close(done)
	reading.Wait()
	tidy(t, s)
	if left := rowsOfABucket(t, s); left != 1 {
		t.Errorf("%d rows of one bucket are left", left)
	}
}

// Any number of processes may add up the epochs while keys change, and none is ever seen to go back.
func TestTidyBesideItselfKeepsTheEpochs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	sqltest.Initialized(t, s, storetest.NewMaker(1))
	const writers, changes = 4, 150
	var writing, wg sync.WaitGroup
	done := make(chan struct{})
	for range writers {
		writing.Go(func() {
			for i := range changes {
				mustExec(t, s, "insert into {prefix}_epoch (bucket, n) values ($1, 1), ($1, 2)", int64(i%3+20))
			}
		})
	}
	until := func(f func()) {
		wg.Go(func() {
			for {
				f()
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range 4 {
		until(func() {
			if _, err := s.Tidy(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	var last store.Epochs
	until(func() {
		e, err := s.Epochs(ctx)
		if err != nil {
			t.Error(err)
			return
		}
		for b := range e.Keys {
			if e.Keys[b] < last.Keys[b] {
				t.Errorf("bucket %d went back from %d to %d", b, last.Keys[b], e.Keys[b])
			}
		}
		last = e
	})
	writing.Wait()
	close(done)
	wg.Wait()
	tidy(t, s)
	e, err := s.Epochs(ctx)
	must(t, err)
	for b := 20; b < 23; b++ {
		if want := uint64(writers * changes); e.Keys[b] != want {
			t.Errorf("bucket %d: %d, want %d", b, e.Keys[b], want)
		}
	}
	if left := rowsOfABucket(t, s); left != 1 {
		t.Errorf("%d rows of one bucket are left", left)
	}
}

// What is read of many rows is read of their sum, too, where it is greater than a column can hold.
func TestTidyAddsUpWhatNoColumnHolds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	sqltest.Initialized(t, s, storetest.NewMaker(1))
	mustExec(t, s, "insert into {prefix}_epoch (bucket, n) values (7, 9223372036854775807), (7, 9223372036854775807)")
	mustExec(t, s, "insert into {prefix}_epoch (bucket, n) values (8, 9223372036854775807), (8, 9223372036854775806), (8, 5)")
	before, err := s.Epochs(ctx)
	must(t, err)
	tidy(t, s)
	after, err := s.Epochs(ctx)
	must(t, err)
	if after.Keys != before.Keys || before.Keys[8] != 4 || before.Keys[7] != 0 {
		t.Errorf("%v before, %v after", before.Keys, after.Keys)
	}
}

// Versions that were used up and then replaced do not slow down the list of those that are to be.
func TestTidyForgetsThatOldVersionsWereUsed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, m, f, _ := leased(t)
	k := f.Data[0]
	_, err := s.Take(ctx, k.Versions[0].ID, 80, 100)
	must(t, err)
	marked := func() (n int) {
		must(t, s.Pool().QueryRow(ctx, "select count(*) from kms_usage where used_at is not null").Scan(&n))
		return n
	}
	tidy(t, s)
	if n := marked(); n != 1 {
		t.Fatalf("%d versions are marked, want the head", n)
	}
	must(t, s.Update(ctx, m.Add(&k, &f.Root)))
	f, err = s.Key(ctx, key.Ref{Scope: "a", Purpose: "one"})
	must(t, err)
	must(t, s.Update(ctx, m.Activate(&f.Data[0], 2)))
	tidy(t, s)
	if n := marked(); n != 0 {
		t.Errorf("%d versions are marked, want none", n)
	}
}
