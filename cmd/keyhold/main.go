// Command keyhold manages the encryption keys of an application in the application's own database.
//
// "keyhold help" describes the commands, what they print where, and their exit codes.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"keyhold.example/keyhold/cmd/keyhold/internal/cli"
)

func main() {
	// A reader that went away is then an error of the write, and exit code 1, instead of the process's sudden end.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills
	os.Exit(cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
