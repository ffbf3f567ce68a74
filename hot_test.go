package keyhold

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

var innerRaw = Ref{Scope: inner.Scope, Purpose: "user_data"}

// rawKeyed makes a raw key of two versions, which w has read, and returns their bytes.
func (w *two) rawKeyed(t *testing.T) (first, second []byte) {
	t.Helper()
	_, err := w.other.MakeRaw(t.Context(), innerRaw, RawKey{})
	check(t, err)
	rotated(t, w, innerRaw)
	second = w.hasRaw(t, 2)
	first, err = w.RawVersion(t.Context(), innerRaw, 1)
	check(t, err)
	return first, second
}

// hasRaw asserts the number of the head, and returns its bytes.
func (w *two) hasRaw(t *testing.T, want Version) []byte {
	t.Helper()
	material, v, err := w.Raw(t.Context(), innerRaw)
	if err != nil || v != want {
		t.Errorf("version %d, %v; want %d", v, err, want)
	}
	return material
}

// isRaw asserts the bytes of a version.
func (w *two) isRaw(t *testing.T, n Version, want []byte) {
	t.Helper()
	material, err := w.RawVersion(t.Context(), innerRaw, n)
	if err != nil || !bytes.Equal(material, want) {
		t.Errorf("version %d is not what it was: %v", n, err)
	}
}

// withAndWithoutRun runs f twice: where only calls look at the clocks, and where Run does.
func withAndWithoutRun(t *testing.T, cfg Config, f func(t *testing.T, w *two)) {
	t.Helper()
	t.Run("without Run", func(t *testing.T) { inTwoWith(t, cfg, f) })
	t.Run("with Run", func(t *testing.T) {
		inTwoWith(t, cfg, func(t *testing.T, w *two) {
			stop := running(t, w.Manager)
			synctest.Wait()
			f(t, w)
			stop()
		})
	})
}

// A raw key that is in use costs no question and one copy, the head and an old version alike.
func TestHotRawKeysAskNobody(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		first, second := w.rawKeyed(t)
		before := w.calls.Calls()
		for i := range 2000 {
			w.isRaw(t, 1, first)
			if !bytes.Equal(w.hasRaw(t, 2), second) {
				t.Fatal("another head")
			}
			if i%100 == 0 {
				pass(10 * time.Millisecond)
			}
		}
		if asked := w.since(before); len(asked) != 0 {
			t.Errorf("it asked %v", asked)
		}
	})
}

func TestHotRawKeysAllocateTheCopyAlone(t *testing.T) {
	s := faultstore.New(memstore.New())
	m := innerManager(t, s)
	defer func() { check(t, m.Close()) }()
	ctx := t.Context()
	for _, generator := range []string{"aes128-random", "aes192-random", ""} {
		ref := Ref{Scope: inner.Scope, Purpose: Purpose("k" + generator)}
		_, err := m.MakeRaw(ctx, ref, RawKey{Generator: generator})
		check(t, err)
		_, err = m.Rotate(ctx, ref)
		check(t, err)
		for what, read := range map[string]func() error{
			"head":    func() error { _, _, err := m.Raw(ctx, ref); return err },
			"version": func() error { _, err := m.RawVersion(ctx, ref, 1); return err },
		} {
			check(t, read())
			before := s.Calls()
			allocs := testing.AllocsPerRun(1000, func() {
				if err := read(); err != nil {
					t.Error(err)
				}
			})
			if asked := s.Calls() - before; allocs > 1 || asked != 0 {
				t.Errorf("%s by %q: %v allocations and %d questions", what, generator, allocs, asked)
			}
		}
	}
}

// What another process changes is seen 5 s later at the latest, in the head and in the versions.
func TestHotRawKeysSeeWhatAnotherProcessChanges(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		first, _ := w.rawKeyed(t)
		w.hasRaw(t, 2)
		fam, err := w.store.Key(t.Context(), innerRaw)
		check(t, err)
		rotated(t, w, innerRaw)
		check(t, w.other.Disable(t.Context(), fam.Data[0].Versions[0].ID))
		for range 5000 { // in use all the time
			pass(time.Millisecond)
			_, _, err := w.Raw(t.Context(), innerRaw)
			check(t, err)
			if b, err := w.RawVersion(t.Context(), innerRaw, 1); err == nil && !bytes.Equal(b, first) {
				t.Fatal("version 1 has other bytes")
			}
		}
		w.hasRaw(t, 3)
		_, err = w.RawVersion(t.Context(), innerRaw, 1)
		wants(t, err, ErrDisabled)
	})
}

