package keyhold

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

const herd = 1_000 // goroutines that come at once

// stampede is a cold process, whose store reads keys when it is let.
type stampede struct {
	*Manager
	calls *faultstore.Store
	let   chan struct{}
	ct    []byte
	begun int // how many calls there were
}

func newStampede(t *testing.T) *stampede {
	t.Helper()
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	mem := memstore.New()
	cfg := Config{
		Root: root, Initialize: true,
		Purposes: []Purpose{inner.Purpose}, RawPurposes: []Purpose{"raw"}, IndexPurposes: []Purpose{"index"},
	}
	m, err := New(t.Context(), mem, cfg)
	check(t, err)
	check(t, m.CreateScope(t.Context(), inner.Scope))
	s := &stampede{calls: faultstore.New(mem), let: make(chan struct{})}
	s.ct, err = m.Seal(t.Context(), inner, nil, AAD{})
	check(t, err)
	check(t, m.Close())
	s.Manager, err = New(t.Context(), s.calls, cfg)
	check(t, err)
	s.begun = s.calls.Calls()
	s.calls.Hook(func(call string) {
		if strings.HasPrefix(call, "Key") {
			<-s.let
		}
	})
	return s
}

// since is the calls that there were.
func (s *stampede) since() string { return strings.Join(s.calls.Log()[s.begun:], " ") }

// uses are what needs a key, by what they read it with.
var uses = map[string]struct {
	use   func(ctx context.Context, s *stampede) error
	calls string
}{
	"Seal": {func(ctx context.Context, s *stampede) error {
		_, err := s.Seal(ctx, inner, nil, AAD{})
		return err
	}, "Sign Key"},
	"Open": {func(ctx context.Context, s *stampede) error {
		_, err := s.Open(ctx, inner, s.ct, AAD{})
		return err
	}, "Epochs Key"},
	"OpenAny": {func(ctx context.Context, s *stampede) error {
		_, _, err := s.OpenAny(ctx, s.ct, AAD{})
		return err
	}, "Epochs KeyOfVersion"},
	"Raw": {func(ctx context.Context, s *stampede) error {
		_, _, err := s.Raw(ctx, Ref{Scope: inner.Scope, Purpose: "raw"})
		return err
	}, "Sign Key"},
	"BlindIndex": {func(ctx context.Context, s *stampede) error {
		_, err := s.BlindIndex(ctx, Ref{Scope: inner.Scope, Purpose: "index"}, "name", nil, 8)
		return err
	}, "Epochs Key"},
}

// all lets n goroutines do f, and returns the errors when all are through; let is called when none can go on.
func all(n int, f func() error, let func()) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f() })
	}
	synctest.Wait()
	let()
	wg.Wait()
	return errs
}

func TestAStampedeReadsAColdKeyOnce(t *testing.T) {
	for name, u := range uses {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newStampede(t)
				for _, err := range all(herd, func() error { return u.use(t.Context(), s) }, func() { close(s.let) }) {
					check(t, err)
				}
				if got := s.since(); got != u.calls {
					t.Errorf("%s, want %s", got, u.calls)
				}
				check(t, s.Close())
			})
		})
	}
}

func TestAStampedeGoesOnWithoutWhoReadForIt(t *testing.T) {
	for name, u := range uses {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newStampede(t)
				ctx, cancel := context.WithCancel(t.Context())
				first := make(chan error, 1)
				go func() { first <- u.use(ctx, s) }()
				synctest.Wait()
				for _, err := range all(herd, func() error { return u.use(t.Context(), s) }, func() { cancel(); close(s.let) }) {
					check(t, err)
				}
				if err := <-first; !errors.Is(err, context.Canceled) {
					t.Errorf("the first: %v", err)
				}
				if got, want := s.since(), u.calls+" "+strings.Fields(u.calls)[1]; got != want {
					t.Errorf("%s, want %s", got, want)
				}
				check(t, s.Close())
			})
		})
	}
}

func TestAStampedeFailsTogether(t *testing.T) {
	for name, u := range uses {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newStampede(t)
				read := strings.Fields(u.calls)[1]
				errs := all(herd, func() error { return u.use(t.Context(), s) }, func() {
					s.calls.Away(true)
					close(s.let)
				})
				if i := slices.IndexFunc(errs, func(err error) bool { return !errors.Is(err, store.ErrUnavailable) }); i >= 0 {
					t.Errorf("one of all: %v", errs[i])
				}
				if got := count(s.calls.Log()[s.begun:], read); got != 1 {
					t.Errorf("%d reads, want 1", got)
				}
				s.calls.Away(false)
				check(t, u.use(t.Context(), s)) // the next one tries again
				check(t, s.Close())
			})
		})
	}
}

