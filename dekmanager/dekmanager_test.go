package dekmanager_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
	"keyhold.example/keyhold/store/storetest"
)

func hasInfo(t *testing.T, d *dekmanager.DEKManager, name, function string, version int) {
	t.Helper()
	f, v, err := d.GetKeyInfo(t.Context(), name)
	if err != nil || f != function || v != version {
		t.Errorf("info of %q: %q, version %d, %v; want %q, %d", name, f, v, err, function, version)
	}
}

func TestRegisteringMakesNoKey(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, d := t.Context(), w.open(mek)
		for range 2 {
			must(t, d.RegisterKey(ctx, "plain"))
			must(t, d.RegisterKeyWithFunction(ctx, "small", "aes128-random"))
		}
		hasInfo(t, d, "plain", "aes256-random", 0)
		hasInfo(t, d, "small", "aes128-random", 0)
		if n := w.count("select count(*) from kms_data_key"); n != 0 {
			t.Errorf("%d keys", n)
		}
		must(t, d.RotateDEK(ctx, "small")) // makes the first
		if dek := get(t, d, "small", 1); len(dek) != 16 {
			t.Errorf("%d bytes, want 16", len(dek))
		}
		must(t, d.RotateDEK(ctx, "small"))
		if dek := get(t, d, "small", 2); len(dek) != 16 {
			t.Errorf("%d bytes, want 16", len(dek))
		}
		hasInfo(t, d, "small", "aes128-random", 2)
		get(t, d, "never registered", 1)
		names, err := d.ListKeys(ctx)
		must(t, err)
		if want := []string{"never registered", "plain", "small"}; !slices.Equal(names, want) {
			t.Errorf("keys %q, want %q", names, want)
		}
	})
}

func TestFunctionOfAKeyStays(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, d := t.Context(), w.open(mek)
		must(t, d.RegisterKeyWithFunction(ctx, "a", "aes192-random"))
		const words = "already registered with a different function"
		for range 2 { // registered, and with a key
			refused(t, d.RegisterKey(ctx, "a"), keyhold.ErrExists, words)
			refused(t, d.RegisterKeyWithFunction(ctx, "a", "aes256-random"), keyhold.ErrExists, words)
			must(t, d.RegisterKeyWithFunction(ctx, "a", "aes192-random"))
			get(t, d, "a", 1)
		}
		for _, function := range []string{"none", "", "two\nlines", strings.Repeat("x", 300)} {
			err := d.RegisterKeyWithFunction(ctx, "b", function)
			if err == nil {
				t.Errorf("function %q was registered", function)
			}
		}
		refused(t, d.RegisterKeyWithFunction(ctx, "b", "none"), keyhold.ErrGenerator, "not registered")
		refused(t, d.RegisterKeyWithFunction(ctx, "b", ""), keyhold.ErrGenerator, "not registered")
	})
}

func TestRemovedKeyCountsOn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, d, other := t.Context(), w.open(mek), w.open(mek)
		first := get(t, d, "a", 1)
		must(t, d.RotateDEK(ctx, "a"))
		must(t, d.RotateDEK(ctx, "a"))
		must(t, d.RemoveKey(ctx, "a"))
		const words = "key 'a' not registered"
		for _, d := range []*dekmanager.DEKManager{d, other} {
			_, _, err := d.GetDEK(ctx, "a")
			refused(t, err, keyhold.ErrRemoved, words)
			refused(t, err, keyhold.ErrNotFound, words)
			refused(t, d.RotateDEK(ctx, "a"), keyhold.ErrRemoved, words)
			refused(t, d.RemoveKey(ctx, "a"), keyhold.ErrRemoved, "not found")
			_, err = d.GetDEKByVersion(ctx, "a", 1)
			refused(t, err, nil, "DEK not found")
			_, _, err = d.GetKeyInfo(ctx, "a")
			refused(t, err, keyhold.ErrNotFound, "not found")
		}
		names, err := d.ListKeys(ctx)
		if err != nil || len(names) != 0 {
			t.Errorf("keys %q, %v", names, err)
		}
		must(t, other.RegisterKey(ctx, "a"))
		hasInfo(t, d, "a", "aes256-random", 0)
		if bytes.Equal(get(t, d, "a", 4), first) {
			t.Error("the old bytes again")
		}
		_, err = d.GetDEKByVersion(ctx, "a", 3)
		refused(t, err, keyhold.ErrDisabled, "DEK not found")
		must(t, d.RotateDEK(ctx, "a"))
		get(t, d, "a", 5)
		refused(t, d.RemoveKey(ctx, "never there"), keyhold.ErrNotFound, "key 'never there' not found")

		// A name that was registered only is taken back.
		must(t, d.RegisterKey(ctx, "b"))
		must(t, d.RemoveKey(ctx, "b"))
		_, _, err = other.GetDEK(ctx, "b")
		refused(t, err, keyhold.ErrRemoved, "key 'b' not registered")
	})
}

