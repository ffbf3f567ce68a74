package keyhold_test

import (
	"bytes"
	"errors"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

func TestSealedDataOpensWhereItBelongsAndNowhereElse(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "other"))
		here := keyhold.Context("oidc", "7")
		ct := sealed(t, w.Manager, ref, "secret", here)
		opens(t, w.Manager, ref, ct, here, "secret")
		opens(t, newManager(t, w.store, w.root), ref, ct, here, "secret")

		for name, try := range map[string]struct {
			ref key.Ref
			aad keyhold.AAD
			ct  []byte
		}{
			"another tenant's":  {key.Ref{Scope: "other", Purpose: secrets}, here, ct},
			"another purpose's": {key.Ref{Scope: tenant, Purpose: session}, here, ct},
			"another row's":     {ref, keyhold.Context("oidc", "8"), ct},
			"no context":        {ref, keyhold.AAD{}, ct},
			"joined context":    {ref, keyhold.Context("oidc7"), ct},
			"empty":             {ref, here, nil},
			"two bytes":         {ref, here, ct[:2]},
			"header only":       {ref, here, ct[:18]},
			"cut off":           {ref, here, ct[:len(ct)-1]},
			"longer":            {ref, here, append(bytes.Clone(ct), 0)},
			"zeros":             {ref, here, make([]byte, len(ct))},
			"plaintext":         {ref, here, []byte("this was never encrypted, but is long enough to be a message of some sort")},
		} {
			_, err := w.Open(ctx, try.ref, try.ct, try.aad)
			if !errors.Is(err, keyhold.ErrOpen) {
				t.Errorf("%s: got %v, want ErrOpen", name, err)
			}
		}
	})
}

func TestAnotherInstallationsCiphertextDoesNotOpen(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		s := stores["memstore"].open(t)
		other := newManager(t, s, w.root)
		must(t, other.CreateScope(t.Context(), tenant))
		ct := sealed(t, other, ref, "x", keyhold.AAD{})
		_, err := w.Open(t.Context(), ref, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
		_, _, err = w.OpenAny(t.Context(), ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
	})
}

func TestDetachedNeedsItsKeyVersion(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "other"))
		id, ct, err := w.SealDetached(ctx, ref, []byte("secret"), keyhold.Context("a"))
		must(t, err)
		if len(ct) != len("secret")+envelope.DetachedOverhead {
			t.Errorf("detached ciphertext has %d bytes", len(ct))
		}
		pt, err := w.OpenDetached(ctx, ref, id, ct, keyhold.Context("a"))
		if err != nil || string(pt) != "secret" {
			t.Errorf("got %q, %v", pt, err)
		}
		otherID, otherCT, err := w.SealDetached(ctx, key.Ref{Scope: "other", Purpose: secrets}, []byte("theirs"), keyhold.Context("a"))
		must(t, err)
		for name, try := range map[string]struct {
			id key.ID
			ct []byte
		}{
			"id of another tenant":           {otherID, ct},
			"all of another tenant":          {otherID, otherCT},
			"ciphertext of another tenant":   {id, otherCT},
			"id of nothing":                  {"kdkv_00000000000000000000000000", ct},
			"id of a root key version":       {"krkv_00000000000000000000000000", ct},
			"attached in place of detached":  {id, sealed(t, w.Manager, ref, "x", keyhold.Context("a"))},
			"two bytes in place of anything": {id, ct[:2]},
		} {
			_, err := w.OpenDetached(ctx, ref, try.id, try.ct, keyhold.Context("a"))
			if !errors.Is(err, keyhold.ErrOpen) {
				t.Errorf("%s: got %v, want ErrOpen", name, err)
			}
		}
		var invalid *keyhold.InvalidError
		if _, err := w.OpenDetached(ctx, ref, "", ct, keyhold.Context("a")); !errors.As(err, &invalid) {
			t.Errorf("no id: got %v, want an InvalidError", err)
		}
	})
}

func TestOpenAnyFindsTheKeyItself(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ct := sealed(t, w.Manager, ref, "secret", keyhold.Context("a"))
		if _, err := w.Rotate(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		pt, whose, err := w.OpenAny(t.Context(), ct, keyhold.Context("a"))
		if err != nil || string(pt) != "secret" || whose != ref {
			t.Errorf("got %q of %v, %v", pt, whose, err)
		}
		_, _, err = w.OpenAny(t.Context(), ct, keyhold.Context("b"))
		fails(t, err, keyhold.ErrOpen)
		_, _, err = w.OpenAny(t.Context(), ct[:5], keyhold.Context("a"))
		fails(t, err, keyhold.ErrOpen)
	})
}

