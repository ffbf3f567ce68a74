package dekmanager_test

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
)

func TestMEKTransition(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		given := bytes.Clone(mek)
		first := w.open(given)
		clear(given) // it was copied
		one, two := get(t, first, "one", 1), get(t, first, "two", 1)
		must(t, first.RotateDEK(ctx, "two"))
		two2 := get(t, first, "two", 2)
		first.Shutdown()

		err := w.fails(newMEK)
		refused(t, err, keyhold.ErrRoot, "the MEK is not that of the keys in this database")
		if strings.Contains(err.Error(), "\n") || bytes.Contains([]byte(err.Error()), newMEK) {
			t.Errorf("it is not one sentence, or shows the MEK: %v", err)
		}
		refused(t, w.fails(newMEK, dekmanager.WithOldMEK(bytes.Repeat([]byte{3}, 32))), keyhold.ErrRoot, "")

		next := w.open(newMEK, dekmanager.WithOldMEK(mek))
		same(t, "one", get(t, next, "one", 1), one)
		same(t, "two", get(t, next, "two", 2), two2)
		got, err := next.GetDEKByVersion(ctx, "two", 1)
		must(t, err)
		same(t, "version 1 of two", got, two)
		get(t, next, "three", 1)

		var log logs
		old := w.open(mek, dekmanager.WithLogger(&log))
		if log.of("The database is under a newer MEK") != 1 {
			t.Errorf("the start with an old MEK said %q", log.text)
		}
		for range 100 {
			same(t, "one by the old MEK", get(t, old, "one", 1), one)
		}
		if n := log.of("A DEK was read by an old MEK"); n != 1 {
			t.Errorf("%d warnings of 100 calls, want 1", n)
		}
		get(t, old, "three", 1)
		refused(t, old.RotateDEK(ctx, "one"), keyhold.ErrOldRoot, "cannot rotate DEK with an old version of MEK")
		refused(t, old.RotateDEK(ctx, "none"), keyhold.ErrOldRoot, "cannot rotate DEK with an old version of MEK")
		must(t, old.RegisterKey(ctx, "four"))
		_, _, err = old.GetDEK(ctx, "four")
		refused(t, err, keyhold.ErrOldRoot, "cannot create new DEK with old MEK")
		_, _, err = old.GetDEK(ctx, "five")
		refused(t, err, keyhold.ErrOldRoot, "cannot create new DEK with old MEK")
		refused(t, old.RemoveKey(ctx, "one"), keyhold.ErrOldRoot, "cannot remove DEK with an old version of MEK")
		for call, err := range map[string]error{
			"GetDEK": err, "RotateDEK": old.RotateDEK(ctx, "one"), "RemoveKey": old.RemoveKey(ctx, "one"),
		} {
			_, rest, _ := strings.Cut(err.Error(), ": key '")
			if _, rest, _ = strings.Cut(rest, "': "); rest != "the database is under a newer MEK; start this program with that one" {
				t.Errorf("%s says it in other words than those of who has MEKs: %v", call, err)
			}
		}
		elsewhere := w.open(mek, dekmanager.WithScope("not there yet")) // which it makes
		_, _, err = elsewhere.GetDEK(ctx, "one")
		refused(t, err, keyhold.ErrOldRoot, "cannot create new DEK with old MEK")
		get(t, next, "four", 1)
		get(t, old, "four", 1)

		// From the old one there is no way to yet another.
		refused(t, w.fails(bytes.Repeat([]byte{9}, 32), dekmanager.WithOldMEK(mek)), keyhold.ErrOldRoot, "old MEK is not the current MEK")
		// It may stay configured.
		same(t, "one", get(t, w.open(newMEK, dekmanager.WithOldMEK(mek)), "one", 1), one)
		same(t, "one", get(t, w.open(newMEK), "one", 1), one)
	})
}

// An instance that was started before the MEK changed makes no key under the one of before.
func TestFaultRunningInstanceNoticesThatItsMEKIsOld(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		var log logs
		old := w.open(mek, dekmanager.WithLogger(&log))
		a := get(t, old, "a", 1)
		next := w.open(newMEK, dekmanager.WithOldMEK(mek))
		refused(t, old.RotateDEK(ctx, "a"), keyhold.ErrOldRoot, "cannot rotate DEK with an old version of MEK")
		_, _, err := old.GetDEK(ctx, "b")
		refused(t, err, keyhold.ErrOldRoot, "cannot create new DEK with old MEK")
		same(t, "a", get(t, next, "a", 1), a)
		b := get(t, next, "b", 1)
		same(t, "b by the old MEK", get(t, old, "b", 1), b)
		within(t, 10*time.Second, "the old one warns", func() bool {
			get(t, old, "a", 1)
			return log.of("The database is under a newer MEK") == 1 && log.of("A DEK was read by an old MEK") == 1
		})
	})
}

// However a name is first used during a transition, there is one key of it.
func TestFaultOneKeyUnderTwoMEKs(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := []*dekmanager.DEKManager{w.open(mek), w.open(mek)}
		get(t, old[0], "before", 1)
		names := 20
		var made [20]atomic.Pointer[[]byte]
		keep := func(i int, dek []byte) {
			if !made[i].CompareAndSwap(nil, &dek) && !bytes.Equal(*made[i].Load(), dek) {
				t.Errorf("name %d has two keys", i)
			}
		}
		atOnce(3, func(who int) {
			d := old[who%2]
			if who == 2 {
				var err error
				if d, err = dekmanager.NewDEKManager(w.db(), newMEK, dekmanager.WithOldMEK(mek), dekmanager.WithLogger(quiet)); err != nil {
					t.Error(err)
					return
				}
				defer d.Shutdown()
			}
			for i := range names {
				dek, version, err := d.GetDEK(t.Context(), fmt.Sprint("name ", i))
				switch {
				case err == nil && version == 1:
					keep(i, dek)
				case who == 2 || !errors.Is(err, keyhold.ErrOldRoot):
					t.Errorf("name %d: version %d, %v", i, version, err)
				}
			}
		})
		next := w.open(newMEK)
		for i := range names {
			keep(i, get(t, next, fmt.Sprint("name ", i), 1))
		}
	})
}

