package keyhold_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
)

// A transaction of the application's that has made, rotated and rewrapped the keys of one scope, and stays open, holds
// up nobody who works on another scope. (On SQLite, which has one writer, it does.)
func TestAnOpenTransactionHoldsUpNoOtherScope(t *testing.T) {
	a := newApplication(t, "pgx", keyholdtest.Postgres(t), func(*pgx.ConnConfig) {})
	other := newManager(t, openPostgres(t, a.dsn), a.root)
	a.sql(t, "insert into tenant (id) values ('theirs'), ('gone')")
	must(t, other.CreateScope(t.Context(), "gone"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	tx := a.begin(t)
	defer func() { _ = tx.rollback() }()
	must(t, tx.exec("insert into tenant (id) values ('open')"))
	must(t, a.CreateScopeTx(ctx, tx.Tx, "open"))
	for _, r := range []key.Ref{ref, {Scope: tenant}, {Scope: "open", Purpose: secrets}} {
		_, err := a.RotateTx(ctx, tx.Tx, r)
		must(t, err)
	}
	_, err := a.RewrapTx(ctx, tx.Tx, tenant)
	must(t, err)

	must(t, other.CreateScope(ctx, "theirs"))
	theirs := key.Ref{Scope: "theirs", Purpose: secrets}
	for _, r := range []key.Ref{theirs, {Scope: "theirs"}} {
		n, err := other.Rotate(ctx, r)
		if err != nil || n != 2 {
			t.Errorf("rotate %v: version %d, %v", r, n, err)
		}
	}
	n, err := other.Rewrap(ctx, "theirs")
	if err != nil || n != 5 {
		t.Errorf("rewrapped %d, %v; want 5", n, err)
	}
	old := ids(t, other, theirs)[0]
	must(t, other.Disable(ctx, old))
	must(t, other.Destroy(ctx, old))
	_, err = other.Shred(ctx, "gone")
	must(t, err)
	_, err = other.Reconcile(ctx)
	must(t, err)
	// What is done to the same scope is not seen before it is committed, and held up no reader.
	if got := states(t, other, ref); got != "1:active" {
		t.Error(got)
	}
	sealed(t, other, ref, "x", keyhold.AAD{})

	must(t, tx.commit())
	if got := states(t, other, ref); got != "1:retired 2:active" {
		t.Error(got)
	}
	sealed(t, other, key.Ref{Scope: "open", Purpose: secrets}, "x", keyhold.AAD{})
	checked(t, other)
}