// One that was not there a moment ago is asked for.
func TestARawVersionThatIsNew(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		w.rawKeyed(t)
		pass(time.Second)
		rotated(t, w, innerRaw)
		want, _, err := w.other.Raw(t.Context(), innerRaw)
		check(t, err)
		w.isRaw(t, 3, want)
		_, err = w.RawVersion(t.Context(), innerRaw, 4)
		wants(t, err, ErrNotFound)
	})
}

// What this process changes itself holds at once.
func TestHotRawKeysSeeAnOwnChangeAtOnce(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		first, second := w.rawKeyed(t)
		_, err := w.Rotate(t.Context(), innerRaw)
		check(t, err)
		w.hasRaw(t, 3)
		fam, err := w.store.Key(t.Context(), innerRaw)
		check(t, err)
		w.isRaw(t, 1, first)
		check(t, w.Disable(t.Context(), fam.Data[0].Versions[0].ID))
		_, err = w.RawVersion(t.Context(), innerRaw, 1)
		wants(t, err, ErrDisabled)
		w.isRaw(t, 2, second)
		check(t, w.RemoveRaw(t.Context(), innerRaw))
		_, _, err = w.Raw(t.Context(), innerRaw)
		wants(t, err, ErrNotFound)
		_, err = w.RawVersion(t.Context(), innerRaw, 2)
		wants(t, err, ErrNotFound)
	})
}

// What was read before an own change, and comes afterwards, is not kept.
func TestAHotRawKeyIsNotKeptOverAnOwnChange(t *testing.T) {
	for _, call := range []string{"Key", "Epochs"} {
		inTwo(t, func(t *testing.T, w *two) {
			w.rawKeyed(t)
			pass(epochLife)
			rotated(t, w, innerRaw) // so that the next call reads the key
			out := make(chan struct{})
			var held atomic.Bool
			w.calls.Hook(func(c string) {
				if c == call && held.CompareAndSwap(false, true) {
					<-out
				}
			})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _, err := w.Raw(t.Context(), innerRaw)
				check(t, err)
			})
			synctest.Wait()
			if !held.Load() {
				t.Errorf("%s was not called", call)
			}
			wg.Go(func() {
				_, err := w.Rotate(t.Context(), innerRaw)
				check(t, err)
			})
			synctest.Wait()
			close(out)
			wg.Wait()
			w.calls.Hook(nil)
			w.hasRaw(t, 4)
			w.hasRaw(t, 4)
		})
	}
}

// While many read a key, and the same process rotates and disables its versions, nobody gets what was over when the
// call began.
func TestNoHotRawKeyIsOlderThanAnOwnChange(t *testing.T) {
	for _, runs := range []bool{false, true} {
		m := innerManager(t, memstore.New())
		if runs {
			stop := running(t, m)
			defer stop()
		}
		_, err := m.MakeRaw(t.Context(), innerRaw, RawKey{})
		check(t, err)
		var head, disabled, end atomic.Uint64
		head.Store(1)
		var wg sync.WaitGroup
		for g := range 6 {
			wg.Go(func() {
				for end.Load() == 0 {
					if g%2 == 0 {
						least := head.Load()
						if _, v, err := m.Raw(t.Context(), innerRaw); err != nil || uint64(v) < least {
							t.Errorf("version %d, %v; %d was the head before", v, err, least)
							return
						}
						continue
					}
					if n := disabled.Load(); n > 0 {
						if _, err := m.RawVersion(t.Context(), innerRaw, Version(n)); !errors.Is(err, ErrDisabled) {
							t.Errorf("version %d: %v; it was disabled before", n, err)
							return
						}
					}
					_, err := m.RawVersion(t.Context(), innerRaw, Version(head.Load()))
					if err != nil && !errors.Is(err, ErrDisabled) { // which it may be by now
						t.Error(err)
					}
				}
			})
		}
		for range 60 {
			n, err := m.Rotate(t.Context(), innerRaw)
			check(t, err)
			head.Store(uint64(n))
			fam, err := m.store.Key(t.Context(), innerRaw)
			check(t, err)
			if n > 3 {
				check(t, m.Disable(t.Context(), fam.Data[0].Versions[n-4].ID))
				disabled.Store(uint64(n - 3))
			}
		}
		end.Store(1)
		wg.Wait()
	}
}

