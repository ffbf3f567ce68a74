package dekmanager

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

func TestOptionsAsSettings(t *testing.T) {
	settings := func(option DEKManagerOption) keyhold.Config {
		t.Helper()
		config := defaults(nil, make([]byte, mekSize))
		if option != nil {
			option(&config)
		}
		s := config.settings()
		s.Generators = nil // has a test of its own, and cannot be compared
		return s
	}
	usual := settings(nil)
	want := keyhold.Config{
		Initialize: true, MaintainEvery: time.Hour, LeaseFor: time.Minute, CacheKeys: 16384, CacheFor: 10 * time.Minute,
	}
	if !reflect.DeepEqual(usual, want) {
		t.Errorf("without options: %+v, want %+v", usual, want)
	}
	for name, one := range map[string]struct {
		option DEKManagerOption
		change func(*keyhold.Config)
	}{
		"transition": {
			WithTransitionCheckPeriod(7 * time.Hour),
			func(c *keyhold.Config) { c.MaintainEvery = 7 * time.Hour },
		},
		"transition, too soon": {
			WithTransitionCheckPeriod(time.Second),
			func(c *keyhold.Config) { c.MaintainEvery = time.Minute },
		},
		"lease": {
			WithLockLeaseDuration(7 * time.Minute),
			func(c *keyhold.Config) { c.LeaseFor = 7 * time.Minute },
		},
		"lease, too short": {
			WithLockLeaseDuration(time.Second),
			func(c *keyhold.Config) { c.LeaseFor = 10 * time.Second },
		},
		"lease, too long": {
			WithLockLeaseDuration(2 * time.Hour),
			func(c *keyhold.Config) { c.LeaseFor = time.Hour },
		},
		"size": {
			WithMaxCacheSize(7),
			func(c *keyhold.Config) { c.CacheKeys = 7 },
		},
		"expiration": {
			WithCacheExpiration(7 * time.Second),
			func(c *keyhold.Config) { c.CacheFor = 7 * time.Second },
		},
		"cleanup": {
			WithCleanupPeriod(7 * time.Hour),
			func(c *keyhold.Config) { c.RemoveRootsAfter = 7 * time.Hour },
		},
		"cleanup, too soon": {
			WithCleanupPeriod(time.Second),
			func(c *keyhold.Config) { c.RemoveRootsAfter = time.Minute },
		},
		"functions": {
			WithMaxKeyFuncCache(7),
			func(*keyhold.Config) {},
		},
	} {
		want := usual
		one.change(&want)
		if got := settings(one.option); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	// What becomes of the settings is refused nowhere.
	for _, option := range []DEKManagerOption{
		WithTransitionCheckPeriod(1), WithLockLeaseDuration(1), WithLockLeaseDuration(maxPeriod), WithCleanupPeriod(1),
		WithMaxCacheSize(1), WithCacheExpiration(1), WithDEKRotationPeriod(1),
	} {
		d := over(t, memstore.New(), option)
		version(t, d, "a")
		d.Shutdown()
	}
}

// asked is a store that counts what is asked of keys, and keeps for how long leases were taken.
type asked struct {
	memory
	mu     sync.Mutex
	calls  int
	leases map[string]int64
}

func (a *asked) call() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
}

// since is how many calls there were since it was asked last.
func (a *asked) since() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.calls
	a.calls = 0
	return n
}

func (a *asked) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	a.call()
	return a.memory.Key(ctx, ref)
}

func (a *asked) Name(ctx context.Context, ref key.Ref) (store.Family, store.Name, error) {
	a.call()
	return a.memory.Name(ctx, ref)
}

func (a *asked) PutName(ctx context.Context, inst [16]byte, from uint64, n store.Name) error {
	a.call()
	return a.memory.PutName(ctx, inst, from, n)
}

func (a *asked) Create(ctx context.Context, inst [16]byte, keys []store.Key) (int, error) {
	a.call()
	return a.memory.Create(ctx, inst, keys)
}

func (a *asked) Update(ctx context.Context, u store.Update) error {
	a.call()
	return a.memory.Update(ctx, u)
}

