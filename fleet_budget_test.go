package keyhold_test

import (
	"os"
	"path/filepath"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// spent is how many messages all processes have sealed, those that were killed, too.
func (w *fleetWorld) spent(t *testing.T) (sum int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, "spent-*"))
	must(t, err)
	for _, name := range files {
		info, err := os.Stat(name)
		must(t, err)
		sum += int(info.Size())
	}
	return sum
}

// However many processes seal, a version seals as many messages as its policy allows, to the last one; and fewer, if
// processes are killed, whose part is lost.
func TestFleetSealsAsManyMessagesAsAllowed(t *testing.T) {
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		const processes, goroutines = 8, 2
		limit := 100_000
		if fleetThorough() {
			limit = 1_000_000
		}
		m := w.open(t, w.store)
		must(t, m.CreateScope(t.Context(), tenant))
		must(t, m.SetPolicy(t.Context(), ref, keyhold.Policy{RotateEvery: -1, MaxMessages: uint64(limit)}))
		all := w.start(t, make([]fleetSettings, processes)...)
		order := fleetOrder{Do: "spend", Keys: []key.Ref{ref}, Spend: goroutines}
		sum := 0
		for _, a := range fleetObey(t, all, order) {
			sum += a.Count
		}
		if sum != limit || w.spent(t) != limit {
			t.Errorf("%d messages were sealed, want %d", sum, limit)
		}
		if _, err := m.Seal(t.Context(), ref, nil, keyhold.AAD{}); err == nil {
			t.Error("one more was sealed")
		}

		// A sweep sees that the head is used up. The processes go on with the next one, and some of them are killed.
		if swept, err := m.Sweep(t.Context()); err != nil || swept.Rotated != 1 {
			t.Errorf("swept %+v, %v; want one rotated", swept, err)
		}
		for _, p := range all {
			p.say(t, order)
		}
		killed := all[:3]
		fleetUntil(t, "a third of the messages are sealed", func() bool { return w.spent(t) > limit+limit/3 })
		for _, p := range killed {
			p.kill(t)
		}
		for _, p := range all[len(killed):] {
			p.answer(t)
		}
		// What is lost of each: a part, eight shards, and what was under way.
		second, lost := w.spent(t)-limit, len(killed)*(min(8192, limit/64+1)+8*64+goroutines)
		if second > limit || second < limit-lost {
			t.Errorf("%d messages were sealed beside %d killed processes, want at most %d, and not %d fewer", second, len(killed), limit, lost)
		}
		t.Logf("%d and, with %d of %d processes killed, %d messages were sealed", sum, len(killed), processes, second)
		if got := states(t, m, ref); got != "1:retired 2:active" {
			t.Error(got)
		}
		w.sound(t, m)
	})
}
