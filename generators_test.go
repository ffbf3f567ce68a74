package keyhold

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/memstore"
)

var errTheirs = errors.New("theirs is out of order")

// theirs makes keys of n bytes, each of one byte more than the one before.
func theirs(n int, calls *atomic.Int64) Generator {
	return func(context.Context) ([]byte, error) {
		return bytes.Repeat([]byte{byte(calls.Add(1))}, n), nil
	}
}

func withGenerators(t *testing.T, s *memstore.Store, generators map[string]Generator) *Manager {
	t.Helper()
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	m, err := New(t.Context(), s, Config{Root: root, Initialize: true, Generators: generators})
	check(t, err)
	t.Cleanup(func() { check(t, m.Close()) })
	check(t, m.CreateScope(t.Context(), inner.Scope))
	return m
}

// Whatever a generator does wrong, nothing is made, and no error shows bytes of it.
func TestGeneratorsThatMakeNothing(t *testing.T) {
	const shown = "a secret that a generator shows"
	for name, c := range map[string]struct {
		do   Generator
		want error
	}{
		"panic":      {do: func(context.Context) ([]byte, error) { panic(shown) }},
		"error":      {do: func(context.Context) ([]byte, error) { return []byte(shown), errTheirs }, want: errTheirs},
		"nil":        {do: func(context.Context) ([]byte, error) { return nil, nil }},
		"no bytes":   {do: func(context.Context) ([]byte, error) { return []byte{}, nil }},
		"1025 bytes": {do: func(context.Context) ([]byte, error) { return bytes.Repeat([]byte(shown), 40)[:1025], nil }},
		"slow": {do: func(ctx context.Context) ([]byte, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}, want: context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			bad, calls := atomic.Bool{}, atomic.Int64{}
			good := theirs(5, &calls)
			m := withGenerators(t, memstore.New(), map[string]Generator{"theirs": func(ctx context.Context) ([]byte, error) {
				if bad.Load() {
					return c.do(ctx)
				}
				return good(ctx)
			}})
			refused := func(what string, do func(ctx context.Context) error) {
				t.Helper()
				bad.Store(true)
				defer bad.Store(false)
				ctx, cancel := context.WithCancel(t.Context())
				if name == "slow" {
					time.AfterFunc(10*time.Millisecond, cancel)
				}
				defer cancel()
				err := do(ctx)
				switch {
				case err == nil || c.want != nil && !errors.Is(err, c.want):
					t.Errorf("%s: got %v, want %v", what, err, c.want)
				case !strings.Contains(err.Error(), `"theirs"`) && name != "slow":
					t.Errorf("%s: %v does not name the generator", what, err)
				case strings.Contains(err.Error(), shown):
					t.Errorf("%s: %v shows what it was given", what, err)
				}
			}
			how := RawKey{Generator: "theirs"}
			refused("make", func(ctx context.Context) error { _, err := m.MakeRaw(ctx, innerRaw, how); return err })
			if _, err := m.RawInfo(t.Context(), innerRaw); !errors.Is(err, ErrNotFound) {
				t.Errorf("something was made: %v", err)
			}
			_, err := m.MakeRaw(t.Context(), innerRaw, how)
			check(t, err)
			refused("rotate", func(ctx context.Context) error { _, err := m.Rotate(ctx, innerRaw); return err })
			if b, v, err := m.Raw(t.Context(), innerRaw); err != nil || v != 1 || len(b) != 5 {
				t.Errorf("version %d of %d bytes, %v", v, len(b), err)
			}
			n, err := m.Rotate(t.Context(), innerRaw)
			if err != nil || n != 2 {
				t.Errorf("rotated to %d, %v", n, err)
			}
		})
	}
}