func (a *asked) Lease(ctx context.Context, name string, owner key.ID, seconds int64) (store.Lease, bool, error) {
	a.mu.Lock()
	a.leases[name] = seconds
	a.mu.Unlock()
	return a.memory.Lease(ctx, name, owner, seconds)
}

// overAsked starts an instance, and another one whose questions are counted.
func overAsked(t *testing.T, options ...DEKManagerOption) (a *asked, counted, other *DEKManager) {
	t.Helper()
	s := memstore.New()
	other = over(t, s)
	a = &asked{memory: memory{s}, leases: map[string]int64{}}
	counted = overStore(t, a, options...)
	pass(10 * time.Second) // what the start asked for
	a.since()
	return a, counted, other
}

func TestRoundTripsOfCalls(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a, d, other := overAsked(t)
		ctx := t.Context()
		takes := func(want int, what string) {
			t.Helper()
			if got := a.since(); got != want {
				t.Errorf("%s takes %d round trips, want %d", what, got, want)
			}
		}
		version(t, other, "there")
		check(t, other.RegisterKey(ctx, "registered"))
		check(t, other.RegisterKey(ctx, "registered too"))
		for _, one := range []struct {
			name  string
			first int
		}{{"there", 1}, {"registered", 5}, {"unknown", 6}} {
			version(t, d, one.name)
			takes(one.first, "the first GetDEK of a key that is "+one.name)
			version(t, d, one.name)
			takes(0, "the second GetDEK of a key that is "+one.name)
		}
		check(t, d.RotateDEK(ctx, "there"))
		takes(4, "RotateDEK of a key that is there")
		check(t, d.RotateDEK(ctx, "registered too"))
		takes(4, "RotateDEK of a registered name")
		check(t, d.RotateDEK(ctx, "unknown too"))
		takes(5, "RotateDEK of an unknown name")
		for want, name := range map[int]string{1: "there", 2: "new, registered before", 4: "new"} {
			if want == 2 {
				check(t, other.RegisterKey(ctx, name))
			}
			check(t, d.RegisterKey(ctx, name))
			takes(want, fmt.Sprintf("RegisterKey of %q", name))
		}
		d.Shutdown()
		other.Shutdown()
	})
}

// The limits of what is kept are those that the options say.
func TestCacheIsAsLargeAndLivesAsLongAsTheOptionsSay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for size, want := range map[int]int{1: 20, 2: 2} {
			a, d, other := overAsked(t, WithMaxCacheSize(size))
			version(t, other, "a")
			version(t, other, "b")
			for range 10 {
				version(t, d, "a")
				version(t, d, "b")
			}
			if got := a.since(); got != want {
				t.Errorf("with room for %d, two keys in use are read %d times, want %d", size, got, want)
			}
			d.Shutdown()
			other.Shutdown()
		}
		for _, every := range []time.Duration{time.Minute, time.Hour} {
			a, d, other := overAsked(t, WithCacheExpiration(every))
			version(t, d, "a")
			a.since()
			for range 3 * 3600 {
				version(t, d, "a")
				pass(time.Second)
			}
			// It is read a little before it is over, so that no call waits for that.
			if n, least := a.since(), int(3*time.Hour/every); n < least || n > 3*least/2 {
				t.Errorf("with an expiration of %v it is read %d times in three hours, want %d, or some more",
					every, n, least)
			}
			d.Shutdown()
			other.Shutdown()
		}
	})
}

func TestLeasesAreThoseOfTheOptions(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		a, d, other := overAsked(t, WithLockLeaseDuration(17*time.Second), WithTransitionCheckPeriod(2*time.Minute))
		other.Shutdown()
		pass(2 * time.Hour) // until the turn is over that the other one took
		for name, want := range map[string]int64{"turn/maintain": 120, "rewrap": 17} {
			if got := a.leases[name]; got != want {
				t.Errorf("the lease %q was for %d s, want %d: %v", name, got, want, a.leases)
			}
		}
		d.Shutdown()
	})
}