func TestStrictRawKeysAreAskedForEachTime(t *testing.T) {
	inTwoWith(t, Config{Strict: true}, func(t *testing.T, w *two) {
		w.rawKeyed(t)
		for i := range Version(3) {
			rotated(t, w, innerRaw)
			before := w.calls.Calls()
			w.hasRaw(t, 3+i)
			if len(w.since(before)) == 0 {
				t.Error("it asked nobody")
			}
		}
	})
}

// A database that answers, and takes no sign: the head goes on for as long as others know that this process uses it.
func TestHotRawKeysWhileNoSignIsTaken(t *testing.T) {
	const life = 62 * time.Second
	withAndWithoutRun(t, Config{SealFor: life}, func(t *testing.T, w *two) {
		first, _ := w.rawKeyed(t)
		w.calls.Hook(func(call string) {
			if call == "Sign" {
				w.calls.Fail(0, faultstore.Before)
			}
		})
		over := func() time.Duration { return life - (w.epochs.mono() - w.epochs.signed.Load().at.mono) }
		for over() > time.Second {
			pass(time.Second)
			w.hasRaw(t, 2)
		}
		pass(over() - time.Millisecond)
		for range 2 { // it is hot by then
			w.hasRaw(t, 2)
		}
		pass(time.Millisecond)
		_, _, err := w.Raw(t.Context(), innerRaw)
		wants(t, err, ErrStale)
		w.isRaw(t, 1, first)
		w.calls.Hook(nil)
		pass(signRetry + time.Second)
		w.hasRaw(t, 2)
	})
}

// A machine that was suspended has missed what happened meanwhile: a moment later nothing hot goes on.
func TestHotRawKeysAfterASuspension(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		var asleep atomic.Int64
		synctest.Wait()
		told := w.epochs.clock
		w.epochs.clock = func() instant {
			now := told()
			now.wall = now.wall.Add(time.Duration(asleep.Load()))
			return now
		}
		w.rawKeyed(t)
		for range Version(3) {
			fam, err := w.store.Key(t.Context(), innerRaw)
			check(t, err)
			w.hasRaw(t, fam.Data[0].Head)
			rotated(t, w, innerRaw)
			w.hasRaw(t, fam.Data[0].Head)
			asleep.Add(int64(time.Hour))
			pass(recheck)
			w.hasRaw(t, fam.Data[0].Head+1)
		}
		w.away(true)
		asleep.Add(int64(DefaultSealFor))
		pass(recheck)
		_, _, err := w.Raw(t.Context(), innerRaw)
		wants(t, err, ErrStale)
		w.away(false)
		pass(2 * time.Second)
	})
}

// While bytes are copied they are cleared: a reader gets the key, or is told, and never anything else.
func TestCloseWhileRawKeysAreRead(t *testing.T) {
	for range 20 {
		m := innerManager(t, memstore.New())
		_, err := m.MakeRaw(t.Context(), innerRaw, RawKey{Generator: "aes192-random"})
		check(t, err)
		want, _, err := m.Raw(t.Context(), innerRaw)
		check(t, err)
		var wg sync.WaitGroup
		begun := make(chan struct{}, 16)
		for g := range 8 {
			wg.Go(func() {
				defer func() { begun <- struct{}{} }()
				for n := 0; ; n++ {
					var material []byte
					var err error
					if g%2 == 0 {
						material, _, err = m.Raw(t.Context(), innerRaw)
					} else {
						material, err = m.RawVersion(t.Context(), innerRaw, 1)
					}
					if err != nil {
						if !errors.Is(err, ErrClosed) || material != nil {
							t.Errorf("%d bytes, %v", len(material), err)
						}
						return
					}
					if !bytes.Equal(material, want) {
						t.Error("it is not the key")
						return
					}
					if n == 100 {
						begun <- struct{}{}
					}
				}
			})
		}
		for range 4 { // are at it
			<-begun
		}
		check(t, m.Close())
		wg.Wait()
	}
}

