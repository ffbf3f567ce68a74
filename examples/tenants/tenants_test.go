package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/localroot"
)

// onBoth runs a test on each database, with tables of its own.
func onBoth(t *testing.T, f func(t *testing.T, s *tenants)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, open(t, "sqlite:"+filepath.Join(t.TempDir(), "tenants.db"))) })
	t.Run("postgres", func(t *testing.T) { f(t, open(t, keyholdtest.Postgres(t))) })
}

func open(t *testing.T, address string) *tenants {
	t.Helper()
	db, err := openDatabase(t.Context(), address)
	must(t, err)
	root, err := localroot.Generate(filepath.Join(t.TempDir(), "root.key"))
	must(t, err)
	keys, err := keyhold.New(t.Context(), db.keys, keyhold.Config{
		Root: root, Purposes: []keyhold.Purpose{purpose}, Initialize: true, Grace: -1,
	})
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(keys.Close(), db.close())) })
	return &tenants{db: db, keys: keys}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// count counts the rows of a table.
func (t *tenants) count(tb testing.TB, table string) (n int) {
	tb.Helper()
	if err := t.db.QueryRow("select count(*) from " + table).Scan(&n); err != nil {
		tb.Fatal(err)
	}
	return n
}

// sound fails the test if keyhold finds anything wrong with the keys.
func (t *tenants) sound(tb testing.TB) {
	tb.Helper()
	findings, err := t.keys.Check(context.Background())
	if err != nil || len(findings) > 0 {
		tb.Errorf("Check: %v, %v", findings, err)
	}
}

func (t *tenants) wantSecret(tb testing.TB, tenant keyhold.Scope, id, secret string) key.ID {
	tb.Helper()
	c, keyID, err := t.client(context.Background(), tenant, id)
	if err != nil || c != (credentials{id, secret}) {
		tb.Errorf("client %q of %q: %q, %v; want %q", id, tenant, c.ClientSecret, err, secret)
	}
	return keyID
}

func TestATenantIsNotDeletedWhileItsSecretsAreInUse(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		if err := s.remove(t.Context(), "acme"); !errors.Is(err, errInUse) {
			t.Errorf("delete the tenant: %v; want %v", err, errInUse)
		}
		// Nor do its keys go alone.
		if _, err := s.db.Exec("delete from kms_root_key"); !errors.Is(refused(err), errReference) {
			t.Errorf("delete its keys: %v; want a foreign key to refuse", err)
		}
		s.wantSecret(t, "acme", "web", "s3cret")
		s.sound(t)
	})
}

func TestDeletingATenantDeletesItsKeysAndLeavesTombstones(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		must(t, s.create(t.Context(), "umbrella", &credentials{"web", "0ther"}))
		_, err := s.rotate(t.Context(), "acme")
		must(t, err)
		must(t, s.removeClient(t.Context(), "acme", "web"))
		must(t, s.remove(t.Context(), "acme"))
		for table, want := range map[string]int{
			"scope": 1, "kms_root_key": 1, "kms_root_key_version": 1, "kms_data_key": 1, "kms_data_key_version": 1,
			"kms_tombstone": 3, // of acme: one version of the root key, two of the data key
		} {
			if n := s.count(t, table); n != want {
				t.Errorf("%s has %d rows; want %d", table, n, want)
			}
		}
		if _, err := s.put(t.Context(), "acme", credentials{"web", "again"}); !errors.Is(err, keyhold.ErrNotFound) {
			t.Errorf("store a secret of a tenant that was deleted: %v; want %v", err, keyhold.ErrNotFound)
		}
		s.wantSecret(t, "umbrella", "web", "0ther")
		s.sound(t)
	})
}

func TestAfterARotationOldRowsOpenAndNewOnesCarryTheNewVersion(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		_, err := s.rotate(t.Context(), "acme")
		must(t, err)
		_, err = s.put(t.Context(), "acme", credentials{"app", "n3w"})
		must(t, err)
		versions, err := s.versions(t.Context(), "acme")
		must(t, err)
		if len(versions) != 2 {
			t.Fatalf("the key has %d versions; want 2", len(versions))
		}
		if id := s.wantSecret(t, "acme", "web", "s3cret"); id != versions[0].ID {
			t.Errorf("the old row has %s; want version 1, %s", id, versions[0].ID)
		}
		if id := s.wantSecret(t, "acme", "app", "n3w"); id != versions[1].ID {
			t.Errorf("the new row has %s; want version 2, %s", id, versions[1].ID)
		}
		// Writing a row anew brings it to the new version.
		_, err = s.put(t.Context(), "acme", credentials{"web", "s3cret"})
		must(t, err)
		if id := s.wantSecret(t, "acme", "web", "s3cret"); id != versions[1].ID {
			t.Errorf("the old row, written anew, has %s; want version 2, %s", id, versions[1].ID)
		}
	})
}

func TestASecretOpensOnlyInItsPlace(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		must(t, s.create(t.Context(), "umbrella", nil))
		for tenant, id := range map[keyhold.Scope]string{"umbrella": "web", "acme": "app"} {
			_, err := s.db.Exec(`insert into oidc select $1, $2, client_secret, key_id from oidc where scope_id = 'acme' and client_id = 'web'`,
				string(tenant), id)
			must(t, err)
			if c, _, err := s.client(t.Context(), tenant, id); !errors.Is(err, keyhold.ErrOpen) || c.ClientSecret != "" {
				t.Errorf("a copy of acme's web as %s's %s: %q, %v; want %v", tenant, id, c.ClientSecret, err, keyhold.ErrOpen)
			}
		}
		s.wantSecret(t, "acme", "web", "s3cret")
	})
}

