package seal

import (
	"bytes"
	"errors"
	"testing"

	"keyhold.example/keyhold/key"
)

func mustParent(tb testing.TB, kek *Key) *Parent {
	tb.Helper()
	p, err := kek.Parent()
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestWhatIsWrappedUnwraps(t *testing.T) {
	kek, ik := newTestRootKey(t)
	parent := mustParent(t, kek)
	raw := newTestKey(t, key.Raw).Identity()
	keys := []*Key{newTestKey(t, key.Message), newTestKey(t, key.BlindIndex), newTestKey(t, key.Imported)}
	for _, n := range []int{1, 2, 31, 32, 33, 1024} {
		k, err := FromBytes(raw, Random(n))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	check := func(parent *Parent, k *Key, version key.Version, created int64) {
		t.Helper()
		blob, err := parent.Wrap(k, version, created)
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(blob)
		got, err := parent.Unwrap(k.Identity(), version, created, k.Commit(), blob)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes().Reveal(), k.Bytes().Reveal()) || got.ID() != k.ID() || got.Identity() != k.Identity() {
			t.Errorf("%v version %d unwraps to another key", k.Identity(), version)
		}
		if !bytes.Equal(blob, before) {
			t.Error("unwrapping changed the blob")
		}
		again, err := parent.Wrap(got, version, created)
		if err != nil || bytes.Equal(again, blob) {
			t.Errorf("wrapping again gives the same bytes, or %v", err)
		}
	}
	check(ik.Parent(), kek, 1, 0)
	for _, k := range keys {
		for _, version := range []key.Version{1, 2, key.MaxVersion} {
			check(parent, k, version, 1_800_000_000)
		}
	}
	kek.Close()
	check(parent, keys[0], 1, 1)
}

func TestWrapRefusesWhatDoesNotBelong(t *testing.T) {
	kek, ik := newTestRootKey(t)
	parent := mustParent(t, kek)
	dek := newTestKey(t, key.Message)
	other := func(change func(*Identity)) *Key {
		id := dek.Identity()
		change(&id)
		k, err := Generate(id)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	for name, wrap := range map[string]func() ([]byte, error){
		"a data key under the installation key": func() ([]byte, error) { return ik.Parent().Wrap(dek, 1, 1) },
		"a root key under a root key":           func() ([]byte, error) { return parent.Wrap(kek, 1, 1) },
		"a data key of another root key": func() ([]byte, error) {
			return parent.Wrap(other(func(id *Identity) { id.RootKeyID = "krk_other" }), 1, 1)
		},
		"a data key of another installation": func() ([]byte, error) {
			return parent.Wrap(other(func(id *Identity) { id.Inst[0]++ }), 1, 1)
		},
		"version 0":          func() ([]byte, error) { return parent.Wrap(dek, 0, 1) },
		"version 65536":      func() ([]byte, error) { return parent.Wrap(dek, key.MaxVersion+1, 1) },
		"a time before 1970": func() ([]byte, error) { return parent.Wrap(dek, 1, -1) },
	} {
		if _, err := wrap(); !invalid(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := dek.Parent(); !invalid(err) {
		t.Errorf("a data key is a parent: %v", err)
	}
}

// A raw key can have any length, so a blob of one alg must not pass as another whose key has the same length.
func TestLengthOfWrappedKeysIsThatOfTheirAlgorithm(t *testing.T) {
	kek, _ := newTestRootKey(t)
	parent := mustParent(t, kek)
	id := newTestKey(t, key.Message).Identity()
	for _, alg := range []key.Alg{key.Imported, key.Message, key.Raw, key.BlindIndex} {
		id.Alg = alg
		for _, n := range []int{0, 1, 31, 32, 33, 64, 1056, 1057} {
			want := n == 32
			if raw(alg) {
				want = n > 32 && n <= 1056
			}
			material := Random(n).Reveal()
			var commit [32]byte
			if want && raw(alg) {
				commit = commitment(id, material[:32], material[32:])
			} else if want {
				commit = commitment(id, nil, material)
			}
			blob := parent.xaes.Seal([]byte{1}, material, parent.aad(id, 1, 1, commit))
			if _, err := parent.Unwrap(id, 1, 1, commit, blob); (err == nil) != want || err != nil && !isErrOpen(err) {
				t.Errorf("%v of %d bytes: %v", alg, n, err)
			}
		}
	}
}

func TestPlacesOutOfRangeDoNotUnwrap(t *testing.T) {
	kek, _ := newTestRootKey(t)
	parent := mustParent(t, kek)
	k := newTestKey(t, key.Message)
	for _, c := range []struct {
		version key.Version
		created int64
		ok      bool
	}{{1, 0, true}, {key.MaxVersion, 1, true}, {0, 1, false}, {key.MaxVersion + 1, 1, false}, {1, -1, false}} {
		aad := parent.aad(k.id, c.version, c.created, k.commit)
		blob := parent.xaes.Seal([]byte{1}, k.material.Reveal(), aad)
		if _, err := parent.Unwrap(k.id, c.version, c.created, k.commit, blob); (err == nil) != c.ok {
			t.Errorf("version %d made at %d: %v", c.version, c.created, err)
		}
	}
}

func TestSlotPayloadOpensForItsSlotAlone(t *testing.T) {
	ik, err := GenerateIK()
	if err != nil {
		t.Fatal(err)
	}
	payload := ik.SlotPayload("kr_a", "awskms")
	got, err := OpenSlotPayload(ik.Inst(), "kr_a", "awskms", ik.KID(), payload)
	if err != nil || got.Pin() != ik.Pin() || got.KID() != ik.KID() {
		t.Fatalf("opens to another key, or %v", err)
	}
	payload.Clear()
	if got.Pin() != ik.Pin() {
		t.Error("the key changed with the payload that it came from")
	}
	payload = ik.SlotPayload("kr_a", "awskms")
	inst, kid := ik.Inst(), ik.KID()
	inst[15] ^= 1
	kid[15] ^= 1
	for name, open := range map[string]func() (*IK, error){
		"installation": func() (*IK, error) { return OpenSlotPayload(inst, "kr_a", "awskms", ik.KID(), payload) },
		"slot":         func() (*IK, error) { return OpenSlotPayload(ik.Inst(), "kr_b", "awskms", ik.KID(), payload) },
		"wrapper type": func() (*IK, error) { return OpenSlotPayload(ik.Inst(), "kr_a", "aead", ik.KID(), payload) },
		"boundary":     func() (*IK, error) { return OpenSlotPayload(ik.Inst(), "kr_aa", "wskms", ik.KID(), payload) },
		"kid":          func() (*IK, error) { return OpenSlotPayload(ik.Inst(), "kr_a", "awskms", kid, payload) },
	} {
		if _, err := open(); !errors.Is(err, ErrOpen) {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

func TestNextMACBindsThePin(t *testing.T) {
	ik, err := GenerateIK()
	if err != nil {
		t.Fatal(err)
	}
	pin := ik.Pin()
	mac := ik.NextMAC(pin)
	pin[0] ^= 1
	if ik.NextMAC(pin) == mac {
		t.Error("another pin has the same MAC")
	}
}

// A parent is there until all that use it have closed it, and never again.
func TestAParentIsClosedByTheLastWhoUsesIt(t *testing.T) {
	kek, _ := newTestRootKey(t)
	parent, k := mustParent(t, kek), newTestKey(t, key.Message)
	if !parent.Use() {
		t.Fatal("it is not to be used")
	}
	parent.Close()
	blob, err := parent.Wrap(k, 1, 1)
	if err != nil || parent.Closed() {
		t.Fatalf("one of two has closed it: %v, closed: %v", err, parent.Closed())
	}
	parent.Close()
	if !parent.Closed() || parent.Use() {
		t.Error("nobody uses it any more, and it is not closed")
	}
	if _, err := parent.Wrap(k, 1, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("wrapping is %v, want ErrClosed", err)
	}
	if _, err := parent.Unwrap(k.Identity(), 1, 1, k.Commit(), blob); !errors.Is(err, ErrOpen) {
		t.Errorf("unwrapping is %v, want ErrOpen", err)
	}
}
