package keyhold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
)

// letter is a text that one version sealed, in each form.
type letter struct {
	id                 key.ID
	text               string
	attached, detached []byte
}

// row is the context of what these tests seal.
func row() AAD { return Context("clients", "secret", "42") }

// letterOf seals a text with the head of a key.
func letterOf(t *testing.T, m *Manager, ref Ref, text string) (l letter) {
	t.Helper()
	var err error
	l.text = text
	l.attached, err = m.Seal(t.Context(), ref, []byte(text), row())
	check(t, err)
	l.id, l.detached, err = m.SealDetached(t.Context(), ref, []byte(text), row())
	check(t, err)
	if id := idOf(l.attached); id != l.id {
		t.Fatalf("sealed with %s and with %s", id, l.id)
	}
	return l
}

// idOf is the version that an attached message names.
func idOf(ciphertext []byte) key.ID {
	msg, err := envelope.ParseMessage(ciphertext)
	if err != nil || !msg.Attached {
		return ""
	}
	return key.VersionID(key.DEK, msg.KID)
}

// sealWays are the calls that seal. Each returns the version that it sealed with.
var sealWays = []struct {
	name string
	seal func(ctx context.Context, m *Manager, ref Ref, text []byte, aad AAD) (key.ID, []byte, error)
}{
	{"Seal", func(ctx context.Context, m *Manager, ref Ref, text []byte, aad AAD) (key.ID, []byte, error) {
		ct, err := m.Seal(ctx, ref, text, aad)
		return idOf(ct), ct, err
	}},
	{"SealDetached", func(ctx context.Context, m *Manager, ref Ref, text []byte, aad AAD) (key.ID, []byte, error) {
		return m.SealDetached(ctx, ref, text, aad)
	}},
	{"AppendSeal", func(ctx context.Context, m *Manager, ref Ref, text []byte, aad AAD) (key.ID, []byte, error) {
		out, err := m.AppendSeal(ctx, append(make([]byte, 0, 200), "to "...), ref, text, aad)
		ct, ok := bytes.CutPrefix(out, []byte("to "))
		if err == nil && !ok {
			err = errors.New("what was in dst is gone")
		}
		return idOf(ct), ct, err
	}},
}

// openWays are the calls that open.
var openWays = []struct {
	name string
	open func(ctx context.Context, m *Manager, ref Ref, l *letter, aad AAD) ([]byte, error)
}{
	{"OpenAny", func(ctx context.Context, m *Manager, ref Ref, l *letter, aad AAD) ([]byte, error) {
		pt, whose, err := m.OpenAny(ctx, l.attached, aad)
		if err == nil && whose != ref {
			err = fmt.Errorf("it is said to be %v's", whose)
		}
		return pt, err
	}},
	{"Open", func(ctx context.Context, m *Manager, ref Ref, l *letter, aad AAD) ([]byte, error) {
		return m.Open(ctx, ref, l.attached, aad)
	}},
	{"OpenDetached", func(ctx context.Context, m *Manager, ref Ref, l *letter, aad AAD) ([]byte, error) {
		return m.OpenDetached(ctx, ref, l.id, l.detached, aad)
	}},
	{"AppendOpen", func(ctx context.Context, m *Manager, ref Ref, l *letter, aad AAD) ([]byte, error) {
		out, err := m.AppendOpen(ctx, append(make([]byte, 0, 200), "to "...), ref, l.attached, aad)
		pt, ok := bytes.CutPrefix(out, []byte("to "))
		if err == nil && !ok {
			err = errors.New("what was in dst is gone")
		}
		return pt, err
	}},
}

// sealAll seals in each way, and asserts which version of inner's key does.
func (w *two) sealAll(t *testing.T, want Version) {
	t.Helper()
	fam, err := w.store.Key(t.Context(), inner)
	check(t, err)
	for _, way := range sealWays {
		id, _, err := way.seal(t.Context(), w.Manager, inner, []byte("text"), row())
		v, ok := versionByID(&fam.Data[0], id)
		if err != nil || !ok || v.Number != want {
			t.Errorf("%s: with %q, which has to be version %d; %v", way.name, id, want, err)
		}
	}
}

