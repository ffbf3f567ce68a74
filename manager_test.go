package keyhold_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

func TestNewMakesNothingUnlessAsked(t *testing.T) {
	for name, kind := range stores {
		t.Run(name, func(t *testing.T) {
			s := kind.open(t)
			cfg := config(newRoot(t))
			cfg.Initialize = false
			_, err := keyhold.New(t.Context(), s, cfg)
			fails(t, err, keyhold.ErrNotInitialized)
			if err == nil || !strings.Contains(err.Error(), "keyhold init") {
				t.Errorf("%v does not name the command", err)
			}
			var schema *store.SchemaError
			if !errors.As(s.CheckSchema(t.Context()), &schema) || schema.Have != 0 {
				t.Error("tables were made")
			}
		})
	}
}

func TestInitializeIsOneInstallationForAll(t *testing.T) {
	for name, kind := range stores {
		t.Run(name, func(t *testing.T) {
			s, root := kind.open(t), newRoot(t)
			pins := make([]string, 16)
			var wg sync.WaitGroup
			for i := range pins {
				wg.Go(func() {
					m, err := keyhold.New(t.Context(), s, config(root))
					if err != nil {
						t.Error(err)
						return
					}
					defer m.Close()
					pins[i] = m.Pin()
				})
			}
			wg.Wait()
			for _, pin := range pins {
				if len(pin) != 64 || pin != pins[0] {
					t.Errorf("pins %q and %q", pin, pins[0])
				}
			}
		})
	}
}

func TestPinDecidesWhichInstallation(t *testing.T) {
	for name, kind := range stores {
		t.Run(name, func(t *testing.T) {
			s, root := kind.open(t), newRoot(t)
			m := newManager(t, s, root)
			other := newManager(t, kind.open(t), root)

			cfg := config(root)
			cfg.Pins = []string{other.Pin(), m.Pin()}
			if _, err := keyhold.New(t.Context(), s, cfg); err != nil {
				t.Errorf("one of the pins is right: %v", err)
			}
			cfg.Pins = []string{other.Pin()}
			_, err := keyhold.New(t.Context(), s, cfg)
			fails(t, err, keyhold.ErrPin)

			empty := kind.open(t)
			_, err = keyhold.New(t.Context(), empty, cfg)
			fails(t, err, keyhold.ErrPin)
			cfg.Pins = nil
			cfg.Initialize = false
			_, err = keyhold.New(t.Context(), empty, cfg)
			fails(t, err, keyhold.ErrNotInitialized)
		})
	}
}

func TestRootIsCalledOnceAProcess(t *testing.T) {
	s := memstore.New()
	root := &countingRoot{Wrapper: newRoot(t)}
	m := newManager(t, s, root)
	if e, d := root.encrypts.Load(), root.decrypts.Load(); e != 1 || d != 2 {
		t.Errorf("making an installation: %d encrypts and %d decrypts, want 1 and 2", e, d)
	}
	must(t, m.CreateScope(t.Context(), tenant))

	root.encrypts.Store(0)
	root.decrypts.Store(0)
	m = newManager(t, s, root)
	for range 50 {
		opens(t, m, ref, sealed(t, m, ref, "x", keyhold.Context("a")), keyhold.Context("a"), "x")
	}
	if _, err := m.Rotate(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if e, d := root.encrypts.Load(), root.decrypts.Load(); e != 0 || d != 1 {
		t.Errorf("%d encrypts and %d decrypts, want 0 and 1", e, d)
	}
}

func TestAnyWrapperIsARoot(t *testing.T) {
	s := memstore.New()
	m := newManager(t, s, aeadRoot(t, "one", 1))
	must(t, m.CreateScope(t.Context(), tenant))
	ct := sealed(t, m, ref, "x", keyhold.AAD{})
	opens(t, newManager(t, s, aeadRoot(t, "one", 1)), ref, ct, keyhold.AAD{}, "x")
	// The key id is a hint; what counts is whether the root opens the slot.
	opens(t, newManager(t, s, aeadRoot(t, "renamed", 1)), ref, ct, keyhold.AAD{}, "x")
}

func TestWrongRootIsRefused(t *testing.T) {
	s := memstore.New()
	good := newRoot(t)
	newManager(t, s, good)
	for name, root := range map[string]wrapping.Wrapper{
		"another key":                 newRoot(t),
		"another kind":                otherKind{good},
		"answers with another's data": &countingRoot{Wrapper: good, decrypt: func([]byte, error) ([]byte, error) { return make([]byte, 65), nil }},
		"answers with nothing":        &countingRoot{Wrapper: good, decrypt: func([]byte, error) ([]byte, error) { return nil, nil }},
		"panics":                      &countingRoot{Wrapper: good, decrypt: func([]byte, error) ([]byte, error) { panic("no") }},
		"is away":                     &countingRoot{Wrapper: good, decrypt: func([]byte, error) ([]byte, error) { return nil, errors.New("dial: no route") }},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := keyhold.New(t.Context(), s, config(root))
			fails(t, err, keyhold.ErrRoot)
			failed := name == "panics" || name == "is away"
			if errors.Is(err, keyhold.ErrRootUnavailable) != failed {
				t.Errorf("%v: whether trying again may help is to be %v", err, failed)
			}
			if another := name == "another key" || name == "another kind"; strings.Contains(err.Error(), "another one") != another {
				t.Errorf("%v: whether it is another one is to be %v", err, another)
			}
		})
	}
}

