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

// A process that starts warms the keys of the tenants that it is going to serve, and serves the others anyway.
func ExampleManager_Warm() {
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
	keys, err := keyhold.New(ctx, memstore.New(), keyhold.Config{
		Root: root, Purposes: []keyhold.Purpose{"sessions", "client-secrets"}, Initialize: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = keys.Close() }()
	for _, scope := range []keyhold.Scope{"org_42", "org_43"} {
		if err := keys.CreateScope(ctx, scope); err != nil {
			fmt.Println(err)
		}
	}

	n, err := keys.Warm(ctx, "org_42", "org_43", "org_44")
	fmt.Println(n, "keys are ready")
	if err != nil {
		fmt.Println("but:", err)
	}
	// Output:
	// 4 keys are ready
	// but: scope "org_44": not found
}
