package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Halt ends the server in good order, whoever is connected. Its data stay until [Server.Resume] serves them again, at
// the same address, or [Server.Stop] removes them.
func (s *Server) Halt(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(s.dir, "data", "postmaster.pid"))
	if err != nil {
		return fmt.Errorf("halt PostgreSQL: %w", err)
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	pid, err := strconv.Atoi(string(line))
	if err != nil {
		return fmt.Errorf("halt PostgreSQL: %w", err)
	}
	server, err := os.FindProcess(pid)
	if err != nil {
		return fmt.Errorf("halt PostgreSQL: %w", err)
	}
	if err := server.Signal(os.Interrupt); err != nil {
		return fmt.Errorf("halt PostgreSQL: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		// The guard makes it when the server has ended.
		if _, err := os.Stat(filepath.Join(s.dir, "over")); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("halt PostgreSQL: %w", ctx.Err())
		}
	}
}

// Resume serves the data of a server that was halted.
func (s *Server) Resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	as, err := unprivileged()
	if err != nil {
		return err
	}
	// The guard that is there removes its folder, so that the data have to be elsewhere meanwhile.
	data, aside := filepath.Join(s.dir, "data"), s.dir+"-halted"
	if err := os.Rename(data, aside); err != nil {
		return err
	}
	err = errors.Join(s.end(), os.Mkdir(s.dir, 0o700))
	if err = errors.Join(err, as.own(s.dir), os.Rename(aside, data)); err != nil {
		return errors.Join(err, os.RemoveAll(aside))
	}
	guard, err := as.start(s.dir, "QUIT", filepath.Join(s.binaries.Dir, "postgres"), "-D", data)
	if err != nil {
		return err
	}
	s.end = guard.end
	err = guard.await(ctx, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, s.DSN("postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	if err != nil {
		return fmt.Errorf("start PostgreSQL again: %w", err)
	}
	return nil
}