// A root that seals and cannot open would lose every key; it must not become the only one.
func TestInitializeRefusesARootThatCannotOpen(t *testing.T) {
	for name, root := range map[string]*countingRoot{
		"decrypt denied":          {decrypt: func([]byte, error) ([]byte, error) { return nil, errors.New("denied") }},
		"leaves the key in clear": {},
		"decrypts garbage":        {decrypt: func([]byte, error) ([]byte, error) { return []byte("garbage"), nil }},
		"encrypt denied": {encrypt: func(*wrapping.BlobInfo, error) (*wrapping.BlobInfo, error) {
			return nil, errors.New("denied")
		}},
		"encrypts to nothing": {encrypt: func(*wrapping.BlobInfo, error) (*wrapping.BlobInfo, error) {
			return nil, nil //nolint:nilnil // what a broken wrapper does
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := memstore.New()
			root.Wrapper = newRoot(t)
			if name == "leaves the key in clear" {
				root.encrypt = func(info *wrapping.BlobInfo, err error) (*wrapping.BlobInfo, error) {
					info.Plaintext = root.last
					return info, err
				}
			}
			_, err := keyhold.New(t.Context(), s, config(root))
			fails(t, err, keyhold.ErrRoot)
			_, err = s.Installation(t.Context())
			fails(t, err, store.ErrNotFound)
		})
	}
}

func TestSlotsChangedBehindItsBackAreRefused(t *testing.T) {
	root := newRoot(t)
	for name, edit := range map[string]func(*store.Installation){
		"slot hidden":        func(in *store.Installation) { in.Slots = append(in.Slots, in.Slots[0]) },
		"sequence number":    func(in *store.Installation) { in.Seq++ },
		"MAC":                func(in *store.Installation) { in.MAC[31] ^= 1 },
		"MAC cut off":        func(in *store.Installation) { in.MAC = in.MAC[:16] },
		"another active":     func(in *store.Installation) { in.ActiveSlot = "kr_0" },
		"installation id":    func(in *store.Installation) { in.Inst[0] ^= 1 },
		"id cut off":         func(in *store.Installation) { in.Inst = in.Inst[:15] },
		"slot's key id":      func(in *store.Installation) { in.Slots[0].IKKID[0] ^= 1 },
		"slot's type":        func(in *store.Installation) { in.Slots[0].WrapperType = "awskms" },
		"slot's state":       func(in *store.Installation) { in.Slots[0].State = 3 },
		"slot's id":          func(in *store.Installation) { in.Slots[0].ID = "kr_0" },
		"slot's blob":        func(in *store.Installation) { in.Slots[0].Blob[20] ^= 1 },
		"two bytes for blob": func(in *store.Installation) { in.Slots[0].Blob = []byte{0x0a, 0x00} },
		"no blob":            func(in *store.Installation) { in.Slots[0].Blob = nil },
		"no slot":            func(in *store.Installation) { in.Slots = nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := memstore.New()
			open := newManager(t, s, root)
			s.Edit(func(d *memstore.Data) { edit(d.Installation) })
			_, err := open.Installation(t.Context())
			integrity(t, err)
			findings, err := open.Check(t.Context())
			if err != nil || len(findings) == 0 {
				t.Errorf("check found %d, %v", len(findings), err)
			}
			_, err = keyhold.New(t.Context(), s, config(root))
			var e *keyhold.IntegrityError
			if !errors.As(err, &e) && !errors.Is(err, keyhold.ErrRoot) {
				t.Errorf("got %v, want an IntegrityError or ErrRoot", err)
			}
		})
	}
}

func TestConfigIsChecked(t *testing.T) {
	root := newRoot(t)
	var invalid *keyhold.InvalidError
	for name, edit := range map[string]func(*keyhold.Config){
		"purpose with space":  func(c *keyhold.Config) { c.Purposes[0] = " x" },
		"empty purpose":       func(c *keyhold.Config) { c.Purposes[0] = "" },
		"purpose twice":       func(c *keyhold.Config) { c.Purposes[0] = c.Purposes[1] },
		"purpose in two":      func(c *keyhold.Config) { c.RawPurposes[0] = c.Purposes[1] },
		"pin not hexadecimal": func(c *keyhold.Config) { c.Pins = []string{"xyz"} },
		"pin too short":       func(c *keyhold.Config) { c.Pins = []string{"00ff"} },
	} {
		cfg := config(root)
		edit(&cfg)
		if _, err := keyhold.New(t.Context(), memstore.New(), cfg); !errors.As(err, &invalid) {
			t.Errorf("%s: got %v, want an InvalidError", name, err)
		}
	}
	if _, err := keyhold.New(t.Context(), memstore.New(), keyhold.Config{}); err == nil {
		t.Error("no root: accepted")
	}
}

