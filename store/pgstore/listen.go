package pgstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/store"
)

// Where our tables are: what a notification says. The cast is an error where they are not.
var placeOfEpochs = define(`
select nspname::text, pg_backend_pid()::bigint
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = $1::text::regclass`)

// The commit of a notification takes a lock on the whole server; it is not to wait for the disk or a standby meanwhile.
var notifyOthers = define(`
select set_config('synchronous_commit', 'off', true), pg_notify('{prefix}_keys', nspname::text)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = $1::text::regclass`)

// Notify tells those who [Store.Listen] that keys of this installation may have changed. It is a transaction of its
// own, and not one of those that change keys, as PostgreSQL commits those that notify one after the other.
func (s *Store) Notify(ctx context.Context) error {
	st := s.tables.statement(notifyOthers, s.tables.table("epoch"))
	st.row = func(scan func(...any) error) error {
		var off, void string
		return scan(&off, &void)
	}
	return s.tables.explain(ctx, "notify", s.read(ctx, st))
}

// Listen calls heard once when it has begun to listen, and then soon after keys of this installation may have changed:
// once for all that was told since the call before. It returns when ctx is done, with its error, or when the connection
// is lost, with [store.ErrUnavailable]. Nothing may depend on it: look at times without being told. It takes a
// connection of pgx's pool for itself, in whose place the pool makes another. A pooler between here and the server
// would give LISTEN to whoever has that connection next, so behind one nothing is heard. It is an error at once for a
// store made by [FromSQL], as database/sql has no notifications.
func (s *Store) Listen(ctx context.Context, heard func()) error {
	if s.pool == nil {
		return fmt.Errorf("listen: a store made by FromSQL cannot, as database/sql has no notifications: %w", errors.ErrUnsupported)
	}
	if s.closed.Load() {
		return s.tables.explain(ctx, "listen", errClosed)
	}
	acquired, err := s.pool.Acquire(ctx)
	if err != nil {
		return s.tables.explain(ctx, "listen", connectError(err))
	}
	conn := acquired.Hijack()
	told, ended := make(chan struct{}, 1), make(chan error, 1)
	var hearing sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		hearing.Wait() // the connection is used by one goroutine at a time
		ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer stop()
		_ = conn.Close(ctx) // it ends either way
	}()
	hearing.Go(func() { ended <- s.hear(ctx, conn, told) })
	for {
		select {
		case <-told:
			heard()
		case err := <-ended:
			return err
		}
	}
}

// hear puts something into told, if there is nothing, when it begins and for each notification. It returns when the
// connection is lost or the context done.
func (s *Store) hear(ctx context.Context, conn *pgx.Conn, told chan<- struct{}) error {
	var schema string
	var pid int64
	st := s.tables.statement(placeOfEpochs, s.tables.table("epoch"))
	st.row = func(scan func(...any) error) error { return scan(&schema, &pid) }
	in := pgxSession{conn}
	if err := in.run(ctx, st); err != nil {
		return s.tables.explain(ctx, "listen", err)
	}
	if pid != int64(conn.PgConn().PID()) {
		<-ctx.Done() // a pooler made that number up
		return fmt.Errorf("listen: %w", store.ContextError(ctx))
	}
	if err := in.run(ctx, statement{text: "listen " + s.tables.options.Prefix + "_keys"}); err != nil {
		return s.tables.explain(ctx, "listen", err)
	}
	for ours := true; ; {
		if ours {
			select {
			case told <- struct{}{}:
			default:
			}
		}
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return s.tables.explain(ctx, "listen", databaseError(err))
		}
		ours = n.Payload == schema
	}
}
