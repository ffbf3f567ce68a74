package keyhold

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"keyhold.example/keyhold/internal/manykeys"
	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// benchKeys is how many keys there are besides those that are rotated.
func benchKeys(b *testing.B) int {
	b.Helper()
	text := os.Getenv("KEYHOLD_BENCH_KEYS")
	if text == "" {
		return 1000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		b.Fatalf("KEYHOLD_BENCH_KEYS: %v", err)
	}
	return n
}

// table is a database with many keys, of which some may be made due.
type table struct {
	store.Store
	*Manager
	exec func(ctx context.Context, text string) error
}

// dueKeys is how many data keys each table has that are real, 10 in a scope, with ids that begin with real_.
const dueKeys = 1000

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bigTables calls f with a PostgreSQL that is as careful as in production, and with SQLite.
func bigTables(b *testing.B, f func(b *testing.B, t *table)) {
	n := benchKeys(b)
	b.Run(fmt.Sprintf("postgres/keys=%d", n), func(b *testing.B) {
		bin, err := pgserver.Find(b.Context())
		ok(b, err)
		server, err := pgserver.Start(b.Context(), bin, pgserver.Options{Settings: map[string]string{
			"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "256MB", "max_wal_size": "1GB",
		}})
		ok(b, err)
		b.Cleanup(func() { ok(b, server.Stop()) })
		s, err := pgstore.Open(b.Context(), server.DSN("postgres"))
		ok(b, err)
		b.Cleanup(func() { ok(b, s.Close()) })
		t := newTable(b, s)
		t.exec = func(ctx context.Context, text string) error {
			_, err := s.Pool().Exec(ctx, text)
			return err
		}
		conn, err := s.Pool().Acquire(b.Context())
		ok(b, err)
		ok(b, manykeys.Postgres(b.Context(), func(ctx context.Context, text string) error {
			_, err := conn.Exec(ctx, text)
			return err
		}, n))
		conn.Release()
		f(b, t)
	})
	b.Run(fmt.Sprintf("sqlite/keys=%d", n), func(b *testing.B) {
		s, err := sqlitestore.Create(filepath.Join(b.TempDir(), "keys.db"))
		ok(b, err)
		b.Cleanup(func() { ok(b, s.Close()) })
		t := newTable(b, s)
		t.exec = func(ctx context.Context, text string) error {
			_, err := s.DB().ExecContext(ctx, text)
			return err
		}
		ok(b, manykeys.SQLite(b.Context(), s.DB(), n, false))
		f(b, t)
	})
}

func newTable(b *testing.B, s store.Store) *table {
	b.Helper()
	root, err := localroot.Generate(filepath.Join(b.TempDir(), "root.key"))
	ok(b, err)
	var purposes []key.Purpose
	for p := range manykeys.PerScope {
		purposes = append(purposes, key.Purpose(fmt.Sprintf("purpose-%d", p)))
	}
	m, err := New(b.Context(), s, Config{Root: root, Purposes: purposes, Initialize: true})
	ok(b, err)
	b.Cleanup(func() { ok(b, m.Close()) })
	for i := range dueKeys / manykeys.PerScope {
		ok(b, m.CreateScope(b.Context(), key.Scope(fmt.Sprintf("real_%d", i))))
	}
	return &table{Store: s, Manager: m}
}

// BenchmarkSweep is the rotation part of a sweep where nothing is due, and where 1000 keys of as many as KEYHOLD_BENCH_KEYS
// says, and 1000 more, are due.
func BenchmarkSweep(b *testing.B) {
	bigTables(b, func(b *testing.B, t *table) {
		s := t.newSweep()
		b.Run("due=0", func(b *testing.B) {
			for b.Loop() {
				ok(b, s.rotate(b.Context()))
			}
		})
		b.Run(fmt.Sprintf("due=%d", dueKeys), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				ok(b, t.exec(b.Context(), `update kms_data_key set rotate_at = 1 where root_key_id in
					(select private_id from kms_root_key where scope_id > 'real_' and scope_id < 'real~')`))
				s.swept = Swept{}
				b.StartTimer()
				ok(b, s.rotate(b.Context()))
				if s.swept.Rotated != dueKeys || s.swept.Pending+s.swept.Failed != 0 {
					b.Fatalf("%+v, want %d rotated", s.swept, dueKeys)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/dueKeys, "us/key")
		})
	})
}
