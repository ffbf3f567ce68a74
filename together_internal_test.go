package keyhold

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// counted counts how keys are changed, and may refuse to change several together.
type counted struct {
	store.Store
	refuse          error
	alone, together atomic.Int64
}

func (s *counted) Update(ctx context.Context, u store.Update) error {
	s.alone.Add(1)
	return s.Store.Update(ctx, u)
}

func (s *counted) UpdateAll(ctx context.Context, updates []store.Update) ([]bool, error) {
	s.together.Add(1)
	if s.refuse != nil {
		return nil, s.refuse
	}
	return s.Store.UpdateAll(ctx, updates)
}

// Keys that are due together are rotated together. One that does not fit holds up no other, and where nothing can be
// done together, each is rotated by itself.
func TestDueKeysAreRotatedTogether(t *testing.T) {
	const scopes = 200
	for name, c := range map[string]struct {
		refuse error
		spoil  bool
	}{
		"all are well":             {},
		"one was tampered with":    {spoil: true},
		"nothing goes together":    {refuse: errors.New("refused")},
		"the database is not sure": {refuse: store.ErrUnknownOutcome},
	} {
		t.Run(name, func(t *testing.T) {
			inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}}, func(t *testing.T, w *two) {
				for i := range scopes {
					check(t, w.other.CreateScope(t.Context(), Scope(fmt.Sprint("many", i))))
				}
				pass(time.Hour + time.Minute)
				db := &counted{Store: w.store, refuse: c.refuse}
				m := w.open(t, db)
				if c.spoil {
					f, err := w.store.Key(t.Context(), key.Ref{Scope: "many7", Purpose: inner.Purpose})
					check(t, err)
					k := &f.Data[0]
					k.Seq++
					check(t, w.store.Update(t.Context(), store.Update{
						Inst: m.ring.inst, Kind: k.Kind, KeyID: k.ID, From: k.Seq - 1, Manifest: k.Manifest, RotateAt: k.RotateAt,
					}))
				}
				swept, err := m.Sweep(t.Context())
				check(t, err)
				want := Swept{Rotated: scopes + 1}
				if c.spoil {
					want = Swept{Rotated: scopes, Failed: 1}
				}
				if swept != want {
					t.Errorf("%+v, want %+v", swept, want)
				}
				// A bucket has about six.
				switch alone, together := db.alone.Load(), db.together.Load(); {
				case c.refuse == nil && (alone > scopes/10 || together > 5*store.Buckets):
					t.Errorf("%d changes alone and %d together", alone, together)
				case c.refuse != nil && alone != 2*(scopes+1):
					t.Errorf("%d changes alone, want %d", alone, 2*(scopes+1))
				}
			})
		})
	}
}
