package keyhold_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/memstore"
)

func ExampleManager_Raw() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "keyhold")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := localroot.Generate(filepath.Join(dir, "root.key"))
	if err != nil {
		log.Fatal(err)
	}
	keys, err := keyhold.New(ctx, memstore.New(), keyhold.Config{Root: root, Initialize: true})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = keys.Close() }()
	if err := onlyTheBytes(ctx, keys); err != nil {
		fmt.Println(err)
	}
	// Output:
	// version 1: 32 bytes
	// the same again: true
}

func onlyTheBytes(ctx context.Context, keys *keyhold.Manager) error {
	// README: begin
	if err := keys.CreateScope(ctx, "names"); err != nil {
		return err
	}
	ref := keyhold.Ref{Scope: "names", Purpose: "user_data"}
	if _, err := keys.MakeRaw(ctx, ref, keyhold.RawKey{}); err != nil { // 32 random bytes, unless it is there
		return err
	}
	material, version, err := keys.Raw(ctx, ref) // a copy, from memory; keep the version beside what it seals
	if err != nil {
		return err
	}
	old, err := keys.RawVersion(ctx, ref, version)
	if err != nil {
		return err
	}
	// README: end
	fmt.Printf("version %d: %d bytes\n", version, len(material))
	fmt.Println("the same again:", string(old) == string(material))
	return nil
}