func TestVersionsThatAreNotThere(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, d := t.Context(), w.open(mek)
		get(t, d, "a", 1)
		for _, version := range []int{0, -1, 2, 65535, 65536, 65537, 1 << 32, 1<<32 + 1, math.MaxInt, math.MinInt} {
			dek, err := d.GetDEKByVersion(ctx, "a", version)
			refused(t, err, keyhold.ErrNotFound, "DEK not found")
			if dek != nil {
				t.Errorf("version %d has bytes", version)
			}
		}
		_, err := d.GetDEKByVersion(ctx, "none", 1)
		refused(t, err, keyhold.ErrNotFound, "DEK not found")
		if n := w.count("select count(*) from kms_data_key"); n != 1 {
			t.Errorf("%d keys, want 1: asking for a version makes none", n)
		}
	})
}

func TestMalformedNamesAreRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, d := t.Context(), w.open(mek)
		for _, name := range []string{"", strings.Repeat("x", 256), "two\nlines", "nul\x00", " space", "space ", "not\xffUTF-8"} {
			_, _, getErr := d.GetDEK(ctx, name)
			_, versionErr := d.GetDEKByVersion(ctx, name, 1)
			_, _, infoErr := d.GetKeyInfo(ctx, name)
			for call, err := range map[string]error{
				"GetDEK": getErr, "GetDEKByVersion": versionErr, "GetKeyInfo": infoErr, "RegisterKey": d.RegisterKey(ctx, name),
				"RotateDEK": d.RotateDEK(ctx, name), "RemoveKey": d.RemoveKey(ctx, name),
			} {
				invalid, ok := errors.AsType[*keyhold.InvalidError](err)
				if !ok || invalid.What != "key name" || strings.ContainsAny(err.Error(), "\n\x00") || !utf8.ValidString(err.Error()) || len(err.Error()) > 500 {
					t.Errorf("%s of %q: %v", call, name, err)
				}
			}
		}
		root, err := d.Manager().Keys(ctx, scope)
		if err != nil || len(root) != 1 || root[0].Head != 1 {
			t.Errorf("the scope's own key was changed: %v, %v", root, err)
		}
		for _, name := range []string{strings.Repeat("x", 255), "'; drop table kms_data_key; --", "Ümlaut/key", "%s"} {
			get(t, d, name, 1)
			must(t, d.RemoveKey(ctx, name))
			_, _, err := d.GetDEK(ctx, name)
			refused(t, err, keyhold.ErrRemoved, "key '"+name+"' not registered")
		}
	})
}

func TestCallsWhoseContextIsOver(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		d := w.open(mek)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, _, getErr := d.GetDEK(ctx, "a")
		_, versionErr := d.GetDEKByVersion(ctx, "a", 1)
		_, _, infoErr := d.GetKeyInfo(ctx, "a")
		_, listErr := d.ListKeys(ctx)
		for call, err := range map[string]error{
			"GetDEK": getErr, "GetDEKByVersion": versionErr, "GetKeyInfo": infoErr, "ListKeys": listErr,
			"RegisterKey": d.RegisterKey(ctx, "a"), "RotateDEK": d.RotateDEK(ctx, "a"), "RemoveKey": d.RemoveKey(ctx, "a"),
		} {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", call, err)
			}
		}
		if n := w.count("select count(*) from kms_data_key"); n != 0 {
			t.Errorf("%d keys", n)
		}
	})
}

