package keyhold_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/storetest"
)

// This is what the operations on raw keys find when a call of them fails: a key of two versions, a name that is
// registered, one that was removed, and those that are not there.
var (
	rawKept       = key.Ref{Scope: tenant, Purpose: "kept"}
	rawRegistered = key.Ref{Scope: tenant, Purpose: "registered"}
	rawRemoved    = key.Ref{Scope: tenant, Purpose: "removed"}
	rawNew        = key.Ref{Scope: tenant, Purpose: "new"}
)

func importedRaw() []keyhold.ImportedVersion {
	return []keyhold.ImportedVersion{{Number: 2, Created: madeOld, Key: material(2)}, {Number: 5, Created: madeOld, Key: material(5)}}
}

// Each operation on raw keys, with each of its database calls failing in turn, before and after it did its work: what
// is stored passes every check, no number gets other bytes, and doing it again ends what was begun.
func TestEveryRawOperationSurvivesEveryFault(t *testing.T) {
	type operation struct {
		do func(f *rawFaultWorld) error
		// done is the state that it leads to, however often it had to be begun.
		done func(f *rawFaultWorld, t *testing.T)
		// again are errors of another try that say that the first one did it.
		again error
	}
	head := func(r key.Ref, want key.Version) func(*rawFaultWorld, *testing.T) {
		return func(f *rawFaultWorld, t *testing.T) {
			t.Helper()
			if _, v := rawHead(t, f.m, r); v != want {
				t.Errorf("the head of %v is %d, want %d", r, v, want)
			}
		}
	}
	gone := func(r key.Ref) func(*rawFaultWorld, *testing.T) {
		return func(f *rawFaultWorld, t *testing.T) {
			t.Helper()
			_, err := f.m.RawInfo(t.Context(), r)
			fails(t, err, keyhold.ErrRemoved)
		}
	}
	operations := map[string]operation{
		"register": {
			do: func(f *rawFaultWorld) error { return f.m.RegisterRaw(f.Context(), rawNew, "aes128-random") },
			done: func(f *rawFaultWorld, t *testing.T) {
				if got := rawNames(t, f.m, tenant); !strings.Contains(got, "new:aes128-random:0") {
					t.Errorf("listed are %s", got)
				}
			},
		},
		"register what was removed": {
			do: func(f *rawFaultWorld) error { return f.m.RegisterRaw(f.Context(), rawRemoved, "") },
			done: func(f *rawFaultWorld, t *testing.T) {
				_, err := f.m.RawInfo(t.Context(), rawRemoved)
				must(t, err)
			},
		},
		"make": {
			do:   func(f *rawFaultWorld) error { _, err := f.m.MakeRaw(f.Context(), rawNew, keyhold.RawKey{}); return err },
			done: head(rawNew, 1),
		},
		"make what is registered": {
			do: func(f *rawFaultWorld) error {
				_, err := f.m.MakeRaw(f.Context(), rawRegistered, keyhold.RawKey{})
				return err
			},
			done: head(rawRegistered, 1),
		},
		"make what was removed": {
			do: func(f *rawFaultWorld) error {
				if err := f.m.RegisterRaw(f.Context(), rawRemoved, ""); err != nil {
					return err
				}
				_, err := f.m.MakeRaw(f.Context(), rawRemoved, keyhold.RawKey{})
				return err
			},
			done: head(rawRemoved, 2),
		},
		"remove": {
			do:    func(f *rawFaultWorld) error { return f.m.RemoveRaw(f.Context(), rawKept) },
			done:  gone(rawKept),
			again: keyhold.ErrRemoved,
		},
		"remove a registered name": {
			do:    func(f *rawFaultWorld) error { return f.m.RemoveRaw(f.Context(), rawRegistered) },
			done:  gone(rawRegistered),
			again: keyhold.ErrRemoved,
		},
		"import": {
			do: func(f *rawFaultWorld) error {
				_, err := f.m.ImportRaw(f.Context(), rawNew, keyhold.RawKey{}, importedRaw())
				return err
			},
			done: head(rawNew, 5),
		},
		"rotate": {do: func(f *rawFaultWorld) error { _, err := f.m.Rotate(f.Context(), rawKept); return err }},
		"rotate if": {
			do:   func(f *rawFaultWorld) error { _, err := f.m.RotateIf(f.Context(), rawKept, 2); return err },
			done: head(rawKept, 3),
		},
		"use": {do: func(f *rawFaultWorld) error {
			for range 2 {
				if _, _, err := f.m.Raw(f.Context(), rawKept); err != nil {
					return err
				}
				if _, err := f.m.RawVersion(f.Context(), rawKept, 1); err != nil {
					return err
				}
			}
			return nil
		}, done: head(rawKept, 2)},
		"export": {do: func(f *rawFaultWorld) error {
			_, _, _, err := f.m.ExportRaw(f.Context(), ids(f, f.clean, rawKept)[0])
			return err
		}},
		"list": {do: func(f *rawFaultWorld) error {
			for _, err := range f.m.RawKeys(f.Context(), tenant) {
				if err != nil {
					return err
				}
			}
			_, err := f.m.RawInfo(f.Context(), rawRegistered)
			return err
		}},
	}
	for kindName, kind := range stores {
		for name, o := range operations {
			for modeName, mode := range modes {
				if kindName == "postgres" && mode == faultstore.Before {
					continue // what is not asked for is the same on every store
				}
				t.Run(kindName+"/"+name+"/"+modeName, func(t *testing.T) {
					t.Parallel()
					for n := 0; ; n++ {
						f, want := newRawFaultWorld(t, kind)
						from := f.faulty.Calls()
						f.faulty.Fail(n, mode)
						err := o.do(f)
						f.faulty.Disarm()
						fired := f.faulty.Fired()
						switch {
						case !fired && n == 0:
							t.Fatal("no call was made: the sweep tested nothing")
						case !fired && err != nil:
							t.Errorf("without a fault: %v", err)
						case err != nil && !errors.Is(err, keyhold.ErrUnavailable) && !errors.Is(err, keyhold.ErrUnknownOutcome):
							t.Errorf("call %d: %v, want ErrUnavailable", n, err)
						case fired && err == nil && mode == faultstore.Before && f.faulty.Log()[from+n] != "Sign":
							t.Errorf("call %d was not made, and nobody said so", n)
						}
						f.intact(t, want)
						if err != nil {
							if err = o.do(f); err != nil && (o.again == nil || !errors.Is(err, o.again)) {
								t.Errorf("again after call %d: %v", n, err)
							}
						}
						f.intact(t, want)
						if o.done != nil {
							o.done(f, t)
						}
						if !fired {
							return
						}
					}
				})
			}
		}
	}
}

