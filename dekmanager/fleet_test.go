package dekmanager_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
)

// seenWithin is the bound after which no instance hands out a key that was replaced or removed elsewhere.
const seenWithin = 7 * time.Second

// eight are as many instances, each with a pool of its own.
func eight(w *world, options ...dekmanager.DEKManagerOption) (all []*dekmanager.DEKManager) {
	w.t.Helper()
	for range 8 {
		all = append(all, w.open(mek, options...))
	}
	return all
}

// seen waits until every instance hands out the version, and asserts that it is the same of all.
func seen(t *testing.T, all []*dekmanager.DEKManager, name string, version int) {
	t.Helper()
	within(t, seenWithin, fmt.Sprintf("all have version %d of %q", version, name), func() bool {
		var first []byte
		for _, d := range all {
			dek, v, err := d.GetDEK(t.Context(), name)
			must(t, err)
			if v != version {
				return false
			}
			if first == nil {
				first = dek
			}
			same(t, name, dek, first)
		}
		return true
	})
}

// Whether they start at once, too, or have been running.
func TestEightInstancesMakeANewKeyOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		deks := map[string][]byte{}
		ask := func(d *dekmanager.DEKManager, name string) {
			dek, version, err := d.GetDEK(t.Context(), name)
			if err != nil || version != 1 {
				t.Errorf("version %d, %v", version, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if deks[name] == nil {
				deks[name] = dek
			}
			same(t, name, dek, deks[name])
		}
		all := make([]*dekmanager.DEKManager, 8)
		atOnce(8, func(i int) {
			d, err := dekmanager.NewDEKManager(w.db(), mek, dekmanager.WithLogger(quiet))
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			t.Cleanup(d.Shutdown)
			all[i] = d
			ask(d, "a")
		})
		if t.Failed() {
			return
		}
		for _, name := range []string{"b", "c", "d"} {
			atOnce(32, func(i int) { ask(all[i%8], name) })
			hasVersions(t, all[0], name, 1)
		}
	})
}

func TestEightyRotationsByEightInstances(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		all := eight(w)
		atOnce(8, func(i int) {
			for range 10 {
				if err := all[i].RotateDEK(t.Context(), "a"); err != nil {
					t.Error(err)
				}
			}
		})
		hasVersions(t, all[0], "a", 80)
		seen(t, all, "a", 80)
		var deks [][]byte
		for n := range 80 {
			dek, err := all[n%8].GetDEKByVersion(t.Context(), "a", n+1)
			must(t, err)
			for _, other := range deks {
				if bytes.Equal(dek, other) {
					t.Fatalf("version %d has the bytes of another", n+1)
				}
			}
			deks = append(deks, dek)
		}
	})
}

// Due is data: of eight instances that all rotate what is due, one adds the version, and all have it within seconds.
func TestFaultDueKeyIsRotatedOnce(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		all := eight(w)
		get(t, all[0], "a", 1)
		get(t, all[0], "b", 1)
		seen(t, all, "a", 1)
		w.makeDue("a")
		sweep := func(i int) {
			if _, err := all[i].Manager().Sweep(t.Context()); err != nil {
				t.Error(err)
			}
		}
		within(t, 20*time.Second, "it was rotated", func() bool {
			atOnce(8, sweep)
			_, n, err := all[0].GetKeyInfo(t.Context(), "a")
			return err == nil && n > 1
		})
		seen(t, all, "a", 2)
		atOnce(8, sweep)
		hasVersions(t, all[0], "a", 2)
		hasVersions(t, all[0], "b", 1)
	})
}

// makeDue has the next version of some keys be due, by the database's clock.
func (w *world) makeDue(names ...string) {
	w.t.Helper()
	now := "cast(strftime('%s', 'now') as integer)"
	if w.kind == "postgres" {
		now = "floor(extract(epoch from clock_timestamp()))::bigint"
	}
	for _, name := range names {
		w.exec("update kms_data_key set rotate_at = " + now + " where purpose = '" + name + "'")
	}
}

