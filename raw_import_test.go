package keyhold_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// brought is what another system had: versions with gaps, of one byte, of 32, and of as many as there may be.
func brought() []keyhold.ImportedVersion {
	return []keyhold.ImportedVersion{
		{Number: 2, Created: madeOld, Key: []byte{7}},
		{Number: 3, Key: material(3)},
		{Number: 70, Created: madeOld.Add(time.Hour), Key: bytes.Repeat([]byte{9}, 1024)},
	}
}

func importsRaw(t testing.TB, m *keyhold.Manager, r key.Ref, how keyhold.RawKey, versions []keyhold.ImportedVersion, made bool) {
	t.Helper()
	did, err := m.ImportRaw(t.Context(), r, how, versions)
	if err != nil || did != made {
		t.Fatalf("imported: %v, %v; want %v", did, err, made)
	}
}

// hasBrought asserts that all imported versions are what they were, and that nothing else is there up to the last.
// Only the ends of the gaps are asked for, as a manager holds back those who ask for many versions that are not there.
func hasBrought(t testing.TB, m *keyhold.Manager, r key.Ref) {
	t.Helper()
	for _, v := range brought() {
		if b, err := m.RawVersion(t.Context(), r, v.Number); err != nil || !bytes.Equal(b, v.Key) {
			t.Errorf("version %d is not what it was: %v", v.Number, err)
		}
	}
	for _, n := range []key.Version{1, 4, 69} {
		_, err := m.RawVersion(t.Context(), r, n)
		fails(t, err, keyhold.ErrDisabled)
	}
	keys, err := m.Keys(t.Context(), r.Scope)
	must(t, err)
	var there []key.Version
	for _, k := range keys {
		if k.Ref == r {
			for _, v := range k.Versions {
				if v.Number <= 70 && v.State != key.Destroyed {
					there = append(there, v.Number)
				}
			}
		}
	}
	if slices.Sort(there); !slices.Equal(there, []key.Version{2, 3, 70}) {
		t.Errorf("up to 70 versions %v are not destroyed, want 2, 3 and 70", there)
	}
}

func TestRawKeysAreImported(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		how := keyhold.RawKey{Generator: "theirs", Policy: keyhold.Policy{RotateEvery: 48 * time.Hour}}
		importsRaw(t, w.Manager, named, how, brought(), true)
		importsRaw(t, w.Manager, named, how, brought(), false)
		hasBrought(t, w.Manager, named)
		if _, v := rawHead(t, w.Manager, named); v != 70 {
			t.Errorf("the head is %d, want 70", v)
		}
		keys, err := w.Keys(ctx, tenant)
		must(t, err)
		for _, k := range keys {
			if k.Ref == named && !k.RotateAt.Equal(madeOld.Add(49*time.Hour)) {
				t.Errorf("due at %v, want 48 h after %v", k.RotateAt, madeOld.Add(time.Hour))
			}
		}
		_, err = w.Rotate(ctx, named)
		fails(t, err, keyhold.ErrGenerator)

		// A process that has the generator goes on with it.
		theirs, err := keyhold.New(ctx, w.store, keyhold.Config{Root: w.root, Grace: -1, Generators: map[string]keyhold.Generator{
			"theirs": func(context.Context) ([]byte, error) { return material(71), nil },
		}})
		must(t, err)
		defer theirs.Close()
		n, err := theirs.Rotate(ctx, named)
		must(t, err)
		if b, v := rawHead(t, theirs, named); n != 71 || v != 71 || !bytes.Equal(b, material(71)) {
			t.Errorf("rotated to %d, and the head is %d", n, v)
		}
		importsRaw(t, w.Manager, named, how, brought(), false)
		hasBrought(t, theirs, named)
		info, err := w.RawInfo(ctx, named)
		must(t, err)
		if want := (keyhold.RawInfo{Name: named.Purpose, Generator: "theirs", Version: 71, RotateEvery: 48 * time.Hour}); info != want {
			t.Errorf("%+v, want %+v", info, want)
		}
	})
}

