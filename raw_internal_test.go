package keyhold

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// None of the calls for one name reads all of a scope, which may have very many.
func TestNoCallForANameReadsItsWholeScope(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ctx := t.Context()
		before := w.calls.Calls()
		check(t, w.RegisterRaw(ctx, innerRaw, ""))
		_, err := w.MakeRaw(ctx, innerRaw, RawKey{})
		check(t, err)
		for range 2 {
			_, _, err = w.Raw(ctx, innerRaw)
			check(t, err)
			_, err = w.RawVersion(ctx, innerRaw, 1)
			check(t, err)
			_, err = w.Rotate(ctx, innerRaw)
			check(t, err)
			pass(epochLife)
		}
		_, err = w.RawInfo(ctx, innerRaw)
		check(t, err)
		fam, err := w.store.Key(ctx, innerRaw)
		check(t, err)
		_, _, _, err = w.ExportRaw(ctx, fam.Data[0].Versions[0].ID)
		check(t, err)
		check(t, w.RemoveRaw(ctx, innerRaw))
		_, err = w.ImportRaw(ctx, Ref{Scope: inner.Scope, Purpose: "brought"}, RawKey{}, []ImportedVersion{{Number: 1, Key: []byte{1}}})
		check(t, err)
		ok, err := w.HasScope(ctx, inner.Scope)
		if err != nil || !ok {
			t.Errorf("the scope: %v, %v", ok, err)
		}
		if ok, err = w.HasScope(ctx, "none"); err != nil || ok {
			t.Errorf("no scope: %v, %v", ok, err)
		}
		expected := []string{"Key", "Name", "PutName", "Create", "Update", "RemoveKey", "KeyOfVersion", "Epochs", "Sign"}
		for _, call := range w.since(before) {
			if !slices.Contains(expected, call) {
				t.Errorf("it asked for %s", call)
			}
		}
	})
}

// The calls take as many round trips as they say.
func TestRoundTripsOfRawKeys(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ctx := t.Context()
		for _, c := range []struct {
			what string
			most int
			do   func() error
		}{
			{"register", 4, func() error { return w.RegisterRaw(ctx, innerRaw, "") }},
			{"register again", 2, func() error { return w.RegisterRaw(ctx, innerRaw, "") }},
			{"make", 3, func() error { _, err := w.MakeRaw(ctx, innerRaw, RawKey{}); return err }},
			{"make again", 1, func() error { _, err := w.MakeRaw(ctx, innerRaw, RawKey{}); return err }},
			{"register what is there", 1, func() error { return w.RegisterRaw(ctx, innerRaw, "") }},
			{"info", 1, func() error { _, err := w.RawInfo(ctx, innerRaw); return err }},
			{"remove", 3, func() error { return w.RemoveRaw(ctx, innerRaw) }},
			{"scope", 1, func() error { _, err := w.HasScope(ctx, inner.Scope); return err }},
		} {
			before := w.calls.Calls()
			check(t, c.do())
			if calls := w.since(before); len(calls) > c.most {
				t.Errorf("%s took %v, want %d", c.what, calls, c.most)
			}
		}
	})
}

// 2,500 names are listed in pages, each once, in their order, and whoever has enough asks for no more.
func TestRawKeysAreListedInPages(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		for i := range 2500 {
			check(t, w.other.RegisterRaw(t.Context(), Ref{Scope: inner.Scope, Purpose: Purpose(fmt.Sprintf("n%04d", i))}, ""))
		}
		before := w.calls.Calls()
		i := 0
		for info, err := range w.RawKeys(t.Context(), inner.Scope) {
			check(t, err)
			if want := Purpose(fmt.Sprintf("n%04d", i)); info.Name != want {
				t.Fatalf("%q, want %q", info.Name, want)
			}
			i++
		}
		if asked := w.since(before); i != 2500 || len(asked) != 3 {
			t.Errorf("%d names, by %v", i, asked)
		}
		before = w.calls.Calls()
		for _, err := range w.RawKeys(t.Context(), inner.Scope) {
			check(t, err)
			break
		}
		if asked := w.since(before); len(asked) != 1 {
			t.Errorf("for the first it asked %v", asked)
		}
		w.calls.Fail(1, faultstore.Before)
		n, failed := 0, 0
		for info, err := range w.RawKeys(t.Context(), inner.Scope) {
			if n++; err != nil {
				failed++
				if wants(t, err, ErrUnavailable); info != (RawInfo{}) {
					t.Errorf("with an error: %+v", info)
				}
			}
		}
		if n != 1001 || failed != 1 {
			t.Errorf("%d, of which %d failed", n, failed)
		}
	})
}

