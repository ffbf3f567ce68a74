package keyhold_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// The external root is called once, by New: for no scope, key, version or rotation, and so never inside a transaction.
func TestTheRootIsCalledOnceHoweverManyKeysThereAre(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		const scopes = 50
		name := func(i int) key.Scope { return key.Scope(fmt.Sprintf("s%02d", i)) }
		cts := make([][]byte, scopes)
		for i := range scopes {
			must(t, w.CreateScope(ctx, name(i)))
			r := key.Ref{Scope: name(i), Purpose: secrets}
			cts[i] = sealed(t, w.Manager, r, "before", keyhold.AAD{})
			for _, rotated := range []key.Ref{{Scope: name(i)}, r} {
				_, err := w.Rotate(ctx, rotated)
				must(t, err)
			}
		}

		root := &countingRoot{Wrapper: w.root}
		m := newManager(t, w.store, root) // all keys are cold
		for i, ct := range cts {
			opens(t, m, key.Ref{Scope: name(i), Purpose: secrets}, ct, keyhold.AAD{}, "before")
		}
		for i := range scopes {
			r := key.Ref{Scope: name(i), Purpose: session}
			sealed(t, m, r, "x", keyhold.AAD{})
			n, err := m.Rewrap(ctx, r.Scope)
			if err != nil || n != 4 {
				t.Errorf("rewrapped %d versions of %v, %v; want 4", n, r.Scope, err)
			}
			_, err = m.Rotate(ctx, r)
			must(t, err)
			under, err := m.Wrapper(ctx, key.Ref{Scope: r.Scope})
			must(t, err)
			decrypts(t, under, encrypted(t, under, "a key"), "a key")
			must(t, m.CreateScope(ctx, "new "+r.Scope))
		}
		tx, commit, _ := w.kind.begin(t, w.store)
		must(t, m.CreateScopeTx(ctx, tx, "inside"))
		for _, r := range []key.Ref{{Scope: "inside"}, {Scope: "inside", Purpose: secrets}} {
			_, err := m.RotateTx(ctx, tx, r)
			must(t, err)
		}
		_, err := m.RewrapTx(ctx, tx, "inside")
		must(t, err)
		_, err = m.SealTx(ctx, tx, key.Ref{Scope: "inside", Purpose: secrets}, nil, keyhold.AAD{})
		must(t, err)
		must(t, commit())
		checked(t, m)
		if e, d := root.encrypts.Load(), root.decrypts.Load(); e != 0 || d != 1 {
			t.Errorf("%d encrypts and %d decrypts, want 0 and 1", e, d)
		}
	})
}

// A rewrap is made of batches, each for itself: what ended it leaves what was done, and the next call does the rest.
func TestRewrapGoesOnWhereItStopped(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		for range 206 { // 207 versions of one data key, and 3 others
			_, err := w.Rotate(ctx, ref)
			must(t, err)
		}
		_, err := w.Rotate(ctx, key.Ref{Scope: tenant})
		must(t, err)
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		faulty := faultstore.New(w.store)
		m := newManager(t, faulty, w.root)
		batches := 0
		faulty.Hook(func(call string) {
			if call == "Rewrap" {
				if batches++; batches == 2 {
					faulty.Fail(0, faultstore.Before)
				}
			}
		})
		n, err := m.Rewrap(ctx, tenant)
		fails(t, err, keyhold.ErrUnavailable)
		if n != 100 || behind(t, w.Manager) != 110 {
			t.Errorf("rewrapped %d, %d are left; want 100 and 110", n, behind(t, w.Manager))
		}
		opens(t, newManager(t, w.store, w.root), ref, ct, keyhold.AAD{}, "x")

		faulty.Hook(nil)
		before := faulty.Calls()
		n, err = m.Rewrap(ctx, tenant)
		if err != nil || n != 110 || behind(t, w.Manager) != 0 {
			t.Errorf("once more: rewrapped %d, %v, %d are left; want 110 and none", n, err, behind(t, w.Manager))
		}
		// No query for a version.
		if got := faulty.Log()[before:]; !slices.Equal(got, []string{"Scope", "Rewrap", "Rewrap", "Scope"}) {
			t.Errorf("once more: %v", got)
		}
	})
}

// behind is how many versions of the tenant's are not under the head of its root key.
func behind(t *testing.T, m *keyhold.Manager) (n int) {
	t.Helper()
	keys, err := m.Keys(t.Context(), tenant)
	must(t, err)
	for _, k := range keys {
		for _, v := range k.Versions {
			if v.Behind {
				n++
			}
		}
	}
	return n
}

