package keyhold

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// coldAndHot runs f with a Manager that has not seen inner's key, and with it in use. Nothing in f passes time.
func coldAndHot(t *testing.T, f func(t *testing.T, w *two, use func(func()))) {
	t.Helper()
	t.Run("cold", func(t *testing.T) {
		inTwo(t, func(t *testing.T, w *two) {
			f(t, w, func(call func()) {
				w.Manager = w.open(t, w.calls)
				call()
			})
		})
	})
	t.Run("hot", func(t *testing.T) {
		inTwo(t, func(t *testing.T, w *two) {
			for range 2 {
				letterOf(t, w.Manager, inner, "text")
				reads(t, w.Manager, sealing(t, w.Manager, inner, "text"), "text")
			}
			f(t, w, func(call func()) { inUseOnly(w.Manager, call) })
		})
	})
}

// What is appended comes after what was there, where there is room in the same memory; the text may be what is
// overwritten.
func TestWhereResultsAreAppended(t *testing.T) {
	const text = "a text of some length, longer than one block"
	coldAndHot(t, func(t *testing.T, w *two, use func(func())) {
		for _, had := range []string{"", "what was there"} {
			for _, room := range []int{0, 1, 200} {
				for _, inPlace := range []bool{false, true} {
					what := fmt.Sprintf("after %q, with room for %d, in place %v", had, room, inPlace)
					// input is in, and dst where it is to be appended.
					place := func(in []byte) (dst, input []byte) {
						if !inPlace {
							return append(make([]byte, 0, len(had)+room), had...), bytes.Clone(in)
						}
						all := append(append(make([]byte, 0, len(had)+len(in)+room), had...), in...)
						return all[:len(had)], all[len(had):]
					}
					dst, input := place([]byte(text))
					var sealed []byte
					var err error
					use(func() { sealed, err = w.AppendSeal(t.Context(), dst, inner, input, row()) })
					check(t, err)
					if len(sealed) != len(had)+len(text)+58 || string(sealed[:len(had)]) != had || string(dst) != had {
						t.Fatalf("%s: it is %q, and dst %q", what, sealed, dst)
					}
					if room == 200 && cap(dst) > 0 && &sealed[:1][0] != &dst[:1][0] {
						t.Errorf("%s: sealed to other memory", what)
					}
					if !inPlace && string(input) != text {
						t.Errorf("%s: the text was changed", what)
					}
					ct := bytes.Clone(sealed[len(had):])
					opened := func(dst, input []byte) {
						var got []byte
						use(func() { got, err = w.AppendOpen(t.Context(), dst, inner, input, row()) })
						if err != nil || string(got) != had+text || string(dst) != had {
							t.Fatalf("%s: it is %q, %v, and dst %q", what, got, err, dst)
						}
						if room == 200 && &got[:1][0] != &dst[:1][0] {
							t.Errorf("%s: opened to other memory", what)
						}
					}
					dst, input = place(ct)
					opened(dst, input)
					if !inPlace && !bytes.Equal(input, ct) {
						t.Errorf("%s: the ciphertext was changed", what)
					}
				}
			}
		}
	})
}

