package seal

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// splitKey and combineParts are Shamir's scheme, plainly: this package takes it from whoever calls.
func splitKey(k []byte, n, threshold int) ([][]byte, error) {
	parts := make([][]byte, n)
	for _, constant := range k {
		coefficients := Random(threshold - 1).Reveal()
		for i := range parts {
			var y byte
			for _, c := range coefficients {
				y = product(y^c, byte(i+1))
			}
			parts[i] = append(parts[i], y^constant)
		}
	}
	for i := range parts {
		parts[i] = append(parts[i], byte(i+1))
	}
	return parts, nil
}

func combineParts(parts [][]byte) ([]byte, error) {
	size := len(parts[0]) - 1
	out := make([]byte, size)
	for i, p := range parts {
		weight := byte(1)
		for j, q := range parts {
			if i != j {
				weight = product(weight, product(q[size], inverse(q[size]^p[size])))
			}
		}
		for b := range out {
			out[b] ^= product(p[b], weight)
		}
	}
	return out, nil
}

func product(a, b byte) (out byte) {
	for ; b != 0; b >>= 1 {
		out ^= a * (b & 1)
		a = a<<1 ^ 0x1b*(a>>7)
	}
	return out
}

func inverse(a byte) byte {
	for b := range 256 {
		if product(a, byte(b)) == 1 {
			return byte(b)
		}
	}
	panic("0 has no inverse")
}

func shares(tb testing.TB, ik *IK, k, n int) []secret.Bytes {
	tb.Helper()
	lines, err := ik.Shares(k, n, splitKey)
	if err != nil {
		tb.Fatal(err)
	}
	return lines
}

func TestEnoughSharesGiveTheKey(t *testing.T) {
	ik := fixedIK()
	for _, c := range []struct{ k, n int }{{2, 2}, {2, 3}, {3, 5}, {5, 5}, {2, 255}} {
		lines := shares(t, ik, c.k, c.n)
		for given := range c.n + 1 {
			if given > 6 && given < c.n {
				continue
			}
			// From the end, and turned around, as the order is nobody's business.
			some := slices.Clone(lines[c.n-given:])
			slices.Reverse(some)
			got, err := JoinShares(some, combineParts)
			var few *TooFewSharesError
			switch {
			case given == 0:
				if !errors.As(err, &few) || *few != (TooFewSharesError{Need: 2}) {
					t.Errorf("no share: %v", err)
				}
			case given < c.k:
				if !errors.As(err, &few) || *few != (TooFewSharesError{Have: given, Need: c.k}) {
					t.Errorf("%d of the %d needed: %v", given, c.k, err)
				}
			case err != nil:
				t.Errorf("%d shares of %d of %d: %v", given, c.k, c.n, err)
			case got.Pin() != ik.Pin() || got.Inst() != ik.Inst():
				t.Errorf("%d shares of %d of %d give another key", given, c.k, c.n)
			}
		}
	}
}

func TestSharesAreNotMadeForNumbersThatMeanNothing(t *testing.T) {
	for _, c := range []struct{ k, n int }{{0, 0}, {0, 3}, {1, 1}, {1, 3}, {4, 3}, {-1, 3}, {2, 256}, {256, 256}} {
		var invalid *key.InvalidError
		if _, err := fixedIK().Shares(c.k, c.n, splitKey); !errors.As(err, &invalid) {
			t.Errorf("%d of %d: %v", c.k, c.n, err)
		}
	}
}

