package memstore_test

import (
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

func TestTheFleetGoesByTheClock(t *testing.T) {
	s, m := newInstalled(t)
	now := time.Unix(1_000_000_000, 0)
	s.Clock = func() time.Time { return now }
	ctx := t.Context()

	in := m.Instance()
	in.Life = 100
	_, err := s.Sign(ctx, in)
	must(t, err)
	held, ok, err := s.Lease(ctx, "sweep", in.ID, 10)
	if must(t, err); !ok || held.Until != now.Unix()+10 {
		t.Fatalf("Lease: %+v, %v", held, ok)
	}
	f, err := s.Key(ctx, key.Ref{Scope: "a", Purpose: "sessions"})
	must(t, err)
	update := func() error {
		u := m.Next(&f.Data[0])
		u.Lease = &held
		return s.Update(ctx, u)
	}
	now = now.Add(9 * time.Second)
	must(t, update())
	f, err = s.Key(ctx, key.Ref{Scope: "a", Purpose: "sessions"})
	must(t, err)
	now = now.Add(time.Second)
	if err := update(); err == nil {
		t.Error("an update when the lease was over")
	}

	at := f.Root.RotateAt
	for now = time.Unix(at-1, 0); now.Unix() <= at; now = now.Add(time.Second) {
		due, err := s.Due(ctx, store.AllBuckets, store.Due{}, 10)
		if must(t, err); (len(due) > 0) != (now.Unix() == at) {
			t.Errorf("%d are due %d s before they are", len(due), at-now.Unix())
		}
	}

	_, err = s.Sign(ctx, in)
	must(t, err)
	roll, err := s.Roll(ctx)
	if must(t, err); roll.Instances[0].Since != 1_000_000_000 || roll.Instances[0].Signed != now.Unix() {
		t.Errorf("signed from %d to %d", roll.Instances[0].Since, roll.Instances[0].Signed)
	}
	for _, c := range []struct {
		after  time.Duration
		listed int
	}{{100*time.Second + 24*time.Hour, 1}, {time.Second, 0}} {
		now = now.Add(c.after)
		more, err := s.Tidy(ctx)
		if must(t, err); more {
			t.Error("there is more to tidy up")
		}
		roll, err := s.Roll(ctx)
		if must(t, err); len(roll.Instances) != c.listed {
			t.Errorf("%d instances, want %d", len(roll.Instances), c.listed)
		}
	}
}

func TestEditLeavesTheFleetAlone(t *testing.T) {
	s, m := newInstalled(t)
	_, err := s.Sign(t.Context(), m.Instance())
	must(t, err)
	_, _, err = s.Lease(t.Context(), "sweep", "one", 3600)
	must(t, err)
	f, err := s.Key(t.Context(), key.Ref{Scope: "a", Purpose: "sessions"})
	must(t, err)
	id := f.Data[0].Versions[0].ID
	_, err = s.Take(t.Context(), id, 4, 5)
	must(t, err)
	s.Edit(func(d *memstore.Data) { d.Epochs[7]++ })
	roll, err := s.Roll(t.Context())
	if must(t, err); len(roll.Instances) != 1 {
		t.Errorf("%d instances, want 1", len(roll.Instances))
	}
	if _, ok, err := s.Lease(t.Context(), "sweep", "two", 1); ok || err != nil {
		t.Errorf("Lease of somebody else's: %v, %v", ok, err)
	}
	if n, err := s.Take(t.Context(), id, 4, 5); n != 1 || err != nil {
		t.Errorf("Take: %d, %v; want what was left", n, err)
	}
}
