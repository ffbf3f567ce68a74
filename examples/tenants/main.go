// Command tenants is a small web service that keeps the OIDC client secrets of its tenants, sealed with keys of keyhold
// in the same database.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/localroot"
)

// shutdownTime is how long requests under way may take when the service ends.
const shutdownTime = 15 * time.Second

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address to listen on")
	db := flag.String("db", "sqlite:tenants.db", "database: sqlite:PATH or postgres://...")
	root := flag.String("root", "tenants.key", "file of the external root; it is made where there is no installation yet")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *listen, *db, *root, log)
	stop()
	if err != nil {
		log.Error("tenants ends", "error", err)
		os.Exit(1)
	}
}

// run is the service, from opening its database to the end of the last request after ctx has ended.
func run(ctx context.Context, listen, address, rootFile string, log *slog.Logger) (err error) {
	db, err := openDatabase(ctx, address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	root, err := openRoot(ctx, db, rootFile, log)
	if err != nil {
		return err
	}
	// The tables are there, so Initialize makes the installation key and nothing else, the first time.
	keys, err := keyhold.New(ctx, db.keys, keyhold.Config{
		Root: root, Purposes: []keyhold.Purpose{purpose}, Initialize: true, Logger: log,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, keys.Close()) }()
	defer rotating(ctx, keys)()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	log.Info("listening", "address", listener.Addr().String())
	return serve(ctx, listener, newHandler(&tenants{db: db, keys: keys}, log), log)
}

// rotating rotates keys when they are due, until ctx ends or end is called, which waits until nothing of it is under
// way: before Close.
func rotating(ctx context.Context, keys *keyhold.Manager) (end func()) {
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = keys.Run(ctx) // ctx's error: what fails on the way is logged, and tried again
	}()
	return func() {
		stop()
		<-ended
	}
}

// openRoot opens the external root. Only where there is no installation that depends on another one does it make one.
//
// A local root is for trying things out. In its place goes any Wrapper of go-kms-wrapping, such as that of a cloud's
// KMS; nothing else changes.
func openRoot(ctx context.Context, db *database, file string, log *slog.Logger) (wrapping.Wrapper, error) {
	root, err := localroot.Open(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	_, readErr := db.keys.Installation(ctx)
	switch {
	case readErr == nil:
		return nil, fmt.Errorf("open the root of the keys in this database: %w", err)
	case !errors.Is(readErr, keyhold.ErrNotFound):
		return nil, readErr
	}
	if root, err = localroot.Generate(file); err != nil {
		return nil, err
	}
	log.Warn("made a new root; without this file nothing in the database opens", "file", file)
	return root, nil
}

// serve answers until ctx ends, and then finishes what is under way.
func serve(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10*time.Second + requestTime,
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Info("shutting down")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return fmt.Errorf("wait for requests under way: %w", errors.Join(err, server.Close()))
	}
	return nil
}
