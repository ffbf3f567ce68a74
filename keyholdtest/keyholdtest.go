// Package keyholdtest gives a test what it needs of keyhold and its databases, all its own.
package keyholdtest

import (
	"path/filepath"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/memstore"
)

// New returns a manager over an empty installation in memory, with an external root of its own, for tests of code
// that takes one. Each scope that it creates gets data keys for messages for the given purposes; there are no scopes
// yet. It is closed when the test is over, and does nothing that real keys do not do: only the store is not a
// database.
func New(t testing.TB, purposes ...key.Purpose) *keyhold.Manager {
	t.Helper()
	root, err := localroot.Generate(filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := keyhold.New(t.Context(), memstore.New(), keyhold.Config{Root: root, Purposes: purposes, Initialize: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}
