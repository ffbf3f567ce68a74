package keyhold_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

var named = key.Ref{Scope: tenant, Purpose: "user_data"}

// rawHead is the head of a raw key as m sees it.
func rawHead(t testing.TB, m *keyhold.Manager, r key.Ref) ([]byte, key.Version) {
	t.Helper()
	material, v, err := m.Raw(t.Context(), r)
	must(t, err)
	return material, v
}

// makes has m make a raw key that is not there yet.
func makes(t testing.TB, m *keyhold.Manager, r key.Ref, how keyhold.RawKey) {
	t.Helper()
	made, err := m.MakeRaw(t.Context(), r, how)
	must(t, err)
	if !made {
		t.Fatalf("%v was there", r)
	}
}

// invalid asserts an [*keyhold.InvalidError].
func invalid(t testing.TB, what string, err error) {
	t.Helper()
	if _, ok := errors.AsType[*keyhold.InvalidError](err); !ok {
		t.Errorf("%s: got %v, want an InvalidError", what, err)
	}
}

// rawNames is what RawKeys lists of a scope: names, generators and numbers of the heads.
func rawNames(t testing.TB, m *keyhold.Manager, scope key.Scope) string {
	t.Helper()
	var list []string
	for info, err := range m.RawKeys(t.Context(), scope) {
		must(t, err)
		list = append(list, fmt.Sprintf("%s:%s:%d", info.Name, info.Generator, info.Version))
	}
	return strings.Join(list, " ")
}

// A name is registered without a key, once, with one generator.
func TestARegisteredNameHasNoKeyYet(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		for range 2 {
			must(t, w.RegisterRaw(ctx, named, "aes128-random"))
		}
		_, _, err := w.Raw(ctx, named)
		fails(t, err, keyhold.ErrNotFound)
		_, err = w.RawVersion(ctx, named, 1)
		fails(t, err, keyhold.ErrNotFound)
		info, err := w.RawInfo(ctx, named)
		must(t, err)
		if want := (keyhold.RawInfo{Name: named.Purpose, Generator: "aes128-random"}); info != want {
			t.Errorf("%+v, want %+v", info, want)
		}
		for _, other := range []string{"", keyhold.DefaultGenerator, "aes192-random"} {
			fails(t, w.RegisterRaw(ctx, named, other), keyhold.ErrExists)
		}
		fails(t, w.RegisterRaw(ctx, key.Ref{Scope: tenant, Purpose: "n"}, "theirs"), keyhold.ErrGenerator)
		fails(t, w.RegisterRaw(ctx, key.Ref{Scope: "none", Purpose: "n"}, ""), keyhold.ErrNotFound)
		fails(t, w.RegisterRaw(ctx, ref, ""), keyhold.ErrPurpose)
		if got := rawNames(t, w.Manager, tenant); got != "token:aes256-random:1 user_data:aes128-random:0" {
			t.Errorf("listed are %s", got)
		}
		if got := rawNames(t, w.Manager, "none"); got != "" {
			t.Errorf("a scope that is not there has %s", got)
		}

		// The registered generator makes the key, and every version after it.
		makes(t, w.Manager, named, keyhold.RawKey{Generator: "aes192-random"})
		_, err = w.Rotate(ctx, named)
		must(t, err)
		for n := key.Version(1); n <= 2; n++ {
			if b, err := w.RawVersion(ctx, named, n); err != nil || len(b) != 16 {
				t.Errorf("version %d: %d bytes, %v; want 16", n, len(b), err)
			}
		}
		must(t, w.RegisterRaw(ctx, named, "aes128-random"))
		fails(t, w.RegisterRaw(ctx, named, ""), keyhold.ErrExists)
		if made, err := w.MakeRaw(ctx, named, keyhold.RawKey{}); made || err != nil {
			t.Errorf("made once more: %v, %v", made, err)
		}
		if got := rawNames(t, w.Manager, tenant); got != "token:aes256-random:1 user_data:aes128-random:2" {
			t.Errorf("listed are %s", got)
		}
	})
}

// What no process has a generator for, or no name is, is refused before the database is asked.
func TestMalformedNamesAreRefused(t *testing.T) {
	m := newManager(t, stores["memstore"].open(t), newRoot(t))
	must(t, m.CreateScope(t.Context(), tenant))
	for _, name := range []key.Purpose{"", " a", "a\n", key.Purpose(strings.Repeat("a", 256))} {
		r := key.Ref{Scope: tenant, Purpose: name}
		_, makeErr := m.MakeRaw(t.Context(), r, keyhold.RawKey{})
		_, infoErr := m.RawInfo(t.Context(), r)
		_, importErr := m.ImportRaw(t.Context(), r, keyhold.RawKey{}, nil)
		_, _, rawErr := m.Raw(t.Context(), r)
		for what, err := range map[string]error{
			"register": m.RegisterRaw(t.Context(), r, ""), "make": makeErr, "info": infoErr, "import": importErr,
			"raw": rawErr, "remove": m.RemoveRaw(t.Context(), r),
		} {
			invalid(t, fmt.Sprintf("%s %q", what, name), err)
		}
	}
	for _, generator := range []string{" a", "a\x00", strings.Repeat("a", 256)} {
		invalid(t, fmt.Sprintf("generator %q", generator), m.RegisterRaw(t.Context(), named, generator))
	}
	_, err := m.HasScope(t.Context(), "")
	invalid(t, "no scope", err)
	for _, n := range []key.Version{0, key.MaxVersion + 1} {
		_, err := m.RawVersion(t.Context(), named, n)
		invalid(t, fmt.Sprint("version ", n), err)
	}
}

