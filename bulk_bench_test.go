package keyhold_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
)

var bulkStores = []string{"postgres", "sqlite"}

// scopesNamed are n scopes, of names that no other prefix gives.
func scopesNamed(prefix string, n int) []key.Scope {
	scopes := make([]key.Scope, n)
	for i := range scopes {
		scopes[i] = key.Scope(fmt.Sprintf("%s%06d", prefix, i))
	}
	return scopes
}

// openThree opens an installation with three purposes.
func openThree(b testing.TB, kind string) *keyhold.Manager {
	b.Helper()
	m, err := keyhold.New(b.Context(), stores[kind].open(b), keyhold.Config{
		Root: newRoot(b), Purposes: []key.Purpose{"a", "b", "c"}, Initialize: true,
	})
	must(b, err)
	b.Cleanup(func() { must(b, m.Close()) })
	return m
}

// bulkScopes is how many scopes are worked on at once.
func bulkScopes() int {
	if testing.Short() {
		return 500
	}
	return 10_000
}

// BenchmarkCreateScopes creates 10 000 scopes with three purposes each, 500 with -short.
func BenchmarkCreateScopes(b *testing.B) {
	for _, kind := range bulkStores {
		b.Run(kind, func(b *testing.B) {
			m, n := openThree(b, kind), 0
			for i := 0; b.Loop(); i++ {
				made, err := m.CreateScopes(b.Context(), scopesNamed(fmt.Sprint(i, "_"), bulkScopes()))
				must(b, err)
				n += made
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "scopes/s")
		})
	}
}

// withScopes is an installation with bulkScopes scopes and three purposes, and its store and root.
func withScopes(b *testing.B, kind string) world {
	b.Helper()
	w := world{kind: stores[kind], store: stores[kind].open(b), root: newRoot(b)}
	w.Manager = w.purposed(b, "a", "b", "c")
	n, err := w.CreateScopes(b.Context(), scopesNamed("s", bulkScopes()))
	if err != nil || n != bulkScopes() {
		b.Fatalf("%d scopes, %v", n, err)
	}
	return w
}

func (w world) purposed(b *testing.B, purposes ...key.Purpose) *keyhold.Manager {
	b.Helper()
	m, err := keyhold.New(b.Context(), w.store, keyhold.Config{Root: w.root, Purposes: purposes, Initialize: true})
	must(b, err)
	b.Cleanup(func() { must(b, m.Close()) })
	return m
}

// BenchmarkRekey wraps the root keys of 10 000 scopes with three purposes each under a new installation key, and signs
// their manifests anew; of 500 with -short.
func BenchmarkRekey(b *testing.B) {
	for _, kind := range bulkStores {
		w := withScopes(b, kind)
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				done, err := w.Rekey(b.Context(), keyhold.NoEscrow)
				must(b, err)
				if done.Keys != 4*bulkScopes() {
					b.Fatalf("%+v", done)
				}
			}
			b.ReportMetric(float64(b.N*bulkScopes())/b.Elapsed().Seconds(), "scopes/s")
		})
	}
}

// BenchmarkReconcile gives 10 000 scopes a key of a purpose that is new, beside three that they have; 500 with -short.
func BenchmarkReconcile(b *testing.B) {
	for _, kind := range bulkStores {
		w := withScopes(b, kind)
		purposes := []key.Purpose{"a", "b", "c"}
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				purposes = append(purposes, key.Purpose(fmt.Sprint("p", len(purposes))))
				m := w.purposed(b, purposes...)
				b.StartTimer()
				done, err := m.Reconcile(b.Context())
				must(b, err)
				if done.Created != bulkScopes() {
					b.Fatalf("%+v", done)
				}
			}
			b.ReportMetric(float64(b.N*bulkScopes())/b.Elapsed().Seconds(), "scopes/s")
		})
	}
}

// rewrapping is an installation on PostgreSQL all of whose data key versions are under root key versions that are not
// the heads, and what it was like then.
type rewrapping struct {
	m        *keyhold.Manager
	s        store.Store
	pool     *pgxpool.Pool
	readers  store.Store // on connections of their own
	refs     []key.Ref
	versions int
}

