package keyhold_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sync"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/sqlitestore"
)

// The first example of the README.
func Example() {
	dir, err := os.MkdirTemp("", "keyhold")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	rootFile, dbFile := filepath.Join(dir, "root.key"), filepath.Join(dir, "app.db")
	if _, err := localroot.Generate(rootFile); err != nil {
		log.Fatal(err)
	}
	if err := sealAndOpen(context.Background(), rootFile, dbFile); err != nil {
		log.Fatal(err)
	}
	// Output:
	// opened: s3cret
}

func sealAndOpen(ctx context.Context, rootFile, dbFile string) error {
	// README: begin
	root, err := localroot.Open(rootFile) // made once, by "keyhold root keygen"; or any go-kms-wrapping Wrapper
	if err != nil {
		return err
	}
	db, err := sqlitestore.Create(dbFile)
	if err != nil {
		return err
	}
	defer db.Close()
	keys, err := keyhold.New(ctx, db, keyhold.Config{
		Root:       root,
		Purposes:   []keyhold.Purpose{"client-secrets", "sessions"},
		Initialize: true, // tables, installation key, first slot, where there is none yet
	})
	if err != nil {
		return err
	}
	defer keys.Close()
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = keys.Run(ctx) })  // rotates what is due, until ctx ends
	defer func() { stop(); running.Wait() }() // before Close

	if err := keys.CreateScope(ctx, "org_42"); err != nil {
		return err
	}
	ref := keyhold.Ref{Scope: "org_42", Purpose: "client-secrets"}
	row := keyhold.Context("oidc_client", "secret", "7") // what the plaintext belongs to
	ciphertext, err := keys.Seal(ctx, ref, []byte("s3cret"), row)
	if err != nil {
		return err
	}
	plaintext, err := keys.Open(ctx, ref, ciphertext, row) // whatever version sealed it
	fmt.Printf("opened: %s\n", plaintext)
	// README: end
	return err
}
