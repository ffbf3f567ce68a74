package keyhold_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
)

// cold opens the world's installation once more, with nothing kept, through a store that counts.
func (w world) cold(t *testing.T, change func(*keyhold.Config)) (*keyhold.Manager, *faultstore.Store, *countingRoot) {
	t.Helper()
	counted, root := faultstore.New(w.store), &countingRoot{Wrapper: w.root}
	cfg := config(root)
	if change != nil {
		change(&cfg)
	}
	m, err := keyhold.New(t.Context(), counted, cfg)
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m, counted, root
}

// since is the calls after the first n.
func since(s *faultstore.Store, n int) string { return strings.Join(s.Log()[n:], " ") }

func TestTheFirstUseOfAWarmedKeyTakesNoRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		const scopes = 5
		name := func(i int) key.Scope { return key.Scope(fmt.Sprintf("s%d", i)) }
		at := func(i int, p key.Purpose) key.Ref { return key.Ref{Scope: name(i), Purpose: p} }
		var old, ids [scopes][]byte
		for i := range scopes {
			must(t, w.CreateScope(ctx, name(i)))
			old[i] = sealed(t, w.Manager, at(i, secrets), "old", keyhold.AAD{})
			for _, r := range []key.Ref{{Scope: name(i)}, at(i, secrets), at(i, token)} {
				_, err := w.Rotate(ctx, r)
				must(t, err)
			}
			ids[i] = sealed(t, w.Manager, at(i, session), "any", keyhold.AAD{})
		}
		for what, c := range map[string]struct {
			scopes []key.Scope
			keys   int
			calls  string
		}{
			"given":         {[]key.Scope{name(0), name(1), name(2), name(3), name(4), name(1)}, 4 * scopes, "Sign Families"},
			"all there are": {nil, 4 * (scopes + 1), "Scopes Sign Families Scopes"},
		} {
			m, s, root := w.cold(t, nil)
			before := s.Calls()
			n, err := m.Warm(ctx, c.scopes...)
			if n != c.keys || err != nil {
				t.Errorf("%s: %d keys, %v; want %d", what, n, err, c.keys)
			}
			if got := since(s, before); got != c.calls {
				t.Errorf("%s: %s; want %s", what, got, c.calls)
			}
			before = s.Calls()
			for i := range scopes {
				opens(t, m, at(i, secrets), old[i], keyhold.AAD{}, "old")
				sealed(t, m, at(i, secrets), "x", keyhold.AAD{})
				if pt, r, err := m.OpenAny(ctx, ids[i], keyhold.AAD{}); string(pt) != "any" || r != at(i, session) || err != nil {
					t.Errorf("%s: open any: %q of %v, %v", what, pt, r, err)
				}
				_, head, err := m.Raw(ctx, at(i, token))
				if head != 2 || err != nil {
					t.Errorf("%s: version %d, %v; want 2", what, head, err)
				}
				_, err = m.RawVersion(ctx, at(i, token), 1)
				must(t, err)
				_, err = m.BlindIndex(ctx, at(i, search), "name", []byte("x"), 8)
				must(t, err)
			}
			if got := since(s, before); got != "" {
				t.Errorf("%s: the first uses took %s", what, got)
			}
			// Nor is one cold after the next question, which a version has m ask that is another key's.
			_, err = m.Open(ctx, at(0, secrets), ids[1], keyhold.AAD{})
			fails(t, err, keyhold.ErrOpen)
			for i := range scopes {
				sealed(t, m, at(i, secrets), "x", keyhold.AAD{})
				sealed(t, m, at(i, session), "x", keyhold.AAD{})
			}
			if got := since(s, before); got != "Sign" {
				t.Errorf("%s: after the next question: %s; want just that question", what, got)
			}
			if d := root.decrypts.Load(); d != 1 {
				t.Errorf("%s: %d calls to the root, want 1", what, d)
			}
		}
	})
}

// A batch costs the same round trips however many scopes are in it, and each batch the same.
func TestWarmTakesOneRoundTripForABatchOfScopes(t *testing.T) {
	w := manyScopes(t, 1_100)
	var named []key.Scope
	for i := range 1_100 {
		named = append(named, manyName(i))
	}
	for _, c := range []struct {
		scopes []key.Scope
		calls  string
	}{
		{named[:1], "Sign Families"},
		{named[:500], "Sign Families"},
		{named[:501], "Sign" + strings.Repeat(" Families", 2)},
		{named, "Sign" + strings.Repeat(" Families", 3)},
		{nil, "Scopes Sign Families Scopes Families Scopes Families Scopes"},
	} {
		m, s, _ := w.cold(t, nil)
		before, want := s.Calls(), 4*len(c.scopes)
		if c.scopes == nil {
			want = 4 * len(named)
		}
		if n, err := m.Warm(t.Context(), c.scopes...); n != want || err != nil {
			t.Errorf("%d scopes: %d keys, %v; want %d", len(c.scopes), n, err, want)
		}
		if got := since(s, before); got != c.calls {
			t.Errorf("%d scopes: %s; want %s", len(c.scopes), got, c.calls)
		}
	}
}

