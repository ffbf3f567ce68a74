package keyhold

import (
	"testing"

	"keyhold.example/keyhold/store/memstore"
)

// After Close the installation key is not there any more either, wherever a reference to it is left.
func TestCloseClearsTheInstallationKey(t *testing.T) {
	m := innerManager(t, memstore.New())
	ik := m.ring.keys[0]
	payload := ik.SlotPayload("kr_0", "x")
	if payload.Len() != 65 {
		t.Fatalf("a slot's payload has %d bytes, and it was to show that the key is in it", payload.Len())
	}
	payload.Clear()
	check(t, m.Close())
	if payload := ik.SlotPayload("kr_0", "x"); payload.Len() != 33 {
		t.Errorf("a slot's payload has %d bytes, want 33: those before the key", payload.Len())
	}
	defer func() {
		if recover() == nil {
			t.Error("a manifest was authenticated")
		}
	}()
	ik.MAC(nil)
}
