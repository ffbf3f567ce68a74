package keyhold_test

import (
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// A cold key takes one round trip, besides the question about the epochs that all calls share.
func TestAColdKeyTakesOneRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "second"))
		at := func(scope key.Scope, p key.Purpose) key.Ref { return key.Ref{Scope: scope, Purpose: p} }
		cts := map[key.Scope][]byte{}
		for _, scope := range []key.Scope{tenant, "second"} {
			cts[scope] = sealed(t, w.Manager, at(scope, secrets), "x", keyhold.AAD{})
		}
		for what, c := range map[string]struct {
			use           func(m *keyhold.Manager, scope key.Scope) error
			first, second string
		}{
			"Seal": {func(m *keyhold.Manager, scope key.Scope) error {
				_, err := m.Seal(ctx, at(scope, secrets), nil, keyhold.AAD{})
				return err
			}, "Sign Key", "Key"},
			"Open": {func(m *keyhold.Manager, scope key.Scope) error {
				_, err := m.Open(ctx, at(scope, secrets), cts[scope], keyhold.AAD{})
				return err
			}, "Epochs Key", "Key"},
			"OpenAny": {func(m *keyhold.Manager, scope key.Scope) error {
				_, _, err := m.OpenAny(ctx, cts[scope], keyhold.AAD{})
				return err
			}, "Epochs KeyOfVersion", "KeyOfVersion"},
			"Raw": {func(m *keyhold.Manager, scope key.Scope) error {
				_, _, err := m.Raw(ctx, at(scope, token))
				return err
			}, "Sign Key", "Key"},
			"RawVersion": {func(m *keyhold.Manager, scope key.Scope) error {
				_, err := m.RawVersion(ctx, at(scope, token), 1)
				return err
			}, "Epochs Key", "Key"},
			"BlindIndex": {func(m *keyhold.Manager, scope key.Scope) error {
				_, err := m.BlindIndex(ctx, at(scope, search), "name", nil, 8)
				return err
			}, "Epochs Key", "Key"},
		} {
			m, s, _ := w.cold(t, nil)
			for _, scope := range []key.Scope{tenant, "second"} {
				want := c.first
				if scope == "second" {
					want = c.second
				}
				for range 2 {
					before := s.Calls()
					if err := c.use(m, scope); err != nil {
						t.Errorf("%s: %v", what, err)
					}
					if got := since(s, before); got != want {
						t.Errorf("%s in scope %s: %q, want %q", what, scope, got, want)
					}
					want = ""
				}
			}
		}
	})
}

func TestAColdProcessCallsTheRootOnceForTenThousandScopes(t *testing.T) {
	const scopes = 10_000
	w := manyScopes(t, scopes)
	m, s, root := w.cold(t, nil)
	before := s.Calls()
	for i := range scopes {
		sealed(t, m, key.Ref{Scope: manyName(i), Purpose: secrets}, "x", keyhold.AAD{})
	}
	if calls := s.Calls() - before; calls < scopes || calls > scopes+100 { // some are questions, one each 5 s
		t.Errorf("%d round trips for %d cold keys", calls, scopes)
	}
	warm, s, warmed := w.cold(t, func(cfg *keyhold.Config) { cfg.CacheKeys = 5 * scopes })
	before = s.Calls()
	if n, err := warm.Warm(t.Context()); n != 4*scopes || err != nil {
		t.Errorf("%d keys, %v; want %d", n, err, 4*scopes)
	}
	if calls := s.Calls() - before; calls > 2*scopes/500+20 {
		t.Errorf("%d round trips to warm %d scopes", calls, scopes)
	}
	if one, other := root.decrypts.Load(), warmed.decrypts.Load(); one != 1 || other != 1 {
		t.Errorf("%d and %d calls to the root, want 1 each", one, other)
	}
}