// Nor do all read, one after the other, where the next one fails.
func TestAStampedeFailsTogetherWithoutWhoReadForIt(t *testing.T) {
	for name, u := range uses {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newStampede(t)
				ctx, cancel := context.WithCancel(t.Context())
				reads := 0
				s.calls.Hook(func(call string) {
					if !strings.HasPrefix(call, "Key") {
						return
					}
					if reads++; reads == 1 {
						<-s.let
					} else {
						s.calls.Away(true)
					}
				})
				go func() { _ = u.use(ctx, s) }()
				synctest.Wait()
				errs := all(herd, func() error { return u.use(t.Context(), s) }, func() { cancel(); close(s.let) })
				if i := slices.IndexFunc(errs, func(err error) bool { return !errors.Is(err, store.ErrUnavailable) }); i >= 0 {
					t.Errorf("one of all: %v", errs[i])
				}
				if reads != 2 {
					t.Errorf("%d reads, want 2", reads)
				}
				s.calls.Hook(nil)
				s.calls.Away(false)
				check(t, u.use(t.Context(), s))
				check(t, s.Close())
			})
		})
	}
}

// However many need a version at once, one unwraps it: a data key's, and the root key's above 1 000 data keys.
func TestAStampedeUnwrapsOnce(t *testing.T) {
	for _, of := range []string{"data key", "root key"} {
		t.Run(of, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				m := innerManager(t, memstore.New())
				fam, err := m.committed().scope(t.Context(), inner.Scope)
				check(t, err)
				m.cache.clear()
				k := &fam.Data[0]
				if of == "root key" {
					k = &fam.Root
				}
				let, failed := make(chan struct{}), errors.New("it does not open")
				is, err := rowOf(&fam.Family, k, &k.Versions[0])
				check(t, err)
				go func() {
					_, _ = m.cache.openOnce(k.Kind, is, func() (opened, error) {
						<-let
						return opened{}, failed
					})
				}()
				synctest.Wait()
				open := func() error {
					_, err := m.committed().open(&fam.Family, &fam.Data[0], &fam.Data[0].Versions[0])
					return err
				}
				// Whoever did not wait would have opened it.
				for _, err := range all(herd, open, func() { close(let) }) {
					if !errors.Is(err, failed) {
						t.Fatalf("%v, want what came of the one that opens it", err)
					}
				}
				check(t, open()) // the next one tries again
				check(t, m.Close())
			})
		})
	}
}

// Who looked for a key just before it was kept does not read it again.
func TestAKeyThatWasKeptJustNowIsNotReadAgain(t *testing.T) {
	c, now := newCache(10), &reading{}
	yes, no := func(*snapshot) bool { return true }, func(*snapshot) bool { return false }
	fam := family{Family: store.Family{
		Root: store.Key{ID: "krk_a", Scope: inner.Scope}, Data: []store.Key{{ID: "kdk_a", Purpose: inner.Purpose}},
	}}
	first, mine := c.filling(inner, now, nil, yes)
	if !mine {
		t.Fatal("somebody else reads it")
	}
	first.family = fam
	c.filled(inner, first, fam.keep(now, instant{}, 0, 0))
	c.keepRef("kdkv_a", inner)
	for _, of := range []any{inner, key.ID("kdkv_a")} {
		for what, again := range map[string]struct {
			now  *reading
			kept func(*snapshot) bool
			mine bool
		}{
			"under the same epochs":           {now, yes, false},
			"that may not be used any more":   {now, no, true},
			"under epochs that are read anew": {&reading{}, yes, true},
		} {
			f, mine := c.filling(of, again.now, nil, again.kept)
			if mine != again.mine || !mine && f.family.Root.ID != fam.Root.ID {
				t.Errorf("%v, %s: to be read: %v, %+v", of, what, mine, f)
			}
			if mine {
				c.endFilling(of, f)
			}
		}
	}
}

func TestAVersionIsOpenedOnceAtATime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCache(10)
		row := func(blob string) openedRow {
			v := store.Version{ID: "krkv_1", Number: 1, Commit: make([]byte, 32), Blob: []byte(blob)}
			is, err := rowOf(nil, &store.Key{Kind: key.KEK}, &v)
			check(t, err)
			return is
		}
		let, did := make(chan struct{}), make(chan openedRow, herd)
		open := func(is openedRow) error {
			o, err := c.openOnce(key.KEK, is, func() (opened, error) {
				did <- is
				<-let
				return c.keep(key.KEK, openedKey{openedRow: is}), nil
			})
			if err == nil && o.openedRow != is {
				err = errors.New("another row was opened")
			}
			return err
		}
		for _, err := range all(herd, func() error { return open(row("one")) }, func() { close(let) }) {
			check(t, err)
		}
		if len(did) != 1 {
			t.Errorf("opened %d times, want once", len(did))
		}
		if check(t, open(row("one"))); len(did) != 1 { // it is kept
			t.Errorf("opened %d times, want once", len(did))
		}

		// A row that was rewrapped meanwhile is another one.
		c.empty()
		let = make(chan struct{})
		go func() { _ = open(row("old")) }()
		synctest.Wait()
		for _, err := range all(3, func() error { return open(row("new")) }, func() { close(let) }) {
			check(t, err)
		}

		// One that panics leaves nobody waiting.
		c.empty()
		let = make(chan struct{})
		go func() {
			defer func() { _ = recover() }()
			_, _ = c.openOnce(key.KEK, row("x"), func() (opened, error) {
				<-let
				panic("no")
			})
		}()
		synctest.Wait()
		for _, err := range all(3, func() error { return open(row("x")) }, func() { close(let) }) {
			check(t, err)
		}
	})
}