// What is imported once more has to be what is there.
func TestAnotherImportOfARawKeyIsRefused(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		importsRaw(t, w.Manager, named, keyhold.RawKey{}, brought(), true)
		for name, change := range map[string]func(v []keyhold.ImportedVersion, how *keyhold.RawKey) []keyhold.ImportedVersion{
			"other bytes": func(v []keyhold.ImportedVersion, _ *keyhold.RawKey) []keyhold.ImportedVersion {
				v[1].Key = material(4)
				return v
			},
			"a version more": func(v []keyhold.ImportedVersion, _ *keyhold.RawKey) []keyhold.ImportedVersion {
				return append(v, keyhold.ImportedVersion{Number: 71, Key: material(1)})
			},
			"a version where there was none": func(v []keyhold.ImportedVersion, _ *keyhold.RawKey) []keyhold.ImportedVersion {
				return append([]keyhold.ImportedVersion{{Number: 1, Key: material(1)}}, v...)
			},
			"another generator": func(v []keyhold.ImportedVersion, how *keyhold.RawKey) []keyhold.ImportedVersion {
				how.Generator = "aes128-random"
				return v
			},
		} {
			how := keyhold.RawKey{}
			versions := change(brought(), &how)
			if made, err := w.ImportRaw(ctx, named, how, versions); made || !errors.Is(err, keyhold.ErrExists) {
				t.Errorf("%s: %v, %v; want ErrExists", name, made, err)
			}
		}
		hasBrought(t, w.Manager, named)
		_, err := w.ImportRaw(ctx, ref, keyhold.RawKey{}, brought())
		fails(t, err, keyhold.ErrPurpose)
		_, err = w.ImportRaw(ctx, key.Ref{Scope: "none", Purpose: "n"}, keyhold.RawKey{}, brought())
		fails(t, err, keyhold.ErrNotFound)

		// A name that is registered has its generator; one whose key was removed has its numbers.
		other := key.Ref{Scope: tenant, Purpose: "other"}
		must(t, w.RegisterRaw(ctx, other, "aes128-random"))
		_, err = w.ImportRaw(ctx, other, keyhold.RawKey{}, brought())
		fails(t, err, keyhold.ErrExists)
		importsRaw(t, w.Manager, other, keyhold.RawKey{Generator: "aes128-random"}, brought(), true)
		must(t, w.RemoveRaw(ctx, other))
		_, err = w.ImportRaw(ctx, other, keyhold.RawKey{Generator: "aes128-random"}, brought())
		fails(t, err, keyhold.ErrRemoved)
		must(t, w.RegisterRaw(ctx, other, ""))
		_, err = w.ImportRaw(ctx, other, keyhold.RawKey{}, brought())
		fails(t, err, keyhold.ErrExists)
		makes(t, w.Manager, other, keyhold.RawKey{})
		if _, v := rawHead(t, w.Manager, other); v != 71 {
			t.Errorf("begins at %d, want 71", v)
		}
		// That is not what is imported: its numbers were another key's.
		if made, err := w.ImportRaw(ctx, other, keyhold.RawKey{}, brought()); made || !errors.Is(err, keyhold.ErrExists) {
			t.Errorf("of a key that was made anew: %v, %v; want ErrExists", made, err)
		}
	})
}

// A version that was destroyed here since is no other one.
func TestAnImportedRawVersionThatWasDestroyed(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		importsRaw(t, w.Manager, named, keyhold.RawKey{}, brought(), true)
		var id key.ID
		keys, err := w.Keys(ctx, tenant)
		must(t, err)
		for _, k := range keys {
			for _, v := range k.Versions {
				if k.Ref == named && v.Number == 3 {
					id = v.ID
				}
			}
		}
		must(t, w.Disable(ctx, id))
		importsRaw(t, w.Manager, named, keyhold.RawKey{}, brought(), false)
		must(t, w.Destroy(ctx, id))
		importsRaw(t, w.Manager, named, keyhold.RawKey{}, brought(), false)
		_, err = w.RawVersion(ctx, named, 3)
		fails(t, err, keyhold.ErrDisabled)
	})
}

func TestMalformedRawImportsAreRefused(t *testing.T) {
	m := newManager(t, stores["memstore"].open(t), newRoot(t))
	must(t, m.CreateScope(t.Context(), tenant))
	one := func(v keyhold.ImportedVersion) []keyhold.ImportedVersion { return []keyhold.ImportedVersion{v} }
	for name, versions := range map[string][]keyhold.ImportedVersion{
		"none":              nil,
		"number 0":          one(keyhold.ImportedVersion{Key: material(1)}),
		"number 65536":      one(keyhold.ImportedVersion{Number: key.MaxVersion + 1, Key: material(1)}),
		"an id":             one(keyhold.ImportedVersion{ID: "kdkv_uSaQKi03GM", Number: 1, Key: material(1)}),
		"no bytes":          one(keyhold.ImportedVersion{Number: 1}),
		"1025 bytes":        one(keyhold.ImportedVersion{Number: 1, Key: make([]byte, 1025)}),
		"a number twice":    {{Number: 1, Key: material(1)}, {Number: 1, Key: material(1)}},
		"numbers that fall": {{Number: 2, Key: material(1)}, {Number: 1, Key: material(1)}},
	} {
		_, err := m.ImportRaw(t.Context(), named, keyhold.RawKey{}, versions)
		invalid(t, name, err)
	}
	_, err := m.ImportRaw(t.Context(), named, keyhold.RawKey{Policy: keyhold.Policy{MaxMessages: 1}}, brought())
	invalid(t, "a limit of messages", err)
	_, err = m.ImportRaw(t.Context(), named, keyhold.RawKey{Generator: " "}, brought())
	invalid(t, "generator", err)
	if got := rawNames(t, m, tenant); got != "token:aes256-random:1" {
		t.Errorf("listed are %s", got)
	}
}

