package pgstore

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"keyhold.example/keyhold/internal/manykeys"
	"keyhold.example/keyhold/keyholdtest"
	"keyhold.example/keyhold/store/storetest"
)

// readsAll are the statements that may read a whole table that grows: those of Integrity, which looks at everything.
var readsAll = []query{orphansQuery, gapsQuery, strangeParentsQuery, strayNamesQuery}

// grows are the tables with more rows the more keys there are. Of the others, that of the epochs is kept small by Tidy.
var grows = []string{
	"kms_root_key", "kms_root_key_version", "kms_data_key", "kms_data_key_version", "kms_tombstone", "kms_usage", "kms_data_key_name",
}

// For every statement there is a plan that reads no whole table that grows, whatever its arguments are: as soon as
// the table is so large that it matters, the server chooses that. Whether it can is not seen where it may read the
// table or sort it, which is as good while that is small, so here it may not.
func TestNoStatementReadsAWholeTable(t *testing.T) {
	for name, analyzed := range map[string]bool{"analyzed": true, "never analyzed": false} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s, err := Open(ctx, keyholdtest.Postgres(t))
			must(t, err)
			defer func() { must(t, s.Close()) }()
			must(t, s.Migrate(ctx))
			must(t, s.Initialize(ctx, storetest.NewMaker(1).Installation()))
			conn, err := s.Pool().Acquire(ctx)
			must(t, err)
			defer conn.Release()
			exec := func(ctx context.Context, text string) error {
				_, err := conn.Exec(ctx, text, pgx.QueryExecModeSimpleProtocol)
				return err
			}
			fillAll(t, exec, analyzed)
			for _, setting := range []string{
				"plan_cache_mode = force_generic_plan", "enable_seqscan = off", "enable_hashjoin = off", "enable_mergejoin = off",
			} {
				must(t, exec(ctx, "set "+setting))
			}
			for q := range templates {
				text := s.tables.text[q]
				if !isExplained(text) {
					continue
				}
				var whole []string
				eachScan(t, conn.Conn(), text, func(scan string) { whole = append(whole, scan) })
				if may := slices.Contains(readsAll, query(q)); may != (len(whole) > 0) {
					t.Errorf("it reads all of %q, and may: %v:\n%s", whole, may, text)
				}
			}
		})
	}
}

// fillAll puts so many rows into every table that grows that reading all of them is the worst that can be done.
func fillAll(t *testing.T, exec func(ctx context.Context, text string) error, analyzed bool) {
	t.Helper()
	ctx := t.Context()
	must(t, manykeys.Postgres(ctx, exec, 20_000))
	for _, text := range []string{
		"set session_replication_role = replica",
		`insert into kms_tombstone (key_id, version, private_id, kind, alg, commitment)
		select private_id, 60000, 'kdkv_gone' || private_id, 'dek', 1, mac from kms_data_key`,
		`insert into kms_usage (private_id, taken, used_at)
		select private_id, 1, case when version = 3 then 4000000000 end from kms_data_key_version`,
		`insert into kms_data_key_name (root_key_id, purpose, seq, generator, last_version, removed, ik_kid, mac)
		select root_key_id, purpose, 1, '', 0, 0, ik_kid, mac from kms_data_key`,
		`insert into kms_epoch (bucket, n) select i % 32, 1 from generate_series(1, 20000) i`,
		`insert into kms_escrow (ik_kid, event, detail) select ik_kid, 'verified', '' from kms_data_key`,
		"reset session_replication_role",
	} {
		must(t, exec(ctx, text))
	}
	if analyzed {
		must(t, exec(ctx, "analyze"))
		return
	}
	must(t, exec(ctx, "delete from pg_statistic"))
	must(t, exec(ctx, "update pg_class set reltuples = -1, relpages = 0 where relname like 'kms%'"))
}

// isExplained says whether a statement has a plan.
func isExplained(text string) bool {
	word := strings.ToLower(strings.Fields(text)[0])
	return slices.Contains([]string{"select", "with", "insert", "update", "delete"}, word)
}

var parameter = regexp.MustCompile(`\$(\d+)`)

// eachScan calls whole for every scan of a table that grows which nothing bounds.
func eachScan(t *testing.T, conn *pgx.Conn, text string, whole func(scan string)) {
	t.Helper()
	ctx := t.Context()
	last := 0
	for _, m := range parameter.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(m[1])
		must(t, err)
		last = max(last, n)
	}
	args := ""
	if last > 0 {
		args = "(" + strings.Repeat("null, ", last-1) + "null)"
	}
	for _, statement := range []string{"prepare explained as " + text, "explain (costs off, format json) execute explained" + args, "deallocate explained"} {
		results, err := conn.PgConn().Exec(ctx, statement).ReadAll()
		if err != nil {
			t.Fatalf("%v:\n%s", err, statement)
		}
		for _, r := range results {
			for _, row := range r.Rows {
				var plans []struct{ Plan plan }
				must(t, json.Unmarshal(row[0], &plans))
				plans[0].Plan.each(false, whole)
			}
		}
	}
}

// plan is a node of a plan.
type plan struct {
	Type  string `json:"Node Type"`
	Table string `json:"Relation Name"`
	Index string `json:"Index Name"`
	Cond  string `json:"Index Cond"`
	// Filter throws rows away, of which there may be any number before the limit is reached.
	Filter string
	Plans  []plan
}

func (p *plan) each(limited bool, whole func(scan string)) {
	limited = limited || p.Type == "Limit"
	switch {
	case !slices.Contains(grows, p.Table):
	case p.Type == "Seq Scan", strings.HasPrefix(p.Type, "Index") && p.Cond == "" && (!limited || p.Filter != ""):
		whole(fmt.Sprint(p.Type, " of ", p.Table, " ", p.Index))
	}
	for i := range p.Plans {
		p.Plans[i].each(limited, whole)
	}
}