// A removed name is not made anew by itself, and never has a number twice.
func TestARemovedNameKeepsItsNumbers(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		seen := map[string]key.Version{}
		last := key.Version(0)
		for range 3 {
			makes(t, w.Manager, named, keyhold.RawKey{})
			b, v := rawHead(t, w.Manager, named)
			if v != last+1 {
				t.Errorf("begins at %d, want %d", v, last+1)
			}
			seen[string(b)] = v
			_, err := w.Rotate(ctx, named)
			must(t, err)
			b, v = rawHead(t, w.Manager, named)
			seen[string(b)], last = v, v
			for n := key.Version(1); n <= last-2; n++ {
				_, err := w.RawVersion(ctx, named, n)
				fails(t, err, keyhold.ErrDisabled)
			}
			must(t, w.RemoveRaw(ctx, named))
			w.removed(t, named)
			must(t, w.RegisterRaw(ctx, named, ""))
		}
		if len(seen) != 6 || last != 6 {
			t.Errorf("%d keys with numbers up to %d, want 6", len(seen), last)
		}
		// Of a registered name nothing but that is taken back.
		must(t, w.RemoveRaw(ctx, named))
		must(t, w.RegisterRaw(ctx, named, "aes128-random"))
		makes(t, w.Manager, named, keyhold.RawKey{})
		if b, v := rawHead(t, w.Manager, named); v != 7 || len(b) != 16 {
			t.Errorf("version %d of %d bytes, want 7 of 16", v, len(b))
		}
		fails(t, w.RemoveRaw(ctx, key.Ref{Scope: tenant, Purpose: "never"}), keyhold.ErrNotFound)
		fails(t, w.RemoveRaw(ctx, key.Ref{Scope: "none", Purpose: "never"}), keyhold.ErrNotFound)
		fails(t, w.RemoveRaw(ctx, ref), keyhold.ErrState)
		bare := bareManager(t, w)
		fails(t, bare.RemoveRaw(ctx, ref), keyhold.ErrPurpose)
		fails(t, bare.RemoveRaw(ctx, key.Ref{Scope: tenant, Purpose: search}), keyhold.ErrPurpose)
	})
}

// bareManager is one that knows no purpose.
func bareManager(t testing.TB, w world) *keyhold.Manager {
	t.Helper()
	m, err := keyhold.New(t.Context(), w.store, keyhold.Config{Root: w.root, Grace: -1})
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	return m
}

// removed asserts what is said of a removed name.
func (w world) removed(t testing.TB, r key.Ref) {
	t.Helper()
	ctx := t.Context()
	_, made := w.MakeRaw(ctx, r, keyhold.RawKey{})
	_, info := w.RawInfo(ctx, r)
	_, imported := w.ImportRaw(ctx, r, keyhold.RawKey{}, []keyhold.ImportedVersion{{Number: 9, Key: material(9)}})
	for _, err := range []error{made, info, imported, w.RemoveRaw(ctx, r)} {
		fails(t, err, keyhold.ErrRemoved)
		fails(t, err, keyhold.ErrNotFound)
	}
	_, _, err := w.Raw(ctx, r)
	fails(t, err, keyhold.ErrNotFound)
	_, err = w.Rotate(ctx, r)
	fails(t, err, keyhold.ErrNotFound)
	if got := rawNames(t, w.Manager, r.Scope); strings.Contains(got, string(r.Purpose)) {
		t.Errorf("listed are %s", got)
	}
}

// A key is not removed while a row of the application's has the id of a version, and not where it is configured.
func TestWhatIsNotRemoved(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		fails(t, w.RemoveRaw(ctx, key.Ref{Scope: tenant, Purpose: token}), keyhold.ErrState)
		makes(t, w.Manager, named, keyhold.RawKey{})
		before, _ := rawHead(t, w.Manager, named)
		_, err := w.Rotate(ctx, named)
		must(t, err)
		w.kind.refer(t, w.store, ids(t, w.Manager, named)[0])
		err = w.RemoveRaw(ctx, named)
		if _, ok := errors.AsType[*keyhold.InUseError](err); !ok {
			t.Errorf("got %v, want an InUseError", err)
		}
		if b, err := w.RawVersion(ctx, named, 1); err != nil || !bytes.Equal(b, before) {
			t.Errorf("version 1 is not what it was: %v", err)
		}
	})
}

