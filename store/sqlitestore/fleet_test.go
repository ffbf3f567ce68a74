package sqlitestore

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/internal/sqltest"
	"keyhold.example/keyhold/store/storetest"
)

var (
	instanceRow = row{"private_id": "'ki_x'", "name": "''", "seen": zeroblob(256), "life": "60", "slot": "''", "since": "1", "signed": "1"}
	leaseRow    = row{"name": "'x'", "owner": "'ki_x'", "fence": "7", "until": "1"}
	usageRow    = row{"private_id": "'kdkv_a1'", "taken": "7", "used_at": "1"}
)

// fleetBreaking are the rules about instances, leases and usage.
func fleetBreaking() []breaking {
	text := func(n int) string { return "'" + strings.Repeat("a", n) + "'" }
	var list []breaking
	for _, c := range []struct {
		table, id, trigger string
		row                row
	}{
		{"instance", "private_id", "instance_no_replace", instanceRow},
		{"lease", "name", "lease_no_replace", leaseRow},
		{"usage", "private_id", "usage_no_replace", usageRow},
	} {
		first := insert(c.table, c.row)
		other := c.row.With(c.id, "'kdkv_a2'")
		list = append(list,
			breaking{c.table + "_pkey", dropTrigger(c.trigger) + first + insert(c.table, c.row), unique("{prefix}_" + c.table + "." + c.id)},
			breaking{c.trigger, first + orReplace(insert(c.table, c.row)), ""},
			breaking{c.trigger, first + orReplace(insert(c.table, other.With("rowid", "1"))), ""},
			breaking{c.table + "_immutable", first + orReplace("update {prefix}_"+c.table+" set rowid = 7"), ""},
			breaking{c.table + "_immutable", first + "update {prefix}_" + c.table + " set " + c.id + " = 'kdkv_a2'", ""},
		)
	}
	return slices.Concat(list,
		[]breaking{
			{"instance_immutable", insert("instance", instanceRow) + "update {prefix}_instance set since = 2", ""},
			{"lease_fence_grows", insert("lease", leaseRow) + "update {prefix}_lease set fence = 6", ""},
			{"lease_fence_grows", insert("lease", leaseRow) + "update {prefix}_lease set owner = 'ki_y'", ""},
			{"lease_kept", insert("lease", leaseRow) + "delete from {prefix}_lease", ""},
			{"usage_of_version", insert("usage", usageRow.With("private_id", "'kdkv_none'")), ""},
			{"usage_grows", insert("usage", usageRow) + "update {prefix}_usage set taken = 6", ""},
			{"usage_kept", insert("usage", usageRow) + "delete from {prefix}_usage", ""},
		},
		checks("instance", instanceRow, "private_id", "''", text(65), "'é'", "x'6b'", "'a' || char(0)"),
		checks("instance", instanceRow, "name", text(256), "'"+strings.Repeat("é", 128)+"'", "x'6b'", "'a' || char(0) || 'b'"),
		checks("instance", instanceRow, "seen", zeroblob(255), zeroblob(257), text(256)),
		checks("instance", instanceRow, "life", with(badInteger, "-1")...),
		checks("instance", instanceRow, "slot", text(65), "'é'", "x'6b'", "'a' || char(0)"),
		checks("instance", instanceRow, "since", with(badInteger, "0")...),
		checks("instance", instanceRow, "signed", with(badInteger, "0")...),
		checks("lease", leaseRow, "name", "''", text(65), "'é'", "x'6b'", "'a' || char(0)"),
		checks("lease", leaseRow, "owner", "''", text(65), "'é'", "x'6b'", "'a' || char(0)"),
		checks("lease", leaseRow, "fence", with(badInteger, "0")...),
		checks("lease", leaseRow, "until", with(badInteger, "-1")...),
		onlyCheck(checks("usage", usageRow, "private_id", badID("kdkv_")...), "usage_of_version"),
		checks("usage", usageRow, "taken", with(badInteger, "-1")...),
		checks("usage", usageRow, "used_at", with(badInteger, "0")...),
	)
}