func TestARollbackLeavesNeitherTenantNorKeys(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		// The last statement of the transaction finds its table gone.
		_, err := s.db.Exec("alter table oidc rename to elsewhere")
		must(t, err)
		if err := s.create(t.Context(), "acme", &credentials{"web", "s3cret"}); err == nil || !strings.Contains(err.Error(), "oidc") {
			t.Fatalf("create: %v; want an error of the table oidc", err)
		}
		for _, table := range []string{"scope", "kms_root_key", "kms_root_key_version", "kms_data_key", "kms_data_key_version"} {
			if n := s.count(t, table); n != 0 {
				t.Errorf("%s has %d rows; want none", table, n)
			}
		}
		// Neither has the process kept them.
		if _, _, err := s.keys.SealDetached(t.Context(), ref("acme"), nil, place("web")); !errors.Is(err, keyhold.ErrNotFound) {
			t.Errorf("seal with what was rolled back: %v; want %v", err, keyhold.ErrNotFound)
		}
		_, err = s.db.Exec("alter table elsewhere rename to oidc")
		must(t, err)
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		s.wantSecret(t, "acme", "web", "s3cret")
		s.sound(t)
	})
}

func TestAKeyVersionInUseIsNotDeleted(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		used := s.wantSecret(t, "acme", "web", "s3cret")
		_, err := s.rotate(t.Context(), "acme")
		must(t, err)
		// keyhold's own rules let a disabled version go, and no other.
		_, err = s.db.Exec("update kms_data_key_version set state = 4, disabled = 1 where private_id = $1", string(used))
		must(t, err)
		destroy := func() error {
			_, err := s.db.Exec("delete from kms_data_key_version where private_id = $1", string(used))
			return err
		}
		if err := destroy(); !errors.Is(refused(err), errReference) {
			t.Errorf("delete the version of a row: %v; want the row's foreign key to refuse", err)
		}
		must(t, s.removeClient(t.Context(), "acme", "web"))
		if err := destroy(); err != nil {
			t.Errorf("delete it when the row is gone: %v", err)
		}
	})
}

func TestAKeyVersionIsDestroyedWhenNothingIsSealedWithItAnyMore(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		_, err := s.put(t.Context(), "acme", credentials{"app", "0ther"})
		must(t, err)
		old := s.wantSecret(t, "acme", "web", "s3cret")
		_, err = s.rotate(t.Context(), "acme")
		must(t, err)
		must(t, s.keys.Disable(t.Context(), old))
		refusedFor := func(rows int64) {
			t.Helper()
			err := s.keys.Destroy(t.Context(), old)
			used, ok := errors.AsType[*keyhold.InUseError](err)
			if !ok || len(used.References) != 1 || used.References[0].Table != "oidc" ||
				used.References[0].Column.Column != "key_id" || used.References[0].Rows != rows {
				t.Errorf("destroy: %v; want an InUseError of %d rows in oidc.key_id", err, rows)
			}
		}
		refusedFor(2)
		// Nothing was: enabled, it opens what it sealed.
		must(t, s.keys.Enable(t.Context(), old))
		s.wantSecret(t, "acme", "web", "s3cret")

		// One row is written anew, the other deleted.
		_, err = s.put(t.Context(), "acme", credentials{"web", "s3cret"})
		must(t, err)
		must(t, s.keys.Disable(t.Context(), old))
		refusedFor(1)
		must(t, s.removeClient(t.Context(), "acme", "app"))
		must(t, s.keys.Destroy(t.Context(), old))
		versions, err := s.versions(t.Context(), "acme")
		must(t, err)
		if len(versions) != 2 || versions[0].ID != old || versions[0].State != key.Destroyed {
			t.Errorf("the versions are %+v; want the first destroyed", versions)
		}
		if id := s.wantSecret(t, "acme", "web", "s3cret"); id != versions[1].ID {
			t.Errorf("the row has %s; want version 2, %s", id, versions[1].ID)
		}
		s.sound(t)
	})
}

func TestARenamedTenantKeepsItsSecrets(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		must(t, s.create(t.Context(), "umbrella", nil))
		if err := s.rename(t.Context(), "acme", "umbrella"); !errors.Is(err, errExists) {
			t.Errorf("to a name that is taken: %v; want %v", err, errExists)
		}
		if err := s.rename(t.Context(), "nobody", "somebody"); !errors.Is(err, keyhold.ErrNotFound) {
			t.Errorf("a tenant that is not there: %v; want %v", err, keyhold.ErrNotFound)
		}
		must(t, s.rename(t.Context(), "acme", "initech"))
		s.wantSecret(t, "initech", "web", "s3cret")
		if _, _, err := s.client(t.Context(), "acme", "web"); !errors.Is(err, keyhold.ErrNotFound) {
			t.Errorf("under the old name: %v; want %v", err, keyhold.ErrNotFound)
		}
		_, err := s.put(t.Context(), "initech", credentials{"app", "n3w"})
		must(t, err)
		s.wantSecret(t, "initech", "app", "n3w")
		s.sound(t)
	})
}

func TestATenantIsCreatedOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		const callers = 8
		errs := make(chan error, callers)
		for range callers {
			go func() { errs <- s.create(context.Background(), "acme", &credentials{"web", "s3cret"}) }()
		}
		made := 0
		for range callers {
			switch err := <-errs; {
			case err == nil:
				made++
			case !errors.Is(err, errExists):
				t.Errorf("create at the same time: %v; want nil or %v", err, errExists)
			}
		}
		if made != 1 {
			t.Errorf("%d of %d callers made the tenant; want one", made, callers)
		}
		s.wantSecret(t, "acme", "web", "s3cret")
		s.sound(t)
	})
}
