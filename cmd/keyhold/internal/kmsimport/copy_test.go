package kmsimport_test

import (
	"database/sql"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// While rows are copied, the old tables are locked: one statement copies many rows, also between gaps.
func TestManyVersionsAreCopiedInFewStatements(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		ctx := t.Context()
		for _, tables := range []struct{ name, key string }{{"data_key_version", "data_key_id, root_key_version_id"}, {"root_key_version", "root_key_id"}} {
			o.exec(t, "insert into kms_"+tables.name+" (private_id, "+tables.key+", version, key) "+
				"with recursive n (n) as (select 1000 union all select n + 1 from n where n < 2000) "+
				"select v.private_id || 'x' || n, "+tables.key+", n, key from kms_"+tables.name+" v, n "+
				"where v.private_id in (select max(private_id) from kms_"+tables.name+" group by "+tables.key+" order by 1 limit 2)",
				// Gaps of many numbers, of one, and every third.
				"delete from kms_"+tables.name+" where version between 1100 and 1300 or version = 1400 or version between 1900 and 1960 and version % 3 = 0")
		}
		scopes := o.read(t)
		stage, root := o.stage(t, scopes)
		f := &faultyDB{driver: o.tables.DB.Driver(), source: o.source, at: -2}
		tables := o.tables
		tables.DB = sql.OpenDB(f)
		must(t, tables.Replace(ctx, scopes, stage, time.Minute))
		must(t, tables.DB.Close())

		s, _ := o.openStore(t)
		m, err := keyhold.New(ctx, s, keyhold.Config{Root: root})
		must(t, err)
		t.Cleanup(func() { must(t, m.Close()) })
		versions, long := 0, 0
		for _, scope := range scopes {
			keys, err := m.Keys(ctx, scope.Scope)
			must(t, err)
			for _, k := range keys {
				if len(k.Versions) < 2000 {
					continue
				}
				long++
				for i, v := range k.Versions {
					n := key.Version(i + 1)
					gap := n >= 1100 && n <= 1300 || n == 1400 || n >= 1900 && n <= 1960 && n%3 == 0
					if v.Number != n || n >= 1000 && n <= 2000 && gap != (v.State == key.Destroyed) {
						t.Fatalf("%v: version %d in place %d is %v", k.Ref, v.Number, n, v.State)
					}
					versions++
				}
			}
		}
		if long != 4 || f.n > versions/10 {
			t.Errorf("%d statements for %d versions of %d long keys", f.n, versions, long)
		}
		found, err := store.Check(ctx, s)
		if err != nil || len(found) > 0 {
			t.Errorf("Check: %v, %v", found, err)
		}
	})
}
