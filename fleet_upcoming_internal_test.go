package keyhold

import (
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// A key that comes due after a sweep has looked for what is, and before it asks when the next one will be, is not left
// until the next minute.
func TestAKeyThatComesDueDuringASweepIsNotLeft(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		root, err := localroot.Generate(t.TempDir() + "/root.key")
		check(t, err)
		s := memstore.New()
		var ahead atomic.Int64
		s.Clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		calls := faultstore.New(s)
		w := &two{store: s, root: root, config: Config{Policies: map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}}}
		w.other = w.open(t, s)
		check(t, w.other.CreateScope(t.Context(), inner.Scope))
		w.Manager = w.open(t, calls)
		looked := false
		calls.Hook(func(call string) {
			switch {
			case call == "Due":
				looked = true
			case call == "Upcoming" && looked:
				ahead.CompareAndSwap(0, int64(time.Hour))
			}
		})
		stop := running(t, w.Manager)
		pass(15 * time.Second)
		w.hasStates(t, inner, key.Retired, key.Active)
		stop()
	})
}