func TestWhatIsNoShareIsNotWritten(t *testing.T) {
	broken := errors.New("no random bytes")
	for name, split := range map[string]func([]byte, int, int) ([][]byte, error){
		"an error": func([]byte, int, int) ([][]byte, error) { return nil, broken },
		"one too few": func(k []byte, n, threshold int) ([][]byte, error) {
			return splitKey(k, n-1, threshold)
		},
		"numbers from 0": func(k []byte, n, threshold int) ([][]byte, error) {
			parts, err := splitKey(k, n, threshold)
			for i := range parts {
				parts[i][envelope.KeySize]--
			}
			return parts, err
		},
		"too short": func(k []byte, n, threshold int) ([][]byte, error) { return splitKey(k[1:], n, threshold) },
	} {
		if lines, err := fixedIK().Shares(2, 3, split); err == nil || lines != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSharesThatDoNotBelongTogetherAreTold(t *testing.T) {
	ik := fixedIK()
	foreign, err := GenerateIK()
	if err != nil {
		t.Fatal(err)
	}
	a, b, three := shares(t, ik, 2, 3), shares(t, ik, 2, 3), shares(t, ik, 3, 5)
	mistyped := bytes.Clone(a[1].Reveal())
	mistyped[10] ^= 1
	for name, c := range map[string]struct {
		lines []secret.Bytes
		want  error
		says  string
	}{
		"the same twice":           {[]secret.Bytes{a[0], a[0]}, ErrSameShare, "share 2"},
		"the same twice of enough": {[]secret.Bytes{three[0], three[1], three[2], three[1]}, ErrSameShare, "share 4"},
		"two splits, one number":   {[]secret.Bytes{a[0], b[0]}, ErrMixed, "share 2"},
		"two splits, one too many": {[]secret.Bytes{a[0], a[1], b[2]}, ErrMixed, "different times"},
		"other numbers":            {[]secret.Bytes{a[0], three[1]}, ErrMixed, "3 of 5"},
		"another k alone":          {[]secret.Bytes{a[0], shares(t, ik, 3, 3)[1]}, ErrMixed, "3 of 3"},
		"another n alone":          {[]secret.Bytes{a[0], shares(t, ik, 2, 4)[1]}, ErrMixed, "2 of 4"},
		"another installation":     {[]secret.Bytes{a[0], shares(t, foreign, 2, 3)[1]}, ErrMixed, "installation"},
		"mistyped":                 {[]secret.Bytes{a[0], secret.New(mistyped)}, ErrMistyped, "share 2"},
		"a recovery line":          {[]secret.Bytes{a[0], ik.Recovery()}, ErrNotShare, "share 2"},
		"nothing":                  {[]secret.Bytes{a[0], {}}, ErrNotShare, "share 2"},
	} {
		got, err := JoinShares(c.lines, combineParts)
		if got != nil || !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: error is %v, want %v that says %q", name, err, c.want, c.says)
		}
	}
}

// The format cannot tell these apart, and says that the pin does.
func TestTheFewestSharesOfTwoSplitsGiveAKeyWithAnotherPin(t *testing.T) {
	ik := fixedIK()
	a, b := shares(t, ik, 2, 3), shares(t, ik, 2, 3)
	got, err := JoinShares([]secret.Bytes{a[0], b[1]}, combineParts)
	if err != nil {
		t.Fatal(err)
	}
	if got.Pin() == ik.Pin() {
		t.Error("shares of two splits give the key, so one share and any other bytes do")
	}
}

func TestAShareWithARightChecksumIsRefusedForWhatItSays(t *testing.T) {
	values := bytes.Repeat([]byte{9}, envelope.KeySize)
	for name, s := range map[string]*share{
		"number 0, the key itself": {k: 2, n: 3, part: secret.New(append(bytes.Clone(values), 0))},
		"a number beyond n":        {k: 2, n: 3, part: secret.New(append(bytes.Clone(values), 4))},
		"one of one":               {k: 1, n: 1, part: secret.New(append(bytes.Clone(values), 1))},
		"none needed":              {k: 0, n: 3, part: secret.New(append(bytes.Clone(values), 1))},
		"more needed than exist":   {k: 4, n: 3, part: secret.New(append(bytes.Clone(values), 1))},
	} {
		if _, err := parseShare(s.line().Reveal()); !errors.Is(err, ErrNotShare) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