// A key at which something fails, for want of its function or in the database, holds up no other; and what the others
// hand out is what is stored.
func TestFaultFailingKeyHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		d := w.open(mek, dekmanager.WithFunction("custom", func(context.Context) ([]byte, error) { return []byte("custom"), nil }))
		must(t, d.RegisterKeyWithFunction(ctx, "custom key", "custom"))
		get(t, d, "custom key", 1)
		d.Shutdown()

		var log logs
		d = w.open(mek, dekmanager.WithLogger(&log))
		names := []string{"a", "broken", "b"}
		for _, name := range names {
			get(t, d, name, 1)
		}
		refuse := "create trigger refuse before insert on kms_data_key_version when exists (select 1 from kms_data_key k " +
			"where k.private_id = new.data_key_id and k.purpose = 'broken') begin select raise(abort, 'refused by the test'); end"
		if w.kind == "postgres" {
			w.exec("create function refuse() returns trigger language plpgsql as $$ begin if exists (select 1 from kms_data_key k " +
				"where k.private_id = new.data_key_id and k.purpose = 'broken') then raise 'refused by the test'; end if; return new; end $$")
			refuse = "create trigger refuse before insert on kms_data_key_version for each row execute function refuse()"
		}
		w.exec(refuse)
		w.makeDue(append(names, "custom key")...)
		other := w.open(mek) // one that saw no version before
		within(t, 20*time.Second, "the others are rotated", func() bool {
			_, err := other.Manager().Sweep(ctx)
			must(t, err)
			_, a, errA := d.GetKeyInfo(ctx, "a")
			_, b, errB := d.GetKeyInfo(ctx, "b")
			must(t, errors.Join(errA, errB))
			return a == 2 && b == 2
		})
		seen(t, []*dekmanager.DEKManager{d, other}, "a", 2)
		seen(t, []*dekmanager.DEKManager{d, other}, "b", 2)
		get(t, d, "broken", 1)
		get(t, d, "custom key", 1)
		if w.kind == "postgres" {
			w.exec("drop trigger refuse on kms_data_key_version")
		} else {
			w.exec("drop trigger refuse")
		}
		must(t, d.RotateDEK(ctx, "broken"))
		get(t, d, "broken", 2)
	})
}

// Eight instances that rotate many keys at once, in their own order, do not wait for each other for ever.
func TestFaultRotationsDoNotDeadlock(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		all := eight(w)
		const keys = 6
		atOnce(8, func(i int) {
			for n := range keys {
				if i%2 == 1 {
					n = keys - 1 - n
				}
				if err := all[i].RotateDEK(t.Context(), fmt.Sprint("key ", n)); err != nil {
					t.Error(err)
				}
			}
		})
		for n := range keys {
			hasVersions(t, all[0], fmt.Sprint("key ", n), 8)
		}
	})
}

// The database refuses at COMMIT: that is an error, and nobody gets what was not stored.
func TestFaultFailedCommitIsSaid(t *testing.T) {
	w := newWorld(t, "postgres")
	ctx, d := t.Context(), w.open(mek)
	first := get(t, d, "a", 1)
	w.exec("create function refuse() returns trigger language plpgsql as $$ begin raise 'refused at commit'; end $$")
	w.exec("create constraint trigger refuse after insert on kms_data_key_version deferrable initially deferred for each row execute function refuse()")
	for range 3 {
		refused(t, d.RotateDEK(ctx, "a"), nil, "refused at commit")
		same(t, "a", get(t, d, "a", 1), first)
		_, _, err := d.GetDEK(ctx, "b")
		refused(t, err, nil, "refused at commit")
		_, err = d.GetDEKByVersion(ctx, "a", 2)
		refused(t, err, keyhold.ErrNotFound, "DEK not found")
	}
	w.exec("drop trigger refuse on kms_data_key_version")
	must(t, d.RotateDEK(ctx, "a"))
	get(t, d, "a", 2)
	get(t, d, "b", 1)
	hasVersions(t, d, "a", 2)
}