// rememberingRoot keeps the slices that it was given to seal, and those that it returned opened.
type rememberingRoot struct {
	wrapping.Wrapper
	seen [][]byte
}

func (r *rememberingRoot) Encrypt(ctx context.Context, pt []byte, o ...wrapping.Option) (*wrapping.BlobInfo, error) {
	r.seen = append(r.seen, pt)
	return r.Wrapper.Encrypt(ctx, pt, o...)
}

func (r *rememberingRoot) Decrypt(ctx context.Context, in *wrapping.BlobInfo, o ...wrapping.Option) ([]byte, error) {
	pt, err := r.Wrapper.Decrypt(ctx, in, o...)
	r.seen = append(r.seen, pt)
	return pt, err
}

// The bytes that the installation key travels in between keyhold and the external root are overwritten before New
// returns, however it ends.
func TestWhatTheRootOpensIsCleared(t *testing.T) {
	s := memstore.New()
	root := &rememberingRoot{Wrapper: newRoot(t)}
	pin := newManager(t, s, root).Pin()
	newManager(t, s, root)
	cfg := config(root)
	cfg.Pins = []string{strings.Repeat("0", len(pin))}
	_, err := keyhold.New(t.Context(), s, cfg)
	fails(t, err, keyhold.ErrPin)
	s.Edit(func(d *memstore.Data) { d.Installation.Seq++ })
	_, err = keyhold.New(t.Context(), s, config(root))
	integrity(t, err)
	if len(root.seen) != 6 {
		t.Fatalf("the root was called %d times, want 6", len(root.seen))
	}
	for i, b := range root.seen {
		if len(b) != 65 || !bytes.Equal(b, make([]byte, 65)) {
			t.Errorf("call %d: %d bytes are left, and not all of them overwritten", i+1, len(b))
		}
	}
}

// Which external root an installation is under is a question for SQL, whose answer is the root's own name of its key;
// and so is whether any key is still wrapped under an installation key that no root seals. The answer cannot be changed
// without the process noticing.
func TestTheDatabaseSaysWhichRootItIsUnder(t *testing.T) {
	for name, kind := range stores {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, root := kind.open(t), newRoot(t)
			m := newManager(t, s, root)
			must(t, m.CreateScope(ctx, tenant))
			wrapperType, err := root.Type(ctx)
			must(t, err)
			id, err := root.KeyId(ctx)
			must(t, err)
			info, err := m.Installation(ctx)
			if err != nil || len(info.Roots) != 1 || info.Roots[0].KeyID != id || !info.Roots[0].Active {
				t.Errorf("%+v, %v; want one root, %s", info.Roots, err, id)
			}
			renamed := "update kms_root_slot set wrapper_key_id = 'khr_another'"
			if mem, ok := s.(*memstore.Store); ok {
				mem.Edit(func(d *memstore.Data) { d.Installation.Slots[0].WrapperKeyID = "khr_another" })
			} else {
				if got, want := asked(t, s, "select wrapper_type || ' ' || wrapper_key_id from kms_root_slot where state = 2"),
					string(wrapperType)+" "+id; got != want {
					t.Errorf("the database says %s, the root %s", got, want)
				}
				if got := asked(t, s, `select count(*) || '' from kms_root_key_version
					where ik_kid not in (select ik_kid from kms_root_slot where state = 2)`); got != "0" {
					t.Errorf("%s root key versions are under no root", got)
				}
				if err := tryExec(t, s, renamed); err == nil || !strings.Contains(err.Error(), "kms_root_slot_immutable") {
					t.Errorf("%s: %v; want it refused", renamed, err)
				}
				on := ""
				if name == "postgres" {
					on = " on kms_root_slot"
				}
				must(t, tryExec(t, s, "drop trigger kms_root_slot_immutable"+on))
				must(t, tryExec(t, s, renamed))
			}
			_, err = keyhold.New(ctx, s, config(root))
			integrity(t, err)
			_, err = m.Installation(ctx)
			integrity(t, err)
			findings, err := m.Check(ctx)
			if err != nil || !slices.ContainsFunc(findings, func(f store.Finding) bool { return strings.Contains(f.String(), "root") }) {
				t.Errorf("check: %v, %v", findings, err)
			}
		})
	}
}