// rawFaultWorld is a manager whose database calls are made to fail, and one whose are not.
type rawFaultWorld struct {
	*testing.T
	store    store.Store
	root     wrapping.Wrapper
	faulty   *faultstore.Store
	m, clean *keyhold.Manager
}

// newRawFaultWorld also returns the versions of rawKept.
func newRawFaultWorld(t *testing.T, kind kind) (*rawFaultWorld, [][]byte) {
	t.Helper()
	s, root := kind.open(t), newRoot(t)
	clean := newManager(t, s, root)
	ctx := t.Context()
	must(t, clean.CreateScope(ctx, tenant))
	must(t, clean.RegisterRaw(ctx, rawRegistered, ""))
	makes(t, clean, rawRemoved, keyhold.RawKey{})
	must(t, clean.RemoveRaw(ctx, rawRemoved))
	makes(t, clean, rawKept, keyhold.RawKey{})
	first, _ := rawHead(t, clean, rawKept)
	_, err := clean.Rotate(ctx, rawKept)
	must(t, err)
	second, _ := rawHead(t, clean, rawKept)
	faulty := faultstore.New(s)
	f := &rawFaultWorld{T: t, store: s, root: root, faulty: faulty, m: newManager(t, faulty, root), clean: clean}
	return f, [][]byte{first, second}
}

// intact asserts that all rules hold, and that the versions of rawKept are what they were, or are gone with their key.
func (f *rawFaultWorld) intact(t *testing.T, want [][]byte) {
	t.Helper()
	checked(t, f.clean)
	storetest.Check(t, f.store)
	_, err := f.clean.RawInfo(t.Context(), rawKept)
	if errors.Is(err, keyhold.ErrRemoved) {
		return
	}
	must(t, err)
	fresh, err := keyhold.New(t.Context(), f.store, keyhold.Config{Root: f.root, Grace: -1})
	must(t, err)
	defer fresh.Close()
	for i, b := range want {
		if got, err := fresh.RawVersion(t.Context(), rawKept, key.Version(i+1)); err != nil || !bytes.Equal(got, b) {
			t.Errorf("version %d is not what it was: %v", i+1, err)
		}
	}
}
