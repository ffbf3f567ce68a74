package pgserver

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// What a standby was sent survives its primary, and nothing else.
func TestStandbyHasWhatItWasSent(t *testing.T) {
	primary := started(t, Options{Standbys: true, Settings: map[string]string{"synchronous_commit": "on"}})
	standby, err := primary.Standby(t.Context(), map[string]string{"work_mem": "12MB"})
	if err != nil {
		t.Fatal(err)
	}
	write := func(to *Server, statement string) {
		t.Helper()
		if err := to.as(t.Context(), func(c *pgx.Conn) error { _, err := c.Exec(t.Context(), statement); return err }); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write(primary, "create table kept (word text)")
	must(standby.Unfollow(t.Context()))
	write(primary, "insert into kept values ('sent later')")
	must(standby.Follow(t.Context()))
	must(standby.until(t.Context(), "select exists (select 1 from kept)"))
	must(standby.Unfollow(t.Context()))
	write(primary, "insert into kept values ('never sent')")
	must(primary.Stop())
	must(standby.Promote(t.Context()))
	write(standby, "insert into kept values ('written after the promotion')")
	for query, want := range map[string]string{
		"select string_agg(word, ', ' order by word) from kept": "sent later, written after the promotion",
		"show work_mem":           "12MB",
		"show synchronous_commit": "on",
	} {
		if text, err := answer(t.Context(), standby.DSN("postgres"), query); err != nil || text != want {
			t.Errorf("%s: %q, %v; want %q", query, text, err, want)
		}
	}
	must(standby.Stop())
}
