package pgstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// listening starts to listen, and returns when it does. Each call of heard is one value.
func listening(t *testing.T, s *Store) (heard <-chan struct{}, ended <-chan error, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	calls, result := make(chan struct{}, 100), make(chan error, 1)
	go func() { result <- s.Listen(ctx, func() { calls <- struct{}{} }) }()
	t.Cleanup(cancel)
	await(t, calls)
	return calls, result, cancel
}

func await[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing comes")
	}
	return v
}

// told makes sure that what was told before is heard by now, by telling something to all.
func told(t *testing.T, s *Store, heard ...<-chan struct{}) (times []int) {
	t.Helper()
	// A session's notifications come in the order of the commits.
	for _, schema := range []string{"public", "elsewhere"} {
		for _, prefix := range []string{"kms", "kms_root"} {
			mustExec(t, s, "select pg_notify($1, $2)", prefix+"_keys", schema)
		}
	}
	for _, c := range heard {
		n := 1
		await(t, c)
		for len(c) > 0 {
			<-c
			n++
		}
		times = append(times, n)
	}
	return times
}

// Whoever listens hears what its own installation is told, and nothing else.
func TestListenHearsOfItsOwnKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := keyholdtest.Postgres(t)
	stores := []*Store{byOpen(t, Config{}, dsn), byOpen(t, Config{Prefix: "kms_root"}, dsn), byOpen(t, Config{Schema: "elsewhere"}, dsn)}
	for _, s := range stores {
		sqltest.Initialized(t, s, storetest.NewMaker(1))
	}
	for i, s := range stores {
		var own <-chan struct{}
		var others []<-chan struct{}
		for j := range stores {
			if heard, _, _ := listening(t, stores[j]); i == j {
				own = heard
			} else {
				others = append(others, heard)
			}
		}
		must(t, s.Notify(ctx))
		await(t, own)
		for _, n := range told(t, s, others...) {
			if n != 1 {
				t.Errorf("another installation heard %d times of installation %d", n-1, i)
			}
		}
	}
}

// While heard is called, what is told is kept for one more call.
func TestListenTellsOnceOfManyChanges(t *testing.T) {
	t.Parallel()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	sqltest.Initialized(t, s, storetest.NewMaker(1))
	ctx, cancel := context.WithCancel(t.Context())
	calls, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Listen(ctx, func() { calls <- struct{}{} }) }()
	await(t, calls)
	must(t, s.Notify(ctx))
	await(t, calls) // so the second of these is the last that is told of the many
	heard := func() (n int) {
		for range 50 {
			must(t, s.Notify(ctx))
		}
		for {
			select {
			case <-calls:
				n++
			case <-time.After(500 * time.Millisecond):
				return n
			}
		}
	}
	// Of a server that is slow to pass them on, some come while somebody looks again.
	n, tries := heard(), 1
	for ; n > 25 && tries < 5; tries++ {
		n = heard()
	}
	if n < 1 || n > 25 {
		t.Errorf("heard %d times of 50 changes while nobody looked, in the last of %d tries; want a few times", n, tries)
	}
	cancel()
	if err := await(t, ended); !errors.Is(err, context.Canceled) {
		t.Errorf("Listen: %v, want that it was cancelled", err)
	}
}

// The pool is as large as before, and whoever lost the connection can begin again.
func TestListenEnds(t *testing.T) {
	t.Parallel()
	dsn := keyholdtest.Postgres(t)
	s := byNew(t, Config{}, dsn+"&pool_max_conns=1")
	sqltest.Initialized(t, s, storetest.NewMaker(1))
	heard, ended, _ := listening(t, s)
	must(t, s.Notify(t.Context())) // on the pool's only connection
	await(t, heard)
	mustExec(t, byOpen(t, Config{}, dsn), "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like 'listen%'")
	if err := await(t, ended); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("connection lost: %v, want %v", err, store.ErrUnavailable)
	}
	_, ended, stop := listening(t, s)
	stop()
	if err := await(t, ended); !errors.Is(err, context.Canceled) {
		t.Errorf("context over: %v, want %v", err, context.Canceled)
	}
	var schema *store.SchemaError
	if err := byOpen(t, Config{Prefix: "none"}, dsn).Listen(t.Context(), func() {}); !errors.As(err, &schema) {
		t.Errorf("without tables: %v, want a %T", err, schema)
	}
	if err := bySQL("pgx")(t, Config{}, dsn).Listen(t.Context(), func() {}); err == nil || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("database/sql: %v, want that it never will", err)
	}
}

// A connection that another client of the pooler gets next does not listen.
func TestListenLeavesNothingBehindInAPooler(t *testing.T) {
	t.Parallel()
	dsn := bouncer(t)(t, keyholdtest.Postgres(t))
	s := byOpen(t, Config{}, dsn)
	sqltest.Initialized(t, s, storetest.NewMaker(1))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.Listen(ctx, func() { t.Error("heard") }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Listen: %v, want %v", err, context.DeadlineExceeded)
	}
	var listening int
	must(t, s.Pool().QueryRow(t.Context(),
		"select count(*) from pg_stat_activity where datname = current_database() and query like 'listen%'").Scan(&listening))
	if listening > 0 {
		t.Errorf("%d of the server's connections listen", listening)
	}
}