// What keeps keys and time in Config has bounds.
func TestConfigOfRawKeys(t *testing.T) {
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	for name, c := range map[string]struct {
		cfg     Config
		allowed bool
	}{
		"no keys":             {Config{CacheKeys: -1}, false},
		"one key":             {Config{CacheKeys: 1}, true},
		"no time":             {Config{CacheFor: -1}, false},
		"a moment":            {Config{CacheFor: 1}, true},
		"all the time":        {Config{MaintainEvery: time.Minute - 1}, false},
		"before now":          {Config{MaintainEvery: -time.Hour}, false},
		"each minute":         {Config{MaintainEvery: time.Minute}, true},
		"too short a lease":   {Config{LeaseFor: 10*time.Second - 1}, false},
		"too long a lease":    {Config{LeaseFor: time.Hour + 1}, false},
		"negative lease":      {Config{LeaseFor: -time.Minute}, false},
		"the shortest lease":  {Config{LeaseFor: 10 * time.Second}, true},
		"the longest lease":   {Config{LeaseFor: time.Hour}, true},
		"a lease with a rest": {Config{LeaseFor: 10*time.Second + 1}, true},
	} {
		c.cfg.Root, c.cfg.Initialize = root, true
		m, err := New(t.Context(), memstore.New(), c.cfg)
		if c.allowed {
			check(t, err)
			check(t, m.Close())
			continue
		}
		if _, ok := errors.AsType[*InvalidError](err); !ok {
			t.Errorf("%s: got %v, want an InvalidError", name, err)
		}
	}
}

// Where somebody hides a change from the epochs, it is seen when CacheFor is over.
func TestCacheForIsHowLongAHiddenChangeHolds(t *testing.T) {
	const life = 62 * time.Second // it is not over when what is known is asked for anew
	inTwoWith(t, Config{CacheFor: life}, func(t *testing.T, w *two) {
		w.rawKeyed(t)
		rotated(t, w, innerRaw)
		epochs := stored(w.store).Epochs
		w.store.Edit(func(d *memstore.Data) {
			for i := range d.Epochs {
				d.Epochs[i] = epochs[i] + 1
			}
		})
		// It reads the key, by epochs that are newer than the change that is to be hidden.
		pass(epochLife)
		w.hasRaw(t, 3)
		began := time.Now()
		hidden := stored(w.store).Epochs
		rotated(t, w, innerRaw)
		w.store.Edit(func(d *memstore.Data) { d.Epochs = hidden })
		for time.Since(began) < life-time.Second {
			w.hasRaw(t, 3)
			pass(time.Second)
		}
		for range 2 { // it is hot by then
			w.hasRaw(t, 3)
		}
		pass(time.Second)
		w.hasRaw(t, 4)
	})
}

// Who waits for an instance that died at its work waits as long as LeaseFor.
func TestLeaseForIsHowLongADeadInstanceIsWaitedFor(t *testing.T) {
	inTwoWith(t, Config{LeaseFor: 20 * time.Second}, func(t *testing.T, w *two) {
		s := w.newSweep()
		held, ok, err := s.sweeper.Hold(t.Context(), "maintain")
		check(t, err)
		if !ok {
			t.Fatal("not given")
		}
		other := w.other.newSweep()
		for _, c := range []struct {
			after time.Duration
			free  bool
		}{{0, false}, {19 * time.Second, false}, {time.Second, true}} {
			pass(c.after)
			_, ok, err := other.sweeper.Hold(t.Context(), "maintain")
			check(t, err)
			if ok != c.free {
				t.Errorf("after %v: given to another: %v", c.after, ok)
			}
		}
		if err := held.Prolong(t.Context()); err == nil {
			t.Error("who lost it goes on")
		}
	})
}