func TestTidyLeavesOneRowForEachEpoch(t *testing.T) {
	m := storetest.NewMaker(1)
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(t.Context(), m.Installation()))
	mustExec(t, s, "insert into kms_epoch (bucket, n) values (0, 1), (0, 2), (31, 7), (5, 3), (5, 3), (0, 4)")
	for range 3 {
		more, err := s.Tidy(t.Context())
		if must(t, err); more {
			t.Error("there is more to tidy up")
		}
		var got string
		must(t, s.DB().QueryRow("select group_concat(bucket || ':' || n) from (select * from kms_epoch order by bucket)").Scan(&got))
		if got != "0:7,5:6,31:7" {
			t.Errorf("after Tidy: %s", got)
		}
	}
}

// numbers begins a statement with a table i of 1, 2, 3 and so on.
const numbers = "with recursive i (i) as (select 1 union all select i + 1 from i where i < ?) "

// Others that write wait for no more than a call, however much there is to do; and who reads sees nothing of it.
func TestTidyDoesABoundedAmountAndSaysWhetherThereIsMore(t *testing.T) {
	ctx := t.Context()
	m := storetest.NewMaker(1)
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(ctx, m.Installation()))
	mustExec(t, s, numbers+"insert into kms_epoch (bucket, n) select i % 3, i from i", 100_001)
	mustExec(t, s, "insert into kms_epoch (bucket, n) values (31, 7)")
	mustExec(t, s, numbers+"insert into kms_instance (private_id, name, seen, life, slot, since, signed) "+
		"select 'ki_' || i, '', zeroblob(256), 60, '', 1, 1 from i", 50_001)
	before, err := s.Epochs(ctx)
	must(t, err)
	done := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			if got, err := s.Epochs(ctx); err != nil || got.Keys != before.Keys {
				t.Errorf("%v, %v; want %v", got, err, before)
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for i, want := range []struct {
		epochs, instances int
		more              bool
	}{{50_005, 1, true}, {8, 0, true}, {4, 0, false}, {4, 0, false}} {
		more, err := s.Tidy(ctx)
		must(t, err)
		got := want
		got.more = more
		must(t, s.DB().QueryRow("select (select count(*) from kms_epoch), (select count(*) from kms_instance)").
			Scan(&got.epochs, &got.instances))
		if got != want {
			t.Errorf("call %d left %+v, want %+v", i+1, got, want)
		}
	}
	close(done)
	reading.Wait()
}

// Who tidies up until there is no more to do lets others write in between.
func TestOthersWriteBetweenTwoCallsOfTidy(t *testing.T) {
	ctx := t.Context()
	m := storetest.NewMaker(1)
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(ctx, m.Installation()))
	mustExec(t, s, numbers+"insert into kms_epoch (bucket, n) select i % 3, i from i", 6*tidied)
	var calls atomic.Int64
	begins := make(chan struct{}, 1) // of a call, unless the last one was not seen yet
	go func() {
		defer close(begins)
		for more := true; more; calls.Add(1) {
			select {
			case begins <- struct{}{}:
			default:
			}
			var err error
			if more, err = s.Tidy(ctx); err != nil {
				t.Error(err)
			}
		}
	}()
	in := m.Instance()
	for range begins {
		before := calls.Load()
		_, err := s.Sign(ctx, in)
		if n := calls.Load() - before; err != nil || n > 2 {
			t.Errorf("%v, after %d calls of Tidy; want it between two", err, n)
		}
	}
}

// Whoever asks for a version that is used up, again and again, leaves nothing behind.
func TestTakingNothingWritesNothing(t *testing.T) {
	ctx := t.Context()
	m := storetest.NewMaker(1)
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	k := sqltest.Destroyable(t, s, m)
	used, fresh := k.Versions[1].ID, k.Versions[0].ID
	_, err := s.Take(ctx, used, 10, 10)
	must(t, err)
	other, err := s.DB().Conn(ctx)
	must(t, err)
	defer other.Close()
	version := func() (n int64) {
		must(t, other.QueryRowContext(ctx, "pragma data_version").Scan(&n))
		return n
	}
	before := version()
	for _, c := range []struct {
		id       key.ID
		n, limit uint64
		writes   bool
	}{
		{used, 1, 10, false},
		{used, 0, 10, false},
		{used, 5, 3, false},
		{fresh, 0, 10, false},
		{used, 0, 1000, true}, // the key is not due any more
		{used, 0, 1000, false},
	} {
		n, err := s.Take(ctx, c.id, c.n, c.limit)
		after := version()
		if must(t, err); n != 0 || (after != before) != c.writes {
			t.Errorf("Take of %d of %d: %d; written: %v, want %v", c.n, c.limit, n, after != before, c.writes)
		}
		before = after
	}
}

