package keyholdtest_test

import (
	"errors"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
)

func TestManagersShareNothing(t *testing.T) {
	one, other := keyholdtest.New(t, "secrets"), keyholdtest.New(t, "secrets")
	ref := key.Ref{Scope: "a", Purpose: "secrets"}
	if err := errors.Join(one.CreateScope(t.Context(), "a"), other.CreateScope(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	ct, err := one.Seal(t.Context(), ref, []byte("x"), keyhold.AAD{})
	if err != nil {
		t.Fatal(err)
	}
	if pt, err := one.Open(t.Context(), ref, ct, keyhold.AAD{}); err != nil || string(pt) != "x" {
		t.Errorf("open: %q, %v", pt, err)
	}
	if _, err := other.Open(t.Context(), ref, ct, keyhold.AAD{}); !errors.Is(err, keyhold.ErrOpen) {
		t.Errorf("open another manager's: %v, want ErrOpen", err)
	}
}
