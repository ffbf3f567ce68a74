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
	size func(b *testing.B) int64 // bytes of all tables and indexes

	one, many float64 // bytes a data key, with one version and with three
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
		t.size = func(b *testing.B) (n int64) {
			b.Helper()
			ok(b, s.Pool().QueryRow(b.Context(), `select sum(pg_total_relation_size(oid)) from pg_class
				where relkind = 'r' and relname like 'kms%'`).Scan(&n))
			return n
		}
		t.makeKeys(b)
		conn, err := s.Pool().Acquire(b.Context())
		ok(b, err)
		ok(b, manykeys.Postgres(b.Context(), func(ctx context.Context, text string) error {
			_, err := conn.Exec(ctx, text)
			return err
		}, n))
		conn.Release()
		t.filled(b, n)
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
		t.size = func(b *testing.B) (n int64) {
			b.Helper()
			ok(b, s.DB().QueryRowContext(b.Context(), `select page_count * page_size from pragma_page_count, pragma_page_size`).Scan(&n))
			return n
		}
		t.makeKeys(b)
		ok(b, manykeys.SQLite(b.Context(), s.DB(), n, false))
		t.filled(b, n)
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
	return &table{Store: s, Manager: m}
}

// makeKeys makes those that may be made due.
func (t *table) makeKeys(b *testing.B) {
	b.Helper()
	t.one = float64(t.size(b))
	for i := range dueKeys / manykeys.PerScope {
		ok(b, t.CreateScope(b.Context(), key.Scope(fmt.Sprintf("real_%d", i))))
	}
	t.many = float64(t.size(b))
	t.one = (t.many - t.one) / dueKeys
}

// filled says that n keys were made besides.
func (t *table) filled(b *testing.B, n int) {
	b.Helper()
	t.many = (float64(t.size(b)) - t.many) / float64(n)
}

// BenchmarkSweep is the rotation part of a sweep where nothing is due, and where 1000 keys are due: of 1000 and as many
// more as KEYHOLD_BENCH_KEYS says.
func BenchmarkSweep(b *testing.B) {
	bigTables(b, func(b *testing.B, t *table) {
		s := t.newSweep()
		b.Run("due=0", func(b *testing.B) {
			for range 10 { // PostgreSQL plans a statement anew the first five times
				ok(b, s.rotate(b.Context()))
			}
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
		t.questions(b)
	})
}

// questions measures what is asked of as many keys, and how large they are, each with its part of a root key's row: a
// scope has 10. The indexes of those with three versions were made at once, and are as dense as that makes them.
func (t *table) questions(b *testing.B) {
	b.Helper()
	b.Run("size", func(b *testing.B) {
		for b.Loop() {
			_ = t.size(b)
		}
		b.ReportMetric(t.one, "B/key-with-1-version")
		b.ReportMetric(t.many, "B/key-with-3-versions")
	})
	ref := key.Ref{Scope: "real_7", Purpose: "purpose-3"}
	fam, err := t.Store.Key(b.Context(), ref)
	ok(b, err)
	version := fam.Data[0].Versions[0].ID
	for _, q := range []struct {
		name string
		ask  func(ctx context.Context) error
	}{
		{"Due", func(ctx context.Context) error { return last(t.Due(ctx, store.AllBuckets, store.Due{}, 200)) }},
		{"Upcoming", func(ctx context.Context) error {
			_, _, err := t.Upcoming(ctx)
			return err
		}},
		{"Lagging", func(ctx context.Context) error {
			_, _, err := t.Lagging(ctx, "", 200)
			return err
		}},
		{"Take", func(ctx context.Context) error { return last(t.Take(ctx, version, 1, 1<<40)) }},
		{"Tidy", func(ctx context.Context) error { return last(t.Store.Tidy(ctx)) }},
		{"Epochs", func(ctx context.Context) error { return last(t.Store.Epochs(ctx)) }},
		{"Key", func(ctx context.Context) error { return last(t.Store.Key(ctx, ref)) }},
		{"KeyOfVersion", func(ctx context.Context) error { return last(t.Store.KeyOfVersion(ctx, version)) }},
	} {
		b.Run(q.name, func(b *testing.B) {
			for b.Loop() {
				ok(b, q.ask(b.Context()))
			}
		})
	}
}

func last[T any](_ T, err error) error { return err }