// openAll opens a letter of inner's in each way.
func (w *two) openAll(t *testing.T, l *letter) {
	t.Helper()
	for _, way := range openWays {
		if pt, err := way.open(t.Context(), w.Manager, inner, l, row()); err != nil || string(pt) != l.text {
			t.Errorf("%s: %q, %v; want %q", way.name, pt, err, l.text)
		}
	}
}

// sealsNot asserts why no way seals.
func (w *two) sealsNot(t *testing.T, want error) {
	t.Helper()
	for _, way := range sealWays {
		id, ct, err := way.seal(t.Context(), w.Manager, inner, []byte("text"), row())
		if !errors.Is(err, want) || ct != nil || id != "" {
			t.Errorf("%s: with %q, %v; want %v", way.name, id, err, want)
		}
	}
}

// opensNot asserts why a letter opens in no way.
func (w *two) opensNot(t *testing.T, l *letter, want error) {
	t.Helper()
	for _, way := range openWays {
		if pt, err := way.open(t.Context(), w.Manager, inner, l, row()); !errors.Is(err, want) || pt != nil {
			t.Errorf("%s: %q, %v; want %v", way.name, pt, err, want)
		}
	}
}

// lettered makes inner's key one of two versions, which are in use in w, and returns what each has sealed.
func (w *two) lettered(t *testing.T) (first, second *letter) {
	t.Helper()
	one := letterOf(t, w.other, inner, "of the first version")
	rotated(t, w, inner)
	other := letterOf(t, w.other, inner, "of the second version")
	for range 2 { // the first call asks what is known; the second keeps what it found
		w.openAll(t, &other)
		w.openAll(t, &one)
		w.sealAll(t, 2)
	}
	return &one, &other
}

