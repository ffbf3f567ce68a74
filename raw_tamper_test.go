package keyhold_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// byHand runs SQL past every rule of the database, as somebody may who owns the tables.
func byHand(t testing.TB, s store.Store, text string) {
	t.Helper()
	if lite, ok := s.(*sqlitestore.Store); ok {
		rows, err := lite.DB().QueryContext(t.Context(),
			"select name from sqlite_master where type = 'trigger' and tbl_name in ('kms_data_key_name', 'kms_data_key')")
		must(t, err)
		var drop string
		for rows.Next() {
			var name string
			must(t, rows.Scan(&name))
			drop += "drop trigger " + name + ";"
		}
		must(t, rows.Err())
		must(t, rows.Close())
		must(t, tryExec(t, s, drop+"pragma foreign_keys = off;"+text+";pragma foreign_keys = on"))
		return
	}
	for _, table := range []string{"kms_data_key_name", "kms_data_key"} {
		must(t, tryExec(t, s, "alter table "+table+" disable trigger all"))
	}
	must(t, tryExec(t, s, text))
}

// eachSQL is each for the databases that take SQL.
func eachSQL(t *testing.T, f func(t *testing.T, w world)) {
	t.Helper()
	for name, kind := range stores {
		if name == "memstore" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, root := kind.open(t), newRoot(t)
			w := world{kind, s, root, newManager(t, s, root)}
			must(t, w.CreateScope(t.Context(), tenant))
			must(t, w.CreateScope(t.Context(), "other"))
			f(t, w)
		})
	}
}

// rawOperations are all that read what is known of a name.
func rawOperations(t *testing.T, m *keyhold.Manager, r key.Ref) map[string]func() error {
	t.Helper()
	ctx := t.Context()
	return map[string]func() error{
		"register": func() error { return m.RegisterRaw(ctx, r, "") },
		"make":     func() error { _, err := m.MakeRaw(ctx, r, keyhold.RawKey{}); return err },
		"import":   func() error { _, err := m.ImportRaw(ctx, r, keyhold.RawKey{}, importedRaw()); return err },
		"info":     func() error { _, err := m.RawInfo(ctx, r); return err },
		"remove":   func() error { return m.RemoveRaw(ctx, r) },
	}
}

// literal is that of so many bytes.
func literal(w world, n int) string {
	digits := fmt.Sprintf("%0*d", 2*n, 7)
	if _, ok := w.store.(*sqlitestore.Store); ok {
		return "x'" + digits + "'"
	}
	return `'\x` + digits + `'`
}

// No column of what is known of a name can be changed in a way that is accepted, nor is a row another name's.
func TestChangedNamesAreRefused(t *testing.T) {
	eachSQL(t, func(t *testing.T, w world) {
		ctx := t.Context()
		other, err := w.store.Scope(ctx, "other")
		must(t, err)
		columns := map[string]string{
			"seq": "seq + 1", "generator": "'aes128-random'", "last_version": "last_version + 1", "removed": "1 - removed",
			"ik_kid": literal(w, 16), "mac": literal(w, 32), "purpose": "purpose || '-moved'",
			"root_key_id": "'" + string(other.Root.ID) + "'",
		}
		for column, value := range columns {
			for _, state := range []string{"registered", "removed"} {
				r := key.Ref{Scope: tenant, Purpose: key.Purpose(state + "-" + column)}
				makes(t, w.Manager, r, keyhold.RawKey{})
				must(t, w.RemoveRaw(ctx, r))
				if state == "registered" {
					must(t, w.RegisterRaw(ctx, r, ""))
				}
				byHand(t, w.store, fmt.Sprintf("update kms_data_key_name set %s = %s where purpose = '%s'", column, value, r.Purpose))
				switch column {
				case "purpose":
					r.Purpose += "-moved"
				case "root_key_id":
					r.Scope = "other"
				}
				for what, do := range rawOperations(t, w.Manager, r) {
					if err := do(); !isIntegrity(err) {
						t.Errorf("%s of a %s name: %s: got %v, want an IntegrityError", column, state, what, err)
					}
				}
				made := "select cast(count(*) as text) from kms_data_key where purpose = '" + string(r.Purpose) + "'"
				if got := asked(t, w.store, made); got != "0" {
					t.Errorf("%s of a %s name: %s keys were made", column, state, got)
				}
			}
		}
		fresh := bareManager(t, w)
		findings, err := fresh.Check(ctx)
		must(t, err)
		if len(findings) < 2*len(columns) {
			t.Errorf("check found %d, want one for each of %d: %v", len(findings), 2*len(columns), findings)
		}
	})
}

