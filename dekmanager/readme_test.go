package dekmanager_test

import (
	"context"
	"testing"
	"time"

	gopgdekmanager "keyhold.example/keyhold/dekmanager"
)

// What the users of go-pg-dek-manager have written by its documents runs with another import, and a MEK that has the 32
// bytes that its comments say.
func TestCallsOfTheSecondGeneration(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, db := t.Context(), w.db()
		mek := []byte("your-32-byte-master-encryption-k")
		manager, err := gopgdekmanager.NewDEKManager(db, mek,
			gopgdekmanager.WithCleanupPeriod(180*24*time.Hour),
			gopgdekmanager.WithDEKRotationPeriod(30*24*time.Hour),
		)
		must(t, err)
		defer manager.Shutdown()

		must(t, manager.RegisterKey(ctx, "user_data"))
		must(t, manager.RegisterKey(ctx, "user_data", gopgdekmanager.WithSkipCache()))

		dek, version, err := manager.GetDEK(ctx, "user_data")
		must(t, err)
		if len(dek) != 32 || version != 1 {
			t.Errorf("version %d of %d bytes, want 1 of 32", version, len(dek))
		}
		must(t, manager.RotateDEK(ctx, "user_data"))
		second, err := manager.GetDEKByVersion(ctx, "user_data", 2)
		must(t, err)
		same(t, "version 2", second, get(t, manager, "user_data", 2))

		keys, err := manager.ListKeys(ctx)
		must(t, err)
		if len(keys) != 1 || keys[0] != "user_data" {
			t.Errorf("keys %q", keys)
		}
		genFuncName, latestVersion, err := manager.GetKeyInfo(ctx, "user_data")
		must(t, err)
		if genFuncName != "aes256-random" || latestVersion != 2 {
			t.Errorf("made by %q, version %d", genFuncName, latestVersion)
		}
	})
}

// The first generation had neither contexts nor registration.
func TestCallsOfTheFirstGeneration(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx, db := t.Context(), w.db()
		mek := []byte("your-32-byte-master-encryption-k")
		manager, err := gopgdekmanager.NewDEKManager(db, mek,
			gopgdekmanager.WithCleanupPeriod(180*24*time.Hour),
			gopgdekmanager.WithDEKRotationPeriod(30*24*time.Hour),
		)
		must(t, err)
		defer manager.Shutdown()

		dek, version, err := manager.GetDEK(ctx, "user_data")
		must(t, err)
		if len(dek) != 32 || version != 1 {
			t.Errorf("version %d of %d bytes, want 1 of 32", version, len(dek))
		}
		must(t, manager.RotateDEK(ctx, "user_data"))
		get(t, manager, "user_data", 2)

		// Asked for by their rotation first, names come into being as well.
		must(t, manager.RotateDEK(ctx, "other_data"))
		get(t, manager, "other_data", 1)
	})
}

// All options, and both accessors.
func TestEveryOptionIsThere(t *testing.T) {
	w := newWorld(t, "postgres")
	manager, err := gopgdekmanager.NewDEKManager(w.db(), mek,
		gopgdekmanager.WithSchemaName("test_schema"),
		gopgdekmanager.WithTablePrefix("test_prefix"),
		gopgdekmanager.WithCleanupPeriod(time.Second),
		gopgdekmanager.WithDEKRotationPeriod(12*time.Hour),
		gopgdekmanager.WithTransitionCheckPeriod(time.Second),
		gopgdekmanager.WithLockLeaseDuration(3*time.Hour),
		gopgdekmanager.WithOldMEK(newMEK),
		gopgdekmanager.WithMaxCacheSize(10),
		gopgdekmanager.WithCacheExpiration(time.Minute),
		gopgdekmanager.WithDriverName("pgx"),
		gopgdekmanager.WithLogger(&logs{}),
		gopgdekmanager.WithFunction("custom", func(context.Context) ([]byte, error) { return make([]byte, 64), nil }),
		gopgdekmanager.WithDefaultGenFuncName("aes192-random"),
		gopgdekmanager.WithMaxKeyFuncCache(5),
		gopgdekmanager.WithScope("names"),
	)
	must(t, err)
	defer manager.Shutdown()
	if manager.SchemaName() != "test_schema" || manager.TablePrefix() != "test_prefix" {
		t.Errorf("schema %q, prefix %q", manager.SchemaName(), manager.TablePrefix())
	}
	if dek := get(t, manager, "x", 1); len(dek) != 24 {
		t.Errorf("%d bytes, want 24", len(dek))
	}
	must(t, manager.RegisterKeyWithFunction(t.Context(), "y", "custom"))
	if dek := get(t, manager, "y", 1); len(dek) != 64 {
		t.Errorf("%d bytes, want 64", len(dek))
	}
	if n := w.count("select count(*) from test_schema.test_prefix_root_key where scope_id = 'names'"); n != 1 {
		t.Errorf("%d scopes of the given name", n)
	}
}