// Calls of every kind at once, for the race detector, and for what they return.
func TestFaultCallsAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		d := w.open(mek, dekmanager.WithMaxCacheSize(3))
		var mu sync.Mutex
		deks := map[string][]byte{}
		atOnce(8, func(i int) {
			for n := range 30 {
				name := fmt.Sprint("key ", (i+n)%6)
				dek, version, err := d.GetDEK(ctx, name)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				of := fmt.Sprint(name, version)
				if deks[of] == nil {
					deks[of] = bytes.Clone(dek)
				}
				same(t, of, dek, deks[of])
				mu.Unlock()
				clear(dek)
				if i == 0 && n%10 == 0 {
					if err := d.RotateDEK(ctx, name); err != nil {
						t.Error(err)
					}
				}
				if old, err := d.GetDEKByVersion(ctx, name, 1); err != nil || len(old) != 32 {
					t.Errorf("version 1: %v", err)
				}
			}
		})
	})
}

func TestFaultBytesAreTheCallersOwn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		d := w.open(mek)
		first := get(t, d, "a", 1)
		want := bytes.Clone(first)
		clear(first)
		for range 3 {
			dek := get(t, d, "a", 1)
			same(t, "a", dek, want)
			clear(dek)
			dek, err := d.GetDEKByVersion(t.Context(), "a", 1)
			must(t, err)
			same(t, "a", dek, want)
			clear(dek)
		}
	})
}

// A rotation, and a removal, by one instance reaches the others within seconds.
func TestFaultOthersSeeARotationAndARemoval(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		all := []*dekmanager.DEKManager{w.open(mek), w.open(mek), w.open(mek, dekmanager.WithCacheExpiration(24*time.Hour))}
		get(t, all[0], "a", 1)
		seen(t, all, "a", 1)
		must(t, all[0].RotateDEK(ctx, "a"))
		get(t, all[0], "a", 2)
		seen(t, all, "a", 2)
		must(t, all[1].RemoveKey(ctx, "a"))
		within(t, seenWithin, "nobody has the removed key", func() bool {
			for _, d := range all {
				if _, _, err := d.GetDEK(ctx, "a"); !errors.Is(err, keyhold.ErrRemoved) {
					return false
				}
				if _, err := d.GetDEKByVersion(ctx, "a", 1); err == nil {
					return false
				}
			}
			return true
		})
	})
}

// What is in use is handed out without the database, old versions as well.
func TestFaultOldVersionsAreKeptReady(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, db := t.Context(), w.db()
		d, err := dekmanager.NewDEKManager(db, mek, dekmanager.WithLogger(quiet))
		must(t, err)
		t.Cleanup(d.Shutdown)
		first := get(t, d, "a", 1)
		must(t, d.RotateDEK(ctx, "a"))
		second := get(t, d, "a", 2)
		_, err = d.GetDEKByVersion(ctx, "a", 1)
		must(t, err)
		must(t, db.Close()) // from now on every query is an error
		for range 1000 {
			old, err := d.GetDEKByVersion(ctx, "a", 1)
			must(t, err)
			same(t, "version 1", old, first)
			same(t, "version 2", get(t, d, "a", 2), second)
		}
		refused(t, d.RotateDEK(ctx, "a"), nil, "database is closed")
		_, _, err = d.GetDEK(ctx, "b")
		refused(t, err, nil, "database is closed")
	})
}

