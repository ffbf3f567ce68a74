package keyhold_test

import (
	"bytes"
	"errors"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// Keys whose names are the same when scope and purpose are written one after the other, alone or with what is likely to
// stand between them, are keys of their own in every call: cold, hot, and inside a transaction.
func TestNamesThatRunTogetherNameDifferentKeys(t *testing.T) {
	pairs := [][2]key.Ref{
		{{Scope: "org1", Purpose: "2x"}, {Scope: "org12", Purpose: "x"}},
		{{Scope: "a/b", Purpose: "c"}, {Scope: "a", Purpose: "b/c"}},
		{{Scope: "a:b", Purpose: "c"}, {Scope: "a", Purpose: "b:c"}},
	}
	indexes := [2]key.Ref{{Scope: "org1", Purpose: "2i"}, {Scope: "org12", Purpose: "i"}}
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		open := func() *keyhold.Manager {
			m, err := keyhold.New(ctx, w.store, keyhold.Config{
				Root: w.root, Purposes: []key.Purpose{"2x", "x", "c", "b/c", "b:c"}, IndexPurposes: []key.Purpose{"2i", "i"},
			})
			must(t, err)
			t.Cleanup(func() { must(t, m.Close()) })
			return m
		}
		m := open()
		owner := map[key.ID]key.Ref{}
		for _, scope := range []key.Scope{"org1", "org12", "a/b", "a", "a:b"} {
			must(t, m.CreateScope(ctx, scope))
			keys, err := m.Keys(ctx, scope)
			must(t, err)
			for _, k := range keys {
				owner[k.Versions[0].ID] = k.Ref
			}
		}
		for _, pair := range pairs {
			for range 2 { // cold, then hot
				for i, mine := range pair {
					id, ct, err := m.SealDetached(ctx, mine, []byte("x"), keyhold.AAD{})
					if err != nil || owner[id] != mine {
						t.Errorf("%v was sealed with a version of %v, %v", mine, owner[id], err)
					}
					ownKey(t, m, mine, pair[1-i], id, ct, owner)
				}
			}
			tx, commit, _ := w.kind.begin(t, w.store)
			for i, mine := range pair {
				id, ct, err := m.SealDetachedTx(ctx, tx, mine, []byte("x"), keyhold.AAD{})
				if err != nil || owner[id] != mine {
					t.Errorf("inside a transaction %v was sealed with a version of %v, %v", mine, owner[id], err)
				}
				_, err = m.OpenDetachedTx(ctx, tx, pair[1-i], id, ct, keyhold.AAD{})
				fails(t, err, keyhold.ErrOpen)
			}
			must(t, commit())
			// A rotation of one is none of the other.
			n, err := m.Rotate(ctx, pair[0])
			must(t, err)
			if got := states(t, m, pair[1]); n != 2 || got != "1:active" {
				t.Errorf("%v was rotated to %d, and %v is %s", pair[0], n, pair[1], got)
			}
		}
		var hashes [2][]byte
		for i, r := range indexes {
			hash, err := m.BlindIndex(ctx, r, "email", []byte("x"), 16)
			must(t, err)
			alone, err := open().BlindIndex(ctx, r, "email", []byte("x"), 16)
			if err != nil || !bytes.Equal(alone, hash) {
				t.Errorf("blind index of %v: %x, and %x where no other key was used before, %v", r, hash, alone, err)
			}
			hashes[i] = hash
		}
		if bytes.Equal(hashes[0], hashes[1]) {
			t.Error("both blind indexes have the same key")
		}
	})
}

// ownKey asserts that what was sealed with a version of mine opens as mine and not as the other, however it is opened.
func ownKey(t *testing.T, m *keyhold.Manager, mine, other key.Ref, id key.ID, ct []byte, owner map[key.ID]key.Ref) {
	t.Helper()
	ctx := t.Context()
	pt, err := m.OpenDetached(ctx, mine, id, ct, keyhold.AAD{})
	if err != nil || string(pt) != "x" {
		t.Errorf("open as %v: %q, %v", mine, pt, err)
	}
	_, err = m.OpenDetached(ctx, other, id, ct, keyhold.AAD{})
	fails(t, err, keyhold.ErrOpen)
	if _, r, err := m.OpenAny(ctx, sealed(t, m, mine, "x", keyhold.AAD{}), keyhold.AAD{}); err != nil || r != mine {
		t.Errorf("sealed as %v, opened as %v, %v", mine, r, err)
	}
	w, err := m.Wrapper(ctx, mine)
	must(t, err)
	head, err := w.KeyId(ctx)
	if err != nil || owner[key.ID(head)] != mine {
		t.Errorf("the Wrapper of %v has a version of %v, %v", mine, owner[key.ID(head)], err)
	}
	theirs, err := m.Wrapper(ctx, other)
	must(t, err)
	if _, err := theirs.Decrypt(ctx, encrypted(t, w, "x")); !errors.Is(err, keyhold.ErrOpen) {
		t.Errorf("the Wrapper of %v opened what that of %v sealed: %v", other, mine, err)
	}
	_, err = m.VersionWrapper(ctx, other, id)
	fails(t, err, keyhold.ErrNotFound)
}
