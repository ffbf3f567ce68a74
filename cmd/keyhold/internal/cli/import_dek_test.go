package cli

import (
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/dekimport"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/memstore"
)

// Of two imports at once, one registers a name.
func TestImportOfANameSaysWhetherItRegisteredIt(t *testing.T) {
	root, err := localroot.FromBytes(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	m, err := keyhold.New(t.Context(), memstore.New(), keyhold.Config{Root: root, Initialize: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	i, name := dekImport{scope: "s"}, dekimport.Key{Name: "soon", Generator: "aes128-random"}
	if err := m.CreateScope(t.Context(), i.scope); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if did, err := i.bring(t.Context(), m, &name); err != nil || did != want {
			t.Errorf("it registered it: %v, %v, want %v", did, err, want)
		}
	}
}