// The highest number there is: nothing comes after it.
func TestTheLastNumberOfARawKey(t *testing.T) {
	for _, name := range []string{"memstore", "sqlite"} {
		t.Run(name, func(t *testing.T) {
			s := stores[name].open(t)
			m := newManager(t, s, newRoot(t))
			must(t, m.CreateScope(t.Context(), tenant))
			importsRaw(t, m, named, keyhold.RawKey{}, []keyhold.ImportedVersion{{Number: key.MaxVersion, Key: material(1)}}, true)
			if b, v := rawHead(t, m, named); v != key.MaxVersion || !bytes.Equal(b, material(1)) {
				t.Errorf("version %d", v)
			}
			_, err := m.Rotate(t.Context(), named)
			invalid(t, "rotate", err)
			must(t, m.RemoveRaw(t.Context(), named))
			must(t, m.RegisterRaw(t.Context(), named, ""))
			_, err = m.MakeRaw(t.Context(), named, keyhold.RawKey{})
			invalid(t, "make", err)
			checked(t, m)
		})
	}
}

// What another system says of when a version was made is taken only if it can be.
func TestTimesOfImportedRawVersions(t *testing.T) {
	m := newManager(t, stores["memstore"].open(t), newRoot(t))
	must(t, m.CreateScope(t.Context(), tenant))
	now := time.Now().Truncate(time.Second)
	for i, made := range []time.Time{{}, now.Add(24 * time.Hour), now.AddDate(1000, 0, 0), time.Unix(-1, 0)} {
		r := key.Ref{Scope: tenant, Purpose: key.Purpose(fmt.Sprint("n", i))}
		how := keyhold.RawKey{Policy: keyhold.Policy{RotateEvery: time.Hour}}
		importsRaw(t, m, r, how, []keyhold.ImportedVersion{{Number: 1, Created: made, Key: material(1)}}, true)
		keys, err := m.Keys(t.Context(), tenant)
		must(t, err)
		for _, k := range keys {
			if k.Ref == r && (k.RotateAt.Before(now.Add(time.Hour)) || k.RotateAt.After(now.Add(2*time.Hour))) {
				t.Errorf("made at %v: due at %v, want an hour from now", made, k.RotateAt)
			}
		}
	}
}

// Many import one key at once: one makes it, and all are content; of two different ones one is refused.
func TestManyImportOneRawKey(t *testing.T) {
	fleets(t, func(t *testing.T, _ string, open func() *keyhold.Manager) {
		managers := opened(t, open, 4)
		for round := range 3 {
			r := key.Ref{Scope: tenant, Purpose: key.Purpose(fmt.Sprint("n", round))}
			var made, done, refused atomic.Int64
			var turn atomic.Int64
			atOnce(managers, func(m *keyhold.Manager) {
				versions := brought()
				if turn.Add(1)%2 == 0 {
					versions[0].Key = []byte{8}
				}
				did, err := m.ImportRaw(t.Context(), r, keyhold.RawKey{}, versions)
				switch {
				case err == nil:
					done.Add(1)
				case errors.Is(err, keyhold.ErrExists):
					refused.Add(1)
				default:
					t.Error(err)
				}
				if did {
					made.Add(1)
				}
			})
			if made.Load() != 1 || done.Load() != 2 || refused.Load() != 2 {
				t.Errorf("%d made it, %d were content, %d refused; want 1, 2, 2", made.Load(), done.Load(), refused.Load())
			}
		}
		checked(t, managers[0])
	})
}

// A raw key leaves by the id of a version.
func TestExportRaw(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		importsRaw(t, w.Manager, named, keyhold.RawKey{}, brought(), true)
		want := map[key.Version][]byte{}
		for _, v := range brought() {
			want[v.Number] = v.Key
		}
		fam, err := w.store.Key(ctx, named)
		must(t, err)
		for _, v := range fam.Data[0].Versions {
			b, r, n, err := w.ExportRaw(ctx, v.ID)
			if err != nil || r != named || n != v.Number || !bytes.Equal(b, want[n]) {
				t.Errorf("version %d: it is %d of %v, %v", v.Number, n, r, err)
			}
			clear(b)
			if again, _, _, err := w.ExportRaw(ctx, v.ID); err != nil || !bytes.Equal(again, want[n]) {
				t.Errorf("version %d is another after the caller cleared its copy: %v", v.Number, err)
			}
		}
		must(t, w.Disable(ctx, fam.Data[0].Versions[0].ID))
		_, _, _, err = w.ExportRaw(ctx, fam.Data[0].Versions[0].ID)
		fails(t, err, keyhold.ErrDisabled)
		_, _, _, err = w.ExportRaw(ctx, ids(t, w.Manager, ref)[0])
		fails(t, err, keyhold.ErrPurpose)
		_, _, _, err = w.ExportRaw(ctx, "kdkv_00000000000000000000000000")
		fails(t, err, keyhold.ErrNotFound)
		_, _, _, err = w.ExportRaw(ctx, "x")
		invalid(t, "id", err)
	})
}
