package dekmanager_test

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
)

// A transition to a new MEK touches no key, however many there are, and takes as long for many as for a few.
func TestFaultTransitionTouchesNoKey(t *testing.T) {
	count := 2000
	if full(t) {
		count = 50_000
	}
	each(t, func(t *testing.T, w *world) {
		ctx, d := t.Context(), w.open(mek)
		began := time.Now()
		writers := 8
		if w.kind == "sqlite" {
			writers = 1 // more would not be faster, and who waits for the others is not served in turn
		}
		atOnce(writers, func(part int) {
			for i := part; i < count; i += writers {
				material := sha256.Sum256(fmt.Append(nil, i))
				ref := keyhold.Ref{Scope: scope, Purpose: keyhold.Purpose(fmt.Sprintf("key %05d", i))}
				_, err := d.Manager().ImportRaw(ctx, ref, keyhold.RawKey{}, []keyhold.ImportedVersion{{Number: 1, Key: material[:]}})
				if err != nil {
					t.Errorf("import: %v", err)
					return
				}
			}
		})
		if t.Failed() {
			return
		}
		t.Logf("%d keys were imported in %v", count, time.Since(began))
		rows := func() [32]byte {
			tables := "select 'kms_data_key' union all select 'kms_data_key_version' union all select 'kms_root_key_version'"
			return sha256.Sum256([]byte(dump(t, w.db(), tables)))
		}
		before := rows()
		began = time.Now()
		next := w.open(newMEK, dekmanager.WithOldMEK(mek))
		took := time.Since(began)
		get(t, next, "key 00007", 1)
		t.Logf("the transition took %v", took)
		if took > 2*time.Second {
			t.Errorf("the transition took %v", took)
		}
		if rows() != before {
			t.Error("the rows of the keys have changed")
		}
		for _, d := range []*dekmanager.DEKManager{d, next} {
			for i := 0; i < count; i += count / 10 {
				want := sha256.Sum256(fmt.Append(nil, i))
				same(t, "a key", get(t, d, fmt.Sprintf("key %05d", i), 1), want[:])
			}
		}
		began = time.Now()
		names, err := next.ListKeys(ctx)
		if err != nil || len(names) != count || names[7] != "key 00007" {
			t.Errorf("%d keys, %v", len(names), err)
		}
		t.Logf("they were listed in %v", time.Since(began))
		if n := w.count("select count(*) from kms_root_slot"); n != 2 {
			t.Errorf("%d slots, want 2", n)
		}
	})
}

// Keys are due by the database's clock, whatever time zone it and its sessions are in.
func TestFaultTimeZonesMakeNoKeyDue(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "postgres")
	w.exec("do $$ begin execute format('alter database %I set timezone to %L', current_database(), 'EAST-13'); end $$")
	hourly := dekmanager.WithDEKRotationPeriod(time.Hour)
	d := w.open(mek, hourly)
	get(t, d, "a", 1)
	get(t, d, "b", 1)
	w.exec("do $$ begin execute format('alter database %I set timezone to %L', current_database(), 'WEST+12'); end $$")
	other := w.open(mek, hourly)
	for _, d := range []*dekmanager.DEKManager{d, other} {
		swept, err := d.Manager().Sweep(t.Context())
		if err != nil || swept.Rotated != 0 || swept.Pending != 0 {
			t.Errorf("swept %+v, %v", swept, err)
		}
	}
	w.makeDue("a")
	within(t, 20*time.Second, "it was rotated", func() bool {
		for _, d := range []*dekmanager.DEKManager{d, other} {
			_, err := d.Manager().Sweep(t.Context())
			must(t, err)
		}
		_, n, err := d.GetKeyInfo(t.Context(), "a")
		return err == nil && n == 2
	})
	hasVersions(t, d, "a", 2)
	hasVersions(t, d, "b", 1)
}