// newRewrapping has n scopes with ten purposes each. Beside the table of versions there is a copy of it, with its
// indexes, and without its triggers and foreign keys.
func newRewrapping(b *testing.B, n int) *rewrapping {
	b.Helper()
	ctx, dsn := b.Context(), keyholdtest.Postgres(b)
	w := &rewrapping{versions: 10 * n}
	var err error
	w.pool, err = pgxpool.New(ctx, dsn)
	must(b, err)
	b.Cleanup(w.pool.Close)
	w.s, err = pgstore.Open(ctx, dsn)
	must(b, err)
	b.Cleanup(func() { must(b, w.s.Close()) })
	w.readers, err = pgstore.Open(ctx, dsn)
	must(b, err)
	b.Cleanup(func() { must(b, w.readers.Close()) })
	cfg := keyhold.Config{Root: newRoot(b), Initialize: true}
	for i := range 10 {
		cfg.Purposes = append(cfg.Purposes, key.Purpose(fmt.Sprint("p", i)))
	}
	w.m, err = keyhold.New(ctx, w.s, cfg)
	must(b, err)
	b.Cleanup(func() { must(b, w.m.Close()) })
	scopes := scopesNamed("s", n)
	_, err = w.m.CreateScopes(ctx, scopes)
	must(b, err)
	var rotating sync.WaitGroup
	for part := range slices.Chunk(scopes, (n+3)/4) {
		rotating.Go(func() {
			for _, scope := range part {
				if _, err := w.m.Rotate(ctx, key.Ref{Scope: scope}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	rotating.Wait()
	w.exec(b, "analyze") // which the server does by itself, within a minute or so
	for _, scope := range scopes {
		w.refs = append(w.refs, key.Ref{Scope: scope, Purpose: "p0"})
	}
	w.exec(b, "create table copy (like kms_data_key_version including indexes)")
	w.exec(b, "insert into copy select * from kms_data_key_version")
	w.exec(b, "create table saved as select private_id, key, root_key_version_id from kms_data_key_version")
	_, err = w.m.RewrapAll(ctx, nil)
	must(b, err)
	w.exec(b, "create table wanted as select s.private_id, s.key as old, v.key as new, v.root_key_version_id as parent "+
		"from saved s join kms_data_key_version v using (private_id)")
	return w
}

func (w *rewrapping) exec(b *testing.B, text string) {
	b.Helper()
	_, err := w.pool.Exec(b.Context(), text)
	must(b, err)
}

// restore brings the tables to what they were like.
func (w *rewrapping) restore(b *testing.B, table string) {
	b.Helper()
	w.exec(b, "update "+table+" v set key = s.key, root_key_version_id = s.root_key_version_id from saved s where s.private_id = v.private_id")
	w.exec(b, "vacuum analyze "+table)
	w.exec(b, "checkpoint")
}

// update replaces all of it in batches of 1 000, by the bare statement.
func (w *rewrapping) update(b *testing.B, table string) time.Duration {
	b.Helper()
	const batch = 1000
	rows, err := w.pool.Query(b.Context(), "select private_id, old, new, parent from wanted order by private_id")
	must(b, err)
	var ids, parents []string
	var olds, blobs [][]byte
	for rows.Next() {
		var id, parent string
		var old, blob []byte
		must(b, rows.Scan(&id, &old, &blob, &parent))
		ids, parents, olds, blobs = append(ids, id), append(parents, parent), append(olds, old), append(blobs, blob)
	}
	must(b, rows.Err())
	w.restore(b, table)
	start, n := time.Now(), 0
	for i := 0; i < len(ids); i += batch {
		j := min(i+batch, len(ids))
		tag, err := w.pool.Exec(b.Context(), "update "+table+" v set key = n.new, root_key_version_id = n.parent "+
			"from unnest($1::text[], $2::bytea[], $3::bytea[], $4::text[]) as n (private_id, old, new, parent) "+
			"where v.private_id = n.private_id and v.key = n.old", ids[i:j], olds[i:j], blobs[i:j], parents[i:j])
		must(b, err)
		n += int(tag.RowsAffected())
	}
	if n != w.versions {
		b.Fatalf("replaced %d of %d", n, w.versions)
	}
	return time.Since(start)
}

func (w *rewrapping) rewrap(b *testing.B) time.Duration {
	b.Helper()
	w.restore(b, "kms_data_key_version")
	start := time.Now()
	if n, err := w.m.RewrapAll(b.Context(), nil); err != nil || n != w.versions {
		b.Fatalf("rewrapped %d of %d: %v", n, w.versions, err)
	}
	return time.Since(start)
}

// read has 8 readers read 200 keys at random a second each, until done, and returns the 99th percentile of their times.
func (w *rewrapping) read(b *testing.B, until func()) time.Duration {
	b.Helper()
	var stopped atomic.Bool
	var readers sync.WaitGroup
	times := make([][]time.Duration, 8)
	for i := range times {
		readers.Go(func() {
			due := time.NewTicker(5 * time.Millisecond)
			defer due.Stop()
			for !stopped.Load() {
				<-due.C
				began := time.Now()
				if _, err := w.readers.Key(b.Context(), w.refs[rand.N(len(w.refs))]); err != nil {
					b.Error(err)
				}
				times[i] = append(times[i], time.Since(began))
			}
		})
	}
	until()
	stopped.Store(true)
	readers.Wait()
	all := slices.Concat(times...)
	slices.Sort(all)
	return all[len(all)*99/100]
}

// BenchmarkRewrap rewraps 100 000 versions on PostgreSQL, 10 000 with -short: beside the bare statement on the same
// table, and on a copy of it without triggers and foreign keys, and while 8 readers read.
func BenchmarkRewrap(b *testing.B) {
	n := 10_000
	if testing.Short() {
		n = 1000
	}
	w := newRewrapping(b, n)
	run := func(name string, do func(b *testing.B) time.Duration) {
		b.Run(name, func(b *testing.B) {
			total := time.Duration(0)
			for b.Loop() {
				total += do(b)
			}
			b.ReportMetric(float64(b.N*w.versions)/total.Seconds(), "versions/s")
		})
	}
	run("bare", func(b *testing.B) time.Duration { return w.update(b, "kms_data_key_version") })
	run("copy", func(b *testing.B) time.Duration { return w.update(b, "copy") })
	run("keyhold", w.rewrap)
	run("keyhold with readers", func(b *testing.B) (took time.Duration) {
		alone := w.read(b, func() { <-time.After(3 * time.Second) })
		during := w.read(b, func() { took = w.rewrap(b) })
		b.ReportMetric(float64(alone.Microseconds()), "p99-alone-µs")
		b.ReportMetric(float64(during.Microseconds()), "p99-during-µs")
		return took
	})
}