func TestTidyRemovesInstancesThatHaveBeenGoneForADay(t *testing.T) {
	m := storetest.NewMaker(1)
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	must(t, s.Initialize(t.Context(), m.Installation()))
	var kept []key.ID
	for _, ago := range []int{0, 100, 100 + 86400 - 60, 100 + 86400 + 1} {
		in := m.Instance()
		in.Life = 100
		_, err := s.Sign(t.Context(), in)
		must(t, err)
		mustExec(t, s, "update kms_instance set signed = signed - ? where private_id = ?", ago, string(in.ID))
		if ago < 100+86400 {
			kept = append(kept, in.ID)
		}
	}
	_, err := s.Tidy(t.Context())
	must(t, err)
	roll, err := s.Roll(t.Context())
	must(t, err)
	var got []key.ID
	for _, in := range roll.Instances {
		got = append(got, in.ID)
	}
	slices.Sort(kept)
	slices.Sort(got)
	if d := cmp.Diff(kept, got); d != "" {
		t.Errorf("instances (-want +listed):\n%s", d)
	}
}

func TestWhatInstancesSayIsReadAsItIsOrNotAtAll(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	s.DB().SetMaxOpenConns(1)
	mustExec(t, s, "pragma ignore_check_constraints = on;"+withPrefix(s, insert("instance", instanceRow)))
	if roll, err := s.Roll(t.Context()); err != nil || len(roll.Instances) != 1 {
		t.Fatalf("Roll: %+v, %v", roll, err)
	}
	for _, bad := range []string{"seen = x'00'", "seen = ''", "life = 'x'", "signed = 'x'"} {
		mustExec(t, s, "begin; update kms_instance set "+bad)
		if _, err := s.Roll(t.Context()); err == nil || !strings.Contains(err.Error(), "ki_x") {
			t.Errorf("%s: %v; want an error that names the instance", bad, err)
		}
		mustExec(t, s, "rollback")
	}
}

// TestWhatIsDueIsFoundInIndexes because otherwise each sweep would read all keys.
func TestWhatIsDueIsFoundInIndexes(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	for _, c := range []struct {
		query query
		args  []any
		uses  []string
	}{
		{dueQuery, []any{int64(0), "", int64(0), int64(store.AllBuckets), 10}, []string{
			"kms_root_key_rotate_at_idx ((rotate_at,private_id)>(?,?)", "kms_data_key_rotate_at_idx ((rotate_at,private_id)>(?,?)",
			"kms_root_key_version_pending_idx ((created,root_key_id)>(?,?))", "kms_data_key_version_pending_idx ((created,data_key_id)>(?,?))",
			"kms_usage_used_at_idx (used_at>?)",
		}},
		{upcomingQuery, nil, []string{"kms_root_key_rotate_at_idx", "kms_data_key_rotate_at_idx"}},
		{notUnderQuery, []any{"", laggingPage, make([]byte, 16)}, []string{"kms_root_key_version_3 (root_key_id=?)", "kms_data_key_2 (root_key_id=?)"}},
		{laggingQuery, []any{"", laggingPage}, []string{"kms_root_key_version_3 (root_key_id=?)", "kms_data_key_version_parent_idx"}},
	} {
		steps := planOf(t, s, c.query, c.args...)
		for step := range strings.Lines(steps) {
			if strings.HasPrefix(step, "SCAN ") && !strings.HasPrefix(step, "SCAN (subquery") {
				t.Errorf("a whole table is read: %s", step)
			}
		}
		for _, uses := range c.uses {
			if !strings.Contains(steps, uses) {
				t.Errorf("%s is not used:\n%s", uses, steps)
			}
		}
	}
}