// Cleanup takes away what only a removed MEK needs, never a version, and an instance with an old MEK cleans up nothing.
func TestFaultCleanupDeletesNoVersion(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		first := w.open(mek)
		a := get(t, first, "a", 1)
		must(t, first.RotateDEK(ctx, "a"))
		first.Shutdown()
		short := dekmanager.WithCleanupPeriod(time.Second)
		next := w.open(newMEK, dekmanager.WithOldMEK(mek), short)
		must(t, next.RotateDEK(ctx, "a"))
		get(t, next, "b", 1)
		rows := "select (select count(*) from kms_data_key_version) * 10 + (select count(*) from kms_root_slot where state <> 5)"
		if got := w.count(rows); got != 42 {
			t.Fatalf("%d, want 4 versions and 2 slots", got)
		}
		next.Shutdown()
		w.exec("update kms_root_slot set retired = retired - 3600 where retired is not null") // as if it had been an hour ago
		next = w.open(newMEK, short)

		old := w.open(mek, short)
		get(t, old, "a", 3)
		_, err := old.Manager().Sweep(ctx)
		must(t, err)
		if got := w.count(rows); got != 42 {
			t.Errorf("an instance with an old MEK left %d, want 4 versions and 2 slots", got)
		}
		_, err = next.Manager().Sweep(ctx)
		must(t, err)
		if got := w.count(rows); got != 42 {
			t.Errorf("%d while an instance uses the old MEK, want 4 versions and 2 slots", got)
		}
		old.Shutdown()
		_, err = next.Manager().Sweep(ctx)
		must(t, err)
		if got := w.count(rows); got != 41 {
			t.Errorf("%d after cleanup, want 4 versions and 1 slot", got)
		}
		got, err := next.GetDEKByVersion(ctx, "a", 1)
		must(t, err)
		same(t, "version 1", got, a)
		refused(t, w.fails(mek), keyhold.ErrRoot, "the MEK is not that of the keys")
	})
}

// All versions of all keys open the moment that the new MEK is the current one, and so they do under the old one.
func TestFaultNothingIsMissingDuringATransition(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		old := w.open(mek)
		deks := map[string][3][]byte{}
		for i := range 10 {
			name, three := fmt.Sprint("key ", i), [3][]byte{}
			three[0] = get(t, old, name, 1)
			for n := 1; n < 3; n++ {
				must(t, old.RotateDEK(ctx, name))
				three[n] = get(t, old, name, n+1)
			}
			deks[name] = three
		}
		next := w.open(newMEK, dekmanager.WithOldMEK(mek))
		for name, three := range deks {
			for n, want := range three {
				for who, d := range map[string]*dekmanager.DEKManager{"new": next, "old": old} {
					got, err := d.GetDEKByVersion(ctx, name, n+1)
					must(t, err)
					same(t, fmt.Sprintf("version %d of %s by the %s MEK", n+1, name, who), got, want)
				}
			}
		}
	})
}

// Nothing in the tables lets who reads them test a guess of the MEK but opening what is sealed.
func TestFaultNoHashOfTheMEKIsStored(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		d := w.open(mek)
		get(t, d, "a", 1)
		w.open(newMEK, dekmanager.WithOldMEK(mek))
		tables := "select name from sqlite_master where type = 'table' and name like 'kms%'"
		if w.kind == "postgres" {
			tables = "select tablename from pg_tables where schemaname = 'public'"
		}
		all := dump(t, w.db(), tables)
		if len(all) < 1000 {
			t.Fatalf("only %d bytes were read", len(all))
		}
		for _, mek := range [][]byte{mek, newMEK} {
			sum := sha256.Sum256(mek)
			for _, b := range [][]byte{mek, sum[:]} {
				for _, text := range []string{string(b), hex.EncodeToString(b), base64.StdEncoding.EncodeToString(b)[:40]} {
					if strings.Contains(all, text) {
						t.Error("the MEK, or its SHA-256, is in the tables")
					}
				}
			}
		}
	})
}

// dump is all that is in the tables.
func dump(t *testing.T, db *sql.DB, tables string) string {
	t.Helper()
	var names []string
	rows, err := db.QueryContext(t.Context(), tables)
	must(t, err)
	for rows.Next() {
		var name string
		must(t, rows.Scan(&name))
		names = append(names, name)
	}
	must(t, rows.Err())
	var all strings.Builder
	for _, name := range names {
		rows, err := db.QueryContext(t.Context(), "select * from "+name)
		must(t, err)
		columns, err := rows.Columns()
		must(t, err)
		for rows.Next() {
			fields, into := make([]sql.RawBytes, len(columns)), make([]any, len(columns))
			for i := range fields {
				into[i] = &fields[i]
			}
			must(t, rows.Scan(into...))
			for _, f := range fields {
				all.Write(f)
				all.WriteByte('\n')
			}
		}
		must(t, rows.Err())
	}
	return all.String()
}
