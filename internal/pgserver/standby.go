package pgserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// beginning is the name of the copy of the data folder that standbys begin with.
const beginning = "beginning"

// Standby starts a server that follows s, and is called "standby" in synchronous_standby_names. It begins as s did and
// is sent all that was written since, so that it needs none of the programs that only some packages have. Its settings
// are those of s, and the given ones. It ends as [Start] says; [Server.Stop] of s does not end it. s has to have been
// started with [Options.Standbys].
func (s *Server) Standby(ctx context.Context, settings map[string]string) (*Server, error) {
	o := s.options
	o.Settings = maps.Clone(o.Settings)
	if o.Settings == nil {
		o.Settings = map[string]string{}
	}
	o.Settings["primary_conninfo"] = fmt.Sprintf("host=%s port=%d user=%s application_name=standby", s.dir, s.port, superuser)
	o.Settings["wal_retrieve_retry_interval"] = "100ms"
	maps.Copy(o.Settings, settings)
	o.Files = maps.Clone(o.Files)
	if o.Files == nil {
		o.Files = map[string][]byte{}
	}
	o.Files["standby.signal"] = nil
	o.Standbys = false
	standby, err := start(ctx, s.binaries, o, filepath.Join(s.dir, beginning), "")
	if err != nil {
		return nil, err
	}
	if err := standby.streams(ctx, true); err != nil {
		return nil, errors.Join(fmt.Errorf("follow the primary: %w", err), standby.Stop())
	}
	return standby, nil
}

// Unfollow has a standby follow nobody until [Server.Follow]. What the primary commits after it has returned never
// comes to the standby if the primary ends meanwhile.
func (s *Server) Unfollow(ctx context.Context) error {
	if err := s.set(ctx, "primary_conninfo", ""); err != nil {
		return err
	}
	return s.streams(ctx, false)
}

// Follow ends what [Server.Unfollow] began, and returns when the standby is sent what is written.
func (s *Server) Follow(ctx context.Context) error {
	if err := s.set(ctx, "primary_conninfo", s.options.Settings["primary_conninfo"]); err != nil {
		return err
	}
	return s.streams(ctx, true)
}

// Promote makes a standby a primary, and returns when it takes writes.
func (s *Server) Promote(ctx context.Context) error {
	return s.until(ctx, "select pg_promote(wait => true)")
}

// set changes a setting of the running server.
func (s *Server) set(ctx context.Context, name, value string) error {
	return s.as(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, "alter system set "+name+" = '"+strings.ReplaceAll(value, "'", "''")+"'")
		if err != nil {
			return err
		}
		_, err = c.Exec(ctx, "select pg_reload_conf()")
		return err
	})
}

// streams waits until the standby is sent what the primary writes, or until it is not.
func (s *Server) streams(ctx context.Context, want bool) error {
	query := "select exists (select 1 from pg_stat_wal_receiver where status = 'streaming')"
	if !want {
		query = "select not exists (select 1 from pg_stat_wal_receiver)"
	}
	return s.until(ctx, query)
}

// until waits until a query returns true.
func (s *Server) until(ctx context.Context, query string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	return s.as(ctx, func(c *pgx.Conn) error {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			done := false
			if err := c.QueryRow(ctx, query).Scan(&done); err != nil || done {
				return err
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("wait until %q is true: %w", query, ctx.Err())
			}
		}
	})
}

// as runs f on a connection of the superuser's.
func (s *Server) as(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return err
	}
	return errors.Join(f(conn), conn.Close(ctx))
}
