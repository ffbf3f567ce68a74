package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"testing"

	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/vectors"
)

type wycheproof struct {
	TestGroups []struct {
		IVSize, KeySize, TagSize int // bits
		Tests                    []struct {
			TcID                                             int
			Comment, Result                                  string
			Key, IV, AAD, Msg, CT, Tag, IKM, Salt, Info, OKM vectors.Hex
			Size                                             int
		}
	}
}

func loadWycheproof(t *testing.T, name string) wycheproof {
	t.Helper()
	b, err := vectors.Wycheproof.ReadFile("wycheproof/" + name + "_test.json")
	if err != nil {
		t.Fatal(err)
	}
	var v wycheproof
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// atLeast fails a test that found fewer cases than there are known to be, so that none goes unchecked.
func atLeast(t *testing.T, n, want int) {
	t.Helper()
	if n < want {
		t.Errorf("%d cases apply, want at least %d", n, want)
	}
}

func TestWycheproofAESGCM(t *testing.T) {
	n := 0
	for _, g := range loadWycheproof(t, "aes_gcm").TestGroups {
		if g.IVSize != 96 || g.TagSize != 128 {
			continue // other nonces and tags are not used
		}
		for _, v := range g.Tests {
			n++
			id := newTestKey(t, key.Imported).Identity()
			k, err := FromBytes(id, secret.New(v.Key))
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.OpenImported(bytes.Join([][]byte{v.IV, v.CT, v.Tag}, nil), v.AAD)
			if valid := v.Result == "valid"; valid != (err == nil) || valid && !bytes.Equal(got, v.Msg) {
				t.Errorf("%d %s: opens to %x, %v, which is %s", v.TcID, v.Comment, got, err, v.Result)
			}
		}
	}
	atLeast(t, n, 100)
}

func TestWycheproofCMACOfOneBlock(t *testing.T) {
	n := 0
	for _, g := range loadWycheproof(t, "aes_cmac").TestGroups {
		for _, v := range g.Tests {
			if g.KeySize != 256 || g.TagSize != 128 || len(v.Msg) != 16 {
				continue // XAES takes the CMAC of nothing else
			}
			n++
			got := make([]byte, 16)
			d := derivation{block: [16]byte(v.Msg)}
			d.cmacBlock(d.expand(v.Key), got)
			if valid := v.Result == "valid"; valid != bytes.Equal(got, v.Tag) {
				t.Errorf("%d %s: CMAC is %x, %x is %s", v.TcID, v.Comment, got, v.Tag, v.Result)
			}
		}
	}
	atLeast(t, n, 20)
}

func TestWycheproofHKDFExpand(t *testing.T) {
	n := 0
	for _, g := range loadWycheproof(t, "hkdf_sha256").TestGroups {
		for _, v := range g.Tests {
			if v.Result != "valid" || len(v.IKM) < 14 {
				continue // too long an output, or a key that the FIPS 140-3 module refuses; neither is asked for
			}
			n++
			prk, err := hkdf.Extract(sha256.New, v.IKM, v.Salt)
			if err != nil {
				t.Fatal(err)
			}
			// Whatever the length of the output, it begins with the same bytes.
			size := min(v.Size, 32)
			if got := expand(prk, v.Info); !bytes.Equal(got[:size], v.OKM[:size]) {
				t.Errorf("%d %s: %x, want %x", v.TcID, v.Comment, got[:size], v.OKM[:size])
			}
		}
	}
	atLeast(t, n, 70)
}

func TestWycheproofHMAC(t *testing.T) {
	n := 0
	for _, g := range loadWycheproof(t, "hmac_sha256").TestGroups {
		for _, v := range g.Tests {
			if g.KeySize != 256 {
				continue // manifests and blind indexes have keys of 256 bits
			}
			n++
			ik := &IK{manifest: secret.New(v.Key)}
			got := ik.MAC(v.Msg)
			if valid := v.Result == "valid"; valid != hmac.Equal(got[:g.TagSize/8], v.Tag) {
				t.Errorf("%d %s: HMAC is %x, %x is %s", v.TcID, v.Comment, got, v.Tag, v.Result)
			}
		}
	}
	atLeast(t, n, 50)
}