func TestFunctionsThatMisbehave(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		broken := errors.New("no entropy today")
		shared := bytes.Repeat([]byte{7}, 20)
		var good atomic.Bool
		bad := map[string]dekmanager.DEKGenerationFunc{
			"panics":   func(context.Context) ([]byte, error) { panic("here") },
			"fails":    func(context.Context) ([]byte, error) { return bytes.Repeat([]byte{1}, 32), broken },
			"nil":      func(context.Context) ([]byte, error) { return nil, nil },
			"too long": func(context.Context) ([]byte, error) { return make([]byte, 1025), nil },
		}
		options := []dekmanager.DEKManagerOption{
			dekmanager.WithFunction("shared", func(context.Context) ([]byte, error) { return shared, nil }),
			dekmanager.WithFunction("longest", func(context.Context) ([]byte, error) { return bytes.Repeat([]byte{9}, 1024), nil }),
		}
		for name, f := range bad {
			options = append(options, dekmanager.WithFunction(name, func(ctx context.Context) ([]byte, error) {
				if good.Load() {
					return []byte("better"), nil
				}
				return f(ctx)
			}))
		}
		d, plain := w.open(mek, options...), w.open(mek)
		for name := range bad {
			must(t, d.RegisterKeyWithFunction(ctx, "key of "+name, name))
			_, _, err := d.GetDEK(ctx, "key of "+name)
			refused(t, err, nil, name)
			refused(t, d.RotateDEK(ctx, "key of "+name), nil, name)
			if name == "fails" {
				refused(t, err, broken, "")
			}
			hasInfo(t, plain, "key of "+name, name, 0)
		}
		good.Store(true)
		for name := range bad {
			same(t, name, get(t, d, "key of "+name, 1), []byte("better"))
			get(t, plain, "key of "+name, 1)
			refused(t, plain.RotateDEK(ctx, "key of "+name), keyhold.ErrGenerator, "not registered")
		}
		// What a function returns stays its own, and is not cleared.
		must(t, d.RegisterKeyWithFunction(ctx, "s", "shared"))
		same(t, "version 1", get(t, d, "s", 1), bytes.Repeat([]byte{7}, 20))
		must(t, d.RotateDEK(ctx, "s"))
		same(t, "version 2", get(t, d, "s", 2), bytes.Repeat([]byte{7}, 20))
		must(t, d.RegisterKeyWithFunction(ctx, "l", "longest"))
		same(t, "the longest", get(t, d, "l", 1), bytes.Repeat([]byte{9}, 1024))

		must(t, d.RegisterKeyWithFunction(ctx, "n", "shared"))
		_, _, err := plain.GetDEK(ctx, "n")
		refused(t, err, keyhold.ErrGenerator, "not registered")
	})
}

func TestScopesAndPrefixesHaveKeysOfTheirOwn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		one, two := w.open(mek), w.open(mek, dekmanager.WithScope("other"))
		three := w.open(newMEK, dekmanager.WithTablePrefix("third"))
		deks := [][]byte{get(t, one, "a", 1), get(t, two, "a", 1), get(t, three, "a", 1)}
		if bytes.Equal(deks[0], deks[1]) || bytes.Equal(deks[0], deks[2]) {
			t.Error("the same key twice")
		}
		if three.TablePrefix() != "third" || one.TablePrefix() != "kms" {
			t.Errorf("prefixes %q and %q", three.TablePrefix(), one.TablePrefix())
		}
		if want := map[string]string{"postgres": "public", "sqlite": "main"}[w.kind]; one.SchemaName() != want {
			t.Errorf("schema %q, want %q", one.SchemaName(), want)
		}
		findings, err := three.Manager().Check(t.Context())
		if err != nil || len(findings) != 0 {
			t.Errorf("check: %v, %v", findings, err)
		}
	})
}

// Where the connection looks for tables in a schema of its own, that is where they are.
func TestSchemaIsThatOfTheConnection(t *testing.T) {
	w := newWorld(t, "postgres")
	w.exec(`create schema "My own"`)
	w.exec(`do $$ begin execute format('alter database %I set search_path = "My own"', current_database()); end $$`)
	d := w.open(mek)
	get(t, d, "a", 1)
	if d.SchemaName() != "My own" {
		t.Errorf("schema %q", d.SchemaName())
	}
	named := w.open(mek, dekmanager.WithSchemaName("My own"))
	get(t, named, "a", 1)
	storetest.Check(t, w.store())
}