func TestWarmLeavesNoScopeOutForAnother(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		for _, scope := range []key.Scope{"a", "b", "c"} {
			must(t, w.CreateScope(ctx, scope))
		}
		m, s, _ := w.cold(t, nil)
		n, err := m.Warm(ctx, "a", "none", "b\x00", "c", "b")
		if n != 12 {
			t.Errorf("%d keys, %v; want 12", n, err)
		}
		fails(t, err, keyhold.ErrNotFound)
		if _, ok := errors.AsType[*keyhold.InvalidError](err); !ok || !strings.Contains(err.Error(), `"none"`) {
			t.Errorf("%v does not say which scopes are not there, or malformed", err)
		}
		before := s.Calls()
		for _, scope := range []key.Scope{"a", "b", "c"} {
			sealed(t, m, key.Ref{Scope: scope, Purpose: secrets}, "x", keyhold.AAD{})
		}
		if got := since(s, before); got != "" {
			t.Errorf("the first uses took %s", got)
		}
	})
}

// damaged is a store whose rows of some scopes are not as keyhold stored them, or cannot be read.
type damaged struct {
	store.Store
	change func(f *store.Family)
	refuse func(scope key.Scope) error
}

func (s damaged) Families(ctx context.Context, scopes []key.Scope) ([]store.Family, store.Epochs, error) {
	for _, scope := range scopes {
		if err := s.refuse(scope); err != nil {
			return nil, store.Epochs{}, err
		}
	}
	list, e, err := s.Store.Families(ctx, scopes)
	for i := range list {
		s.change(&list[i])
	}
	return list, e, err
}

func TestWarmSaysWhatIsWrongWithAScope(t *testing.T) {
	w := manyScopes(t, 40)
	unreadable := errors.New("a row is damaged")
	s := damaged{w.store, func(f *store.Family) {
		switch f.Root.Scope {
		case manyName(3):
			f.Root.MAC[0] ^= 1
		case manyName(5):
			f.Data[0].Versions[0].Blob[40] ^= 1
		}
	}, func(scope key.Scope) error {
		if scope == manyName(7) || scope == manyName(31) {
			return unreadable
		}
		return nil
	}}
	m := newManager(t, s, w.root)
	n, err := m.Warm(t.Context())
	if want := 4*(40-3) - 1; n != want {
		t.Errorf("%d keys, want %d", n, want)
	}
	integrity(t, err)
	fails(t, err, unreadable)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("%v; want four errors", err)
	}

	all := refusing{damaged: s, err: unreadable}
	m = newManager(t, all, w.root)
	if n, err := m.Warm(t.Context()); n != 0 || !errors.Is(err, unreadable) {
		t.Errorf("%d keys, %v; want the error", n, err)
	}
}

// refusing refuses to read any scopes, and none.
type refusing struct {
	damaged
	err error
}

func (s refusing) Families(context.Context, []key.Scope) ([]store.Family, store.Epochs, error) {
	return nil, store.Epochs{}, s.err
}

func TestWarmDisplacesNothingOfWhatItMadeReady(t *testing.T) {
	w := manyScopes(t, 40)
	for _, limit := range []int{1, 2, 3, 10, 39, 200} {
		m, s, _ := w.cold(t, func(cfg *keyhold.Config) { cfg.CacheKeys = limit })
		n, err := m.Warm(t.Context())
		must(t, err)
		// Of a scope a root key version and three others take a place, as what is in the cache of a blind index key is
		// that root key version.
		least, most := (limit-1)/4*4, min(40*4, limit)
		if n > most || n < min(least, 40*4) {
			t.Errorf("a cache for %d: %d keys, want %d to %d", limit, n, least, most)
		}
		ready := 0
		s.Hook(func(call string) {
			if strings.HasPrefix(call, "Key") { // what is read would displace what is there
				s.Fail(0, faultstore.Before)
			}
		})
		for i := range 40 {
			for _, p := range []key.Purpose{secrets, session} {
				_, err := m.Seal(t.Context(), key.Ref{Scope: manyName(i), Purpose: p}, nil, keyhold.AAD{})
				switch {
				case err == nil:
					ready++
				case !errors.Is(err, keyhold.ErrUnavailable):
					t.Fatal(err)
				}
			}
		}
		s.Hook(nil)
		if ready < n/4 {
			t.Errorf("a cache for %d: %d keys of messages are ready, of %d keys", limit, ready, n)
		}
	}
}

func TestWarmDoesNothingWhereNothingIsKept(t *testing.T) {
	w := manyScopes(t, 2)
	m, s, _ := w.cold(t, func(cfg *keyhold.Config) { cfg.Strict = true })
	before := s.Calls()
	if n, err := m.Warm(t.Context(), "none"); n != 0 || err != nil || s.Calls() != before {
		t.Errorf("%d keys, %v, by %s; want nothing", n, err, since(s, before))
	}
}

