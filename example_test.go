package keyhold_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store/sqlitestore"
)

// The example of the README.
func Example() {
	dir, err := os.MkdirTemp("", "keyhold")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := readmeExample(context.Background(), filepath.Join(dir, "root.key"), filepath.Join(dir, "app.db")); err != nil {
		log.Fatal(err)
	}
	// Output:
	// version 2 seals now
	// s3cret
	// another tenant: ciphertext does not open here: damaged, or of another scope, purpose, context or installation
}

//nolint:wsl // as the README shows it
func readmeExample(ctx context.Context, rootFile, dbFile string) error {
	// README: begin
	root, err := localroot.Generate(rootFile) // or any go-kms-wrapping Wrapper: awskms, gcpckms, transit ...
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

	for _, tenant := range []keyhold.Scope{"org_42", "org_43"} {
		if err := keys.CreateScope(ctx, tenant); err != nil { // or CreateScopeTx, beside the insert of the tenant
			return err
		}
	}
	ref := keyhold.Ref{Scope: "org_42", Purpose: "client-secrets"}
	row := keyhold.Context("oidc_client", "secret", "7") // what the plaintext belongs to
	ciphertext, err := keys.Seal(ctx, ref, []byte("s3cret"), row)
	if err != nil {
		return err
	}
	version, err := keys.Rotate(ctx, ref) // old ciphertexts go on opening
	if err != nil {
		return err
	}
	fmt.Println("version", version, "seals now")
	plaintext, err := keys.Open(ctx, ref, ciphertext, row)
	if err != nil {
		return err
	}
	fmt.Println(string(plaintext))
	_, err = keys.Open(ctx, keyhold.Ref{Scope: "org_43", Purpose: "client-secrets"}, ciphertext, row)
	fmt.Println("another tenant:", err)
	// README: end
	return nil
}