func TestUnknownNamesAreSaid(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		for _, r := range []key.Ref{{Scope: "nobody", Purpose: secrets}, {Scope: tenant, Purpose: "nothing"}} {
			_, err := w.Seal(ctx, r, nil, keyhold.AAD{})
			fails(t, err, keyhold.ErrNotFound)
			_, err = w.Rotate(ctx, r)
			fails(t, err, keyhold.ErrNotFound)
			_, err = w.Wrapper(ctx, r)
			fails(t, err, keyhold.ErrNotFound)
		}
		_, err := w.Keys(ctx, "nobody")
		fails(t, err, keyhold.ErrNotFound)
		_, err = w.Rewrap(ctx, "nobody")
		fails(t, err, keyhold.ErrNotFound)

		var invalid *keyhold.InvalidError
		for _, r := range []key.Ref{{}, {Scope: tenant}, {Scope: "a\x00b", Purpose: secrets}, {Scope: tenant, Purpose: " x"}} {
			if _, err := w.Seal(ctx, r, nil, keyhold.AAD{}); !errors.As(err, &invalid) {
				t.Errorf("%v: got %v, want an InvalidError", r, err)
			}
		}
	})
}

func TestKeyIsOnlyForWhatItWasMadeFor(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		for _, p := range []key.Purpose{search, token} {
			_, err := w.Seal(ctx, key.Ref{Scope: tenant, Purpose: p}, nil, keyhold.AAD{})
			fails(t, err, keyhold.ErrPurpose)
			_, err = w.Wrapper(ctx, key.Ref{Scope: tenant, Purpose: p})
			fails(t, err, keyhold.ErrPurpose)
		}
		_, err := w.BlindIndex(ctx, ref, "email", []byte("a@b.c"), 16)
		fails(t, err, keyhold.ErrPurpose)
	})
}

func TestBlindIndexFindsEqualValuesOfOneScope(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "other"))
		index := func(scope key.Scope, name, value string) string {
			b, err := w.BlindIndex(ctx, key.Ref{Scope: scope, Purpose: search}, name, []byte(value), 16)
			must(t, err)
			return string(b)
		}
		one := index(tenant, "email", "a@b.c")
		if len(one) != 16 || one != index(tenant, "email", "a@b.c") {
			t.Error("equal values differ")
		}
		for _, other := range []string{index(tenant, "email", "a@b.d"), index(tenant, "name", "a@b.c"), index("other", "email", "a@b.c")} {
			if one == other {
				t.Error("different values are equal")
			}
		}
	})
}

func TestLimitsOfWhatIsSealed(t *testing.T) {
	w := world{Manager: newManager(t, stores["memstore"].open(t), newRoot(t))}
	must(t, w.CreateScope(t.Context(), tenant))
	largest := make([]byte, envelope.MaxPlaintext)
	ct, err := w.Seal(t.Context(), ref, largest, keyhold.AAD{})
	must(t, err)
	pt, err := w.Open(t.Context(), ref, ct, keyhold.AAD{})
	if err != nil || !bytes.Equal(pt, largest) {
		t.Errorf("64 MiB do not come back: %v", err)
	}
	_, err = w.Seal(t.Context(), ref, make([]byte, envelope.MaxPlaintext+1), keyhold.AAD{})
	fails(t, err, keyhold.ErrTooLarge)
	_, err = w.Open(t.Context(), ref, append(ct, 0), keyhold.AAD{})
	fails(t, err, keyhold.ErrOpen)

	long := string(make([]byte, envelope.MaxContext))
	opens(t, w.Manager, ref, sealed(t, w.Manager, ref, "x", keyhold.Context(long)), keyhold.Context(long), "x")
	_, err = w.Seal(t.Context(), ref, nil, keyhold.Context(long+"x"))
	fails(t, err, keyhold.ErrTooLarge)
	opens(t, w.Manager, ref, sealed(t, w.Manager, ref, "", keyhold.AAD{}), keyhold.Context(), "")

	var invalid *keyhold.InvalidError
	for _, aad := range []keyhold.AAD{keyhold.Context("\x0bkh1/context"), keyhold.Context(make([]string, 256)...)} {
		if _, err := w.Seal(t.Context(), ref, nil, aad); !errors.As(err, &invalid) {
			t.Errorf("got %v, want an InvalidError", err)
		}
	}
}