func TestWarmMayBeStopped(t *testing.T) {
	w := manyScopes(t, 1_100)
	m, s, _ := w.cold(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	batches := 0
	s.Hook(func(call string) {
		if call == "Families" {
			if batches++; batches == 3 {
				cancel()
			}
		}
	})
	n, err := m.Warm(ctx)
	fails(t, err, context.Canceled)
	if n < 4*500 || n > 4*1_000 {
		t.Errorf("%d keys, want those of one or two batches", n)
	}
	s.Hook(nil)
	if n, err := m.Warm(t.Context()); n != 4*1_100 || err != nil {
		t.Errorf("again: %d keys, %v", n, err)
	}
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for i := 0; ; i++ {
			m, s, _ := w.cold(t, nil)
			s.Fail(i, mode)
			n, err := m.Warm(t.Context())
			if !s.Fired() {
				s.Disarm()
				break
			}
			if err != nil && !errors.Is(err, keyhold.ErrUnavailable) || err == nil && n != 4*1_100 {
				t.Errorf("call %d: %d keys, %v", i, n, err)
			}
		}
	}
	must(t, m.Close())
	_, err = m.Warm(t.Context())
	fails(t, err, keyhold.ErrClosed)
}

// What Warm keeps is as right as what a single read keeps: it is dropped when the key changes, in another process or in
// this one, before it was read or after it.
func TestAWarmedKeyFollowsChanges(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "b"))
		headOf := func(r key.Ref) key.ID {
			f, err := w.store.Key(ctx, r)
			must(t, err)
			for _, v := range f.Data[0].Versions {
				if v.State == key.Active {
					return v.ID
				}
			}
			return ""
		}
		seals := func(what string, m *keyhold.Manager, r key.Ref) {
			t.Helper()
			id, _, err := m.SealDetached(ctx, r, nil, keyhold.AAD{})
			if want := headOf(r); id != want || err != nil {
				t.Errorf("%s: %v was sealed with %s, %v; want %s", what, r, id, err, want)
			}
		}
		refs := []key.Ref{ref, {Scope: tenant, Purpose: session}, {Scope: "b", Purpose: secrets}}

		// This process changes keys while it warms them.
		m, s, _ := w.cold(t, nil)
		s.Hook(func(call string) {
			if call == "Families" {
				s.Hook(nil)
				_, err := m.Rotate(ctx, refs[0])
				must(t, err)
			}
		})
		n, err := m.Warm(ctx)
		if n != 8 || err != nil {
			t.Errorf("%d keys, %v; want 8", n, err)
		}
		for _, r := range refs {
			seals("changed before the rows were read", m, r)
		}
		late := lateAnswer{Store: w.store}
		s = faultstore.New(&late)
		m = newManager(t, s, w.root)
		late.after = func() {
			late.after = nil
			_, err := m.Rotate(ctx, refs[0])
			must(t, err)
		}
		n, err = m.Warm(ctx)
		if n != 8 || err != nil {
			t.Errorf("with an answer that came late: %d keys, %v; want 8", n, err)
		}
		before := s.Calls()
		for _, r := range refs {
			seals("changed after the rows were read", m, r)
		}
		if got := since(s, before); strings.Contains(got, "Key") {
			t.Errorf("a key that was changed after the rows were read was cold: %s", got)
		}

		// Another one does, which a process sees when it next asks.
		_, err = w.Rotate(ctx, refs[1])
		must(t, err)
		must(t, m.CreateScope(ctx, "c")) // whoever changes something asks
		_, err = m.Rotate(ctx, key.Ref{Scope: "c"})
		must(t, err)
		for _, r := range refs {
			seals("changed by another process", m, r)
		}
	})
}

// lateAnswer calls after when Families has its answer, and nobody else has.
type lateAnswer struct {
	store.Store
	after func()
}

func (s *lateAnswer) Families(ctx context.Context, scopes []key.Scope) ([]store.Family, store.Epochs, error) {
	list, e, err := s.Store.Families(ctx, scopes)
	if s.after != nil {
		s.after()
	}
	return list, e, err
}

// What another process changed after it was read is not taken for the newest state, though the epochs are read again
// before it is looked at.
func TestWarmKeepsNothingThatIsOlderThanItsEpochs(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "b"))
		other := key.Ref{Scope: "b", Purpose: secrets}
		late := lateAnswer{Store: w.store}
		m := newManager(t, &late, w.root)
		sealed(t, m, other, "x", keyhold.AAD{})
		late.after = func() {
			late.after = nil
			for _, r := range []key.Ref{ref, other} {
				_, err := w.Rotate(ctx, r)
				must(t, err)
			}
			// A version that it does not know has it ask.
			opens(t, m, other, sealed(t, w.Manager, other, "new", keyhold.AAD{}), keyhold.AAD{}, "new")
		}
		if n, err := m.Warm(ctx, tenant); n != 4 || err != nil {
			t.Errorf("%d keys, %v; want 4", n, err)
		}
		id, _, err := m.SealDetached(ctx, ref, nil, keyhold.AAD{})
		must(t, err)
		f, err := w.store.Key(ctx, ref)
		must(t, err)
		i := slices.IndexFunc(f.Data[0].Versions, func(v store.Version) bool { return v.ID == id })
		if i < 0 || f.Data[0].Versions[i].State != key.Active {
			t.Errorf("it was sealed with %s, which is not the head", id)
		}
	})
}
