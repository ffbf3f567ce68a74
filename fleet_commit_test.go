package keyhold_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

// there asserts that what seals is the head, active, in the database.
func there(t *testing.T, s store.Store, seal func() (key.ID, error)) {
	t.Helper()
	id, err := seal()
	if err != nil {
		t.Errorf("nothing is sealed: %v", err)
		return
	}
	fam, err := s.Key(context.WithoutCancel(t.Context()), ref)
	must(t, err)
	k := fam.Data[0]
	i := slices.IndexFunc(k.Versions, func(v store.Version) bool { return v.ID == id })
	if i < 0 || k.Versions[i].State != key.Active || k.Head != k.Versions[i].Number {
		t.Errorf("sealed with %s, which is not the head of %d versions", id, len(k.Versions))
	}
}

// fleetCommits is a process one of whose keys is rotated again and again, and what lets each of its calls to the store
// be answered, or not answered, or fail.
type fleetCommits struct {
	s      store.Store // the database
	faulty *faultstore.Store
	m      *keyhold.Manager
	next   func(pending bool) // lets the key's next change come due
}

// eachCommit runs f for each kind of store, with the number of rotations that it is to make.
func eachCommit(t *testing.T, f func(t *testing.T, c *fleetCommits, n int)) {
	t.Helper()
	for name, kind := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := 50
			if name == "memstore" || fleetThorough() {
				n = 1000
			}
			below, root := kind.open(t), newRoot(t)
			next := func(bool) {
				must(t, fleetExec(t.Context(), below, "update kms_data_key set rotate_at = 1000000000 where purpose = '"+string(secrets)+"'"))
			}
			if mem, ok := below.(*memstore.Store); ok {
				var ahead atomic.Int64
				mem.Clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
				next = func(pending bool) {
					ahead.Add(int64(time.Minute))
					if pending { // until it is the head, and not until it is due again
						ahead.Add(-int64(30 * time.Second))
					}
				}
			}
			clean := newManager(t, below, root)
			must(t, clean.CreateScope(t.Context(), tenant))
			must(t, clean.SetPolicy(t.Context(), ref, keyhold.Policy{RotateEvery: time.Minute}))
			c := &fleetCommits{s: below, faulty: faultstore.New(below), next: next}
			c.m = newManager(t, c.faulty, root)
			c.there(t)
			f(t, c, n)
			checked(t, clean)
			storetest.Check(t, below)
		})
	}
}

func (c *fleetCommits) there(t *testing.T) {
	t.Helper()
	there(t, c.s, func() (key.ID, error) {
		id, _, err := c.m.SealDetached(t.Context(), ref, nil, keyhold.AAD{})
		return id, err
	})
}

// state is the number of the head, and whether the newest version is pending.
func (c *fleetCommits) state(t *testing.T) (head key.Version, pending bool) {
	t.Helper()
	fam, err := c.s.Key(t.Context(), ref)
	must(t, err)
	k := fam.Data[0]
	return k.Head, k.Versions[len(k.Versions)-1].State == key.Pending
}

// Whatever becomes of a commit, at any of many rotations, in the process that rotates: no version seals there that is
// not in the database. It is answered, or not answered, or fails; and so does each other call in turn.
func TestNothingSealsThatWasNotCommittedWhateverBecomesOfTheCommit(t *testing.T) {
	eachCommit(t, func(t *testing.T, c *fleetCommits, n int) {
		fired := map[string]int{}
		for i := range n {
			// Key, Update, Key, Update; and what comes after a fault.
			call, mode := i/3%6, []string{"answered", "not answered", "failed"}[i%3]
			switch mode {
			case "not answered":
				c.faulty.Fail(call, faultstore.After)
			case "failed":
				c.faulty.Fail(call, faultstore.Before)
			}
			_, err := c.m.Rotate(t.Context(), ref)
			c.faulty.Disarm()
			if mode != "answered" && c.faulty.Fired() {
				fired[fmt.Sprint(mode, call)]++
			}
			if mode == "answered" && err != nil {
				t.Errorf("rotation %d: %v", i, err)
			}
			c.there(t)
		}
		for _, mode := range []string{"not answered", "failed"} {
			for call := range 4 {
				if fired[fmt.Sprint(mode, call)] < n/20 {
					t.Errorf("call %d was %s %d times in %d rotations: %v", call, mode, fired[fmt.Sprint(mode, call)], n, fired)
				}
			}
		}
	})
}