// A generator makes every version, of any size, and its own slice is cleared.
func TestGeneratorsMakeEveryVersion(t *testing.T) {
	for _, size := range []int{1, 7, 8, 9, 16, 33, 1023, 1024} {
		var calls atomic.Int64
		var last []byte
		inside := theirs(size, &calls)
		m := withGenerators(t, memstore.New(), map[string]Generator{"theirs": func(ctx context.Context) ([]byte, error) {
			var err error
			last, err = inside(ctx)
			return last, err
		}})
		_, err := m.MakeRaw(t.Context(), innerRaw, RawKey{Generator: "theirs"})
		check(t, err)
		for n := Version(1); n <= 3; n++ {
			if b, v, err := m.Raw(t.Context(), innerRaw); err != nil || v != n || !bytes.Equal(b, bytes.Repeat([]byte{byte(n)}, size)) {
				t.Errorf("%d bytes: version %d of %d bytes, %v; want %d", size, v, len(b), err, n)
			}
			if !bytes.Equal(last, make([]byte, size)) {
				t.Errorf("%d bytes: what the generator returned is left", size)
			}
			_, err = m.Rotate(t.Context(), innerRaw)
			check(t, err)
		}
		if got := calls.Load(); got != 4 {
			t.Errorf("it was called %d times, want 4", got)
		}
	}
}

// The names that every process has cannot be taken, nor names that are none.
func TestGeneratorsThatCannotBeConfigured(t *testing.T) {
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	var calls atomic.Int64
	g := theirs(8, &calls)
	for _, generators := range []map[string]Generator{
		{"aes256-random": g},
		{"aes192-random": g},
		{"aes128-random": g},
		{"": g},
		{"theirs": nil},
		{" theirs": g},
		{"a\nb": g},
		{strings.Repeat("a", 256): g},
	} {
		_, err := New(t.Context(), memstore.New(), Config{Root: root, Initialize: true, Generators: generators})
		if _, ok := errors.AsType[*InvalidError](err); !ok {
			t.Errorf("%v: got %v, want an InvalidError", generators, err)
		}
	}
	longest := map[string]Generator{strings.Repeat("a", 255): g}
	m, err := New(t.Context(), memstore.New(), Config{Root: root, Initialize: true, Generators: longest})
	check(t, err)
	check(t, m.Close())
}

// A process that lacks the generator reads, leaves the key's rotation alone, and says so no more often than it tries;
// it rotates the others. One that has it rotates the key.
func TestRunWithoutTheGenerator(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var heard told
		var calls atomic.Int64
		w := &two{store: memstore.New(), config: Config{OnEvent: heard.hear}}
		var err error
		w.root, err = localroot.Generate(t.TempDir() + "/root.key")
		check(t, err)
		without := w.open(t, w.store)
		w.Manager = without
		w.config = Config{Generators: map[string]Generator{"theirs": theirs(8, &calls)}}
		w.other = w.open(t, w.store)
		ctx := t.Context()
		check(t, w.other.CreateScope(ctx, inner.Scope))
		_, err = w.other.MakeRaw(ctx, innerRaw, RawKey{Generator: "theirs", Policy: Policy{RotateEvery: time.Hour}})
		check(t, err)
		plain := Ref{Scope: inner.Scope, Purpose: "plain"}
		_, err = without.MakeRaw(ctx, plain, RawKey{Policy: Policy{RotateEvery: time.Hour}})
		check(t, err)
		stop := running(t, without)
		pass(5 * time.Hour)
		w.hasStates(t, innerRaw, key.Active)
		if n := len(w.states(t, plain)); n < 4 {
			t.Errorf("the other key has %d versions after five hours", n)
		}
		w.hasRaw(t, 1)
		failed := 0
		heard.mu.Lock()
		for _, e := range heard.events {
			if e.Kind == RotationFailed {
				failed++
				if e.Ref != innerRaw || !errors.Is(e.Err, ErrGenerator) {
					t.Errorf("%v failed: %v", e.Ref, e.Err)
				}
			}
		}
		heard.mu.Unlock()
		if failed == 0 || failed > 60 {
			t.Errorf("in four hours it was told of %d times", failed)
		}
		_, err = without.Rotate(ctx, innerRaw)
		wants(t, err, ErrGenerator)
		_, err = without.MakeRaw(ctx, Ref{Scope: inner.Scope, Purpose: "new"}, RawKey{Generator: "theirs"})
		wants(t, err, ErrGenerator)
		wants(t, without.RegisterRaw(ctx, Ref{Scope: inner.Scope, Purpose: "new"}, "theirs"), ErrGenerator)

		stopOther := running(t, w.other)
		pass(10 * time.Minute)
		w.hasStates(t, innerRaw, key.Retired, key.Active)
		if b := w.hasRaw(t, 2); !bytes.Equal(b, bytes.Repeat([]byte{2}, 8)) {
			t.Error("it was not made by the generator")
		}
		stopOther()
		stop()
		w.sound(t)
	})
}
