package dekmanager_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/dekmanager"
)

// A key that is in use, beside what keyhold itself takes for it.
func BenchmarkHot(b *testing.B) {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "keys.db")+"?_txlock=immediate&_pragma=foreign_keys(1)&_pragma=busy_timeout(10000)")
	must(b, err)
	b.Cleanup(func() { must(b, db.Close()) })
	d, err := dekmanager.NewDEKManager(db, mek, dekmanager.WithLogger(quiet))
	must(b, err)
	b.Cleanup(d.Shutdown)
	get(b, d, "user_data", 1)
	must(b, d.RotateDEK(b.Context(), "user_data"))
	get(b, d, "user_data", 2)
	ctx, ref := context.Background(), keyhold.Ref{Scope: scope, Purpose: "user_data"}
	for _, one := range []struct {
		name string
		do   func() error
	}{
		{"Raw", func() error { _, _, err := d.Manager().Raw(ctx, ref); return err }},
		{"GetDEK", func() error { _, _, err := d.GetDEK(ctx, "user_data"); return err }},
		{"RawVersion", func() error { _, err := d.Manager().RawVersion(ctx, ref, 1); return err }},
		{"GetDEKByVersion", func() error { _, err := d.GetDEKByVersion(ctx, "user_data", 1); return err }},
	} {
		b.Run(one.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := one.do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("GetDEK by all processors", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, _, err := d.GetDEK(ctx, "user_data"); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}
