package keyhold_test

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
)

// eastern is a time zone 13 hours ahead, in words that need no list of zones.
const eastern = "EAST-13"

// Stored times are seconds of universal time, whatever time zone the process is in, which SQLite takes its own from.
// The test runs itself as such a process.
func TestTimesOnSQLiteAreUniversal(t *testing.T) {
	if os.Getenv("TZ") != eastern {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "TZ="+eastern)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v:\n%s", err, out)
		}
		return
	}
	s := stores["sqlite"].open(t)
	if got := asked(t, s, "select round((julianday('now', 'localtime') - julianday('now')) * 24) || ''"); got != "13.0" {
		t.Fatalf("SQLite is %s hours ahead, want 13: the test would show nothing", got)
	}
	timesAreUniversal(t, s)
}

// So are those that PostgreSQL sets, whatever the session's time zone is.
func TestTimesOnPostgresAreUniversal(t *testing.T) {
	dsn, err := url.Parse(keyholdtest.Postgres(t))
	must(t, err)
	q := dsn.Query()
	q.Set("timezone", eastern)
	dsn.RawQuery = q.Encode()
	s := openPostgres(t, dsn.String())
	if got := asked(t, s, "select extract(timezone_hour from now())::text"); got != "13" {
		t.Fatalf("the session is %s hours ahead, want 13: the test would show nothing", got)
	}
	timesAreUniversal(t, s)
}

func timesAreUniversal(t *testing.T, s store.Store) {
	t.Helper()
	ctx := t.Context()
	m := newManager(t, s, newRoot(t))
	must(t, m.CreateScope(ctx, tenant))
	_, err := m.Reconcile(ctx)
	must(t, err)
	_, err = m.Rotate(ctx, ref)
	must(t, err)
	old := ids(t, m, ref)[0]
	must(t, m.Disable(ctx, old))
	must(t, m.Destroy(ctx, old))
	added, err := m.AddRoot(ctx, newRoot(t))
	must(t, err)
	must(t, m.RemoveRoot(ctx, added.ID))
	must(t, m.Escrow(ctx, func([]byte) (string, error) { return "nowhere", nil }))
	near := func(what string, at time.Time) {
		t.Helper()
		if d := time.Since(at); d < -time.Hour || d > time.Hour {
			t.Errorf("%s is %v", what, at)
		}
	}
	for _, column := range []string{
		"kms_installation.created", "kms_root_slot.created", "kms_purpose.created", "kms_tombstone.destroyed",
		"kms_installation_key.created", "kms_root_slot.activated", "kms_root_slot.retired", "kms_root_slot.removed", "kms_escrow.at",
		"kms_root_key.created", "kms_root_key_version.created", "kms_data_key.created", "kms_data_key_version.created",
	} {
		table, name, _ := strings.Cut(column, ".")
		for _, f := range []string{"min", "max"} {
			seconds, err := strconv.ParseInt(asked(t, s, fmt.Sprintf("select coalesce(%s(%s), 0) || '' from %s", f, name, table)), 10, 64)
			must(t, err)
			near(column, time.Unix(seconds, 0))
		}
	}
	keys, err := m.Keys(ctx, tenant)
	must(t, err)
	for _, k := range keys {
		head := k.Versions[k.Head-1]
		near(fmt.Sprint("the head of ", k.Ref), head.Created)
		if k.RotateAt.Location() != time.UTC || head.Created.Location() != time.UTC || k.Due {
			t.Errorf("%v was made at %v, due at %v: %v", k.Ref, head.Created, k.RotateAt, k.Due)
		}
	}
	checked(t, m)
}