// More keys are in use than are kept: each call has the right one.
func TestMoreRawKeysThanAreKept(t *testing.T) {
	for _, kept := range []int{1, 4} {
		s := memstore.New()
		first := innerManager(t, s)
		defer func() { check(t, first.Close()) }()
		m, err := New(t.Context(), s, Config{Root: first.root, CacheKeys: kept})
		check(t, err)
		defer func() { check(t, m.Close()) }()
		const names = 16
		ref := func(i int) Ref { return Ref{Scope: inner.Scope, Purpose: Purpose(fmt.Sprint("n", i))} }
		want := map[Ref][2][]byte{}
		for i := range names {
			_, err := first.MakeRaw(t.Context(), ref(i), RawKey{})
			check(t, err)
			_, err = first.Rotate(t.Context(), ref(i))
			check(t, err)
			one, err := first.RawVersion(t.Context(), ref(i), 1)
			check(t, err)
			two, _, err := first.Raw(t.Context(), ref(i))
			check(t, err)
			want[ref(i)] = [2][]byte{one, two}
		}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 200 {
					r := ref(i * (2*g + 1) % names)
					b, v, err := m.Raw(t.Context(), r)
					if err != nil || v != 2 || !bytes.Equal(b, want[r][1]) {
						t.Errorf("the head of %v is another, %d, %v", r, v, err)
						return
					}
					if b, err = m.RawVersion(t.Context(), r, 1); err != nil || !bytes.Equal(b, want[r][0]) {
						t.Errorf("version 1 of %v is another: %v", r, err)
						return
					}
				}
			})
		}
		wg.Wait()
		for what, size := range m.cache.sizes() {
			if size.kept > kept {
				t.Errorf("%d of %s are kept, want at most %d", size.kept, what, kept)
			}
		}
	}
}

// A key that the database has in an older state makes nothing new, and goes on opening.
func TestARawKeyThatWasRolledBack(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		first, _ := w.rawKeyed(t)
		before := stored(w.store)
		rotated(t, w, innerRaw)
		pass(epochLife)
		third := w.hasRaw(t, 3)
		w.failover(before)
		w.store.Edit(func(d *memstore.Data) {
			for i := range d.Epochs {
				d.Epochs[i] += 10
			}
		})
		pass(epochLife)
		for range 2 {
			if b, v, err := w.Raw(t.Context(), innerRaw); !errors.Is(err, ErrRolledBack) {
				t.Errorf("version %d, the newest is %v, %v; want ErrRolledBack", v, bytes.Equal(b, third), err)
			}
			w.isRaw(t, 1, first)
		}
		wants(t, w.RemoveRaw(t.Context(), innerRaw), ErrRolledBack)
	})
}

// Another installation key changes no raw key.
func TestHotRawKeysGoOnThroughARekey(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		first, second := w.rawKeyed(t)
		for range 2 {
			rekeyed(t, w.other)
			for range 700 {
				w.isRaw(t, 1, first)
				if !bytes.Equal(w.hasRaw(t, 2), second) {
					t.Fatal("another head")
				}
				pass(10 * time.Millisecond)
			}
		}
		rotated(t, w, innerRaw)
		pass(epochLife)
		w.hasRaw(t, 3)
		w.sound(t)
	})
}

