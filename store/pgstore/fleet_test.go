package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

// What others rely on is as durable as the server makes any commit, whatever the session's default.
func TestSignsAndWhatIsTakenAreNotLostInACrash(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := keyholdtest.Postgres(t)
	m := storetest.NewMaker(1)
	owner := byOpen(t, Config{}, dsn)
	sqltest.Initialized(t, owner, m)
	f, err := owner.Key(ctx, key.Ref{Scope: "a", Purpose: "one"})
	must(t, err)
	// The last that happens before the commit.
	mustExec(t, owner, "create table seen (what text, setting text)")
	mustExec(t, owner, `create function see() returns trigger language plpgsql as
		$$ begin insert into seen values (tg_table_name, current_setting('synchronous_commit')); return null; end $$`)
	for _, table := range []string{"instance", "usage", "lease"} {
		mustExec(t, owner, "create constraint trigger see after insert or update on {prefix}_"+table+
			" deferrable initially deferred for each row execute function see()")
	}
	for setting, want := range map[string]string{
		"off": "on", "local": "on", "remote_write": "on", "on": "on", "remote_apply": "remote_apply",
	} {
		for name, how := range map[string]connect{"Open": byOpen, "pgx": bySQL("pgx"), "pq": bySQL("postgres")} {
			mustExec(t, owner, "delete from seen")
			s := how(t, Config{}, dsn+"&options=-c%20synchronous_commit%3D"+setting)
			_, err := s.Sign(ctx, m.Instance())
			must(t, err)
			_, err = s.Take(ctx, f.Data[0].Versions[0].ID, 1, 100)
			must(t, err)
			_, _, err = s.Lease(ctx, "a", "ki_a", 0)
			must(t, err)
			var got string
			must(t, owner.Pool().QueryRow(ctx, "select string_agg(what || ' ' || setting, ', ' order by what) from seen").Scan(&got))
			// Of a lease that is lost the fence protects, and the next transaction of the session has its own setting
			// again.
			if want := "kms_instance " + want + ", kms_lease " + setting + ", kms_usage " + want; got != want {
				t.Errorf("%s, session at %s: %s at the commit, want %s", name, setting, got, want)
			}
		}
	}
}

// What an instance writes every few seconds makes no table grow.
func TestSignsTakeNoMoreRoom(t *testing.T) {
	t.Parallel()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t))
	m := storetest.NewMaker(1)
	sqltest.Initialized(t, s, m)
	in := m.Instance()
	pages := func() (n int64) {
		must(t, s.Pool().QueryRow(t.Context(), "select (pg_relation_size('kms_instance') + pg_indexes_size('kms_instance')) / 8192").Scan(&n))
		return n
	}
	// What another session still sees, such as that of autovacuum, stays for a moment: then the next ones take its
	// room.
	for round := 1; ; round++ {
		before := pages()
		for range 500 {
			_, err := s.Sign(t.Context(), in)
			must(t, err)
		}
		grown := pages() - before
		if grown <= 8 {
			return
		}
		if round == 60 {
			t.Fatalf("%d pages more after 500 signs of one instance, and %d rounds of that before, want a few", grown, round-1)
		}
	}
}

// leased is a store with a scope "a", its data key, and a lease.
func leased(t *testing.T) (*Store, *storetest.Maker, store.Family, store.Lease) {
	t.Helper()
	s := byOpen(t, Config{}, keyholdtest.Postgres(t)+"&pool_max_conns=8") // some of them wait while others look
	m := storetest.NewMaker(1)
	sqltest.Initialized(t, s, m)
	f, err := s.Key(t.Context(), key.Ref{Scope: "a", Purpose: "one"})
	must(t, err)
	l, ok, err := s.Lease(t.Context(), "work", "ki_one", 3600)
	if must(t, err); !ok {
		t.Fatal("the lease is not given")
	}
	return s, m, f, l
}

