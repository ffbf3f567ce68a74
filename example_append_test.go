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

// inMemory is a Manager whose keys are lost when it is closed.
func inMemory(ctx context.Context) (*keyhold.Manager, error) {
	dir, err := os.MkdirTemp("", "keyhold")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := localroot.Generate(filepath.Join(dir, "root.key"))
	if err != nil {
		return nil, err
	}
	return keyhold.New(ctx, memstore.New(), keyhold.Config{
		Root: root, Purposes: []keyhold.Purpose{"client-secrets"}, Initialize: true,
	})
}

// An installation gets the scopes of all its tenants at once; what is there already is left as it is.
func ExampleManager_CreateScopes() {
	ctx := context.Background()
	keys, err := inMemory(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = keys.Close() }()

	n, err := keys.CreateScopes(ctx, []keyhold.Scope{"org_42", "org_43", "org_42"})
	fmt.Println(n, err)
	n, err = keys.CreateScopes(ctx, []keyhold.Scope{"org_43", "org_44"})
	fmt.Println(n, err)
	// Output:
	// 2 <nil>
	// 1 <nil>
}

// One buffer does for many messages.
func ExampleManager_AppendSeal() {
	ctx := context.Background()
	keys, err := inMemory(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = keys.Close() }()
	ref := keyhold.Ref{Scope: "org_42", Purpose: "client-secrets"}
	if _, err := keys.CreateScopes(ctx, []keyhold.Scope{ref.Scope}); err != nil {
		fmt.Println(err)
	}

	var sealed, opened []byte
	for row, secret := range []string{"s3cret", "pa55word"} {
		aad := keyhold.Context("oidc_client", fmt.Sprint(row))
		if sealed, err = keys.AppendSeal(ctx, sealed[:0], ref, []byte(secret), aad); err != nil {
			fmt.Println(err)
		}
		if opened, err = keys.AppendOpen(ctx, opened[:0], ref, sealed, aad); err != nil {
			fmt.Println(err)
		}
		fmt.Printf("%s, in %d bytes\n", opened, len(sealed))
	}
	// Output:
	// s3cret, in 64 bytes
	// pa55word, in 66 bytes
}

// AppendOpen can open in place: the plaintext then overwrites the ciphertext.
func ExampleManager_AppendOpen() {
	ctx := context.Background()
	keys, err := inMemory(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = keys.Close() }()
	ref := keyhold.Ref{Scope: "org_42", Purpose: "client-secrets"}
	if err := keys.CreateScope(ctx, ref.Scope); err != nil {
		fmt.Println(err)
	}
	sealed, err := keys.Seal(ctx, ref, []byte("s3cret"), keyhold.AAD{})
	if err != nil {
		fmt.Println(err)
	}

	plaintext, err := keys.AppendOpen(ctx, sealed[:0], ref, sealed, keyhold.AAD{})
	fmt.Printf("%s %v\n", plaintext, err)
	// Output:
	// s3cret <nil>
}