func TestClosedManagerRefuses(t *testing.T) {
	m := newManager(t, memstore.New(), newRoot(t))
	must(t, m.CreateScope(t.Context(), tenant))
	must(t, m.Close())
	must(t, m.Close())
	ctx := t.Context()
	_, err := m.Seal(ctx, ref, nil, keyhold.AAD{})
	fails(t, err, keyhold.ErrClosed)
	_, err = m.Rotate(ctx, ref)
	fails(t, err, keyhold.ErrClosed)
	_, err = m.Rewrap(ctx, tenant)
	fails(t, err, keyhold.ErrClosed)
	_, err = m.Keys(ctx, tenant)
	fails(t, err, keyhold.ErrClosed)
	_, err = m.Check(ctx)
	fails(t, err, keyhold.ErrClosed)
	_, err = m.Wrapper(ctx, ref)
	fails(t, err, keyhold.ErrClosed)
	fails(t, m.CreateScope(ctx, "other"), keyhold.ErrClosed)
	for _, err := range m.Scopes(ctx) {
		fails(t, err, keyhold.ErrClosed)
	}
}

// otherKind is a root that says it is of another type.
type otherKind struct{ wrapping.Wrapper }

func (otherKind) Type(context.Context) (wrapping.WrapperType, error) { return "other", nil }

func TestMadeSaysWhoMadeTheInstallation(t *testing.T) {
	s, root := memstore.New(), newRoot(t)
	if m := newManager(t, s, root); !m.Made() {
		t.Error("the first did not make it")
	}
	if m := newManager(t, s, root); m.Made() {
		t.Error("the second made it")
	}

	// One that another overtakes between its look and its write did not make it either.
	faulty := faultstore.New(memstore.New())
	var first *keyhold.Manager
	faulty.Hook(func(call string) {
		if call == "Initialize" && first == nil {
			faulty.Hook(nil)
			first = newManager(t, faulty, root)
		}
	})
	second := newManager(t, faulty, root)
	if first == nil || !first.Made() || second.Made() || first.Pin() != second.Pin() {
		t.Error("overtaken: both made it, or neither, or each its own")
	}
}

// A call that waits longer than Config.Timeout ends, and says why.
func TestTimeoutEndsACall(t *testing.T) {
	s, root := memstore.New(), newRoot(t)
	newManager(t, s, root)
	cfg := config(root)
	cfg.Timeout = time.Nanosecond
	_, err := keyhold.New(t.Context(), s, cfg)
	fails(t, err, context.DeadlineExceeded)
	cfg.Timeout = -1
	if _, err := keyhold.New(t.Context(), s, cfg); err != nil {
		t.Errorf("no limit: %v", err)
	}
}

// What somebody put in the place of an installation under a running process is not taken for its own, and nothing waits
// for it to become so.
func TestReplacedInstallationIsNoticed(t *testing.T) {
	s := memstore.New()
	m := newManager(t, s, newRoot(t))
	must(t, m.CreateScope(t.Context(), tenant))
	_, err := m.Rotate(t.Context(), key.Ref{Scope: tenant})
	must(t, err)
	s.Edit(func(d *memstore.Data) { d.Installation.Inst[0] ^= 1 })
	integrity(t, m.CreateScope(t.Context(), "new"))
	_, err = m.Rotate(t.Context(), ref)
	integrity(t, err)
	_, err = m.Rewrap(t.Context(), tenant)
	integrity(t, err)
	s.Edit(func(d *memstore.Data) { d.Installation = nil })
	integrity(t, m.CreateScope(t.Context(), "new"))
}

func TestPinStaysAfterClose(t *testing.T) {
	m := newManager(t, memstore.New(), newRoot(t))
	pin := m.Pin()
	must(t, m.Close())
	if m.Pin() != pin || len(pin) != 64 {
		t.Errorf("pin %q, then %q", pin, m.Pin())
	}
}

// Close waits for what is under way: a call either works or says that the manager is closed.
func TestCloseBesideCalls(t *testing.T) {
	s := memstore.New()
	root := newRoot(t)
	must(t, newManager(t, s, root).CreateScope(t.Context(), tenant))
	for range 20 {
		m := newManager(t, s, root)
		var wg sync.WaitGroup
		started := make(chan struct{}, 8)
		for range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					_, err := m.Seal(t.Context(), ref, nil, keyhold.AAD{})
					if i == 0 {
						started <- struct{}{}
					}
					if err != nil {
						fails(t, err, keyhold.ErrClosed)
						return
					}
				}
			})
		}
		for range 8 {
			<-started
		}
		must(t, m.Close())
		wg.Wait()
	}
}