// The same of rotations that are due, of which each takes two commits: one adds a version, which is pending, and one
// makes it the head.
func TestNothingSealsThatWasNotCommittedWhateverBecomesOfTheCommitOfASweep(t *testing.T) {
	eachCommit(t, func(t *testing.T, c *fleetCommits, n int) {
		if !fleetThorough() {
			n = 50
		}
		chance := rand.New(rand.NewPCG(1, 2)) // the same each time
		fired := map[string]int{}
		update := 0 // which call of a sweep it is that commits
		sweeps := 0
		head, pending := c.state(t)
		for ; head <= key.Version(n) && sweeps < 10*n; sweeps++ {
			mode := "answered"
			if sweeps > 0 {
				mode = []string{"answered", "not answered", "failed"}[chance.IntN(3)]
			}
			switch mode {
			case "not answered":
				c.faulty.Fail(update, faultstore.After)
			case "failed":
				c.faulty.Fail(update, faultstore.Before)
			}
			what := "add"
			if pending {
				what = "activate"
			}
			c.next(pending)
			calls := c.faulty.Calls()
			swept, err := c.m.Sweep(t.Context())
			c.faulty.Disarm()
			fired[what+" "+mode]++
			update = slices.Index(c.faulty.Log()[calls:], "Update")
			well := err == nil && swept.Failed == 0
			if update < 0 || well != (mode != "failed") || mode == "not answered" && swept.Pending == 0 {
				t.Fatalf("sweep %d, whose first commit was %s: %+v, %v", sweeps, mode, swept, err)
			}
			c.there(t)
			head, pending = c.state(t)
		}
		t.Logf("%d rotations in %d sweeps: %v", head-1, sweeps, fired)
		for _, what := range []string{"add", "activate"} {
			for _, mode := range []string{"answered", "not answered", "failed"} {
				if fired[what+" "+mode] < n/20 {
					t.Errorf("%s was %s %d times", what, mode, fired[what+" "+mode])
				}
			}
		}
		if head <= key.Version(n) {
			t.Errorf("%d rotations, want %d", head-1, n)
		}
	})
}

// A database that refuses a commit, after every statement of the transaction went well, is believed: the rotation
// fails, nothing seals with what it made, and the next one makes the version.
func TestARotationWhoseCommitIsRefusedLeavesNothing(t *testing.T) {
	refusals := map[string][2]string{
		"postgres": {
			`create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused at the end'; end $$;
			create constraint trigger refuse after insert or update on kms_data_key_version
			deferrable initially deferred for each row execute function refuse()`,
			`drop trigger refuse on kms_data_key_version`,
		},
		"sqlite": {
			`create table nobody (id integer primary key);
			create table refusal (id integer references nobody (id) deferrable initially deferred);
			create trigger refuse after insert on kms_data_key_version begin insert into refusal values (1); end;
			create trigger refuse_update after update on kms_data_key_version begin insert into refusal values (1); end`,
			`drop trigger refuse; drop trigger refuse_update`,
		},
	}
	for name, statements := range refusals {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, root := stores[name].open(t), newRoot(t)
			m := newManager(t, s, root)
			must(t, m.CreateScope(t.Context(), tenant))
			seal := func() (key.ID, error) {
				id, _, err := m.SealDetached(t.Context(), ref, nil, keyhold.AAD{})
				return id, err
			}
			there(t, s, seal)
			due := "update kms_data_key set rotate_at = 1000000000"
			must(t, fleetExec(t.Context(), s, due))
			must(t, fleetExec(t.Context(), s, statements[0]))
			if n, err := m.Rotate(t.Context(), ref); err == nil {
				t.Errorf("version %d was said to be there", n)
			}
			there(t, s, seal)
			swept, err := m.Sweep(t.Context())
			if err != nil || swept.Rotated != 0 || swept.Failed == 0 {
				t.Errorf("swept %+v, %v; want failures", swept, err)
			}
			there(t, s, seal)
			if got := states(t, m, ref); got != "1:active" {
				t.Error(got)
			}
			must(t, fleetExec(t.Context(), s, statements[1]))
			other := newManager(t, s, root) // which has not failed, so that it need not wait
			if swept, err = other.Sweep(t.Context()); err != nil || swept.Pending == 0 || swept.Failed != 0 {
				t.Errorf("swept %+v, %v; want versions that m has to see first", swept, err)
			}
			there(t, s, seal)
			if n, err := m.Rotate(t.Context(), ref); n != 3 || err != nil {
				t.Errorf("version %d, %v; want 3", n, err)
			}
			there(t, s, seal)
			if got := states(t, m, ref); got != "1:retired 2:retired 3:active" {
				t.Error(got)
			}
			checked(t, m)
			storetest.Check(t, s)
		})
	}
}
