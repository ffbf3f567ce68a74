package seal

import (
	"testing"

	"keyhold.example/keyhold/key"
)

// newTestKey returns a data key of a fixed place with random material.
func newTestKey(tb testing.TB, alg key.Alg) *Key {
	tb.Helper()
	id := Identity{Kind: key.DEK, Inst: [16]byte{1, 2, 3}, RootKeyID: "krk_test", Purpose: "client-secrets", Alg: alg}
	generate := func() (*Key, error) { return Generate(id) }
	if alg == key.Imported {
		generate = func() (*Key, error) { return FromBytes(id, Random(32)) }
	}
	k, err := generate()
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func testMessageKey(tb testing.TB) *MessageKey {
	tb.Helper()
	m, err := newTestKey(tb, key.Message).Messages()
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// newTestRootKey returns a root key that wraps the data keys of newTestKey, and an installation key that wraps it.
func newTestRootKey(tb testing.TB) (*Key, *IK) {
	tb.Helper()
	ik := newIK([16]byte{1, 2, 3}, Random(32))
	kek, err := Generate(Identity{Kind: key.KEK, Inst: ik.Inst(), RootKeyID: "krk_test", Alg: key.Message})
	if err != nil {
		tb.Fatal(err)
	}
	return kek, ik
}

// isErrOpen says whether err is ErrOpen itself: wrapped in something, it would say more than the others.
func isErrOpen(err error) bool {
	return err == ErrOpen
}