func isIntegrity(err error) bool {
	_, ok := errors.AsType[*keyhold.IntegrityError](err)
	return ok
}

// What is known of a name beside its key is checked before the key is removed; the key itself goes on.
func TestAChangedNameOfAKeyThatIsThere(t *testing.T) {
	eachSQL(t, func(t *testing.T, w world) {
		ctx := t.Context()
		must(t, w.RegisterRaw(ctx, named, ""))
		makes(t, w.Manager, named, keyhold.RawKey{})
		want, _ := rawHead(t, w.Manager, named)
		byHand(t, w.store, "update kms_data_key_name set generator = 'x', seq = seq + 1")
		for range 2 {
			if err := w.RemoveRaw(ctx, named); !isIntegrity(err) {
				t.Errorf("remove: got %v, want an IntegrityError", err)
			}
		}
		if b, err := bareManager(t, w).RawVersion(ctx, named, 1); err != nil || !bytes.Equal(b, want) {
			t.Errorf("the key is not what it was: %v", err)
		}
		findings, err := w.Check(ctx)
		if err != nil || len(findings) == 0 {
			t.Errorf("check found %v, %v", findings, err)
		}
	})
}

// The generator of a key is a part of its manifest.
func TestAChangedGeneratorIsRefused(t *testing.T) {
	for name, value := range map[string]string{"changed": "'aes192-random'", "dropped": "''", "another process's": "'theirs'"} {
		eachSQL(t, func(t *testing.T, w world) {
			ctx := t.Context()
			makes(t, w.Manager, named, keyhold.RawKey{Generator: "aes128-random"})
			byHand(t, w.store, "update kms_data_key set generator = "+value+" where purpose = '"+string(named.Purpose)+"'")
			fresh := bareManager(t, w)
			operations := rawOperations(t, fresh, named)
			operations["raw"] = func() error { _, _, err := fresh.Raw(ctx, named); return err }
			operations["version"] = func() error { _, err := fresh.RawVersion(ctx, named, 1); return err }
			operations["rotate"] = func() error { _, err := fresh.Rotate(ctx, named); return err }
			for what, do := range operations {
				if err := do(); !isIntegrity(err) {
					t.Errorf("%s: %s: got %v, want an IntegrityError", name, what, err)
				}
			}
			findings, err := fresh.Check(ctx)
			if err != nil || len(findings) == 0 {
				t.Errorf("check found %v, %v", findings, err)
			}
		})
	}
}

// A key for messages is not made one of raw bytes by its column, nor does it give any.
func TestOnlyRawKeysAreGivenOut(t *testing.T) {
	e := newEstate(t)
	r := key.Ref{Scope: "one", Purpose: "a"}
	m := e.open(t, false)
	defer m.Close()
	_, _, err := m.Raw(t.Context(), r)
	fails(t, err, keyhold.ErrPurpose)
	_, err = m.RawVersion(t.Context(), r, 1)
	fails(t, err, keyhold.ErrPurpose)
	export := func(m *keyhold.Manager, id key.ID) error {
		_, _, _, err := m.ExportRaw(t.Context(), id)
		return err
	}
	for _, id := range ids(t, m, r) {
		fails(t, export(m, id), keyhold.ErrPurpose)
	}
	if export(m, e.rootVersion(t, "one", 0)) == nil {
		t.Error("a root key was given out")
	}
	e.store.Edit(func(d *memstore.Data) {
		for i := range d.Key(r).Versions {
			d.Key(r).Versions[i].Alg = key.Raw
		}
	})
	fresh := e.open(t, false)
	defer fresh.Close()
	_, _, err = fresh.Raw(t.Context(), r)
	integrity(t, err)
	_, err = fresh.RawVersion(t.Context(), r, 1)
	integrity(t, err)
	fam, err := e.store.Key(t.Context(), r)
	must(t, err)
	integrity(t, export(fresh, fam.Data[0].Versions[0].ID))
}