// MaintainEvery is how often Run asks for what is to be rewrapped.
func TestMaintainEvery(t *testing.T) {
	inTwoWith(t, Config{MaintainEvery: 5 * time.Minute}, func(t *testing.T, w *two) {
		stop := running(t, w.Manager)
		pass(10 * time.Minute)
		before := w.calls.Calls()
		pass(time.Hour)
		asked := 0
		for _, call := range w.since(before) {
			if call == "Lagging" {
				asked++
			}
		}
		stop()
		if asked < 11 || asked > 13 {
			t.Errorf("in an hour it looked %d times: %v", asked, w.since(before)[:20])
		}
	})
}

// No error of an operation on raw keys, and nothing that is printed of what they return, shows a byte of one.
func TestNoRawOperationShowsAKey(t *testing.T) {
	s := memstore.New()
	faulty := faultstore.New(s)
	m := innerManager(t, faulty)
	defer func() { check(t, m.Close()) }()
	ctx := t.Context()
	var made [][]byte
	m.generators = map[string]Generator{"theirs": func(context.Context) ([]byte, error) {
		material := make([]byte, 24)
		for i := range material {
			material[i] = byte(0x81 + 31*len(made) + 7*i)
		}
		made = append(made, bytes.Clone(material))
		return material, nil
	}}
	how := RawKey{Generator: "theirs"}
	brought := []byte("\xf1\xe2\xd3 brought by an import")
	versions := []ImportedVersion{{Number: 3, Key: brought}}
	_, err := m.MakeRaw(ctx, innerRaw, how)
	check(t, err)
	_, _, err = m.Raw(ctx, innerRaw)
	check(t, err)
	var printed []string
	show := func(v any) { printed = append(printed, fmt.Sprintf("%v %+v %#v %s %q %x", v, v, v, v, v, v)) }
	try := func() {
		other := Ref{Scope: inner.Scope, Purpose: Purpose(fmt.Sprint("n", len(printed)))}
		_, err := m.MakeRaw(ctx, other, how)
		show(err)
		_, err = m.ImportRaw(ctx, Ref{Scope: inner.Scope, Purpose: other.Purpose + "i"}, how, versions)
		show(err)
		_, err = m.Rotate(ctx, innerRaw)
		show(err)
		_, err = m.RawVersion(ctx, innerRaw, 60000)
		show(err)
		_, _, _, err = m.ExportRaw(ctx, "kdkv_00000000000000000000000000")
		show(err)
		info, err := m.RawInfo(ctx, innerRaw)
		show(err)
		show(info)
		show(m.RemoveRaw(ctx, other))
		show(m.RegisterRaw(ctx, other, ""))
	}
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for n := range 12 {
			faulty.Fail(n, mode)
			try()
		}
	}
	faulty.Disarm()
	for bit := range 65 {
		s.Edit(func(d *memstore.Data) { d.Key(innerRaw).Versions[0].Blob[bit] ^= 1 })
		m.cache.clear()
		_, _, err := m.Raw(ctx, innerRaw)
		show(err)
		_, err = m.RawVersion(ctx, innerRaw, 1)
		show(err)
	}
	show(m)
	show(versions)
	show(how)
	if h := m.hotKeys.slots.Load(); h != nil {
		show(*h)
	}
	for i, material := range append(made, brought) {
		for _, form := range []string{string(material), hex.EncodeToString(material), strings.Trim(fmt.Sprint(material), "[]")} {
			for _, text := range printed {
				if strings.Contains(strings.ToLower(text), strings.ToLower(form)) {
					t.Fatalf("key %d is shown: %.300q", i, text)
				}
			}
		}
	}
	if len(made) < 10 {
		t.Errorf("only %d keys were made", len(made))
	}
	if len(printed) < 300 {
		t.Errorf("only %d texts were looked at", len(printed))
	}
}