// Whoever can write to the tables and gives one name's key, or version, the row of another's, gets nobody to use it.
func TestFaultKeysAreTiedToTheirPlace(t *testing.T) {
	w := newWorld(t, "postgres")
	ctx, d := t.Context(), w.open(mek)
	get(t, d, "a", 1)
	must(t, d.RotateDEK(ctx, "a"))
	get(t, d, "b", 1)
	get(t, d, "c", 1)
	swap := func(one, other string) {
		w.exec("set session_replication_role = replica; with two as (select " + one + " as x, " + other + " as y), " +
			"k as (select private_id, key from kms_data_key_version) " +
			"update kms_data_key_version v set key = (select k.key from k, two where k.private_id = case when v.private_id = x then y else x end) " +
			"from two where v.private_id in (x, y); set session_replication_role = default")
	}
	of := func(name string, n int) string {
		return fmt.Sprintf("(select v.private_id from kms_data_key_version v join kms_data_key k on k.private_id = data_key_id "+
			"where purpose = '%s' and version = %d)", name, n)
	}
	swap(of("a", 1), of("a", 2))
	swap(of("b", 1), of("c", 1))
	fresh := w.open(mek)
	for _, name := range []string{"a", "b", "c"} {
		if _, _, err := fresh.GetDEK(ctx, name); !isIntegrity(err) {
			t.Errorf("key %q: %v", name, err)
		}
		if _, err := fresh.GetDEKByVersion(ctx, name, 1); !isIntegrity(err) {
			t.Errorf("version 1 of %q: %v", name, err)
		}
	}
}

func isIntegrity(err error) bool {
	_, ok := errors.AsType[*keyhold.IntegrityError](err)
	return ok
}

// A process that starts with many new names, all at once.
func TestManyNewNamesAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		d := w.open(mek)
		atOnce(200, func(i int) {
			if _, version, err := d.GetDEK(t.Context(), fmt.Sprint("name ", i)); err != nil || version != 1 {
				t.Errorf("version %d, %v", version, err)
			}
		})
	})
}

// While the database is away, keys that are in use are handed out, and nothing else; when it is back, all goes on.
func TestDatabaseThatGoesAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "postgres")
	ctx, d := t.Context(), w.open(mek)
	a := get(t, d, "a", 1)
	u, err := url.Parse(w.dsn)
	must(t, err)
	name := strings.TrimPrefix(u.Path, "/")
	u.Path = "/postgres"
	server := &world{t, "postgres", u.String()}
	ends := func(how string) {
		server.exec("alter database " + name + " " + how)
		server.exec("select pg_terminate_backend(pid) from pg_stat_activity where datname = '" + name + "'")
	}
	ends("set default_transaction_read_only = on")                         // it answers, and writes nothing
	refused(t, d.RotateDEK(ctx, "a"), keyhold.ErrUnavailable, "read-only") // though it has read the key
	refused(t, d.RemoveKey(ctx, "a"), keyhold.ErrUnavailable, "read-only")
	ends("with allow_connections false")
	same(t, "a after what failed", get(t, d, "a", 1), a)
	_, _, err = d.GetDEK(ctx, "b")
	refused(t, err, keyhold.ErrUnavailable, "")
	refused(t, d.RotateDEK(ctx, "a"), keyhold.ErrUnavailable, "")
	refused(t, d.RegisterKey(ctx, "c"), keyhold.ErrUnavailable, "")
	refused(t, d.RemoveKey(ctx, "a"), keyhold.ErrUnavailable, "")
	refused(t, w.fails(mek), keyhold.ErrUnavailable, "open DEK manager")
	within(t, 20*time.Second, "a question had no answer", func() bool {
		same(t, "a", get(t, d, "a", 1), a)
		return d.Manager().Health().Database != nil
	})
	server.exec("alter database " + name + " reset default_transaction_read_only")
	server.exec("alter database " + name + " with allow_connections true")
	within(t, 20*time.Second, "it is back", func() bool { return d.RotateDEK(ctx, "a") == nil })
	_, version, err := d.GetDEK(ctx, "a")
	must(t, err)
	hasVersions(t, d, "a", version)
	get(t, d, "b", 1)
}