// Every process asks for the epochs every few seconds.
func TestEpochsAreReadFromTheIndexAlone(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	for name, of := range map[string]struct {
		query query
		args  []any
	}{"Epochs": {epochsQuery, nil}, "Roll": {rollQuery, nil}, "Key": {dataKeyQuery, []any{"a", "one"}}} {
		if steps := planOf(t, s, of.query, of.args...); !strings.Contains(steps, "kms_epoch USING COVERING INDEX kms_epoch_bucket_idx") {
			t.Errorf("%s:\n%s", name, steps)
		}
	}
}

// planOf is the steps of a statement, a line for each.
func planOf(t *testing.T, s *Store, q query, args ...any) (steps string) {
	t.Helper()
	plan, err := s.DB().Query("explain query plan "+s.tables.text[q], args...)
	must(t, err)
	defer plan.Close()
	for plan.Next() {
		var id, parent, other int
		var step string
		must(t, plan.Scan(&id, &parent, &other, &step))
		steps += step + "\n"
	}
	must(t, plan.Err())
	return steps
}

// manyPages is a store with root keys for more than two pages, among them a and b, and how many pages a list has and
// what is on them.
func manyPages(t *testing.T) (*Store, func(list func(after key.ID) ([]key.Scope, key.ID, error)) (int, []key.Scope)) {
	t.Helper()
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	const scopes = 2*laggingPage + 1
	text := "begin;" + base
	for i := range scopes {
		id := fmt.Sprintf("'krk_x%06d'", i)
		text += insert("root_key", rootKeyRow.With("private_id", id, "scope_id", id)) +
			insert("root_key_version", rootVersionRow.With("private_id", fmt.Sprintf("'krkv_x%06d'", i), "root_key_id", id))
	}
	mustExec(t, s, withPrefix(s, text+"commit"))
	return s, func(list func(after key.ID) ([]key.Scope, key.ID, error)) (pages int, found []key.Scope) {
		t.Helper()
		for after := key.ID(""); pages == 0 || after != ""; pages++ {
			page, next, err := list(after)
			must(t, err)
			found, after = append(found, page...), next
		}
		return pages, found
	}
}

func TestScopesLagOverManyPages(t *testing.T) {
	s, all := manyPages(t)
	mustExec(t, s, "update kms_data_key_version set root_key_version_id = 'krkv_a1'")
	pages, found := all(func(after key.ID) ([]key.Scope, key.ID, error) { return s.Lagging(t.Context(), after, 10) })
	if len(found) != 1 || found[0] != "a" || pages != 3 {
		t.Errorf("%q lag, on %d pages; want a, on 3", found, pages)
	}
}

// Whichever of a scope's rows it is that names another key.
func TestScopesAreNotUnderAKeyOverManyPages(t *testing.T) {
	s, all := manyPages(t)
	mustExec(t, s, insert("installation_key", nextKeyRow))
	for move, want := range map[string]string{
		"select 1": "[]",
		"update {prefix}_root_key set seq = 9, ik_kid = " + nextKey + " where scope_id = 'b'":                         "[b]",
		"update {prefix}_root_key_version set ik_kid = " + nextKey + " where private_id in ('krkv_a3', 'krkv_b1')":    "[a b]",
		"update {prefix}_data_key set seq = 9, ik_kid = " + nextKey:                                                   "[a]",
		"update {prefix}_root_key set seq = 9, ik_kid = " + nextKey + " where private_id in ('krk_b', 'krk_x004000')": "[b krk_x004000]",
	} {
		s.DB().SetMaxOpenConns(1)
		mustExec(t, s, "begin;"+move)
		pages, found := all(func(after key.ID) ([]key.Scope, key.ID, error) { return s.NotUnder(t.Context(), [16]byte{}, after, 10) })
		if fmt.Sprint(found) != want || pages != 3 {
			t.Errorf("%s\n%q are not under it, on %d pages; want %s, on 3", move, found, pages, want)
		}
		mustExec(t, s, "rollback")
	}
}
