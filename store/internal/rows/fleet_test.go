package rows

import (
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"keyhold.example/keyhold/store"
)

func TestEpochsAreStoredAsNumbersOfEightBytes(t *testing.T) {
	epochs := [store.Buckets]uint64{0: 1, 1: 0x0102030405060708, 30: math.MaxInt64, 31: math.MaxUint64}
	b := PackEpochs(&epochs)
	want := "0000000000000001" + "0102030405060708" + strings.Repeat("00", 8*28) + "7fffffffffffffff" + "ffffffffffffffff"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("packed as %s; want %s", got, want)
	}
	if got, err := UnpackEpochs("ki_a", b); got != epochs || err != nil {
		t.Errorf("unpacked as %v, %v; want %v", got, err, epochs)
	}
	for _, bad := range [][]byte{nil, b[1:], append(b, 0)} {
		if _, err := UnpackEpochs("ki_a", bad); err == nil || !strings.Contains(err.Error(), "ki_a") {
			t.Errorf("%d bytes: %v; want an error that names the row", len(bad), err)
		}
	}
}

func TestAKeyIsUsedFromFourFifthsOn(t *testing.T) {
	for limit, want := range map[uint64]uint64{
		1: 1, 2: 2, 4: 4, 5: 4, 6: 5, 9: 8, 10: 8, 100: 80, 1 << 40: 879609302221, math.MaxInt64: 7378697629483820646,
	} {
		if got := UsedFrom(limit); got != want {
			t.Errorf("of %d: from %d, want %d", limit, got, want)
		}
	}
}
