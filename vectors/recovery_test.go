package vectors_test

import (
	"errors"
	"fmt"
	"testing"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
)

func TestRecoveryLines(t *testing.T) {
	for i, v := range file(t).Recovery {
		t.Run(fmt.Sprintf("%d %s", i, v.Note), func(t *testing.T) {
			ik, err := seal.ParseRecovery([]byte(v.Line))
			if !v.Valid {
				if !errors.Is(err, seal.ErrNotRecovery) && !errors.Is(err, seal.ErrMistyped) {
					t.Errorf("error is %v, want ErrNotRecovery or ErrMistyped", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			inst := ik.Inst()
			equal(t, "inst", inst[:], v.Inst)
			equal(t, "key", materialOf(ik), v.IK)
		})
	}
}

func TestShares(t *testing.T) {
	for i, v := range file(t).Shares {
		t.Run(fmt.Sprintf("%d %s", i, v.Note), func(t *testing.T) {
			var lines []secret.Bytes
			for _, line := range v.Lines {
				lines = append(lines, clone([]byte(line)))
			}
			ik, err := seal.JoinShares(lines, interpolate)
			if !v.Valid {
				if err == nil {
					t.Error("they give a key")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "key", materialOf(ik), v.IK)
		})
	}
}

// materialOf is the installation key itself, the last part of any slot's payload.
func materialOf(ik *seal.IK) []byte { return ik.SlotPayload("", "").Reveal()[33:] }

// interpolate takes the scheme at its word: the field's product bit by bit, its inverse by trying, and the sum over all
// shares of their values times the product of x_j / (x_j - x_i).
func interpolate(parts [][]byte) ([]byte, error) {
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
