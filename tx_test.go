package keyhold_test

import (
	"context"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
)

func TestScopeOfARolledBackTransactionIsNowhere(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		tx, _, rollback := w.kind.begin(t, w.store)
		must(t, w.CreateScopeTx(ctx, tx, "new"))
		there := key.Ref{Scope: "new", Purpose: secrets}
		ct, err := w.SealTx(ctx, tx, there, []byte("x"), keyhold.AAD{})
		must(t, err)
		pt, err := w.OpenTx(ctx, tx, there, ct, keyhold.AAD{})
		if err != nil || string(pt) != "x" {
			t.Errorf("inside: %q, %v", pt, err)
		}
		must(t, rollback())

		_, err = w.Seal(ctx, there, nil, keyhold.AAD{})
		fails(t, err, keyhold.ErrNotFound)
		_, _, err = w.OpenAny(ctx, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)

		// A scope of the same name that is made afterwards has nothing of the one that never was.
		must(t, w.CreateScope(ctx, "new"))
		_, err = w.Open(ctx, there, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
	})
}

func TestScopeOfACommittedTransactionIsThere(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		tx, commit, _ := w.kind.begin(t, w.store)
		must(t, w.CreateScopeTx(ctx, tx, "new"))
		must(t, w.CreateScopeTx(ctx, tx, "new"))
		must(t, w.CreateScopeTx(ctx, tx, tenant))
		there := key.Ref{Scope: "new", Purpose: secrets}
		id, ct, err := w.SealDetachedTx(ctx, tx, there, []byte("x"), keyhold.Context("a"))
		must(t, err)
		pt, err := w.OpenDetachedTx(ctx, tx, there, id, ct, keyhold.Context("a"))
		if err != nil || string(pt) != "x" {
			t.Errorf("inside: %q, %v", pt, err)
		}
		must(t, commit())
		pt, err = w.OpenDetached(ctx, there, id, ct, keyhold.Context("a"))
		if err != nil || string(pt) != "x" {
			t.Errorf("afterwards: %q, %v", pt, err)
		}
	})
}

// What a transaction has seen does not leak into the calls outside it: neither keys nor how new they are.
func TestNothingOfATransactionIsKept(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		// A manager that has seen the key only inside a transaction, in a state that was rolled back there.
		m := newManager(t, w.store, w.root)
		tx, _, rollback := w.kind.begin(t, w.store)
		fam, err := tx.Key(ctx, ref)
		must(t, err)
		must(t, bumpSeq(ctx, tx, &fam))
		_, err = m.SealTx(ctx, tx, ref, nil, keyhold.AAD{})
		integrity(t, err)
		must(t, rollback())
		sealed(t, m, ref, "x", keyhold.AAD{})
	})
}

// bumpSeq changes ref's key inside tx without its manifest's consent, as somebody else's code could.
func bumpSeq(ctx context.Context, tx store.Tx, fam *store.Family) error {
	manifest := fam.Data[0].Manifest
	manifest.Seq++
	in, err := tx.Installation(ctx)
	if err != nil {
		return err
	}
	return tx.Update(ctx, store.Update{
		Inst: [16]byte(in.Inst), Kind: key.DEK, KeyID: fam.Data[0].ID, From: fam.Data[0].Seq,
		Manifest: manifest, RotateAt: fam.Data[0].RotateAt,
	})
}

// A key that is at hand outside goes on working after a transaction has used it, too.
func TestTransactionUsesKeysThatAreAtHand(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		for range 2 {
			tx, commit, _ := w.kind.begin(t, w.store)
			inside, err := w.SealTx(ctx, tx, ref, []byte("y"), keyhold.AAD{})
			must(t, err)
			pt, err := w.OpenTx(ctx, tx, ref, ct, keyhold.AAD{})
			if err != nil || string(pt) != "x" {
				t.Errorf("inside: %q, %v", pt, err)
			}
			must(t, commit())
			opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
			opens(t, w.Manager, ref, inside, keyhold.AAD{}, "y")
			sealed(t, w.Manager, ref, "z", keyhold.AAD{})
		}
	})
}

// What is unknown inside a transaction of the application's is told, as the application has to roll it back.
func TestUnknownOutcomeInATransactionIsTold(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		faulty := faultstore.New(w.store)
		m := newManager(t, faulty, w.root)
		tx, _, rollback := w.kind.begin(t, w.store)
		faulty.Fail(1, faultstore.After) // the read, then the write
		fails(t, m.CreateScopeTx(t.Context(), faulty.InTx(tx), "new"), keyhold.ErrUnknownOutcome)
		must(t, rollback())
		_, err := w.Keys(t.Context(), "new")
		fails(t, err, keyhold.ErrNotFound)
	})
}
