package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// rekeyed is a store with two installation keys, and a scope "a" whose keys are under the second. The maker makes more
// under the first, kid.
func rekeyed(t *testing.T) (s *Store, m *storetest.Maker, kid []byte) {
	t.Helper()
	ctx := t.Context()
	s, m = migrated(t, Config{}), storetest.NewMaker(1)
	must(t, s.Initialize(ctx, m.Installation()))
	keys := m.Scope("a", "one")
	_, err := s.Create(ctx, m.Inst(), keys)
	must(t, err)
	in := installationOf(t, s)
	must(t, s.ChangeRoots(ctx, m.AddKey(&in)))
	in = installationOf(t, s)
	n, err := s.Rekey(ctx, m.Inst(), []store.Rekey{m.Rekey(&keys[0], in.IKKID), m.Rekey(&keys[1], in.IKKID)}, nil)
	must(t, err)
	if n != len(keys) {
		t.Fatalf("%d keys of %d are under the new installation key", n, len(keys))
	}
	return s, m, m.IKKID()
}

func installationOf(t *testing.T, s *Store) store.Installation {
	t.Helper()
	in, err := s.Installation(t.Context())
	must(t, err)
	return in
}

// An installation key that a transaction which is not over puts a key under does not go, unless that is rolled back.
func TestAnInstallationKeyWaitsForWhatIsPutUnderIt(t *testing.T) {
	for what, end := range map[string]func(pgx.Tx, context.Context) error{
		"committed": pgx.Tx.Commit, "rolled back": pgx.Tx.Rollback,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, m, kid := rekeyed(t)
			tx, err := s.Pool().Begin(ctx)
			must(t, err)
			defer func() { _ = tx.Rollback(ctx) }() // an error says that it is over
			_, err = s.InTx(tx).Create(ctx, m.Inst(), m.Scope("b"))
			must(t, err)
			before := installationOf(t, s)
			dropped := make(chan error, 1)
			go func() { dropped <- s.ChangeRoots(ctx, m.DropKey(&before, kid)) }()
			untilOneWaits(t, s, dropped)
			must(t, end(tx, ctx))
			err = <-dropped
			after := installationOf(t, s)
			switch {
			case what == "rolled back" && (err != nil || len(after.Keys) != 1):
				t.Errorf("%v, and %d installation keys; want one, and no error", err, len(after.Keys))
			case what == "committed" && (!errors.Is(err, store.ErrConflict) || !cmp.Equal(before, after)):
				t.Errorf("%v, want %v and nothing changed (-before +after):\n%s", err, store.ErrConflict, cmp.Diff(before, after))
			}
			storetest.Check(t, s)
		})
	}
}

// Whoever writes under an installation key that is about to go waits, and is told to read again.
func TestWhatIsPutUnderAnInstallationKeyWaitsForItsEnd(t *testing.T) {
	for name, write := range map[string]func(s *Store, m *storetest.Maker, root, data *store.Key) error{
		"Create": func(s *Store, m *storetest.Maker, _, _ *store.Key) error {
			_, err := s.Create(t.Context(), m.Inst(), m.Scope("b", "one"))
			return err
		},
		"Create a data key": func(s *Store, m *storetest.Maker, root, _ *store.Key) error {
			_, err := s.Create(t.Context(), m.Inst(), []store.Key{m.DataKey(root, "two", key.Message)})
			return err
		},
		"Update": func(s *Store, m *storetest.Maker, root, data *store.Key) error {
			return s.Update(t.Context(), m.Add(data, root))
		},
		"Update by a version": func(s *Store, m *storetest.Maker, root, _ *store.Key) error {
			u := m.Add(root, nil)
			u.Manifest.IKKID = root.IKKID
			return s.Update(t.Context(), u)
		},
		"Rewrap": func(s *Store, m *storetest.Maker, root, _ *store.Key) error {
			_, err := s.Rewrap(t.Context(), m.Inst(), []store.Rewrap{m.Rewrap(&root.Versions[0], "")}, nil)
			return err
		},
		"Rekey": func(s *Store, m *storetest.Maker, root, data *store.Key) error {
			_, err := s.Rekey(t.Context(), m.Inst(), []store.Rekey{m.Rekey(data, data.IKKID), m.Rekey(root, m.IKKID())}, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			s, m, _ := rekeyed(t)
			f, err := s.Scope(ctx, "a")
			must(t, err)
			tx, err := s.Pool().Begin(ctx)
			must(t, err)
			defer func() { _ = tx.Rollback(ctx) }() // an error says that it was committed
			_, err = tx.Exec(ctx, "delete from kms_installation_key where previous is null")
			must(t, err)
			written := make(chan error, 1)
			go func() { written <- write(s, m, &f.Root, &f.Data[0]) }()
			untilOneWaits(t, s, written)
			// But for the installation key that goes.
			rows := func() []string {
				first := func(row string) bool { return strings.Contains(row, `"previous": null`) }
				return slices.DeleteFunc(dump(t, s), first)
			}
			before := rows()
			must(t, tx.Commit(ctx))
			if err := <-written; !errors.Is(err, store.ErrConflict) {
				t.Errorf("%v, want %v", err, store.ErrConflict)
			}
			if d := cmp.Diff(before, rows()); d != "" {
				t.Errorf("something was written (-before +after):\n%s", d)
			}
		})
	}
}

