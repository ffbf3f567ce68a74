package keyhold_test

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

func TestAShreddedScopeIsGone(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.CreateScope(ctx, "other"))
		other := key.Ref{Scope: "other", Purpose: secrets}
		theirs := sealed(t, w.Manager, other, "x", keyhold.AAD{})
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		_, err := w.Rotate(ctx, ref)
		must(t, err)
		done, err := w.Shred(ctx, tenant)
		if err != nil || done.Versions != 6 {
			t.Errorf("%+v, %v; want 6 versions", done, err)
		}
		_, err = w.Open(ctx, ref, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrNotFound)
		_, _, err = w.OpenAny(ctx, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
		_, err = w.Shred(ctx, tenant)
		fails(t, err, keyhold.ErrNotFound)
		opens(t, w.Manager, other, theirs, keyhold.AAD{}, "x")

		// A scope of that name has other keys.
		must(t, w.CreateScope(ctx, tenant))
		_, err = w.Open(ctx, ref, ct, keyhold.AAD{})
		fails(t, err, keyhold.ErrOpen)
	})
}

func TestAScopeInUseIsNotShredded(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		used := ids(t, w.Manager, ref)[0]
		w.kind.refer(t, w.store, used)
		for name, shred := range map[string]func() error{
			"by itself": func() error { _, err := w.Shred(t.Context(), tenant); return err },
			"in a transaction": func() error {
				tx, commit, _ := w.kind.begin(t, w.store)
				_, err := w.ShredTx(t.Context(), tx, tenant)
				return errors.Join(err, commit())
			},
		} {
			err := shred()
			if use, ok := errors.AsType[*keyhold.InUseError](err); !ok || use.ID != used {
				t.Errorf("%s: %v; want an InUseError about %s", name, err, used)
			}
		}
		sealed(t, w.Manager, ref, "x", keyhold.AAD{})
	})
}

func TestShreddingIsUndoneByARollback(t *testing.T) {
	each(t, func(t *testing.T, w world) {
		ct := sealed(t, w.Manager, ref, "x", keyhold.AAD{})
		tx, _, rollback := w.kind.begin(t, w.store)
		done, err := w.ShredTx(t.Context(), tx, tenant)
		if err != nil || done.Versions != 5 {
			t.Errorf("%+v, %v", done, err)
		}
		must(t, rollback())
		opens(t, w.Manager, ref, ct, keyhold.AAD{}, "x")
	})
}

func TestShreddingSurvivesEveryFault(t *testing.T) {
	for _, mode := range []faultstore.Mode{faultstore.Before, faultstore.After} {
		for n := 0; ; n++ {
			faults := faultstore.New(memstore.New())
			m := newManager(t, faults, newRoot(t))
			must(t, m.CreateScope(t.Context(), tenant))
			faults.Fail(n, mode)
			_, err := m.Shred(t.Context(), tenant)
			if !faults.Fired() {
				must(t, err)
				if n == 0 {
					t.Error("nothing was tested")
				}
				break
			}
			if _, err = m.Shred(t.Context(), tenant); err != nil && !errors.Is(err, keyhold.ErrNotFound) {
				t.Errorf("mode %v, call %d: %v", mode, n, err)
			}
			_, err = m.Keys(t.Context(), tenant)
			fails(t, err, keyhold.ErrNotFound)
		}
	}
}

// On a connection of the application's that does not overwrite what it deletes, the wrapped keys stay in the file,
// which is told.
func TestShreddingSaysWhatSQLiteDoesNotOverwrite(t *testing.T) {
	for name, remains := range map[string]bool{"off": true, "fast": true, "on": false} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			path := filepath.Join(t.TempDir(), "keys.db")
			db, err := sql.Open("sqlite", "file:"+path+"?_pragma=foreign_keys(1)&_txlock=immediate&_pragma=secure_delete("+name+")")
			must(t, err)
			t.Cleanup(func() { must(t, db.Close()) })
			s, err := sqlitestore.New(db)
			must(t, err)
			m := newManager(t, s, newRoot(t))
			must(t, m.CreateScope(ctx, tenant))
			done, err := m.Shred(ctx, tenant)
			must(t, err)
			must(t, m.CreateScope(ctx, tenant))
			tx, err := db.BeginTx(ctx, nil)
			must(t, err)
			inTx, err := m.ShredTx(ctx, s.InTx(tx), tenant)
			must(t, errors.Join(err, tx.Rollback()))
			for _, done := range []keyhold.Shredded{done, inTx} {
				if told := strings.Contains(strings.Join(done.Remains, "; "), "free pages"); told != remains {
					t.Errorf("remains %q", done.Remains)
				}
			}
		})
	}
}

// Nothing of the wrapped keys is in SQLite's files afterwards; a reader that holds up the log is told.
func TestShreddingEmptiesTheLogOfSQLite(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "keys.db")
	// Emptying the log waits for the reader as long as busy_timeout says, which no store of its own makes this short.
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(wal)&_pragma=foreign_keys(1)&_txlock=immediate&"+
		"_pragma=secure_delete(1)&_pragma=busy_timeout(500)")
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	s, err := sqlitestore.New(db)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	m := newManager(t, s, newRoot(t))
	inFiles := func(blob []byte) (found bool) {
		for _, name := range []string{path, path + "-wal"} {
			content, err := os.ReadFile(name)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			found = found || bytes.Contains(content, blob)
		}
		return found
	}
	for _, busy := range []bool{false, true} {
		must(t, m.CreateScope(ctx, tenant))
		fam, err := s.Key(ctx, ref)
		must(t, err)
		blob := fam.Data[0].Versions[0].Blob
		if !inFiles(blob) {
			t.Fatal("the wrapped key is in none of the files: the test tests nothing")
		}
		reader, err := s.DB().Conn(ctx)
		must(t, err)
		if busy {
			_, err = reader.ExecContext(ctx, "begin deferred")
			must(t, err)
			n := 0
			must(t, reader.QueryRowContext(ctx, "select count(*) from kms_data_key").Scan(&n))
		}
		done, err := m.Shred(ctx, tenant)
		must(t, err)
		told := strings.Contains(strings.Join(done.Remains, "; "), "write-ahead log")
		if told != busy || inFiles(blob) != busy {
			t.Errorf("busy %v: remains %q, in the files: %v", busy, done.Remains, inFiles(blob))
		}
		if busy {
			_, err = reader.ExecContext(ctx, "rollback")
			must(t, err)
		}
		must(t, reader.Close())
	}
}
