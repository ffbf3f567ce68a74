package keyhold

import (
	"crypto/fips140"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/memstore"
)

// What is in use for one scope opens under no other, though its version is found by its id alone; nor under another
// purpose, or with another version's id.
func TestHotMessagesOfOthersDoNotOpen(t *testing.T) {
	theirRef := Ref{Scope: "theirs", Purpose: inner.Purpose}
	second := Ref{Scope: inner.Scope, Purpose: "another"}
	for name, warm := range map[string]func(t *testing.T, m *Manager, all map[Ref]*letter){
		"cold": func(*testing.T, *Manager, map[Ref]*letter) {},
		"opened for whoever's it is": func(t *testing.T, m *Manager, all map[Ref]*letter) {
			for ref, l := range all {
				_, whose, err := m.OpenAny(t.Context(), l.attached, row())
				if err != nil || whose != ref {
					t.Errorf("%v's is said to be %v's, %v", ref, whose, err)
				}
			}
		},
		"in use": func(t *testing.T, m *Manager, all map[Ref]*letter) {
			for ref, l := range all {
				for _, way := range openWays {
					_, err := way.open(t.Context(), m, ref, l, row())
					check(t, err)
				}
				_, err := m.Seal(t.Context(), ref, nil, row())
				check(t, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				check(t, w.other.CreateScope(t.Context(), theirRef.Scope))
				all := map[Ref]*letter{}
				for _, ref := range []Ref{inner, second, theirRef} {
					l := letterOf(t, w.other, ref, "of "+ref.String())
					all[ref] = &l
				}
				for range 2 {
					warm(t, w.Manager, all)
				}
				for mine, l := range all {
					for other, their := range all {
						if other == mine {
							continue
						}
						isNot := func(ref Ref, l *letter, ways ...int) {
							t.Helper()
							for _, i := range ways {
								pt, err := openWays[i].open(t.Context(), w.Manager, ref, l, row())
								wants(t, err, ErrOpen)
								if pt != nil {
									t.Errorf("%s: %q", openWays[i].name, pt)
								}
							}
						}
						named := func(id key.ID) *letter { return &letter{id: id, detached: l.detached} }
						const anybodys, attached, detached, appended = 0, 1, 2, 3 // of openWays
						isNot(other, l, attached, detached, appended)
						for _, ref := range []Ref{mine, other} {
							isNot(ref, named(their.id), detached)
							isNot(ref, named(key.VersionID(key.KEK, kidOf(t, l.id))), detached)
							isNot(ref, named(key.VersionID(key.KEK, kidOf(t, their.id))), detached)
							isNot(ref, named(key.VersionID(key.DEK, key.KID{1})), detached)
						}
						exchanged := &letter{id: l.id, attached: l.detached, detached: l.attached}
						isNot(mine, exchanged, attached, detached, anybodys, appended)
					}
					// And what is right is still in use.
					for _, way := range openWays {
						pt, err := way.open(t.Context(), w.Manager, mine, l, row())
						if err != nil || string(pt) != l.text {
							t.Errorf("%s: %q, %v", way.name, pt, err)
						}
					}
				}
			})
		})
	}
}

// A version that an import brought opens no message, though a message's own version is in use beside it.
func TestHotMessagesDoNotOpenWithAnImportedVersion(t *testing.T) {
	if fips140.Enforced() {
		t.Skip("go-kms-wrapping's aead wrapper makes the nonces of GCM itself, which GODEBUG=fips140=only refuses")
	}
	s := memstore.New()
	m := innerManager(t, s)
	defer func() { check(t, m.Close()) }()
	blob := imported(t, s, m)
	l := letterOf(t, m, inner, "text")
	for range 3 {
		_, err := m.OpenDetached(t.Context(), inner, l.id, l.detached, row())
		check(t, err)
		pt, err := m.OpenDetached(t.Context(), inner, key.ID(blob.GetKeyInfo().GetKeyId()), l.detached, row())
		wants(t, err, ErrOpen)
		if pt != nil {
			t.Errorf("it opens as %q", pt)
		}
	}
}

// A key in use is used for nothing but what it was made for, and refused as where it is not in use.
func TestHotKeysAreOnlyForWhatTheyWereMadeFor(t *testing.T) {
	index := Ref{Scope: inner.Scope, Purpose: "search"}
	raw := Ref{Scope: inner.Scope, Purpose: "token"}
	cfg := Config{IndexPurposes: []Purpose{index.Purpose}, RawPurposes: []Purpose{raw.Purpose}}
	withAndWithoutRun(t, cfg, func(t *testing.T, w *two) {
		ctx := t.Context()
		l := letterOf(t, w.other, inner, "text")
		for _, ref := range []Ref{inner, index, raw} { // cold
			m := w.fresh(t)
			for range 2 {
				if ref != inner {
					for _, way := range sealWays {
						id, ct, err := way.seal(ctx, m, ref, nil, row())
						wants(t, err, ErrPurpose)
						if id != "" || ct != nil {
							t.Errorf("%s with %v: %q", way.name, ref, id)
						}
					}
				}
				if ref != index {
					_, err := m.BlindIndex(ctx, ref, "email", []byte("a@b.c"), 16)
					wants(t, err, ErrPurpose)
				}
				if ref != raw {
					b, _, err := m.Raw(ctx, ref)
					wants(t, err, ErrPurpose)
					c, err := m.RawVersion(ctx, ref, 1)
					wants(t, err, ErrPurpose)
					if b != nil || c != nil {
						t.Errorf("there are bytes of %v", ref)
					}
				}
			}
		}
		want, _, err := w.other.Raw(ctx, raw)
		check(t, err)
		found, err := w.other.BlindIndex(ctx, index, "email", []byte("a@b.c"), 16)
		check(t, err)
		for range 5 {
			for range 2 { // in use
				w.sealAll(t, 1)
				w.openAll(t, &l)
				if b, _, err := w.Raw(ctx, raw); err != nil || string(b) != string(want) {
					t.Errorf("the raw key is another: %v", err)
				}
				if b, err := w.RawVersion(ctx, raw, 1); err != nil || string(b) != string(want) {
					t.Errorf("the raw key's version is another: %v", err)
				}
				b, err := w.BlindIndex(ctx, index, "email", []byte("a@b.c"), 16)
				if err != nil || string(b) != string(found) {
					t.Errorf("the index is another: %v", err)
				}
			}
			for _, ref := range []Ref{index, raw} {
				for _, way := range sealWays {
					_, _, err := way.seal(ctx, w.Manager, ref, nil, row())
					wants(t, err, ErrPurpose)
				}
				for _, way := range openWays {
					if way.name != "OpenAny" {
						_, err := way.open(ctx, w.Manager, ref, &l, row())
						wants(t, err, ErrOpen)
					}
				}
			}
			for _, ref := range []Ref{inner, index} {
				b, _, err := w.Raw(ctx, ref)
				wants(t, err, ErrPurpose)
				c, err := w.RawVersion(ctx, ref, 1)
				wants(t, err, ErrPurpose)
				if b != nil || c != nil {
					t.Errorf("there are bytes of %v", ref)
				}
			}
			for _, ref := range []Ref{inner, raw} {
				_, err := w.BlindIndex(ctx, ref, "email", []byte("a@b.c"), 16)
				wants(t, err, ErrPurpose)
			}
			pass(time.Second)
		}
	})
}