// Between the check of a lease and the commit nobody gets it, even if its time is over; its owner may prolong it.
func TestALeaseIsNotTakenOverUnderAWrite(t *testing.T) {
	t.Parallel()
	ctx := context.WithoutCancel(t.Context())
	s, m, f, l := leased(t)
	for name, write := range map[string]func(q store.Tx) error{
		"Update": func(q store.Tx) error {
			u := m.Add(&f.Data[0], &f.Root)
			u.Lease = &l
			return q.Update(ctx, u)
		},
		"Rewrap": func(q store.Tx) error {
			n, err := q.Rewrap(ctx, m.Inst(), []store.Rewrap{m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[0].ID)}, &l)
			if n != 1 {
				err = errors.Join(err, fmt.Errorf("%d versions rewrapped, want 1", n))
			}
			return err
		},
	} {
		tx, commit, _ := begin(t, s)
		must(t, write(tx))
		if again, ok, err := s.Lease(ctx, l.Name, l.Owner, 3600); err != nil || !ok || again.Fence != l.Fence {
			t.Errorf("%s: prolonged meanwhile: %v, %v, %v; want fence %d", name, again, ok, err, l.Fence)
		}
		mustExec(t, s, "update {prefix}_lease set until = 1")
		if other, ok, err := s.Lease(ctx, l.Name, "ki_other", 3600); err != nil || ok {
			t.Errorf("%s: taken over meanwhile: %v, %v, %v", name, other, ok, err)
		}
		must(t, commit())
		other, ok, err := s.Lease(ctx, l.Name, "ki_other", 0)
		if err != nil || !ok || other.Fence <= l.Fence {
			t.Errorf("%s: taken over afterwards: %v, %v, %v", name, other, ok, err)
		}
		l, ok, err = s.Lease(ctx, l.Name, "ki_one", 3600)
		if must(t, err); !ok {
			t.Fatal("the lease is not given")
		}
	}
	storetest.Check(t, s)
}

// blocked waits until n statements wait for a lock.
func blocked(t *testing.T, s *Store, n int) {
	t.Helper()
	for waiting := -1; waiting < n; {
		must(t, s.Pool().QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock'`).Scan(&waiting))
	}
}

// Who writes under a lease that is just being taken over waits until it is known whether it was, and then does nothing.
// Who asks for it does not wait.
func TestAWriteSeesThatItsLeaseIsTakenOver(t *testing.T) {
	t.Parallel()
	ctx := context.WithoutCancel(t.Context())
	s, m, f, l := leased(t)
	u := m.Add(&f.Data[0], &f.Root)
	u.Lease = &l
	rewrap := []store.Rewrap{m.Rewrap(&f.Data[0].Versions[0], f.Root.Versions[0].ID)}

	taking, err := s.Pool().Begin(ctx)
	must(t, err)
	defer func() { _ = taking.Rollback(ctx) }()
	_, err = taking.Exec(ctx, "select 1 from kms_lease for update")
	must(t, err)
	_, err = taking.Exec(ctx, "update kms_lease set owner = 'ki_other', fence = fence + 1, until = 1")
	must(t, err)
	if other, ok, err := s.Lease(ctx, l.Name, "ki_third", 3600); err != nil || ok {
		t.Errorf("asked for meanwhile: %v, %v, %v", other, ok, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Update(ctx, u); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Update: %v, want %v", err, store.ErrConflict)
		}
	})
	wg.Go(func() {
		if n, err := s.Rewrap(ctx, m.Inst(), rewrap, &l); n != 0 || err != nil {
			t.Errorf("Rewrap: %d, %v; want none", n, err)
		}
	})
	wg.Go(func() {
		if again, ok, err := s.Lease(ctx, l.Name, l.Owner, 3600); err != nil || ok && again.Fence <= l.Fence {
			t.Errorf("prolonged: %v, %v, %v; want it lost", again, ok, err)
		}
	})
	blocked(t, s, 3)
	must(t, taking.Commit(ctx))
	wg.Wait()
	after, err := s.Key(ctx, key.Ref{Scope: "a", Purpose: "one"})
	must(t, err)
	if after.Data[0].Seq != f.Data[0].Seq {
		t.Error("something was written")
	}
}

// Of a version that goes nothing is left that says how much was taken of it, whoever is first.
func TestNothingIsTakenOfAVersionThatGoes(t *testing.T) {
	t.Parallel()
	ctx := context.WithoutCancel(t.Context())
	s, _, f, _ := leased(t)
	id := f.Data[0].Versions[0].ID
	for _, before := range []bool{false, true} {
		if before {
			_, err := s.Take(ctx, id, 1, 100)
			must(t, err)
		}
		tx, err := s.Pool().Begin(ctx)
		must(t, err)
		defer func() { _ = tx.Rollback(ctx) }()
		_, err = tx.Exec(ctx, "delete from kms_root_key")
		must(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := s.Take(ctx, id, 1, 100)
			if before && !errors.Is(err, store.ErrNotFound) || !before && err != nil {
				t.Errorf("Take beside a deletion, others before it: %v: %v", before, err)
			}
		})
		blocked(t, s, 1)
		if before {
			must(t, tx.Commit(ctx))
		} else {
			must(t, tx.Rollback(ctx))
		}
		wg.Wait()
	}
	found, err := s.Integrity(ctx)
	must(t, err)
	if len(found) > 0 {
		t.Error(found)
	}
}