// What does not open, or cannot be sealed, leaves dst as it was, and nothing of the plaintext; and is refused at once,
// since in place there is nothing left to be tried again.
func TestWhatIsRefusedLeavesNothing(t *testing.T) {
	const text = "a text of some length, longer than one block"
	coldAndHot(t, func(t *testing.T, w *two, use func(func())) {
		ct, err := w.other.Seal(t.Context(), inner, []byte(text), row())
		check(t, err)
		leavesNothing := func(what string, in []byte, aad AAD) {
			t.Helper()
			for _, inPlace := range []bool{false, true} {
				all := append([]byte("had"), in...)
				all = append(all, make([]byte, 100)...)[:3+len(in)]
				dst, input := all[:3], all[3:]
				if !inPlace {
					dst, input = append(make([]byte, 0, 300), "had"...), bytes.Clone(in)
				}
				var got []byte
				var err error
				use(func() { got, err = w.AppendOpen(t.Context(), dst, inner, input, aad) })
				if !errors.Is(err, ErrOpen) || got != nil || string(dst) != "had" {
					t.Errorf("%s, in place %v: %q, %v, and dst %q", what, inPlace, got, err, dst)
				}
				if left := string(dst[:cap(dst)]) + string(all[:cap(all)]); strings.Contains(left, text[8:16]) {
					t.Errorf("%s, in place %v: there is left %q", what, inPlace, left)
				}
			}
		}
		for _, i := range []int{18, 29, 30, 41, 42, 50, 42 + len(text), len(ct) - 1} {
			flipped := bytes.Clone(ct)
			flipped[i] ^= 4
			leavesNothing(fmt.Sprint("byte ", i, " is another"), flipped, row())
		}
		for _, n := range []int{0, 1, 2, 17, 18, 42, 57, 58, len(ct) - 1} {
			leavesNothing(fmt.Sprint("cut to ", n), ct[:n], row())
		}
		leavesNothing("one byte more", append(bytes.Clone(ct), 0), row())
		leavesNothing("another context", ct, Context("clients", "secret", "43"))
		leavesNothing("no context", ct, AAD{})
		for i, form := range []int{0, 1} { // another form, another algorithm
			flipped := bytes.Clone(ct)
			flipped[form] ^= 3
			leavesNothing(fmt.Sprint("header ", i), flipped, row())
		}

		large, long := make([]byte, envelope.MaxPlaintext+1), strings.Repeat("x", envelope.MaxContext+1)
		for what, c := range map[string]struct {
			text []byte
			aad  AAD
			is   func(error) bool
		}{
			"too large":     {large, row(), func(err error) bool { return errors.Is(err, ErrTooLarge) }},
			"a long part":   {nil, Context(long), func(err error) bool { return errors.Is(err, ErrTooLarge) }},
			"long parts":    {nil, Context("a", long), func(err error) bool { return errors.Is(err, ErrTooLarge) }},
			"an imitation":  {nil, Context("\x0bkh1/context"), isInvalid},
			"too many":      {nil, Context(make([]string, 256)...), isInvalid},
			"one too large": {large, Context("\x0bkh1/context"), isInvalid},
		} {
			dst := append(make([]byte, 0, 300), "had"...)
			for _, call := range []func() ([]byte, error){
				func() ([]byte, error) { return w.AppendSeal(t.Context(), dst, inner, c.text, c.aad) },
				func() ([]byte, error) { return w.AppendSeal(t.Context(), c.text[:0], inner, c.text, c.aad) },
				func() ([]byte, error) { return w.Seal(t.Context(), inner, c.text, c.aad) },
				func() ([]byte, error) {
					id, ct, err := w.SealDetached(t.Context(), inner, c.text, c.aad)
					return append(ct, id...), err
				},
			} {
				var got []byte
				var err error
				use(func() { got, err = call() })
				clean := string(dst) == "had" && bytes.Equal(dst[3:cap(dst)], make([]byte, cap(dst)-3))
				if got != nil || !c.is(err) || !clean {
					t.Errorf("%s: %d bytes, %v, and dst %q", what, len(got), err, dst)
				}
			}
		}
		for _, aad := range []AAD{Context("\x0bkh1/context"), Context(make([]string, 256)...)} {
			for _, way := range openWays {
				l := &letter{id: idOf(ct), attached: ct, detached: append([]byte{0xE2, 1}, ct[18:]...)}
				var got []byte
				var err error
				use(func() { got, err = way.open(t.Context(), w.Manager, inner, l, aad) })
				if got != nil || !isInvalid(err) {
					t.Errorf("%s with a context that there is not: %q, %v", way.name, got, err)
				}
			}
		}

		check(t, w.Manager.Close())
		dst := append(make([]byte, 0, 300), "had"...)
		for _, call := range []func() ([]byte, error){
			func() ([]byte, error) { return w.AppendSeal(t.Context(), dst, inner, []byte(text), row()) },
			func() ([]byte, error) { return w.AppendOpen(t.Context(), dst, inner, ct, row()) },
		} {
			got, err := call()
			left := string(dst[:cap(dst)])
			if got != nil || !errors.Is(err, ErrClosed) || string(dst) != "had" || strings.Contains(left, text[8:16]) {
				t.Errorf("closed: %q, %v, and dst %q", got, err, dst)
			}
		}
	})
}

func isInvalid(err error) bool {
	_, ok := errors.AsType[*key.InvalidError](err)
	return ok
}