// Whichever of a scope's rows it is that names another key, it is found, and no table is read as a whole.
func TestScopesAreNotUnderAKeyOverManyPages(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := migrated(t, Config{})
	mustExec(t, s, base+insert("installation_key", nextKeyRow)+`
		insert into {prefix}_root_key (private_id, scope_id, seq, head_version, rotate_every, max_messages, ik_kid, mac)
		select 'krk_x' || n, 'x' || n, 1, 1, 0, 0, `+bytesOf(16)+", "+bytesOf(32)+` from generate_series(10000, 12000) n;
		insert into {prefix}_root_key_version (private_id, root_key_id, version, state, alg, commitment, key, ik_kid, created)
		select 'krkv_x' || n, 'krk_x' || n, 1, 2, 1, `+bytesOf(32)+", "+bytesOf(32)+", "+bytesOf(16)+`, 1 from generate_series(10000, 12000) n;
		insert into {prefix}_data_key (private_id, root_key_id, purpose, seq, head_version, rotate_every, max_messages, ik_kid, mac)
		select 'kdk_x' || n, 'krk_x' || n, 'x', 1, 1, 0, 0, `+bytesOf(16)+", "+bytesOf(32)+` from generate_series(10000, 12000) n;
		insert into {prefix}_data_key_version (private_id, data_key_id, root_key_version_id, version, state, alg, commitment, key, created)
		select 'kdkv_x' || n, 'kdk_x' || n, 'krkv_x' || n, 1, 2, 1, `+bytesOf(32)+", "+bytesOf(32)+", 1 from generate_series(10000, 12000) n")
	list := func() (pages int, found []key.Scope) {
		for after := key.ID(""); pages == 0 || after != ""; pages++ {
			page, next, err := s.NotUnder(ctx, [16]byte([]byte(strings.Repeat("\x5a", 16))), after, 10)
			must(t, err)
			found, after = append(found, page...), next
		}
		return pages, found
	}
	for _, c := range []struct{ change, want string }{
		{"select 1", "[]"},
		{"update {prefix}_root_key set seq = 9, ik_kid = " + zeros(16) + " where scope_id = 'b'", "[b]"},
		{"update {prefix}_root_key_version set ik_kid = " + zeros(16) + " where private_id = 'krkv_a3'", "[a b]"},
		{"update {prefix}_data_key set seq = 9, ik_kid = " + zeros(16) + " where private_id = 'kdk_x11500'", "[a b x11500]"},
	} {
		mustExec(t, s, c.change)
		if pages, found := list(); fmt.Sprint(found) != c.want || pages != 3 {
			t.Errorf("%s\n%q are not under it, on %d pages; want %s, on 3", c.change, found, pages, c.want)
		}
	}
	mustExec(t, s, "vacuum analyze")
	rows, err := s.Pool().Query(ctx, "explain "+s.tables.text[notUnderQuery], "krk_x", int64(10), []byte(strings.Repeat("\x5a", 16)))
	must(t, err)
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	must(t, err)
	if steps := strings.Join(plan, "\n"); strings.Contains(steps, "Seq Scan") || !strings.Contains(steps, "Limit") {
		t.Errorf("a table is read as a whole:\n%s", steps)
	}
}

// What the tables alone would let pass.
func TestChangesThatAreNoneAreRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, m := migrated(t, Config{}), storetest.NewMaker(1)
	must(t, s.Initialize(ctx, m.Installation()))
	keys := m.Scope("a", "one")
	_, err := s.Create(ctx, m.Inst(), keys)
	must(t, err)
	before := dump(t, s)
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: %v; want it refused", what, err)
		}
		if d := cmp.Diff(before, dump(t, s)); d != "" {
			t.Errorf("%s: something was written (-before +after):\n%s", what, d)
		}
	}
	for _, k := range keys {
		_, err := s.Rekey(ctx, m.Inst(), []store.Rekey{m.Rekey(&k, k.IKKID), m.Rekey(&k, k.IKKID)}, nil)
		refused("a key twice", err)
	}
	mustExec(t, s, "delete from {prefix}_root_key")
	before = dump(t, s)
	c := m.AddKey(new(installationOf(t, s)))
	drop := m.DropKey(new(installationOf(t, s)), m.IKKID())
	c.Drop, c.States, c.AddKey.Previous, c.AddKey.Link = drop.Drop, drop.States, nil, nil
	refused("a first installation key in the place of another", s.ChangeRoots(ctx, c))
	c.AddKey.Previous, c.AddKey.Link = m.IKKID(), m.Bytes(32)
	must(t, s.ChangeRoots(ctx, c))
}
