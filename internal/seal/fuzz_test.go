package seal

import (
	"bytes"
	"testing"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// fixedKeys returns keys that are the same in every process that fuzzes.
func fixedKeys() (*Parent, *Key) {
	inst := [16]byte{1}
	kek := newKey(Identity{Kind: key.KEK, Inst: inst, RootKeyID: "krk_a", Alg: key.Message},
		secret.Bytes{}, secret.New(bytes.Repeat([]byte{7}, 32)))
	dek := newKey(Identity{Kind: key.DEK, Inst: inst, RootKeyID: "krk_a", Purpose: "p", Alg: key.Message},
		secret.Bytes{}, secret.New(bytes.Repeat([]byte{8}, 32)))
	return newParent(kek.id, kek.KID(), kek.material.Reveal()), dek
}

func FuzzOpenMessage(f *testing.F) {
	_, dek := fixedKeys()
	m, err := dek.Messages()
	if err != nil {
		f.Fatal(err)
	}
	for _, form := range forms {
		for _, context := range []string{"", "users/42"} {
			sealed := form.mustSeal(f, m, []byte("plaintext"), context)
			f.Add(sealed, context)
			f.Add(sealed[:len(sealed)-1], context)
		}
	}
	f.Add([]byte(nil), "")
	f.Fuzz(func(t *testing.T, b []byte, context string) {
		for _, form := range forms {
			before := bytes.Clone(b)
			plaintext, err := form.open(m, nil, b, context)
			if !bytes.Equal(before, b) {
				t.Fatal("opening changed the message")
			}
			if err != nil {
				if !isErrOpen(err) || plaintext != nil {
					t.Fatalf("%q, %v", plaintext, err)
				}
				continue
			}
			// What opens is exactly what sealing the plaintext under its nonce gives.
			msg, err := envelope.ParseMessage(b)
			if err != nil {
				t.Fatal(err)
			}
			again := sealWithNonce(&m.xaes, msg.Sealed[:envelope.NonceSize], plaintext, aadOf(m, context))
			if !bytes.Equal(again, msg.Sealed[envelope.NonceSize:]) {
				t.Fatalf("%x opens and is not what sealing gives", b)
			}
		}
	})
}

func FuzzUnwrap(f *testing.F) {
	parent, dek := fixedKeys()
	blob, err := parent.Wrap(dek, 1, 1)
	if err != nil {
		f.Fatal(err)
	}
	commit := dek.Commit()
	f.Add(blob, commit[:], uint8(1), uint32(1), int64(1))
	f.Add(blob[:72], commit[:], uint8(1), uint32(1), int64(1))
	f.Add(blob, commit[:], uint8(2), uint32(1), int64(1))
	f.Add([]byte(nil), []byte(nil), uint8(0), uint32(0), int64(0))
	f.Fuzz(func(t *testing.T, b, c []byte, alg uint8, version uint32, created int64) {
		id := dek.Identity()
		id.Alg = key.Alg(alg)
		var commit [32]byte
		copy(commit[:], c)
		k, err := parent.Unwrap(id, key.Version(version), created, commit, b)
		if err != nil {
			if !isErrOpen(err) || k != nil {
				t.Fatal(err)
			}
			return
		}
		if k.Commit() != commit || !bytes.Equal(k.Bytes().Reveal(), dek.Bytes().Reveal()) || version != 1 || created != 1 {
			t.Fatalf("%x opens as version %d of another key", b, version)
		}
	})
}
