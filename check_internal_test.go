package keyhold

import (
	"context"
	"errors"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/memstore"
)

// vanishing deletes a scope once it was listed.
type vanishing struct{ *memstore.Store }

func (s vanishing) Scopes(ctx context.Context, after key.Scope, limit int) ([]key.Scope, error) {
	scopes, err := s.Store.Scopes(ctx, after, limit)
	if len(scopes) > 1 {
		err = errors.Join(err, s.DeleteScope(ctx, scopes[0]))
	}
	return scopes, err
}

func TestCheckBesideADeletion(t *testing.T) {
	s := memstore.New()
	m := innerManager(t, s)
	// Two listings, one of the rows and one of the keys, each of which loses a scope.
	check(t, m.CreateScope(t.Context(), "other"))
	check(t, m.CreateScope(t.Context(), "third"))
	m.store = vanishing{s}
	findings, err := m.Check(t.Context())
	if err != nil || len(findings) > 0 {
		t.Errorf("%v, %v", findings, err)
	}
}