// A purpose that every scope has, removed by a process that does not know of that, is not made again by itself: who
// would do it is told, and once it is registered its numbers and its generator are those that the name has.
func TestAConfiguredPurposeThatAnotherProcessRemoved(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		bare, r := bareManager(t, w), key.Ref{Scope: tenant, Purpose: token}
		must(t, bare.RemoveRaw(ctx, r))
		_, reconcileErr := w.Reconcile(ctx)
		tx, _, rollback := w.kind.begin(t, w.store)
		txErr := w.CreateScopeTx(ctx, tx, tenant)
		must(t, rollback())
		for what, err := range map[string]error{
			"create": w.CreateScope(ctx, tenant), "reconcile": reconcileErr, "in a transaction": txErr,
		} {
			if !errors.Is(err, keyhold.ErrRemoved) || !strings.Contains(err.Error(), string(token)) {
				t.Errorf("%s: got %v, want ErrRemoved of %q", what, err, token)
			}
		}
		must(t, bare.RegisterRaw(ctx, r, "aes128-random"))
		_, err := w.Reconcile(ctx)
		must(t, err)
		if b, v := rawHead(t, w.Manager, r); v != 2 || len(b) != 16 {
			t.Errorf("version %d of %d bytes, want 2 of 16", v, len(b))
		}

		must(t, bare.RemoveRaw(ctx, r))
		must(t, bare.RegisterRaw(ctx, r, ""))
		must(t, w.CreateScope(ctx, tenant))
		if b, v, err := bare.Raw(ctx, r); err != nil || v != 3 || len(b) != 32 {
			t.Errorf("version %d of %d bytes, %v; want 3 of 32", v, len(b), err)
		}

		must(t, bare.RemoveRaw(ctx, r))
		must(t, bare.RegisterRaw(ctx, r, "aes192-random"))
		tx, commit, _ := w.kind.begin(t, w.store)
		must(t, w.CreateScopeTx(ctx, tx, tenant))
		must(t, commit())
		if b, v, err := bare.Raw(ctx, r); err != nil || v != 4 || len(b) != 24 {
			t.Errorf("version %d of %d bytes, %v; want 4 of 24", v, len(b), err)
		}
	})
}

// A process whose root is not the active one any more uses what is there, and registers names; it makes, imports,
// rotates and removes nothing.
func TestAnOldRootAndRawKeys(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		makes(t, w.Manager, named, keyhold.RawKey{})
		before, _ := rawHead(t, w.Manager, named)
		registered, removed := key.Ref{Scope: tenant, Purpose: "registered"}, key.Ref{Scope: tenant, Purpose: "removed"}
		makes(t, w.Manager, removed, keyhold.RawKey{})
		must(t, w.RemoveRaw(ctx, removed))
		next := newRoot(t)
		added(t, w.Manager, next)
		successor := newManager(t, w.store, next)

		for range 2 {
			must(t, w.RegisterRaw(ctx, registered, "aes128-random"))
			must(t, w.RegisterRaw(ctx, removed, ""))
		}
		_, makeErr := w.MakeRaw(ctx, registered, keyhold.RawKey{})
		_, newErr := w.MakeRaw(ctx, key.Ref{Scope: tenant, Purpose: "new"}, keyhold.RawKey{})
		_, importErr := w.ImportRaw(ctx, key.Ref{Scope: tenant, Purpose: "new"}, keyhold.RawKey{}, brought())
		_, rotateErr := w.Rotate(ctx, named)
		for what, err := range map[string]error{
			"make what is registered": makeErr, "make": newErr, "import": importErr, "rotate": rotateErr,
			"remove": w.RemoveRaw(ctx, named), "remove what is registered": w.RemoveRaw(ctx, registered),
		} {
			if !errors.Is(err, keyhold.ErrOldRoot) {
				t.Errorf("%s: got %v, want ErrOldRoot", what, err)
			}
		}
		if made, err := w.MakeRaw(ctx, named, keyhold.RawKey{}); made || err != nil {
			t.Errorf("make what is there: %v, %v", made, err)
		}
		if b, v := rawHead(t, w.Manager, named); v != 1 || !bytes.Equal(b, before) {
			t.Errorf("the head is version %d, or another", v)
		}
		const want = "registered:aes128-random:0 removed:aes256-random:0 token:aes256-random:1 user_data:aes256-random:1"
		if got := rawNames(t, w.Manager, tenant); got != want {
			t.Errorf("listed are %s", got)
		}

		makes(t, successor, registered, keyhold.RawKey{})
		makes(t, successor, removed, keyhold.RawKey{})
		if b, v := rawHead(t, w.Manager, registered); v != 1 || len(b) != 16 {
			t.Errorf("version %d of %d bytes, want 1 of 16", v, len(b))
		}
		if _, v := rawHead(t, w.Manager, removed); v != 2 {
			t.Errorf("version %d, want 2", v)
		}
	})
}