// Bytes are cleared when they are no longer kept: when others push them out, and when nobody has used them.
func TestRawKeysThatAreNotKeptAreCleared(t *testing.T) {
	s := memstore.New()
	first := innerManager(t, s)
	m, err := New(t.Context(), s, Config{Root: first.root, CacheKeys: 2})
	check(t, err)
	defer func() { check(t, errors.Join(m.Close(), first.Close())) }()
	ctx := t.Context()
	use := func(i int) *secret.Shared {
		ref := Ref{Scope: inner.Scope, Purpose: Purpose(fmt.Sprint("n", i))}
		_, err := first.MakeRaw(ctx, ref, RawKey{})
		check(t, err)
		_, _, err = m.Raw(ctx, ref)
		check(t, err)
		fam, err := s.Key(ctx, ref)
		check(t, err)
		is, err := rowOf(&fam, &fam.Data[0], &fam.Data[0].Versions[0])
		check(t, err)
		o, ok := m.cache.find(key.DEK, is)
		if !ok {
			t.Fatalf("key %d is not kept", i)
		}
		return o.raw
	}
	var kept []*secret.Shared
	for i := range 4 {
		kept = append(kept, use(i))
	}
	alive := 0
	for _, b := range kept {
		if _, ok := b.Copy(); ok {
			alive++
		}
	}
	if alive > 2 || alive == 0 {
		t.Errorf("%d of 4 are there, and at most 2 are kept", alive)
	}
	for range 3 {
		m.cache.dropIdle()
	}
	for i, b := range kept {
		if _, ok := b.Copy(); ok {
			t.Errorf("key %d is there, though nobody used it", i)
		}
	}
}

// The keys of a scope that is deleted go with it, and so do their names.
func TestARawKeyOfAScopeThatIsDeleted(t *testing.T) {
	withAndWithoutRun(t, Config{}, func(t *testing.T, w *two) {
		w.rawKeyed(t)
		check(t, w.store.DeleteScope(t.Context(), inner.Scope))
		pass(epochLife)
		_, _, err := w.Raw(t.Context(), innerRaw)
		wants(t, err, ErrNotFound)
		_, err = w.RawVersion(t.Context(), innerRaw, 1)
		wants(t, err, ErrNotFound)
		list, err := w.store.NamesNotUnder(t.Context(), [16]byte{}, 10)
		if err != nil || len(list) != 0 {
			t.Errorf("names that are left: %v, %v", list, err)
		}
	})
}

// lyingNames answers a question about one name with another.
type lyingNames struct {
	store.Store
	ref Ref
}

func (s lyingNames) Name(ctx context.Context, _ Ref) (store.Family, store.Name, error) {
	return s.Store.Name(ctx, s.ref)
}

// A database that finds another name's row, or another scope's, has nobody made another's key.
func TestAnotherNamesRowIsRefused(t *testing.T) {
	mem := memstore.New()
	m := innerManager(t, mem)
	ctx := t.Context()
	check(t, m.CreateScope(ctx, "other"))
	for _, theirs := range []Ref{{Scope: inner.Scope, Purpose: "theirs"}, {Scope: "other", Purpose: innerRaw.Purpose}} {
		check(t, m.RegisterRaw(ctx, theirs, "aes128-random"))
		m.store = lyingNames{mem, theirs}
		_, made := m.MakeRaw(ctx, innerRaw, RawKey{})
		_, info := m.RawInfo(ctx, innerRaw)
		_, imported := m.ImportRaw(ctx, innerRaw, RawKey{}, []ImportedVersion{{Number: 1, Key: []byte{1}}})
		for _, err := range []error{made, info, imported, m.RegisterRaw(ctx, innerRaw, ""), m.RemoveRaw(ctx, innerRaw)} {
			wantsIntegrity(t, err)
		}
		m.store = mem
	}
	if fam, err := mem.Key(ctx, innerRaw); err != nil || len(fam.Data) != 0 {
		t.Errorf("a key was made: %v", err)
	}
}