// inUseOnly runs f while a call that goes the long way is refused, as by a closed Manager. In a bubble only.
func inUseOnly(m *Manager, f func()) {
	synctest.Wait() // or it would meet what Run does
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// Where a key is in use, no call goes the long way, and nobody is asked anything: neither the database nor the root.
func TestHotMessagesAskNobody(t *testing.T) {
	for _, runs := range []bool{false, true} {
		inTwo(t, func(t *testing.T, w *two) {
			check(t, w.Manager.Close())
			root := &stubRoot{Wrapper: w.root}
			w.root = root
			w.Manager = w.open(t, w.calls)
			if runs {
				stop := running(t, w.Manager)
				defer stop()
				synctest.Wait()
			}
			first, second := w.lettered(t)
			before, roots := w.calls.Calls(), len(root.called())
			for range 20 {
				inUseOnly(w.Manager, func() {
					w.sealAll(t, 2)
					w.openAll(t, first)
					w.openAll(t, second)
				})
				pass(10 * time.Millisecond)
			}
			if asked := w.since(before); len(asked) != 0 || len(root.called()) != roots {
				t.Errorf("it asked %v, and the root %v", asked, root.called()[roots:])
			}
		})
	}
}

// With Run at work keys that are in use go on from one answer of the database to the next, and no call reads one again
// or goes the long way; Run reads it, after four fifths of CacheFor.
func TestMessageKeysInUseGoOnFromAnswerToAnswer(t *testing.T) {
	inTwoWith(t, Config{CacheFor: 2 * time.Minute}, func(t *testing.T, w *two) {
		stop := running(t, w.Manager)
		defer stop()
		synctest.Wait()
		first, second := w.lettered(t)
		pass(epochLife) // until it was read by an answer that came after the last change
		w.openAll(t, first)
		w.openAll(t, second)
		w.sealAll(t, 2)
		before, began := w.calls.Calls(), time.Now()
		read := func() (n int) {
			for _, call := range w.since(before) {
				if call == "Key" || call == "KeyOfVersion" {
					n++
				}
			}
			return n
		}
		use := func() {
			w.sealAll(t, 2)
			w.openAll(t, first)
			w.openAll(t, second)
		}
		for time.Since(began) < 80*time.Second && !t.Failed() {
			inUseOnly(w.Manager, use)
			pass(50 * time.Millisecond)
		}
		if n := read(); n != 0 {
			t.Errorf("the key was read %d times", n)
		}
		if asked := w.since(before); !slices.Contains(asked, "Epochs") {
			t.Errorf("there was no answer to go on to: %v", asked)
		}
		for time.Since(began) < 2*time.Minute {
			use()
			pass(50 * time.Millisecond)
		}
		if n := read(); n != 1 {
			t.Errorf("the key was read %d times, and once by Run was to do", n)
		}
		inUseOnly(w.Manager, use)
	})
}

// A key that nothing but calls with keys in use needs for hours stays open.
func TestMessageKeysInUseAreNotIdle(t *testing.T) {
	inTwoWith(t, Config{CacheFor: 24 * time.Hour}, func(t *testing.T, w *two) {
		stop := running(t, w.Manager)
		defer stop()
		synctest.Wait()
		first, _ := w.lettered(t)
		names := []hotName{{what: headOfRef, ref: inner}, {what: versionWithKID, kid: kidOf(t, first.id)}}
		keys := func() (keys []*seal.MessageKey) {
			for _, name := range names {
				keys = append(keys, w.hotKeys.find(&name).messages)
			}
			return keys
		}
		before := keys()
		for range int(3 * idleFor / (4 * time.Second)) {
			pass(4 * time.Second)
			w.openAll(t, first)
			w.sealAll(t, 2)
		}
		if !slices.Equal(keys(), before) {
			t.Error("a key in use was closed, and opened again")
		}
	})
}

func kidOf(t *testing.T, id key.ID) key.KID {
	t.Helper()
	kid, ok := id.KID()
	if !ok {
		t.Fatalf("%s has no kid", id)
	}
	return kid
}

func TestStrictMessagesAskEachTime(t *testing.T) {
	inTwoWith(t, Config{Strict: true}, func(t *testing.T, w *two) {
		first, _ := w.lettered(t)
		for i := range Version(3) {
			rotated(t, w, inner)
			w.sealAll(t, 3+i)
			for _, way := range sealWays {
				before := w.calls.Calls()
				_, _, err := way.seal(t.Context(), w.Manager, inner, nil, row())
				check(t, err)
				if !slices.Contains(w.since(before), "Key") {
					t.Errorf("%s asked %v", way.name, w.since(before))
				}
			}
			for _, way := range openWays {
				before := w.calls.Calls()
				_, err := way.open(t.Context(), w.Manager, inner, first, row())
				check(t, err)
				if asked := w.since(before); !slices.Contains(asked, "Key") && !slices.Contains(asked, "KeyOfVersion") {
					t.Errorf("%s asked %v", way.name, asked)
				}
			}
		}
		check(t, w.other.Disable(t.Context(), first.id))
		w.opensNot(t, first, ErrDisabled)
	})
}

// A call with a key in use is a lookup that found it, one for each call; and what it refuses is told as ever.
func TestMetricsOfHotMessages(t *testing.T) {
	const lookups, refusals = "keyhold.cache.lookups", "keyhold.refusals"
	inTwo(t, func(t *testing.T, w *two) {
		m, s := w.watched(t)
		l := letterOf(t, w.other, inner, "text")
		w.Manager = m
		for range 2 {
			w.sealAll(t, 1)
			w.openAll(t, &l)
		}
		missed, _ := s.value(t, lookups, "result=miss")
		for _, way := range sealWays {
			s.moves(t, 10, func() {
				inUseOnly(m, func() {
					for range 10 {
						_, _, err := way.seal(t.Context(), m, inner, nil, row())
						check(t, err)
					}
				})
			}, lookups, "result=hit")
		}
		for _, way := range openWays {
			s.moves(t, 10, func() {
				inUseOnly(m, func() {
					for range 10 {
						_, err := way.open(t.Context(), m, inner, &l, row())
						check(t, err)
					}
				})
			}, lookups, "result=hit")
		}
		s.is(t, missed, lookups, "result=miss")
		for _, way := range openWays {
			s.moves(t, 1, func() {
				_, err := way.open(t.Context(), m, inner, &l, Context("elsewhere"))
				wants(t, err, ErrOpen)
			}, refusals, "reason=open")
		}
	})
}