// A key that was removed, and another that was made by its name, is not taken for one that a failover lost.
func TestARawKeyThatWasMadeAnewIsNotWrittenBack(t *testing.T) {
	var heard told
	inTwoWith(t, Config{OnEvent: heard.hear}, func(t *testing.T, w *two) {
		stop := running(t, w.Manager, w.other)
		w.rawKeyed(t)
		check(t, w.other.RemoveRaw(t.Context(), innerRaw))
		check(t, w.other.RegisterRaw(t.Context(), innerRaw, ""))
		_, err := w.other.MakeRaw(t.Context(), innerRaw, RawKey{})
		check(t, err)
		want, _, err := w.other.Raw(t.Context(), innerRaw)
		check(t, err)
		pass(epochLife)
		for range 20 {
			if !bytes.Equal(w.hasRaw(t, 3), want) {
				t.Error("another key")
			}
			for n := range Version(2) {
				_, err = w.RawVersion(t.Context(), innerRaw, n+1)
				wants(t, err, ErrDisabled)
			}
			pass(10 * time.Second)
		}
		stop()
		for _, kind := range heard.kinds() {
			if kind != Rotated && kind != NoPin {
				t.Errorf("it told of %v", kind)
			}
		}
		w.sound(t)
	})
}

// After Close no bytes of a raw key are left where they were kept.
func TestCloseClearsRawKeys(t *testing.T) {
	m := innerManager(t, memstore.New())
	_, err := m.MakeRaw(t.Context(), innerRaw, RawKey{})
	check(t, err)
	for range 2 { // the first call asks what is known; the second keeps what it found
		_, _, err = m.Raw(t.Context(), innerRaw)
		check(t, err)
	}
	var kept []*secret.Shared
	for _, o := range m.cache.opened.all() {
		if o.raw != nil {
			kept = append(kept, o.raw)
		}
	}
	name := rawName(innerRaw, 0)
	hot := m.hotKeys.find(&name)
	if len(kept) != 1 || hot == nil || hot.material != kept[0] {
		t.Fatalf("%d are kept, and hot is another", len(kept))
	}
	if _, ok := kept[0].Copy(); !ok {
		t.Error("it is cleared before")
	}
	check(t, m.Close())
	if _, ok := kept[0].Copy(); ok {
		t.Error("it is there after Close")
	}
}

// What this process changed just before the database went is not used as it was; the other keys of its scope are.
func TestAnOwnChangeOfARawKeyBeforeTheDatabaseIsAway(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		w.rawKeyed(t)
		another := Ref{Scope: inner.Scope, Purpose: "another_user"}
		_, err := w.MakeRaw(t.Context(), another, RawKey{})
		check(t, err)
		want, _, err := w.Raw(t.Context(), another)
		check(t, err)
		w.hasRaw(t, 2)
		_, err = w.Rotate(t.Context(), innerRaw)
		check(t, err)
		w.away(true)
		_, _, err = w.Raw(t.Context(), innerRaw)
		wants(t, err, ErrUnavailable)
		if b, _, err := w.Raw(t.Context(), another); err != nil || !bytes.Equal(b, want) {
			t.Errorf("another key of the scope: %v", err)
		}
		w.away(false)
		pass(restFor)
		w.hasRaw(t, 3)
	})
}

// Without the database the head goes on for SealFor, and versions for OpenFor.
func TestRawKeysWhileTheDatabaseIsAway(t *testing.T) {
	withAndWithoutRun(t, Config{SealFor: time.Minute, OpenFor: 2 * time.Minute}, func(t *testing.T, w *two) {
		first, _ := w.rawKeyed(t)
		w.away(true)
		// With Run at work the last answer may be as old as the time between two of its questions.
		for range 54 {
			pass(time.Second)
			w.hasRaw(t, 2)
			w.isRaw(t, 1, first)
		}
		pass(6 * time.Second)
		_, _, err := w.Raw(t.Context(), innerRaw)
		wants(t, err, ErrStale)
		wants(t, err, ErrUnavailable)
		for range 54 {
			pass(time.Second)
			w.isRaw(t, 1, first)
		}
		pass(6 * time.Second)
		_, err = w.RawVersion(t.Context(), innerRaw, 1)
		wants(t, err, ErrStale)
		w.away(false)
		pass(3 * time.Second)
		w.hasRaw(t, 2)
		w.isRaw(t, 1, first)
	})
}
