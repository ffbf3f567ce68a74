package rows

import (
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

func TestSlotsAreActiveOrRetiredUntilTheyAreRemoved(t *testing.T) {
	for from := range key.Destroyed + 2 {
		for to := range key.Destroyed + 2 {
			live := func(s key.State) bool { return s == key.Active || s == key.Retired }
			allowed := live(from) && from != to && (live(to) || to == key.Destroyed)
			if err := CheckSlotChanges([]store.SlotChange{{ID: "kr_a", From: from, To: to}}); (err == nil) != allowed {
				t.Errorf("from %v to %v: %v", from, to, err)
			}
		}
	}
	step := func(id key.ID) store.SlotChange { return store.SlotChange{ID: id, From: key.Active, To: key.Retired} }
	if err := CheckSlotChanges([]store.SlotChange{step("kr_a"), step("kr_b"), step("kr_a")}); err == nil {
		t.Error("a slot was named twice")
	}
	if err := CheckSlotChanges([]store.SlotChange{step("kr_a"), step("kr_b")}); err != nil {
		t.Error(err)
	}
}

func TestEscrowsAreOfTheirForm(t *testing.T) {
	good := store.Escrow{IKKID: make([]byte, 16), Event: "written", Detail: strings.Repeat("é", 2048)}
	for name, c := range map[string]struct {
		change func(e *store.Escrow)
		good   bool
	}{
		"as it is":        {func(*store.Escrow) {}, true},
		"verified":        {func(e *store.Escrow) { e.Event = "verified" }, true},
		"no detail":       {func(e *store.Escrow) { e.Detail = "" }, true},
		"another event":   {func(e *store.Escrow) { e.Event = "lost" }, false},
		"no event":        {func(e *store.Escrow) { e.Event = "" }, false},
		"a short id":      {func(e *store.Escrow) { e.IKKID = e.IKKID[1:] }, false},
		"a byte too many": {func(e *store.Escrow) { e.Detail += "a" }, false},
		"a zero byte":     {func(e *store.Escrow) { e.Detail = "a\x00" }, false},
		"no UTF-8":        {func(e *store.Escrow) { e.Detail = "\xff" }, false},
	} {
		e := good
		c.change(&e)
		if err := CheckEscrow(&e); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnInstanceMayNameARootSlot(t *testing.T) {
	for slot, good := range map[string]bool{
		"": true, "kr_a": true, strings.Repeat("a", 64): true,
		strings.Repeat("a", 65): false, "kr_é": false, "kr_\x00": false,
	} {
		if err := CheckInstance(&store.Instance{ID: "ki_a", Slot: key.ID(slot)}); (err == nil) != good {
			t.Errorf("%q: %v", slot, err)
		}
	}
}
